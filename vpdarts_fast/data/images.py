"""What a loaded data set is: uint8 images, labels, class names and how to augment."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vpdarts_fast.data.batches import ImageSet, fits_device, halves_of
from vpdarts_fast.data.pixels import Augmentation, check_images, statistics_of
from vpdarts_fast.data.protocol import Split
from vpdarts_fast.errors import UserError


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set in memory; what a search takes (`vpdarts_fast.data.protocol.SearchImages`).

    Attributes:
        name: as shown to people.
        train_images: uint8 [N, H, W, 3], at least one image; the search takes both its halves from here.
        train_labels: int64 [N], each in 0..len(classes)-1.
        test_images: uint8 [M, H, W, 3], at least one image.
        test_labels: int64 [M], each in 0..len(classes)-1.
        classes: the name of each class.
        augmentation: what training images of this data set go through.

    Raises:
        UserError: a tensor is not as described above.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    augmentation: Augmentation

    def __post_init__(self) -> None:
        if not self.classes:
            raise UserError("classes must name at least one class; got none")
        for split, images, labels in (
            ("train_", self.train_images, self.train_labels),
            ("test_", self.test_images, self.test_labels),
        ):
            check_images(images, labels, prefix=split)
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.num_classes:
                raise UserError(
                    f"{split}labels must be in 0..{self.num_classes - 1}, one number for each of the "
                    f"{self.num_classes} classes; got {low}..{high}"
                )
        if self.test_images.shape[1:] != self.train_images.shape[1:]:
            raise UserError(
                f"test_images must be as large as train_images, [M, {self.image_size[0]}, "
                f"{self.image_size[1]}, 3]; got {list(self.test_images.shape)}"
            )

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train_images.shape[1], self.train_images.shape[2]

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold how a half of it takes a batch."""
        return fits_device(self.train_images, self.augmentation)

    def digest(self) -> str:
        """Of all bytes of the training images and labels."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.train_images, self.train_labels):
            digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
        return f"blake2b {digest.hexdigest()}"

    def subset(self, indices: Tensor) -> ImageData:
        """The data set with only some of its training images, int64 [n], in this order."""
        return dataclasses.replace(
            self, train_images=self.train_images[indices], train_labels=self.train_labels[indices]
        )

    def with_augmentation(self, augmentation: Augmentation) -> ImageData:
        """The same images, whose training images go through something else."""
        return dataclasses.replace(self, augmentation=augmentation)

    def halves(self, seed: int, split: Split = "random") -> tuple[ImageSet, ImageSet]:
        """The training and the validation half, see `split_halves`.

        Raises:
            UserError: fewer than two training images.
        """
        return split_halves(self, seed, split)

    def test_half(self) -> ImageSet:
        """The test images, normalised as the training images are."""
        return ImageSet(self.test_images, self.test_labels, self.mean, self.std, self.augmentation)

    @property
    def mean(self) -> Tensor:
        """Mean of each channel over the training images: float32 [3], in units of 0..255."""
        return self._statistics[0]

    @property
    def std(self) -> Tensor:
        """Population standard deviation of each channel over the training images: float32 [3], 0..255.

        1 for a channel that never changes: it has nothing to scale, and normalises to zeros.
        """
        return self._statistics[1]

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        # Counting the 256 values first makes the sums short, and so exact for any data set size and
        # the same for any thread count.
        channels = self.train_images.flatten(0, 2).unbind(1)
        return statistics_of(torch.stack([torch.bincount(channel, minlength=256) for channel in channels]))


def split_halves(data: ImageData, seed: int, split: Split = "random") -> tuple[ImageSet, ImageSet]:
    """Splits the training images into a training and a validation half (`halves_of`).

    The halves depend on the seed and on the number of images alone; of an odd number the validation
    half gets one more. Both are normalised with the statistics of all training images.

    Raises:
        UserError: fewer than two training images.
    """
    training, validation = (
        ImageSet(data.train_images, data.train_labels, data.mean, data.std, data.augmentation, half)
        for half in halves_of(data.name, len(data.train_images), seed, split)
    )
    return training, validation
