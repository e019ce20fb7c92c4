"""What a benchmark has measured, as lines of text and of a table that grows row by row."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import OURS

MIB = 2**20

COLUMNS = ("run", "benchmark", "contender", "median_seconds", "ratio", "peak_mib", "note")


class NoTable(Exception):
    """A file is there that holds something else."""


@dataclass(frozen=True)
class Row:
    """A benchmark's result.

    Attributes:
        name: of the benchmark.
        info: "medians", "peaks" and "ratios", each contender -> seconds, bytes or how many times as much as
            ours; "notes", contender -> text; "remark" and "rate", text of the whole row. Any may be missing.
    """

    name: str
    info: Mapping[str, Any]

    def part(self, key: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.info.get(key, {})
        return found

    @property
    def contenders(self) -> list[str]:
        return list({**self.part("medians"), **self.part("peaks")})

    def lines(self) -> Iterator[str]:
        """The name, then one line for each contender."""
        yield " ".join(
            [self.name, *(f"({self.info[key]})" for key in ("rate", "remark") if key in self.info)]
        )
        for name in self.contenders:
            ratio = f"{self.part('ratios')[name]:7.2f} x" if name in self.part("ratios") else " " * 9
            if name in self.part("peaks"):
                value = f"{self.part('peaks')[name] / MIB:9.1f} MiB"
            else:
                value = f"{self.part('medians')[name]:11.5f} s"
            yield f"    {name:<28} {value:<13} {ratio}  {self.part('notes').get(name, '')}".rstrip()

    def summary(self) -> str:
        """The ratios in one line."""
        ratios = ", ".join(f"{ratio:.1f} x {name}" for name, ratio in self.part("ratios").items())
        return f"{self.name}: {ratios or self.info['rate']}"


class Table:
    """A CSV file, to which rows are added as they are measured, and which other runs have added to before.

    Args:
        path: of the file, which is made with its first row.
        run: when this run began; stands in each of its lines.

    Raises:
        NoTable: the file holds something else.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run
        if path.exists() and path.stat().st_size:
            with path.open(newline="") as file:
                if next(csv.reader(file), None) != list(COLUMNS):
                    raise NoTable(
                        f"{path} holds something else than a table of benchmarks; name another file"
                    )

    def add(self, row: Row) -> None:
        """A line for each contender, on the disk before this returns; the ratio is 1 for ours itself."""
        new = not self.path.exists() or not self.path.stat().st_size
        torn = not new and self.path.read_bytes()[-1:] != b"\n"  # a run that was killed while it wrote
        with self.path.open("a", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            if new:
                lines.writerow(COLUMNS)
            if torn:
                file.write("\n")
            for name in row.contenders:
                ratio = row.part("ratios").get(name, 1.0 if name == OURS.name else None)
                peak = row.part("peaks")[name] / MIB if name in row.part("peaks") else None
                note = row.part("notes").get(name, "")
                median = row.part("medians").get(name)
                lines.writerow([self.run, row.name, name, median, ratio, peak, note])
            file.flush()
            os.fsync(file.fileno())
