"""Image files that are there twice: in training and in test, or in two classes."""

from __future__ import annotations

from vpdarts_fast.data.mapped.listing import counted

SHOWN = 3
"""So many pairs are named."""


class Repeated:
    """Collects digests of files, and what is wrong with those that are the same."""

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[str, int, bool]] = {}
        self._both: list[str] = []
        self._contradictions: list[str] = []
        self._both_count = self._contradictions_count = 0

    def add(self, digest: bytes, name: str, label: int, trains: bool) -> None:
        """Takes the next image: a digest of its file, its name and class, and whether it is to train on."""
        first = self._first.setdefault(digest, (name, label, trains))
        if first[0] == name:
            return
        pair = f"{first[0]} = {name}"
        if first[2] and not trains:
            self._both_count += 1
            self._both += [pair] if len(self._both) < SHOWN else []
        if first[1] != label:
            self._contradictions_count += 1
            self._contradictions += [pair] if len(self._contradictions) < SHOWN else []

    def notes(self) -> list[str]:
        """What people should know of them."""
        notes = []
        if self._both_count:
            are = counted(self._both_count, "test image is", "test images are")
            notes.append(
                f"{are} in training too, so that test accuracy flatters: "
                f"{', '.join(self._both)}{self._more(self._both_count)}"
            )
        if self._contradictions_count:
            notes.append(
                f"{counted(self._contradictions_count, 'image is', 'images are')} in two classes: "
                f"{', '.join(self._contradictions)}{self._more(self._contradictions_count)}"
            )
        return notes

    @staticmethod
    def _more(count: int) -> str:
        return ", ..." if count > SHOWN else ""
