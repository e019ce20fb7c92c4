"""Several runs beside each other: accuracy of the current cell over epochs and seconds, and Kendall's tau."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.run import Run
from vpdarts_fast.report.run_files import METRICS_FILE, read_run
from vpdarts_fast.report.style import FURTHER_COLOURS, new_figure
from vpdarts_fast.runs.formats import SETTINGS

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a sample; deviation 0 of a single value."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Of the values that are no NaN; None without any."""
        present = [value for value in values if not math.isnan(value)]
        if not present:
            return None
        return cls(statistics.fmean(present), statistics.stdev(present) if len(present) > 1 else 0.0)


@dataclass(frozen=True)
class Point:
    """Where the runs of a method are before an epoch, or at the end.

    Attributes:
        epoch: which epoch is next, from 0.
        seconds: that the search has taken so far, the mean.
        accuracies: of the current cells, by column of the benchmark table.
        tau: Kendall's tau of the method's own ranking with the true one.
        runs: how many are so far.
    """

    epoch: int
    seconds: float
    accuracies: Mapping[str, Spread]
    tau: Spread | None
    runs: int


@dataclass(frozen=True)
class Compared:
    """Runs that differ in nothing but their seeds.

    Attributes:
        label: the method, and what tells it from others of that method.
        folders: of the runs.
        points: one for each epoch, and one behind the last.
        finished: how many runs have a result.
    """

    label: str
    folders: Sequence[Path]
    points: Sequence[Point]
    finished: int


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """The runs themselves; a folder of several seeds stands for them.

    Raises:
        UserError: a folder has no run in it, or one is named twice.
    """
    found = []
    for path in paths:
        seeds = sorted(path.glob(f"seed-*/{METRICS_FILE}"), key=lambda file: (len(file.parts[-2]), file))
        inside = [file.parent for file in seeds]
        if not inside and not (path / METRICS_FILE).exists():
            raise UserError(f"{path} holds no run that has finished an epoch: there is no {METRICS_FILE}")
        found += [path] if (path / METRICS_FILE).exists() else inside
    if len({folder.resolve() for folder in found}) < len(found):
        raise UserError("a run is named twice: " + ", ".join(map(str, found)))
    return found


