"""Everything a search changes as it goes, and its way into a checkpoint and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.graphs import captures
from vpdarts_fast.leave_one_out import LeaveOneOut
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.optimizers import CapturableSGD, adapted, alpha_optimizer, weights_optimizer
from vpdarts_fast.search.streams import seed_for
from vpdarts_fast.spaces.nas_bench_201 import Supernet


class Mean:
    """Loss and accuracy over the images of an epoch so far, added up on the device that they come from."""

    def __init__(self, loss: float = 0.0, correct: int = 0, images: int = 0) -> None:
        self._sums = torch.tensor([loss, correct], dtype=torch.float64)
        self._images = images

    def add(self, sums: Tensor, images: int) -> None:
        """What `step_sums` gives of so many images."""
        self._sums = self._sums.to(sums.device).add_(sums)
        self._images += images

    def summary(self) -> tuple[float | None, float | None]:
        """Mean loss and accuracy in per cent; None without images."""
        if not self._images:
            return None, None
        loss, correct = self._sums.tolist()
        return loss / self._images, 100 * correct / self._images

    def to_dict(self) -> dict[str, Any]:
        """The arguments of a new one that goes on from here."""
        loss, correct = self._sums.tolist()
        return {"loss": loss, "correct": int(correct), "images": self._images}


def step_sums(loss: Tensor, correct: Tensor, images: int) -> Tensor:
    """[2] float64 of a step: the loss summed over its images, and how many were right.

    loss [] is their mean, correct [].
    """
    return torch.stack([loss.double() * images, correct.double()])


@dataclass
class EpochRecord:
    """What an epoch measured so far; part of the checkpoint, since a search can stop inside an epoch."""

    weights: Mean = field(default_factory=Mean)
    alpha: Mean = field(default_factory=Mean)
    began: bool = False
    evaluation: dict[str, Any] | None = None
    decay: float | None = None
    choices: list[int] | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"leave_one_out": 0.0, "train": 0.0})

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "weights": self.weights.to_dict(), "alpha": self.alpha.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EpochRecord:
        return cls(**{**values, "weights": Mean(**values["weights"]), "alpha": Mean(**values["alpha"])})


class SearchState:
    """Supernet, alpha, optimisers, schedule and position.

    Attributes:
        alpha: [E, O], a leaf that requires a gradient.
        alive: [E, O] bool; False where progressive hard pruning removed the op.
        epoch: the epoch in progress, from 0.
        step: the step of it that comes next.
        seconds: per phase, over the whole search.
    """

    def __init__(self, config: SearchConfig, num_classes: int, device: torch.device) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(config.seed, "initial weights"))
            supernet = Supernet(
                config.channels,
                config.cells_per_stage,
                num_classes,
                skip_dropout=config.skip_dropout,
                fused=config.fused,
                backend=config.backend,
            )
        self.supernet = supernet.to(device).train()
        self.alpha = torch.full_like(self.supernet.new_alpha(), config.alpha_start).requires_grad_()
        self.alive = torch.ones_like(self.alpha, dtype=torch.bool)
        captured = config.cuda_graphs and captures(device)
        self.weights_optimizer = weights_optimizer(self.supernet.parameters(), config, captured)
        self.alpha_optimizer = alpha_optimizer(self.alpha, config, captured)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.weights_optimizer, T_max=config.epochs, eta_min=config.learning_rate_end
        )
        self.epoch = 0
        self.step = 0
        self.record = EpochRecord()
        self.seconds: dict[str, float] = {}

    def publish_learning_rate(self) -> None:
        """Makes steps take what the schedule says, also those already captured."""
        if isinstance(self.weights_optimizer, CapturableSGD):
            self.weights_optimizer.publish()

    _PARTS = ("supernet", "weights_optimizer", "alpha_optimizer", "schedule")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values for `checkpoint.save`."""
        return {
            **{part: getattr(self, part).state_dict() for part in self._PARTS},
            "alpha": self.alpha.detach(),
            "alive": self.alive,
            "epoch": self.epoch,
            "step": self.step,
            "record": self.record.to_dict(),
            "seconds": self.seconds,
        }

    def snapshot(self) -> dict[str, Any]:
        """The part of it that leave-one-out evaluation looks at."""
        return {
            "supernet": self.supernet.state_dict(),
            "alpha": self.alpha.detach(),
            "alive": self.alive,
            "epoch": self.epoch,
        }

    def load_state_dict(self, content: dict[str, Any], source: str) -> None:
        """The inverse of `state_dict`; `UserError` naming `source` where it does not fit."""
        try:
            for part in self._PARTS:
                own, saved = getattr(self, part), content[part]
                own.load_state_dict(adapted(saved, own) if isinstance(own, torch.optim.Optimizer) else saved)
            for name in ("alpha", "alive"):
                own, saved = getattr(self, name), content[name]
                if saved.shape != own.shape or saved.dtype != own.dtype:
                    raise ValueError(f"{name} is {list(saved.shape)} of {saved.dtype}")
                with torch.no_grad():
                    own.copy_(saved)
            self.epoch, self.step = int(content["epoch"]), int(content["step"])
            self.record = EpochRecord.from_dict(content["record"])
            self.seconds = dict(content["seconds"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(f"{source} does not fit the settings of this run: {error}") from error


def evaluation_to_json(evaluation: LeaveOneOut, batch_norm: str) -> dict[str, Any]:
    """As it stands in metrics.jsonl and result.json."""
    return {
        "accuracy": evaluation.accuracy.tolist(),
        "loss": evaluation.loss.tolist(),
        "base_accuracy": evaluation.base_accuracy,
        "base_loss": evaluation.base_loss,
        "images": evaluation.images,
        "batch_norm": batch_norm,
    }


def numbers(table: Tensor) -> list[list[float]]:
    """A table [E, O] as plain lists."""
    rows: list[list[float]] = table.detach().cpu().tolist()
    return rows
