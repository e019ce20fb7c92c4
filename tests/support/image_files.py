"""Files of images, made up here."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def random_images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def write_pickle(path: Path, content: object) -> tuple[str, str]:
    """Writes as the official files are written; returns the file's name and checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path.name, md5(path)


def write_npz(path: Path, **changes: Any) -> Path:
    """A valid file of 5 training and 2 test images but for ``changes``; None leaves an array out."""
    arrays: dict[str, Any] = {
        "train_images": random_images(5).numpy(),
        "train_labels": np.array([0, 1, 0, 1, 1]),
        "test_images": random_images(2, seed=1).numpy(),
        "test_labels": np.array([1, 0]),
        "classes": np.array(["cat", "dog"]),
    }
    arrays = {key: array for key, array in (arrays | changes).items() if array is not None}
    np.savez_compressed(path, **arrays)
    return path


def picture(number: int = 0, size: tuple[int, int] = (20, 24), mode: str = "RGB") -> Image.Image:
    """Height and width of noise, another for each number."""
    pixels = np.random.default_rng(number).integers(256, size=(*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def class_files(count: int = 3, splits: tuple[str, ...] = ("train/", "test/")) -> dict[str, bytes]:
    """By their names, a few images of the classes cat and dog, all different."""
    names = [f"{split}{name}/{i}.png" for split in splits for name in ("cat", "dog") for i in range(count)]
    return {name: encoded(picture(number)) for number, name in enumerate(names)}


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    """Names that end with a slash are empty folders."""
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
