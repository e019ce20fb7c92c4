"""Which of many searches runs next, and what follows when its process ends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from vpdarts_fast.search.jobs.job import Job

POLL = 0.5
"""Seconds from one look at the processes to the next."""

LOSSES = 3
"""A job whose process is lost so often, without an epoch more in between, has failed."""


@dataclass(frozen=True)
class Ended:
    """How the process of a job has ended.

    Attributes:
        reason: what it said, or what became of it, for people.
        lost: whether it was killed or its machine went away, so that another one can go on with the job.
    """

    reason: str
    lost: bool


class Work(Protocol):
    """A process that runs a job."""

    def ended(self) -> Ended | None:
        """How it has ended; None while it runs or waits for its turn."""

    def stop(self) -> None:
        """Asks it to stop in order, so that its run can be continued."""

    def wait(self) -> None:
        """Returns when it has stopped."""


class Workers(AbstractContextManager["Workers"], Protocol):
    """Who runs jobs; entered while there are some."""

    @property
    def where(self) -> str:
        """Which machines these are, for people."""

    @property
    def at_once(self) -> int:
        """How many jobs may be started before one has ended."""

    def start(self, job: Job) -> Work:
        """Starts a process for a job, whose folder is prepared."""


@dataclass
class _Running:
    job: Job
    work: Work
    epochs_before: int


def run_all(
    jobs: Sequence[Job],
    workers: Workers,
    *,
    on_change: Callable[[list[Job], list[Job]], object] = lambda running, done: None,
    on_loss: Callable[[Job, str], object] = lambda job, reason: None,
) -> dict[str, str]:
    """Runs what is not finished; if it is interrupted itself, it first stops all of them in order.

    A job whose process is lost is given to another one, which goes on from the last checkpoint.

    Args:
        jobs: whose folders are prepared.
        workers: who runs them; entered.
        on_change: called with the jobs that run and those that are finished, again and again.
        on_loss: called with a job whose process is lost, and with how.

    Returns:
        What went wrong, by the name of the job; the others went on.

    Raises:
        KeyboardInterrupt: as it came; all processes have ended, and their runs can be continued.
    """
    waiting = [job for job in jobs if not job.finished]
    done = [job for job in jobs if job.finished]
    running: list[_Running] = []
    failed: dict[str, str] = {}
    losses: Counter[str] = Counter()
    try:
        while waiting or running:
            while waiting and len(running) < workers.at_once:
                job = waiting.pop(0)
                running.append(_Running(job, workers.start(job), job.epochs_done))
            on_change([each.job for each in running], done)
            time.sleep(POLL)
            for each, ended in [(each, each.work.ended()) for each in running]:
                if ended is None:
                    continue
                running.remove(each)
                job = each.job
                if job.finished:
                    done.append(job)
                    continue
                losses[job.name] = 1 if job.epochs_done > each.epochs_before else losses[job.name] + 1
                if ended.lost and losses[job.name] < LOSSES:
                    on_loss(job, ended.reason)
                    waiting.insert(0, job)
                else:
                    failed[job.name] = ended.reason
    finally:
        for each in running:
            each.work.stop()
        for each in running:
            each.work.wait()
    on_change([], done)
    return failed
