"""What the epochs of a search measure, and its way into files and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import LeaveOneOut
from vpdarts_fast.runs.formats import shown
from vpdarts_fast.runs.values import number, numbers_by_name, truth, whole
from vpdarts_fast.search.methods.stopping import Watched
from vpdarts_fast.spaces.space import Space


class Mean:
    """Loss and accuracy over the images of an epoch so far, added up on the device that they come from."""

    def __init__(self, loss: float = 0.0, correct: int = 0, images: int = 0) -> None:
        self._sums = torch.tensor([loss, correct], dtype=torch.float64, device="cpu")
        self._images = images

    def add(self, sums: Tensor, images: int) -> None:
        """Adds what `step_sums` gives of so many images."""
        self._sums = self._sums.to(sums.device).add_(sums)
        self._images += images

    def summary(self) -> tuple[float | None, float | None]:
        """Mean loss and accuracy in per cent; None without images."""
        if not self._images:
            return None, None
        loss, correct = self._sums.tolist()
        return loss / self._images, 100 * correct / self._images

    @classmethod
    def together(cls, means: Sequence[Mean]) -> Mean:
        """Joins means into that over the images of all of them; of one it is that itself."""
        if len(means) == 1:
            return means[0]
        loss, correct = torch.stack([mean._sums.cpu() for mean in means]).sum(0).tolist()
        return cls(loss, int(correct), sum(mean._images for mean in means))

    def to_dict(self) -> dict[str, Any]:
        """Returns the arguments of a new one that goes on from here."""
        loss, correct = self._sums.tolist()
        return {"loss": loss, "correct": int(correct), "images": self._images}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str) -> Mean:
        """The inverse of `to_dict`; raises `ValueError` or `KeyError` for anything else."""
        images = whole(values["images"], f"images of {name}")
        correct = whole(values["correct"], f"correct images of {name}", 0, images)
        return cls(number(values["loss"], f"loss of {name}"), correct, images)


def step_sums(loss: Tensor, correct: Tensor, images: int) -> Tensor:
    """Sums up a step as [2] float64: the loss summed over its images, and how many were right.

    Args:
        loss: [], the mean over the images.
        correct: [], how many were right.
        images: how many there are.
    """
    return torch.stack([loss.double() * images, correct.double()])


@dataclass
class EpochRecord:
    """What an epoch measured so far; part of the checkpoint, since a search can stop inside an epoch.

    Attributes:
        weights: of the weights steps.
        alpha: of the alpha steps.
        began: the evaluation and the pruning that begin the epoch are done.
        evaluation: as `evaluation_to_json` writes it.
        decay: the factor of soft pruning.
        genotype: what the supernet would select, as text.
        tau: Kendall's tau of that selection's importance with the true ranking, where there is one.
        seconds: of each phase.
    """

    weights: Mean = field(default_factory=Mean)
    alpha: Mean = field(default_factory=Mean)
    began: bool = False
    evaluation: dict[str, Any] | None = None
    decay: float | None = None
    genotype: str | None = None
    tau: float | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"leave_one_out": 0.0, "train": 0.0})

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for a checkpoint, as `from_dict` takes them."""
        return {**vars(self), "weights": self.weights.to_dict(), "alpha": self.alpha.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], space: Space[Any]) -> EpochRecord:
        """The inverse of `to_dict`; raises `ValueError`, `KeyError` or `TypeError` for anything else."""
        truth(values["began"], "began")
        if values["genotype"] is not None:
            check_genotype(values["genotype"], space)
        for name in ("decay", "tau"):
            if values[name] is not None:
                number(values[name], name)
        if values["evaluation"] is not None:
            check_evaluation(values["evaluation"], space.shape)
        seconds = numbers_by_name(values["seconds"], "seconds", 0)
        if seconds.keys() != cls().seconds.keys():
            raise ValueError(f"seconds are of {', '.join(cls().seconds)}; got {shown(seconds)}")
        means = {name: Mean.from_dict(values[name], name) for name in ("weights", "alpha")}
        return cls(**{**values, **means, "seconds": seconds})


def check_genotype(text: Any, space: Space[Any]) -> None:
    """Raises `ValueError` unless it is a choice in the space, as text."""
    try:
        space.parse(text if isinstance(text, str) else shown(text))
    except UserError as error:
        raise ValueError(str(error)) from error


def check_evaluation(values: Mapping[str, Any], shape: tuple[int, int]) -> None:
    """Raises `ValueError`, `KeyError` or `TypeError` unless it is what `evaluation_to_json` makes."""
    for name in ("accuracy", "loss"):
        check_table(values[name], name, shape)
        for row in values[name]:
            for value in row:
                number(value, name, 0)
    number(values["base_accuracy"], "base_accuracy", 0, 100)
    number(values["base_loss"], "base_loss", 0)
    images = whole(values["images"], "images", 1)
    if values["op_images"] is not None:
        check_table(values["op_images"], "op_images", shape)
        for row in values["op_images"]:
            for value in row:
                whole(value, "op_images", 1, images)
    if not isinstance(values["batch_norm"], str):
        raise ValueError(f"batch_norm must be text; got {shown(values['batch_norm'])}")


def check_table(table: Any, name: str, shape: tuple[int, int]) -> None:
    """Raises `ValueError` or `TypeError` unless it is [E, O]."""
    edges, ops = shape
    if [len(row) for row in table] != [ops] * edges:
        raise ValueError(f"{name} must be [{edges}, {ops}]; got {shown(table)}")


def evaluation_to_json(evaluation: LeaveOneOut, batch_norm: str) -> dict[str, Any]:
    """Turns an evaluation into plain values, as they stand in metrics.jsonl and result.json."""
    return {
        "accuracy": evaluation.accuracy.tolist(),
        "loss": evaluation.loss.tolist(),
        "base_accuracy": evaluation.base_accuracy,
        "base_loss": evaluation.base_loss,
        "images": evaluation.images,
        "op_images": None if evaluation.op_images is None else evaluation.op_images.tolist(),
        "batch_norm": batch_norm,
    }


def evaluation_from_json(values: Mapping[str, Any]) -> LeaveOneOut:
    """Makes an evaluation of what `evaluation_to_json` returned, bit for bit."""
    tables = {
        name: torch.tensor(values[name], dtype=torch.float64, device="cpu") for name in ("accuracy", "loss")
    }
    return LeaveOneOut(
        **tables,
        base_accuracy=values["base_accuracy"],
        base_loss=values["base_loss"],
        images=values["images"],
        op_images=None if values["op_images"] is None else torch.tensor(values["op_images"], device="cpu"),
    )


def watched_from_json(values: Mapping[str, Any]) -> Watched:
    """What was watched in an epoch, as its line of metrics.jsonl has it."""
    return Watched(**values)


def numbers(table: Tensor) -> list[list[float]]:
    """Turns a table [E, O] into plain lists."""
    rows: list[list[float]] = table.detach().cpu().tolist()
    return rows


def plain(tables: Mapping[str, Tensor]) -> dict[str, Any]:
    """Turns tables into plain lists, by their names."""
    return {name: table.detach().cpu().tolist() for name, table in tables.items()}
