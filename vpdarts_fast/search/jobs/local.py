"""Searches as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vpdarts_fast.search.jobs.job import Job
from vpdarts_fast.search.jobs.queue import Ended

ERRORS = "errors.txt"
"""In a run's folder, what its process printed beside the log."""


@dataclass(frozen=True)
class LocalWorkers:
    """So many processes at a time, on this machine.

    Attributes:
        at_once: how many.
        threads: of each.
        arguments: that every search is given besides, as on a command line.
    """

    at_once: int
    threads: int
    arguments: Sequence[str] = ()

    @property
    def where(self) -> str:
        """As `vpdarts_fast.search.jobs.queue.Workers` has it."""
        return f"{self.at_once} at a time, {self.threads} threads each"

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def start(self, job: Job) -> LocalWork:
        """Starts it in a session of its own: the terminal's Ctrl-C is this process' to pass on, once."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, "-m", "vpdarts_fast.search", "--resume", str(job.folder)]
        with (job.folder / ERRORS).open("wb") as errors:
            process = subprocess.Popen(
                [*command, "--threads", str(self.threads), *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        return LocalWork(job, process)


@dataclass(frozen=True)
class LocalWork:
    """A process of this machine that runs a job."""

    job: Job
    process: subprocess.Popen[bytes]

    def ended(self) -> Ended | None:
        """How it has ended; None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        said = (self.job.folder / ERRORS).read_text(errors="replace").strip()
        lost = status == -signal.SIGKILL  # as the kernel does where memory is short
        return Ended(said or f"its process ended with status {status}", lost)

    def stop(self) -> None:
        """Asks it to stop in order."""
        self.process.terminate()

    def wait(self) -> None:
        """Returns when it has stopped."""
        self.process.wait()
