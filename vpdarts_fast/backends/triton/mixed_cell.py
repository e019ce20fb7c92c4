"""`mixed_cell` in Triton, with its backward pass for the one variant that is trained.

forward     weights side by side by the node that their edges leave; then of each node the convolutions of its
            edges (one of each size, by cuDNN), and `mixed_sum`'s kernels for the next node and its ReLU
backward    from the last node to the first: differentiate_node, its gradient from all that it feeds, and its
            sums; add_up_parts; differentiate_raws, which leaves gradients side by side by the node that their
            edges leave, so that each convolution has one adjoint

So but for weights no tensor is copied, added or put together between kernels, and nothing is read back from
the device. Many variants, whose values are shared, and what needs no gradients go node by node through the
ops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vpdarts_fast.backends import pytorch
from vpdarts_fast.backends.pytorch.mixed_cell import node_by_node, without_zeros
from vpdarts_fast.backends.triton.kernels import mixed_sum as sum_kernels
from vpdarts_fast.backends.triton.kernels.mixed_cell import differentiate_node
from vpdarts_fast.backends.triton.layout import channels_last, device_of, empty_channels_last
from vpdarts_fast.backends.triton.mixed_sum import (
    Terms,
    in_turn,
    launch_forward,
    mixed_sum_with_dropout,
    rows_of,
)
from vpdarts_fast.backends.triton.relu_conv import relu_conv
from vpdarts_fast.backends.triton.side_by_side import (
    incoming,
    into,
    of_each_source,
    source_count,
    weights_by_edge,
    weights_by_source,
)
from vpdarts_fast.contract import derivatives


def mixed_cell(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    alpha: Tensor,
    skip_seed: Tensor | None = None,
    skip_dropout: float = 0.0,
    eps: float = 1e-5,
    skip_zeros: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.contract.reference.mixed_cell`. Mean and variance have alpha's dtype.

    All is computed.
    """
    seeds = skip_seed.to(x.device) if skip_seed is not None and skip_dropout > 0 else None
    tensors = x, weight_1x1, weight_3x3, alpha
    if len(alpha) == 1 and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        node, mean, variance, _ = _forward(*tensors, seeds, skip_dropout, eps)
        cell = node, mean.to(alpha.dtype), variance.to(alpha.dtype)
        return without_zeros(alpha, *cell) if skip_zeros else cell

    def mixed_sum(
        xs: list[Tensor], raw_1x1: list[Tensor], raw_3x3: list[Tensor], table: Tensor, incoming: range
    ) -> tuple[Tensor, Tensor, Tensor]:
        some = seeds[incoming.start : incoming.stop] if seeds is not None else None
        return mixed_sum_with_dropout(xs, raw_1x1, raw_3x3, table, some, skip_dropout, eps)

    cell = node_by_node(*tensors, relu_conv, mixed_sum)
    return without_zeros(alpha, *cell) if skip_zeros else cell


@dataclass(frozen=True)
class _Kept:
    """What the forward pass leaves to the backward pass.

    Attributes:
        sources: all nodes but the last, [1, N, C, H, W].
        rectified: their ReLUs, [N, C, H, W].
        raws: for both sizes, what the convolutions of each source gave, [N, k*C, H, W].
        weights: for both sizes, [E*C, C, 1, 1] and [E*C, C, 3, 3], source by source.
    """

    sources: list[Tensor]
    rectified: list[Tensor]
    raws: tuple[list[Tensor], list[Tensor]]
    weights: list[Tensor]

    def without_x(self) -> list[Tensor]:
        return [*self.sources[1:], *self.rectified, *self.raws[0], *self.raws[1], *self.weights]

    @staticmethod
    def of(x: Tensor, others: list[Tensor]) -> _Kept:
        """Of `x` [1, N, C, H, W], channels last, and what `without_x` returned."""
        n = (len(others) - 1) // 4
        sources, rectified = others[: n - 1], others[n - 1 : 2 * n - 1]
        raws = others[2 * n - 1 : 3 * n - 1], others[3 * n - 1 : 4 * n - 1]
        return _Kept([x, *sources], rectified, raws, others[4 * n - 1 :])

    def terms(self, target: int, xs: Sequence[Tensor], skip_dropout: float) -> Terms:
        """For the kernels that read the raw outputs of the edges into a node."""
        channels = self.weights[0].shape[1]
        raw_1x1, raw_3x3 = (into(target, raws, channels) for raws in self.raws)
        return Terms(xs, raw_1x1, raw_3x3, (), skip_dropout)


