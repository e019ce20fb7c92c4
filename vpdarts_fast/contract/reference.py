"""The specification of every fused op: textbook PyTorch, any floating dtype, differentiable.

Every backend is held against these functions by the tests; none of them is fast. Variants share one
leading axis V (the supernet under V alpha tables), images the next one N. Alpha's columns are
`none`, `skip_connect`, `nor_conv_1x1`, `nor_conv_3x3`, `avg_pool_3x3`.

Activations and weights have one dtype. Alphas and statistics (mean and variance; gamma, beta, scale and
shift) have it too, or float32 beside half precision. Sums are float32 or better, and each result is
rounded once: activations to the dtype of activations, statistics to that of alpha or gamma. Returned
statistics have no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vpdarts_fast.contract.branches import Branch, Given, Norm, Pool, SepConv, Skip, Stage
from vpdarts_fast.contract.dropout import skip_scale
from vpdarts_fast.runtime.precision import wide


def without_op(alpha: Tensor, edge: int, op: int, renormalised: bool = False) -> Tensor:
    """The alpha table of a supernet without an op on an edge, as leave-one-out evaluates it.

    The op's alpha is 0. Renormalised, the edge's others are scaled up, so that it carries as much as before:
    with k over all ops but `none`, which adds nothing to an edge::

        alpha[edge, j] * sum_k |alpha[edge, k]| / sum_(k != op) |alpha[edge, k]|

    They stay as they are where that factor is not finite: the others are 0, or next to it.

    Args:
        alpha: [E, 5].
        edge: 0..E-1.
        op: a column of alpha.
        renormalised: whether the others are scaled.

    Returns:
        [E, 5], a new tensor.
    """
    table = alpha.clone()
    table[edge, op] = 0
    factor = alpha[edge, 1:].abs().sum() / table[edge, 1:].abs().sum()
    if renormalised and factor.isfinite():
        table[edge, 1:] *= factor
    return table


def avg_pool_3x3(x: Tensor, stride: int = 1) -> Tensor:
    """Averages over 3x3 pixels, the padding not counted; with stride 1, [N, C, H, W] keeps its shape."""
    return F.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False)


def relu_conv(x: Tensor, weight_1x1: Tensor, weight_3x3: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The convolutions of all k edges that leave a node, before batch norm: conv_e(relu(x)).

    Args:
        x: [N, C, H, W], the node.
        weight_1x1: [k, C, C, 1, 1].
        weight_3x3: [k, C, C, 3, 3].

    Returns:
        The raw outputs of the k 1x1 and of the k 3x3 convolutions, each [N, C, H, W].
    """
    rectified = F.relu(x)
    raw_1x1 = [F.conv2d(rectified, weight) for weight in weight_1x1]
    raw_3x3 = [F.conv2d(rectified, weight, padding=1) for weight in weight_3x3]
    return raw_1x1, raw_3x3


def relu_pointwise(x: Tensor, weights: Sequence[Tensor], stride: int = 1) -> Tensor:
    """One or two 1x1 convolutions of relu(x) side by side, before batch norm.

    One is the convolution of a `ReLUConvBN`, two at stride 2 are those of a factorised reduce: the second one
    reads the pixel that is one further in both directions, and zero where that is outside of the image.

    Args:
        x: [N, C, H, W].
        weights: of one convolution, or at stride 2 of one or two, each [C_i, C, 1, 1].
        stride: 1 or 2.

    Returns:
        [N, sum of C_i, ceil(H / stride), ceil(W / stride)].
    """
    rectified = F.relu(x)
    further = F.pad(rectified, (0, 1, 0, 1))[:, :, 1:, 1:]
    inputs = (rectified, further)[: len(weights)]
    return torch.cat([F.conv2d(r, w, stride=stride) for r, w in zip(inputs, weights, strict=True)], dim=1)


