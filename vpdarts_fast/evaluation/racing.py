"""Racing: ops leave the evaluation once they cannot be their edge's most important one any more.

Soft pruning asks only for the most important op of each edge, and most ops are far from it: a few hundred
images show that. So the ops of an edge race. All that are still in the race are left out on the same n of N
images, so that every image gives a difference between two of them. Let d be how much less it speaks for an op
than for the leader of its edge. The op is out where, over the n images,

    mean(d) > z * sd(d) * sqrt(1 / n - 1 / N).

What is asked for is the outcome on all N images, not on all images of the world: the bound is the sampling
error of n out of N without replacement, and vanishes at n = N. The normal quantile z pays for every look and
for every comparison of an edge (Bonferroni), so that the op that leads after N images is kept with the stated
confidence, for each edge. Looks are far apart, so that few are paid for.

Where an edge's choice is all that is asked for, its race ends with one op left. Where edges are compared with
each other, as in the DARTS space, how strong the winners are has to be known as well: they go on to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from vpdarts_fast.bounds import check_bound
from vpdarts_fast.errors import UserError

ImageScores = Callable[[Tensor, Tensor], Tensor]
"""Of images or of their sum: losses and right predictions without an op -> how important it is, float64."""

IMAGE_SCORES: Mapping[str, ImageScores] = {
    "accuracy": lambda losses, right: -right.double(),
    "loss": lambda losses, right: losses,
}
"""What ops can race by."""

FIRST_LOOK = 500
"""Images before an op may leave; the normal quantile says little about fewer losses."""

GROWTH = 1.5
"""How many times as many images have been seen at each further look."""


@dataclass(frozen=True)
class Racing:
    """How ops race in leave-one-out evaluation.

    Attributes:
        images: N, how many images are to be evaluated; the batches together hold as many.
        criterion: what makes an op important, of `IMAGE_SCORES`: that the accuracy without it is low, or the
            loss high.
        confidence: the probability, for each edge, that its most important op is that of all N images.

    Raises:
        UserError: a value is out of its range.
    """

    images: int
    criterion: str
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_bound("race_images", self.images)
        check_bound("race_confidence", self.confidence)
        if self.criterion not in IMAGE_SCORES:
            known = " or ".join(IMAGE_SCORES)
            raise UserError(f"the criterion of a race must be {known}; got {self.criterion!r}")

    def looks(self) -> list[int]:
        """After how many images ops may leave, at the earliest."""
        counts, count = [], float(FIRST_LOOK)
        while count < self.images:
            counts.append(round(count))
            count *= GROWTH
        return counts


class Race:
    """The ops of every edge, and what they have shown so far.

    Args:
        racing: the rules.
        number: [E, O] int64, on the CPU: which of V variants each op is judged by, 0 the unmodified model.
            Ops of one variant cannot be told apart, and race as one.
        to_the_end: the last op of an edge is evaluated on all images, so that edges can be compared. Ops of
            variant 0 do not race then, neither `none` nor what an edge has not: they are known on all images
            anyway, and can be compared with the last op.
        keeps: the variants keep an op instead of leaving it out, so that the less is lost the more important
            it is.
    """

    def __init__(
        self, racing: Racing, number: Tensor, *, to_the_end: bool = False, keeps: bool = False
    ) -> None:
        self._racing, self._number, self._to_the_end, self._keeps = racing, number, to_the_end, keeps
        self._edges = [sorted({*variants} - ({0} if to_the_end else set())) for variants in number.tolist()]
        self._looks = racing.looks()
        rivals = max(len(variants) for variants in self._edges) - 1
        self._z = NormalDist().inv_cdf(1 - (1 - racing.confidence) / max(len(self._looks) * rivals, 1))
        variants = int(number.max()) + 1
        self._sums = torch.zeros(variants, dtype=torch.float64, device="cpu")
        self._products = torch.zeros(variants, variants, dtype=torch.float64, device="cpu")
        self._seen = 0
        self._images = torch.zeros_like(number)

    def scores(self, losses: Tensor, right: Tensor) -> Tensor:
        """How important the op is that a variant is about, float64, by images or by their sum."""
        scores = IMAGE_SCORES[self._racing.criterion](losses, right)
        return -scores if self._keeps else scores

    @property
    def running(self) -> list[int]:
        """The variants still needed, in ascending order, the unmodified model among them."""
        needed = [v for variants in self._edges for v in variants if self._to_the_end or len(variants) > 1]
        return sorted({0, *needed})

    @property
    def decided(self) -> bool:
        """Whether every edge has its most important op."""
        return all(len(variants) <= 1 for variants in self._edges)

    @property
    def over(self) -> bool:
        """Whether nothing is left to evaluate."""
        return self.decided and not self._to_the_end

    def images_of_ops(self, seen: int) -> Tensor:
        """Counts on how many images each op was evaluated: [E, O] int64.

        Args:
            seen: how many images have been seen when the evaluation ends.
        """
        images = self._images.clone()
        for edge, variants in enumerate(self._edges):
            if self._to_the_end:
                images[edge, self._are([0, *variants], edge)] = seen
            elif len(variants) > 1:
                images[edge, self._are(variants, edge)] = seen
        return images

    def look_is_due(self, images: int) -> bool:
        """Whether ops may leave, now that so many images have been seen."""
        return bool(self._looks) and images >= self._looks[0] and not self.decided

    def look(self, images: int, sums: Tensor, products: Tensor) -> None:
        """Takes those ops out of the race that cannot lead their edge any more.

        Args:
            images: how many have been seen since the look before.
            sums: [R] float64, on the CPU: of the scores of the running variants on these images.
            products: [R, R] likewise, of every two of them.
        """
        running = torch.tensor(self.running, device="cpu")
        self._seen += images
        self._sums[running] += sums
        self._products[running[:, None], running] += products
        self._looks = [look for look in self._looks if look > self._seen]
        for edge, variants in enumerate(self._edges):
            if len(variants) <= 1:
                continue
            self._images[edge, self._are(variants, edge)] = self._seen
            stays = self._may_lead(torch.tensor(variants, device="cpu")).tolist()
            self._edges[edge] = [v for v, kept in zip(variants, stays, strict=True) if kept]

    def _are(self, variants: Sequence[int], edge: int) -> Tensor:
        """Marks the ops of an edge that are judged by some of these variants: [O] bool."""
        return torch.isin(self._number[edge], torch.tensor(variants, device="cpu"))

    def _may_lead(self, variants: Tensor) -> Tensor:
        """Of some variants [R] that have seen the same images, which might lead after all N of them."""
        n = self._seen
        mean = self._sums[variants] / n
        leader = variants[mean.argmax()]
        behind = mean.max() - mean
        squares = self._products.diagonal()
        squared = (squares[leader] + squares[variants] - 2 * self._products[leader, variants]) / n
        variance = (squared - behind.square()).clamp_min(0) * (n / max(n - 1, 1))
        left = max(1 / n - 1 / self._racing.images, 0.0)
        may_not: Tensor = behind > self._z * (variance * left).sqrt()
        return ~may_not  # of losses that are not finite, too: whoever asked is told of them
