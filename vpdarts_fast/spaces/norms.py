"""What batch norms keep, and what a fused op does in their place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Fixed = tuple[Tensor, Tensor]
"""Mean and variance that batch norms normalise with, whatever the batch's are."""


def kept_statistics(norms: Sequence[nn.BatchNorm2d]) -> Fixed:
    """Stacks the running means and variances, [norms, C] each, of batch norms of the same width."""
    means = [norm.running_mean for norm in norms if norm.running_mean is not None]
    variances = [norm.running_var for norm in norms if norm.running_var is not None]
    return torch.stack(means), torch.stack(variances)


def normalises_batches(norm: nn.BatchNorm2d) -> bool:
    """Whether a batch norm uses the batch's own statistics: in training, and where it keeps none."""
    return norm.training or norm.running_mean is None


@torch.no_grad()
def update_running_statistics(
    norms: Sequence[nn.BatchNorm2d],
    mean: Tensor,
    variance: Tensor,
    x: Tensor,
    computed: Sequence[bool] | None = None,
) -> None:
    """Does to the buffers of batch norms what a training-mode forward does, to all of them together.

    Args:
        norms: the batch norms.
        mean: [norms, C], of the batch.
        variance: [norms, C], biased, of the batch.
        x: [N, C, H, W], of which the number of values per channel is taken.
        computed: for which norms there are statistics; None for all of them.
    """
    count = x.numel() // x.shape[1]
    unbiased = variance * (count / max(count - 1, 1))
    tracking = [
        (norm.running_mean, norm.running_var, norm.num_batches_tracked, mean[m], unbiased[m], norm.momentum)
        for m, norm in enumerate(norms)
        if norm.running_mean is not None and (computed is None or computed[m])
    ]
    if not tracking:
        return
    means, variances, batches, new_means, new_variances, momenta = zip(*tracking, strict=True)
    if counts := [count for count in batches if count is not None]:
        torch._foreach_add_(counts, 1)
    weights = [
        momentum if momentum is not None else 0.0 if count is None else 1 / float(count)
        for count, momentum in zip(batches, momenta, strict=True)
    ]
    torch._foreach_lerp_(means, new_means, weights)
    torch._foreach_lerp_(variances, new_variances, weights)