def mixed_sum(
    xs: Sequence[Tensor],
    raw_1x1: Sequence[Tensor],
    raw_3x3: Sequence[Tensor],
    alpha: Tensor,
    skip_scale: Sequence[Tensor] = (),
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """A node from its k incoming edges, convolutions normalised with the batch's own statistics.

    As the paper's Eq. 3 has it::

        node = sum_e alpha[e, skip] * skip_scale_e * x_e + alpha[e, 1x1] * norm(raw_1x1_e)
                   + alpha[e, 3x3] * norm(raw_3x3_e) + alpha[e, pool] * pool(x_e)

    Args:
        xs: k source nodes, each [V, N, C, H, W].
        raw_1x1: k raw convolution outputs of `relu_conv`, each [V, N, C, H, W].
        raw_3x3: likewise.
        alpha: [V, k, 5].
        skip_scale: none, or k factors on the skip connections (dropout), each [V, N, C, H, W].
        eps: batch norm's epsilon.

    Returns:
        node [V, N, C, H, W]; mean [V, k, 2, C] and biased variance [V, k, 2, C] of the raw outputs
        (1x1 first), over N, H and W.
    """
    node = torch.zeros_like(wide(xs[0]))
    means, variances = [], []
    for e, x in enumerate(map(wide, xs)):
        _, skip, conv_1x1, conv_3x3, pool = wide(alpha)[:, e, :, None, None, None, None].unbind(1)
        node = node + skip * (x * skip_scale[e] if skip_scale else x)
        node = node + pool * avg_pool_3x3(x.flatten(0, 1)).view_as(x)
        for weight, raw in ((conv_1x1, wide(raw_1x1[e])), (conv_3x3, wide(raw_3x3[e]))):
            variance, mean = torch.var_mean(raw, dim=(1, 3, 4), correction=0, keepdim=True)
            node = node + weight * (raw - mean) / torch.sqrt(variance + eps)
            means.append(mean.detach().flatten(1))
            variances.append(variance.detach().flatten(1))
    variants, k = alpha.shape[:2]
    shape = (variants, k, 2, xs[0].shape[2])
    mean, variance = (torch.stack(some, dim=1).view(shape).to(alpha.dtype) for some in (means, variances))
    return node.to(xs[0].dtype), mean, variance


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
    """A whole cell for V alpha tables, batch norms with the batch's own statistics.

    Args:
        x: the cell's input, [V, N, C, H, W], or [1, N, C, H, W] shared by all variants.
        weight_1x1: [E, C, C, 1, 1]; edges in the order 0->1, 0->2, 1->2, ... of a cell in which every
            node feeds every later one.
        weight_3x3: [E, C, C, 3, 3].
        alpha: [V, E, 5].
        skip_seed: none, or [E] int64, the seeds of the dropout behind the skip connections.
        skip_dropout: its probability.
        eps: batch norm's epsilon.
        skip_zeros: convolutions whose alpha is 0 count as not computed: their mean and variance are 0.

    Returns:
        The last node, [V, N, C, H, W]; mean and biased variance [V, E, 2, C] of the convolutions' outputs
        (1x1 first), over N, H and W.
    """
    outputs = []
    for v, table in enumerate(alpha):
        nodes = [x[v if len(x) > 1 else 0][None]]
        statistics = []
        while (first := len(nodes) * (len(nodes) - 1) // 2) < len(table):
            edges = range(first, first + len(nodes))
            raws = [
                relu_conv(node[0], weight_1x1[e : e + 1], weight_3x3[e : e + 1])
                for e, node in zip(edges, nodes, strict=True)
            ]
            scales = []
            if skip_seed is not None and skip_dropout > 0:
                scales = [skip_scale(int(skip_seed[e]), skip_dropout, wide(x[0]))[None] for e in edges]
            node, mean, variance = mixed_sum(
                nodes,
                [raw_1x1[0][None] for raw_1x1, _ in raws],
                [raw_3x3[0][None] for _, raw_3x3 in raws],
                table[None, edges.start : edges.stop],
                scales,
                eps,
            )
            nodes.append(node)
            statistics.append((mean[0], variance[0]))
        means, variances = zip(*statistics, strict=True)
        outputs.append((nodes[-1][0], torch.cat(means), torch.cat(variances)))
    node, mean, variance = (torch.stack(some) for some in zip(*outputs, strict=True))
    if skip_zeros:
        computed = alpha[:, :, 2:4, None] != 0
        mean, variance = torch.where(computed, mean, 0), torch.where(computed, variance, 0)
    return node, mean, variance


def masked_cell(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    mean: Tensor,
    variance: Tensor,
    alpha: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """A whole cell for V alpha tables, batch norms with fixed statistics.

    Args:
        x: the cell's input, [V, N, C, H, W], or [1, N, C, H, W] shared by all variants.
        weight_1x1: [E, C, C, 1, 1]; edges in the order 0->1, 0->2, 1->2, ... of a cell in which every
            node feeds every later one.
        weight_3x3: [E, C, C, 3, 3].
        mean: [E, 2, C], of the 1x1 and the 3x3 convolution, or [V, E, 2, C] where each variant has its own.
        variance: [E, 2, C] or [V, E, 2, C], as mean.
        alpha: [V, E, 5].
        eps: batch norm's epsilon.

    Returns:
        The last node, [V, N, C, H, W].
    """
    dtype = x.dtype
    x, weight_1x1, weight_3x3 = wide(x), wide(weight_1x1), wide(weight_3x3)
    means, variances = (wide(some).expand(len(alpha), -1, -1, -1) for some in (mean, variance))
    outputs = []
    for v, table in enumerate(wide(alpha)):
        mean, variance = means[v], variances[v]
        nodes = [x[v if len(x) > 1 else 0]]
        e = 0
        while e < len(table):
            node = torch.zeros_like(nodes[0])
            for source in list(nodes):
                (raw_1x1,), (raw_3x3,) = relu_conv(source, weight_1x1[e : e + 1], weight_3x3[e : e + 1])
                node = (
                    node
                    + table[e, 1] * source
                    + table[e, 2] * F.batch_norm(raw_1x1, mean[e, 0], variance[e, 0], eps=eps)
                    + table[e, 3] * F.batch_norm(raw_3x3, mean[e, 1], variance[e, 1], eps=eps)
                    + table[e, 4] * avg_pool_3x3(source)
                )
                e += 1
            nodes.append(node)
        outputs.append(nodes[-1])
    return torch.stack(outputs).to(dtype)


def residual_block(
    x: Tensor, weight_a: Tensor, weight_b: Tensor, weight_shortcut: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    """The block between two stages, each batch norm a factor and a shift per channel.

    Args:
        x: [N, C, H, W].
        weight_a: [C_out, C, 3, 3], of stride 2.
        weight_b: [C_out, C_out, 3, 3].
        weight_shortcut: [C_out, C, 1, 1], behind a 2x2 average pool.
        scale: [2, C_out], of the batch norms behind the convolutions a and b.
        shift: [2, C_out].

    Returns:
        [N, C_out, ceil(H/2), ceil(W/2)].
    """
    scale_a, scale_b = wide(scale)[:, :, None, None]
    shift_a, shift_b = wide(shift)[:, :, None, None]
    a = scale_a * F.conv2d(F.relu(wide(x)), wide(weight_a), stride=2, padding=1) + shift_a
    b = scale_b * F.conv2d(F.relu(a), wide(weight_b), padding=1) + shift_b
    out: Tensor = b + F.conv2d(F.avg_pool2d(wide(x), 2, ceil_mode=True), wide(weight_shortcut))
    return out.to(x.dtype)


def trained_residual_block(
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    weight_shortcut: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """The block between two stages, batch norms with the batch's own statistics.

    Args:
        x: [N, C, H, W].
        weight_a: [C_out, C, 3, 3], of stride 2.
        weight_b: [C_out, C_out, 3, 3].
        weight_shortcut: [C_out, C, 1, 1], behind a 2x2 average pool.
        gamma: [2, C_out], what the batch norms behind a and b multiply the normalised values with.
        beta: [2, C_out], what they add.
        eps: batch norm's epsilon.

    Returns:
        [N, C_out, ceil(H/2), ceil(W/2)]; mean and biased variance [2, C_out] of the outputs of the
        convolutions a and b, over N and both sizes.
    """
    value = wide(x)
    means, variances = [], []
    for weight, factor, shift, stride in zip(
        (weight_a, weight_b), wide(gamma), wide(beta), (2, 1), strict=True
    ):
        raw = F.conv2d(F.relu(value), wide(weight), stride=stride, padding=1)
        variance, mean = torch.var_mean(raw, dim=(0, 2, 3), correction=0, keepdim=True)
        normalised = (raw - mean) / torch.sqrt(variance + eps)
        value = factor[:, None, None] * normalised + shift[:, None, None]
        means.append(mean.detach().flatten())
        variances.append(variance.detach().flatten())
    out = value + F.conv2d(F.avg_pool2d(wide(x), 2, ceil_mode=True), wide(weight_shortcut))
    return out.to(x.dtype), torch.stack(means).to(gamma.dtype), torch.stack(variances).to(gamma.dtype)


def mixed_op(
    x: Tensor,
    alpha: Tensor,
    branches: Sequence[Branch],
    stride: int = 1,
    statistics: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The mixed operation of one edge, sum_o alpha[o] * op_o(x) (paper, Eq. 3).

    Args:
        x: [1 or V, N, C, H, W], the node that the edge leaves.
        alpha: [V, O].
        branches: O candidate operations, with M batch norms.
        stride: 1 or 2, of pools and of first stages.
        statistics: [M, 2, C], mean and variance to normalise with, constants, or [V, M, 2, C] where each
            variant has its own; or none: the batch's own.

    Returns:
        [V, N, C, H', W'], H' = ceil(H / stride); mean and variance [V, M, C] that normalised, the batch's own
        biased and over N, H' and W'.
    """
    outputs, means, variances = [], [], []
    for v, row in enumerate(wide(alpha)):
        own = wide(x[v if len(x) > 1 else 0])
        out = torch.zeros_like(own[:, :, ::stride, ::stride])
        normalise = _Normalise(None if statistics is None else statistics.expand(len(alpha), -1, -1, -1)[v])
        for branch, factor in zip(branches, row, strict=True):
            out = out + factor * _term(own, branch, v, stride, normalise)
        outputs.append(out)
        blank = [own.new_zeros(0, own.shape[1])]
        means.append(torch.cat([*blank, *(mean[None] for mean, _ in normalise.used)]))
        variances.append(torch.cat([*blank, *(variance[None] for _, variance in normalise.used)]))
    mean, variance = torch.stack(means).to(alpha.dtype), torch.stack(variances).to(alpha.dtype)
    return torch.stack(outputs).to(x.dtype), mean, variance


class _Normalise:
    """The batch norms of `mixed_op`, in their order, and the statistics that they used."""

    def __init__(self, given: Tensor | None) -> None:
        self.given = given
        self.used: list[tuple[Tensor, Tensor]] = []

    def __call__(self, raw: Tensor, norm: Norm | None) -> Tensor:
        """Normalises `raw` [N, C, H, W]; the shape stays the same."""
        if norm is None:
            return raw
        if self.given is None:
            variance, mean = torch.var_mean(raw, dim=(0, 2, 3), correction=0)
        else:
            mean, variance = wide(self.given[len(self.used)].detach())
        self.used.append((mean.detach(), variance.detach()))
        out = (raw - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + norm.eps)
        out = out if norm.gamma is None else wide(norm.gamma)[:, None, None] * out
        return out if norm.beta is None else out + wide(norm.beta)[:, None, None]


def _term(x: Tensor, branch: Branch, v: int, stride: int, normalise: _Normalise) -> Tensor:
    """A candidate operation of variant v, x [N, C, H, W]."""
    if isinstance(branch, Skip):
        return x
    if isinstance(branch, Pool):
        pooled = F.max_pool2d(x, 3, stride, padding=1) if branch.kind == "max" else avg_pool_3x3(x, stride)
        return normalise(pooled, branch.norm)
    if isinstance(branch, SepConv):
        for i, stage in enumerate(branch.stages):
            x = normalise(_separable(x, stage, stride if i == 0 else 1), stage.norm)
        return x
    if isinstance(branch, Given):
        return normalise(wide(branch.raw[v if len(branch.raw) > 1 else 0]), branch.norm)
    return torch.zeros((), dtype=x.dtype, device=x.device)


def _separable(x: Tensor, stage: Stage, stride: int) -> Tensor:
    """Pointwise convolution of the depthwise one of relu(x)."""
    channels, _, k, _ = stage.depthwise.shape
    padding = stage.dilation * (k - 1) // 2
    depthwise = F.conv2d(
        F.relu(x), wide(stage.depthwise), None, stride, padding, stage.dilation, groups=channels
    )
    return F.conv2d(depthwise, wide(stage.pointwise))
