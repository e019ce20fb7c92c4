"""Reads what a search has written into its run folder: `space.json`, `metrics.jsonl` and `result.json`.

They say all that pictures need, so that the code of the space that was searched need not be there. An
interrupted run is a normal input: `result.json` may be missing, and the last line of `metrics.jsonl` may have
been cut off while it was being written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.files import SPACE_FILE
from vpdarts_fast.runs.formats import EPOCH, RESULT, SPACE, Format, parse_json, read_bytes, shown
from vpdarts_fast.runs.space_file import cells_from_json, chosen_from_json, tables_from_json
from vpdarts_fast.runs.upgrades import Content
from vpdarts_fast.runs.values import mapping, number, numbers_by_name, whole
from vpdarts_fast.spaces.nas_bench_201 import NasBench201
from vpdarts_fast.spaces.space import AlphaTable, CellDrawing

T = TypeVar("T")
Array = NDArray[np.float64]

METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"


@dataclass(frozen=True)
class Choice:
    """What a search has chosen, as its files have it; `str` of it is its text.

    Attributes:
        text: what the space writes it down as, an architecture string or a genotype.
        cells: what pictures show, one of each cell type.
        chosen: (row, column) of alpha [E, O] of each operation that it consists of, in ascending order.
    """

    text: str
    cells: tuple[CellDrawing, ...]
    chosen: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class LostAccuracy:
    """What a leave-one-out evaluation says.

    Attributes:
        base_accuracy: of the unmodified supernet, in per cent.
        lost: [E, O], percentage points of accuracy lost without the op: larger is more important, negative
            means that the supernet is better off without it. NaN where not evaluated, or where the edge has
            no such op.
    """

    base_accuracy: float
    lost: Array


@dataclass(frozen=True)
class Epoch:
    """One line of `metrics.jsonl`. Accuracies are in per cent; NaN where the run has no value.

    Attributes:
        number: from 0.
        phase: the name of its stage, as warm-up or pruning.
        weights_loss: of the steps that train the weights, as `weights_accuracy`.
        weights_accuracy: of these steps.
        alpha_loss: of the steps that train alpha, as `alpha_accuracy`.
        alpha_accuracy: of these steps.
        alpha: [E, O], after the epoch; NaN where an edge has no such op.
        decay: what the alphas of all ops but the chosen ones were multiplied with, at its beginning.
        importance: at the beginning of the epoch.
        genotype: what the evaluation at the beginning of the epoch chose, if there was one.
        benchmark: accuracies of `genotype` by column of the benchmark table, empty without a table.
        watched: what was watched at its end, by name; empty for a run of an older version.
    """

    number: int
    phase: str
    weights_loss: float
    weights_accuracy: float
    alpha_loss: float
    alpha_accuracy: float
    alpha: Array
    decay: float
    importance: LostAccuracy | None
    genotype: Choice | None
    benchmark: Mapping[str, float]
    watched: Mapping[str, float]


@dataclass(frozen=True)
class Finalists:
    """What finalists, cells trained from scratch for a short time, came to; each is named by its text.

    Attributes:
        search: the answer of the search alone.
        winners: of each round.
        accuracies: of each cell and each length in steps that it was trained for, in per cent, by seed.
        benchmark: accuracies of each cell by column of the benchmark table, empty without a table.
    """

    search: str
    winners: tuple[str, ...]
    accuracies: Mapping[tuple[str, int], tuple[float, ...]]
    benchmark: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Result:
    """`result.json`.

    Attributes:
        genotype: what was found.
        importance: the evaluation that chose it, if one did.
        benchmark: its accuracies by column of the benchmark table, empty without a table.
        finalists: what they came to, if there were any.
    """

    genotype: Choice
    importance: LostAccuracy | None
    benchmark: Mapping[str, float]
    finalists: Finalists | None


@dataclass(frozen=True)
class Run:
    """A run so far.

    Attributes:
        tables: the names of alpha's rows and columns, one table for each cell type.
        epochs: at least one, in ascending order.
        result: once there is one.
    """

    tables: tuple[AlphaTable, ...]
    epochs: tuple[Epoch, ...]
    result: Result | None

    @property
    def genotype(self) -> Choice | None:
        """What was found or, while the search goes on, the last epoch's choice; None in the warm-up."""
        return self.result.genotype if self.result else self.epochs[-1].genotype

    @property
    def title(self) -> str:
        """The text of the choice, with a remark while the search is not finished."""
        if self.result:
            return str(self.result.genotype)
        return f"{self.genotype or 'no cell yet'} (epoch {self.epochs[-1].number}, unfinished)"

    @property
    def phases(self) -> list[str]:
        """The phase of each epoch."""
        return [epoch.phase for epoch in self.epochs]


