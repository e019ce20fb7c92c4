"""``python -m vpdarts_fast.benchmark_table``: convert an official benchmark file, show a row."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from vpdarts_fast.benchmark_table.diagnosis import memory_note
from vpdarts_fast.benchmark_table.official import ProgressCallback
from vpdarts_fast.benchmark_table.table import COLUMNS, BenchmarkTable, check_target
from vpdarts_fast.command_line import command
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.nas_bench_201.genotype import NUM_ARCHITECTURES


def convert(official: Path, target: Path, overwrite: bool) -> None:
    """Converts an official file to a table, and says what it holds."""
    check_target(target)
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; give another name, or --overwrite to replace it")
    if official.exists() and (note := memory_note(official)):
        print(note, file=sys.stderr)
    with _progress_bar() as progress:
        table = BenchmarkTable.from_official(official, progress)
    table.save(target)
    print(f"{target}: {table.held.sum():,} of {len(table.architectures):,} architectures")
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        print(f"not in {official}: {', '.join(missing)}")


def show(path: Path | None, architecture: str) -> None:
    """Prints an architecture's accuracies, and its rank in each column (1 is the best)."""
    table = BenchmarkTable.load(path) if path else BenchmarkTable.published()
    if re.fullmatch(r"-?[0-9]+", architecture):
        if len(architecture) > 18:  # Python converts no numbers of many thousand digits
            raise UserError(
                f"official index must be in 0..{NUM_ARCHITECTURES - 1}; got {len(architecture):,} digits"
            )
        index = int(architecture)
    else:
        index = table.official_index(architecture)
    accuracies = table.accuracy(index)
    print(f"{table.architectures[index]}  (official index {index})")
    width = max(map(len, table.columns))
    for name, accuracy in accuracies.items():
        rank = 1 + (table.column(name) > accuracy).sum()
        print(f"{name:{width}}  {accuracy:8.4f} %  rank {rank:,} of {table.held.sum():,}")


@contextmanager
def _progress_bar() -> Iterator[ProgressCallback | None]:
    """A bar per stage on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vpdarts_fast.benchmark_table", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    converter = commands.add_parser("convert", help="make a table from an official benchmark file")
    converter.add_argument(
        "official",
        type=Path,
        metavar="OFFICIAL",
        help="NATS-tss-v1_0-*-simple directory (needs little memory), NATS-tss-v1_0-*.pickle.pbz2 "
        "or NAS-Bench-201-v1_*.pth",
    )
    converter.add_argument("target", type=Path, metavar="TABLE", help="a .csv or .csv.gz file to write")
    converter.add_argument("--overwrite", action="store_true", help="replace TABLE if it exists")
    shower = commands.add_parser("show", help="print the accuracies and ranks of an architecture")
    shower.add_argument("architecture", metavar="ARCH_OR_INDEX", help="string or official index")
    shower.add_argument("--table", type=Path, help="another table than the one of the package")
    return parser


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status is 2 for a mistake of the user's."""
    parsed = _parser().parse_args(arguments)
    if parsed.command == "convert":
        convert(parsed.official, parsed.target, parsed.overwrite)
    else:
        show(parsed.table, parsed.architecture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
