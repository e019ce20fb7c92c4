"""Everything a search changes as it goes, and its way into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.acceleration import accelerate
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import LeaveOneOut
from vpdarts_fast.runs.formats import shown
from vpdarts_fast.runs.values import number, numbers_by_name, tensor_like, tensors_like, whole
from vpdarts_fast.runtime.graphs import captures
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.methods.moment import Moment
from vpdarts_fast.search.methods.regularisers import Regulariser
from vpdarts_fast.search.methods.relaxations import Relaxation
from vpdarts_fast.search.methods.variations import Variation
from vpdarts_fast.search.optimizers import CapturableSGD, adapted, alpha_optimizer, weights_optimizer
from vpdarts_fast.search.settings import MethodSettings
from vpdarts_fast.search.streams import seed_for, stream
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
        seconds: of each phase.
    """

    weights: Mean = field(default_factory=Mean)
    alpha: Mean = field(default_factory=Mean)
    began: bool = False
    evaluation: dict[str, Any] | None = None
    decay: float | None = None
    genotype: str | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"leave_one_out": 0.0, "train": 0.0})

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for a checkpoint, as `from_dict` takes them."""
        return {**vars(self), "weights": self.weights.to_dict(), "alpha": self.alpha.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], space: Space[Any]) -> EpochRecord:
        """The inverse of `to_dict`; raises `ValueError`, `KeyError` or `TypeError` for anything else."""
        if not isinstance(values["began"], bool):
            raise ValueError(f"began must be true or false; got {shown(values['began'])}")
        if values["genotype"] is not None:
            check_genotype(values["genotype"], space)
        if values["decay"] is not None:
            number(values["decay"], "decay")
        if values["evaluation"] is not None:
            check_evaluation(values["evaluation"], space.shape)
        seconds = numbers_by_name(values["seconds"], "seconds", 0)
        if seconds.keys() != cls().seconds.keys():
            raise ValueError(f"seconds are of {', '.join(cls().seconds)}; got {shown(seconds)}")
        means = {name: Mean.from_dict(values[name], name) for name in ("weights", "alpha")}
        return cls(**{**values, **means, "seconds": seconds})


class SearchState:
    """Supernet, alpha, optimisers, schedule and position.

    Attributes:
        alpha: [E, O], a leaf that requires a gradient.
        tables: what the variation trains beside alpha, leaves that require gradients.
        alive: [E, O] bool; False where an edge has no such op, or progressive hard pruning removed it.
        moments: of each part that keeps something, by its kind.
        epoch: the epoch in progress, from 0.
        step: the step of it that comes next.
        seconds: per phase, over the whole search.
    """

    def __init__(self, config: SearchConfig, num_classes: int, device: torch.device) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(config.search.seed, "initial weights"))
            supernet = config.method.variation.supernet(
                config.space, num_classes, fused=config.execution.fused, backend=config.execution.backend
            )
        self.space, self.method = config.space, config.method
        self.supernet = supernet.to(device).train()
        if config.execution.fused and not config.fused_by_itself:
            self.supernet.to(memory_format=torch.channels_last)  # as batches of images are
            accelerate(self.supernet, backend=config.execution.backend)
        weight = next(self.supernet.parameters())
        self.alpha = first_alpha(config).to(weight.device, weight.dtype).requires_grad_()
        self.tables = {
            name: table.to(weight.device, weight.dtype).requires_grad_()
            for name, table in first_tables(config).items()
        }
        self.alive = config.space.present.to(weight.device)
        self._epoch = torch.zeros((), dtype=torch.float64, device=weight.device)
        self.moments = {
            kind: Moment(self._epoch, config.epochs, moved(part.new_state(config.space.shape), weight.device))
            for kind, part in parts_with_state(config.method).items()
        }
        captured = config.execution.cuda_graphs and captures(device)
        self.weights_optimizer = weights_optimizer(self.supernet.parameters(), config, captured)
        self.alpha_optimizer = alpha_optimizer(self.alpha, config, captured, self.tables.values())
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.weights_optimizer, T_max=config.epochs, eta_min=config.optimisers.learning_rate_end
        )
        self.epoch = 0
        self.step = 0
        self.record = EpochRecord()
        self.seconds: dict[str, float] = {}

    def weights_of(self, alpha: Tensor) -> Tensor:
        """What the supernet is called with, [E, O + further], of alpha [E, O]."""
        weights = self.method.relaxation.weights(alpha, self.alive, self.moments["relaxation"])
        return self.method.variation.weights(weights, self.tables, self.space, self.moments["variation"])

    def penalty(self, alpha: Tensor) -> Tensor | None:
        """What the method's regulariser adds to the loss of an alpha step."""
        return self.method.regulariser.term(alpha, self.alive, self.moments["regulariser"])

    def publish_epoch(self) -> None:
        """Makes steps take epoch and learning rate as they are now, also those already captured."""
        self._epoch.fill_(self.epoch)
        if isinstance(self.weights_optimizer, CapturableSGD):
            self.weights_optimizer.publish()

    _PARTS = ("supernet", "weights_optimizer", "alpha_optimizer", "schedule")

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and plain values for `checkpoint.save`."""
        return {
            **{part: getattr(self, part).state_dict() for part in self._PARTS},
            "alpha": self.alpha.detach(),
            "tables": detached(self.tables),
            "alive": self.alive,
            "parts": {kind: dict(moment.state) for kind, moment in self.moments.items()},
            "epoch": self.epoch,
            "step": self.step,
            "record": self.record.to_dict(),
            "seconds": self.seconds,
        }

    def snapshot(self) -> dict[str, Any]:
        """Returns the part of `state_dict` that leave-one-out evaluation looks at."""
        return {
            "supernet": self.supernet.state_dict(),
            "alpha": self.alpha.detach(),
            "tables": detached(self.tables),
            "alive": self.alive,
            "parts": {kind: dict(moment.state) for kind, moment in self.moments.items()},
            "epoch": self.epoch,
        }

    def load_state_dict(self, content: Mapping[str, Any], source: str, *, epochs: int, steps: int) -> None:
        """The inverse of `state_dict`.

        Args:
            content: what a checkpoint holds.
            source: its name in errors.
            epochs: how many the search has.
            steps: how many an epoch has.

        Raises:
            UserError: naming `source`, where it does not fit this search in any shape, type or range.
        """
        with fitting(source):
            self.supernet.load_state_dict(
                tensors_like(content["supernet"], self.supernet.state_dict(), "supernet")
            )
            for optimizer, name in (
                (self.weights_optimizer, "weights_optimizer"), (self.alpha_optimizer, "alpha_optimizer")
            ):  # fmt: skip
                optimizer.load_state_dict(adapted(content[name], optimizer))
            with torch.no_grad():
                self.alpha.copy_(tensor_like(content["alpha"], self.alpha, "alpha"))
                for name, table in tensors_like(content["tables"], self.tables, "tables").items():
                    self.tables[name].copy_(table)
                self.alive.copy_(tensor_like(content["alive"], self.alive, "alive"))
            self.epoch = whole(content["epoch"], "epoch", 0, epochs)
            # Stopped between the last step of an epoch and its end, all steps are done.
            self.step = whole(content["step"], "step", 0, steps if self.epoch < epochs else 0)
            self._load_schedule(content["schedule"])
            # Or the schedule warns where an epoch has no step left, as PyTorch wants one before it goes on.
            self.weights_optimizer._opt_called = True  # type: ignore[attr-defined]
            self.record = EpochRecord.from_dict(content["record"], self.space)
            for kind, moment in self.moments.items():
                kept = tensors_like(content["parts"].get(kind, {}), moment.state, f"the state of {kind}")
                for name, tensor in moment.state.items():
                    tensor.copy_(kept[name])
            self.seconds = numbers_by_name(content["seconds"], "seconds", 0)

    def _load_schedule(self, saved: Mapping[str, Any]) -> None:
        """The position of the schedule; everything else of it follows from the settings."""
        whole(saved["last_epoch"], "last_epoch", self.epoch, self.epoch)
        (rate,) = saved["_last_lr"]
        position = {
            "last_epoch": self.epoch,
            "_step_count": whole(saved["_step_count"], "_step_count"),
            "_last_lr": [number(rate, "_last_lr", 0)],
        }
        self.schedule.load_state_dict({**self.schedule.state_dict(), **position})


def first_alpha(config: SearchConfig) -> Tensor:
    """Says where alpha starts, [E, O] float64 on the CPU; a supernet's noise is drawn by its own seed."""
    present = config.space.present
    start = config.method.alpha_start
    row = 1 / present.sum(1, dtype=torch.float64) if start is None else torch.tensor(start).double()
    alpha = row.view(-1, 1).expand(present.shape) * present
    if config.method.alpha_noise:
        noise = torch.empty_like(alpha).normal_(generator=stream(config.search.seed, "alpha noise"))
        alpha += config.method.alpha_noise * noise * present
    return alpha


