"""Recognises mixed operations and cells by running them: probes that return known tensors take the place of
their candidate operations, and what comes out must be the weighted sum of those.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast.acceleration.plans import (
    OpaquePlan,
    OpPlan,
    Path,
    Unrecognised,
    at,
    drawing_nothing,
    stride_of,
)
from vpdarts_fast.acceleration.recognise_op import recognise_op
from vpdarts_fast.acceleration.snapshot import remembered

PROBE_CHANNELS = 24
"""Divisible by the fractions 1/k of partial channels that are in use."""
PROBE_SIZE = 6

EDGE = re.compile(r"(\d+)<-(\d+)")


@dataclass(frozen=True)
class MixturePlan:
    """sum_o weights[o] * op_o(x) over the candidate operations of an edge.

    Attributes:
        ops: their paths, in the order of the weights.
        plans: what they compute.
        stride: of all of them.
        skips_zeros: an operation of weight 0 is not run.
    """

    ops: tuple[Path, ...]
    plans: tuple[OpPlan, ...]
    stride: int
    skips_zeros: bool


@dataclass(frozen=True)
class MixedOpPlan:
    """A module that is a mixed operation.

    Attributes:
        method: that computes it, called with (x, weights).
        mixture: what is computed.
        partial: k; the first 1/k of the channels goes through the mixture, the rest (max-pooled at stride 2)
            is concatenated, and the channels are shuffled in k groups. 1 is a plain mixed operation.
    """

    method: str
    mixture: MixturePlan
    partial: int


@dataclass(frozen=True)
class EdgePlan:
    """Of a cell, from node `source` to node `target`; `row` of the weights belongs to it."""

    source: int
    target: int
    row: int
    mixture: MixturePlan


@dataclass(frozen=True)
class CellPlan:
    """A module that is a whole cell of mixed operations, without modules for these.

    Attributes:
        method: that computes it, called with (inputs, weights); the inputs are node 0, its value is the last.
        edges: in the order of targets, then sources.
    """

    method: str
    edges: tuple[EdgePlan, ...]


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
    """Where a mixed operation computes, of two arguments: `forward`, or lacking that a `forward_...`."""
    own = type(module).forward is not nn.Module.forward
    names = ["forward"] if own else [name for name in dir(type(module)) if name.startswith("forward_")]
    for name in names:
        try:
            parameters = list(inspect.signature(getattr(module, name)).parameters.values())
        except (TypeError, ValueError):
            continue
        required = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(required) == 2:
            yield name


@remembered
def recognise_mixed_op(module: nn.Module) -> MixedOpPlan:
    """Raises `Unrecognised`, with why, for a module that is no mixed operation."""
    mixture = _mixture(module, candidate_ops(module))
    reasons = []
    for method in methods_of(module):
        try:
            partial, skips = _Probing(module, method, [mixture]).mixed_op()
        except Unrecognised as error:
            reasons.append(f"{method} {error}")
        else:
            return MixedOpPlan(method, _with_skips(mixture, skips), partial)
    raise Unrecognised("; ".join(reasons) or "has no method that takes a tensor and weights")


@remembered
def recognise_cell(module: nn.Module) -> CellPlan:
    """Raises `Unrecognised`, with why, for a module that is no cell."""
    found = cell_edges(module)
    if found is None:
        raise Unrecognised("has no edges")
    name, keys = found
    order = sorted(keys, key=lambda key: (keys[key][0], keys[key][1]))
    mixtures = [
        _mixture(module, [(name, key, op) for op in at(module, (name, key))._modules]) for key in order
    ]
    if len({len(mixture.ops) for mixture in mixtures}) > 1:
        raise Unrecognised("has edges with different numbers of operations")
    rows = [sorted(keys).index(key) for key in order]
    reasons = []
    for method in methods_of(module):
        try:
            skips = _Probing(module, method, mixtures).cell([keys[key] for key in order], rows)
        except Unrecognised as error:
            reasons.append(f"{method} {error}")
        else:
            edges = (
                EdgePlan(keys[key][1], keys[key][0], row, _with_skips(mixture, skips))
                for key, row, mixture in zip(order, rows, mixtures, strict=True)
            )
            return CellPlan(method, tuple(edges))
    raise Unrecognised("; ".join(reasons) or "has no method that takes a tensor and weights")


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
    if len(ops) < 2:
        raise Unrecognised
    plans = tuple(recognise_op(at(module, path)) for path in ops)
    strides = {stride_of(plan) for plan in plans} - {None}
    if all(isinstance(plan, OpaquePlan) for plan in plans):
        raise Unrecognised
    if len(strides) != 1:
        raise Unrecognised(f"has operations of different strides: {sorted(map(str, strides))}")
    stride = strides.pop()
    assert stride is not None
    return MixturePlan(tuple(ops), plans, stride, False)


def _with_skips(mixture: MixturePlan, skips_zeros: bool) -> MixturePlan:
    return MixturePlan(mixture.ops, mixture.plans, mixture.stride, skips_zeros)


class _Probe(nn.Module):
    """In place of a candidate operation: keeps what it is called with, returns a tensor that is known."""

    def __init__(self, stride: int, generator: torch.Generator) -> None:
        super().__init__()
        self.stride, self.generator = stride, generator
        self.called_with: list[Tensor] = []
        self.value = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.called_with.append(x)
        shape = (*x.shape[:2], *(-(-side // self.stride) for side in x.shape[2:]))
        self.value = torch.randn(shape, dtype=x.dtype, generator=self.generator)
        return self.value


@dataclass
class _Probing:
    """A module with probes for candidate operations, run in both modes on random inputs and weights."""

    module: nn.Module
    method: str
    mixtures: Sequence[MixturePlan]
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def mixed_op(self) -> tuple[int, bool]:
        """k of its partial channels, and whether it skips operations of weight 0."""
        found = set()
        for training in (True, False, True, False):
            x, weights = self._random(PROBE_CHANNELS), self._weights(1)[0]
            (probes,), out = self._run(x, weights, training)
            channels = probes[0].called_with[0].shape[1] if probes[0].called_with else 0
            if channels == 0 or PROBE_CHANNELS % channels:
                raise Unrecognised("does not run its operations on channels of its input")
            k = PROBE_CHANNELS // channels
            mixed = _weighted_sum(probes, x[:, :channels], weights)
            _check_equal(out, mixed if k == 1 else partial_channels(mixed, x[:, channels:], k))
            weights[0] = 0
            (probes,), out = self._run(x, weights, training)
            skips = not probes[0].called_with
            mixed = _weighted_sum(probes[skips:], x[:, :channels], weights[skips:])
            _check_equal(out, mixed if k == 1 else partial_channels(mixed, x[:, channels:], k))
            found.add((k, skips))
        if len(found) > 1:
            raise Unrecognised("computes something else each time")
        return found.pop()

    def cell(self, edges: Sequence[tuple[int, int]], rows: Sequence[int]) -> bool:
        """Whether it skips operations of weight 0; edges are (target, source)."""
        found = set()
        for training in (True, False, True, False):
            for zeros in (False, True):
                x, weights = self._random(PROBE_CHANNELS), self._weights(len(edges))
                if zeros:
                    weights[:, 0] = 0
                probes, out = self._run(x, weights, training)
                skips = zeros and not probes[0][0].called_with
                nodes = {0: x}
                for (target, source), row, some in zip(edges, rows, probes, strict=True):
                    if source not in nodes:
                        raise Unrecognised(f"has no edge into node {source}")
                    term = _weighted_sum(some[skips:], nodes[source], weights[row][skips:])
                    nodes[target] = nodes[target] + term if target in nodes else term
                _check_equal(out, nodes[max(nodes)])
                if zeros:
                    found.add(skips)
        if len(found) > 1:
            raise Unrecognised("computes something else each time")
        return found.pop()

    def _random(self, channels: int) -> Tensor:
        shape = 2, channels, PROBE_SIZE, PROBE_SIZE
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def _weights(self, edges: int) -> Tensor:
        return torch.randn(edges, len(self.mixtures[0].ops), dtype=torch.float64, generator=self.generator)

    def _run(self, x: Tensor, weights: Tensor, training: bool) -> tuple[list[list[_Probe]], Tensor]:
        probes = [[_Probe(m.stride, self.generator) for _ in m.ops] for m in self.mixtures]
        paths = [path for mixture in self.mixtures for path in mixture.ops]
        copy = _replaced(self.module, dict(zip(paths, chain.from_iterable(probes), strict=True)))
        copy.training = training
        try:
            with torch.no_grad(), drawing_nothing():
                out = getattr(copy, self.method)(x.clone(), weights)
        except Unrecognised:
            raise
        except Exception as error:  # their code may raise anything
            raise Unrecognised(f"cannot be run on its own: {type(error).__name__}: {error}") from error
        if not isinstance(out, Tensor):
            raise Unrecognised("does not return a tensor")
        return probes, out


def _replaced(module: nn.Module, changed: Mapping[Path, nn.Module]) -> nn.Module:
    """A copy that shares everything but the modules on the way to those that are replaced."""
    kind = getattr(type(module), "own_class", type(module))  # an accelerated module computes as it did
    copy: nn.Module = kind.__new__(kind)
    copy.__dict__ = dict(module.__dict__)
    copy._modules = dict(module._modules)
    for name in {path[0] for path in changed}:
        below = {path[1:]: new for path, new in changed.items() if path[0] == name}
        if () in below:
            copy._modules[name] = below[()]
        else:
            child = module._modules[name]
            assert child is not None
            copy._modules[name] = _replaced(child, below)
    return copy


def _weighted_sum(probes: Sequence[_Probe], x: Tensor, weights: Tensor) -> Tensor:
    """Of the probes' values; each must have been called once, with x."""
    total: Tensor | None = None
    for probe, weight in zip(probes, weights, strict=True):
        if len(probe.called_with) != 1:
            raise Unrecognised(f"runs an operation {len(probe.called_with)} times")
        if probe.called_with[0].shape != x.shape or not torch.allclose(probe.called_with[0], x, 1e-12, 1e-12):
            raise Unrecognised("changes the input of its operations")
        total = probe.value * weight if total is None else total + probe.value * weight
    assert total is not None
    return total


def partial_channels(mixed: Tensor, rest: Tensor, k: int) -> Tensor:
    """The mixture of 1/k of the channels and the rest, max-pooled at stride 2, shuffled in k groups."""
    if mixed.shape[2:] != rest.shape[2:]:
        rest = F.max_pool2d(rest, 2, 2)
    joined = torch.cat([mixed, rest], 1)
    count, channels, height, width = joined.shape
    groups = joined.view(count, k, channels // k, height, width)
    return groups.transpose(1, 2).reshape(count, channels, height, width)


def _check_equal(out: Tensor, expected: Tensor) -> None:
    if out.shape != expected.shape or not torch.allclose(out, expected, 1e-11, 1e-11):
        raise Unrecognised("is not the weighted sum of its operations")
