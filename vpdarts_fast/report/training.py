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
    TRAINING_SETTINGS,
    parse_json,
    read_bytes,
)
from vpdarts_fast.runs.values import mapping, number, numbers_by_name, whole

NUMBERED = 20
"""Up to so many classes the picture of a confusion matrix names all of them and writes its numbers."""

MOST_CLASSES = 10_000
"""A result with more of them is none."""

EVALUATED = ("validation", "average")
"""What an epoch may evaluate: the network, and the moving average of its weights."""


def is_training(folder: Path) -> bool:
    """Whether a folder is that of a training, by the mark of its config.json."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        content = parse_json(read_bytes(path))
    except ValueError:
        return False
    kind = f"vpdarts_fast {TRAINING_SETTINGS.kind},"
    return isinstance(content, dict) and str(content.get("format")).startswith(kind)


def parse_epoch(entry: Mapping[str, Any]) -> None:
    """Checks a line of metrics.jsonl; raises `KeyError`, `TypeError` or `ValueError` for what is none."""
    whole(entry["epoch"], "epoch")
    number(entry["learning_rate"], "learning_rate", 0)
    number(entry["drop_path"], "drop_path", 0, 1)
    for name in ("training", *EVALUATED):
        if name == "training" or entry[name] is not None:
            _check_scores(entry[name], name)
    numbers_by_name(entry["seconds"], "seconds", 0)


def parse_result(entry: Mapping[str, Any]) -> None:
    """Checks result.json; raises `KeyError`, `TypeError` or `ValueError` for what is none."""
    classes = entry["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes must be a list of names")
    if not 1 <= len(classes) <= MOST_CLASSES:
        raise ValueError(f"classes must be 1 to {MOST_CLASSES:,} names; got {len(classes)}")
    if not isinstance(entry["architecture"], str):
        raise ValueError("architecture must be text")
    for name in ("parameters", "multiply_adds", "epochs"):
        whole(entry[name], name, 1)
    _check_scores(entry["training"], "training")
    if entry["validation"] is not None:
        _check_scores(entry["validation"], "validation")
    for name in ("test", "test_without_average"):
        if name == "test" or entry[name] is not None:
            _check_evaluation(entry[name], name, len(classes))
    for name in ("benchmark", "compared"):
        if entry[name] is not None:
            mapping(entry[name], name)
    if entry["compared"] is not None:
        for name in ("ours", "benchmark"):
            number(entry["compared"][name], name, 0, 100)
    numbers_by_name(entry["seconds"], "seconds", 0)


def _check_scores(entry: Any, name: str) -> None:
    number(mapping(entry, name)["loss"], f"{name}, loss,", 0)
    number(entry["accuracy"], f"{name}, accuracy,", 0, 100)


def _check_evaluation(entry: Any, name: str, classes: int) -> None:
    _check_scores(entry, name)
    for score in ("balanced_accuracy", "macro_f1"):
        number(entry[score], f"{name}, {score},", 0, 100.0001)
    if [len(row) for row in entry["confusion"]] != [classes] * classes:
        raise ValueError(f"{name}, confusion, must be [{classes}, {classes}]")
    for row in entry["confusion"]:
        for count in row:
            whole(count, f"{name}, confusion,")
    if len(entry["per_class"]) != classes:
        raise ValueError(f"{name}, per_class, must have {classes} numbers")


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
