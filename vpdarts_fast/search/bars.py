"""What a person sees of a run, whatever it does: progress bars on a terminal, plain lines everywhere."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typing_extensions import Self

from vpdarts_fast.command_line import warn


class LoggedFolder(Protocol):
    """The folder of a run, as far as a console writes into it."""

    log: Path

    def write_log(self, text: str) -> None:
        """Adds lines to log.txt; raises `OSError` where that is impossible."""


class RunConsole:
    """Shows a run of some epochs; use it as a context manager.

    Lines go to the standard output and to the run's log.txt, if `quiet` only there. Progress bars with the
    time left are drawn on a terminal and, with ipywidgets, in a notebook. Nothing can end a run from here:
    print inside `forgiving_output`.

    Args:
        run: the folder.
        what: the run is, as `search`.
        epochs: how many it has.
        quiet: print nothing.
    """

    def __init__(self, run: LoggedFolder, what: str, epochs: int, *, quiet: bool = False) -> None:
        self._log, self._what, self._epochs, self._quiet = run, what, epochs, quiet
        self._warned: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=RichConsole(highlight=False, soft_wrap=True),
            transient=True,
            speed_estimate_period=math.inf,  # a step, or the evaluation between two, can take minutes
        )
        self._interactive = not quiet and draws_bars(self._progress.console)
        self._whole = self._progress.add_task(what, total=epochs)
        self._phase = self._progress.add_task("", total=1, visible=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_bars()

    def begin(self, epoch: int) -> None:
        """Shows the bars; `epoch` is the one that the run begins with."""
        self._progress.reset(self._whole, total=self._epochs, completed=epoch)
        if self._interactive:
            self._progress.start()

    def line(self, text: str) -> None:
        """Prints and logs a line."""
        self._print(text)
        self._guarded(str(self._log.log), lambda: self._log.write_log(text))

    def _print(self, text: str) -> None:
        if self._interactive:
            self._progress.console.print(text, markup=False)
        elif not self._quiet:
            print(text, flush=True)

    def phase(self, description: str, total: int, done: int = 0) -> None:
        """Shows a bar for a phase of an epoch, with `total` units of work of which `done` are done."""
        self._progress.reset(self._phase, total=total, completed=done, description=description, visible=True)

    def advance(self, done: int, epochs: float) -> None:
        """Moves the bars: `done` units of the phase are done, and so many epochs of the run."""
        self._progress.update(self._phase, completed=done)
        self._progress.update(self._whole, completed=epochs)

    def _stop_bars(self) -> None:
        if self._interactive:  # elsewhere it would print an empty line
            self._progress.stop()

    def _guarded(self, what: str, write: Callable[[], None]) -> None:
        """Writes what the run does not depend on: whatever fails is worth one warning, not the run."""
        try:
            write()
        except Exception as error:
            if what not in self._warned:
                reason = getattr(error, "strerror", None) or error
                warn(f"cannot write {what}: {reason}; the {self._what} goes on without")
            self._warned.add(what)


def draws_bars(console: RichConsole) -> bool:
    """Whether the console can: on a terminal, or in a notebook that has the widgets that it takes."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    # Not by the environment alone, which can ask for colours in a pipe.
    return sys.stdout.isatty() and console.is_terminal
