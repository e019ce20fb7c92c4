"""Pictures of a training, from the files in its folder alone: curves, and which class is taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.style import INK, SERIES_COLOURS, new_figure, save_figure
from vpdarts_fast.runs.formats import (
    TRAINING_EPOCH,
    TRAINING_RESULT,
    read_bytes,
)
from vpdarts_fast.runs.training_files import parse_epoch, parse_result

NUMBERED = 20
"""Up to so many classes the picture of a confusion matrix names all of them and writes its numbers."""


def draw_training(folder: Path) -> list[Path]:
    """Draws curves.png and, of a finished training, confusion.png into its folder; returns their paths.

    Raises:
        UserError: no complete epoch, a malformed file, or no right to write.
    """
    path = folder / "metrics.jsonl"
    epochs = []
    for position, text in enumerate(read_bytes(path).splitlines(), start=1):
        source = f"{path}, line {position},"
        epochs.append(TRAINING_EPOCH.from_json(text, source))
        with TRAINING_EPOCH.reading(source):
            parse_epoch(epochs[-1])
    if not epochs:
        raise UserError(f"{path} holds no complete epoch yet; draw again when there is one")
    result = None
    if (path := folder / "result.json").exists():
        result = TRAINING_RESULT.read_json(path)
        with TRAINING_RESULT.reading(str(path)):
            parse_result(result)
    title = "" if result is None else result["architecture"]
    save_figure(training_curves(epochs, result, title), folder / "curves.png", "training curves")
    drawn = [folder / "curves.png"]
    if result is not None:
        save_figure(confusion_figure(result), folder / "confusion.png", "confusion matrix")
        drawn.append(folder / "confusion.png")
    return drawn


def training_curves(
    epochs: Sequence[Mapping[str, Any]], result: Mapping[str, Any] | None, title: str
) -> Figure:
    """Loss, accuracy and learning rate over the epochs, and the test accuracy as a line."""
    figure, body = new_figure(9, 6.5, "training", title)
    losses, accuracies, rates = body.subplots(3, sharex=True, height_ratios=(3, 3, 2))
    numbers = [epoch["epoch"] + 1 for epoch in epochs]
    names = {"training": "training", "validation": "validation", "average": "validation, average"}
    for (entry, label), colour in zip(names.items(), SERIES_COLOURS, strict=False):
        points = [(n, epoch[entry]) for n, epoch in zip(numbers, epochs, strict=True) if epoch[entry]]
        if points:
            for axes, score in ((losses, "loss"), (accuracies, "accuracy")):
                places, values = zip(*((n, scores[score]) for n, scores in points), strict=True)
                axes.plot(places, values, color=colour, label=label, linewidth=2)
    if result is not None:
        accuracy = result["test"]["accuracy"]
        label = f"test: {accuracy:.2f}"
        accuracies.axhline(accuracy, color=SERIES_COLOURS[3], linestyle="--", label=label)
    rates.plot(numbers, [epoch["learning_rate"] for epoch in epochs], color=SERIES_COLOURS[0], linewidth=2)
    for axes, label in ((losses, "loss"), (accuracies, "accuracy (%)"), (rates, "learning rate")):
        axes.set_ylabel(label, fontsize=11)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    for axes in (losses, accuracies):
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=10)
    rates.set_xlabel("epoch", fontsize=11)
    return figure


def confusion_figure(result: Mapping[str, Any]) -> Figure:
    """The test images' confusion matrix: rows are classes, columns what their images are taken for.

    Colours are shares of a row, numbers are images.
    """
    counts = np.array(result["test"]["confusion"], dtype=np.float64)
    classes = result["classes"]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    small = len(classes) <= NUMBERED
    side = 3.2 + (0.42 * len(classes) if small else 7)
    subheading = f"{result['test']['accuracy']:.2f} % of {int(counts.sum()):,} test images are right"
    figure, body = new_figure(side, side, "confusion matrix", subheading)
    axes = body.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if small:
        axes.set_xticks(range(len(classes)), [name[:20] for name in classes], rotation=90, parse_math=False)
        axes.set_yticks(range(len(classes)), [name[:20] for name in classes], parse_math=False)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else INK
                axes.text(column, row, f"{int(count)}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("taken for", fontsize=11)
    axes.set_ylabel("class", fontsize=11)
    return figure
