"""Whether a plan computes what a module's own code does: both run on copies of it, in float64.

Probes tell what becomes of the values of the operations, and tracing what the operations are. Whatever else
the code looks at makes a difference between two copies of the module, of which one runs its own code with
its own operations and the other one the plan.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from vpdarts_fast.acceleration.copies import (
    are_close,
    channels_of,
    class_attributes,
    differing_state,
    is_on_meta,
    isolated_copy,
    randomise,
)
from vpdarts_fast.acceleration.draws import same_draws
from vpdarts_fast.acceleration.fused import computed
from vpdarts_fast.acceleration.plans import (
    CellPlan,
    MixedOpPlan,
    OwnMethod,
    Plan,
    PreprocessPlan,
    ResidualPlan,
    Unrecognised,
    at,
    described,
    mixtures_of,
    unknown_ops,
)
from vpdarts_fast.acceleration.preprocess import recognise_preprocess
from vpdarts_fast.acceleration.probing import PROBE_CHANNELS
from vpdarts_fast.acceleration.recognise_sum import (
    candidate_ops,
    cell_edges,
    methods_of,
    recognise_cell,
    recognise_mixed_op,
)
from vpdarts_fast.acceleration.residual import recognise_residual
from vpdarts_fast.acceleration.snapshot import fingerprint, remembered

AnyPlan = TypeVar("AnyPlan", MixedOpPlan, CellPlan, ResidualPlan, PreprocessPlan)


@remembered
def compared_mixed_op(module: nn.Module) -> MixedOpPlan:
    """Recognises as `recognise_mixed_op` does, and compares the plan with the module's own code.

    Raises:
        Unrecognised: it is not recognised, or the plan computes something else.
    """
    return _compared(module, recognise_mixed_op)


@remembered
def compared_cell(module: nn.Module) -> CellPlan:
    """Recognises as `recognise_cell` does, and compares the plan with the module's own code.

    Raises:
        Unrecognised: it is not recognised, or the plan computes something else.
    """
    return _compared(module, recognise_cell)


@remembered
def compared_residual(block: nn.Module) -> ResidualPlan:
    """Recognises as `recognise_residual` does, and compares the plan with the module's own code.

    Raises:
        Unrecognised: it is not recognised, or the plan computes something else.
    """
    return _compared(block, recognise_residual)


@remembered
def compared_preprocess(module: nn.Module) -> PreprocessPlan:
    """Recognises as `recognise_preprocess` does, and compares the plan with the module's own code.

    Raises:
        Unrecognised: it is not recognised, or the plan computes something else.
    """
    return _compared(module, recognise_preprocess)


def _compared(module: nn.Module, recognise: Callable[[nn.Module], AnyPlan]) -> AnyPlan:
    with torch.inference_mode(False), torch.enable_grad(), class_attributes(module) as written:
        try:
            plan = _compared_copies(module, recognise)
        except Unrecognised:
            raise
        except Exception as error:  # what modules hold may raise anything
            raise Unrecognised(f"cannot be compared with its own code: {described(error)}") from error
    if written:
        raise Unrecognised(f"writes to {written[0]}, which would not be updated")
    return plan


def _compared_copies(module: nn.Module, recognise: Callable[[nn.Module], AnyPlan]) -> AnyPlan:
    try:
        plan = recognise(module)
        if is_on_meta(module):
            return replace(plan, compared=False)
        plan = compare(module, plan)
    except Unrecognised as error:
        if str(error) and _settled(module, recognise) is not None:
            raise Unrecognised(f"{error}; {FIRST_CALL}") from error
        raise
    if unknown_ops(plan):
        settled = _settled(module, recognise)
        if settled is not None and len(unknown_ops(settled)) < len(unknown_ops(plan)):
            return replace(plan, remark=FIRST_CALL)
    return plan


FIRST_CALL = "its first call differs from later ones: call the model once, then accelerate it"


def _settled(module: nn.Module, recognise: Callable[[nn.Module], AnyPlan]) -> AnyPlan | None:
    """The plan of a copy that has been called once, if that changed it into something that is recognised."""
    if is_on_meta(module):
        return None
    with contextlib.suppress(Unrecognised):
        called = isolated_copy(module)
        before = fingerprint(called)
        for method in methods_of(called):
            _call_once(called, method)
        if before is None or fingerprint(called) != before:
            return compare(called, recognise(called))
    return None


def _call_once(module: nn.Module, method: str) -> None:
    """With as many channels as an operation has, or as partial channels would make of these."""
    for parts in (1, 2, 4, 8):
        x, weights = _inputs(module, parts * _channels(module), None, torch.Generator(device="cpu"), 6, 8)
        with contextlib.suppress(Exception), same_draws(), torch.no_grad():  # their code may raise anything
            getattr(module, method)(x, *weights)
            return


class Mode(NamedTuple):
    """How a module is called for a comparison.

    Attributes:
        training: its mode.
        gradients: are computed and compared.
        zeros: some of the weights are 0.
        height: of the images, H.
        width: of the images, W.
        draws: there are operations that may draw random numbers.
    """

    training: bool
    gradients: bool
    zeros: bool
    height: int
    width: int
    draws: bool = True

    def __str__(self) -> str:
        return "in training mode" if self.training else "in evaluation mode"


MODES = (
    Mode(training=True, gradients=True, zeros=False, height=6, width=8),
    Mode(training=True, gradients=False, zeros=True, height=8, width=6),
    Mode(training=False, gradients=True, zeros=False, height=8, width=6),
    Mode(training=False, gradients=False, zeros=False, height=8, width=6),
)


def compare(module: nn.Module, plan: AnyPlan) -> AnyPlan:
    """The plan of those of its methods that compute, and keep, what it does; `Unrecognised` if none does."""
    same, reasons = [], []
    for method in plan.methods:
        try:
            _compare_method(module, method, plan)
            same.append(method)
        except Unrecognised as error:
            reasons.append(f"{method} {error}")
    if not same:
        raise Unrecognised("; ".join(reasons))
    return replace(plan, methods=tuple(same))


def _compare_method(module: nn.Module, method: str, plan: Plan) -> None:
    generator = torch.Generator(device="cpu").manual_seed(0)
    plain = isolated_copy(module)
    randomise(plain, generator)
    planned = copy.deepcopy(plain)
    covered, reason = False, ""
    for mode in MODES:
        try:
            mode = mode._replace(draws=bool(unknown_ops(plan)))  # probing finds other draws
            _compare_mode(plain, planned, method, plan, mode, generator)
            covered = True
        except OwnMethod as error:
            reason = str(error)
    if not covered:
        raise Unrecognised(reason or "is not covered in either mode")


def _compare_mode(
    plain: nn.Module, planned: nn.Module, method: str, plan: Plan, mode: Mode, generator: torch.Generator
) -> None:
    channels = _channels(plain, plan)
    x, weights = _inputs(plain, channels, plan, generator, mode.height, mode.width)
    if mode.zeros:
        weights = tuple(
            weight * (torch.arange(weight.shape[-1], device="cpu") % 3 != 1) for weight in weights
        )
    own_code = getattr(plain.train(mode.training), method)
    planned.train(mode.training)

    def by_plan(x: Tensor, *weights: Tensor) -> Tensor:
        return computed(planned, method, plan, x, *weights, backend="pytorch")

    computed_values, failure = {}, None
    try:
        computed_values = dict(_values(planned, by_plan, x, weights, mode))
    except OwnMethod:
        raise  # before anything has been changed
    except Exception as error:  # whatever it is, the module's own code has to run
        failure = error
    try:
        expected = dict(_values(plain, own_code, x, weights, mode))
    except Unrecognised:
        raise
    except Exception as error:  # their code may raise anything
        reason = "is of sequences or volumes, not of images" if _not_of_images(plain) else described(error)
        raise Unrecognised(f"cannot be run on its own: {reason}") from error
    if failure is not None:
        raise Unrecognised(f"cannot be run by its plan: {described(failure)}") from failure
    state = differing_state(plain, planned)
    if state is not None:
        raise Unrecognised(f"writes to {state}, which would not be updated")
    if expected.keys() != computed_values.keys():
        differing = expected.keys() ^ computed_values.keys()
    else:
        differing = {name for name in expected if not are_close(computed_values[name], expected[name])}
    if differing:
        raise Unrecognised(f"is not the weighted sum of its operations ({mode}: {min(differing)})")


def _values(
    module: nn.Module,
    method: Callable[..., Tensor],
    x: Tensor,
    weights: tuple[Tensor, ...],
    mode: Mode,
) -> Iterator[tuple[str, Tensor]]:
    """What comes out of a call, what has become of its arguments, and the gradients, by name."""
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(mode.gradients),
        torch.autocast("cpu", enabled=False),
        same_draws() if mode.draws else contextlib.nullcontext(),
    ):
        leaves = [tensor.clone().requires_grad_(mode.gradients) for tensor in (x, *weights)]
        arguments = [leaf.clone() for leaf in leaves]
        out = method(*arguments)
        if not isinstance(out, Tensor):
            raise Unrecognised("does not return a tensor")
        yield "output", out.detach()
        yield from zip(ARGUMENTS, (argument.detach() for argument in arguments), strict=False)
        if out.requires_grad:
            names = [f"gradient of {name}" for name in ARGUMENTS[: len(leaves)]]
            parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
            generator = torch.Generator(device="cpu").manual_seed(1)
            cotangent = torch.randn(out.shape, dtype=out.dtype, device="cpu", generator=generator)
            gradients = torch.autograd.grad(
                out, [*leaves, *parameters.values()], cotangent, allow_unused=True
            )
            for name, gradient in zip(
                [*names, *(f"gradient of {name}" for name in parameters)], gradients, strict=True
            ):
                if gradient is not None:
                    yield name, gradient


ARGUMENTS = "x", "weights"


def _inputs(
    module: nn.Module, channels: int, plan: Plan | None, generator: torch.Generator, height: int, width: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Images [2, C, H, W] and, of what takes them, weights [O], or [E, O] of a cell."""
    shapes: list[tuple[int, ...]] = [(2, channels, height, width)]
    match plan:
        case MixedOpPlan():
            shapes.append((len(plan.mixture.ops),))
        case CellPlan():
            shapes.append((max(edge.row for edge in plan.edges) + 1, len(plan.edges[0].mixture.ops)))
        case ResidualPlan() | PreprocessPlan():
            pass
        case None:
            edges = cell_edges(module)
            operations = candidate_ops(module)
            if edges is not None:
                operations = max(
                    ([(key,) for key in at(module, (edges[0], key))._modules] for key in edges[1]), key=len
                )
            shapes.append((len(edges[1]), len(operations)) if edges is not None else (len(operations),))
    x, *weights = (
        torch.randn(shape, dtype=torch.float64, device="cpu", generator=generator) for shape in shapes
    )
    return x, tuple(weights)


def _channels(module: nn.Module, plan: Plan | None = None) -> int:
    """C of the images that the module takes, as the first of its layers that tells."""
    mixtures = [] if plan is None else mixtures_of(plan)
    operations = [at(module, path) for mixture in mixtures for path in mixture.ops] or [module]
    parts = mixtures[0].partial if mixtures else 1
    layers = (layer for operation in operations for layer in operation.modules())
    return next((parts * channels for channels in map(channels_of, layers) if channels), PROBE_CHANNELS)


def _not_of_images(module: nn.Module) -> bool:
    """Whether it has layers of PyTorch that take sequences or volumes."""
    kinds = {type(layer) for layer in module.modules()}
    return any(
        kind.__module__.startswith("torch.nn") and kind.__name__[-2:] in ("1d", "3d") for kind in kinds
    )
