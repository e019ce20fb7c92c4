"""Who watches a search, what it hears, and how the search is stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from vpdarts_fast.evaluation.leave_one_out import LeaveOneOut
from vpdarts_fast.search.finalists import Rung
from vpdarts_fast.search.methods.criteria import Importance


class Interrupted(Exception):
    """The search was asked to stop; everything is in the checkpoint."""


class Observer(Protocol):
    """Who watches a search."""

    def phase(self, description: str, total: int, done: int = 0) -> None:
        """A phase of an epoch begins, with so many units of work."""

    def advance(self, done: int, epochs: float) -> None:
        """So many units of the phase are done, and so many epochs of the search."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """An epoch is over; `metrics` is its line of metrics.jsonl."""

    def rung(self, rung: Rung) -> None:
        """Finalists were trained alike; `rung` has their scores."""


class Silent:
    """Nobody watches."""

    def phase(self, description: str, total: int, done: int = 0) -> None:
        """Hears nothing of a phase."""

    def advance(self, done: int, epochs: float) -> None:
        """Hears nothing of what is done."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Hears nothing of an epoch."""

    def rung(self, rung: Rung) -> None:
        """Hears nothing of finalists."""


class Reporting:
    """An observer that passes on what it hears, and tells each epoch's metrics to a function too."""

    def __init__(self, observer: Observer, on_epoch: Callable[[dict[str, Any]], object]) -> None:
        self._observer, self._on_epoch = observer, on_epoch

    def phase(self, description: str, total: int, done: int = 0) -> None:
        """Tells the observer that a phase of an epoch begins."""
        self._observer.phase(description, total, done)

    def advance(self, done: int, epochs: float) -> None:
        """Tells the observer how much of the phase and of the search is done."""
        self._observer.advance(done, epochs)

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Tells the observer and then the function that an epoch is over."""
        self._observer.epoch(metrics)
        self._on_epoch(metrics)

    def rung(self, rung: Rung) -> None:
        """Tells the observer that finalists were trained alike."""
        self._observer.rung(rung)


@dataclass(frozen=True)
class OpsEvaluated:
    """What an evaluation came to, before anything is pruned by it.

    Attributes:
        epoch: the epoch that it begins, from 0; of the last evaluation the number of epochs.
        importance: of each op [E, O], to all members of a committee on average.
        leave_one_out: what it was measured by; None for a criterion that needs no evaluation.
        genotype: what the search would select by it.
    """

    epoch: int
    importance: Importance
    leave_one_out: LeaveOneOut | None
    genotype: Any


class MemberWatch:
    """What a member of a committee tells of its progress, as the search's observer hears it.

    Args:
        observer: of the search.
        number: of the member, from 0.
        members: how many there are.
        epoch: the epoch in progress, from 0.
        stop_if_asked: raises `Interrupted` if the search is asked to stop.
    """

    def __init__(
        self, observer: Observer, number: int, members: int, epoch: int, stop_if_asked: Callable[[], None]
    ) -> None:
        self._observer, self._number, self._members, self._epoch = observer, number, members, epoch
        self.stop_if_asked, self._phase = stop_if_asked, ""

    def begins(self, phase: str, total: int, done: int) -> None:
        """Tells the observer that a phase begins, with the member's number if there are several members."""
        self._phase = phase
        which = f" {self._number + 1}/{self._members}" if self._members > 1 else ""
        self._observer.phase(phase + which, total, done)

    def done(self, done: int, total: int) -> None:
        """Tells the observer how many units of the phase, and what part of the epoch, are done."""
        share = 0.0 if self._phase == "leave-one-out" else (self._number + done / total)
        self._observer.advance(done, self._epoch + share / self._members)
