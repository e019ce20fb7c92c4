"""Loading data sets: digits, and files of npz, fabricated, hostile and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import Hostile
from image_files import random_images, write_npz
from places import SHARED

from vpdarts_fast import data
from vpdarts_fast.data import Augmentation
from vpdarts_fast.errors import UserError

REAL_NPZ = SHARED / "data" / "cifar10_20k.npz"


def test_digits_are_scikit_learns_enlarged() -> None:
    from sklearn.datasets import load_digits

    digits, original = data.load("digits"), load_digits()
    assert digits.train_images.shape == (1437, 16, 16, 3)
    assert digits.test_images.shape == (360, 16, 16, 3)
    assert digits.classes == tuple("0123456789")
    assert digits.augmentation == Augmentation(padding=2, flip=False)
    labels = torch.cat([digits.train_labels, digits.test_labels])
    assert labels.bincount().tolist() == np.bincount(original.target).tolist()
    assert digits.test_labels.bincount().min() >= 20, "every class is tested"
    images = torch.cat([digits.train_images, digits.test_images])
    assert (images == images[..., :1]).all(), "grey"
    # Enlarging twofold keeps the four corners, and every image's total but for rounding.
    corners = images[:, ::15, ::15, 0].flatten(1).tolist()
    expected = np.round(original.images[:, ::7, ::7].reshape(-1, 4) * 255 / 16).tolist()
    assert sorted(corners) == sorted(expected)
    again = data.load("digits")
    assert torch.equal(again.train_images, digits.train_images)
    assert torch.equal(again.test_labels, digits.test_labels)


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(
        UserError, match="'mnist'; expected one of digits, cifar10, cifar100, imagenet16-120, npz"
    ):
        data.load("mnist")


def test_npz(tmp_path: Path) -> None:
    big_endian = np.array([0, 1, 0, 1, 1], dtype=">i8")
    fortran = np.asfortranarray(random_images(5).numpy())
    sample = data.load("npz", write_npz(tmp_path / "pets.npz", train_images=fortran, train_labels=big_endian))
    assert torch.equal(sample.train_images, random_images(5))
    assert sample.train_labels.tolist() == [0, 1, 0, 1, 1]
    assert torch.equal(sample.test_images, random_images(2, seed=1))
    assert sample.test_labels.tolist() == [1, 0]
    assert (sample.name, sample.classes) == ("pets", ("cat", "dog"))
    assert sample.augmentation == Augmentation(padding=4, flip=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": None}, "array test_images is missing; got train_images, train_labels, test_labels"),
        ({"train_images": np.zeros((5, 8, 8, 3))}, "train_images must have dtype uint8; got float64"),
        ({"train_labels": np.zeros(5, np.int32)}, "train_labels must have dtype int64; got int32"),
        ({"train_images": np.zeros((5, 3, 8, 8), np.uint8)}, r"must be uint8 \[N, H, W, 3\]; got .*8, 8\]"),
        ({"train_labels": np.zeros(4, np.int64)}, r"train_labels must be int64 \[5\]"),
        ({"test_labels": np.array([0, 2])}, r"test_labels must be in 0\.\.1.*got 0\.\.2"),
        ({"test_labels": np.array([0, -1])}, r"test_labels must be in 0\.\.1.*got -1\.\.0"),
        ({"test_images": np.zeros((0, 8, 8, 3), np.uint8), "test_labels": np.zeros(0, int)}, "at least one"),
        ({"classes": np.array("cat")}, "classes must be a list of names"),
        ({"classes": np.array([0, 1])}, "classes must have dtype str; got int64"),
        (
            {"classes": np.array(["cat", "dog"], dtype=object)},
            "cannot be read .*without arrays of Python obj",
        ),
    ],
)
def test_malformed_npz(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(UserError, match=f"^{path}: .*{message}"):
        data.load("npz", path)


def test_hostile_object_array_is_not_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = write_npz(tmp_path / "bad.npz", classes=np.array([Hostile(Path.touch, marker)], dtype=object))
    with pytest.raises(UserError, match="cannot be read"):
        data.load("npz", path)
    assert not marker.exists()


def test_truncated_npz(tmp_path: Path) -> None:
    whole = write_npz(tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "truncated.npz"
    for length in [0, 1, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"not an .npz file, or its end is missing"):
            data.load("npz", path)


def test_damaged_npz_is_refused_or_harmless(tmp_path: Path) -> None:
    whole = write_npz(tmp_path / "whole.npz")
    expected, content, path = data.load("npz", whole), whole.read_bytes(), tmp_path / "damaged.npz"
    refused = 0
    for position in range(0, len(content), 5):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            sample = data.load("npz", path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
        else:  # a date, or another field that says nothing about the arrays
            assert torch.equal(sample.train_images, expected.train_images)
            assert torch.equal(sample.train_labels, expected.train_labels)
            assert torch.equal(sample.test_images, expected.test_images)
            assert torch.equal(sample.test_labels, expected.test_labels)
            assert sample.classes == expected.classes
    assert refused > 0.7 * len(content) / 5


def test_missing_npz(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=f"looked for {tmp_path}/no.npz; write the arrays train_images,.*digits"
    ):
        data.load("npz", tmp_path / "no.npz")
    with pytest.raises(UserError, match=r"needs the path of an .npz file"):
        data.load("npz")


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_npz(tmp_path / "pets.npz")
    assert len(data.load("npz", Path("~/pets.npz")).train_images) == 5


def test_real_cifar10_images() -> None:
    if not REAL_NPZ.exists():
        pytest.skip(f"needs the real images of {REAL_NPZ.name}")
    sample = data.load("npz", REAL_NPZ)
    assert sample.train_images.shape == (20_000, 32, 32, 3)
    assert sample.train_labels.bincount().tolist() == [2000] * 10
    # CIFAR-10's published statistics, which 20,000 of its images come near.
    torch.testing.assert_close(sample.mean, torch.tensor([125.3, 123.0, 113.9]), atol=1.0, rtol=0)
    torch.testing.assert_close(sample.std, torch.tensor([63.0, 62.1, 66.7]), atol=1.0, rtol=0)
    training, validation = data.split_halves(sample, 0)
    assert len(training) == len(validation) == 10_000
