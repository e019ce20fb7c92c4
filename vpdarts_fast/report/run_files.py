"""Reads what a search has written into its run folder: ``metrics.jsonl`` and ``result.json``.

An interrupted run is a normal input: ``result.json`` may be missing, and the last line of
``metrics.jsonl`` may have been cut off while it was being written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.formats import EPOCH, RESULT, Content, Format, parse_json, read_bytes, shown
from vpdarts_fast.runs.values import mapping, number, numbers_by_name, whole
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, OPS, Genotype

T = TypeVar("T")
Array = NDArray[np.float64]

METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
PHASES = ("warm-up", "pruning")


@dataclass(frozen=True)
class Importance:
    """What a leave-one-out evaluation says.

    Attributes:
        base_accuracy: Of the unmodified supernet, in per cent.
        lost: [6, 5], percentage points of accuracy lost without the op: larger is more important,
            negative means that the supernet is better off without it. NaN where not evaluated.
    """

    base_accuracy: float
    lost: Array


@dataclass(frozen=True)
class Epoch:
    """One line of ``metrics.jsonl``. Accuracies are in per cent; NaN where the run has no value.

    Attributes:
        alpha: [6, 5], after the epoch.
        decay: What the alphas of all ops but the chosen ones were multiplied with, at its beginning.
        importance: At the beginning of the epoch.
        genotype: What the evaluation at the beginning of the epoch chose, if there was one.
        benchmark: Accuracies of `genotype` by column of the benchmark table, empty without a table.
    """

    number: int
    phase: str
    weights_loss: float
    weights_accuracy: float
    alpha_loss: float
    alpha_accuracy: float
    alpha: Array
    decay: float
    importance: Importance | None
    genotype: Genotype | None
    benchmark: Mapping[str, float]


@dataclass(frozen=True)
class Finalists:
    """What finalists, cells trained from scratch for a short time, came to.

    Attributes:
        search: The answer of the search alone.
        winners: Of each round.
        accuracies: Of each cell and each length in steps that it was trained for, in per cent, by seed.
        benchmark: Accuracies of each cell by column of the benchmark table, empty without a table.
    """

    search: Genotype
    winners: tuple[Genotype, ...]
    accuracies: Mapping[tuple[Genotype, int], tuple[float, ...]]
    benchmark: Mapping[Genotype, Mapping[str, float]]


@dataclass(frozen=True)
class Result:
    """``result.json``.

    Attributes:
        genotype: The architecture found.
        finalists: What they came to, if there were any.
        importance: The evaluation that chose it, if one did.
        benchmark: Its accuracies by column of the benchmark table, empty without a table.
    """

    genotype: Genotype
    importance: Importance | None
    benchmark: Mapping[str, float]
    finalists: Finalists | None


@dataclass(frozen=True)
class Run:
    """A run so far: at least one epoch, in ascending order, and the result once there is one."""

    epochs: tuple[Epoch, ...]
    result: Result | None

    @property
    def genotype(self) -> Genotype | None:
        """The architecture found or, while the search goes on, the last epoch's; None in the warm-up."""
        return self.result.genotype if self.result else self.epochs[-1].genotype

    @property
    def title(self) -> str:
        """The architecture string, with a remark while the search is not finished."""
        if self.result:
            return str(self.genotype)
        return f"{self.genotype or 'no cell yet'} (epoch {self.epochs[-1].number}, unfinished)"

    @property
    def warmup_epochs(self) -> int:
        """How many of the epochs are warm-up."""
        return sum(epoch.phase == "warm-up" for epoch in self.epochs)


