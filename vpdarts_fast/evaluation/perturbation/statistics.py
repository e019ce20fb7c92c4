"""Running statistics of a model's batch norms, of each variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpdarts_fast.acceleration.estimates import Estimate
from vpdarts_fast.acceleration.vmap import STATISTICS, replaced
from vpdarts_fast.evaluation.validation import Batch, Norm, recalibrate


@dataclass(frozen=True)
class Statistics:
    """What batch norms normalise some variants with.

    Attributes:
        norms: the batch norms.
        pairs: running mean and variance of each: [C] where all variants have the same, or [V, C].
    """

    norms: Sequence[Norm] = ()
    pairs: Sequence[tuple[Tensor, Tensor]] = ()

    def select(self, variants: slice | int | Sequence[int]) -> Statistics:
        """Selects the statistics of some of the variants, or of one."""
        pairs = [(mean, variance) if mean.dim() == 1 else (mean[variants], variance[variants])
                 for mean, variance in self.pairs]  # fmt: skip
        return Statistics(self.norms, pairs)

    def use(self) -> None:
        """Gives the batch norms what all variants have in common."""
        for norm, (mean, variance) in zip(self.norms, self.pairs, strict=True):
            if mean.dim() == 1:
                norm._buffers["running_mean"], norm._buffers["running_var"] = mean, variance

    def differing(self) -> list[Tensor]:
        """Lists the statistics that differ between variants, [V, C] each."""
        return [values for pair in self.pairs for values in pair if values.dim() == 2]

    @contextmanager
    def normalising(self, differing: Sequence[Tensor]) -> Iterator[None]:
        """Within, batch norms have what `differing` returns, of one variant, [C] each, in its place."""
        norms = [norm for norm, (mean, _) in zip(self.norms, self.pairs, strict=True) if mean.dim() == 2]
        with replaced([(norm, name) for norm in norms for name in STATISTICS], differing):
            yield


def kept(norms: Sequence[Norm]) -> Statistics:
    """Reads the statistics that batch norms keep now."""
    pairs = []
    for norm in norms:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        pairs.append(mean.statistics if isinstance(mean, Estimate) else (mean, variance))
    return Statistics(norms, pairs)


def estimated(
    model: nn.Module,
    base: Statistics,
    calibration: Sequence[Batch],
    forward: Callable[[Tensor], object],
) -> Statistics:
    """Estimates what batch norms find in calibration batches, by `torch.vmap` over variants.

    Args:
        model: that they are of.
        base: the statistics of the unmodified model: of batch norms that are not called, as what they would
            compute is kept, these are the variants' too.
        calibration: the batches.
        forward: runs the variants on images.
    """
    recalibrate(model, base.norms, calibration, forward, Estimate.starting_from)
    found = [norm.running_mean for norm in base.norms]
    pairs = (
        mean.statistics if isinstance(mean, Estimate) and mean.estimated else pair
        for mean, pair in zip(found, base.pairs, strict=True)
    )
    return Statistics(base.norms, list(pairs))


def joined(parts: Sequence[Statistics], sizes: Sequence[int]) -> Statistics:
    """Joins the statistics of parts into those of all variants; `sizes` says how many variants a part has.

    Of a part with one variant it cannot be told what others have in common with it.
    """
    if len(parts) == 1:
        return parts[0]
    pairs = []
    for candidates in zip(*(part.pairs for part in parts), strict=True):
        sized = zip(candidates, sizes, strict=True)
        common = next((pair for pair, size in sized if size > 1 and pair[0].dim() == 1), None)
        mean, variance = map(_concatenated, zip(*candidates, strict=True))
        pairs.append(common or (mean, variance))
    return Statistics(parts[0].norms, pairs)


def _concatenated(statistics: Sequence[Tensor]) -> Tensor:
    """[V, C], of [C] or [variants, C] each."""
    return torch.cat([values.view(-1, values.shape[-1]) for values in statistics])
