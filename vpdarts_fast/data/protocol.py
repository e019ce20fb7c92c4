"""What a search has to know of its images, wherever they come from."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

Split = Literal["random", "ranges", "shared"]
"""How the two halves of a search are divided (`vpdarts_fast.data.batches.halves_of`)."""


class ImageHalf(Protocol):
    """One half of the images: it trains the weights, or it trains alpha and validates."""

    def __len__(self) -> int:
        """How many images it has."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @property
    def device(self) -> torch.device:
        """Where `take` makes batches."""

    def draw(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What `take` is to do: all that is random of a batch is drawn here.

        Args:
            indices: int64 [B], each in 0..len(self)-1.
            generator: a CPU generator; None takes images as an evaluation does.

        Returns:
            int64 [R, B], with as many rows R as the images need; columns may be taken apart and put together.
        """

    def take(self, draw: Tensor) -> tuple[Tensor, Tensor]:
        """The batch that `draw` [R, B], on the set's device, describes; the same bits every time.

        Returns:
            Images, float32 [B, 3, H, W], and labels, int64 [B], on the set's device.
        """

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """`take` of `draw`."""

    def to(self, device: torch.device) -> ImageHalf:
        """The same half, whose batches are made on a device."""


@runtime_checkable
class SearchImages(Protocol):
    """The images of a search, before they are divided into halves."""

    @property
    def name(self) -> str:
        """As shown to people."""

    @property
    def train_labels(self) -> Tensor:
        """int64 [N], on the CPU, each in 0..num_classes-1: one for each image that the search may use."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold how a half of it takes a batch: all of it happens on the device."""

    def digest(self) -> str:
        """Text that is the same for the same images, so that a search is not continued on others."""

    def subset(self, indices: Tensor) -> SearchImages:
        """Only some of the images, int64 [n], in this order."""

    def halves(self, seed: int, split: Split = "random") -> tuple[ImageHalf, ImageHalf]:
        """A training and a validation half, by `vpdarts_fast.data.batches.halves_of`.

        Raises:
            UserError: fewer than two images.
        """
