"""Reads what a search has written into its run folder: ``metrics.jsonl`` and ``result.json``.

An interrupted run is a normal input: ``result.json`` may be missing, and the last line of
``metrics.jsonl`` may have been cut off while it was being written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.genotype import EDGES, OPS, Genotype

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
    importance: Importance | None
    genotype: Genotype | None
    benchmark: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """``result.json``.

    Attributes:
        genotype: The architecture found.
        importance: The evaluation that chose it, if one did.
        benchmark: Its accuracies by column of the benchmark table, empty without a table.
    """

    genotype: Genotype
    importance: Importance | None
    benchmark: Mapping[str, float]


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
    return Run(epochs, _parse(_read(path), str(path), parse_result) if path.exists() else None)


def parse_epoch(entry: Mapping[str, Any]) -> Epoch:
    """From one line of ``metrics.jsonl``; raises `KeyError`, `TypeError` or `ValueError`."""
    if entry["phase"] not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}; got {entry['phase']!r}")
    return Epoch(
        number=int(entry["epoch"]),
        phase=entry["phase"],
        weights_loss=_number(entry["weights_loss"]),
        weights_accuracy=_number(entry["weights_accuracy"]),
        alpha_loss=_number(entry["alpha_loss"]),
        alpha_accuracy=_number(entry["alpha_accuracy"]),
        alpha=_table(entry["alpha"], "alpha"),
        importance=_parse_importance(entry["importance"]),
        genotype=Genotype.from_string(entry["genotype"]) if entry["genotype"] is not None else None,
        benchmark=_parse_benchmark(entry["benchmark"]),
    )


def parse_result(entry: Mapping[str, Any]) -> Result:
    """From ``result.json``; raises `KeyError`, `TypeError` or `ValueError`."""
    return Result(
        genotype=Genotype.from_string(entry["architecture"]),
        importance=_parse_importance(entry["importance"]),
        benchmark=_parse_benchmark(entry["benchmark"]),
    )


def _parse_benchmark(entry: Mapping[str, Any] | None) -> Mapping[str, float]:
    return {column: _number(value) for column, value in dict(entry or {}).items()}


def _parse_importance(entry: Mapping[str, Any] | None) -> Importance | None:
    if entry is None:
        return None
    base = _number(entry["base_accuracy"])
    return Importance(base, base - _table(entry["accuracy"], "importance accuracy"))


def _read_epochs(path: Path) -> tuple[Epoch, ...]:
    *complete, last = _read(path).split(b"\n")
    epochs = [
        _parse(line, f"{path}, line {number}", parse_epoch)
        for number, line in enumerate(complete, start=1)
        if line.strip()
    ]
    # What follows the last line break is an epoch that was being written when the run was stopped,
    # and it is dropped unless it happens to be whole.
    if _is_json(last):
        epochs.append(_parse(last, f"{path}, last line", parse_epoch))
    if not epochs:
        raise UserError(f"{path} holds no complete epoch yet; draw again when the search has finished one")
    by_number = {epoch.number: epoch for epoch in epochs}
    return tuple(by_number[number] for number in sorted(by_number))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; expected the file that a search writes there"
        ) from error


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _parse(text: bytes, where: str, parse: Callable[[Mapping[str, Any]], T]) -> T:
    """Applies `parse` to the JSON object in `text`; every complaint becomes a `UserError` with `where`."""
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected a JSON object; got {type(entry).__name__}")
    try:
        return parse(entry)
    except KeyError as error:
        raise UserError(f"{where}: the entry {error} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _table(rows: Any, name: str) -> Array:
    """A float64 array [6, 5]; ``null`` becomes NaN."""
    table = np.array(rows, dtype=np.float64)
    if table.shape != (len(EDGES), len(OPS)):
        raise ValueError(f"{name} must have shape [{len(EDGES)}, {len(OPS)}]; got {list(table.shape)}")
    return table
