"""What there is to decode: the images of a data set by their names, before any of them is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vpdarts_fast.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 10
"""So many names an error or a warning lists."""


@dataclass(frozen=True)
class Listing:
    """The images of a data set: those that a search may use, then those that test.

    Attributes:
        name: of the data set, as shown to people.
        classes: the name of each class.
        names: of each image, as shown to people.
        labels: int64 [N], the class of each image.
        training: how many of them a search may use; the rest test.
        identity: text that changes when an image does.
        read: the content of the image file of a number, or the image itself; several threads call it at once.
        notes: what people should know of what was left out.
    """

    name: str
    classes: tuple[str, ...]
    names: Sequence[str]
    labels: npt.NDArray[np.int64]
    training: int
    identity: str
    read: Callable[[int], bytes | Image]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.names):
            raise UserError(f"{self.name} has no images")
        used = np.bincount(self.labels[: self.training], minlength=len(self.classes))
        empty = [name for name, count in zip(self.classes, used, strict=True) if not count]
        if empty:
            raise UserError(
                f"{self.name}: {counted(len(empty), 'class', 'classes')} without images to train on: "
                f"{listed(empty)}. Add images, or remove what names the class"
            )
        if len(self.classes) < 2:
            raise UserError(
                f"{self.name} has one class, {self.classes[0]!r}: every architecture is always right. "
                "A search needs images of at least 2 classes, each in a folder of its own"
            )


def identity_of(parts: Iterable[str]) -> str:
    """A digest of texts in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogateescape")
        digest.update(b"%d " % len(encoded) + encoded)
    return digest.hexdigest()


def printable(name: str) -> str:
    """A name from a file system or an archive, without what terminals and files of text cannot take."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def listed(names: Sequence[str]) -> str:
    """The first names for a message, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def counted(count: int, one: str, several: str) -> str:
    """A number with its noun, as in `1 class` and `2 classes`."""
    return f"{count:,} {one if count == 1 else several}"
