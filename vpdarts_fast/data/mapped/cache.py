"""Decoded images in a file that is mapped: made once, by one process, whole or not at all.

A folder of the cache belongs to a data set as it is, at one size of images, and has

- `images.npy`, uint8 [N, S, S, 3], and `labels.npy`, int64 [N]: images to train on, then those that test,
- `cache.json`, written last: without it there is no cache. It holds the digests of both files.

Who finds none takes the lock of the folder, decodes into a file of another name, renames it, and writes
`cache.json`. Others wait for the lock.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import struct
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vpdarts_fast.command_line import progress_bar, warn
from vpdarts_fast.data.mapped.decoding import decode
from vpdarts_fast.data.mapped.listing import SHOWN, Listing, counted, identity_of
from vpdarts_fast.data.mapped.repeated import Repeated
from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.files import PARTIAL, remove_partial, write_atomically
from vpdarts_fast.runs.formats import IMAGE_CACHE
from vpdarts_fast.runs.lock import locked
from vpdarts_fast.runtime import machine

CONTENT_FILE, IMAGES_FILE, LABELS_FILE = "cache.json", "images.npy", "labels.npy"

HEADER_BYTES = 128
"""Of a .npy file as it is written here; the images follow."""

BLOCK = 1 << 22
"""Bytes of `images.npy` that have a digest of their own."""

BLOCKS_CHECKED = 256
"""So many blocks, spread over the file, are checked when it is opened: all of a file of a GiB."""

CHUNK = 64
"""Images that a thread decodes before others get their turn."""

MOST_THREADS = 32


@dataclass(frozen=True)
class Cache:
    """An open cache.

    Attributes:
        images: uint8 [N, S, S, 3], mapped from the file: read where it is looked at.
        labels: int64 [N].
        training: how many images a search may use; the others test.
        counts: int64 [3, 256], how often each value is in each channel of the training images.
        digest: of all images and labels.
        corrupt: what could not be decoded, with the reason, the first of them.
        corrupt_count: how much could not be decoded.
        repeated: what people should know of files that are there twice.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    training: int
    counts: npt.NDArray[np.int64]
    digest: str
    corrupt: tuple[str, ...]
    corrupt_count: int
    repeated: tuple[str, ...]


