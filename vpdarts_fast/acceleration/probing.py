"""Mixed operations and cells, run with probes in place of candidate operations: tensors that are known."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast.acceleration.copies import HOOKS, channels_of, isolated_copy
from vpdarts_fast.acceleration.draws import drawing_nothing, same_draws
from vpdarts_fast.acceleration.plans import MixturePlan, Path, Unrecognised, described
from vpdarts_fast.acceleration.snapshot import original_class

PROBE_CHANNELS = 24
"""Divisible by the fractions 1/k of partial channels that are in use."""
PROBE_SIZE = 6


Draws = Callable[[], AbstractContextManager[None]]
"""What becomes of random numbers that are drawn within."""


class _Probe:
    """What a candidate operation is called with, and the tensor that it returns instead of its own."""

    def __init__(self, stride: int, generator: torch.Generator) -> None:
        self.stride, self.generator = stride, generator
        self.called_with: list[Tensor] = []
        self.value = torch.zeros((), dtype=torch.float64, device="cpu")

    def __call__(self, x: Tensor) -> Tensor:
        """Random values [N, C, H', W'] in place of an operation of `x` [N, C, H, W]; both are remembered."""
        self.called_with.append(x)
        shape = _shape_behind(x, self.stride)
        self.value = torch.randn(shape, dtype=x.dtype, device=x.device, generator=self.generator)
        return self.value


def _shape_behind(x: Tensor, stride: int) -> tuple[int, ...]:
    return *x.shape[:2], *(-(-side // stride) for side in x.shape[2:])


def without_ops(module: nn.Module, *mixtures: MixturePlan) -> nn.Module:
    """A copy whose candidate operations are zero, and that shares everything else."""

    def zeros(stride: int, x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(_shape_behind(x, stride))

    stand_ins = {path: partial(zeros, mixture.stride) for mixture in mixtures for path in mixture.ops}
    return _computing(module, stand_ins)


def _computing(module: nn.Module, forwards: Mapping[Path, Callable[[Tensor], Tensor]]) -> nn.Module:
    """A copy that shares everything, but the forwards of submodules.

    These keep their classes and attributes: the module's code may look at them.
    """
    kind = original_class(module)  # an accelerated module computes as it did
    copied: nn.Module = kind.__new__(kind)
    copied.__dict__ = dict(module.__dict__)
    copied._modules = dict(module._modules)
    for name in {path[0] for path in forwards if path}:
        child = module._modules[name]
        assert child is not None
        below = {path[1:]: forward for path, forward in forwards.items() if path[:1] == (name,)}
        copied._modules[name] = _computing(child, below)
    if () in forwards:
        copied.__dict__["forward"] = forwards[()]
        for hooks in HOOKS:
            copied.__dict__[hooks] = OrderedDict()
    return copied


@dataclass(frozen=True)
class _Run:
    """What has been seen of a run with probes.

    Attributes:
        probes: of each mixture.
        weights: [E, O], of each mixture.
        skips: operations of weight 0 were not run; none where there are no such operations.
        parts: k, where operations were called with 1/k of the channels.
    """

    probes: list[list[_Probe]]
    weights: Tensor
    skips: bool | None
    parts: int

    def term(self, e: int, node: Tensor) -> Tensor:
        """What mixture e makes of the node it was called with."""
        channels = node.shape[1] // self.parts
        mixed = _weighted_sum(self.probes[e], node[:, :channels], self.weights[e])
        return partial_channels(mixed, node[:, channels:], self.parts)


@dataclass(frozen=True)
class Outcome:
    """How a method computes a weighted sum.

    Attributes:
        partial: k of its partial channels.
        skips_zeros: operations of weight 0 are not run.
        adds: something of its own to the sum.
    """

    partial: int
    skips_zeros: bool
    adds: bool


@dataclass
class Probing:
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
    generator: torch.Generator = field(default_factory=lambda: torch.Generator(device="cpu").manual_seed(0))

    def __post_init__(self) -> None:
        """Layers beside the operations run as they are, in float64."""
        self._copy = isolated_copy(self.module)
        self._probes: list[list[_Probe]] = []
        self._without_ops = without_ops(self._copy, *self.mixtures)
        operations = {path for mixture in self.mixtures for path in mixture.ops}
        beside = (layer for path, layer in _modules(self._copy) if not _is_within(path, operations))
        self._channels = next(filter(None, map(channels_of, beside)), PROBE_CHANNELS)

    def __call__(self) -> Outcome:
        """`Unrecognised` if what comes out is not what is expected of a mixed operation or of a cell."""
        outcomes = set()
        for training in (True, False):
            x = self._random(2, self._channels, PROBE_SIZE, PROBE_SIZE)
            weights = self._weights()
            without, alone = torch.ones_like(weights), torch.zeros_like(weights)
            without[:, 0], alone[:, -1] = 0, 1
            runs = [self._checked(x, weights * mask, training) for mask in (torch.ones(()), without, alone)]
            skips = {run.skips for run, _ in runs} - {None}
            outcomes |= {(run.parts, adds, frozenset(skips)) for run, adds in runs}
        if len(outcomes) > 1 or len(skips) > 1:
            raise Unrecognised("computes something else each time")
        ((parts, adds, _),) = outcomes
        return Outcome(parts, True in skips, adds)

    def looks_mixed(self) -> bool:
        """Whether all operations that run are called with the same images, or one is chosen of them."""
        x, cause = self._random(2, self._channels, PROBE_SIZE, PROBE_SIZE), None
        try:
            self._run(x, self._weights(), training=True, draws=same_draws)
        except Unrecognised as error:
            cause = error.__cause__
        inputs = [probe.called_with[0] for probe in chain.from_iterable(self._probes) if probe.called_with]
        if not inputs:  # it may need something that is set elsewhere
            return isinstance(cause, (AttributeError, NameError, KeyError, TypeError))
        same = all(one.dim() == 4 and torch.equal(one, inputs[0]) for one in inputs)
        return same and len(inputs) >= (1 if cause is None else 2)

    def _checked(self, x: Tensor, weights: Tensor, training: bool) -> tuple[_Run, bool]:
        """A run of which the output is as expected, and whether the module has added something to it."""
        run, out = self._run(x, weights, training)
        expected = self._expected(x, run)
        if _are_equal(out, expected):
            return run, False
        if not self.edges and run.parts == 1:
            rest = self._call(self._without_ops, x, weights, training)
            if _are_equal(out, expected + rest):
                return run, True
        raise Unrecognised("is not the weighted sum of its operations")

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

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, device="cpu", generator=self.generator)

    def _weights(self) -> Tensor:
        """[E, O], as the method takes them but for a mixed operation's [O]."""
        return self._random(len(self.mixtures), len(self.mixtures[0].ops))

    def _run(
        self, x: Tensor, weights: Tensor, training: bool, draws: Draws = drawing_nothing
    ) -> tuple[_Run, Tensor]:
        probes = [[_Probe(m.stride, self.generator) for _ in m.ops] for m in self.mixtures]
        self._probes = probes
        paths = [path for mixture in self.mixtures for path in mixture.ops]
        probed = _computing(self._copy, dict(zip(paths, chain.from_iterable(probes), strict=True)))
        out = self._call(probed, x, weights, training, draws)
        inputs = (probe.called_with[0] for probe in chain.from_iterable(probes) if probe.called_with)
        channels = next((images.shape[1] for images in inputs), 0)
        if not channels or x.shape[1] % channels:
            raise Unrecognised("does not run its operations on channels of its input")
        weights = weights[[row for _, row in self.edges] or [0]]
        skipped = {not probes[e][o].called_with for e, o in (weights == 0).nonzero().tolist()}
        if len(skipped) > 1:
            raise Unrecognised("runs some operations of weight 0 and others not")
        return _Run(probes, weights, skipped.pop() if skipped else None, x.shape[1] // channels), out

    def _call(
        self, probed: nn.Module, x: Tensor, weights: Tensor, training: bool, draws: Draws = drawing_nothing
    ) -> Tensor:
        try:
            with torch.no_grad(), draws():
                out = getattr(probed.train(training), self.method)(
                    x.clone(), weights if self.edges else weights[0]
                )
        except Unrecognised:
            raise
        except Exception as error:  # their code may raise anything
            raise Unrecognised(f"cannot be run on its own: {described(error)}") from error
        if not isinstance(out, Tensor):
            raise Unrecognised("does not return a tensor")
        return out


def _weighted_sum(probes: Sequence[_Probe], x: Tensor, weights: Tensor) -> Tensor:
    """Of the probes' values; each must have been called once, with x, but for those of weight 0."""
    total: Tensor | None = None
    for probe, weight in zip(probes, weights, strict=True):
        if not probe.called_with and weight == 0:
            continue
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


def _modules(module: nn.Module) -> Iterator[tuple[Path, nn.Module]]:
    return ((tuple(name.split(".")), layer) for name, layer in module.named_modules() if name)


def _is_within(path: Path, operations: Collection[Path]) -> bool:
    return any(path[:length] in operations for length in range(1, len(path) + 1))


def _are_equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, 1e-11, 1e-11)