@torch.library.custom_op("vpdarts_triton::mixed_cell", mutates_args=())
def _forward(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    alpha: Tensor,
    skip_seed: Tensor | None,
    skip_dropout: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The last node of one variant, mean and variance in float32, and what `_Kept` has beside x."""
    kept = _Kept([channels_last(x)], [], ([], []), [weights_by_source(w) for w in (weight_1x1, weight_3x3)])
    node, mean, variance, alpha = kept.sources[0], *_statistics(x, alpha), alpha.contiguous()
    rectified = F.relu(node[0])
    last = source_count(alpha.shape[1])
    weights = [of_each_source(weight) for weight in kept.weights]
    for target in range(1, last + 1):
        kept.rectified.append(rectified)
        for raws, of_size, padding in zip(kept.raws, weights, (0, 1), strict=True):
            raw = F.conv2d(rectified, of_size[target - 1], padding=padding)
            raws.append(channels_last(raw[None])[0])
        node, edges = empty_channels_last(x, x.shape), incoming(target)
        rectified = torch.empty_like(node[0])
        with device_of(x):
            launch_forward(
                kept.terms(target, kept.sources, skip_dropout),
                node,
                rectified if target < last else None,
                mean[:, edges],
                variance[:, edges],
                alpha[:, edges],
                skip_seed[edges] if skip_seed is not None else None,
                eps,
            )
        if target < last:
            kept.sources.append(node)
    return node, mean, variance, kept.without_x()


def _statistics(x: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = (
        alpha.new_empty(1, alpha.shape[1], 2, x.shape[2], dtype=torch.float32) for _ in range(2)
    )
    return mean, variance


@_forward.register_fake
def _forward_fake(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    alpha: Tensor,
    skip_seed: Tensor | None,
    skip_dropout: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    _, images, channels, *size = x.shape
    last = source_count(alpha.shape[1])
    widths = [(last - source) * channels for source in range(last)]
    shapes = [
        *[x.shape] * (last - 1),
        *[x.shape[1:]] * last,
        *[(images, width, *size) for width in widths] * 2,
        *(weight.flatten(0, 1).shape for weight in (weight_1x1, weight_3x3)),
    ]
    kept = [empty_channels_last(x, shape) for shape in shapes]
    return empty_channels_last(x, x.shape), *_statistics(x, alpha), kept


@torch.library.custom_op("vpdarts_triton::mixed_cell_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    x: Tensor,
    alpha: Tensor,
    skip_seed: Tensor | None,
    skip_dropout: float,
    eps: float,
    mean: Tensor,
    variance: Tensor,
    others: list[Tensor],
    wants_x: bool,
    wants_weights: bool,
    wants_alpha: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, both weights and alpha; those not wanted are empty."""
    kept = _Kept.of(channels_last(x), others)
    of_x, of_1x1, of_3x3, of_alpha = _gradients(x, alpha, others, wants_x, wants_weights, wants_alpha)
    walk = _Backward(
        *(kept, alpha.contiguous(), mean, variance, skip_seed, skip_dropout, eps),
        of_alpha=of_alpha if wants_alpha else None,
        through_x=wants_x or wants_weights,
        of_raws=tuple([empty_channels_last(x, raw.shape) for raw in raws] for raws in kept.raws),
    )
    with device_of(x):
        last = len(kept.sources)
        walk.differentiate(last, [gradient], None)
        for source in range(last - 1, 0, -1):
            arriving = walk.through_convolutions(source, True, wants_weights)
            walk.differentiate(source, arriving, empty_channels_last(x, x.shape))
        arriving = walk.through_convolutions(0, wants_x, wants_weights)
        if wants_x or wants_alpha:
            walk.differentiate(0, arriving, of_x if wants_x else None)
    if wants_weights:
        of_1x1, of_3x3 = (weights_by_edge(some[::-1]) for some in walk.of_weights)
    return of_x, of_1x1, of_3x3, of_alpha


def _gradients(
    x: Tensor,
    alpha: Tensor,
    others: Sequence[Tensor],
    wants_x: bool,
    wants_weights: bool,
    wants_alpha: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    edges, channels = alpha.shape[1], x.shape[2]
    of_1x1, of_3x3 = (
        weight.new_empty(edges if wants_weights else 0, channels, channels, *weight.shape[2:])
        for weight in others[-2:]
    )
    of_alpha = alpha.new_empty(1 if wants_alpha else 0, *alpha.shape[1:])
    return empty_channels_last(x, (1 if wants_x else 0, *x.shape[1:])), of_1x1, of_3x3, of_alpha


@_backward.register_fake
def _backward_fake(
    gradient: Tensor,
    x: Tensor,
    alpha: Tensor,
    skip_seed: Tensor | None,
    skip_dropout: float,
    eps: float,
    mean: Tensor,
    variance: Tensor,
    others: list[Tensor],
    wants_x: bool,
    wants_weights: bool,
    wants_alpha: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _gradients(x, alpha, others, wants_x, wants_weights, wants_alpha)


@dataclass(frozen=True)
class _Backward:
    """A walk from the last node to the first.

    Attributes:
        of_alpha: [1, E, 5] to be written, or None.
        through_x: whether the first source's convolutions have adjoints that are wanted.
        of_raws: the gradients of `_Kept.raws`, complete once all nodes behind a source are done.
        of_weights: for both sizes, those of the sources that are done.
        later: the gradients of the nodes that are done, the nearest first, [1, N, C, H, W].
    """

    kept: _Kept
    alpha: Tensor
    mean: Tensor
    variance: Tensor
    skip_seed: Tensor | None
    skip_dropout: float
    eps: float
    of_alpha: Tensor | None
    through_x: bool
    of_raws: tuple[list[Tensor], ...]
    of_weights: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))
    later: list[Tensor] = field(default_factory=list)

    def through_convolutions(self, source: int, wants_input: bool, wants_weights: bool) -> list[Tensor]:
        """The gradients of relu(source), one of each size's convolution, if they are wanted."""
        wants = wants_input, wants_weights, False
        if not any(wants):
            return []
        arriving = []
        for size in range(2):
            found = torch.ops.aten.convolution_backward(
                *(self.of_raws[size].pop(), self.kept.rectified[source]),
                of_each_source(self.kept.weights[size])[source],
                *(None, (1, 1), (size, size), (1, 1), False, (0, 0), 1, wants),
            )
            arriving.append(found[0])
            self.of_weights[size].append(found[1])
        return [gradient[None] for gradient in arriving] if wants_input else []

    def differentiate(self, node: int, arriving: Sequence[Tensor], own: Tensor | None) -> None:
        """Writes the node's gradient to `own` if there is one, and those of alpha and of the raw outputs.

        arriving: the gradients of its ReLU, [1, N, C, H, W]; of the last node its own.
        """
        edges = incoming(node)
        is_last = node == len(self.kept.sources)
        x = arriving[0] if is_last else self.kept.sources[node]
        t = self.kept.terms(node, [x], self.skip_dropout)
        blocks, channel_blocks, _ = t.grid
        rows = 1 + t.raw_count + (2 * len(self.later) if self.of_alpha is not None else 0)
        parts = self.mean.new_empty(blocks, rows, t.channels)
        (rectified_gradients, rectified_steps), (later, later_steps) = rows_of(arriving), rows_of(self.later)
        differentiate_node[blocks, channel_blocks](
            *(own, parts, rectified_gradients, rectified_steps, later, later_steps),
            *((None, 0) if is_last else (t.xs[0][0], t.xs[1][0])),
            *(*t.raws, self.skip_seed, *t.dropout, self.alpha, self.mean, *t.image),
            NODE=node,
            WANTS_ALPHA=self.of_alpha is not None,
            **t.sizes,
        )
        if node == 0 and self.of_alpha is None:
            return
        totals = self.mean.new_empty(rows, t.channels)
        sum_kernels.add_up_parts[rows, 1](
            *(totals, self.of_alpha, parts, blocks, self.variance, self.eps),
            ROWS=rows,
            RAWS=t.raw_count,
            EDGES=self.alpha.shape[1],
            NODE=node,
            **t.sizes,
        )
        if node == 0:
            return
        (own,), (own_step,) = rows_of([arriving[0] if own is None else own])
        self.later.insert(0, own)
        gradients, steps = rows_of(in_turn(*(into(node, some, t.channels) for some in self.of_raws)))
        wanted = gradients if self.through_x else (None, None, *gradients[2:])
        if not any(gradient is not None for gradient in wanted):
            return
        statistics = (some[:, edges] for some in (self.alpha, self.mean, self.variance))
        sum_kernels.differentiate_raws[t.tuned_grid](
            *(wanted, steps, own, own_step, *t.raws, *statistics, totals, self.eps, t.pixels),
            ROWS=rows,
            **t.tuned_sizes,
        )


def _differentiate(
    inputs: Sequence[Any], kept: Sequence[Tensor], gradients: Sequence[Any], wants: Sequence[bool]
) -> Sequence[Tensor]:
    x, _, _, alpha, *rest = inputs
    mean, variance, *others = kept
    wants_x, wants_1x1, wants_3x3, wants_alpha = wants
    wanted = wants_x, wants_1x1 or wants_3x3, wants_alpha
    found: Sequence[Tensor] = _backward(gradients[0], x, alpha, *rest, mean, variance, others, *wanted)
    return found


def _plain(*inputs: Any) -> Tensor:
    return pytorch.mixed_cell(*inputs)[0]


derivatives.register(_forward, range(4), _differentiate, _plain)
