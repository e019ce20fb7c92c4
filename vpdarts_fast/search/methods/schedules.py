"""Which stages a search has, and what happens where an epoch begins: one class for each schedule."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from vpdarts_fast.errors import UserError
from vpdarts_fast.parts import Part
from vpdarts_fast.search.methods.variations import PartialChannels, Variation
from vpdarts_fast.spaces.space import Space


@dataclass(frozen=True)
class Stage:
    """Epochs that train the same.

    Attributes:
        name: a word, another for each stage: what metrics.jsonl calls the phase of such an epoch.
        epochs: how many.
        weights: whether they train the weights.
        alpha: whether they train alpha.
        learning_rate: of the weights, constant, with momentum that begins anew; None for the cosine over the
            epochs of all stages without one.
    """

    name: str
    epochs: int
    weights: bool = True
    alpha: bool = True
    learning_rate: float | None = None


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


@dataclass(frozen=True)
class Perturb:
    """An open edge, drawn at random, is decided by leave-one-out evaluation of its ops alone."""


@dataclass(frozen=True)
class Widen:
    """Of each edge all but the strongest ops are pruned, and more of its channels go through those.

    Attributes:
        ops: how many of an edge stay.
    """

    ops: int


Event = Prune | Commit | Perturb | Widen


class Schedule(Part, kind="schedule"):
    """The stages of a search, and what happens at the beginning of each epoch.

    All of it follows from the number of the epoch, so that a resumed search needs no record of it.

    Attributes:
        prunes: whether the method's pruning is applied.
        commits: whether edges are decided before the search ends.
        evaluates_edges: whether they are by an evaluation of an edge alone.
    """

    prunes: ClassVar[bool] = True
    commits: ClassVar[bool] = False
    evaluates_edges: ClassVar[bool] = False

    @abstractmethod
    def stages(self, space: Space[Any]) -> tuple[Stage, ...]:
        """Lists the stages in their order; some may have no epochs."""

    def event(self, epoch: int, space: Space[Any]) -> Event | None:
        """Finds what happens before `epoch`, from 0, trains; None for nothing."""
        return None

    def batch_size(self, epoch: int, size: int, space: Space[Any]) -> int:
        """Images in a training step of `epoch`, where those of the first epoch have `size`; never fewer."""
        return size

    def widest(self, variation: Variation) -> Variation:
        """Says how edges are made behind a `Widen`, of how the method makes them; all alike without one.

        Raises:
            UserError: they cannot be widened.
        """
        return variation

    @abstractmethod
    def of_length(self, epochs: int, space: Space[Any]) -> Schedule:
        """The same schedule for a search of so many epochs, its stages in the same proportion; about as many.

        What a schedule decides it decides as often, so that few epochs can become more.
        """

    def check(self, space: Space[Any]) -> None:
        """Raises `UserError` for a schedule without epochs."""
        if not self.epochs(space):
            raise UserError(f"--schedule {self.name} has no epochs: nothing to train")

    def epochs(self, space: Space[Any]) -> int:
        """How many epochs the search has."""
        return sum(stage.epochs for stage in self.stages(space))

    def annealed_epochs(self, space: Space[Any]) -> int:
        """Over how many epochs the learning rate of the weights falls."""
        return sum(stage.epochs for stage in self.stages(space) if stage.learning_rate is None)

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
    def of_length(self, epochs: int, space: Space[Any]) -> Schedule:
        warmup = round(epochs * self.warmup_epochs / self.epochs(space))
        return dataclasses.replace(self, warmup_epochs=warmup, pruning_epochs=epochs - warmup)

    @override
    def check(self, space: Space[Any]) -> None:
        if not self.epochs(space):
            raise UserError("--warmup-epochs and --pruning-epochs are both 0: nothing to train")


@dataclass(frozen=True)
class Greedy(Schedule):
    """Every few epochs an edge of each type of cells is decided, and batches grow (SGAS, section 3.2)."""

    name: ClassVar[str] = "greedy"
    prunes: ClassVar[bool] = False
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

    @override
    def of_length(self, epochs: int, space: Space[Any]) -> Schedule:
        share = epochs / self.epochs(space)
        warmup, every = round(share * self.warmup_epochs), max(1, round(share * self.commit_every))
        after = max(1, epochs - warmup - every * space.decisions)
        return dataclasses.replace(self, warmup_epochs=warmup, commit_after=after, commit_every=every)

    def _decided(self, epoch: int, space: Space[Any]) -> int:
        """How many decisions there have been when an epoch trains."""
        since = epoch - self.warmup_epochs - self.commit_after
        return min(max(since // self.commit_every + 1, 0), space.decisions)


@dataclass(frozen=True)
class Perturbation(Schedule):
    """Trains the supernet, then decides edge by edge what it misses most, and tunes it in between (DARTS-PT).

    Edges come in random order (section 4.3). The last one is decided before the last epoch.
    """

    name: ClassVar[str] = "perturbation"
    prunes: ClassVar[bool] = False
    commits: ClassVar[bool] = True
    evaluates_edges: ClassVar[bool] = True

    warmup_epochs: int = 0
    """Epochs with alpha frozen."""
    training_epochs: int = 100
    """Epochs after that, before the first edge is decided."""
    tuning_epochs: int = 5
    """Epochs from one decision to the next."""
    tuning_rate: float = 0.0025
    """Learning rate of the weights in these."""

    @override
    def stages(self, space: Space[Any]) -> tuple[Stage, ...]:
        tuning = 1 + self._due(space)[-1]
        return (
            Stage("warm-up", self.warmup_epochs, alpha=False),
            Stage("training", self.training_epochs),
            Stage("tuning", tuning, learning_rate=self.tuning_rate),
        )

    @override
    def event(self, epoch: int, space: Space[Any]) -> Event | None:
        tuned = epoch - self.warmup_epochs - self.training_epochs
        return Perturb() if tuned in self._due(space) else None

    @override
    def of_length(self, epochs: int, space: Space[Any]) -> Schedule:
        share = epochs / self.epochs(space)
        warmup, tuning = round(share * self.warmup_epochs), max(1, round(share * self.tuning_epochs))
        resized = dataclasses.replace(self, warmup_epochs=warmup, tuning_epochs=tuning)
        *_, last = resized.stages(space)
        return dataclasses.replace(resized, training_epochs=max(1, epochs - warmup - last.epochs))

    def _due(self, space: Space[Any]) -> list[int]:
        """The tuning epochs, from 0, that begin with a decision; the last of them is the last there is."""
        *others, behind = range(0, self.tuning_epochs * space.decisions, self.tuning_epochs)
        return [*others, max(behind - 1, *(epoch + 1 for epoch in others), 0)]

    @override
    def check(self, space: Space[Any]) -> None:
        if space.kept is not None or any(len(table.edges) < 2 for table in space.tables):
            raise UserError(
                f"--schedule {self.name} decides ops, and --space {space.name} also asks which edges stay: "
                "use a space that keeps them all, as nas-bench-201"
            )
        if len(space.tables) > 1:
            raise UserError(f"--schedule {self.name} is for spaces with one type of cells")


@dataclass(frozen=True)
class Widening(Schedule):
    """Two halves: all ops on few channels, then the strongest ops on more channels (DrNAS, section 3.3).

    Alpha is frozen at the beginning of each half. The learning rate falls over both.
    """

    name: ClassVar[str] = "widening"
    prunes: ClassVar[bool] = False

    warmup_epochs: int = 10
    """Epochs with alpha frozen, at the beginning of each half."""
    half_epochs: int = 50
    """Epochs of each half, these included."""
    kept_ops: int = 3
    """Operations that each edge has in the second half, the strongest by alpha."""
    wide_parts: int = 2
    """K of the second half: one K-th of the channels goes through the operations."""

    @override
    def stages(self, space: Space[Any]) -> tuple[Stage, ...]:
        training = self.half_epochs - self.warmup_epochs
        return (
            Stage("narrow-warm-up", self.warmup_epochs, alpha=False),
            Stage("narrow", training),
            Stage("wide-warm-up", self.warmup_epochs, alpha=False),
            Stage("wide", training),
        )

    @override
    def event(self, epoch: int, space: Space[Any]) -> Event | None:
        return Widen(self.kept_ops) if epoch == self.half_epochs else None

    @override
    def widest(self, variation: Variation) -> Variation:
        if not isinstance(variation, PartialChannels) or variation.channel_parts <= self.wide_parts:
            parts = getattr(variation, "channel_parts", None)
            raise UserError(
                f"--schedule {self.name} sends more channels through the operations in its second half: use "
                f"--variation partial-channels with --channel-parts above --wide-parts {self.wide_parts}; "
                f"got --variation {variation.name}" + (f" --channel-parts {parts}" if parts else "")
            )
        return dataclasses.replace(variation, channel_parts=self.wide_parts)

    @override
    def of_length(self, epochs: int, space: Space[Any]) -> Schedule:
        half = max(1, round(epochs / 2))
        warmup = min(round(half * self.warmup_epochs / self.half_epochs), half - 1)
        return dataclasses.replace(self, warmup_epochs=warmup, half_epochs=half)

    @override
    def check(self, space: Space[Any]) -> None:
        if not self.half_epochs > self.warmup_epochs:
            raise UserError(
                f"--half-epochs must be more than --warmup-epochs {self.warmup_epochs}, which are a part of "
                f"them; got {self.half_epochs}"
            )
