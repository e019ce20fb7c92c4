"""`mixed_op` in PyTorch: every term that all variants share once, then the weighted sums of all variants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vpdarts_fast.backends.pytorch.norm import batch_norm
from vpdarts_fast.contract.branches import Branch, Given, Norm, Pool, SepConv, Skip, norms
from vpdarts_fast.runtime.precision import wide


class _Normalise:
    """Batch norms in their order, with their own statistics or given ones [M, 2, C]; keeps what they used."""

    def __init__(self, statistics: Tensor | None) -> None:
        self.given = None if statistics is None else wide(statistics.detach())
        self.used: list[Tensor] = []  # [2, C] each

    def __call__(self, raw: Tensor, norm: Norm | None) -> Tensor:
        """Normalises `raw` [N, C, H, W], in float32 or better; the shape stays the same."""
        raw = wide(raw)
        if norm is None:
            return raw
        gamma = raw.new_ones(()) if norm.gamma is None else wide(norm.gamma)
        beta = None if norm.beta is None else wide(norm.beta)
        if self.given is None:
            out, mean, variance = batch_norm(raw, gamma, beta, norm.eps)
            self.used.append(torch.stack([mean, variance]))
            return out
        mean, variance = self.given[len(self.used)]
        self.used.append(self.given[len(self.used)])
        return F.batch_norm(raw, mean, variance, gamma.expand_as(mean), beta, training=False, eps=norm.eps)


def mixed_op(
    x: Tensor,
    alpha: Tensor,
    branches: Sequence[Branch],
    stride: int = 1,
    statistics: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.contract.reference.mixed_op`."""
    variants, rows = len(alpha), wide(alpha)
    per_variant = statistics is not None and statistics.dim() == 4
    different = max([len(x), *(len(branch.raw) for branch in branches if isinstance(branch, Given))])
    different = variants if per_variant else different
    used, outs = [], []
    for v in range(different):
        normalise = _Normalise(statistics[v] if statistics is not None and per_variant else statistics)
        terms = [_term(x[v if len(x) > 1 else 0], branch, v, stride, normalise) for branch in branches]
        used.append(torch.stack(normalise.used) if normalise.used else rows.new_zeros(0, 2, x.shape[2]))
        for row in rows if different == 1 else rows[v : v + 1]:
            outs.append(_weighted_sum(x, row, terms, stride).to(x.dtype))
    shape = variants, len(norms(branches)), 2, x.shape[2]
    mean, variance = torch.stack(used).expand(shape).to(alpha.dtype).unbind(2)
    return outs[0].unsqueeze(0) if variants == 1 else torch.stack(outs), mean, variance


def _weighted_sum(x: Tensor, row: Tensor, terms: Sequence[Tensor | None], stride: int) -> Tensor:
    """sum_o row[o] * terms[o], as x [1 or V, N, C, H, W] but for variants and stride; None is zero."""
    factors, values = row.unbind(), [term for term in terms if term is not None]
    if not values:
        return wide(torch.zeros_like(x[0, :, :, ::stride, ::stride]))
    chosen = [factor for factor, term in zip(factors, terms, strict=True) if term is not None]
    out = values[0] * chosen[0]
    for factor, value in zip(chosen[1:], values[1:], strict=True):
        out = torch.addcmul(out, value, factor)
    return out


def _term(x: Tensor, branch: Branch, v: int, stride: int, normalise: _Normalise) -> Tensor | None:
    """A candidate operation of variant v before its alpha, x [N, C, H, W]; None for zero."""
    if isinstance(branch, Skip):
        return wide(x)
    if isinstance(branch, Pool):
        pooled = (
            F.max_pool2d(x, 3, stride, padding=1)
            if branch.kind == "max"
            else F.avg_pool2d(wide(x), 3, stride, padding=1, count_include_pad=False)
        )
        return normalise(pooled, branch.norm)
    if isinstance(branch, SepConv):
        value = x
        for i, stage in enumerate(branch.stages):
            channels, _, k, _ = stage.depthwise.shape
            step, padding = (stride if i == 0 else 1), stage.dilation * (k - 1) // 2
            rectified = F.relu(value).to(x.dtype)
            depthwise = F.conv2d(
                rectified, stage.depthwise, None, step, padding, stage.dilation, groups=channels
            )
            value = normalise(F.conv2d(depthwise, stage.pointwise), stage.norm)
        return value
    if isinstance(branch, Given):
        return normalise(branch.raw[v if len(branch.raw) > 1 else 0], branch.norm)
    return None
