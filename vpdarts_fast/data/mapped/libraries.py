"""Lists the images of data sets that other packages know by name: Hugging Face's `datasets`, torchvision."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vpdarts_fast.data.mapped.folders import SPLITS, read_file
from vpdarts_fast.data.mapped.listing import Listing, identity_of, printable
from vpdarts_fast.errors import UserError

TORCHVISION: dict[str, tuple[tuple[dict[str, Any], ...], dict[str, Any]]] = {
    **dict.fromkeys(
        ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS"),
        (({"train": True},), {"train": False}),
    ),
    **dict.fromkeys(
        ("Food101", "GTSRB", "StanfordCars", "STL10", "SVHN"), (({"split": "train"},), {"split": "test"})
    ),
    **dict.fromkeys(
        ("DTD", "Flowers102", "PCAM", "RenderedSST2"),
        (({"split": "train"}, {"split": "val"}), {"split": "test"}),
    ),
    **dict.fromkeys(("FGVCAircraft", "OxfordIIITPet"), (({"split": "trainval"},), {"split": "test"})),
    "Country211": (({"split": "train"}, {"split": "valid"}), {"split": "test"}),
    "FakeData": (({"random_offset": 0},), {"random_offset": 1_000_000}),
}
"""Of each data set, what its parts are asked for by: those that a search may use, and the one that tests."""


def list_torchvision(name: str, root: Path | None, download: bool) -> Listing:
    """Lists a data set of torchvision.

    Args:
        name: of its class, a key of `TORCHVISION`.
        root: the folder with all data sets; ./data if not given.
        download: fetch it if it is not there yet.

    Raises:
        UserError: there is none of this name, or it is not there.
    """
    if name not in TORCHVISION:
        raise UserError(
            f"unknown data set torchvision:{name}; expected one of {', '.join(sorted(TORCHVISION))}"
        )
    import torchvision

    source, folder = getattr(torchvision.datasets, name), Path("data") if root is None else root
    training, testing = TORCHVISION[name]
    more: dict[str, Any] = {} if name == "FakeData" else {"root": folder, "download": download}
    try:
        parts = [source(**asked, **more) for asked in (*training, testing)]
    except (RuntimeError, OSError, ImportError, ValueError, EOFError) as error:
        raise UserError(
            f"data set torchvision:{name} in {folder} cannot be read: {error}. "
            + ("" if download else "Fetch it with `--download`, or name its folder by --data")
        ) from error
    sizes = [len(part) for part in parts]
    labels = np.concatenate([_labels_of(part, f"torchvision:{name}") for part in parts])
    starts = np.cumsum([0, *sizes])

    def read(index: int) -> Any:
        part = int(np.searchsorted(starts, index, side="right")) - 1
        return parts[part][index - int(starts[part])][0]

    names = [f"{_said(asked)} {i}" for asked, size in zip((*training, testing), sizes, strict=True)
             for i in range(size)]  # fmt: skip
    classes = getattr(parts[0], "classes", None)
    return Listing(
        name=name,
        classes=_class_names(classes, labels, f"torchvision:{name}"),
        names=names,
        labels=labels,
        training=sum(sizes[:-1]),
        identity=identity_of([name, torchvision.__version__, *map(str, sizes), *_files_of(folder, more)]),
        read=_one_at_a_time(read),
    )


def _one_at_a_time(read: Callable[[int], Any]) -> Callable[[int], Any]:
    """The same for several threads: whether a data set may be read by them is for it to know."""
    lock = threading.Lock()

    def locked(index: int) -> Any:
        with lock:
            return read(index)

    return locked


def _said(asked: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in asked.items())


def _files_of(folder: Path, asked: Mapping[str, Any]) -> list[str]:
    """Names, sizes and times of all files that a data set may have been read from."""
    if not asked:
        return []
    found = []
    for inner, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(inner) / name for name in sorted(names)):
            status = path.lstat()
            found += [str(path.relative_to(folder)), f"{status.st_size} {status.st_mtime_ns}"]
    return found


def _labels_of(part: Any, name: str) -> npt.NDArray[np.int64]:
    """The class of each item, from where data sets of torchvision keep them, or else from the items."""
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(part, attribute, None)
        if values is not None and len(values) == len(part):
            break
    else:
        values = [part[index][1] for index in range(len(part))]
    labels = np.asarray(values)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"data set {name} has no classes as whole numbers; got {labels.dtype} {labels.shape}")
    return labels.astype(np.int64)


def _class_names(classes: Any, labels: npt.NDArray[np.int64], name: str) -> tuple[str, ...]:
    count = int(labels.max(initial=-1)) + 1
    if labels.min(initial=0) < 0 or count > max(len(labels), 1):
        raise UserError(
            f"data set {name} has labels {labels.min()}..{labels.max()}; expected whole numbers from 0"
        )
    if isinstance(classes, Sequence) and not isinstance(classes, str) and len(classes) >= count:
        return tuple(printable(str(each)) for each in classes)
    return tuple(map(str, range(count)))


def list_hugging_face(name: str, root: Path | None, download: bool) -> Listing:
    """Lists a data set of Hugging Face's `datasets`; needs that package.

    Args:
        name: as `datasets.load_dataset` takes it; a configuration behind a colon.
        root: a folder that `save_to_disk` wrote, which is then read; None looks where `datasets` has its own.
        download: fetch it if it is not there yet.

    Raises:
        UserError: the package is not installed, the data set is not there, or it has no images with classes.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "--dataset hf:NAME needs the package datasets: pip install 'vpdarts-fast[datasets]'"
        ) from error
    path, _, configuration = name.partition(":")
    called = f"hf:{name}"
    try:
        if root is not None:
            loaded = datasets.load_from_disk(str(root))
        else:
            with nullcontext() if download else _offline():
                loaded = datasets.load_dataset(path, configuration or None)
    except Exception as error:  # of the network, of files, of what somebody has written on the hub
        how = "" if download else "; fetch it with `--download`, or name a folder of save_to_disk by --data"
        raise UserError(f"data set {called} cannot be read: {str(error)[:300]}{how}") from error
    if isinstance(loaded, datasets.Dataset):
        loaded = datasets.DatasetDict({"train": loaded})
    return _of_splits(loaded, called)


