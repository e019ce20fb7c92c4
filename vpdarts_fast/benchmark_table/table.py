"""Accuracy of every NAS-Bench-201 architecture by look-up, from a compact csv file."""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import io
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vpdarts_fast.benchmark_table.official import COLUMN_SOURCES, ProgressCallback, read_official
from vpdarts_fast.bounds import shown
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.nas_bench_201.genotype import NUM_ARCHITECTURES, Genotype, all_genotypes

COLUMNS = tuple(COLUMN_SOURCES)
"""Every column a table may have; a table lacks those that its source lacks."""


SECONDS = "cifar10_valid_12ep_seconds"
"""A further column that a table may have: what the evaluation took that is `cifar10_valid_12ep`."""

PUBLISHED = Path(__file__).with_name("nasbench201.csv.gz")
"""The benchmark's figures, complete; nasbench201.md beside it says what they are and where they come from."""

LARGEST_TABLE = 32 << 20
"""Bytes, uncompressed; the complete table of all columns takes two million."""


@functools.cache
def official_architectures() -> tuple[str, ...]:
    """All 15,625 architecture strings; the position is `Genotype.index`, the official number."""
    return tuple(map(str, all_genotypes()))


@functools.cache
def _official_indices() -> dict[str, int]:
    return {architecture: index for index, architecture in enumerate(official_architectures())}


def _official_index(architecture: str) -> int:
    """`Genotype.index` of an architecture string by look-up; `UserError` for a bad one."""
    index = _official_indices().get(architecture)
    return Genotype.from_string(architecture).index if index is None else index


