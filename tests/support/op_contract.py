"""The contract of every op, held by every backend against the reference in float64: what its tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from closeness import clear_of_jumps
from hypothesis import strategies as st
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.backends.registry import BACKENDS, Backend
from vpdarts_fast.contract import reference
from vpdarts_fast.contract.branches import Given, Norm, Pool, SepConv, Skip, Stage, Zero

Close = Callable[[Tensor, Tensor], None]

CHANNELS = (1, 3, 8, 16)
SIZES = ((1, 1), (1, 6), (2, 2), (5, 7), (16, 16))
EDGES_OF_NODES = {2: 1, 3: 3, 4: 6, 5: 10}

BOTH = (torch.float32, torch.float64)
ALL = (*BOTH, torch.bfloat16, torch.float16)


ON_THE_CPU = [b for b in BACKENDS if not b.device_types or "cpu" in b.device_types]
"""The contract's tensors lie there."""


def computed(op: str, backend: Backend) -> frozenset[torch.dtype]:
    """The dtypes that the backend computes the op in."""
    return backend.dtypes_of.get(op, backend.dtypes)


def served(op: str, dtypes: Sequence[torch.dtype]) -> pytest.MarkDecorator:
    """Every (backend, dtype) that the registry serves for this op on the CPU."""
    pairs = [
        (b.name, d) for b in ON_THE_CPU if op in b.implementations for d in dtypes if d in computed(op, b)
    ]
    ids = [f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in pairs]
    return pytest.mark.parametrize(("backend", "dtype"), pairs, ids=ids)


def backends_in(op: str, dtype: torch.dtype) -> pytest.MarkDecorator:
    """Every backend that serves this op in this dtype on the CPU."""
    names = [b.name for b in ON_THE_CPU if op in b.implementations and dtype in computed(op, b)]
    return pytest.mark.parametrize("backend", names)


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def channels_last(x: Tensor) -> Tensor:
    """The same values, channels innermost in memory; x [..., C, H, W]."""
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


def sliced(x: Tensor) -> Tensor:
    """The same values, every second of a wider tensor and off its start."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan, dtype=x.dtype)
    wide[..., 1::2] = x
    return wide[..., 1::2]


def transposed(x: Tensor) -> Tensor:
    """The same values, columns outermost in memory."""
    return x.mT.contiguous().mT


LAYOUTS = {"channels_last": channels_last, "sliced": sliced, "transposed": transposed}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def half_of(place: int, *choices: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Every second combination of the choices: those whose numbers add up to an even number with `place`.

    With the sum of the numbers of all other parameters' choices as `place`, a test still has all combinations
    of all parameters but one, whichever that is.
    """
    numbered = product(*(list(enumerate(choice)) for choice in choices))
    picked = (chosen for chosen in numbered if (place + sum(i for i, _ in chosen)) % 2 == 0)
    return [tuple(value for _, value in chosen) for chosen in picked]


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same value with every tensor in it changed, also in sequences and in branches."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(with_tensors(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: with_tensors(getattr(value, f.name), change) for f in fields(value)})
    return value