def compare(folders: Sequence[Path]) -> list[Compared]:
    """Reads runs, and puts those together that differ in nothing but their seeds.

    Raises:
        UserError: a file is damaged or missing.
    """
    groups: dict[str, list[Path]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for folder in folders:
        flat = _flat(SETTINGS.read_json(folder / CONFIG_FILE))
        key = json.dumps({name: value for name, value in flat.items() if name not in _ASIDE})
        groups.setdefault(key, []).append(folder)
        settings[key] = flat
    labels = _labels(list(settings.values()))
    return [_compared(label, members) for label, members in zip(labels, groups.values(), strict=True)]


_ASIDE = frozenset({
    "search.seed", "preset", "images.data", "images.download",
    *(f"execution.{name}" for name in (
        "fused", "backend", "device", "cuda_graphs", "threads", "memory_budget_mib")),
    *(f"reporting.{name}" for name in ("benchmark_table", "tensorboard", "snapshots")),
})  # fmt: skip
"""Settings that do not say what is searched."""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by the path of their names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The recipe of each, and where several have it the settings in which these differ."""
    labels = []
    for flat in settings:
        recipe = str(flat["method.recipe"])
        alike = [other for other in settings if other["method.recipe"] == recipe]
        names = [
            name
            for name in flat
            if name not in _ASIDE and any(other.get(name) != flat[name] for other in alike)
        ]
        differing = ", ".join(f"{name.rpartition('.')[2]} {flat[name]}" for name in names[:3])
        labels.append(f"{recipe} ({differing})" if differing else recipe)
    return labels


def _compared(label: str, folders: Sequence[Path]) -> Compared:
    runs = [read_run(folder) for folder in folders]
    points = [
        point
        for epoch in range(1 + max(run.epochs[-1].number + 1 for run in runs))
        if (point := _point(epoch, runs)) is not None
    ]
    return Compared(label, folders, points, sum(run.result is not None for run in runs))


def _point(epoch: int, runs: Sequence[Run]) -> Point | None:
    found: list[tuple[float, Mapping[str, float], float]] = []
    for run in runs:
        seconds = [0.0, *accumulate(each.seconds for each in run.epochs)]
        by_number = {each.number: place for place, each in enumerate(run.epochs)}
        if epoch in by_number:
            each = run.epochs[by_number[epoch]]
            found.append((seconds[by_number[epoch]], each.benchmark, each.tau))
        elif run.result is not None and epoch == run.epochs[-1].number + 1:
            found.append((run.result.seconds, run.result.benchmark, run.result.tau))
    if not found:
        return None
    columns = list(dict.fromkeys(column for _, benchmark, _ in found for column in benchmark))
    accuracies = {
        column: Spread.of([benchmark.get(column, math.nan) for _, benchmark, _ in found])
        for column in columns
    }
    return Point(
        epoch,
        statistics.fmean(seconds for seconds, _, _ in found),
        {column: spread for column, spread in accuracies.items() if spread is not None},
        Spread.of([tau for *_, tau in found]),
        len(found),
    )


def comparison_figure(compared: Sequence[Compared], column: str) -> Figure:
    """Draws the accuracy of the current cell over epochs and seconds, and tau over epochs.

    Bands are the standard deviation over the seeds.
    """
    figure, body = new_figure(11, 9, "methods compared", f"accuracy: {column}")
    over_epochs, over_seconds, taus = body.subplots(3)
    for number, each in enumerate(compared):
        colour = FURTHER_COLOURS[number % len(FURTHER_COLOURS)]
        label = f"{each.label} ({len(each.folders)})"
        chosen = [point for point in each.points if column in point.accuracies]
        accuracies = [point.accuracies[column] for point in chosen]
        _band(over_epochs, [point.epoch for point in chosen], accuracies, colour, label)
        _band(over_seconds, [point.seconds for point in chosen], accuracies, colour, label)
        ranked = [(point.epoch, point.tau) for point in each.points if point.tau is not None]
        _band(taus, [epoch for epoch, _ in ranked], [tau for _, tau in ranked], colour, label)
    over_epochs.set_xlabel("epoch", fontsize=10)
    over_seconds.set_xlabel("seconds of the search", fontsize=10)
    over_seconds.set_xscale("log")
    taus.set_xlabel("epoch", fontsize=10)
    taus.set_ylabel("Kendall's tau", fontsize=10)
    for axes in (over_epochs, taus):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    for axes in (over_epochs, over_seconds):
        axes.set_ylabel("accuracy (%)", fontsize=10)
    for axes in (over_epochs, over_seconds, taus):
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    over_epochs.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    return figure


def _band(axes: Axes, places: Sequence[float], spreads: Sequence[Spread], colour: str, label: str) -> None:
    if not spreads:
        return
    means = [spread.mean for spread in spreads]
    axes.plot(places, means, color=colour, linewidth=2, marker="o", markersize=3, label=label)
    low = [spread.mean - spread.deviation for spread in spreads]
    high = [spread.mean + spread.deviation for spread in spreads]
    axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def to_json(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """What the picture shows, as plain values; null where there is nothing."""

    def spread(value: Spread | None) -> dict[str, float] | None:
        return None if value is None else {"mean": value.mean, "standard_deviation": value.deviation}

    return [
        {
            "label": each.label,
            "folders": [str(folder) for folder in each.folders],
            "finished": each.finished,
            "points": [
                {
                    "epoch": point.epoch,
                    "seconds": point.seconds,
                    "runs": point.runs,
                    "accuracies": {name: spread(value) for name, value in point.accuracies.items()},
                    "tau": spread(point.tau),
                }
                for point in each.points
            ],
        }
        for each in compared
    ]


def to_csv(compared: Sequence[Compared]) -> list[list[Any]]:
    """The same as lines of a table, the first one its head."""
    columns = list(
        dict.fromkeys(name for each in compared for point in each.points for name in point.accuracies)
    )
    heads = [f"{name}{ending}" for name in columns for ending in ("", "_deviation")]
    lines: list[list[Any]] = [["method", "epoch", "seconds", "runs", "tau", "tau_deviation", *heads]]
    for each in compared:
        for point in each.points:
            spreads = [point.tau, *(point.accuracies.get(name) for name in columns)]
            values = [part for s in spreads for part in ((s.mean, s.deviation) if s else (None, None))]
            lines.append([each.label, point.epoch, point.seconds, point.runs, *values])
    return lines
