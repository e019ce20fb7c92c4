"""What all images here have in common: how they are augmented, and the checks and errors of what is given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vpdarts_fast.bounds import check_bound
from vpdarts_fast.errors import UserError

Policy = Literal["none", "cifar10", "imagenet"]


@dataclass(frozen=True)
class Augmentation:
    """What a training image goes through.

    Attributes:
        padding: pixels of black added on each side before a random crop back to the image's size.
        flip: whether half of the images, chosen at random, are mirrored left to right.
        cutout: side in pixels of the square that is cut out of each normalised image, which is 0 there: the
            mean (DeVries and Taylor, 2017). Its centre is any pixel, so that it may reach over the border, as
            in DARTS; 0 cuts nothing out.
        policy: of AutoAugment (Cubuk et al., 2019), `cifar10` or `imagenet`, as torchvision has it, between
            flip and cutout.

    Raises:
        UserError: negative padding or cutout, or more than a thousand pixels of it.
    """

    padding: int
    flip: bool
    cutout: int = 0
    policy: Policy = "none"

    def __post_init__(self) -> None:
        for name in ("padding", "cutout"):
            pixels = getattr(self, name)
            if pixels < 0:
                raise UserError(f"augmentation {name} must be 0 pixels or more; got {pixels}")
            check_bound(name, pixels, f"augmentation {name}")

    def with_cutout(self, side: int) -> Augmentation:
        """The same with another cutout."""
        return dataclasses.replace(self, cutout=side)

    def with_policy(self, policy: Policy) -> Augmentation:
        """The same with another policy."""
        return dataclasses.replace(self, policy=policy)


def statistics_of(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each channel: float32 [3] each, in units of 0..255.

    The deviation is 1 for a channel that never changes: it has nothing to scale, and normalises to zeros.

    Args:
        counts: [3, 256], how often each value is in each channel.
    """
    counts = counts.double()
    share = counts / counts.sum(dim=1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64, device="cpu")
    mean = (share * values).sum(dim=1)
    std = (share * (values - mean[:, None]).square()).sum(dim=1).sqrt()
    std = torch.where((counts > 0).sum(dim=1) > 1, std, 1.0)
    return mean.float(), std.float()


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
