"""`mixed_sum` in Triton, with its backward pass.

Its passes are these kernels of `vpdarts_fast.backends.triton.kernels.mixed_sum`::

    forward     block_statistics, combine_statistics: mean and variance of every raw output; then form_node
    backward    reduce_gradient, add_up_parts: the sums that batch norms and alpha need, alpha's gradient, and
                the gradients of xs and skip_scale on the way; then differentiate_raws

Mean and variance stay in float32 for the backward pass, whatever alpha's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

from vpdarts_fast.backends import pytorch
from vpdarts_fast.backends.pytorch.mixed_sum import mixed_sum_with_dropout as pytorch_with_dropout
from vpdarts_fast.backends.triton.blocks import block_sizes
from vpdarts_fast.backends.triton.kernels import mixed_sum as sum_kernels
from vpdarts_fast.backends.triton.layout import device_of, empty_channels_last, pixel_rows
from vpdarts_fast.contract import derivatives

_T = TypeVar("_T")


def mixed_sum(
    xs: Sequence[Tensor],
    raw_1x1: Sequence[Tensor],
    raw_3x3: Sequence[Tensor],
    alpha: Tensor,
    skip_scale: Sequence[Tensor] = (),
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.contract.reference.mixed_sum`; mean and variance have alpha's dtype."""
    node, mean, variance = _forward(
        list(xs), list(raw_1x1), list(raw_3x3), alpha, list(skip_scale), None, 0.0, eps
    )
    return node, mean.to(alpha.dtype), variance.to(alpha.dtype)


