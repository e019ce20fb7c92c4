"""A picture of any kind and size as the images that a network was trained on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
import torch
from torch import Tensor

from vpdarts_fast.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

Source = Union[str, Path, "Image"]
"""The path of a picture, or one that Pillow has opened."""


def normalised(image: Source, image_size: tuple[int, int], mean: Tensor, std: Tensor) -> Tensor:
    """Brings a picture to three channels and to a size, and normalises it: float32 [3, H, W].

    Its orientation is that of its EXIF tag. It is scaled until it covers H x W, and its middle is kept.

    Args:
        image: the picture.
        image_size: H and W.
        mean: subtracted from each channel, float32 [3] in units of 0..255.
        std: then divides each channel, likewise.

    Raises:
        UserError: a file that cannot be read, or is no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    height, width = image_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(image) if isinstance(image, (str, Path)) else image
            upright = ImageOps.exif_transpose(opened).convert("RGB")
            fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    except UnidentifiedImageError as error:
        raise UserError(f"{image} is no picture that Pillow can read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{image} has too many pixels: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read the picture {image}: {error.strerror or error}") from error
    pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32).copy())
    return ((pixels - mean) / std).permute(2, 0, 1)
