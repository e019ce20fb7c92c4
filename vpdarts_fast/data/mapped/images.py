"""Images that stay in their file: what a search takes of a cache."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vpdarts_fast.command_line import warn
from vpdarts_fast.data.batches import ImageSet, fits_device, halves_of
from vpdarts_fast.data.mapped.cache import Cache, corrupt_error, default_folder, open_cache
from vpdarts_fast.data.mapped.listing import Listing, counted, identity_of
from vpdarts_fast.data.options import ImageOptions, crop_and_flip
from vpdarts_fast.data.pixels import Augmentation, statistics_of
from vpdarts_fast.data.protocol import Split
from vpdarts_fast.errors import UserError


@dataclass(frozen=True, eq=False)
class MappedImages:
    """A data set whose images are mapped from a file, so that there may be more of them than memory.

    What a search takes (`vpdarts_fast.data.protocol.SearchImages`). Its parts have numbers of images, and no
    copies.

    Attributes:
        name: as shown to people.
        images: uint8 [M, H, W, 3], all of the file.
        labels: int64 [M], each in 0..len(classes)-1.
        places: int64 [N], which of them a search may use.
        test_places: int64 [T], which of them test; may be none.
        classes: the name of each class.
        augmentation: what training images go through.
        mean: of each channel over the images that a search may use: float32 [3], in units of 0..255.
        std: likewise the deviation, by `vpdarts_fast.data.pixels.statistics_of`.
        content: a digest of all images and labels.
    """

    name: str
    images: Tensor
    labels: Tensor
    places: Tensor
    test_places: Tensor
    classes: tuple[str, ...]
    augmentation: Augmentation
    mean: Tensor
    std: Tensor
    content: str

    @property
    def train_labels(self) -> Tensor:
        """int64 [N], of the images that a search may use."""
        return self.labels[self.places]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold how a half of it takes a batch."""
        return fits_device(self.images, self.augmentation)

    def digest(self) -> str:
        """Of all images and labels of the file, and of which the search may use."""
        return f"mapped blake2b {identity_of([self.content, self.places.numpy().tobytes().hex()])}"

    def subset(self, indices: Tensor) -> MappedImages:
        """The data set with only some of its training images, int64 [n], in this order.

        They stay normalised by the mean and the deviation of all.
        """
        return dataclasses.replace(self, places=self.places[indices])

    def with_augmentation(self, augmentation: Augmentation) -> MappedImages:
        """The same images, whose training images go through something else."""
        return dataclasses.replace(self, augmentation=augmentation)

    def halves(self, seed: int, split: Split = "random") -> tuple[ImageSet, ImageSet]:
        """A training and a validation half; which images are in which is as in `ImageData`.

        Raises:
            UserError: fewer than two images.
        """
        training, validation = halves_of(self.name, len(self.places), seed, split)
        return self._half(self.places[training]), self._half(self.places[validation])

    def test_half(self) -> ImageSet:
        """The test images, normalised as the training images are.

        Raises:
            UserError: there are none.
        """
        if not len(self.test_places):
            raise UserError(f"{self.name} has no test images: add a folder test beside train, or more images")
        return self._half(self.test_places)

    def _half(self, places: Tensor) -> ImageSet:
        return ImageSet(self.images, self.labels, self.mean, self.std, self.augmentation, places)


def mapped(listing: Listing, options: ImageOptions) -> MappedImages:
    """The images of a listing, out of their cache; decoded first where there is none.

    Raises:
        UserError: images cannot be decoded and are not to be skipped, no class or only one is left, or the
            cache cannot be written.
    """
    folder = default_folder() if options.cache is None else options.cache.expanduser()
    cache = open_cache(listing, options.size, folder, quiet=options.quiet)
    if cache.corrupt_count and not options.skip_corrupt:
        raise corrupt_error(listing.name, list(cache.corrupt), cache.corrupt_count)
    _check_classes(listing, cache)
    if not options.quiet:
        skipped = (f"left out {counted(cache.corrupt_count, 'image', 'images')} that cannot be decoded: "
                   f"{'; '.join(cache.corrupt)}",) if cache.corrupt_count else ()  # fmt: skip
        for note in (*listing.notes, *(f"{listing.name}: {text}" for text in (*skipped, *cache.repeated))):
            warn(note)
    mean, std = statistics_of(torch.from_numpy(cache.counts))
    size = options.size, options.size
    return MappedImages(
        name=listing.name,
        images=torch.from_numpy(cache.images),
        labels=torch.from_numpy(cache.labels),
        places=torch.arange(cache.training, device="cpu"),
        test_places=torch.arange(cache.training, len(cache.labels), device="cpu"),
        classes=listing.classes,
        augmentation=crop_and_flip(size),
        mean=mean,
        std=std,
        content=cache.digest,
    )


def _check_classes(listing: Listing, cache: Cache) -> None:
    """Raises `UserError` where all images of a class were left out."""
    used = np.bincount(cache.labels[: cache.training], minlength=len(listing.classes))
    empty = [name for name, count in zip(listing.classes, used, strict=True) if not count]
    if empty:
        raise UserError(
            f"{listing.name}: no image of {', '.join(empty[:10])} can be decoded: {'; '.join(cache.corrupt)}"
        )