def first_tables(config: SearchConfig) -> dict[str, Tensor]:
    """Says where what is trained beside alpha starts: float64 on the CPU; drawn by the supernet's seed."""
    return config.method.variation.new_tables(config.space, stream(config.search.seed, "tables"))


@contextmanager
def fitting(source: str) -> Iterator[None]:
    """Turns what state of another search raises within into a `UserError` naming `source`."""
    try:
        yield
    except KeyError as error:
        raise UserError(
            f"{source} does not fit the settings of its run: the entry {shown(error.args[0])} is missing"
        ) from error
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{source} does not fit the settings of its run: {error}") from error


def parts_with_state(method: MethodSettings) -> dict[str, Relaxation | Regulariser | Variation]:
    """The parts that may keep something from one call to the next, by their kinds."""
    return {
        "relaxation": method.relaxation,
        "regulariser": method.regulariser,
        "variation": method.variation,
    }


def detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values without gradients."""
    return {name: tensor.detach() for name, tensor in tensors.items()}


def moved(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Moves tensors to a device."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


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


def numbers(table: Tensor) -> list[list[float]]:
    """Turns a table [E, O] into plain lists."""
    rows: list[list[float]] = table.detach().cpu().tolist()
    return rows


def plain(tables: Mapping[str, Tensor]) -> dict[str, Any]:
    """Turns tables into plain lists, by their names."""
    return {name: table.detach().cpu().tolist() for name, table in tables.items()}
