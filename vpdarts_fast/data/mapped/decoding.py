"""From the bytes of an image file to uint8 pixels of one size."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vpdarts_fast.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")
"""Those of Pillow's readers that are asked, whatever a file's name ends with."""

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm",
})  # fmt: skip
"""What names of image files end with, in any case."""

LARGEST_FILE = 1 << 28
"""Bytes of an image file."""

MOST_PIXELS = 89_478_485
"""Of an image before it is resized: Pillow's own limit, a quarter of a GiB as RGB. A small file can ask for
any number."""


def decode(content: bytes | Image, size: int) -> npt.NDArray[np.uint8]:
    """Decodes an image, resizes its shorter side and crops its middle.

    Rotated as its EXIF entry says; of several frames the first; 16 bits a channel are rounded down to 8; what
    is transparent shows white. Colour profiles are left aside.

    Args:
        content: a file of one of `FORMATS`, or an image that Pillow has opened.
        size: height and width of the result, in pixels.

    Returns:
        uint8 [size, size, 3].

    Raises:
        UserError: it is no such file, damaged, or larger than is decoded; says why, not which.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image = content
        if isinstance(image, bytes):
            if not image:
                raise UserError("the file is empty")
            image = Image.open(io.BytesIO(image), formats=FORMATS)
        _check_pixels(image.size)
        if image.format == "JPEG":
            image.draft(None, (2 * size, 2 * size))  # decodes an eighth of it, say, where that will do
        image = _coloured(ImageOps.exif_transpose(image))
        fitted = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return np.asarray(fitted)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"no file of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"more pixels than the {MOST_PIXELS:,} that are decoded") from error
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise UserError(f"cannot be decoded: {str(error) or type(error).__name__}"[:200]) from error


def _check_pixels(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise UserError(f"{width:,} x {height:,} pixels are more than the {MOST_PIXELS:,} that are decoded")


def _coloured(image: Any) -> Image:
    """The image as RGB."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits; of a mode that a conversion would cut off at 255
        grey = np.asarray(image).clip(0, 65_535) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    converted: Image.Image = image.convert("RGB")
    return converted
