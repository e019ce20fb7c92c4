"""CIFAR and ImageNet16-120 from fabricated archives: read as documented, never unpickled on trust."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision
from hostile import Hostile
from image_files import md5, write_npz, write_pickle

from vpdarts_fast import data
from vpdarts_fast.data import Augmentation, imagenet16
from vpdarts_fast.errors import UserError


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, npt.NDArray[np.uint8]]:
    """CIFAR-10's layout with 4 + 3 training and 5 test images, in the checksums of torchvision too."""
    folder = tmp_path / "cifar-10-batches-py"
    source = torchvision.datasets.CIFAR10
    sizes = {"data_batch_1": 4, "data_batch_2": 3, "test_batch": 5}
    pixels = {
        name: np.random.default_rng(size).integers(256, size=(size, 3072), dtype=np.uint8)
        for name, size in sizes.items()
    }
    lists = [
        write_pickle(folder / name, {"data": pixels[name], "labels": list(range(size))})
        for name, size in sizes.items()
    ]
    _, checksum = write_pickle(folder / "batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(source, "train_list", lists[:2])
    monkeypatch.setattr(source, "test_list", lists[2:])
    monkeypatch.setattr(source, "meta", source.meta | {"md5": checksum})
    return pixels


def test_cifar10(tmp_path: Path, cifar10: dict[str, npt.NDArray[np.uint8]]) -> None:
    sample = data.load("cifar10", tmp_path)
    flat = np.concatenate([cifar10["data_batch_1"], cifar10["data_batch_2"]])
    assert torch.equal(sample.train_images.permute(0, 3, 1, 2).flatten(1), torch.from_numpy(flat))
    assert sample.train_labels.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert sample.test_labels.tolist() == [0, 1, 2, 3, 4]
    assert sample.test_images.shape == (5, 32, 32, 3)
    assert (sample.name, sample.classes) == ("cifar10", tuple("abcdefghij"))
    assert sample.augmentation == Augmentation(padding=4, flip=True)
    assert torch.equal(data.load("cifar10", tmp_path, download=True).test_images, sample.test_images)


def test_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, source = tmp_path / "cifar-100-python", torchvision.datasets.CIFAR100
    entry = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [99, 7]}
    monkeypatch.setattr(source, "train_list", [write_pickle(folder / "train", entry)])
    monkeypatch.setattr(source, "test_list", [write_pickle(folder / "test", entry)])
    names = [f"name {number}" for number in range(100)]
    _, checksum = write_pickle(folder / "meta", {"fine_label_names": names})
    monkeypatch.setattr(source, "meta", source.meta | {"md5": checksum})
    sample = data.load("cifar100", tmp_path)
    assert sample.train_labels.tolist() == [99, 7]
    assert sample.classes == tuple(names)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_missing_cifar_says_how_to_get_it(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UserError, match=f"looked for .* in {tmp_path}.*`--download`.*`--dataset digits`"):
        data.load(dataset, tmp_path)


def test_default_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar10: object) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="in data/cifar-10-batches-py"):
        data.load("cifar10")
    (tmp_path / "data").symlink_to(tmp_path)
    assert len(data.load("cifar10").train_images) == 7


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_replaced_cifar_file_is_never_unpickled(tmp_path: Path, cifar10: object, name: str) -> None:
    marker = tmp_path / "executed"
    write_pickle(tmp_path / "cifar-10-batches-py" / name, Hostile(Path.touch, marker))
    with pytest.raises(UserError, match=r"is damaged.*delete that folder"):
        data.load("cifar10", tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "error", [URLError("no route"), RuntimeError("File not found or corrupted."), EOFError("no route")]
)
def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fail)
    with pytest.raises(UserError, match=f"cannot download data set cifar10 into {tmp_path}: .*digits"):
        data.load("cifar10", tmp_path, download=True)


def test_download_into_an_impossible_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot download .*file"):
        data.load("cifar10", tmp_path / "file", download=True)