def double(value: Any) -> Any:
    """Tensors, also in sequences, in float64."""
    return with_tensors(value, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def flat(value: Any) -> list[Tensor]:
    """All tensors in nested sequences."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with_tensors(value, keep)
    return found


def check_against_reference(op: str, args: Sequence[Any], backend: str, close: Close) -> None:
    """Values against the reference in float64; arguments unchanged; the same bits again."""
    before = [tensor.clone() for tensor in flat(args)]
    actual = flat(getattr(ops, op)(*args, backend=backend))
    expected = flat(getattr(reference, op)(*double(args)))
    dtype = flat(args)[0].dtype
    for result, wanted in zip(actual, expected, strict=True):
        assert result.dtype == dtype
        close(result, wanted)
    for tensor, saved in zip(flat(args), before, strict=True):
        assert torch.equal(tensor, saved), "an argument was changed"
    again = flat(getattr(ops, op)(*args, backend=backend))
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True)), "not repeatable"


def weighted_sum(outputs: Sequence[Tensor]) -> Tensor:
    """A scalar that depends on every element in its own way."""
    sums = [
        (out * normal(*out.shape, dtype=out.dtype, seed=i)).sum() for i, out in enumerate(outputs, start=99)
    ]
    return torch.stack(sums).sum()


def differentiable(
    op: Callable[..., Any], args: Sequence[Any], used: Callable[[Any], list[Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Every floating tensor argument, as a leaf, and the outputs that depend on them."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in flat(args) if tensor.is_floating_point()]
    iterator = iter(leaves)

    def put(tensor: Tensor) -> Tensor:
        return next(iterator) if tensor.is_floating_point() else tensor

    return leaves, used(op(*with_tensors(list(args), put)))


def gradients(
    op: Callable[..., Any], args: Sequence[Any], used: Callable[[Any], list[Tensor]]
) -> list[Tensor]:
    """d(sum of fixed random weights * outputs) / d(every floating tensor argument)."""
    leaves, outputs = differentiable(op, args, used)
    return list(torch.autograd.grad(weighted_sum(outputs), leaves))


def check_gradients(
    op: str, args: Sequence[Any], backend: str, close: Close, used: Callable[[Any], list[Tensor]] = flat
) -> None:
    """Gradients of every tensor argument against the reference's in float64."""
    expected = true_derivatives(lambda exact: gradients(getattr(reference, op), exact, used), args)
    actual = gradients(lambda *a: getattr(ops, op)(*a, backend=backend), args, used)
    for gradient, wanted in zip(actual, expected, strict=True):
        close(gradient, wanted)


def true_derivatives(compute: Callable[[list[Any]], list[Tensor]], args: Sequence[Any]) -> list[Tensor]:
    """Those of the arguments in float64; changes a float32 input in place where one jumps nearby."""

    def draw(seed: int) -> list[Any]:
        first = flat(args)[0]
        if seed > 1:
            with torch.no_grad():
                first.mul_(1 + normal(*first.shape, seed=seed, dtype=first.dtype) / 10)
        return list(args)

    if flat(args)[0].dtype != torch.float32:
        return compute(double(args))
    return clear_of_jumps(draw, lambda args: compute(double(args)))[1]


def second_derivatives(
    op: Callable[..., Any], args: Sequence[Any], used: Callable[[Any], list[Tensor]]
) -> list[Tensor]:
    """The Hessian of a fixed weighted sum of the outputs, times a fixed vector."""
    leaves, outputs = differentiable(op, args, used)
    first = torch.autograd.grad(weighted_sum(outputs), leaves, create_graph=True)
    return list(torch.autograd.grad(weighted_sum(first), leaves, allow_unused=True, materialize_grads=True))


def check_second_derivatives(
    op: str, args: Sequence[Any], backend: str, close: Close, used: Callable[[Any], list[Tensor]] = flat
) -> None:
    """Second derivatives by all tensor arguments against the reference's in float64."""
    expected = true_derivatives(lambda exact: second_derivatives(getattr(reference, op), exact, used), args)
    actual = second_derivatives(lambda *a: getattr(ops, op)(*a, backend=backend), args, used)
    assert sum(bool(wanted.any()) for wanted in expected) > 1
    for derivative, wanted in zip(actual, expected, strict=True):
        close(derivative, wanted)


def second_derivative_blocks(
    op: Callable[..., Any], args: Sequence[Any], used: Callable[[Any], list[Tensor]]
) -> list[list[Tensor]]:
    """Row a, column b: the block of the Hessian of tensor arguments a and b, times a fixed vector like a.

    The Hessian is that of a fixed weighted sum of the outputs.
    """
    leaves, outputs = differentiable(op, args, used)
    first = torch.autograd.grad(weighted_sum(outputs), leaves, create_graph=True)
    blocks = []
    for gradient in first:
        row = torch.autograd.grad(
            weighted_sum([gradient]), leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        blocks.append(list(row))
    return blocks


@st.composite
def sharing_patterns(draw: st.DrawFn) -> tuple[int, bool, Tensor]:
    """Nodes, whether the input is shared, and tables [V, E, 5] of a few rows, so that many of them repeat."""
    nodes = draw(st.sampled_from(list(EDGES_OF_NODES)))
    values = st.sampled_from([0.0, 0.2, -0.7, 1.0])
    rows = draw(st.lists(st.lists(values, min_size=5, max_size=5), min_size=1, max_size=4))
    edges = EDGES_OF_NODES[nodes]
    table = st.lists(st.sampled_from(rows), min_size=edges, max_size=edges)
    tables = draw(st.lists(table, min_size=1, max_size=6))
    return nodes, draw(st.booleans()), torch.tensor(tables, dtype=torch.float64)


def example(op: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A small call of an op: all its arguments, by name and in order."""
    return {name: with_tensors(value, _to(dtype)) for name, value in _EXAMPLES[op]().items()}


def _to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


def _cell() -> dict[str, Tensor]:
    c, edges = 3, 3
    return {
        "x": normal(1, 2, c, 4, 5, seed=1),
        "weight_1x1": normal(edges, c, c, 1, 1, seed=2),
        "weight_3x3": normal(edges, c, c, 3, 3, seed=3),
    }


def _mixed_cell() -> dict[str, Any]:
    seeds = torch.tensor([1, -2, 3])
    rest = {"skip_seed": seeds, "skip_dropout": 0.25, "eps": 1e-3, "skip_zeros": True}
    return _cell() | {"alpha": normal(2, 3, 5)} | rest


def _masked_cell() -> dict[str, Any]:
    statistics = {"mean": normal(3, 2, 3, seed=4), "variance": normal(3, 2, 3, seed=5).abs() + 0.5}
    return _cell() | statistics | {"alpha": normal(2, 3, 5), "eps": 1e-3}


def _relu_conv() -> dict[str, Any]:
    args = _cell()
    return args | {"x": args["x"][0]}


def _relu_pointwise() -> dict[str, Any]:
    weights = [normal(2, 3, 1, 1, seed=2), normal(3, 3, 1, 1, seed=3)]
    return {"x": normal(2, 3, 4, 5, seed=1), "weights": weights, "stride": 2}


def _mixed_sum() -> dict[str, Any]:
    names = ("xs", "raw_1x1", "raw_3x3", "skip_scale")
    lists = {name: [normal(2, 2, 3, 4, 5, seed=10 * i + j) for j in range(2)] for i, name in enumerate(names)}
    scale = lists.pop("skip_scale")
    return {**lists, "alpha": normal(2, 2, 5), "skip_scale": scale, "eps": 1e-3}


def _residual(first: str, second: str) -> dict[str, Any]:
    return {
        "x": normal(2, 3, 4, 5, seed=1),
        "weight_a": normal(4, 3, 3, 3, seed=2),
        "weight_b": normal(4, 4, 3, 3, seed=3),
        "weight_shortcut": normal(4, 3, 1, 1, seed=4),
        first: normal(2, 4, seed=5),
        second: normal(2, 4, seed=6),
    }


def _mixed_op() -> dict[str, Any]:
    def stage(kernel: int, dilation: int) -> Stage:
        norm = Norm(1e-3, normal(3, seed=7), normal(3, seed=8))
        return Stage(normal(3, 1, kernel, kernel, seed=9), normal(3, 3, 1, 1, seed=10), dilation, norm)

    branches = [
        Zero(),
        Skip(),
        Pool("max", Norm(1e-3)),
        Pool("avg"),
        SepConv((stage(3, 1), stage(3, 1))),
        SepConv((stage(5, 2),)),
        Given(normal(1, 2, 3, 4, 5, seed=11), Norm(1e-3)),
    ]
    statistics = torch.stack([normal(5, 3, seed=12), normal(5, 3, seed=13).abs() + 0.5], 1)
    alpha = normal(2, len(branches))
    x = normal(1, 2, 3, 4, 5, seed=1)
    return {"x": x, "alpha": alpha, "branches": branches, "stride": 1, "statistics": statistics}


_EXAMPLES: dict[str, Callable[[], dict[str, Any]]] = {
    "relu_conv": _relu_conv,
    "relu_pointwise": _relu_pointwise,
    "mixed_sum": _mixed_sum,
    "mixed_op": _mixed_op,
    "mixed_cell": _mixed_cell,
    "masked_cell": _masked_cell,
    "residual_block": lambda: _residual("scale", "shift"),
    "trained_residual_block": lambda: _residual("gamma", "beta") | {"eps": 1e-3},
}
