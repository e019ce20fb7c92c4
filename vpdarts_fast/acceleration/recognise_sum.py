"""Recognises mixed operations and cells by running them: probes that return known tensors take the place of
their candidate operations, and what comes out must be the weighted sum of those.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        partial: k; the first 1/k of the channels goes through the operations, the rest (max-pooled at stride
            2) is concatenated, and the channels are shuffled in k groups. 1 is all channels.
        skips_zeros: an operation of weight 0 is not run.
    """

    ops: tuple[Path, ...]
    plans: tuple[OpPlan, ...]
    stride: int
    partial: int = 1
    skips_zeros: bool = False


@dataclass(frozen=True)
class MixedOpPlan:
    """A module that is a mixed operation.

    Attributes:
        method: that computes it, called with (x, weights).
        mixture: what is computed.
    """

    method: str
    mixture: MixturePlan


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
            partial, skips = _Probing(module, method, [mixture])()
        except Unrecognised as error:
            reasons.append(f"{method} {error}")
        else:
            return MixedOpPlan(method, replace(mixture, partial=partial, skips_zeros=skips))
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
            edges = [(keys[key], row) for key, row in zip(order, rows, strict=True)]
            partial, skips = _Probing(module, method, mixtures, edges)()
        except Unrecognised as error:
            reasons.append(f"{method} {error}")
        else:
            found_edges = (
                EdgePlan(source, target, row, replace(mixture, partial=partial, skips_zeros=skips))
                for ((target, source), row), mixture in zip(edges, mixtures, strict=True)
            )
            return CellPlan(method, tuple(found_edges))
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
    return MixturePlan(tuple(ops), plans, stride)


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


@dataclass(frozen=True)
class _Run:
    """What has been seen of a run with probes.

    Attributes:
        probes: of each mixture.
        weights: [E, O], of each mixture.
        first: the first operation that was run: 1 where that before it has weight 0 and is skipped.
        parts: k, where operations were called with 1/k of the channels.
    """

    probes: list[list[_Probe]]
    weights: Tensor
    first: int
    parts: int

    def term(self, e: int, node: Tensor) -> Tensor:
        """What mixture e makes of the node it was called with."""
        channels, first = PROBE_CHANNELS // self.parts, self.first
        mixed = _weighted_sum(self.probes[e][first:], node[:, :channels], self.weights[e][first:])
        return partial_channels(mixed, node[:, channels:], self.parts)


@dataclass
class _Probing:
    """A module with probes for candidate operations, run in both modes on random inputs and weights.

    Attributes:
        module: that is looked at.
        method: of two arguments that is called.
        mixtures: whose operations are replaced.
        edges: of a cell, (target, source) and the row of the weights of each mixture; none for a mixed
            operation.
    """

    module: nn.Module
    method: str
    mixtures: Sequence[MixturePlan]
    edges: Sequence[tuple[tuple[int, int], int]] = ()
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __call__(self) -> tuple[int, bool]:
        """k of its partial channels, and whether it skips operations of weight 0.

        Raises:
            Unrecognised: what comes out is not what is expected of a mixed operation or of a cell.
        """
        found = set()
        for training in (True, False, True, False):
            x = self._random(PROBE_CHANNELS)
            run, out = self._run(x, self._weights(), training)
            _check_equal(out, self._expected(x, run))
            weights = self._weights()
            weights[:, 0] = 0
            without, out = self._run(x, weights, training)
            _check_equal(out, self._expected(x, without))
            found |= {(run.parts, without.first), (without.parts, without.first)}
        if len(found) > 1:
            raise Unrecognised("computes something else each time")
        parts, first = found.pop()
        return parts, first > 0

    def _expected(self, x: Tensor, run: _Run) -> Tensor:
        if not self.edges:
            return run.term(0, x)
        nodes = {0: x}
        for e, ((target, source), _) in enumerate(self.edges):
            if source not in nodes:
                raise Unrecognised(f"has no edge into node {source}")
            term = run.term(e, nodes[source])
            nodes[target] = nodes[target] + term if target in nodes else term
        return nodes[max(nodes)]

    def _random(self, channels: int) -> Tensor:
        shape = 2, channels, PROBE_SIZE, PROBE_SIZE
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def _weights(self) -> Tensor:
        """[E, O], as the method takes them but for a mixed operation's [O]."""
        shape = len(self.mixtures), len(self.mixtures[0].ops)
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def _run(self, x: Tensor, weights: Tensor, training: bool) -> tuple[_Run, Tensor]:
        probes = [[_Probe(m.stride, self.generator) for _ in m.ops] for m in self.mixtures]
        paths = [path for mixture in self.mixtures for path in mixture.ops]
        copy = _replaced(self.module, dict(zip(paths, chain.from_iterable(probes), strict=True)))
        copy.training = training
        try:
            with torch.no_grad(), drawing_nothing():
                out = getattr(copy, self.method)(x.clone(), weights if self.edges else weights[0])
        except Unrecognised:
            raise
        except Exception as error:  # their code may raise anything
            raise Unrecognised(f"cannot be run on its own: {type(error).__name__}: {error}") from error
        if not isinstance(out, Tensor):
            raise Unrecognised("does not return a tensor")
        called = [probe.called_with[0] for some in probes for probe in some if probe.called_with]
        if not called or PROBE_CHANNELS % called[0].shape[1]:
            raise Unrecognised("does not run its operations on channels of its input")
        first = 1 if weights[0, 0] == 0 and not probes[0][0].called_with else 0
        rows = [row for _, row in self.edges] or [0]
        return _Run(probes, weights[rows], first, PROBE_CHANNELS // called[0].shape[1]), out


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
    """The mixture of 1/k of the channels and the rest, max-pooled at stride 2, shuffled in k groups.

    mixed [..., N, C / k, H', W'], rest [1 or ..., N, C - C / k, H, W] -> [..., N, C, H', W'].
    """
    if k == 1:
        return mixed
    if mixed.shape[-2:] != rest.shape[-2:]:
        pooled = F.max_pool2d(rest.flatten(0, -4), 2, 2)
        rest = pooled.view(*rest.shape[:-3], *pooled.shape[1:])
    joined = torch.cat([mixed, rest.expand(*mixed.shape[:-3], *rest.shape[-3:])], -3)
    *leading, channels, height, width = joined.shape
    groups = joined.view(*leading, k, channels // k, height, width)
    return groups.transpose(-4, -3).reshape(joined.shape)


def _check_equal(out: Tensor, expected: Tensor) -> None:
    if out.shape != expected.shape or not torch.allclose(out, expected, 1e-11, 1e-11):
        raise Unrecognised("is not the weighted sum of its operations")
