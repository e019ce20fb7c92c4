"""The loss and the metric that the settings of a search name."""

from __future__ import annotations

from typing import Protocol

import torch

from vpdarts_fast.data import SearchImages
from vpdarts_fast.evaluation.objective import (
    ImageLoss,
    LossOfImages,
    Objective,
    class_weights,
    cross_entropy_of_images,
)
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.methods.alpha_rules import Loss


def losses_of(
    config: SearchConfig, images: SearchImages, loss: Loss, device: torch.device
) -> tuple[Loss, Objective]:
    """What training minimises, and what leave-one-out measures.

    Args:
        config: the settings.
        images: those that the search uses, whose labels say how frequent classes are.
        loss: what training minimises where the settings name no other than cross-entropy.
        device: where logits are.
    """
    named = named_loss(config.optimisers, images.train_labels, images.num_classes, device)
    losses: LossOfImages = cross_entropy_of_images if named is None else named.of_images
    return loss if named is None else named, Objective(losses, config.search.metric)


class LossSettings(Protocol):
    """Settings that name a loss, of a search or of a training."""

    @property
    def loss(self) -> str:
        """Its name."""

    @property
    def label_smoothing(self) -> float:
        """Of label-smoothing."""

    @property
    def class_weight_power(self) -> float:
        """Of class-weights."""

    @property
    def focal_gamma(self) -> float:
        """Of focal."""


def named_loss(
    settings: LossSettings, labels: torch.Tensor, num_classes: int, device: torch.device
) -> ImageLoss | None:
    """The loss of a name, for images with these labels [N] int64; None for cross-entropy and a given one."""
    if settings.loss == "label-smoothing":
        return ImageLoss(smoothing=settings.label_smoothing)
    if settings.loss == "focal":
        return ImageLoss(gamma=settings.focal_gamma)
    if settings.loss == "class-weights":
        weights = class_weights(labels, num_classes, settings.class_weight_power)
        return ImageLoss(weights=weights.to(device))
    return None
