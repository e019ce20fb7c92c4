"""What the native ops must make of random calls, right ones and hostile ones.

The calls are the targets of the other fuzz files:

    python tests/support/fuzz_cells.py [TARGET ...] [--calls N] [--seed S] [--first I]

makes N calls of each target, numbers I to I + N - 1 of the seed S; a call depends on target, seed and number
alone. test_fuzz.py runs each file in a process of its own, so that a crash is a failed test. FUZZ_LOG names
a file that holds the last call. docs/reliability.md says what has been run.

What a call must do:

- right arguments of any strides: the result of the reference in float64, values and gradients;
- hostile ones (dtype, rank, sizes, device, layout, NaN and infinity, settings out of range): an error of
  Python, or a result of the right shape; and where the reference's result has no NaN and is not huge, that
  result. (Where it has some, so may all of the op's: Winograd tiles and batch norms spread them, and a
  factor of 0 need not be multiplied. And of arguments that are not finite the op may make NaN where the
  reference does not: in residual_block, which multiplies weights by scales first, inf - inf.)
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzz_calls import Arguments
from op_contract import double, flat
from torch import Tensor

import vpdarts_fast.backends.cpu  # noqa: F401  the fakes and the autograd of the ops
from vpdarts_fast import native, ops
from vpdarts_fast.contract import reference

LOG = os.environ.get("FUZZ_LOG")

ERRORS = (RuntimeError, ValueError)  # UserError, and PyTorch's for a device without the op, are among them
NATIVE: Any = torch.ops.vpdarts_fast
TOLERANCE = 1e-4
"""Of results, relative to the largest expected element: far above rounding, far below a wrong term."""

Targets = Mapping[str, Callable[[Random], None]]
"""Name -> what makes one random call and raises unless it does what it must."""

made = 0
"""Native calls made so far."""


def log(op: str, args: Arguments) -> None:
    """Keeps a description of the call that is about to be made."""
    if LOG is None:
        return

    def text(value: Any) -> str:
        if isinstance(value, list):
            return "[" + "; ".join(map(text, value)) + "]"
        if not isinstance(value, Tensor):
            return repr(value)
        kind = f"{value.dtype} {value.device} {value.layout}".replace("torch.", "")
        strides = value.stride() if value.layout == torch.strided else ""
        return f"{kind} {list(value.shape)} strides {strides}"

    lines = [op, *(f"  {name}: {text(value)}" for name, value in args.items())]
    Path(LOG).write_text("\n".join(lines) + "\n")


def call(op: str, args: Arguments) -> list[Any]:
    """The outputs of the native op itself, without the checks of its public function."""
    global made
    made += 1
    log(op, args)
    outputs = getattr(NATIVE, op)(*args.values())
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def served(op: str, args: Arguments) -> list[Any] | None:
    """The outputs of the native op, or None if it refuses the call."""
    # On the meta device the fakes answer, which take shapes as they come.
    with suppress(*ERRORS, *(() if on_the_cpu(args) else (IndexError,))):
        return call(op, args)
    return None


def expected(op: str, args: Arguments) -> list[Tensor]:
    """The reference's outputs in float64, in the order of the native op's."""
    values = {name: double(value) for name, value in args.items()}
    if op == "mixed_cell":  # of one variant, which the native op leaves out
        values["x"], values["alpha"] = values["x"][None], values["alpha"][None]
        return [output[0] for output in reference.mixed_cell(**values)]
    return flat([getattr(reference, op.removesuffix("_variants"))(**values)])


def detached(value: Any) -> Any:
    """Tensors, also in lists, without gradients."""
    if isinstance(value, Tensor):
        return value.detach()
    return [detached(item) for item in value] if isinstance(value, list) else value


SMALLEST = 1e-2
"""Results smaller than this are what is left of terms of about 1, from which they have their rounding."""


OVERFLOW = 1e18
"""Beyond this, squares in float32 are infinite."""


def check_close(actual: Tensor, wanted: Tensor, scale: float, *, finite: bool = True) -> None:
    """An error of `TOLERANCE` of the scale, or of the largest element where that is more.

    Unless `finite`, elements of `actual` may also be NaN or infinite.
    """
    assert actual.shape == wanted.shape, (actual.shape, wanted.shape)
    if wanted.numel() == 0 or not (wanted.abs() < OVERFLOW).all():
        return
    largest = max(scale, float(wanted.abs().max()))
    errors = (actual.detach().double() - wanted).abs()
    error = float((errors if finite else errors.nan_to_num(0, posinf=0)).max())
    assert error <= TOLERANCE * largest, (error, largest)


def check_all_close(outputs: list[Tensor], wanted: list[Tensor], args: Arguments) -> None:
    """What is saved for a backward pass may follow the outputs."""
    assert len(outputs) >= len(wanted)
    eps = args.get("eps", 1)
    largest_eps = max(eps, default=1) if isinstance(eps, list) else eps
    finite = all(bool(tensor.isfinite().all()) for tensor in flat(list(args.values())))
    for i, (actual, exact) in enumerate(zip(outputs, wanted, strict=False)):
        smallest = SMALLEST / max(1, largest_eps) ** 0.5 if i == 0 else SMALLEST
        check_close(actual, exact, smallest, finite=finite)


def check_values(op: str, args: Arguments) -> None:
    """The reference's values, and arguments that stay what they were."""
    before = [tensor.clone() for tensor in flat(list(args.values()))]
    check_all_close(flat(call(op, args)), expected(op, args), args)
    assert all(map(torch.equal, flat(list(args.values())), before)), "an argument was changed"


