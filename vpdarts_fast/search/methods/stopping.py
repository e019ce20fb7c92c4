"""When a search ends before its last epoch, because it collapses: one class for each sign of it."""

from __future__ import annotations

import statistics
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from vpdarts_fast.parts import Part


@dataclass(frozen=True)
class Watched:
    """What is watched of a search at the end of an epoch.

    Attributes:
        skips: how many skip connections the cell has that alpha would select.
        entropy: of the ops' strengths on an edge, scaled to sum 1, in nats; the mean over the edges with
            several ops.
        eigenvalue: the largest eigenvalue of the Hessian of the validation loss by alpha; None where it is
            not measured.
    """

    skips: int
    entropy: float
    eigenvalue: float | None = None


class Stopping(Part, kind="stopping"):
    """When a search ends early.

    Attributes:
        needs_eigenvalue: whether it looks at the eigenvalue, which costs time.
    """

    needs_eigenvalue: ClassVar[bool] = False

    @abstractmethod
    def stops(self, epochs: Sequence[Watched]) -> int | None:
        """Tells whether the search is over, from what was watched in all epochs so far.

        Returns:
            None to go on; else behind how many of these epochs the search takes its cell.
        """


@dataclass(frozen=True)
class NoStopping(Stopping):
    """All epochs are searched."""

    name: ClassVar[str] = "none"

    @override
    def stops(self, epochs: Sequence[Watched]) -> int | None:
        return None


@dataclass(frozen=True)
class ManySkips(Stopping):
    """Ends when the cell has so many skip connections (DARTS+, section 3.2)."""

    name: ClassVar[str] = "skips"

    skips_to_stop: int = 2
    """Skip connections of the current cell, in all types of cells, at which the search ends."""

    @override
    def stops(self, epochs: Sequence[Watched]) -> int | None:
        return len(epochs) if epochs and epochs[-1].skips >= self.skips_to_stop else None


@dataclass(frozen=True)
class LowEntropy(Stopping):
    """Ends when alpha has made its choice, so that further epochs would not change it."""

    name: ClassVar[str] = "entropy"

    entropy_to_stop: float = 0.3
    """Mean entropy of an edge, in nats, below which the search ends; that of 5 equal ops is 1.61."""

    @override
    def stops(self, epochs: Sequence[Watched]) -> int | None:
        return len(epochs) if epochs and epochs[-1].entropy < self.entropy_to_stop else None


@dataclass(frozen=True)
class RisingEigenvalue(Stopping):
    """Ends when the curvature rises quickly, and goes back to before it did (RobustDARTS, section 4.3).

    That is when the mean of the largest eigenvalue over the last window is more than 1 / 0.75 of that of the
    window so many epochs earlier; the cell is that of these epochs earlier.
    """

    name: ClassVar[str] = "eigenvalue"
    needs_eigenvalue: ClassVar[bool] = True

    eigenvalue_window: int = 5
    """Epochs over which the eigenvalue is averaged, and by how many epochs the search goes back."""
    eigenvalue_ratio: float = 0.75
    """The search ends when the earlier mean is less than this share of the last one."""

    @override
    def stops(self, epochs: Sequence[Watched]) -> int | None:
        window = self.eigenvalue_window
        values = [epoch.eigenvalue for epoch in epochs if epoch.eigenvalue is not None]
        if len(values) < 2 * window:
            return None
        last = statistics.fmean(values[-window:])
        earlier = statistics.fmean(values[-2 * window : -window])
        return len(epochs) - window if earlier < self.eigenvalue_ratio * last else None
