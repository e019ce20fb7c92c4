"""Which stages a search has, and what happens where an epoch begins: one class for each schedule."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from vpdarts_fast.errors import UserError
from vpdarts_fast.parts import Part
from vpdarts_fast.spaces.space import Space


@dataclass(frozen=True)
class Stage:
    """Epochs that train the same.

    Attributes:
        name: a word, another for each stage: what metrics.jsonl calls the phase of such an epoch.
        epochs: how many.
        weights: whether they train the weights.
        alpha: whether they train alpha.
    """

    name: str
    epochs: int
    weights: bool = True
    alpha: bool = True


@dataclass(frozen=True)
class Prune:
    """The ops are ranked, by an evaluation if the criterion needs one, and the method's pruning is applied.

    Attributes:
        epoch: which pruning epoch it is, from 0.
        epochs: of how many.
    """

    epoch: int
    epochs: int


@dataclass(frozen=True)
class Commit:
    """One edge of each type of cells is decided (`vpdarts_fast.search.methods.commits`)."""


Event = Prune | Commit


class Schedule(Part, kind="schedule"):
    """The stages of a search, and what happens at the beginning of each epoch.

    All of it follows from the number of the epoch, so that a resumed search needs no record of it.

    Attributes:
        commits: whether edges are decided before the search ends.
    """

    commits: ClassVar[bool] = False

    @abstractmethod
    def stages(self, space: Space[Any]) -> tuple[Stage, ...]:
        """Lists the stages in their order; some may have no epochs."""

    def event(self, epoch: int, space: Space[Any]) -> Event | None:
        """Finds what happens before `epoch`, from 0, trains; None for nothing."""
        return None

    def batch_size(self, epoch: int, size: int, space: Space[Any]) -> int:
        """Images in a training step of `epoch`, where those of the first epoch have `size`; never fewer."""
        return size

    def check(self, space: Space[Any]) -> None:
        """Raises `UserError` for a schedule without epochs."""
        if not self.epochs(space):
            raise UserError(f"--schedule {self.name} has no epochs: nothing to train")

    def epochs(self, space: Space[Any]) -> int:
        """How many epochs the search has."""
        return sum(stage.epochs for stage in self.stages(space))

    def stage(self, epoch: int, space: Space[Any]) -> Stage:
        """Finds the stage of an epoch; behind the last epoch that is the last stage."""
        stages = [stage for stage in self.stages(space) if stage.epochs]
        for stage in stages:
            if epoch < stage.epochs:
                return stage
            epoch -= stage.epochs
        return stages[-1]


@dataclass(frozen=True)
class WarmUpAndPruning(Schedule):
    """Epochs of the weights alone, then epochs of both that each begin by pruning (VP-DARTS, section 3.4)."""

    name: ClassVar[str] = "pruning"

    warmup_epochs: int = 20
    """Epochs with alpha frozen."""
    pruning_epochs: int = 30
    """Epochs after that, each begun by an evaluation and a pruning."""

    @override
    def stages(self, space: Space[Any]) -> tuple[Stage, ...]:
        return Stage("warm-up", self.warmup_epochs, alpha=False), Stage("pruning", self.pruning_epochs)

    @override
    def event(self, epoch: int, space: Space[Any]) -> Event | None:
        pruning_epoch = epoch - self.warmup_epochs
        return Prune(pruning_epoch, self.pruning_epochs) if pruning_epoch >= 0 else None

    @override
    def check(self, space: Space[Any]) -> None:
        if not self.epochs(space):
            raise UserError("--warmup-epochs and --pruning-epochs are both 0: nothing to train")


@dataclass(frozen=True)
class Greedy(Schedule):
    """Every few epochs an edge of each type of cells is decided, and batches grow (SGAS, section 3.2)."""

    name: ClassVar[str] = "greedy"
    commits: ClassVar[bool] = True

    warmup_epochs: int = 0
    """Epochs with alpha frozen."""
    commit_after: int = 10
    """Epochs that train alpha before the first edge is decided."""
    commit_every: int = 5
    """Epochs from one decision to the next, and behind the last one."""
    batch_growth: int = 8
    """Images by which training batches grow with each decision."""

    @override
    def stages(self, space: Space[Any]) -> tuple[Stage, ...]:
        deciding = self.commit_after + self.commit_every * (space.decisions - 1)
        return (
            Stage("warm-up", self.warmup_epochs, alpha=False),
            Stage("deciding", deciding),
            Stage("decided", self.commit_every, alpha=False),
        )

    @override
    def event(self, epoch: int, space: Space[Any]) -> Event | None:
        return Commit() if self._decided(epoch, space) > self._decided(epoch - 1, space) else None

    @override
    def batch_size(self, epoch: int, size: int, space: Space[Any]) -> int:
        return size + self.batch_growth * self._decided(epoch, space)

    def _decided(self, epoch: int, space: Space[Any]) -> int:
        """How many decisions there have been when an epoch trains."""
        since = epoch - self.warmup_epochs - self.commit_after
        return min(max(since // self.commit_every + 1, 0), space.decisions)