def on_the_cpu(args: Arguments) -> bool:
    return all(tensor.device.type == "cpu" for tensor in flat(list(args.values())))


def comparable(args: Arguments) -> bool:
    """No overflow in float32, no division by a variance of nearly -eps."""
    tensors = [t for t in flat(list(args.values())) if t.is_floating_point()]
    return args.get("eps", 1) > 1e-6 and not any((t.isfinite() & (t.abs() > 1e6)).any() for t in tensors)


def check_outcome(op: str, args: Arguments) -> None:
    """An error, or what the reference makes of the call; the public function agrees which."""
    outputs, on_cpu = served(op, args), on_the_cpu(args)
    if outputs is not None and on_cpu:
        fake = getattr(NATIVE, op)(*(on_meta(value) for value in args.values()))
        assert shapes(fake) == shapes(outputs)
        if any(output.numel() > 0 for output in flat(outputs)[:1]) and comparable(args):
            plain = {name: detached(value) for name, value in args.items()}
            check_all_close(flat(outputs), expected(op, plain), args)
    if op == "mixed_cell":  # its public function is that of mixed_cell_variants
        return
    try:
        result = getattr(ops, op.removesuffix("_variants"))(*args.values(), backend="cpu")
    except ERRORS:
        assert outputs is None or not on_cpu, "refused by the public function alone"
    else:
        assert outputs is not None, "refused by the native op alone"
        public = shapes(result)
        assert public == shapes(outputs)[: len(public)]


def on_meta(value: Any) -> Any:
    """Tensors, also in lists, without their data."""
    if isinstance(value, Tensor):
        return value.to("meta")
    return [on_meta(item) for item in value] if isinstance(value, list) else value


def shapes(outputs: Any) -> list[torch.Size]:
    return [tensor.shape for tensor in flat(outputs)]


def run_targets(targets: Targets) -> None:
    """Runs what the command line asks for; the number of a call that fails is in its traceback."""
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(targets))
    parser.add_argument("--calls", type=int, default=300, help="of each target")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(targets):
        parser.error(f"unknown targets {', '.join(unknown)}; there are {', '.join(targets)}")
    if not native.available():
        parser.error(str(native.why_not()))
    for name in options.targets or targets:
        for number in range(options.first, options.first + options.calls):
            try:
                targets[name](Random(f"{options.seed} {name} {number}"))
            except Exception as error:
                raise AssertionError(f"{name} --seed {options.seed} --first {number} --calls 1") from error
        print(f"{name}: {options.calls} checks, {made} native calls so far", flush=True)
