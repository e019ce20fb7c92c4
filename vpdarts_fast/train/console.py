"""What a person sees of a training, and what its result says in lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vpdarts_fast.search.bars import RunConsole
from vpdarts_fast.search.console import benchmark_text
from vpdarts_fast.train.folder import TrainFolder


class TrainConsole(RunConsole):
    """The observer of one training; use it as a context manager, and `begin` before the training does."""

    def __init__(self, run: TrainFolder, epochs: int, *, quiet: bool = False) -> None:
        super().__init__(run, "training", epochs, quiet=quiet)

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Prints and logs how an epoch went, by its line of metrics.jsonl."""
        self.line(epoch_line(metrics, self._epochs))

    def result(self, result: dict[str, Any], folder: Path) -> None:
        """Ends the bars, prints and logs what result.json holds."""
        self._stop_bars()
        for text in result_lines(result, folder):
            self.line(text)


def epoch_line(metrics: dict[str, Any], epochs: int) -> str:
    """Says in one line how an epoch of so many went, by its line of metrics.jsonl."""
    parts = [f"epoch {metrics['epoch'] + 1:>{len(str(epochs))}}/{epochs}"]
    for name in ("training", "validation", "average"):
        if (scores := metrics[name]) is not None:
            parts.append(f"{name} {scores['loss']:.3f} {scores['accuracy']:5.1f} %")
    parts += [f"rate {metrics['learning_rate']:.4f}", f"{sum(metrics['seconds'].values()):.1f} s"]
    return "  ".join(parts)


def result_lines(result: dict[str, Any], folder: Path) -> list[str]:
    """Says what a training came to, by its result.json."""
    test = result["test"]
    lines = [f"trained: {result['architecture']}"]
    if result["validation"] is not None:
        lines.append(f"validation accuracy: {result['validation']['accuracy']:.2f} %")
    lines.append(
        f"test accuracy: {test['accuracy']:.2f} % of {result['images']['test']:,} images  "
        f"(balanced {test['balanced_accuracy']:.2f} %, macro F1 {test['macro_f1']:.2f} %)"
    )
    if result["test_without_average"] is not None:
        lines.append(f"  without the average: {result['test_without_average']['accuracy']:.2f} %")
    if result["compared"] is not None:
        found = result["compared"]
        difference = found["ours"] - found["benchmark"]
        lines.append(
            f"NAS-Bench-201, {found['column']}: {found['benchmark']:.2f} %; here {found['measured']} "
            f"accuracy {found['ours']:.2f} % ({difference:+.2f})"
        )
    elif result["benchmark"] is not None:
        lines.append(f"NAS-Bench-201, after 200 epochs: {benchmark_text(result['benchmark'])}")
    seconds = "  ".join(f"{name} {value:.1f} s" for name, value in result["seconds"].items())
    return [
        *lines,
        f"{result['parameters']:,} parameters, {result['multiply_adds']:,} multiply-adds an image",
        seconds,
        f"result, network and pictures: {folder}",
    ]
