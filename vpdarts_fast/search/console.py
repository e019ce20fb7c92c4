"""What a person sees of a search: progress bars on a terminal, plain lines everywhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vpdarts_fast.report import TensorBoardLog
from vpdarts_fast.search.run_folder import RunFolder


class Console:
    """The observer of one search; use it as a context manager.

    Lines go to the standard output and to the run's log.txt. Progress bars with the time left are
    drawn on a terminal only.
    """

    def __init__(self, run: RunFolder, epochs: int, tensorboard: TensorBoardLog | None = None) -> None:
        self._run, self._epochs, self._tensorboard = run, epochs, tensorboard
        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=RichConsole(highlight=False, soft_wrap=True),
            transient=True,
        )
        self._interactive = self._progress.console.is_terminal
        self._search = self._progress.add_task("search", total=epochs)
        self._phase = self._progress.add_task("", total=1, visible=False)

    def __enter__(self) -> Console:
        if self._interactive:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def line(self, text: str) -> None:
        """Prints and logs a line."""
        if self._interactive:
            self._progress.console.print(text, markup=False)
        else:
            print(text, flush=True)
        self._run.write_log(text)

    def phase(self, description: str, total: int, done: int = 0) -> None:
        self._progress.reset(self._phase, total=total, completed=done, description=description, visible=True)

    def advance(self, done: int) -> None:
        self._progress.update(self._phase, completed=done)

    def epoch(self, metrics: dict[str, Any]) -> None:
        self._progress.update(self._search, completed=metrics["epoch"] + 1)
        self.line(epoch_line(metrics, self._epochs))
        if self._tensorboard:
            self._tensorboard.add_epoch(metrics)


def epoch_line(metrics: dict[str, Any], epochs: int) -> str:
    """An epoch in one line."""
    parts = [
        f"epoch {metrics['epoch'] + 1:>{len(str(epochs))}}/{epochs} {metrics['phase']:<7}",
        f"weights {metrics['weights_loss']:.3f} {metrics['weights_accuracy']:5.1f} %",
    ]
    if metrics["alpha_loss"] is not None:
        parts.append(f"alpha {metrics['alpha_loss']:.3f} {metrics['alpha_accuracy']:5.1f} %")
    if metrics["genotype"] is not None:
        parts.append(metrics["genotype"])
    if metrics["benchmark"] is not None:
        parts.append(benchmark_text(metrics["benchmark"]))
    seconds = metrics["seconds"]
    parts.append(f"train {seconds['train']:.1f} s")
    if seconds["leave_one_out"]:
        parts.append(f"leave-one-out {seconds['leave_one_out']:.1f} s")
    return "  ".join(parts)


def benchmark_text(accuracies: dict[str, float]) -> str:
    """The table's accuracies after full training, as far as it has them."""
    names = {"cifar10_test_200ep": "C10", "cifar100_test_200ep": "C100", "imagenet16_120_test_200ep": "IN16"}
    shown = [f"{short} {accuracies[column]:.2f}" for column, short in names.items() if column in accuracies]
    return "[" + " ".join(shown) + "]"
