"""Images of a map-style `torch.utils.data.Dataset`, or of anything else that has numbered items."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset, default_collate

from vpdarts_fast.bounds import BOUNDS
from vpdarts_fast.data.batches import halves_of
from vpdarts_fast.data.pixels import describe
from vpdarts_fast.data.protocol import Split
from vpdarts_fast.errors import UserError

Collate = Callable[[list[Any]], Any]
"""Makes a batch of items, as a `DataLoader` has it."""

PROBES = 8
"""So many items, spread over the data set, are read and collated before anything is trained."""


class DatasetImages:
    """A data set whose items are read when they are needed; `vpdarts_fast.data.protocol.SearchImages`.

    An item is an image, float32 [3, H, W] as torchvision's transforms give it, and a label, a whole number
    from 0. It is read by `dataset[i]` in this process, again in every epoch. Before each item the generators
    of PyTorch (on the CPU), NumPy and Python's `random` are seeded by the search, and afterwards they go on
    as if nothing had been drawn: what transforms draw from them is the same in every run of a seed, stopped
    or not. In evaluations an image is drawn alike every time. What draws from a generator of its own is not
    repeated.

    Args:
        dataset: with `dataset[i]` and `len(dataset)`.
        name: as shown to people; the name of its class if not given.
        num_classes: how many classes there are. If not given as many as `dataset.classes` names, or one
            more than the largest label.
        collate: makes a batch, (images [B, 3, H, W], labels [B]), of a list of items.

    Attributes:
        name: see there.
        train_labels: int64 [N]; from `dataset.targets`, `dataset.labels` or the second tensor of a
            `TensorDataset`, also below `Subset` and `ConcatDataset`, where that fits the items that are
            tried, and else by reading all items once.
        classes: the name of each class; its number where the data set has no names.
        image_size: height and width.

    Raises:
        UserError: it is no map-style data set, its items are not as described above, or a label is out of
            range. A few items are tried; what is wrong with others is found when they are read.
    """

    capturable = False
    """What items do is nothing that a CUDA graph can hold."""

    def __init__(
        self,
        dataset: Any,
        *,
        name: str | None = None,
        num_classes: int | None = None,
        collate: Collate = default_collate,
    ) -> None:
        self.name = type(dataset).__name__ if name is None else name
        self._dataset, self._collate = dataset, collate
        count = _length(dataset, self.name)
        probes = sorted(set(torch.linspace(0, count - 1, PROBES, dtype=torch.float64).long().tolist()))
        with generators_kept():
            items = [_read(dataset, probe, probe, self.name) for probe in probes]
            self.train_labels = _labels(dataset, count, dict(zip(probes, items, strict=True)), self.name)
            self.image_size = (items[0][0].shape[1], items[0][0].shape[2])
            self.classes = _classes(dataset, self.train_labels, num_classes, self.name)
            self._indices = torch.arange(count, device="cpu")
            self._half(self._indices)._collated(items)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def digest(self) -> str:
        """Of the number and the size of the images, the number of classes and all labels.

        Of the images themselves nothing: to read them all takes as long as an epoch. A search is refused
        other labels, and not other images with the same ones.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{len(self.train_labels)} {self.image_size} {self.num_classes}".encode())
        digest.update(self.train_labels.contiguous().numpy().data)
        return f"labels blake2b {digest.hexdigest()}"

    def subset(self, indices: Tensor) -> DatasetImages:
        """The data set with only some of its images, int64 [n], in this order."""
        part = object.__new__(DatasetImages)
        vars(part).update(vars(self))
        part.train_labels, part._indices = self.train_labels[indices], self._indices[indices]
        return part

    def halves(self, seed: int, split: Split = "random") -> tuple[DatasetHalf, DatasetHalf]:
        """A training and a validation half; which images are in which is as in `ImageData`.

        Raises:
            UserError: fewer than two images.
        """
        training, validation = halves_of(self.name, len(self._indices), seed, split)
        return self._half(self._indices[training]), self._half(self._indices[validation])

    def _half(self, indices: Tensor) -> DatasetHalf:
        return DatasetHalf(
            self._dataset, indices, self.name, self.image_size, self.num_classes, self._collate
        )


