"""Reads what a search has written into its run folder: `space.json`, `metrics.jsonl` and `result.json`.

They say all that pictures need, so that the code of the space that was searched need not be there. An
interrupted run is a normal input: `result.json` may be missing, and the last line of `metrics.jsonl` may have
been cut off while it was being written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.run import (
    Array,
    CellOnTheWay,
    Choice,
    CostOfOps,
    Epoch,
    Finalists,
    Limits,
    LostAccuracy,
    Result,
    Run,
)
from vpdarts_fast.runs.files import SPACE_FILE
from vpdarts_fast.runs.formats import EPOCH, RESULT, SPACE, Format, parse_json, read_bytes, shown
from vpdarts_fast.runs.space_file import cells_from_json, chosen_from_json, tables_from_json
from vpdarts_fast.runs.upgrades import Content
from vpdarts_fast.runs.values import mapping, number, numbers_by_name, whole
from vpdarts_fast.spaces.nas_bench_201 import NasBench201
from vpdarts_fast.spaces.space import AlphaTable

T = TypeVar("T")
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"


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
        tau=_number(entry["tau"], "tau"),
        seconds=sum(entry["seconds"].values()),
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
        limits=_parse_limits(entry["limits"], tables),
        tau=_number(entry["tau"], "tau"),
        seconds=sum(entry["seconds"].values()),
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


def _parse_limits(entry: Any, tables: Sequence[AlphaTable]) -> Limits | None:
    if entry is None:
        return None
    values = mapping(entry, "limits")
    sizes = [len(ops) for table in tables for ops in table.ops]

    def rows(table: Any, name: str) -> tuple[tuple[float, ...], ...]:
        if len(table) != len(sizes) or any(len(row) < size for row, size in zip(table, sizes, strict=True)):
            raise ValueError(f"{name} must have a row for each of the {len(sizes)} edges")
        return tuple(
            tuple(number(value, name) for value in row[:size]) for row, size in zip(table, sizes, strict=True)
        )

    _text(values["unlimited"]["architecture"], "the cell without limits")
    _check_index(values["unlimited"]["index"])
    given = numbers_by_name(values["given"], "given", 0)
    path = tuple(
        CellOnTheWay(number(cell["lag"], "lag"), numbers_by_name(cell["costs"], "costs", 0))
        for cell in values["path"]
    )
    if not given or not path or any(not given.keys() <= cell.costs.keys() for cell in path):
        raise ValueError("limits must have a limit and, for each, the costs of the cells on the way")
    costs = (
        numbers_by_name(values["costs"], "costs", 0),
        numbers_by_name(values["unlimited"]["costs"], "costs", 0),
    )
    return Limits(
        given,
        *costs,
        tables={
            cost: CostOfOps(
                number(values["ops"][cost]["base"], "base"), rows(values["ops"][cost]["ops"], "ops")
            )
            for cost in given
        },
        lag=None if values["lag"] is None else rows(values["lag"], "lag"),
        path=path,
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
