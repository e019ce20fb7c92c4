"""Lists the images of a folder of class folders, or of a .zip archive of one, which is never unpacked."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpdarts_fast.data.mapped.decoding import LARGEST_FILE, SUFFIXES
from vpdarts_fast.data.mapped.listing import Listing, counted, identity_of, listed, printable
from vpdarts_fast.errors import UserError

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
"""Names of folders that hold class folders, in any case, and what is in them."""

IGNORED = frozenset({"__MACOSX", "thumbs.db", "desktop.ini"})
"""Beside hidden files, what systems leave in folders and archives."""

TEST_SHARE = 5
"""Where nothing says what is to test: one image of so many of each class, by a digest of its name."""


@dataclass(frozen=True)
class Found:
    """A file below the folder, or in the archive.

    Attributes:
        parts: its name and the folders that it is in.
        version: text that changes with its content.
    """

    parts: tuple[str, ...]
    version: str

    @property
    def is_image(self) -> bool:
        """Whether its name is that of an image file."""
        return Path(self.parts[-1]).suffix.lower() in SUFFIXES


def list_images(place: Path) -> Listing:
    """Lists the images of a folder or of a .zip archive.

    The folder has one folder for each class, or `train` and, if there are, `val` and `test`, which have them.
    Images of a class may be in folders below its own. Hidden files are left out. With `val` and `test`, a
    search may use the images of both `train` and `val`; without `test`, `val` is what tests; without both,
    a fifth of each class' images, chosen by a digest of their names.

    Raises:
        UserError: there is nothing there, or the layout is another one; says which was expected.
    """
    if not place.exists():
        raise UserError(
            f"no folder or .zip archive of images at {place}: name one by --data, with one folder for each "
            "class, or with train, val and test, which have them"
        )
    if place.is_dir():
        found, folders = _walk(place)
        return _listing(place, found, folders, lambda parts: read_file(place.joinpath(*parts)))
    if not zipfile.is_zipfile(place):
        raise UserError(
            f"{place} is neither a folder nor a .zip archive, or the end of the archive is missing"
        )
    try:
        archive = zipfile.ZipFile(place)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{place} cannot be read: {error}; copy or make the archive again") from error
    found, folders, names = _entries(place, archive)
    return _listing(place, found, folders, lambda parts: _read_entry(archive, names[parts]))


def _walk(root: Path) -> tuple[list[Found], set[tuple[str, ...]]]:
    """The files below a folder, and all folders; links are followed, but not into what they are in."""
    found: list[Found] = []
    folders: set[tuple[str, ...]] = set()

    def visit(folder: str, parts: tuple[str, ...], outer: tuple[tuple[int, int], ...]) -> None:
        status = Path(folder).stat()
        this = status.st_dev, status.st_ino
        if this in outer:
            return
        folders.add(parts)
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if _is_ignored(entry.name):
                    continue
                inner = (*parts, entry.name)
                if entry.is_dir():
                    visit(entry.path, inner, (*outer, this))
                else:
                    found.append(Found(inner, _version(entry)))

    try:
        visit(str(root), (), ())
    except (OSError, RecursionError) as error:
        raise UserError(f"cannot list {root}: {error}") from error
    return found, folders


def _version(entry: os.DirEntry[str]) -> str:
    """Size and time of a regular file; nothing of others, which are found unreadable later."""
    try:
        status = entry.stat()
    except OSError:
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else "no file"


def read_file(path: Path) -> bytes:
    """The content of an image file; `UserError` for one that is too large, or no regular file."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would be waited for
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UserError("no regular file")
        if status.st_size > LARGEST_FILE:
            raise UserError(f"larger than {LARGEST_FILE:,} bytes")
        return file.read()


def _entries(
    place: Path, archive: zipfile.ZipFile
) -> tuple[list[Found], set[tuple[str, ...]], dict[tuple[str, ...], str]]:
    """The files and folders that an archive names, and what it calls each file."""
    found: dict[tuple[str, ...], Found] = {}
    names: dict[tuple[str, ...], str] = {}
    folders: set[tuple[str, ...]] = {()}
    for entry in archive.infolist():
        parts = tuple(part for part in entry.filename.rstrip("/").split("/") if part != ".")
        if "" in parts or ".." in parts or "\\" in entry.filename:
            raise UserError(
                f"{place}: the entry {printable(entry.filename)!r} is no path within the archive; make the "
                "archive again, from within its folder"
            )
        if any(map(_is_ignored, parts)):
            continue
        folder = parts if entry.is_dir() else parts[:-1]
        if folder not in folders:
            folders |= {folder[:depth] for depth in range(len(folder) + 1)}
        if entry.is_dir():
            continue
        if entry.flag_bits & 1:
            raise UserError(f"{place} is encrypted; unpack it with its password and name the folder")
        if parts in found:
            raise UserError(f"{place} has two entries {printable(entry.filename)!r}; make the archive again")
        found[parts], names[parts] = Found(parts, f"{entry.file_size} {entry.CRC}"), entry.filename
    return [found[parts] for parts in sorted(found)], folders, names


def _read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > LARGEST_FILE:
        raise UserError(f"larger than {LARGEST_FILE:,} bytes")
    return archive.read(name)  # no more of it than the archive says


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in IGNORED or name.lower() in IGNORED


