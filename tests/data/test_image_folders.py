"""Folders and archives of images: what is found in them, and what becomes of each kind of image."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import class_files, encoded, picture, write_folder, write_zip
from PIL import Image

from vpdarts_fast.data import ImageOptions, MappedImages, SearchImages, load
from vpdarts_fast.data.mapped.decoding import decode
from vpdarts_fast.data.mapped.folders import list_images
from vpdarts_fast.data.mapped.listing import Listing

REAL_ZIP = Path(__file__).parents[3] / "shared" / "data" / "cifar10_images.zip"


def loaded(place: Path, size: int = 16, skip: bool = False) -> MappedImages:
    data = load("folder", place, options=ImageOptions(size, place.parent / "cache", skip, quiet=True))
    assert isinstance(data, MappedImages) and isinstance(data, SearchImages)
    return data


def split_of(listing: Listing) -> tuple[list[str], list[str]]:
    return list(listing.names[: listing.training]), list(listing.names[listing.training :])


# Layout ---------------------------------------------------------------------------------------------------


def test_a_folder_and_an_archive_of_it_give_the_same_images(tmp_path: Path) -> None:
    files = class_files()
    folder = loaded(write_folder(tmp_path / "pets", files))
    archive = loaded(write_zip(tmp_path / "pets.zip", files))
    inner = loaded(write_zip(tmp_path / "inner.zip", {f"pets/./{name}": files[name] for name in files}))
    assert (folder.name, folder.classes, folder.image_size) == ("pets", ("cat", "dog"), (16, 16))
    assert folder.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and len(folder.test_half()) == 6
    for other in (archive, inner):
        assert torch.equal(other.images, folder.images) and torch.equal(other.labels, folder.labels)
        assert other.digest() == folder.digest()
    expected = decode(files["train/dog/1.png"], 16)
    assert np.array_equal(folder.images[folder.places][4], expected)


@pytest.mark.parametrize(
    ("splits", "training", "testing"),
    [
        (("train/", "val/", "test/"), ("train", "val"), ("test",)),
        (("Training/", "valid/"), ("Training",), ("valid",)),
        (("train/", "test/"), ("train",), ("test",)),
        (("train/",), ("train",), ()),
    ],
)
def test_val_is_searched_on_where_there_is_a_test_and_else_tests(
    splits: tuple[str, ...], training: tuple[str, ...], testing: tuple[str, ...], tmp_path: Path
) -> None:
    listing = list_images(write_folder(tmp_path / "pets", class_files(1, splits)))
    found = tuple(tuple(sorted({name.partition("/")[0] for name in part})) for part in split_of(listing))
    assert found == (training, testing) and len(listing.names) == 2 * len(splits)


def test_without_splits_a_fifth_of_the_images_tests_the_same_ones_always(tmp_path: Path) -> None:
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(200)]
    place = write_folder(tmp_path / "pets", dict.fromkeys(names, b"not read"))
    training, testing = split_of(list_images(place))
    assert sorted(training + testing) == sorted(names) and 50 < len(testing) < 110
    for name in names[::2]:
        (place / name).unlink()
    assert set(split_of(list_images(place))[1]) == set(testing) - set(names[::2])


def test_no_class_is_left_to_the_test_alone(tmp_path: Path) -> None:
    names = [f"{kind}/{i}.png" for kind in range(60) for i in range(1)]
    listing = list_images(write_folder(tmp_path / "pets", dict.fromkeys(names, b"")))
    assert listing.training == len(listing.classes) == 60


def test_what_is_no_image_is_left_out_and_named(tmp_path: Path) -> None:
    files = class_files(1, ("",)) | {
        "notes.txt": b"", "cat/labels.csv": b"", "cat/.hidden.png": b"", "dog/Thumbs.db": b"",
        ".git/cat/0.png": b"", "__MACOSX/cat/0.png": b"",
    }  # fmt: skip
    for place in (write_folder(tmp_path / "pets", files), write_zip(tmp_path / "pets.zip", files)):
        listing = list_images(place)
        assert sorted(listing.names) == ["cat/0.png", "dog/0.png"]
        assert listing.notes == (f"{place}: left out 2 files of other kinds: cat/labels.csv, notes.txt",)


def test_images_of_a_class_may_lie_deeper_and_links_are_followed_once(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "pets", dict.fromkeys(("cat/a/b/0.PNG", "cat/1.jpeg", "dog/0.webp"), b""))
    (place / "cat" / "a" / "up").symlink_to(place / "cat")
    (place / "bird").symlink_to(place / "dog")
    listing = list_images(place)
    assert listing.classes == ("bird", "cat", "dog")
    assert sorted(listing.names) == ["bird/0.webp", "cat/1.jpeg", "cat/a/b/0.PNG", "dog/0.webp"]


def test_names_that_no_terminal_can_show(tmp_path: Path) -> None:
    names = [b"c\xffat/0.png", b"d\x1b[31mog/0.png"]
    for name in names:
        path = Path((bytes(tmp_path / "pets") + b"/" + name).decode("utf-8", "surrogateescape"))
        path.parent.mkdir(parents=True)
        path.write_bytes(encoded(picture()))
    data = loaded(tmp_path / "pets")
    assert data.classes == ("c�at", "d�[31mog") and len(data.labels) == 2


def test_identity_changes_with_what_decides_the_images(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "pets", class_files())
    identities = [list_images(place).identity]
    (place / "train/cat/0.png").write_bytes(b"another")
    identities.append(list_images(place).identity)
    (place / "train/cat/0.png").rename(place / "train/dog/zero.png")
    identities.append(list_images(place).identity)
    (place / "test").rename(place / "val")
    identities.append(list_images(place).identity)
    assert len(set(identities)) == 4 and list_images(place).identity == identities[3]


# Decoding -------------------------------------------------------------------------------------------------

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_grey_images_of_every_kind(kind: str) -> None:
    content = encoded(Image.fromarray(GREY), kind, **({"lossless": True} if kind == "WEBP" else {}))
    if kind == "TIFF":
        with pytest.raises(Exception, match="no file of JPEG, PNG"):
            decode(content, 16)
        return
    assert np.array_equal(decode(content, 16), GREY[..., None].repeat(3, 2))


def test_sixteen_bits_a_channel() -> None:
    deep = GREY.astype(np.uint16) * 257
    for content in (encoded(Image.fromarray(deep)), b"P5 16 16 65535\n" + deep.astype(">u2").tobytes()):
        assert np.array_equal(decode(content, 16), GREY[..., None].repeat(3, 2))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(mode: str) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 8, 16))
    options = {}
    if mode == "P":
        image, options = Image.new("P", (16, 16), 0), {"transparency": 1}
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.paste(1, (8, 0, 16, 16))
    else:
        image = image.convert(mode)
    pixels = decode(encoded(image, "PNG", **options), 16)
    assert (pixels[:, :8] == 0).all() and (pixels[:, 8:] == 255).all()


def test_cmyk_palette_and_animations() -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    assert (abs(decode(encoded(red.convert("CMYK"), "JPEG"), 16).astype(int) - [255, 0, 0]) < 4).all()
    assert (decode(encoded(red.convert("P")), 16) == [255, 0, 0]).all()
    moving = encoded(red, "GIF", save_all=True, append_images=[Image.new("RGB", (16, 16), (0, 0, 255))])
    assert (decode(moving, 16) == [255, 0, 0]).all()


def test_the_shorter_side_is_resized_and_the_middle_cropped() -> None:
    wide = Image.new("RGB", (100, 40))
    wide.paste((255, 255, 255), (26, 0, 74, 40))
    assert (decode(encoded(wide), 20) == 255).all()
    assert (decode(encoded(wide.transpose(Image.Transpose.ROTATE_90)), 20) == 255).all()
    assert decode(encoded(Image.new("RGB", (1, 500))), 224).shape == (224, 224, 3)


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = picture(3, (16, 16))
    assert np.array_equal(decode(encoded(image), 16), np.asarray(image))


def test_photographs_stand_as_exif_says() -> None:
    image = Image.new("RGB", (32, 32))
    image.paste((255, 255, 255), (0, 0, 32, 16))  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = decode(encoded(image, "JPEG", exif=exif), 32)
    assert (pixels[:12] < 20).all() and (pixels[20:] > 235).all()


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_alike() -> None:
    smooth = Image.linear_gradient("L").resize((1600, 1600))
    image = smooth.convert("RGB")
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert (abs(decode(encoded(image, "JPEG"), 32).astype(int) - expected) <= 2).all()


# The images of a search -----------------------------------------------------------------------------------


def test_normalised_by_the_mean_and_deviation_of_its_training_images(tmp_path: Path) -> None:
    data = loaded(write_folder(tmp_path / "pets", class_files()))
    pixels = data.images[data.places].double().flatten(0, 2)
    torch.testing.assert_close(data.mean, pixels.mean(0).float())
    torch.testing.assert_close(data.std, pixels.std(0, correction=0).float())
    training, validation = data.halves(0)
    batch = torch.cat([half.batch(torch.arange(3))[0] for half in (training, validation)])
    torch.testing.assert_close(batch.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_parts_of_it_have_the_images_of_their_numbers(tmp_path: Path) -> None:
    data = loaded(write_folder(tmp_path / "pets", class_files(8)))
    part = data.subset(torch.tensor([15, 2, 9, 0]))
    assert part.train_labels.tolist() == [1, 0, 1, 0] and part.digest() != data.digest()
    first, second = part.halves(0, "ranges")
    assert torch.equal(first.images, data.images[[15, 2]]) and torch.equal(second.images, data.images[[9, 0]])
    assert len(part.test_half()) == 16 and torch.equal(part.mean, data.mean)


def test_real_cifar10_files(tmp_path: Path) -> None:
    if not REAL_ZIP.exists():
        pytest.skip(f"needs the real images of {REAL_ZIP.name}")
    listing = list_images(REAL_ZIP)
    assert (len(listing.classes), listing.training, len(listing.names)) == (10, 50_000, 60_000)
    assert decode(listing.read(0), 32).shape == (32, 32, 3)
    with zipfile.ZipFile(REAL_ZIP) as archive:
        assert listing.read(123) == archive.read(listing.names[123])
