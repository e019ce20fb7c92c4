"""A trained network from its files: `load`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpdarts_fast.bounds import check_bound
from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.formats import TRAINED_NETWORK, shown
from vpdarts_fast.runs.training_files import MOST_CLASSES
from vpdarts_fast.runs.values import mapping, number, whole
from vpdarts_fast.search.settings_files import from_values
from vpdarts_fast.spaces import darts as darts  # so that `Space.named` finds them
from vpdarts_fast.spaces import nas_bench_201 as nas_bench_201
from vpdarts_fast.spaces.space import Space
from vpdarts_fast.train.networks import plain_network
from vpdarts_fast.train.pixels import Source, normalised

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"

LARGEST_IMAGE = 16_384
"""Pixels of a side; what a network is said to take above it is damage."""


@dataclass(frozen=True)
class Prediction:
    """What a network takes an image for.

    Attributes:
        label: the name of the class.
        probability: of it, in 0..1.
        probabilities: of all classes, by their names, the most probable first.
    """

    label: str
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network that was trained, and what it has to know of images.

    Attributes:
        network: in evaluation mode; maps normalised images [N, 3, H, W] to logits [N, classes].
        classes: the name of each class.
        image_size: height and width of the images that it was trained on.
        mean: of each channel of these, float32 [3] in units of 0..255.
        std: their deviation, likewise.
        card: all of model.json: cell, space, preset, accuracy, parameters and so on.
    """

    network: nn.Module
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    mean: Tensor
    std: Tensor
    card: Mapping[str, Any]

    def __call__(self, images: Tensor) -> Tensor:
        """Maps normalised images [N, 3, H, W] to logits [N, classes], without gradients."""
        with torch.no_grad():
            logits: Tensor = self.network(images)
        return logits

    def prepared(self, images: Sequence[Source]) -> Tensor:
        """Reads images and prepares them as those that the network was trained on.

        Args:
            images: paths of files, or images of Pillow, of any size.

        Returns:
            Float32 [N, 3, H, W].

        Raises:
            UserError: a file that is no image.
        """
        return torch.stack([normalised(image, self.image_size, self.mean, self.std) for image in images])

    def predict(self, *images: Source) -> list[Prediction]:
        """What each of the images is taken for; arguments and errors are those of `prepared`."""
        found = []
        for image in images:
            (row,) = self(self.prepared([image])).double().softmax(1)
            order = row.argsort(descending=True, stable=True).tolist()
            probabilities = {self.classes[i]: float(row[i]) for i in order}
            label = self.classes[order[0]]
            found.append(Prediction(label, probabilities[label], probabilities))
        return found


def load(folder: str | Path) -> TrainedNetwork:
    """Loads the network that a training has exported, on the CPU.

    Read are model.json, whose every entry is checked, and model.safetensors, which holds tensors alone:
    nothing in these files can run code, and a file says no more about sizes than it has bytes. Networks of a
    space of your own need its module imported first.

    Args:
        folder: of the training, or any that holds these two files.

    Raises:
        UserError: a file is missing, damaged, or not of the other one.
    """
    folder = Path(folder)
    path = folder / CARD_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} holds no {CARD_FILE}: expected the folder of a finished training "
            "(`python -m vpdarts_fast.train`)"
        )
    card = TRAINED_NETWORK.read_json(path)
    with TRAINED_NETWORK.reading(str(path)):
        check_card(card)
    try:
        kind: Any = Space
        space: Space[Any] = from_values(kind, card["space"], "space", None)
        genotype = space.parse(card["architecture"])
        with torch.device("meta"):
            network = plain_network(space, genotype, len(card["classes"]), card["channels"], card["depth"])
    except UserError as error:
        raise TRAINED_NETWORK.damaged(str(path), error) from error
    network.load_state_dict(_weights(folder / WEIGHTS_FILE, network, card["weights"]), assign=True)
    network.requires_grad_(False)
    mean, std = (torch.tensor(card[name], dtype=torch.float32, device="cpu") for name in ("mean", "std"))
    height, width = card["image_size"]
    return TrainedNetwork(network.eval(), tuple(card["classes"]), (height, width), mean, std, card)


def check_card(card: Mapping[str, Any]) -> None:
    """Checks model.json; raises `KeyError`, `TypeError`, `ValueError` or `UserError` for what is none."""
    for name in ("architecture", "dataset", "preset", "weights"):
        if not isinstance(card[name], str):
            raise ValueError(f"{name} must be text; got {shown(card[name])}")
    classes = card["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes must be a list of names; got {shown(classes)}")
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise ValueError(f"classes must be 2 to {MOST_CLASSES:,} names; got {len(classes)}")
    for name in ("channels", "depth"):
        if card[name] is not None:
            whole(card[name], name, 1)
            try:
                check_bound(name, card[name])
            except UserError as error:
                raise ValueError(str(error)) from error
    sizes, statistics = card["image_size"], (card["mean"], card["std"])
    if len(sizes) != 2 or any(len(values) != 3 for values in statistics):
        raise ValueError("image_size must be two numbers, mean and std three each")
    for size in sizes:
        whole(size, "image_size", 1, LARGEST_IMAGE)
    for value in card["mean"]:
        number(value, "mean", 0, 255)
    for value in card["std"]:
        number(value, "std", 1e-6, 255)
    for name in ("parameters", "multiply_adds"):
        whole(card[name], name, 1)
    number(card["accuracy"], "accuracy", 0, 100)
    mapping(card["latency"], "latency")


def _weights(path: Path, network: nn.Module, digest: str) -> dict[str, Tensor]:
    """The tensors of a file, which have to be those that the network has."""
    from safetensors import SafetensorError
    from safetensors.torch import load as read

    expected = network.state_dict()
    least = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    try:
        size = path.stat().st_size
        if not least <= size <= 2 * least + (1 << 20):
            raise UserError(
                f"{path} is damaged: {size:,} bytes; weights of the network in {CARD_FILE} take "
                f"{least:,} and a header; {TRAINED_NETWORK.remedy}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if digest_of(data) != digest:
        raise UserError(f"{path} is damaged or not the file that {CARD_FILE} is of; {TRAINED_NETWORK.remedy}")
    try:
        tensors = read(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}; {TRAINED_NETWORK.remedy}") from error
    unlike = sorted(tensors.keys() ^ expected.keys()) or [
        name
        for name, tensor in tensors.items()
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype
    ]
    if unlike:
        raise UserError(
            f"{path} does not fit the network in {CARD_FILE}: {len(unlike)} tensors differ, the first "
            f"{shown(unlike[0])}; {TRAINED_NETWORK.remedy}"
        )
    return tensors


def digest_of(data: bytes) -> str:
    """What model.json says of the bytes of the weights' file."""
    return "blake2b " + hashlib.blake2b(data, digest_size=16).hexdigest()
