"""Recognises mixed operations and cells: by their candidate operations, and by what comes out of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from vpdarts_fast.acceleration.plans import (
    CellPlan,
    EdgePlan,
    MixedOpPlan,
    MixturePlan,
    OpaquePlan,
    OpPlan,
    Path,
    Unrecognised,
    at,
    stride_of,
)
from vpdarts_fast.acceleration.probing import Outcome, Probing
from vpdarts_fast.acceleration.recognise_op import recognise_op
from vpdarts_fast.acceleration.snapshot import instance_methods, original_class, remembered

EDGE = re.compile(r"(\d+)<-(\d+)")


def candidate_ops(module: nn.Module) -> list[Path]:
    """Where a mixed operation would have its candidate operations: in a container, or as children."""
    containers = [
        (name, child)
        for name, child in module.named_children()
        if isinstance(child, (nn.ModuleList, nn.ModuleDict))
    ]
    if len(containers) == 1:
        name, container = containers[0]
        return [(name, key) for key in container._modules]
    return [] if containers else [(name,) for name, _ in module.named_children()]


def methods_of(module: nn.Module) -> Iterator[str]:
    """Where a mixed operation may compute, of two arguments: its class's `forward` and any `forward_...`."""
    kind = original_class(module)
    for name in ("forward", *(name for name in dir(kind) if name.startswith("forward_"))):
        try:
            _, *parameters = inspect.signature(getattr(kind, name)).parameters.values()
        except (TypeError, ValueError):
            continue
        required = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(required) == 2:
            yield name


@remembered
def recognise_mixed_op(module: nn.Module) -> MixedOpPlan:
    """Finds out how a module computes a mixed operation.

    Raises:
        Unrecognised: it is none; the message says why.
    """
    mixture = _mixture(module, candidate_ops(module))
    reason = _why_not(module, mixture)
    if reason:
        mixed = any(Probing(module, method, [mixture]).looks_mixed() for method in methods_of(module))
        raise Unrecognised(reason if mixed else "")
    methods, outcome = _probed(module, [mixture])
    mixture = replace(mixture, partial=outcome.partial, skips_zeros=outcome.skips_zeros)
    return MixedOpPlan(methods, mixture, outcome.adds)


@remembered
def recognise_cell(module: nn.Module) -> CellPlan:
    """Finds out how a module computes a whole cell of mixed operations.

    Raises:
        Unrecognised: it does not; the message says why.
    """
    named_edges = cell_edges(module)
    if named_edges is None:
        raise Unrecognised("has no edges")
    name, keys = named_edges
    order = sorted(keys, key=lambda key: (keys[key][0], keys[key][1]))
    mixtures = [
        _mixture(module, [(name, key, op) for op in at(module, (name, key))._modules]) for key in order
    ]
    if len({len(mixture.ops) for mixture in mixtures}) > 1:
        raise Unrecognised("has edges with different numbers of operations")
    reasons = [_why_not(module, mixture) for mixture in mixtures if not _is_unknown(mixture)]
    reason = next(filter(None, reasons), "") if reasons else _why_not(module, mixtures[0])
    if reason:
        raise Unrecognised(reason)
    edges = [(keys[key], sorted(keys).index(key)) for key in order]
    methods, outcome = _probed(module, mixtures, edges)
    plans = (
        EdgePlan(
            source, target, row, replace(mixture, partial=outcome.partial, skips_zeros=outcome.skips_zeros)
        )
        for ((target, source), row), mixture in zip(edges, mixtures, strict=True)
    )
    return CellPlan(methods, tuple(plans))


def _probed(
    module: nn.Module, mixtures: Sequence[MixturePlan], edges: Sequence[tuple[tuple[int, int], int]] = ()
) -> tuple[tuple[str, ...], Outcome]:
    """The methods that compute the first outcome that is found, and it.

    Raises:
        Unrecognised: none does; without a reason where it does not look like a mixed operation either.
    """
    outcomes: dict[str, Outcome] = {}
    reasons = []
    for method in methods_of(module):
        probing = Probing(module, method, mixtures, edges)
        try:
            outcomes[method] = probing()
        except Unrecognised as error:
            if edges or probing.looks_mixed():
                reasons.append(f"{method} {error}")
    if not outcomes:
        raise Unrecognised("; ".join(reasons))
    first, *_ = outcomes.values()
    return tuple(method for method, outcome in outcomes.items() if outcome == first), first


def cell_edges(module: nn.Module) -> tuple[str, dict[str, tuple[int, int]]] | None:
    """The name of its dictionary of edges, and of each key "i<-j" the nodes i and j; or none."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleDict) and len(child):
            matches = {key: EDGE.fullmatch(key) for key in child}
            lists = all(isinstance(edge, nn.ModuleList) for edge in child.values())
            if lists and all(matches.values()):
                return name, {key: (int(m[1]), int(m[2])) for key, m in matches.items() if m is not None}
    return None


def _mixture(module: nn.Module, ops: Sequence[Path]) -> MixturePlan:
    """Of these operations; of the stride that they have, or the least of several."""
    if len(ops) < 2:
        raise Unrecognised
    plans = tuple(recognise_op(at(module, path)) for path in ops)
    return MixturePlan(tuple(ops), plans, min(_strides(plans), default=1))


def _strides(plans: Sequence[OpPlan]) -> set[int]:
    return {stride for stride in map(stride_of, plans) if stride is not None}


def _is_unknown(mixture: MixturePlan) -> bool:
    return all(isinstance(plan, OpaquePlan) for plan in mixture.plans)


def _why_not(module: nn.Module, mixture: MixturePlan) -> str:
    """Why its operations cannot be mixed by `ops`, or an empty reason."""
    for name, layer in module.named_modules():
        for method in instance_methods(layer):
            where = f"its layer {name}" if name else "it"
            return f"is left: {where} has a {method} of its own, not that of its class"
    for path, plan in zip(mixture.ops, mixture.plans, strict=True):
        if isinstance(plan, OpaquePlan) and plan.changes_input:
            return f"operation {path[-1]} changes its input in place"
    if _is_unknown(mixture):
        why = "; ".join(
            f"operation {path[-1]}: {plan.why}"
            for path, plan in zip(mixture.ops, mixture.plans, strict=True)
            if isinstance(plan, OpaquePlan)
        )
        return f"has no operation that is known ({why})"
    strides = _strides(mixture.plans)
    return "" if len(strides) == 1 else f"has operations of different strides: {sorted(strides)}"