def _listing(
    place: Path,
    found: list[Found],
    folders: set[tuple[str, ...]],
    read: Callable[[tuple[str, ...]], bytes],
) -> Listing:
    """Sorts what was found into classes and splits."""
    top = _top(found, folders)
    depth = len(top)
    images = [file for file in found if file.is_image]
    others = [_name(file.parts) for file in found if not file.is_image]
    if not images:
        has = (
            f"; it has {counted(len(others), 'other file', 'other files')}: {listed(others)}"
            if others
            else ""
        )
        raise UserError(f"{place} has no images ({', '.join(sorted(SUFFIXES))}){has}")
    below = sorted({parts[depth] for parts in folders if len(parts) > depth and parts[:depth] == top})
    splits = {name: SPLITS[name.lower()] for name in below if name.lower() in SPLITS}
    _check_layout(place, images, below, splits, depth)
    level = depth + bool(splits)
    classes = sorted({parts[level] for parts in folders if len(parts) > level and parts[:depth] == top})
    number = {name: label for label, name in enumerate(classes)}
    split_of = _split_of(splits, depth, level)
    rows = [(split_of(file.parts), number[file.parts[level]], file) for file in images]
    training = [row for row in rows if row[0] != "test"]
    rows = [*training, *(row for row in rows if row[0] == "test")]
    if not splits:
        training, testing = _held_out(rows, depth)
        rows = [*training, *testing]
    notes: tuple[str, ...] = ()
    if others:
        of = counted(len(others), "file of another kind", "files of other kinds")
        notes = (f"{place}: left out {of}: {listed(others)}",)
    files = [file for _, _, file in rows]
    return Listing(
        name=printable(place.stem if place.is_file() else place.resolve().name),
        classes=tuple(printable(name) for name in classes),
        names=[_name(file.parts) for file in files],
        labels=np.array([label for _, label, _ in rows], dtype=np.int64),
        training=len(training),
        identity=identity_of([str(len(training)), *classes, *_of_files(files)]),
        read=lambda index: read(files[index].parts),
        notes=notes,
    )


def _top(found: Iterable[Found], folders: set[tuple[str, ...]]) -> tuple[str, ...]:
    """The folder that has the class folders: an archive often has them all in one that has its own name."""
    holding = {file.parts[:-1] for file in found if file.is_image}
    top: tuple[str, ...] = ()
    while True:
        inner = [parts for parts in folders if len(parts) == len(top) + 1 and parts[: len(top)] == top]
        if len(inner) != 1 or inner[0][-1].lower() in SPLITS or {top, inner[0]} & holding:
            return top
        if not any(len(parts) > len(inner[0]) and parts[: len(inner[0])] == inner[0] for parts in folders):
            return top
        top = inner[0]


def _check_layout(
    place: Path, images: list[Found], below: list[str], splits: dict[str, str], depth: int
) -> None:
    """Raises `UserError` for images without a class, and for folders that are neither splits nor classes."""
    level = depth + bool(splits)
    loose = [_name(file.parts) for file in images if len(file.parts) < level + 2]
    if loose:
        raise UserError(
            f"{place}: {counted(len(loose), 'image is', 'images are')} in no class folder: {listed(loose)}. "
            "Put each into the folder of its class"
        )
    if not splits:
        return
    if beside := [printable(name) for name in below if name not in splits]:
        raise UserError(
            f"{place} has {listed(beside)} beside {', '.join(splits)}: with these, all images belong below "
            "train, val or test"
        )
    for split in set(splits.values()):
        if len(same := [name for name in splits if splits[name] == split]) > 1:
            raise UserError(f"{place} has both {' and '.join(same)}: keep one of them")
    if "train" not in splits.values():
        raise UserError(f"{place} has {', '.join(splits)} and no folder train, which a search needs")


def _split_of(splits: dict[str, str], depth: int, level: int) -> Callable[[tuple[str, ...]], str]:
    """What the images at a path are for: val trains where there is a test, and else tests."""
    if level == depth:
        return lambda parts: "train"
    purpose = {"train": "train", "val": "train" if "test" in splits.values() else "test", "test": "test"}
    return lambda parts: purpose[splits[parts[depth]]]


Row = tuple[str, int, Found]


def _held_out(rows: list[Row], depth: int) -> tuple[list[Row], list[Row]]:
    """Training and test images of a folder without splits; the same for a name, whatever else there is."""
    testing = [row for row in rows if _tests(row[2].parts[depth:])]
    names = {row[2].parts for row in testing}
    left = {label for _, label, file in rows if file.parts not in names}
    testing = [row for row in testing if row[1] in left]  # no class is left to the test alone
    names = {row[2].parts for row in testing}
    return [row for row in rows if row[2].parts not in names], testing


def _tests(parts: tuple[str, ...]) -> bool:
    """Whether an image is to test, by its name."""
    name = "/".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(name, digest_size=8).digest()[0] % TEST_SHARE == 0


def _of_files(files: Iterable[Found]) -> Iterator[str]:
    for file in files:
        yield "/".join(file.parts)
        yield file.version


def _name(parts: tuple[str, ...]) -> str:
    return printable("/".join(parts))
