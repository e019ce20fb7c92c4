"""Makes the supernets of other code bases fast: `accelerate`, `restore`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from vpdarts_fast.acceleration.comparison import (
    compared_cell,
    compared_mixed_op,
    compared_preprocess,
    compared_residual,
)
from vpdarts_fast.acceleration.fused import Change, Fused, fusion, make_all, plan_of, restoration
from vpdarts_fast.acceleration.plans import (
    CellPlan,
    MixedOpPlan,
    Plan,
    PointwisePlan,
    PoolPlan,
    PreprocessPlan,
    ResidualPlan,
    SepConvPlan,
    SkipPlan,
    Unrecognised,
    ZeroPlan,
    at,
    mixtures_of,
    unknown_ops,
)
from vpdarts_fast.acceleration.preprocess import recognise_preprocess
from vpdarts_fast.acceleration.recognise_sum import (
    candidate_ops,
    cell_edges,
    methods_of,
    recognise_cell,
    recognise_mixed_op,
)
from vpdarts_fast.acceleration.report import AccelerationReport, Entry
from vpdarts_fast.acceleration.residual import recognise_residual
from vpdarts_fast.acceleration.run import is_served, trains_natively
from vpdarts_fast.backends.registry import named
from vpdarts_fast.errors import UserError

__all__ = ["AccelerationReport", "Entry", "accelerate", "restore"]


COMPARED: dict[Callable[[nn.Module], Plan], Callable[[nn.Module], Plan]] = {
    recognise_cell: compared_cell,
    recognise_mixed_op: compared_mixed_op,
    recognise_residual: compared_residual,
    recognise_preprocess: compared_preprocess,
}
"""What is recognised is fused only if it computes the same; leave-one-out changes weights of what is not."""

CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def accelerate(model: nn.Module, *, backend: str = "auto") -> AccelerationReport:
    """Lets the mixed operations of a supernet run on `vpdarts_fast.ops`; what they compute stays the same.

    Mixed operations are recognised by the layers of their candidate operations and by what comes out of them,
    not by names; so are residual blocks, and what stands in front of the cells of a DARTS network.
    Parameters, buffers, hooks, `state_dict`, optimisers, copies and pickles keep working; a call that is not
    covered runs the module's own code. `restore` undoes it. Where anything is raised, `KeyboardInterrupt`
    too, the model is as it was. Threads may accelerate, train and evaluate models of their own at once;
    nothing else may use this one meanwhile.

    Args:
        model: changed in place.
        backend: a name of `vpdarts_fast.backends.registry.BACKENDS`; auto leaves calls that no kernel serves
            (by dtype or device) to the module's own code.

    Returns:
        What has been fused, and what has been left, and why.

    Raises:
        UserError: what is no module, or an unknown backend.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"accelerate: model must be an nn.Module; got {type(model).__name__}")
    named(backend)
    entries, changes = [], _restorations(model)
    fused = left = None  # what the names of all within the last such module begin with
    for name, module, recognise in list(_candidates(model)):
        if _begins(name, fused) or (recognise is recognise_preprocess and _begins(name, left)):
            continue  # its layers are those of the module around it
        try:
            plan = COMPARED[recognise](module)
            change = fusion(module, plan, COMPARED[recognise], backend)
            changes.append(change)
            entries.append(_entry_of_fused(name, plan, change))
            fused = f"{name}." if name else ""
        except Unrecognised as error:
            if str(error):
                kind, operations = type(module).__name__, _count_operations(module)
                entries.append(Entry(name, kind, False, str(error), operations))
                left = f"{name}." if name else ""
    make_all(changes)
    return AccelerationReport(tuple(entries))


def _begins(name: str, prefix: str | None) -> bool:
    return prefix is not None and name.startswith(prefix)


def restore(model: nn.Module) -> None:
    """Undoes `accelerate`; a model that is not accelerated stays as it is."""
    make_all(_restorations(model))


def _restorations(model: nn.Module) -> list[Change]:
    return [restoration(module) for module in model.modules() if isinstance(module, Fused)]


