"""Running statistics of each variant, estimated for all variants of a `torch.vmap` at once.

`torch.vmap` updates no buffer in place that variants share. So a batch norm gets an `Estimate` for its
running mean, which keeps what has been found: once where all variants have the same input, as in front of
what differs between them, and else of each variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast.acceleration.vmap import STATISTICS, BatchNorm, batch_norms, of_variants, replaced


class Estimate(Tensor):
    """In place of the running mean of a batch norm in training mode, in `torch.vmap` without gradients.

    Attributes:
        statistics: running mean and variance: [C] as long as all variants have the same, or [V, C].
        estimated: they are of a batch, and not those that it started with.
    """

    statistics: tuple[Tensor, Tensor]
    estimated: bool

    @classmethod
    def starting_from(cls, mean: Tensor, variance: Tensor) -> Estimate:
        """Makes one of running statistics [C], which it starts with."""
        estimate: Estimate = mean.as_subclass(cls)
        estimate.statistics, estimate.estimated = (mean, variance), False
        return estimate

    def include(self, mean: Tensor, variance: Tensor, momentum: float) -> None:
        """Moves the estimate towards one more batch, as a batch norm of this momentum does.

        Args:
            mean: [1, C] if all variants have the same batch, or [V, C].
            variance: likewise, unbiased.
            momentum: the weight of this batch, from 0 to 1.
        """
        pairs = zip(self.statistics, (mean, variance), strict=True)
        self.keep(*(torch.lerp(before, now.to(before), momentum) for before, now in pairs))

    def keep(self, mean: Tensor, variance: Tensor) -> None:
        """Takes a running mean and variance [1 or V, C] in place of those it has."""
        self.statistics = (mean[0], variance[0]) if len(mean) == 1 else (mean, variance)
        self.estimated = True

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """`torch.nn.functional.batch_norm` includes the batch of each variant."""
        if function is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():  # what comes out is no estimate
            return function(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    estimate: Estimate,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Does what `torch.nn.functional.batch_norm` does, with an estimate for the running mean."""
    if not training:
        fixed_mean, fixed_variance = estimate.statistics
        return F.batch_norm(x, fixed_mean, fixed_variance, weight, bias, False, momentum, eps)

    def normalise(x: Tensor) -> Tensor:
        """Normalises `x` [1 or V, N, C, ...] variant by variant; the shape stays the same."""
        mean = estimate.statistics[0].new_zeros(len(x), x.shape[2])
        variance = torch.ones_like(mean)
        out = [F.batch_norm(images, *buffers, weight, bias, True, 1.0, eps)  # type: ignore[call-arg]
               for images, *buffers in zip(x, mean, variance, strict=True)]  # fmt: skip
        estimate.include(mean, variance, momentum)
        return torch.stack(out)

    return of_variants(normalise, x)


def update_estimates(norms: Sequence[BatchNorm], mean: Tensor, variance: Tensor, x: Tensor) -> None:
    """Includes one more batch in the estimates of M batch norms.

    Args:
        norms: M batch norms whose running mean is an `Estimate`, each with a momentum.
        mean: [1 or V, M, C], of the batch.
        variance: likewise, biased.
        x: a tensor of one variant, [N, C, ...], of the size of what they normalised.
    """
    count = x.numel() // x.shape[1]
    unbiased = variance * (count / max(count - 1, 1))
    before, momenta = [], []
    for norm in norms:
        assert isinstance(norm.running_mean, Estimate) and norm.momentum is not None
        before.append(norm.running_mean.statistics)
        momenta.append(norm.momentum)
    means, variances = zip(*before, strict=True)
    kept = zip(
        torch._foreach_lerp(means, mean.to(means[0]).unbind(1), momenta),
        torch._foreach_lerp(variances, unbiased.to(means[0]).unbind(1), momenta),
        strict=True,
    )
    for norm, pair in zip(norms, kept, strict=True):
        assert isinstance(norm.running_mean, Estimate)
        norm.running_mean.keep(*pair)


def of_each_variant(op: nn.Module, x: Tensor) -> list[Tensor]:
    """What a module makes of x [1 or V, N, C, H, W], variant by variant: one value, or V.

    Its batch norms have the running statistics of the variant, of which estimates are kept. It draws the same
    random numbers for all variants.
    """
    norms = [norm for norm in batch_norms(op) if norm.running_mean is not None and _differ(norm.running_mean)]
    before = [_statistics(norm) for norm in norms]
    count = max([len(x), *(len(mean) for mean, _ in before if mean.dim() > 1)])
    values, after = [], []
    for v in range(count):
        buffers = [tuple(_of_variant(values, v).clone() for values in pair) for pair in before]
        with (
            torch.random.fork_rng([x.device] if x.is_cuda else [], enabled=v < count - 1),
            replaced([(norm, name) for norm in norms for name in STATISTICS], [*chain(*buffers)]),
        ):
            values.append(op(x[v if len(x) > 1 else 0]))
        after.append(buffers)
    for norm, *pairs in zip(norms, *after, strict=True):
        if isinstance(norm.running_mean, Estimate):
            norm.running_mean.keep(*map(torch.stack, zip(*pairs, strict=True)))
    return values


def _differ(running_mean: Tensor) -> bool:
    """Whether variants may have running statistics of their own."""
    return isinstance(running_mean, Estimate) or running_mean.dim() > 1


def _statistics(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Mean and variance, [C] or [V, C]."""
    mean, variance = norm.running_mean, norm.running_var
    if isinstance(mean, Estimate):
        return mean.statistics
    assert mean is not None and variance is not None
    return mean, variance


def _of_variant(statistics: Tensor, v: int) -> Tensor:
    """[C], of [C] or [V, C]."""
    return statistics if statistics.dim() == 1 else statistics[v]