def mixed_sum_with_dropout(
    xs: Sequence[Tensor],
    raw_1x1: Sequence[Tensor],
    raw_3x3: Sequence[Tensor],
    alpha: Tensor,
    skip_seed: Tensor | None,
    skip_dropout: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`mixed_sum` whose kernels draw skip_scale from skip_seed [k] int64, as `dropout.skip_scale`."""
    node, mean, variance = _forward(
        list(xs), list(raw_1x1), list(raw_3x3), alpha, [], skip_seed, skip_dropout, eps
    )
    return node, mean.to(alpha.dtype), variance.to(alpha.dtype)


class Terms:
    """The tensors of a call as the kernels take them, and what its launches share.

    Args:
        xs: k source nodes, each [V, N, C, H, W].
        raw_1x1: the raw outputs of k convolutions, each like xs.
        raw_3x3: likewise.
        skip_scale: none, or k factors on the skip connections, each like xs.
        skip_dropout: the probability of the dropout that kernels draw from seeds; else 0.
    """

    def __init__(
        self,
        xs: Sequence[Tensor],
        raw_1x1: Sequence[Tensor],
        raw_3x3: Sequence[Tensor],
        skip_scale: Sequence[Tensor],
        skip_dropout: float,
    ) -> None:
        self.variants, images, self.channels, self.height, self.width = xs[0].shape
        self.xs = rows_of(xs)
        self.raws = rows_of(in_turn(raw_1x1, raw_3x3))
        self.raw_count = 2 * len(raw_1x1)
        self.scales = rows_of(skip_scale)
        kept = round((1 - skip_dropout) * 2**32)
        self.dropout = kept - 1, 2**32 / kept
        self.pixels = images * self.height * self.width
        self.image = self.pixels, self.height, self.width
        block_p, block_c = block_sizes(self.channels)
        self.blocks, channel_blocks = triton.cdiv(self.pixels, block_p), triton.cdiv(self.channels, block_c)
        self.grid = self.blocks, channel_blocks, self.variants
        self.sizes = {"C": self.channels, "BLOCK_P": block_p, "BLOCK_C": block_c}
        self.tuned_sizes = {"EDGES": len(raw_1x1), "C": self.channels, "BLOCK_C": block_c}

    def tuned_grid(self, sizes: dict[str, Any]) -> tuple[int, int, int]:
        """The grid of a launch, as `grid`, for kernels whose block is tuned."""
        _, channel_blocks, variants = self.grid
        return triton.cdiv(self.pixels, sizes["ELEMENTS"] // sizes["BLOCK_C"]), channel_blocks, variants


def in_turn(of_1x1: Sequence[_T], of_3x3: Sequence[_T]) -> list[_T]:
    """What belongs to the two convolutions of each edge as one list: edge by edge, the 1x1 first."""
    return [some for pair in zip(of_1x1, of_3x3, strict=True) for some in pair]


def rows_of(tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """What `pixel_rows` makes of each: tensors, and how many elements lie from pixel to pixel."""
    pairs = [pixel_rows(tensor) for tensor in tensors]
    return tuple(rows for rows, _ in pairs), tuple(step for _, step in pairs)


@torch.library.custom_op("vpdarts_triton::mixed_sum", mutates_args=())
def _forward(
    xs: list[Tensor],
    raw_1x1: list[Tensor],
    raw_3x3: list[Tensor],
    alpha: Tensor,
    skip_scale: list[Tensor],
    skip_seed: Tensor | None,
    skip_dropout: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The node; mean and variance in float32."""
    node, mean, variance = _outputs(xs, alpha)
    if node.numel() == 0:
        return node, mean, variance
    t = Terms(xs, raw_1x1, raw_3x3, skip_scale, skip_dropout)
    with device_of(node):
        launch_forward(t, node, None, mean, variance, alpha.contiguous(), skip_seed, eps)
    return node, mean, variance


def launch_forward(
    t: Terms,
    node: Tensor,
    rectified: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    alpha: Tensor,
    skip_seed: Tensor | None,
    eps: float,
) -> None:
    """Writes node, its ReLU if there is a tensor for it, and mean and variance [V, k, 2, C]."""
    blocks, channel_blocks, variants = t.grid
    parts = mean.new_empty(variants, blocks, t.raw_count, 2, t.channels)
    sum_kernels.block_statistics[blocks, t.raw_count, variants * channel_blocks](
        parts, *t.raws, t.pixels, **t.sizes
    )
    sum_kernels.combine_statistics[variants * t.raw_count, channel_blocks](
        mean, variance, parts, blocks, t.pixels, RAWS=t.raw_count, **t.sizes
    )
    terms = *t.xs, *t.raws, *t.scales, skip_seed, *t.dropout
    sum_kernels.form_node[t.tuned_grid](
        node, rectified, *terms, alpha, mean, variance, eps, *t.image, **t.tuned_sizes
    )


def _outputs(xs: Sequence[Tensor], alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    statistics = (xs[0].shape[0], len(xs), 2, xs[0].shape[2])
    mean, variance = (alpha.new_empty(statistics, dtype=torch.float32) for _ in range(2))
    return empty_channels_last(xs[0], xs[0].shape), mean, variance


@_forward.register_fake
def _forward_fake(
    xs: Sequence[Tensor],
    raw_1x1: Sequence[Tensor],
    raw_3x3: Sequence[Tensor],
    alpha: Tensor,
    skip_scale: Sequence[Tensor],
    skip_seed: Tensor | None,
    skip_dropout: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(xs, alpha)


@torch.library.custom_op("vpdarts_triton::mixed_sum_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    xs: list[Tensor],
    raw_1x1: list[Tensor],
    raw_3x3: list[Tensor],
    alpha: Tensor,
    skip_scale: list[Tensor],
    skip_seed: Tensor | None,
    skip_dropout: float,
    eps: float,
    mean: Tensor,
    variance: Tensor,
    wants_xs: list[bool],
    wants_1x1: list[bool],
    wants_3x3: list[bool],
    wants_alpha: bool,
    wants_scale: list[bool],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    """The gradients of xs, raw_1x1, raw_3x3, alpha and skip_scale; those not wanted are empty."""
    found = _gradients(xs[0], alpha, wants_xs, wants_1x1, wants_3x3, wants_alpha, wants_scale)
    of_xs, of_1x1, of_3x3, of_alpha, of_scale = found
    if gradient.numel() == 0:
        return found
    t = Terms(xs, raw_1x1, raw_3x3, skip_scale, skip_dropout)
    blocks, _, variants = t.grid
    rows = 1 + 2 * t.raw_count
    parts = mean.new_empty(variants, blocks, rows, t.channels)
    g, step, table = *pixel_rows(gradient), alpha.contiguous()
    wants_raws = in_turn(wants_1x1, wants_3x3)
    scale_gradients = _or_none(of_scale, wants_scale) or (None,) * len(xs)
    with device_of(gradient):
        sum_kernels.reduce_gradient[t.grid](
            *(parts, _or_none(of_xs, wants_xs), scale_gradients, g, step),
            *(*t.xs, *t.raws, *t.scales, skip_seed, *t.dropout, table, mean, *t.image),
            WANTS_RAWS=tuple(wanted or wants_alpha for wanted in wants_raws),
            WANTS_ALPHA=wants_alpha,
            **t.sizes,
        )
        if not (wants_alpha or any(wants_raws)):
            return found
        totals = mean.new_empty(variants, rows, t.channels)
        sum_kernels.add_up_parts[rows, variants](
            *(totals, of_alpha if wants_alpha else None, parts, blocks, variance, eps),
            ROWS=rows,
            RAWS=t.raw_count,
            EDGES=len(xs),
            NODE=None,
            **t.sizes,
        )
        if any(wants_raws):
            gradients = _or_none(in_turn(of_1x1, of_3x3), wants_raws)
            steps = (t.channels,) * t.raw_count
            sum_kernels.differentiate_raws[t.tuned_grid](
                *(gradients, steps, g, step, *t.raws, table, mean, variance, totals, eps, t.pixels),
                ROWS=rows,
                **t.tuned_sizes,
            )
    return found


def _or_none(gradients: Sequence[Tensor], wants: Sequence[bool]) -> tuple[Tensor | None, ...]:
    return tuple(gradient if wanted else None for gradient, wanted in zip(gradients, wants, strict=True))


def _gradients(
    x: Tensor,
    alpha: Tensor,
    wants_xs: Sequence[bool],
    wants_1x1: Sequence[bool],
    wants_3x3: Sequence[bool],
    wants_alpha: bool,
    wants_scale: Sequence[bool],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    def like_x(wants: Sequence[bool]) -> list[Tensor]:
        return [empty_channels_last(x, (x.shape[0] if wanted else 0, *x.shape[1:])) for wanted in wants]

    of_alpha = alpha.new_empty(alpha.shape[0] if wants_alpha else 0, *alpha.shape[1:])
    return like_x(wants_xs), like_x(wants_1x1), like_x(wants_3x3), of_alpha, like_x(wants_scale)


@_backward.register_fake
def _backward_fake(
    gradient: Tensor,
    xs: Sequence[Tensor],
    raw_1x1: Sequence[Tensor],
    raw_3x3: Sequence[Tensor],
    alpha: Tensor,
    skip_scale: Sequence[Tensor],
    skip_seed: Tensor | None,
    skip_dropout: float,
    eps: float,
    mean: Tensor,
    variance: Tensor,
    wants_xs: Sequence[bool],
    wants_1x1: Sequence[bool],
    wants_3x3: Sequence[bool],
    wants_alpha: bool,
    wants_scale: Sequence[bool],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    return _gradients(xs[0], alpha, wants_xs, wants_1x1, wants_3x3, wants_alpha, wants_scale)


def _differentiate(
    inputs: Sequence[Any], kept: Sequence[Tensor], gradients: Sequence[Any], wants: Sequence[Any]
) -> Sequence[Any]:
    found: Sequence[Any] = _backward(gradients[0], *inputs, *kept, *wants)
    return found


def _plain(
    xs: Sequence[Tensor],
    raw_1x1: Sequence[Tensor],
    raw_3x3: Sequence[Tensor],
    alpha: Tensor,
    skip_scale: Sequence[Tensor],
    skip_seed: Tensor | None,
    skip_dropout: float,
    eps: float,
) -> Tensor:
    terms = xs, raw_1x1, raw_3x3, alpha
    if skip_seed is None:
        return pytorch.mixed_sum(*terms, skip_scale, eps)[0]
    return pytorch_with_dropout(*terms, skip_seed, skip_dropout, eps)[0]


derivatives.register(_forward, range(5), _differentiate, _plain)