def mixtures(model: nn.Module) -> Iterator[tuple[str, nn.Module, MixedOpPlan | CellPlan | str]]:
    """Mixed operations and cells, accelerated or not, and what looks like one, with why it is none."""
    for name, module, recognise in _candidates(model):
        if recognise not in (recognise_cell, recognise_mixed_op):
            continue
        plan: Plan | str | None
        try:
            plan = plan_of(module) if isinstance(module, Fused) else recognise(module)
        except Unrecognised as error:
            plan = str(error)
        if plan is None:
            plan = "has become something that is not recognised"
        if plan:
            assert not isinstance(plan, (ResidualPlan, PreprocessPlan))
            yield name, module, plan


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, Callable[[nn.Module], Plan]]]:
    """What may be a cell, a mixed operation or a block of layers, and what finds out."""
    for name, module in model.named_modules():
        if cell_edges(module) is not None:
            yield name, module, recognise_cell
        elif len(candidate_ops(module)) > 1 and list(methods_of(module)):
            yield name, module, recognise_mixed_op
        elif not isinstance(module, CONTAINERS):
            yield name, module, recognise_residual
            yield name, module, recognise_preprocess


def _entry_of_fused(name: str, plan: Plan, change: Change) -> Entry:
    module, state = change.module, change.state
    assert state is not None
    unserved = _unserved(module, plan, state.backend)
    if state.seen.compare(module) == "watched":
        unserved = "its own code runs while there are hooks in it"
    remarks = (
        _other_methods(module, plan),
        _unknown_operations(plan),
        "" if plan.compared else "not compared with its own code, as its parameters are on meta",
        unserved,
        plan.remark,
    )
    ops = [op for mixture in mixtures_of(plan) for op in mixture.plans]
    native = sum(isinstance(op, NATIVE) for op in ops)
    if isinstance(plan, CellPlan) and trains_natively(module, plan):
        native = len(ops)
    if unserved or state.backend in ("pytorch", "reference"):
        native = 0
    return Entry(name, _kind(plan), True, "; ".join(filter(None, remarks)), len(ops), native)


NATIVE = (ZeroPlan, SkipPlan, PoolPlan, SepConvPlan, PointwisePlan)
"""Operations of which no layer runs in PyTorch; other convolutions do, but for those of `mixed_cell`."""


def _count_operations(module: nn.Module) -> int:
    """Candidate operations of what looks like a cell or a mixed operation."""
    edges = cell_edges(module)
    if edges is None:
        return len(candidate_ops(module)) if list(methods_of(module)) else 0
    name, keys = edges
    return sum(len(at(module, (name, key))._modules) for key in keys)


def _kind(plan: Plan) -> str:
    if isinstance(plan, ResidualPlan):
        return "residual block"
    if isinstance(plan, PreprocessPlan):
        return "factorised reduce" if len(plan.op.convolutions) > 1 else "ReLU, 1x1 convolution, batch norm"
    mixture = plan.edges[0].mixture if isinstance(plan, CellPlan) else plan.mixture
    part = f", 1/{mixture.partial} of the channels" if mixture.partial > 1 else ""
    if isinstance(plan, CellPlan):
        return f"cell of {len(plan.edges)} mixed operations{part}"
    return f"mixed operation of {len(mixture.ops)}, stride {mixture.stride}{part}"


def _unknown_operations(plan: Plan) -> str:
    """Which candidate operations run as they are, and why, and whether anything else does."""
    remarks = {f"operation {path[-1]} runs as it is ({op.why})" for path, op in unknown_ops(plan).items()}
    if isinstance(plan, MixedOpPlan) and plan.adds:
        remarks.add("what is added to the mixture runs as it is")
    return "; ".join(sorted(remarks))


def _other_methods(module: nn.Module, plan: Plan) -> str:
    """That it has methods which are not fused."""
    others = {name for name in dir(type(module)) if name.startswith("forward_")} - set(plan.methods)
    return f"in {' and '.join(plan.methods)} only" if others else ""


def _unserved(module: nn.Module, plan: Plan, backend: str) -> str:
    """Where parameters lie now, no kernel may serve the module."""
    parameter = next(module.parameters(), None)
    if parameter is None or any(is_served(op, parameter, backend) for op in OPS_OF[type(plan)]):
        return ""
    dtype = str(parameter.dtype).removeprefix("torch.")
    return f"its own code runs in {dtype} on {parameter.device.type}, without a kernel"


OPS_OF: dict[type, tuple[str, ...]] = {
    MixedOpPlan: ("mixed_op",),
    CellPlan: ("mixed_cell", "mixed_op"),
    ResidualPlan: ("trained_residual_block",),
    PreprocessPlan: ("relu_pointwise",),
}
"""What may compute a module as it trains."""
