"""What all images here have in common: how they are augmented, and the checks and errors of what is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vpdarts_fast.bounds import check_bound
from vpdarts_fast.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """What a training image goes through.

    Attributes:
        padding: pixels of black added on each side before a random crop back to the image's size.
        flip: whether half of the images, chosen at random, are mirrored left to right.
        cutout: side in pixels of the square that is cut out of each normalised image, which is 0 there: the
            mean (DeVries and Taylor, 2017). Its centre is any pixel, so that it may reach over the border, as
            in DARTS; 0 cuts nothing out.

    Raises:
        UserError: negative padding or cutout, or more than a thousand pixels of it.
    """

    padding: int
    flip: bool
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("padding", "cutout"):
            pixels = getattr(self, name)
            if pixels < 0:
                raise UserError(f"augmentation {name} must be 0 pixels or more; got {pixels}")
            check_bound(name, pixels, f"augmentation {name}")


def check_images(images: Tensor, labels: Tensor, *, prefix: str = "") -> None:
    """Checks that images are uint8 [N, H, W, 3] with N, H, W >= 1, and labels int64 [N].

    Args:
        images: what is checked, of any type and shape.
        labels: likewise.
        prefix: put before "images" and "labels" in the message, as in `train_`.

    Raises:
        UserError: they are not.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(f"{prefix}images must be uint8 [N, H, W, 3]; got {describe(images)}")
    if images.numel() == 0:
        raise UserError(f"{prefix}images must hold at least one image; got {describe(images)}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{prefix}labels must be int64 [{len(images)}], one for each image; got {describe(labels)}"
        )


def describe(tensor: Tensor) -> str:
    """Dtype and shape for an error message, as in ``uint8 [5, 8, 8, 3]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def not_found(dataset: str, looked_for: str, remedy: str) -> UserError:
    """The error for a data set that is not there: what was looked for and where, and how to get it."""
    return UserError(
        f"data set {dataset} not found: looked for {looked_for}; {remedy}. "
        "To try the program without any download use `--dataset digits`"
    )
