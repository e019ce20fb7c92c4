"""A picture of any kind and size as the images that a network was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor

from vpdarts_fast.data.mapped.decoding import LARGEST_FILE, decode
from vpdarts_fast.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

Source = Union[str, Path, "Image"]
"""The path of a picture, or one that Pillow has opened."""


def normalised(picture: Source, image_size: tuple[int, int], mean: Tensor, std: Tensor) -> Tensor:
    """Brings a picture to a size, as images of folders are, and normalises it: float32 [3, H, W].

    Where height and width differ, the middle is cut out of a square.

    Args:
        picture: what is read.
        image_size: H and W.
        mean: subtracted from each channel, float32 [3] in units of 0..255.
        std: then divides each channel, likewise.

    Raises:
        UserError: a file that cannot be read, or is no picture.
    """
    height, width = image_size
    side = max(height, width)
    try:
        pixels = decode(_content(picture) if isinstance(picture, (str, Path)) else picture, side)
    except UserError as error:
        raise UserError(f"{picture}: {error}") from error
    top, left = (side - height) // 2, (side - width) // 2
    square = torch.from_numpy(pixels.copy())[top : top + height, left : left + width].float()
    return ((square - mean) / std).permute(2, 0, 1)


def _content(path: str | Path) -> bytes:
    try:
        if (size := Path(path).stat().st_size) > LARGEST_FILE:
            raise UserError(f"{size:,} bytes are more than the {LARGEST_FILE:,} that are read of a picture")
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}") from error