def default_folder() -> Path:
    """Where caches are unless told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "vpdarts_fast"


def open_cache(listing: Listing, size: int, folder: Path, *, quiet: bool = False) -> Cache:
    """Opens the cache of these images at this size; makes it where there is none, or a damaged one.

    Args:
        listing: the images.
        size: height and width, in pixels.
        folder: with a folder for each cache.
        quiet: show no progress.

    Raises:
        UserError: the folder cannot be written, or there is no room.
    """
    classes = len(listing.classes)
    key = identity_of([IMAGE_CACHE.mark, str(size), listing.identity])
    place = folder / f"{_word(listing.name)}-{size}-{key}"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the cache {place}: {error.strerror or error}; name another folder by --cache"
        ) from error
    cache = _opened_or_none(place, size, classes, lambda complaint: None)
    if cache is None:
        with locked(place, lambda holder: _say(f"waiting for {holder}, which decodes these images", quiet)):
            cache = _opened_or_none(place, size, classes, warn)
            if cache is None:
                remove_partial(place)
                _make(listing, size, place, quiet)
                cache = _opened(place, size, classes)
    return cache


def _opened_or_none(place: Path, size: int, classes: int, complain: Callable[[str], None]) -> Cache | None:
    """The cache, or None where there is none, or a damaged one, which is complained of."""
    if not (place / CONTENT_FILE).exists():
        return None
    try:
        return _opened(place, size, classes)
    except UserError as error:
        complain(str(error))
        return None


def _opened(place: Path, size: int, classes: int) -> Cache:
    """Checks sizes and digests before anything is mapped; `UserError` for what does not fit."""
    source = str(place / CONTENT_FILE)
    content = IMAGE_CACHE.read_json(place / CONTENT_FILE)
    with IMAGE_CACHE.reading(source):
        count, training = int(content["images"]), int(content["training"])
        blocks: list[str] = content["blocks"]
        counts = np.array(content["counts"], dtype=np.int64).reshape(3, 256)
        if not 0 < training <= count:
            raise ValueError(f"{training} of {count} images are to train on")
        images_shape, labels_shape = (count, size, size, 3), (count,)
        digest = identity_of([*blocks, content["labels"]])
        _check_file(place / IMAGES_FILE, "|u1", images_shape, blocks)
        _check_file(place / LABELS_FILE, "<i8", labels_shape, [content["labels"]], whole=True)
        labels = np.fromfile(place / LABELS_FILE, dtype="<i8", offset=HEADER_BYTES).astype(np.int64)
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"labels are {labels.min()}..{labels.max()}, of {classes} classes")
        return Cache(
            # Copy on write: PyTorch warns of arrays that cannot be written.
            np.memmap(place / IMAGES_FILE, np.uint8, "c", HEADER_BYTES, images_shape),
            labels,
            training,
            counts,
            digest,
            tuple(map(str, content["corrupt"])),
            int(content["corrupt_count"]),
            tuple(map(str, content["repeated"])),
        )


def _check_file(
    path: Path, kind: str, shape: tuple[int, ...], digests: list[str], *, whole: bool = False
) -> None:
    """Raises `ValueError` unless a file has this header and size and, in the blocks tried, these digests."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            wanted = HEADER_BYTES + np.prod(shape, dtype=object) * np.dtype(kind).itemsize
            if size != wanted:
                raise ValueError(f"{path.name} has {size:,} bytes; expected {wanted:,}")
            if file.read(HEADER_BYTES) != _header(kind, shape):
                raise ValueError(f"{path.name} is no array of {list(shape)}")
            block = size if whole else BLOCK
            if len(digests) != -(-(size - HEADER_BYTES) // block):
                raise ValueError(f"there are {len(digests)} digests of {path.name}")
            tried = np.unique(np.linspace(0, len(digests) - 1, BLOCKS_CHECKED).astype(np.int64))
            for number in tried.tolist():
                file.seek(HEADER_BYTES + number * block)
                if _digest(file.read(block)) != digests[number]:
                    raise ValueError(f"the content of {path.name} is not what was written")
    except OSError as error:
        raise ValueError(f"{path.name}: {error.strerror or error}") from error


def _make(listing: Listing, size: int, place: Path, quiet: bool) -> None:
    """Decodes all images into the folder, whose lock is held."""
    count = len(listing.names)
    needed = 2 * HEADER_BYTES + count * (3 * size * size + 8)
    try:
        free = shutil.disk_usage(place).free
        if free < needed:
            raise UserError(
                f"the images take {machine.readable(needed)} decoded, and {place} has room for "
                f"{machine.readable(free)}: make room, name another folder by --cache, or choose a smaller "
                "--image-size"
            )
        partial = place / f"{IMAGES_FILE}.{secrets.token_hex(4)}{PARTIAL}"
        with partial.open("xb") as file:
            content, labels = _decoded(listing, size, file, quiet)
            file.seek(0)
            file.write(_header("|u1", (len(labels), size, size, 3)))
            file.flush()
            os.fsync(file.fileno())
        if content["training"]:
            (place / CONTENT_FILE).unlink(missing_ok=True)  # of a damaged cache
            partial.replace(place / IMAGES_FILE)
            write_atomically(place / LABELS_FILE, _header("<i8", labels.shape) + labels.tobytes())
            write_atomically(place / CONTENT_FILE, IMAGE_CACHE.to_json(content).encode())
    except OSError as error:
        raise UserError(
            f"cannot write the cache {place}: {error.strerror or error}; make room, or name another folder "
            "by --cache"
        ) from error
    finally:
        remove_partial(place)
    if not content["training"]:
        raise corrupt_error(listing.name, content["corrupt"], content["corrupt_count"], all_of_them=True)


def _decoded(
    listing: Listing, size: int, file: BinaryIO, quiet: bool
) -> tuple[dict[str, Any], npt.NDArray[np.int64]]:
    """Writes the images behind the header; returns what `cache.json` holds, and the labels of the images."""
    file.write(bytes(HEADER_BYTES))
    labels: list[int] = []
    corrupt: list[str] = []
    counts = np.zeros((3, 256), dtype=np.int64)
    blocks, repeated = _Blocks(), Repeated()
    corrupt_count = training = 0
    with progress_bar(f"decoding the images of {listing.name}", len(listing.names), quiet=quiet) as bar:
        for index, pixels, digest in _in_order(listing, size):
            if isinstance(pixels, str):
                corrupt_count += 1
                if corrupt_count <= SHOWN:
                    corrupt.append(f"{listing.names[index]} ({pixels})")
            else:
                file.write(pixels.data)
                blocks.add(pixels.tobytes())
                label, trains = int(listing.labels[index]), index < listing.training
                labels.append(label)
                repeated.add(digest, listing.names[index], label, trains)
                if trains:
                    training += 1
                    for channel in range(3):
                        counts[channel] += np.bincount(pixels[..., channel].ravel(), minlength=256)
            if index % CHUNK == 0:
                bar(index)
    array = np.array(labels, dtype="<i8")
    content = {
        "data": listing.name,
        "images": len(labels),
        "training": training,
        "size": size,
        "blocks": blocks.digests(),
        "labels": _digest(array.tobytes()),
        "counts": counts.tolist(),
        "corrupt": corrupt,
        "corrupt_count": corrupt_count,
        "repeated": repeated.notes(),
    }
    return content, array


Decoded = tuple[int, npt.NDArray[np.uint8] | str, bytes]
"""Number, pixels or why there are none, and a digest of the file."""


def _in_order(listing: Listing, size: int) -> Iterator[Decoded]:
    """Decodes all images, in threads, a few of them ahead: Pillow's decoders let other threads run."""
    import warnings

    from PIL import Image, WebPImagePlugin  # noqa: F401  so that no two threads look for readers at once

    Image.preinit()

    def chunk(start: int) -> list[Decoded]:
        stop = min(start + CHUNK, len(listing.names))
        return [_decoded_image(listing, index, size) for index in range(start, stop)]

    threads = min(len(os.sched_getaffinity(0)), MOST_THREADS)
    ahead: deque[Future[list[Decoded]]] = deque()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # of Pillow's, about what is refused here, or harmless
        try:
            for start in range(0, len(listing.names), CHUNK):
                ahead.append(pool.submit(chunk, start))
                if len(ahead) > 2 * threads:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _decoded_image(listing: Listing, index: int, size: int) -> Decoded:
    try:
        content = listing.read(index)
        pixels = np.ascontiguousarray(decode(content, size))
    except UserError as error:
        return index, str(error), b""
    except Exception as error:  # what reads a file or an item raises anything
        return index, f"cannot be read: {str(error) or type(error).__name__}"[:200], b""
    compared = content if isinstance(content, bytes) else pixels.tobytes()
    return index, pixels, hashlib.blake2b(compared, digest_size=16).digest()


def corrupt_error(name: str, corrupt: list[str], count: int, *, all_of_them: bool = False) -> UserError:
    """The error for images that cannot be decoded."""
    more = f" and {count - len(corrupt):,} more" if count > len(corrupt) else ""
    remedy = (
        "none is left to train on"
        if all_of_them
        else "mend or remove them, or leave them out with --skip-corrupt"
    )
    images = counted(count, "image", "images")
    return UserError(f"{name}: {images} cannot be decoded: {'; '.join(corrupt)}{more}: {remedy}")


class _Blocks:
    """Digests of what is written, block by block."""

    def __init__(self) -> None:
        self._digests: list[str] = []
        self._open = bytearray()

    def add(self, content: bytes) -> None:
        self._open += content
        while len(self._open) >= BLOCK:
            self._digests.append(_digest(self._open[:BLOCK]))
            del self._open[:BLOCK]

    def digests(self) -> list[str]:
        return [*self._digests, _digest(self._open)] if self._open else self._digests


def _digest(content: bytes | bytearray) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _header(kind: str, shape: tuple[int, ...]) -> bytes:
    """Of a .npy file, version 1.0, padded to a length that no number of images changes."""
    entries = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {tuple(map(int, shape))}, }}"
    text = entries.ljust(HEADER_BYTES - 11).encode("ascii") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _word(name: str) -> str:
    """A name as a part of a file's name."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)[:60]


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, flush=True)