def read_run(folder: Path) -> Run:
    """Reads a run folder.

    An epoch that occurs twice, as it may after resuming, counts as it was written last.

    Raises:
        UserError: no such folder, no `metrics.jsonl` with a complete line, or a malformed file.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: expected the one into which a search wrote {METRICS_FILE}")
    tables = read_tables(folder)
    epochs = _read_epochs(folder / METRICS_FILE, tables)
    path = folder / RESULT_FILE
    if not path.exists():
        return Run(tables, epochs, None)

    def parse(entry: Content) -> Result:
        return parse_result(entry, tables)

    return Run(tables, epochs, _parse(read_bytes(path), str(path), RESULT, parse))


def read_tables(folder: Path) -> tuple[AlphaTable, ...]:
    """The names of alpha's rows and columns, by the `space.json` of a run folder.

    Runs of older versions have none: they are on NAS-Bench-201.

    Raises:
        UserError: the file is damaged or cannot be read.
    """
    path = folder / SPACE_FILE
    if not path.exists():
        return NasBench201().tables
    return _parse(read_bytes(path), str(path), SPACE, tables_from_json)


def parse_epoch(entry: Mapping[str, Any], tables: Sequence[AlphaTable]) -> Epoch:
    """One line of `metrics.jsonl`, of the present version.

    Args:
        entry: the line's content.
        tables: of the space that is searched.

    Raises:
        KeyError: an entry is missing.
        TypeError: an entry is of another type.
        ValueError: an entry is of another form or out of range.
    """
    if not (isinstance(entry["phase"], str) and re.fullmatch(r"[\w-]{1,40}", entry["phase"])):
        raise ValueError(f"phase must be a word, as warm-up or pruning; got {shown(entry['phase'])}")
    numbers_by_name(entry["seconds"], "seconds", 0)
    _number(entry["learning_rate"], "learning_rate")
    _check_tables(entry["tables"])
    for op in entry["decided"] or []:
        whole(op, "a decided edge", -2)
    return Epoch(
        number=whole(entry["epoch"], "epoch"),
        phase=entry["phase"],
        weights_loss=_number(entry["weights_loss"], "weights_loss"),
        weights_accuracy=_number(entry["weights_accuracy"], "weights_accuracy"),
        alpha_loss=_number(entry["alpha_loss"], "alpha_loss"),
        alpha_accuracy=_number(entry["alpha_accuracy"], "alpha_accuracy"),
        alpha=_table(entry["alpha"], "alpha", tables),
        decay=_number(entry["decay"], "decay"),
        importance=_parse_importance(entry["importance"], tables),
        genotype=_parse_epochs_choice(entry, tables),
        benchmark=_parse_benchmark(entry["benchmark"]),
        watched=_parse_watched(entry["watched"]),
    )


def parse_result(entry: Mapping[str, Any], tables: Sequence[AlphaTable]) -> Result:
    """`result.json`, of the present version.

    Args:
        entry: the file's content.
        tables: of the space that was searched.

    Raises:
        KeyError: an entry is missing.
        TypeError: an entry is of another type.
        ValueError: an entry is of another form or out of range.
    """
    _number(entry["base_accuracy"], "base_accuracy")
    numbers_by_name(entry["seconds"], "seconds", 0)
    _check_tables(entry["tables"])
    if entry["stopped"] is not None:
        for name in ("epochs", "cell"):
            whole(mapping(entry["stopped"], "stopped")[name], name)
    return Result(
        genotype=_parse_choice(entry["architecture"], "architecture", entry, tables),
        importance=_parse_importance(entry["importance"], tables),
        benchmark=_parse_benchmark(entry["benchmark"]),
        finalists=_parse_finalists(entry["finalists"]),
    )


def _parse_watched(entry: Any) -> Mapping[str, float]:
    """NaN where it was not measured."""
    if entry is None:
        return {}
    values = mapping(entry, "watched")
    return {
        "skips": float(whole(values["skips"], "skips")),
        "entropy": number(values["entropy"], "entropy", 0),
        "eigenvalue": _number(values["eigenvalue"], "eigenvalue"),
    }


def _check_tables(entry: Any) -> None:
    """What was trained beside alpha: lists of numbers, of any depth, by their names."""
    for name, values in mapping(entry, "tables").items():
        number(float(np.asarray(values, dtype=np.float64).sum()), f"the sum of the table {name}")


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
                trained = _text(cell["architecture"], "a finalist"), whole(rung["steps"], "steps", 1)
                accuracies[trained] = tuple(number(value, "accuracy", 0, 100) for value in cell["accuracy"])
                for loss in cell["training_loss"]:
                    _number(loss, "training_loss")
    search = values["search"]
    _check_index(search["index"])
    return Finalists(
        search=_text(search["architecture"], "the search's finalist"),
        winners=tuple(_text(played["winner"], "the winner of a round") for played in values["rounds"]),
        accuracies=accuracies,
        benchmark={
            _text(cell, "a finalist"): _parse_benchmark(benchmark)
            for cell, benchmark in mapping(values["benchmark"], "benchmark of the finalists").items()
        },
    )


def _parse_choice(text: Any, name: str, entry: Mapping[str, Any], tables: Sequence[AlphaTable]) -> Choice:
    """The choice of that text, with the entries `drawing` and `index` beside it."""
    _check_index(entry["index"])
    drawing = dict(mapping(entry["drawing"], "drawing"))
    return Choice(_text(text, name), cells_from_json(drawing), chosen_from_json(drawing, tables))


def _parse_epochs_choice(entry: Mapping[str, Any], tables: Sequence[AlphaTable]) -> Choice | None:
    if entry["genotype"] is not None:
        return _parse_choice(entry["genotype"], "genotype", entry, tables)
    if entry["index"] is not None or entry["drawing"] is not None:
        raise ValueError("index and drawing must be null where genotype is")
    return None


def _check_index(index: Any) -> None:
    """The number that a benchmark has for a choice; there may be none."""
    if index is not None:
        whole(index, "index")


def _text(value: Any, name: str) -> str:
    """Text that can be drawn, white space aside."""
    words = value.split() if isinstance(value, str) else []
    if not words or not all(word.isprintable() for word in words):
        raise ValueError(f"{name} must be text; got {shown(value)}")
    return str(value)


def _parse_benchmark(entry: Any) -> Mapping[str, float]:
    if entry is None:
        return {}
    return {column: _number(value, column) for column, value in mapping(entry, "benchmark").items()}


def _parse_importance(entry: Any, tables: Sequence[AlphaTable]) -> LostAccuracy | None:
    if entry is None:
        return None
    values = mapping(entry, "importance")
    base = _number(values["base_accuracy"], "base_accuracy")
    return LostAccuracy(base, base - _table(values["accuracy"], "importance accuracy", tables))


def _read_epochs(path: Path, tables: Sequence[AlphaTable]) -> tuple[Epoch, ...]:
    def parse(entry: Content) -> Epoch:
        return parse_epoch(entry, tables)

    *complete, last = read_bytes(path).split(b"\n")
    epochs = [
        _parse(line, f"{path}, line {number},", EPOCH, parse)
        for number, line in enumerate(complete, start=1)
        if line.strip()
    ]
    # What follows the last line break is an epoch that was being written when the run was stopped,
    # and it is dropped unless it happens to be whole.
    if _is_json(last):
        epochs.append(_parse(last, f"{path}, last line,", EPOCH, parse))
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
    """NaN for `null`."""
    return float("nan") if value is None else number(value, name)


def _table(rows: Any, name: str, tables: Sequence[AlphaTable]) -> Array:
    """A float64 array [E, O]; NaN for `null`, and where an edge has no such op, whatever stands there."""
    ops = [names for table in tables for names in table.ops]
    width = max(map(len, ops))
    sizes = [len(row) if isinstance(row, list) else -1 for row in rows] if isinstance(rows, list) else []
    if sizes != [width] * len(ops):
        raise ValueError(
            f"{name} must have shape [{len(ops)}, {width}], by {SPACE_FILE} (without one, that of "
            f"NAS-Bench-201); got {shown(rows)}"
        )
    values = np.array([[_number(value, name) for value in row] for row in rows], dtype=np.float64)
    values[np.arange(width) >= np.array([[len(names)] for names in ops])] = np.nan
    return values
