"""Where images come from: `load` and one function for each data set."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from vpdarts_fast.data.imagenet16 import load_imagenet16_120
from vpdarts_fast.data.images import ImageData
from vpdarts_fast.data.mapped.folders import list_images
from vpdarts_fast.data.mapped.images import MappedImages, mapped
from vpdarts_fast.data.mapped.libraries import list_hugging_face, list_torchvision
from vpdarts_fast.data.mapped.listing import Listing
from vpdarts_fast.data.options import Augment, ImageOptions, augmentation_of
from vpdarts_fast.data.pixels import Augmentation, not_found
from vpdarts_fast.errors import UserError
from vpdarts_fast.runtime import machine

DEFAULT_ROOT = Path("data")
"""Where downloaded data sets live unless told otherwise."""


def load(
    dataset: str,
    root: Path | None = None,
    *,
    download: bool = False,
    options: ImageOptions | None = None,
    augment: Augment = "standard",
    cutout: int = 0,
) -> ImageData | MappedImages:
    """Loads a data set into memory or, of files of images, maps it.

    Args:
        dataset: one of `DATASETS`, ``hf:NAME`` of Hugging Face's `datasets`, or ``torchvision:NAME``.
        root: for ``npz`` the file; for ``folder`` the folder or .zip archive
            (`vpdarts_fast.data.mapped.folders.list_images`); for ``cifar10``, ``cifar100``,
            ``imagenet16-120`` and ``torchvision:NAME`` the folder with all data sets, `DEFAULT_ROOT` if not
            given; for ``hf:NAME`` a folder that `save_to_disk` wrote, if it is not to be looked for where
            `datasets` keeps its own; ``digits`` needs none.
        download: fetch ``cifar10``, ``cifar100``, ``hf:NAME`` or ``torchvision:NAME`` if it is not there yet.
        options: how files of images are read.
        augment: what training images go through.
        cutout: side of the square that is cut out of them, in pixels; 0: none.

    Raises:
        UserError: an unknown name or `GIVEN`, or the data are missing, damaged, or cannot be read or fetched.
    """
    if dataset == GIVEN:
        raise UserError(
            "the images of this run are not in any file that is known: they were given to "
            "vpdarts_fast.search_cells, which has to be given them again, with folder= and resume=True"
        )
    root = None if root is None else root.expanduser()
    library, _, name = dataset.partition(":")
    try:
        if dataset == FOLDER or (library in LIBRARIES and name):
            listing = _listing(dataset, root, download)
            data: ImageData | MappedImages = mapped(listing, options or ImageOptions())
        elif dataset in _LOADERS:
            data = _LOADERS[dataset](root, download)
            _check_fixed(dataset, data, options)
        else:
            known = ", ".join((*DATASETS, *(f"{library}:NAME" for library in LIBRARIES)))
            raise UserError(f"unknown data set {dataset!r}; expected one of {known}")
    except OSError as error:
        raise UserError(f"cannot read data set {dataset}: {error}") from error
    augmentation = augmentation_of(data.augmentation, data.image_size, augment, cutout)
    return data if augmentation == data.augmentation else data.with_augmentation(augmentation)


def _listing(dataset: str, root: Path | None, download: bool) -> Listing:
    """The images of files that are decoded into a cache."""
    library, _, name = dataset.partition(":")
    if library in LIBRARIES:
        return LIBRARIES[library](name, root, download)
    if root is None:
        raise UserError(
            "data set folder needs --data, a folder or a .zip archive with one folder of images for each "
            "class, or with train, val and test, which have them"
        )
    return list_images(root)


def _check_fixed(dataset: str, data: ImageData, options: ImageOptions | None) -> None:
    """Raises `UserError` where images of one size are asked for in another."""
    size = None if options is None else options.image_size
    if size is not None and data.image_size != (size, size):
        height, width = data.image_size
        raise UserError(
            f"--image-size is for folder, hf:NAME and torchvision:NAME: the images of {dataset} are "
            f"{height}x{width}; got {size}"
        )


def _load_digits() -> ImageData:
    """The 1,797 handwritten digits that come with scikit-learn: 1,437 to train, 360 to test."""
    from sklearn.datasets import load_digits

    digits = load_digits()  # images float64 [1797, 8, 8] of whole numbers 0..16
    grey = torch.from_numpy(digits.images * (255 / 16))[:, None]
    # 8x8 is too small for a network that halves its images twice and convolves 3x3 in between.
    grey = F.interpolate(grey, scale_factor=2, mode="bilinear").round().to(torch.uint8)
    images = grey.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    labels = torch.from_numpy(digits.target).long()
    # Consecutive digits are by the same writer, hence a random split. NumPy promises that the stream
    # of RandomState never changes, so the split is the same everywhere.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(images)))
    train, test = order[360:], order[:360]
    return ImageData(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        classes=tuple(str(name) for name in digits.target_names),
        # A mirrored digit is another shape: a 2 becomes an S, and a 5 resembles a 2.
        augmentation=Augmentation(padding=2, flip=False),
    )


def _load_cifar(dataset: str, root: Path, download: bool) -> ImageData:
    """``dataset`` is ``cifar10`` or ``cifar100``."""
    import torchvision

    source = getattr(torchvision.datasets, dataset.upper())
    try:
        # torchvision unpickles its files, and does so only after it has found their checksums right.
        train, test = (source(root, train=is_train, download=download) for is_train in (True, False))
    except (RuntimeError, OSError, HTTPException, TarError, EOFError, zlib.error) as error:
        raise _cifar_error(dataset, root / source.base_folder, source, download, error) from error
    return ImageData(
        name=dataset,
        train_images=torch.from_numpy(np.ascontiguousarray(train.data)),
        train_labels=torch.tensor(train.targets, device="cpu"),
        test_images=torch.from_numpy(np.ascontiguousarray(test.data)),
        test_labels=torch.tensor(test.targets, device="cpu"),
        classes=tuple(train.classes),
        augmentation=Augmentation(padding=4, flip=True),
    )


def _cifar_error(dataset: str, folder: Path, source: Any, download: bool, error: Exception) -> UserError:
    """Tells a failed download, missing files and damaged files from each other, as torchvision does not."""
    names = [name for name, _ in source.train_list + source.test_list] + [source.meta["filename"]]
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return UserError(
            f"data set {dataset} in {folder} is damaged or cannot be read: {error}; if it is damaged delete "
            "that folder and fetch it again with `--download`"
        )
    if download:
        return UserError(
            f"cannot download data set {dataset} into {folder.parent}: {error}. "
            "To try the program without any download use `--dataset digits`"
        )
    return not_found(
        dataset,
        f"{', '.join(missing)} in {folder}",
        f"fetch it with `--download`, or unpack {source.filename} in {folder.parent}",
    )


_NPZ_DTYPES: dict[str, type[np.generic]] = {
    "train_images": np.uint8,
    "train_labels": np.int64,
    "test_images": np.uint8,
    "test_labels": np.int64,
    "classes": np.str_,
}


def _load_npz(path: Path | None) -> ImageData:
    """One ``.npz`` file with the arrays of `_NPZ_DTYPES`, shaped as `ImageData` says."""
    keys = ", ".join(_NPZ_DTYPES)
    if path is None:
        raise UserError(f"data set npz needs the path of an .npz file as its root, with the arrays {keys}")
    if not path.is_file():
        raise not_found("npz", str(path), f"write the arrays {keys} into one file with numpy.savez")
    try:
        arrays = _read_npz(path)
        classes = arrays.pop("classes")
        if classes.ndim != 1:
            raise UserError(f"classes must be a list of names; got shape {list(classes.shape)}")
        return ImageData(
            name=path.stem,
            classes=tuple(str(name) for name in classes),
            augmentation=Augmentation(padding=4, flip=True),
            **{key: torch.from_numpy(array) for key, array in arrays.items()},
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of `_NPZ_DTYPES`, each of its dtype; the shapes are as they come."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise UserError("not an .npz file, or its end is missing; write or copy it again")
    arrays = {}
    try:
        _check_unpacked_size(path)
        with np.load(path, allow_pickle=False) as archive:
            for key, dtype in _NPZ_DTYPES.items():
                if key not in archive:
                    raise UserError(f"array {key} is missing; got {', '.join(archive) or 'no arrays'}")
                array = archive[key]
                if not np.issubdtype(array.dtype, dtype):
                    raise UserError(f"{key} must have dtype {np.dtype(dtype).name}; got {array.dtype}")
                arrays[key] = np.asarray(array, dtype, order="C")  # in native byte order
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile archive can raise nearly anything
        raise UserError(
            f"cannot be read ({type(error).__name__}: {error}); write or copy it again, without arrays of "
            "Python objects"
        ) from error
    return arrays


def _check_unpacked_size(path: Path) -> None:
    """Raises `UserError` where the arrays would fill all memory; no more is unpacked than an archive says."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > machine.memory():
        raise UserError(
            f"its arrays take {machine.readable(size)}, and this machine has "
            f"{machine.readable(machine.memory())} of memory; write fewer or smaller images"
        )


_LOADERS: dict[str, Callable[[Path | None, bool], ImageData]] = {
    "digits": lambda root, download: _load_digits(),
    "cifar10": lambda root, download: _load_cifar("cifar10", root or DEFAULT_ROOT, download),
    "cifar100": lambda root, download: _load_cifar("cifar100", root or DEFAULT_ROOT, download),
    "imagenet16-120": lambda root, download: load_imagenet16_120(root or DEFAULT_ROOT),
    "npz": lambda root, download: _load_npz(root),
}

FOLDER = "folder"
"""What the settings of a search call a folder of class folders, or a .zip archive of it."""

DATASETS = (*_LOADERS, FOLDER)
"""What `load` knows, beside the data sets of `LIBRARIES`."""

LIBRARIES: dict[str, Callable[[str, Path | None, bool], Listing]] = {
    "hf": list_hugging_face,
    "torchvision": list_torchvision,
}
"""Packages with data sets of their own, by what stands before the colon of such a name."""

GIVEN = "given"
"""What the settings of a search call images that Python code gave it, and that none of the loaders has."""
