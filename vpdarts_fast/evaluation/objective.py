"""What is minimised and what is measured, by name: losses, and what stands for accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Metric = Literal["accuracy", "balanced-accuracy", "macro-f1"]
"""The share of images that are right; the mean over the classes of the share of each one's images; the mean
over the classes of F1, the harmonic mean of precision and recall. Only classes that images have count."""

LossOfImages = Callable[[Tensor, Tensor], Tensor]
"""Of logits [N, classes] and labels [N], the loss of each image [N]."""


def cross_entropy_of_images(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each image: [N], of logits [N, classes] and labels [N]."""
    return F.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True)
class Objective:
    """What leave-one-out measures.

    Attributes:
        losses: of each image.
        metric: what accuracies are, in per cent.
    """

    losses: LossOfImages = cross_entropy_of_images
    metric: Metric = "accuracy"


@dataclass(frozen=True, eq=False)
class ImageLoss:
    """A loss whose mean training minimises, and that leave-one-out measures image by image.

    Attributes:
        smoothing: the share of the target that all classes have alike (Szegedy et al., 2016).
        gamma: of the focal loss (Lin et al., 2017), `(1 - p)^gamma` times the cross-entropy, p the
            probability of the right class; 0 is the cross-entropy itself.
        weights: of each class, float64 [classes]; None: all weigh alike.
    """

    smoothing: float = 0.0
    gamma: float = 0.0
    weights: Tensor | None = None

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over the images, weighted as they are: [], of logits [N, classes] and labels [N]."""
        losses = self.of_images(logits, labels)
        if self.weights is None:
            return losses.mean()
        return losses.sum() / self._weights(logits)[labels].sum()

    def of_images(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each image, with its weight: [N], of logits [N, classes] and labels [N]."""
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)
        if self.gamma:
            # Below the least number the power's derivative would be infinite times zero.
            missing = -torch.expm1(-losses)
            losses = missing.clamp_min(torch.finfo(losses.dtype).tiny) ** self.gamma * losses
        if self.weights is not None:
            losses = losses * self._weights(logits)[labels]
        return losses

    def _weights(self, like: Tensor) -> Tensor:
        assert self.weights is not None
        return self.weights.to(like)


def class_weights(labels: Tensor, num_classes: int, power: float = 1.0) -> Tensor:
    """The inverse frequency of each class to a power, so scaled that images weigh 1 on average.

    With power 1 they are `N / (classes * images of the class)`, and every class weighs as much as any other.

    Args:
        labels: int64 [N].
        num_classes: how many classes there are; one without images counts as if it had one.
        power: 0 makes all weights 1.

    Returns:
        float64 [classes].
    """
    counts = labels.bincount(minlength=num_classes).double()
    weights = counts.clamp_min(1) ** -power
    scaled: Tensor = weights * (len(labels) / (weights * counts).sum())
    return scaled


def metric_of(metric: Metric, right: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
    """A metric that treats classes alike, in per cent: float64 [...].

    Args:
        metric: balanced-accuracy or macro-f1.
        right: int64 [..., classes], how many images of each class are predicted to be of it.
        predicted: int64 [..., classes], how many images are predicted to be of each class.
        actual: int64 [classes], how many images each class has.
    """
    has = actual > 0
    right, predicted, actual = right[..., has].double(), predicted[..., has].double(), actual[has].double()
    of_classes = right / actual if metric == "balanced-accuracy" else 2 * right / (predicted + actual)
    return 100 * of_classes.mean(-1)


def share_of_images(labels: Tensor) -> Tensor:
    """What each image counts for where classes count alike: float64 [N], 1 together, of labels [N]."""
    counts = labels.bincount()
    share: Tensor = 1 / (counts[labels] * (counts > 0).sum()).double()
    return share
