"""How good a network is on some images: loss, and who is taken for whom."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast.data import ImageHalf
from vpdarts_fast.evaluation.objective import Metric, metric_of


@dataclass(frozen=True)
class Scores:
    """What an evaluation came to.

    Attributes:
        loss: the mean cross-entropy.
        confusion: int64 [classes, classes]; in row t and column p how many images of class t were taken for
            class p.
    """

    loss: float
    confusion: Tensor

    @property
    def accuracy(self) -> float:
        """Share of the images that are right, in per cent."""
        return 100 * float(self.confusion.diagonal().sum()) / max(int(self.confusion.sum()), 1)

    @property
    def per_class(self) -> list[float | None]:
        """Share of each class that is right, in per cent; None for a class without images."""
        right, images = self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist()
        return [100 * r / n if n else None for r, n in zip(right, images, strict=True)]

    @property
    def balanced_accuracy(self) -> float:
        """The mean of `per_class` over the classes that have images."""
        return self._by_class("balanced-accuracy")

    @property
    def macro_f1(self) -> float:
        """The mean F1 score, in per cent, over the classes that have images."""
        return self._by_class("macro-f1")

    def _by_class(self, metric: Metric) -> float:
        right, predicted, actual = self.confusion.diagonal(), self.confusion.sum(0), self.confusion.sum(1)
        return float(metric_of(metric, right, predicted, actual))

    def summary(self) -> dict[str, float]:
        """Loss and accuracy, as a line of metrics.jsonl has them."""
        return {"loss": self.loss, "accuracy": self.accuracy}

    def to_json(self) -> dict[str, Any]:
        """All there is to say, as result.json has it."""
        return {
            **self.summary(),
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "per_class": self.per_class,
            "confusion": self.confusion.tolist(),
        }


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: ImageHalf,
    num_classes: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Scores:
    """Evaluates a network on all images as they are, with the batch norms' running statistics.

    Args:
        network: called with images [N, 3, H, W]; its mode stays as it is.
        images: what it is evaluated on.
        num_classes: of its logits.
        batch_size: images in a batch, at most; all batches are of nearly equal size.
        on_batch: called before each batch with the number of those that are done, and may raise.
    """
    mode = network.training
    loss = torch.zeros((), dtype=torch.float64, device=images.device)
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=images.device)
    try:
        network.eval()
        order = torch.arange(len(images), device="cpu")
        for done, indices in enumerate(order.tensor_split(math.ceil(len(images) / batch_size))):
            on_batch(done)
            batch, labels = images.batch(indices)
            logits = network(batch).float()
            loss += F.cross_entropy(logits, labels, reduction="sum").double()
            places = labels * num_classes + logits.argmax(1)
            confusion += torch.bincount(places, minlength=num_classes * num_classes)
    finally:
        network.train(mode)
    return Scores(float(loss) / len(images), confusion.view(num_classes, num_classes).cpu())
