"""What is wrong with folders, archives and files of images is said in words."""

from __future__ import annotations

import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from image_files import class_files, encoded, picture, write_folder, write_zip

from vpdarts_fast.data import ImageData, ImageOptions, MappedImages, load
from vpdarts_fast.errors import UserError

Make = Callable[[Path], Path]


def folder(remove: str = "", splits: tuple[str, ...] = ("train/", "test/"), **added: bytes) -> Make:
    """A good folder but for some of its files, and with others: their names' dots stand as `__`."""

    def make(root: Path) -> Path:
        files = {name: content for name, content in class_files(2, splits).items() if name not in remove}
        return write_folder(root / "pets", files | {named(name): added[name] for name in added})

    return make


def named(name: str) -> str:
    return name.replace("__", "/").replace("_", ".")


def archive(entries: dict[str, bytes], **more: bytes) -> Make:
    return lambda root: write_zip(root / "pets.zip", class_files(2) | entries | more)


def png_of(width: int, height: int) -> bytes:
    """A small file that says that it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def truncated_zip(root: Path) -> Path:
    path = archive({})(root)
    path.write_bytes(path.read_bytes()[:-40])
    return path


def encrypted_zip(root: Path) -> Path:
    """The flags of its first entry say so, in both places."""
    path = archive({})(root)
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    return path


def twice_in_zip(root: Path) -> Path:
    path = archive({})(root)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("train/cat/0.png", b"")
    return path


def damaged_in_zip(root: Path) -> Path:
    """A byte of an image, which the archive's checksum finds."""
    path = archive({})(root)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    path.write_bytes(content)
    return path


JPEG = encoded(picture(9), "JPEG")

REFUSED: dict[str, tuple[Make, str]] = {
    "nothing there": (
        lambda root: root / "no",
        "no folder or .zip archive of images at .*name one by --data",
    ),
    "neither": (lambda root: write_folder(root, {"a.txt": b"text"}) / "a.txt", "neither a folder nor a .zip"),
    "cut archive": (truncated_zip, "neither a folder nor a .zip archive, or the end .* is missing"),
    "encrypted": (encrypted_zip, "is encrypted; unpack it with its password"),
    "upwards": (archive({"../x.png": b""}), r"the entry '../x.png' is no path within the archive"),
    "absolute": (archive({"/etc/x.png": b""}), r"the entry '/etc/x.png' is no path within the archive"),
    "backslash": (archive({"a\\x.png": b""}), r"the entry 'a\\\\x.png' is no path within the archive"),
    "twice": (twice_in_zip, "two entries 'train/cat/0.png'"),
    "empty folder": (lambda root: write_folder(root / "pets", {"cat/": b""}), r"has no images \(.bmp, .gif"),
    "other kinds": (
        lambda root: write_folder(root / "pets", {"cat/0.tif": b"", "dog/0.mp4": b""}),
        "has no images .*; it has 2 other files: cat/0.tif, dog/0.mp4",
    ),
    "no class": (folder(loose_png=b""), "1 image is in no class folder: loose.png"),
    "no class in train": (folder(train__loose_png=b""), "1 image is in no class folder: train/loose.png"),
    "images alone": (
        lambda root: write_folder(root / "pets", {f"{i}.png": b"" for i in range(12)}),
        r"12 images are in no class folder: 0.png, 1.png, .* and 2 more. Put each into",
    ),
    "beside splits": (
        folder(bird__inner__0_png=b""),
        "has bird beside test, train: .* belong below train, val or",
    ),
    "two trains": (folder(training__cat__0_png=b""), "has both train and training: keep one"),
    "no train": (folder(splits=("val/", "test/")), "has test, val and no folder train"),
    "class without images": (
        lambda root: write_folder(root / "pets", {"cat/0.png": b"", "dog/": b"", "cow/a.txt": b""}),
        "2 classes without images to train on: cow, dog. Add images, or remove",
    ),
    "class of the test": (folder(test__bird__0_png=b""), "1 class without images to train on: bird"),
    "one class": (
        lambda root: write_folder(root / "pets", {"cat/0.png": b"", "cat/1.png": b""}),
        "has one class, 'cat': every architecture is always right",
    ),
    "text": (folder(train__cat__x_png=b"text"), r"cannot be decoded: train/cat/x.png \(no file of JPEG, PNG"),
    "empty file": (folder(train__cat__x_png=b""), r"train/cat/x.png \(the file is empty\): mend or remove"),
    "cut file": (
        folder(train__cat__x_jpg=JPEG[:500]),
        r"train/cat/x.jpg \(cannot be decoded: .*[Tt]runcated",
    ),
    "bomb": (
        folder(train__cat__x_png=png_of(60_000, 60_000)),
        r"train/cat/x.png \(more pixels than the 89,478,485 that are decoded\)",
    ),
    "smaller bomb": (
        folder(train__cat__x_png=png_of(10_000, 9_000)),
        r"train/cat/x.png \(10,000 x 9,000 pixels are more than the 89,478,485 that are decoded\)",
    ),
    "damaged in an archive": (damaged_in_zip, r"train/cat/0.png \(cannot be read: Bad CRC-32"),
    "no file": (
        lambda root: _with_link(folder()(root)),
        r"train/cat/x.png \(cannot be read: .*No such file",
    ),
}


