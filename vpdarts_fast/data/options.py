"""How files of images become the images of a search, and what training images go through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vpdarts_fast.bounds import check_bound
from vpdarts_fast.data.pixels import Augmentation, Policy
from vpdarts_fast.errors import UserError

Augment = Literal["standard", "none", "crop-flip", "autoaugment"]
"""What training images go through: what suits them, nothing, crops and flips, or AutoAugment besides."""

DEFAULT_SIZE = 32
"""Height and width of images from files of any size."""

LARGE = 64
"""From so many pixels on images are large: AutoAugment's policy for ImageNet is theirs then."""


@dataclass(frozen=True)
class ImageOptions:
    """How files of images are read.

    Attributes:
        image_size: height and width that they are brought to, in pixels; None is `DEFAULT_SIZE`.
        cache: the folder for decoded images; None is `vpdarts_fast.data.mapped.cache.default_folder()`.
        skip_corrupt: leave out what cannot be decoded, rather than refuse all.
        quiet: show neither progress nor warnings.

    Raises:
        UserError: a size out of bounds.
    """

    image_size: int | None = None
    cache: Path | None = None
    skip_corrupt: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        check_bound("image_size", self.image_size, "--image-size")

    @property
    def size(self) -> int:
        """Height and width, in pixels."""
        return DEFAULT_SIZE if self.image_size is None else self.image_size


def crop_and_flip(image_size: tuple[int, int]) -> Augmentation:
    """The field's standard for photographs: padded by an eighth of their size, cropped, and mirrored."""
    return Augmentation(padding=min(image_size) // 8, flip=True)


def augmentation_of(
    standard: Augmentation, image_size: tuple[int, int], augment: Augment, cutout: int
) -> Augmentation:
    """What training images go through, by --augment and --cutout.

    Args:
        standard: of the data set.
        image_size: height and width, in pixels.
        augment: `standard` is that of the data set.
        cutout: side of the square that is cut out besides, in pixels.

    Raises:
        UserError: the square is as large as the images, or larger.
    """
    if cutout and cutout >= min(image_size):
        raise UserError(
            f"--cutout must be smaller than the images, {image_size[0]}x{image_size[1]} pixels; got {cutout}"
        )
    policy: Policy = "imagenet" if min(image_size) >= LARGE else "cifar10"
    chosen = {
        "standard": standard,
        "none": Augmentation(padding=0, flip=False),
        "crop-flip": crop_and_flip(image_size),
        "autoaugment": crop_and_flip(image_size).with_policy(policy),
    }[augment]
    return chosen.with_cutout(cutout) if cutout else chosen
