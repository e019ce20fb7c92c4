"""Files of images, made up here."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