def read_run(folder: Path) -> Run:
    """Reads a run folder.

    An epoch that occurs twice, as it may after resuming, counts as it was written last.

    Raises:
        UserError: no such folder, no ``metrics.jsonl`` with a complete line, or a malformed file.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: expected the one into which a search wrote {METRICS_FILE}")
    epochs = _read_epochs(folder / METRICS_FILE)
    path = folder / RESULT_FILE
    return Run(epochs, _parse(read_bytes(path), str(path), RESULT, parse_result) if path.exists() else None)


def parse_epoch(entry: Mapping[str, Any]) -> Epoch:
    """From one line of ``metrics.jsonl``; raises `KeyError`, `TypeError` or `ValueError`."""
    if entry["phase"] not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}; got {shown(entry['phase'])}")
    numbers_by_name(entry["seconds"], "seconds", 0)
    _number(entry["learning_rate"], "learning_rate")
    return Epoch(
        number=whole(entry["epoch"], "epoch"),
        phase=entry["phase"],
        weights_loss=_number(entry["weights_loss"], "weights_loss"),
        weights_accuracy=_number(entry["weights_accuracy"], "weights_accuracy"),
        alpha_loss=_number(entry["alpha_loss"], "alpha_loss"),
        alpha_accuracy=_number(entry["alpha_accuracy"], "alpha_accuracy"),
        alpha=_table(entry["alpha"], "alpha"),
        decay=_number(entry["decay"], "decay"),
        importance=_parse_importance(entry["importance"]),
        genotype=_parse_genotype(entry["genotype"], entry["index"])
        if entry["genotype"] is not None
        else None,
        benchmark=_parse_benchmark(entry["benchmark"]),
    )


def parse_result(entry: Mapping[str, Any]) -> Result:
    """From ``result.json``; raises `KeyError`, `TypeError` or `ValueError`."""
    _number(entry["base_accuracy"], "base_accuracy")
    numbers_by_name(entry["seconds"], "seconds", 0)
    return Result(
        genotype=_parse_genotype(entry["architecture"], entry["index"]),
        importance=_parse_importance(entry["importance"]),
        benchmark=_parse_benchmark(entry["benchmark"]),
        finalists=_parse_finalists(entry["finalists"]),
    )


def _parse_finalists(entry: Any) -> Finalists | None:
    if entry is None:
        return None
    values = mapping(entry, "finalists")
    whole(values["steps"], "steps of the finalists")
    accuracies = {}
    for played in values["rounds"]:
        for rung in played["rungs"]:
            whole(rung["images"], "images of a rung", 1)
            for cell in rung["cells"]:
                trained = Genotype.from_string(cell["architecture"]), whole(rung["steps"], "steps", 1)
                accuracies[trained] = tuple(number(value, "accuracy", 0, 100) for value in cell["accuracy"])
                for loss in cell["training_loss"]:
                    _number(loss, "training_loss")
    search = values["search"]
    return Finalists(
        search=_parse_genotype(search["architecture"], search["index"]),
        winners=tuple(Genotype.from_string(played["winner"]) for played in values["rounds"]),
        accuracies=accuracies,
        benchmark={
            Genotype.from_string(cell): _parse_benchmark(benchmark)
            for cell, benchmark in mapping(values["benchmark"], "benchmark of the finalists").items()
        },
    )


def _parse_genotype(architecture: Any, index: Any) -> Genotype:
    if not isinstance(architecture, str):
        raise TypeError(f"an architecture must be text; got {shown(architecture)}")
    genotype = Genotype.from_string(architecture)
    if whole(index, "index") != genotype.index:
        raise ValueError(f"index must be {genotype.index}, that of {architecture}; got {index}")
    return genotype


def _parse_benchmark(entry: Any) -> Mapping[str, float]:
    if entry is None:
        return {}
    return {column: _number(value, column) for column, value in mapping(entry, "benchmark").items()}


def _parse_importance(entry: Any) -> Importance | None:
    if entry is None:
        return None
    values = mapping(entry, "importance")
    base = _number(values["base_accuracy"], "base_accuracy")
    return Importance(base, base - _table(values["accuracy"], "importance accuracy"))


def _read_epochs(path: Path) -> tuple[Epoch, ...]:
    *complete, last = read_bytes(path).split(b"\n")
    epochs = [
        _parse(line, f"{path}, line {number},", EPOCH, parse_epoch)
        for number, line in enumerate(complete, start=1)
        if line.strip()
    ]
    # What follows the last line break is an epoch that was being written when the run was stopped,
    # and it is dropped unless it happens to be whole.
    if _is_json(last):
        epochs.append(_parse(last, f"{path}, last line,", EPOCH, parse_epoch))
    if not epochs:
        raise UserError(f"{path} holds no complete epoch yet; draw again when the search has finished one")
    by_number = {epoch.number: epoch for epoch in epochs}
    return tuple(by_number[number] for number in sorted(by_number))


def _is_json(text: bytes) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _parse(text: bytes, source: str, form: Format, parse: Callable[[Content], T]) -> T:
    entry = form.from_json(text, source)
    with form.reading(source):
        return parse(entry)


def _number(value: Any, name: str) -> float:
    """NaN for ``null``."""
    return float("nan") if value is None else number(value, name)


def _table(rows: Any, name: str) -> Array:
    """A float64 array [6, 5]; ``null`` becomes NaN."""
    sizes = [len(row) if isinstance(row, list) else -1 for row in rows] if isinstance(rows, list) else []
    if sizes != [len(OPS)] * len(EDGES):
        raise ValueError(f"{name} must have shape [{len(EDGES)}, {len(OPS)}]; got {shown(rows)}")
    return np.array([[_number(value, name) for value in row] for row in rows], dtype=np.float64)
