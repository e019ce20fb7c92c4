"""The cache of decoded images: made once, whole or not at all, and mapped rather than loaded."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import class_files, write_folder

from vpdarts_fast.data import ImageOptions, MappedImages, load
from vpdarts_fast.data.mapped import cache as caches
from vpdarts_fast.data.mapped.cache import default_folder, open_cache
from vpdarts_fast.data.mapped.folders import list_images
from vpdarts_fast.data.mapped.listing import Listing
from vpdarts_fast.errors import UserError


def loaded(place: Path, size: int = 16) -> MappedImages:
    data = load("folder", place, options=ImageOptions(size, place.parent / "cache", quiet=True))
    assert isinstance(data, MappedImages)
    return data


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pets", class_files())


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images that each making of a cache had."""
    made: list[int] = []
    make = caches._make

    def counted(listing: Listing, *rest: Any) -> None:
        made.append(len(listing.names))
        make(listing, *rest)

    monkeypatch.setattr(caches, "_make", counted)
    return made


def files_of(place: Path) -> list[Path]:
    return sorted(path for path in (place.parent / "cache").rglob("*") if path.is_file())


def test_images_are_decoded_once_for_each_size(place: Path, decodings: list[int]) -> None:
    first, again, larger = loaded(place), loaded(place), loaded(place, 20)
    assert torch.equal(first.images, again.images) and first.digest() == again.digest() != larger.digest()
    assert decodings == [12, 12] and larger.image_size == (20, 20)
    assert {path.name for path in files_of(place)} == {"cache.json", "images.npy", "labels.npy"}
    (images, _) = [path for path in files_of(place) if path.name == "images.npy"]
    assert np.load(images).shape[0] == 12, "an array that anybody can read"


def test_changed_files_are_decoded_again(place: Path, decodings: list[int]) -> None:
    before = loaded(place)
    os.utime(place / "train/cat/0.png", ns=(1, 1))
    assert loaded(place).digest() == before.digest(), "the same images"
    (place / "train/cat/0.png").write_bytes((place / "train/cat/1.png").read_bytes())
    assert loaded(place).digest() != before.digest()
    assert len(decodings) == 3


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert default_folder() == tmp_path / "caches" / "vpdarts_fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "vpdarts_fast"


def test_nothing_is_written_beside_the_images(place: Path) -> None:
    before = sorted(place.rglob("*"))
    loaded(place)
    assert sorted(place.rglob("*")) == before and len(files_of(place)) == 3