def _with_link(root: Path) -> Path:
    (root / "train/cat/x.png").symlink_to(root / "nowhere")
    return root


def opened(place: Path, *, skip: bool = False, quiet: bool = True) -> ImageData | MappedImages:
    return load("folder", place, options=ImageOptions(16, place.parent / "cache", skip, quiet))


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_searched_on_is_refused_in_words(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    place = make(tmp_path)
    with pytest.raises(UserError, match=message):
        opened(place)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    place = folder()(tmp_path)
    os.mkfifo(place / "train/cat/x.png")
    with pytest.raises(UserError, match=r"train/cat/x.png \(no regular file\)"):
        opened(place)


def test_the_first_ten_corrupt_files_and_how_many(tmp_path: Path) -> None:
    place = folder(**{f"train__cat__x{i:02}_png": b"text" for i in range(14)})(tmp_path)
    with pytest.raises(UserError) as caught:
        opened(place)
    text = str(caught.value)
    assert "pets: 14 images cannot be decoded: train/cat/x00.png" in text and "x09.png" in text
    assert "x10.png" not in text and "and 4 more: mend or remove them, or leave them out with --skip" in text


def test_corrupt_files_are_skipped_when_asked_and_only_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, place = opened(folder()(tmp_path / "a")), folder(train__cat__x_png=b"text")(tmp_path)
    for _ in range(2):  # decoding, and from the cache
        skipped = opened(place, skip=True, quiet=False)
        assert isinstance(good, MappedImages) and isinstance(skipped, MappedImages)
        assert skipped.images.equal(good.images) and skipped.labels.equal(good.labels)
        assert len(skipped.places) == 4
        said = capsys.readouterr().err
        assert "left out 1 image that cannot be decoded: train/cat/x.png (no file of JPEG" in said
        with pytest.raises(UserError, match=r"1 image cannot be decoded: train/cat/x.png"):
            opened(place)


@pytest.mark.parametrize("kinds", [("cat",), ("cat", "dog")])
def test_nothing_or_nothing_of_a_class_is_left(kinds: tuple[str, ...], tmp_path: Path) -> None:
    files = class_files(2)
    files |= {name: b"text" for name in files if name.startswith("train/") and name.split("/")[1] in kinds}
    place = write_folder(tmp_path / "pets", files)
    message = "no image of cat can be decoded" if kinds == ("cat",) else "none is left to train on"
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            opened(place, skip=True)


def test_files_that_are_there_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = class_files(2)
    files |= {f"test/cat/copy{i}.png": files["train/cat/0.png"] for i in range(4)}
    files["train/dog/same.png"] = files["train/cat/1.png"]
    opened(write_folder(tmp_path / "pets", files), quiet=False)
    said = capsys.readouterr().err
    assert re.search(
        "pets: 4 test images are in training too, so that test accuracy flatters: "
        "train/cat/0.png = test/cat/copy0.png, .*, ...\n",
        said,
    )
    assert "1 image is in two classes: train/cat/1.png = train/dog/same.png\n" in said


def test_sizes_out_of_bounds() -> None:
    for size in (15, 225):
        with pytest.raises(UserError, match=f"--image-size must be at .*; got {size}"):
            ImageOptions(size)


def test_images_of_one_size_have_no_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the images of digits are 16x16; got 32"):
        load("digits", options=ImageOptions(32))
    assert load("digits", options=ImageOptions(16)).image_size == (16, 16)


def test_a_folder_has_to_be_named() -> None:
    with pytest.raises(UserError, match=r"data set folder needs --data, a folder or a .zip archive"):
        load("folder")


def test_unknown_data_sets() -> None:
    with pytest.raises(
        UserError, match=r"unknown data set 'hf:'; expected one of digits, .*folder, hf:NAME, tor"
    ):
        load("hf:")
    with pytest.raises(UserError, match="unknown data set torchvision:Nothing; expected one of CIFAR10, "):
        load("torchvision:Nothing")


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"needs the package datasets: pip install 'vpdarts-fast\[datasets\]'"
    ):
        load("hf:mnist")