@contextmanager
def _offline() -> Iterator[None]:
    """Within, `datasets` asks no other machine for anything, as with HF_HUB_OFFLINE in the environment."""
    import datasets
    import huggingface_hub

    places: tuple[Any, ...] = datasets.config, huggingface_hub.constants
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _of_splits(loaded: Any, called: str) -> Listing:
    """Lists the images of the splits of a data set that `datasets` has loaded."""
    import datasets

    splits = {SPLITS[split.lower()]: loaded[split] for split in loaded if split.lower() in SPLITS}
    if "train" not in splits:
        raise UserError(f"data set {called} has no split train; it has {', '.join(loaded)}")
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    order = [split for split in ("train", "val", "test") if split in splits]
    image, label = _columns(splits["train"].features, called)
    parts = [splits[split].cast_column(image, datasets.Image(decode=False)) for split in order]
    labels = np.concatenate([np.asarray(part.with_format("numpy")[label][:]) for part in parts])
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"data set {called}: the column {label} must have whole numbers; got {labels.dtype}")
    starts = np.cumsum([0, *(len(part) for part in parts)])
    columns = [part.select_columns([image]) for part in parts]

    def read(index: int) -> bytes:
        part = int(np.searchsorted(starts, index, side="right")) - 1
        found = columns[part][index - int(starts[part])][image]
        if found is None:
            raise UserError("there is none")
        if found["bytes"] is not None:
            return bytes(found["bytes"])
        return read_file(Path(found["path"]))

    names = [f"{split} {i}" for split, part in zip(order, parts, strict=True) for i in range(len(part))]
    classes = getattr(splits["train"].features[label], "names", None)
    return Listing(
        name=called.removeprefix("hf:"),
        classes=_class_names(classes, labels.astype(np.int64), called),
        names=names,
        labels=labels.astype(np.int64),
        training=int(starts[-1]) - (len(parts[-1]) if order[-1] == "test" else 0),
        identity=identity_of([*order, image, label, *(splits[split]._fingerprint for split in order)]),
        read=_one_at_a_time(read),
    )


def _columns(features: Mapping[str, Any], called: str) -> tuple[str, str]:
    """The names of the columns of images and of classes."""
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    known = [name for name in ("label", "labels", "fine_label") if name in features]
    if not images or not (known or classes):
        raise UserError(
            f"data set {called} needs a column of images and one of classes (ClassLabel, or called label); "
            f"it has {', '.join(f'{name}: {type(feature).__name__}' for name, feature in features.items())}"
        )
    return images[0], (known or classes)[0]