# Interrupted, damaged, at the same time -------------------------------------------------------------------


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def forged(path: Path) -> None:
    """A header that promises more images than there are."""
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(12,", b"(99,", 1))


def other_count(path: Path) -> None:
    content = json.loads(path.read_text())
    content["images"] = 1 << 60
    del content["digest"]
    path.write_text(caches.IMAGE_CACHE.to_json(content))


def other_labels(path: Path) -> None:
    """Of classes that there are not, with digests that fit."""
    content = caches.IMAGE_CACHE.read_json(path)
    labels = path.with_name("labels.npy")
    changed = labels.read_bytes()[:-8] + (7).to_bytes(8, "little")
    labels.write_bytes(changed)
    digest = caches._digest(changed[caches.HEADER_BYTES :])
    path.write_text(caches.IMAGE_CACHE.to_json({**content, "labels": digest}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("images.npy", flipped),
        ("images.npy", cut),
        ("images.npy", forged),
        ("images.npy", Path.unlink),
        ("labels.npy", flipped),
        ("labels.npy", forged),
        ("labels.npy", Path.unlink),
        ("cache.json", flipped),
        ("cache.json", other_count),
        ("cache.json", other_labels),
        ("cache.json", Path.unlink),
    ],
)
def test_a_damaged_cache_is_made_anew(
    name: str,
    damage: Callable[[Path], Any],
    place: Path,
    decodings: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = loaded(place).images.clone()
    (path,) = (path for path in files_of(place) if path.name == name)
    damage(path)
    assert torch.equal(loaded(place).images, before) and len(decodings) == 2
    said = capsys.readouterr().err
    complaints = 0 if (name, damage) == ("cache.json", Path.unlink) else 1
    assert said.count("is damaged: ") == said.count("; its images are decoded again\n") == complaints
    assert torch.equal(loaded(place).images, before) and len(decodings) == 2


@pytest.mark.parametrize("after", [0, 5, 11])
def test_what_an_interrupted_process_leaves_is_never_read(
    after: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, seen = caches.decode, []

    def interrupted(content: Any, size: int) -> Any:
        seen.append(1)
        if len(seen) > after:
            raise KeyboardInterrupt
        return decode(content, size)

    monkeypatch.setattr(caches, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loaded(place)
    assert not files_of(place), "nothing half made is left"
    monkeypatch.setattr(caches, "decode", decode)
    assert len(loaded(place).images) == 12


def test_what_a_killed_process_leaves_is_removed(place: Path, decodings: list[int]) -> None:
    before = loaded(place).images.clone()
    (content,) = (path for path in files_of(place) if path.name == "cache.json")
    content.unlink()
    (content.parent / "images.npy.0123.partial").write_bytes(b"half")
    assert torch.equal(loaded(place).images, before) and len(decodings) == 2
    assert {path.name for path in files_of(place)} == {"cache.json", "images.npy", "labels.npy"}


def _stops_in_the_midst(place: Path, folder: Path, begun: Any) -> None:
    decode, seen = caches.decode, []

    def slow(content: Any, size: int) -> Any:
        seen.append(1)
        if len(seen) == 6:
            begun.set()
            time.sleep(60)
        return decode(content, size)

    caches.decode = slow
    open_cache(list_images(place), 16, folder, quiet=True)


def test_a_process_that_is_killed_leaves_nothing_that_counts(place: Path, decodings: list[int]) -> None:
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    process = context.Process(target=_stops_in_the_midst, args=(place, place.parent / "cache", begun))
    process.start()
    assert begun.wait(60)
    process.kill()
    process.join(60)
    assert any(path.suffix == ".partial" for path in files_of(place))
    assert len(loaded(place).images) == 12 and decodings == [12]
    assert {path.name for path in files_of(place)} == {"cache.json", "images.npy", "labels.npy"}


def _open_in_process(place: Path, folder: Path, outcomes: Any) -> None:
    made = caches._make
    count = [0]

    def counted(*arguments: Any) -> None:
        count[0] += 1
        made(*arguments)

    caches._make = counted
    found = open_cache(list_images(place), 16, folder, quiet=True)
    outcomes.put((count[0], found.digest, int(found.images.sum())))


def test_of_many_processes_one_decodes(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "pets", class_files(20))
    context = multiprocessing.get_context("fork")
    outcomes = context.Queue()
    processes = [
        context.Process(target=_open_in_process, args=(place, tmp_path / "cache", outcomes)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    found = [outcomes.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(count for count, _, _ in found) == [0, 0, 0, 1]
    assert len({rest for _, *of_one in found for rest in [tuple(of_one)]}) == 1


def test_who_waits_says_for_whom(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded(place)
    (content,) = (path for path in files_of(place) if path.name == "cache.json")
    content.unlink()
    folder = content.parent.parent
    with caches.locked(content.parent):
        waiter = threading.Thread(target=lambda: open_cache(list_images(place), 16, folder))
        waiter.start()
        for _ in range(500):
            if "waiting" in (said := capsys.readouterr().out):
                break
            waiter.join(0.01)
    waiter.join(60)
    assert f"waiting for process {os.getpid()}" in said and content.exists()


def test_no_room(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"take 9\.\d KiB decoded, and .* has room for 1,?000"):
        loaded(place)
    assert not files_of(place)


def test_a_full_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caches, "write_atomically", full)
    with pytest.raises(UserError, match=r"cannot write the cache .*: No space left on device; make room, or"):
        loaded(place)
    assert {path.name for path in files_of(place)} == {"images.npy"}, "without cache.json there is no cache"
    monkeypatch.undo()
    assert len(loaded(place).images) == 12


def test_a_cache_that_cannot_be_made(place: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot make the cache .*name another folder by --cache"):
        loaded(place)


# Mapped, not loaded ---------------------------------------------------------------------------------------


def test_batches_load_no_more_than_themselves(tmp_path: Path) -> None:
    """Of a file with holes."""
    count, size = 200_000, 64
    path = tmp_path / "images.npy"
    with path.open("wb") as file:
        file.truncate(count * size * size * 3)  # 2.5 GB that take no room
    images = torch.from_numpy(np.memmap(path, np.uint8, "c", 0, (count, size, size, 3)))
    labels = torch.arange(count) % 2
    ones = torch.ones(3)
    whole = MappedImages(
        "large", images, labels, torch.arange(count), labels[:0], ("a", "b"),
        augmentation=MAPPED_AUGMENTATION, mean=ones, std=ones, content="",
    )  # fmt: skip
    tracemalloc.start()
    try:
        for half in whole.subset(torch.arange(0, count, 2)).halves(0):
            for indices in torch.randperm(len(half))[:32].split(16):
                batch, _ = half.batch(indices, torch.Generator())
                assert batch.shape == (16, 3, 64, 64)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 64 << 20, "of NumPy's arrays; an epoch order is PyTorch's, and has 8 bytes an image"
    resident = sum(int(line.split()[1]) for line in _mapping(path) if line.startswith("Rss:"))
    assert resident < 128 << 10, "KiB of the file that are in memory, with what the kernel reads ahead"


MAPPED_AUGMENTATION = load("digits").augmentation


def _mapping(path: Path) -> list[str]:
    """What the kernel says of the file's place in this process' memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith(str(path)))
    return lines[start : start + 20]
