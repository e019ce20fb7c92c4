"""ImageNet16-120: the first 120 classes of ImageNet scaled down to 16x16, as NAS-Bench-201 uses them.

The official batch files are pickles. Each must have the published checksum before it is opened, and is
then read by an unpickler that can build arrays and built-in containers and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vpdarts_fast.data.images import ImageData
from vpdarts_fast.data.pixels import Augmentation, not_found
from vpdarts_fast.errors import UserError

CHECKSUMS = {
    "train_data_batch_1": "27846dcaa50de8e21a7d1a35f30f0e91",
    "train_data_batch_2": "c7254a054e0e795c69120a5727050e3f",
    "train_data_batch_3": "4333d3df2e5ffb114b05d2ffc19b1e87",
    "train_data_batch_4": "1620cdf193304f4a92677b695d70d10f",
    "train_data_batch_5": "348b3c2fdbb3940c4e9e834affd3b18d",
    "train_data_batch_6": "6e765307c242a1b3d7d5ef9139b48945",
    "train_data_batch_7": "564926d8cbf8fc4818ba23d2faac7564",
    "train_data_batch_8": "f4755871f718ccb653440b9dd0ebac66",
    "train_data_batch_9": "bb6dd660c38c58552125b1a92f86b5d4",
    "train_data_batch_10": "8f03f34ac4b42271a294f91bf480f29b",
    "val_data": "3410e3017fdaefba8d5073aaa65e4bd6",
}
"""MD5 of each official file."""

TEST_FILE = "val_data"
"""The one of `CHECKSUMS` that holds the test images; the others hold the training images."""

NUM_CLASSES = 120
SIZE = 16

Batch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Images [N, SIZE, SIZE, 3] and labels [N] in 0..NUM_CLASSES-1."""


def load_imagenet16_120(root: Path) -> ImageData:
    """Loads 151,700 training and 6,000 test images, 16x16, of 120 classes.

    Args:
        root: the folder with the files of `CHECKSUMS`, or the folder that holds it under the name
            ``ImageNet16``.

    Raises:
        UserError: files are missing, cannot be read, or are not the official ones.
    """
    inner = root / "ImageNet16"
    folder = inner if inner.is_dir() else root
    missing = [name for name in CHECKSUMS if not (folder / name).is_file()]
    if missing:
        raise not_found(
            "imagenet16-120",
            f"{', '.join(missing)} in {folder}",
            f"put the {len(CHECKSUMS)} official 16x16 batch files into {inner}; image-net.org gives them to "
            "registered users as downsampled image data, so `--download` cannot fetch them",
        )
    train = [_read_batch(folder / name) for name in CHECKSUMS if name != TEST_FILE]
    test_images, test_labels = _read_batch(folder / TEST_FILE)
    return ImageData(
        name="imagenet16-120",
        train_images=torch.from_numpy(np.concatenate([images for images, _ in train])),
        train_labels=torch.from_numpy(np.concatenate([labels for _, labels in train])),
        test_images=torch.from_numpy(test_images),
        test_labels=torch.from_numpy(test_labels),
        # The files number the classes and do not name them.
        classes=tuple(f"class {number}" for number in range(1, NUM_CLASSES + 1)),
        augmentation=Augmentation(padding=2, flip=True),
    )


def _read_batch(path: Path) -> Batch:
    """The images of the first `NUM_CLASSES` classes in one official file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != CHECKSUMS[path.name]:
        raise UserError(
            f"{path} is damaged or is not the official ImageNet16 file: expected MD5 "
            f"{CHECKSUMS[path.name]}, got {found}; get the file again"
        )
    try:
        # Written by Python 2: its byte strings become latin1 text, the form NumPy expects arrays in.
        entry = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        data, labels = np.asarray(entry["data"]), np.asarray(entry["labels"])
    except Exception as error:  # a malformed pickle can raise anything
        raise UserError(f"{path} is not an ImageNet16 batch: {error}") from error
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIZE * SIZE:
        raise UserError(
            f"{path}: 'data' must be uint8 [N, {3 * SIZE * SIZE}]; got {data.dtype} {list(data.shape)}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != data.shape[:1]:
        raise UserError(
            f"{path}: 'labels' must be {len(data)} integers; got {labels.dtype} {list(labels.shape)}"
        )
    keep = (labels >= 1) & (labels <= NUM_CLASSES)
    images = data[keep].reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels[keep].astype(np.int64) - 1


# What a pickled array calls to come back. NumPy has no public name for the first, and its private one
# has moved, so ask an array.
_RECONSTRUCT = np.empty(0).__reduce__()[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(
            f"it asks for the encoding {encoding!r}, which image data has no use for"
        )
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,  # how protocol 2 writes bytes
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and built-in containers; refuses every other class or function by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which image data has no use for")
        return _ALLOWED[module, name]