class DatasetHalf:
    """Some items of a data set as batches (`vpdarts_fast.data.protocol.ImageHalf`).

    Args:
        dataset: with `dataset[i]`.
        indices: int64 [N], which items it has.
        name: of the data set, for errors.
        image_size: height and width that all images have to have.
        num_classes: above all labels.
        collate: makes a batch of a list of items.
        device: where batches go.
    """

    def __init__(
        self,
        dataset: Any,
        indices: Tensor,
        name: str,
        image_size: tuple[int, int],
        num_classes: int,
        collate: Collate,
        device: torch.device | str = "cpu",
    ) -> None:
        self._dataset, self._indices, self._name = dataset, indices, name
        self.image_size, self._num_classes, self._collate = image_size, num_classes, collate
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self._indices)

    def draw(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """int64 [2, B]: which items of the data set, and a seed for each; without a generator its number.

        Args:
            indices: int64 [B], each in 0..len(self)-1.
            generator: a CPU generator that the seeds come from.
        """
        items = self._indices[indices]
        if generator is None:
            return torch.stack([items, items])
        seeds = torch.randint(1 << 62, (len(items),), generator=generator, device="cpu")
        return torch.stack([items, seeds])

    def take(self, draw: Tensor) -> tuple[Tensor, Tensor]:
        """Reads and collates the items that `draw` [2, B] names.

        Returns:
            Images, float32 [B, 3, H, W] in channels_last memory, and labels, int64 [B], on the set's device.

        Raises:
            UserError: an item is no image with a label, or of another size than the first one, or its label
                is out of range.
        """
        with generators_kept():
            pairs = zip(*draw.tolist(), strict=True)
            items = [_read(self._dataset, item, seed, self._name) for item, seed in pairs]
            images, labels = self._collated(items)
        return images.to(self.device, memory_format=torch.channels_last), labels.to(self.device)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """`take` of `draw`."""
        return self.take(self.draw(indices, generator))

    def to(self, device: torch.device) -> DatasetHalf:
        """The same half, whose batches are copied to a device."""
        return DatasetHalf(
            self._dataset,
            self._indices,
            self._name,
            self.image_size,
            self._num_classes,
            self._collate,
            device,
        )

    def _collated(self, items: list[tuple[Tensor, Any]]) -> tuple[Tensor, Tensor]:
        """The batch of some items: images [B, 3, H, W] and labels [B]."""
        count, (height, width) = len(items), self.image_size
        for image, _ in items:
            if tuple(image.shape[1:]) != self.image_size:
                raise UserError(
                    f"{self._name}: all images must have one size, {height}x{width} as the first one; got "
                    f"{image.shape[1]}x{image.shape[2]}. Put a Resize or a crop into the transform"
                )
        try:
            batch = self._collate(items)
            images, labels = batch
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{self._name}: its items make no batch (images, labels): {error}") from error
        wanted = f"(images float32 [{count}, 3, {height}, {width}], labels int64 [{count}])"
        if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
            got = f"({_described(images)}, {_described(labels)})"
            raise UserError(f"{self._name}: a batch must be {wanted}; got {got}")
        whole = labels.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        if (
            images.dtype != torch.float32
            or not whole
            or images.shape != (count, 3, height, width)
            or labels.shape != (count,)
        ):
            got = f"({describe(images)}, {describe(labels)})"
            raise UserError(f"{self._name}: a batch must be {wanted}; got {got}")
        _check_labels(labels, self._num_classes, self._name)
        return images, labels.long()


def _length(dataset: Any, name: str) -> int:
    """How many items there are; `UserError` if it is no map-style data set."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise UserError(
            f"{name} can only be iterated: a search reads images by number, in an order of its own. It needs "
            "a map-style data set, with dataset[i] and len(dataset)"
        )
    try:
        count = len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise UserError(f"{name} has no length: a search needs len(dataset)") from error
    if count < 1:
        raise UserError(f"{name} has no images")
    return count


def _read(dataset: Any, index: int, seed: int, name: str) -> tuple[Tensor, Any]:
    """The item with a number, read with these generators seeded; `UserError` unless it is as it should be."""
    seed_generators(seed)
    item = dataset[index]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise UserError(f"{name}: an item must be (image, label); item {index} is {_described(item)}")
    image, label = item
    if not isinstance(image, Tensor):
        raise UserError(
            f"{name}: an image must be a tensor, float32 [3, H, W]; item {index} has {_described(image)}. "
            "torchvision.transforms.ToTensor() as the data set's transform makes one"
        )
    if image.dtype != torch.float32 or image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise UserError(
            f"{name}: an image must be float32 [3, H, W]; item {index} has {describe(image)}. "
            + _advice(image)
        )
    whole = isinstance(label, (int, np.integer)) or (
        isinstance(label, Tensor) and label.ndim == 0 and not label.is_floating_point()
    )
    if not whole:
        raise UserError(f"{name}: a label must be a whole number; item {index} has {_described(label)}")
    return image, label


def _advice(image: Tensor) -> str:
    """What makes an image of another kind fit."""
    if image.ndim == 3 and image.shape[0] == 1:
        return "torchvision.transforms.Grayscale(3) makes three channels of one"
    if not image.is_floating_point():
        return "torchvision.transforms.ConvertImageDtype(torch.float32) brings 0..255 to 0..1"
    if image.dtype != torch.float32:
        return "image.float() makes one"
    return "Its channels come first, and there are three"


def _described(value: Any) -> str:
    """A value of the wrong kind, for an error."""
    if isinstance(value, Tensor):
        return describe(value)
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r}"[:60] if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"


def _labels(dataset: Any, count: int, probed: dict[int, tuple[Tensor, Any]], name: str) -> Tensor:
    """int64 [count], as the data set has them if that fits the probed items by number, else as items say."""
    labels = _known_labels(dataset)
    if labels is not None and all(int(labels[index]) == int(item[1]) for index, item in probed.items()):
        return labels
    read = (probed.get(index) or _read(dataset, index, index, name) for index in range(count))
    return torch.tensor([int(label) for _, label in read], dtype=torch.int64, device="cpu")


def _known_labels(dataset: Any) -> Tensor | None:
    """int64 [N], without reading any item; None where it cannot be told."""
    if isinstance(dataset, Subset):
        labels = _known_labels(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [_known_labels(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if isinstance(dataset, TensorDataset):
        values: Any = dataset.tensors[1] if len(dataset.tensors) == 2 else None
    else:
        values = getattr(dataset, "targets", getattr(dataset, "labels", None))
    try:
        labels = torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        return None
    if labels.shape != (len(dataset),) or labels.is_floating_point() or labels.is_complex():
        return None
    return labels.long()


def _classes(dataset: Any, labels: Tensor, num_classes: int | None, name: str) -> tuple[str, ...]:
    """The name of each class; `UserError` for a label that is of none."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if isinstance(dataset, ConcatDataset):
        dataset = dataset.datasets[0]
    names = getattr(dataset, "classes", None)
    known = names if isinstance(names, Sequence) and not isinstance(names, str) else ()
    most = BOUNDS["num_classes"].most
    count = num_classes or len(known) or min(int(labels.max()) + 1, int(most))
    _check_labels(labels, count, name)
    return tuple(str(known[label]) if len(known) == count else str(label) for label in range(count))


def _check_labels(labels: Tensor, num_classes: int, name: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"{name}: labels must be in 0..{num_classes - 1:,}, one number for each of the {num_classes:,} "
            f"classes; got {low:,}..{high:,}"
        )


@contextmanager
def generators_kept() -> Iterator[None]:
    """Behind it PyTorch on the CPU, NumPy and `random` go on as if nothing had been drawn within."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def seed_generators(seed: int) -> None:
    """Makes PyTorch on the CPU, NumPy and `random` draw by a seed in 0..2**63-1."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % (1 << 32))
    random.seed(seed)
