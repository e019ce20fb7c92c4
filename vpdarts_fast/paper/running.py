"""Runs many searches, several side by side, each a process of its own in a folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.run_files import METRICS_FILE, RESULT_FILE
from vpdarts_fast.runs.lock import claimed
from vpdarts_fast.search.config import SearchConfig, contradictions
from vpdarts_fast.search.run_folder import RunFolder

POLL = 0.5
"""Seconds from one look at the processes to the next."""

ERRORS = "errors.txt"
"""In a run's folder, what its process printed beside the log."""


@dataclass(frozen=True)
class Job:
    """A search that is to be finished.

    Attributes:
        name: for people.
        folder: of the run.
        config: its settings.
    """

    name: str
    folder: Path
    config: SearchConfig

    @property
    def finished(self) -> bool:
        """Whether it has a result."""
        return (self.folder / RESULT_FILE).exists()

    @property
    def epochs_done(self) -> int:
        """How many epochs it has behind it."""
        try:
            return (self.folder / METRICS_FILE).read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def prepare(self) -> None:
        """Makes the folder with the settings; leaves a run that has them as it is.

        Raises:
            UserError: it is the folder of a search with other settings, or of something else.
        """
        if not (self.folder / "config.json").exists():
            with claimed(self.folder):
                RunFolder.create(self.folder, self.config)
            return
        _, saved = RunFolder.open(self.folder)
        if changed := contradictions(saved, self.config):
            raise UserError(
                f"{self.folder} holds a run with other settings; choose another --out, or remove it:\n  "
                + "\n  ".join(changed)
            )


@dataclass
class Running:
    """A process that runs a job."""

    job: Job
    process: subprocess.Popen[bytes]


def run_all(
    jobs: Sequence[Job],
    *,
    side_by_side: int,
    threads: int,
    on_change: Callable[[list[Job], list[Job]], object] = lambda running, done: None,
) -> dict[str, str]:
    """Runs what is not finished, so many at a time; a stop signal stops all of them in order.

    Args:
        jobs: whose folders are prepared.
        side_by_side: processes at a time.
        threads: of each.
        on_change: called with the jobs that run and those that are finished, again and again.

    Returns:
        What went wrong, by the name of the job; the others went on.

    Raises:
        KeyboardInterrupt: a signal said so; all processes have ended, and their runs can be continued.
    """
    waiting = [job for job in jobs if not job.finished]
    done = [job for job in jobs if job.finished]
    running: list[Running] = []
    failed: dict[str, str] = {}
    with _stopping_by_signals():
        try:
            while waiting or running:
                while waiting and len(running) < side_by_side:
                    job = waiting.pop(0)
                    running.append(Running(job, _start(job, threads)))
                on_change([each.job for each in running], done)
                time.sleep(POLL)
                for each in [each for each in running if each.process.poll() is not None]:
                    running.remove(each)
                    if each.job.finished:
                        done.append(each.job)
                    else:
                        failed[each.job.name] = _reason(each)
        finally:
            for each in running:
                each.process.terminate()
            for each in running:
                each.process.wait()
    on_change([], done)
    return failed


def _start(job: Job, threads: int) -> subprocess.Popen[bytes]:
    """In a session of its own: the terminal's Ctrl-C is this process' to pass on, once."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "vpdarts_fast.search", "--resume", str(job.folder)]
    with (job.folder / ERRORS).open("wb") as errors:
        return subprocess.Popen(
            [*command, "--threads", str(threads)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )


def _reason(each: Running) -> str:
    said = (each.job.folder / ERRORS).read_text(errors="replace").strip()
    return said or f"its process ended with status {each.process.returncode}"


@contextmanager
def _stopping_by_signals() -> Iterator[None]:
    """Within, SIGTERM is what Ctrl-C is."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: Any = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
