"""Data sets of Hugging Face's `datasets` and of torchvision, through the same cache as files of images."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import encoded, picture
from PIL import Image

from vpdarts_fast.data import ImageOptions, MappedImages, load
from vpdarts_fast.data.mapped.decoding import decode
from vpdarts_fast.errors import UserError

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="the package datasets is not installed"
)


def opened(name: str, root: Path, **options: Any) -> MappedImages:
    data = load(name, root, options=ImageOptions(16, root.parent / "cache", quiet=True, **options))
    assert isinstance(data, MappedImages)
    return data


# torchvision ----------------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    """As MNIST's files are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    raw, generator = tmp_path / "data" / "FashionMNIST" / "raw", np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        images = generator.integers(256, size=(count, 28, 28), dtype=np.uint8)
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path / "data"


def test_a_data_set_of_torchvision(fashion: Path) -> None:
    data = opened("torchvision:FashionMNIST", fashion)
    assert (data.name, len(data.places), len(data.test_places)) == ("FashionMNIST", 20, 10)
    assert data.classes[9] == "Ankle boot" and data.train_labels.tolist() == [*range(10), *range(10)]
    stored = np.fromfile(fashion / "FashionMNIST/raw/t10k-images-idx3-ubyte", np.uint8)[16:]
    expected = decode(Image.fromarray(stored.reshape(-1, 28, 28)[3]), 16)
    assert np.array_equal(data.test_half().images[3], expected)
    assert opened("torchvision:FashionMNIST", fashion).digest() == data.digest()
    path = fashion / "FashionMNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert opened("torchvision:FashionMNIST", fashion).digest() != data.digest(), "other files"


def test_one_that_has_to_be_asked_for_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whose images are made as they are read."""
    import torchvision

    class Fake(torchvision.datasets.FakeData):
        def __init__(self, random_offset: int) -> None:
            super().__init__(12, (3, 20, 30), num_classes=3, random_offset=random_offset)

    monkeypatch.setattr(torchvision.datasets, "FakeData", Fake)
    data = opened("torchvision:FakeData", tmp_path / "data")
    assert (len(data.places), len(data.test_places), data.num_classes) == (12, 12, 3)
    assert data.images.float().std() > 10


def test_a_data_set_of_torchvision_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"torchvision:SVHN in .* cannot be read: .*Fetch it with `--download`"
    ):
        opened("torchvision:SVHN", tmp_path)


# Hugging Face ---------------------------------------------------------------------------------------------


def saved(folder: Path, **changes: Any) -> Path:
    """As `save_to_disk` writes it; a split that is None is left out."""
    import datasets

    columns: dict[str, dict[str, Any]] = {
        split: {
            "label": [number % 2 for number in range(count)],
            "picture": [{"bytes": encoded(picture(first + i)), "path": None} for i in range(count)],
        }
        for first, (split, count) in zip(
            (0, 20, 40), (("train", 8), ("validation", 4), ("test", 6)), strict=True
        )
    }
    columns |= changes.pop("splits", {})
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["cat", "dog"]), "picture": datasets.Image()} | changes
    )
    parts = {
        split: datasets.Dataset.from_dict(values, features)
        for split, values in columns.items()
        if values is not None
    }
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return folder


@needs_datasets
def test_a_data_set_of_hugging_face(tmp_path: Path) -> None:
    data = opened("hf:some/pets", saved(tmp_path / "pets"))
    assert (data.name, data.classes) == ("some/pets", ("cat", "dog"))
    assert (len(data.places), len(data.test_places)) == (12, 6), "validation is searched on, too"
    assert np.array_equal(data.test_half().images[2], decode(picture(42), 16))
    assert opened("hf:some/pets", tmp_path / "pets").digest() == data.digest()
    assert len(list((tmp_path / "cache").iterdir())) == 1, "the same fingerprint"
    other = opened("hf:pets", saved(tmp_path / "fewer", splits={"test": None}))
    assert (len(other.places), len(other.test_places)) == (8, 4), "or tests"


@needs_datasets
def test_corrupt_images_of_hugging_face(tmp_path: Path) -> None:
    images = [{"bytes": encoded(picture(i)), "path": None} for i in range(4)]
    train = {"label": [0, 1, 0, 1, 0, 1], "picture": [*images, {"bytes": b"text", "path": None}, None]}
    place = saved(tmp_path / "pets", splits={"train": train})
    with pytest.raises(
        UserError, match=r"2 images cannot be decoded: train 4 \(no file .*; train 5 \(there is none"
    ):
        opened("hf:pets", place)
    assert len(opened("hf:pets", place, skip_corrupt=True).places) == 8


@needs_datasets
@pytest.mark.parametrize("case", ["no folder", "no train", "no images", "labels that are text"])
def test_what_no_search_can_use_of_hugging_face(case: str, tmp_path: Path) -> None:
    import datasets

    text = datasets.Value("string")
    of_text = {split: {"label": [0], "picture": ["a"]} for split in ("train", "validation", "test")}
    places = {
        "no folder": lambda: tmp_path / "no",
        "no train": lambda: saved(tmp_path / "a", splits={"train": None}),
        "no images": lambda: saved(tmp_path / "b", picture=text, splits=of_text),
        "labels that are text": lambda: saved(tmp_path / "c", label=text),
    }
    messages = {
        "no folder": "data set hf:pets cannot be read: .*fetch it with `--download`, or name a folder",
        "no train": "hf:pets has no split train; it has validation, test",
        "no images": "a column of images and one of classes .*; it has label: ClassLabel, picture: Value",
        "labels that are text": "the column label must have whole numbers; got ",
    }
    with pytest.raises(UserError, match=messages[case]):
        opened("hf:pets", places[case]())


@needs_datasets
def test_nothing_is_fetched_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    asked: list[Any] = []

    def load_dataset(*arguments: Any) -> Any:
        asked.append((*arguments, huggingface_hub.constants.HF_HUB_OFFLINE))
        raise OSError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for download in (False, True):
        with pytest.raises(UserError, match="hf:some/pets:small cannot be read: no network"):
            load("hf:some/pets:small", download=download)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE
    assert asked == [("some/pets", "small", True), ("some/pets", "small", False)]