class BenchmarkTable:
    """Benchmark accuracies, in per cent, addressed by architecture or official index.

    A table may hold fewer than all 15,625 architectures. Positions are official indices all the
    same: `architectures` and every `column` have 15,625 entries, and `held` tells which are known.

    Made by `published`, `load` or `from_official`, which validate.

    Args:
        columns: names out of `COLUMNS`, without repetition.
        values: float64 [15625, len(columns)], per cent, in official order; NaN rows are not held.
        seconds: float64 [15625], of an evaluation by `cifar10_valid_12ep`; None where they are not known.
    """

    def __init__(
        self,
        columns: Sequence[str],
        values: NDArray[np.float64],
        seconds: NDArray[np.float64] | None = None,
    ) -> None:
        self.columns = tuple(columns)
        self.seconds = seconds
        self._values = values.copy()
        self._values.flags.writeable = False

    @classmethod
    def load(cls, path: Path) -> BenchmarkTable:
        """Reads a table written by `save`: csv, or csv compressed with gzip.

        Raises:
            UserError: unreadable file, unknown or repeated column, a row with the wrong number of
                cells, a bad or repeated architecture, a cell that is not a percentage.
        """
        path = Path(path)
        try:
            with path.open("rb") as raw:
                compressed = raw.peek(2)[:2] == b"\x1f\x8b"
                binary = gzip.GzipFile(fileobj=raw) if compressed else raw
                content = binary.read(LARGEST_TABLE + 1)
                if len(content) <= LARGEST_TABLE:
                    return _parse(io.StringIO(content.decode("utf-8-sig"), newline=""), path)
        except OSError as error:
            raise UserError(f"cannot read benchmark table {path}: {error.strerror or error}") from error
        except (EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
            raise UserError(
                f"benchmark table {path} is damaged or not a csv file ({error}); download or convert it again"
            ) from error
        raise UserError(
            f"{path} is no benchmark table: it is larger than {LARGEST_TABLE >> 20} MiB, and "
            f"{NUM_ARCHITECTURES:,} rows are not"
        )

    @classmethod
    @functools.cache
    def published(cls) -> BenchmarkTable:
        """The table that comes with the package: all architectures, all columns."""
        return cls.load(PUBLISHED)

    @classmethod
    def from_official(cls, path: Path, progress: ProgressCallback | None = None) -> BenchmarkTable:
        """Converts an official file (see `vpdarts_fast.benchmark_table.official`).

        The table has the columns that the file's first architecture has: version 1.0 of
        NAS-Bench-201 lacks the 12-epoch results on CIFAR-100 and ImageNet16-120. Accuracies are
        rounded to four decimals, finer than one test image in one of the seeds.

        Args:
            path: ``NAS-Bench-201-v1_*.pth``, ``NATS-tss-v1_0-*.pickle.pbz2`` or an unpacked
                directory ``NATS-tss-v1_0-*-simple``.
            progress: called as ``progress(stage, done, total)``.

        Raises:
            UserError: a file that is none of these or is damaged, a pickle that asks for more than
                plain data, a package that is not installed.
        """
        builder: _Builder | None = None
        for row in read_official(Path(path), progress):
            timed = {} if row.seconds is None else {SECONDS: row.seconds}
            found = row.accuracies | timed
            builder = builder or _Builder(tuple(found), str(path))
            if tuple(found) != builder.columns:
                raise UserError(
                    f"{row.where} has the columns {', '.join(found)}; "
                    f"expected those of the first architecture: {', '.join(builder.columns)}"
                )
            builder.add(row.where, row.architecture, [round(v, 4) for v in found.values()])
        if builder is None:
            raise UserError(f"{path} holds no evaluated architecture")
        return builder.build()

    @property
    def architectures(self) -> Sequence[str]:
        """All 15,625 architecture strings in official order, whether held or not."""
        return official_architectures()

    @property
    def held(self) -> NDArray[np.bool_]:
        """Which architectures the table has accuracies of: bool [15625], in official order."""
        return ~np.isnan(self._values[:, 0])

    def official_index(self, architecture: str | Genotype) -> int:
        """The benchmark's number of an architecture, 0..15624, whether held or not.

        Raises:
            UserError: not an architecture string.
        """
        return _official_index(str(architecture))

    def accuracy(self, architecture: str | Genotype | int) -> dict[str, float]:
        """Column name -> accuracy in per cent, of an architecture or official index.

        Raises:
            UserError: not an architecture string, index out of range, architecture not held.
        """
        if isinstance(architecture, int | np.integer):
            index = int(architecture)
            if not 0 <= index < NUM_ARCHITECTURES:
                raise UserError(f"official index must be in 0..{NUM_ARCHITECTURES - 1}; got {shown(index)}")
        else:
            index = self.official_index(architecture)
        values = self._values[index]
        if np.isnan(values[0]):
            raise UserError(
                f"architecture {self.architectures[index]} (official index {index}) is not in the table, "
                f"which holds {self.held.sum():,} of {NUM_ARCHITECTURES:,}; use a complete table"
            )
        return dict(zip(self.columns, values.tolist(), strict=True))

    def column(self, name: str) -> NDArray[np.float64]:
        """One column for all architectures, in official order.

        Returns:
            float64 [15625], per cent; NaN where not held. A read-only view.

        Raises:
            UserError: the table has no such column.
        """
        if name not in self.columns:
            raise UserError(f"the table has no column {name!r}; it has {', '.join(self.columns)}")
        return self._values[:, self.columns.index(name)]

    def save(self, path: Path) -> None:
        """Writes the held rows as csv, compressed if `path` ends in ``.gz``; `load` gives equal values.

        A file already there is replaced in one step: it is never seen half-written.

        Raises:
            UserError: `path` ends in neither ``.csv`` nor ``.csv.gz``, or cannot be written.
        """
        path = Path(path)
        check_target(path)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        heads, values = ("arch", *self.columns), self._values
        if self.seconds is not None:
            heads, values = (*heads, SECONDS), np.column_stack([values, self.seconds])
        writer.writerow(heads)
        for index in np.flatnonzero(self.held).tolist():
            writer.writerow((self.architectures[index], *values[index].tolist()))
        data = text.getvalue().encode()
        if path.suffix == ".gz":
            data = gzip.compress(data, mtime=0)  # no time stamp: equal tables are equal files
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(data)
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise UserError(f"cannot write benchmark table {path}: {error.strerror or error}") from error


def check_target(path: Path) -> None:
    """Raises `UserError` where `path` cannot be the name of a table."""
    if not path.name.endswith((".csv", ".csv.gz")):
        raise UserError(f"a benchmark table is a .csv or .csv.gz file; got {path}")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no directory {path.parent}")


def _parse(lines: Iterable[str], path: Path) -> BenchmarkTable:
    reader = csv.reader(lines)
    header: list[str] = next(reader, [])
    if header[:1] != ["arch"]:
        raise UserError(
            f"benchmark table {path}: the header must be arch and accuracy columns "
            f"({', '.join(COLUMNS)}); got {','.join(header)[:200]!r}"
        )
    builder = _Builder(tuple(header[1:]), str(path))
    for cells in reader:
        where = f"benchmark table {path}, line {reader.line_num}"
        if len(cells) != len(header):
            raise UserError(f"{where}: expected {len(header)} cells; got {len(cells)}")
        builder.add(where, cells[0], cells[1:])
    return builder.build()


class _Builder:
    """Collects validated rows, in any order."""

    def __init__(self, columns: tuple[str, ...], source: str) -> None:
        unknown = [name for name in columns if name not in (*COLUMNS, SECONDS)]
        if unknown or not set(columns) - {SECONDS} or len(set(columns)) < len(columns):
            raise UserError(
                f"{source}: expected one or more of the columns {', '.join(COLUMNS)}, each once, and perhaps "
                f"{SECONDS}; got {', '.join(columns) or 'none'}"
            )
        self.columns = columns
        self._rows: dict[int, list[float]] = {}

    def add(self, where: str, architecture: str, cells: Sequence[str | float]) -> None:
        """One row; `where` begins the message of the `UserError` for a bad one."""
        try:
            index = _official_index(architecture)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if index in self._rows:
            raise UserError(f"{where}: architecture {architecture} occurs a second time")
        self._rows[index] = [
            (_time if column == SECONDS else _percentage)(cell, where, column)
            for cell, column in zip(cells, self.columns, strict=True)
        ]

    def build(self) -> BenchmarkTable:
        values = np.full((NUM_ARCHITECTURES, len(self.columns)), np.nan)
        if self._rows:
            values[list(self._rows)] = list(self._rows.values())
        if SECONDS not in self.columns:
            return BenchmarkTable(self.columns, values)
        place = self.columns.index(SECONDS)
        accuracies = [name for name in self.columns if name != SECONDS]
        return BenchmarkTable(accuracies, np.delete(values, place, 1), values[:, place].copy())


def _time(cell: str | float, where: str, column: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise UserError(f"{where}, column {column}: expected seconds above 0; got {cell!r}")
    return value


def _percentage(cell: str | float, where: str, column: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 100:
        raise UserError(f"{where}, column {column}: expected a percentage in 0..100; got {cell!r}")
    return value
