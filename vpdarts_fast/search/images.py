"""The images that the settings of a search name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vpdarts_fast.data import ImageData, ImageOptions, MappedImages, SearchImages, load
from vpdarts_fast.data.options import augmentation_of
from vpdarts_fast.errors import UserError
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.settings import ImageSettings
from vpdarts_fast.spaces.stems import with_stem


def load_images(
    images: ImageSettings, place: Path | None = None, *, quiet: bool = False
) -> ImageData | MappedImages:
    """Loads a data set by its settings, or maps it; decodes its files first, if they are to be.

    Args:
        images: the settings.
        place: of the images; None is that of the settings.
        quiet: show neither progress nor warnings.

    Raises:
        UserError: the images are missing, damaged, or cannot be read or fetched.
    """
    return load(
        images.dataset,
        place or images.data,
        download=images.download,
        options=ImageOptions(images.image_size, images.cache, images.skip_corrupt, quiet),
        augment=images.augment,
        cutout=images.cutout,
    )


def as_set(config: SearchConfig, data: SearchImages) -> SearchImages:
    """Images that Python code gave, augmented as the settings say.

    Raises:
        UserError: the settings ask for an augmentation, and the images bring transforms of their own.
    """
    images = config.images
    if images.augment == "standard" and not images.cutout:
        return data
    if not isinstance(data, (ImageData, MappedImages)):
        raise UserError(
            f"--augment and --cutout are for images without transforms of their own, which {data.name} "
            "has: put them among these"
        )
    chosen = augmentation_of(data.augmentation, data.image_size, images.augment, images.cutout)
    return data.with_augmentation(chosen)


def sized(config: SearchConfig, data: SearchImages) -> SearchConfig:
    """The settings with the stem that suits the size of the images, where they leave it to that."""
    return dataclasses.replace(config, space=with_stem(config.space, data.image_size))
