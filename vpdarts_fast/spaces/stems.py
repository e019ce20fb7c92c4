"""The first layers of a network, which may halve large images before the cells see them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar, get_args

from torch import nn

from vpdarts_fast.errors import UserError

Stem = Literal["auto", "plain", "halving", "quartering"]
"""What the first layers do to the height and the width of images; `auto` is `stem_of` their size."""

REDUCTIONS = {"auto": 1, "plain": 1, "halving": 2, "quartering": 4}
"""How many times smaller images are behind each stem. A network alone does not know the size of its images:
`auto` is plain there."""

HALVED_FROM, QUARTERED_FROM = 64, 128
"""Pixels of height and width."""


def make_stem(channels: int, stem: Stem) -> nn.Sequential:
    """Makes the first layers: images [N, 3, H, W] -> [N, channels, H / r, W / r], rounded up.

    Its parts are two, what convolves and a batch norm, so that evaluations treat all stems alike.
    `quartering` has two convolutions with a ReLU between them, as the ImageNet networks of DARTS begin.

    Raises:
        UserError: there is no such stem.
    """
    check_stem(stem, "stem")
    convolving: nn.Module
    if stem == "quartering":
        half = max(channels // 2, 1)
        convolving = nn.Sequential(
            nn.Conv2d(3, half, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(half, channels, 3, stride=2, padding=1, bias=False),
        )
    else:
        convolving = nn.Conv2d(3, channels, 3, stride=REDUCTIONS[stem], padding=1, bias=False)
    return nn.Sequential(convolving, nn.BatchNorm2d(channels))


def check_stem(stem: object, called: str = "--stem") -> None:
    """Raises `UserError` for what is no stem; `called` is what the user calls it."""
    if stem not in REDUCTIONS:
        raise UserError(f"{called} must be one of {', '.join(get_args(Stem))}; got {stem!r}")


def behind_stem(image_size: tuple[int, int], stem: Stem) -> tuple[int, int]:
    """Height and width of what a stem makes of images."""
    height, width = image_size
    return -(-height // REDUCTIONS[stem]), -(-width // REDUCTIONS[stem])


def stem_of(image_size: tuple[int, int]) -> Stem:
    """The stem for images of a height and width; cells then see 32 to 63 pixels, 56 of ImageNet's 224."""
    least = min(image_size)
    return "quartering" if least >= QUARTERED_FROM else "halving" if least >= HALVED_FROM else "plain"


Space = TypeVar("Space", bound=Any)


def with_stem(space: Space, image_size: tuple[int, int]) -> Space:
    """The space with the stem for images of this size in place of `auto`; one without a stem is returned."""
    if getattr(space, "stem", None) != "auto":
        return space
    changed: Space = dataclasses.replace(space, stem=stem_of(image_size))
    return changed