@pytest.fixture
def imagenet16_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Three small files in the official form, and their checksums in place of the official ones."""
    rng = np.random.default_rng(0)
    entries = {
        name: {"data": rng.integers(256, size=(len(labels), 768), dtype=np.uint8), "labels": labels}
        for name, labels in {
            "train_data_batch_1": [120, 121, 1],
            "train_data_batch_2": [1000, 60],
            imagenet16.TEST_FILE: [5, 500],
        }.items()
    }
    folder = tmp_path / "ImageNet16"
    checksums = dict(write_pickle(folder / name, entry) for name, entry in entries.items())
    monkeypatch.setattr(imagenet16, "CHECKSUMS", checksums)
    return entries


@pytest.mark.parametrize("root", [".", "ImageNet16"])
def test_imagenet16_keeps_the_first_120_classes(
    tmp_path: Path, imagenet16_files: dict[str, dict[str, Any]], root: str
) -> None:
    sample = data.load("imagenet16-120", tmp_path / root)
    assert sample.train_labels.tolist() == [119, 0, 59]
    assert sample.test_labels.tolist() == [4]
    first, second = (imagenet16_files[f"train_data_batch_{i}"]["data"] for i in (1, 2))
    flat = np.stack([first[0], first[2], second[1]])
    assert torch.equal(sample.train_images.permute(0, 3, 1, 2).flatten(1), torch.from_numpy(flat))
    assert (sample.image_size, sample.num_classes) == ((16, 16), 120)
    assert sample.augmentation == Augmentation(padding=2, flip=True)


def test_imagenet16_reads_what_python_2_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What Python 2's pickle makes of {"data": uint8 [1, 768] of 200s, "labels": [7]}: protocol 2, keys
    # and pixels as byte strings (U short, T long), the array's names from numpy.core.
    pixels = bytes([200]) * 768
    content = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01M\x00\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x03\x00\x00" + pixels + b"tb"
        b"U\x06labels]K\x07au."
    )
    names = ["train_data_batch_1", imagenet16.TEST_FILE]
    for name in names:
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(imagenet16, "CHECKSUMS", {name: md5(tmp_path / name) for name in names})
    sample = data.load("imagenet16-120", tmp_path)
    assert sample.train_labels.tolist() == [6]
    assert (sample.train_images == 200).all()


def test_missing_imagenet16_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=rf"train_data_batch_1, .* in {tmp_path}; put the 11 .* into {tmp_path}/ImageNet16.*digits",
    ):
        data.load("imagenet16-120", tmp_path, download=True)


def test_imagenet16_checksum_comes_before_unpickling(
    tmp_path: Path, imagenet16_files: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(imagenet16, "_ArrayUnpickler")
    write_pickle(tmp_path / "ImageNet16" / "train_data_batch_1", {})
    with pytest.raises(UserError, match=r"train_data_batch_1 is damaged.*expected MD5 .*, got "):
        data.load("imagenet16-120", tmp_path)


def test_hostile_imagenet16_is_refused(tmp_path: Path, imagenet16_files: object) -> None:
    marker = tmp_path / "executed"
    name, checksum = write_pickle(
        tmp_path / "ImageNet16" / "train_data_batch_2", {"data": Hostile(Path.touch, marker)}
    )
    imagenet16.CHECKSUMS[name] = checksum
    with pytest.raises(UserError, match="train_data_batch_2 is not an ImageNet16 batch: it asks for "):
        data.load("imagenet16-120", tmp_path)
    assert not marker.exists()
    pickle.loads((tmp_path / "ImageNet16" / name).read_bytes())
    assert marker.exists(), "the file would have done harm"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"labels": [1]}, "not an ImageNet16 batch: 'data'"),
        ([1, 2], "not an ImageNet16 batch"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2]}, r"'data' must be uint8 \[N, 768\]"),
        ({"data": np.zeros((2, 768)), "labels": [1, 2]}, "got float64"),
        ({"data": np.zeros((2, 768), np.uint8), "labels": [1]}, "'labels' must be 2 integers"),
        ({"data": np.zeros((2, 768), np.uint8), "labels": ["a", "b"]}, "'labels' must be 2 integers"),
        ({"data": np.zeros((1, 768), np.uint8), "labels": [121]}, "test_images must hold at least one"),
    ],
)
def test_malformed_imagenet16(tmp_path: Path, imagenet16_files: object, entry: object, message: str) -> None:
    name, checksum = write_pickle(tmp_path / "ImageNet16" / imagenet16.TEST_FILE, entry)
    imagenet16.CHECKSUMS[name] = checksum
    with pytest.raises(UserError, match=message):
        data.load("imagenet16-120", tmp_path)


def test_every_official_file_has_a_checksum() -> None:
    names = [f"train_data_batch_{number}" for number in range(1, 11)] + [imagenet16.TEST_FILE]
    assert list(imagenet16.CHECKSUMS) == names
    assert all(len(bytes.fromhex(checksum)) == 16 for checksum in imagenet16.CHECKSUMS.values())


@pytest.mark.parametrize(("dataset", "method"), [("npz", "open"), ("imagenet16-120", "read_bytes")])
def test_unreadable_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imagenet16_files: object, dataset: str, method: str
) -> None:
    root = write_npz(tmp_path / "pets.npz") if dataset == "npz" else tmp_path

    def fail(self: Path, *args: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, method, fail)
    with pytest.raises(UserError, match=f"cannot read .*Permission denied: '{root}"):
        data.load(dataset, root)
