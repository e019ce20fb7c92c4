"""Ratios: contenders are timed in turn, round by round, so that a drift of the machine hits all of them."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch._dynamo
from contenders import OURS, Contender, ratio_of_rounds
from pytest_benchmark.fixture import BenchmarkFixture

MIB = 2**20


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vpdarts_fast")
    group.addoption("--quick", action="store_true", help="C=16, N=1, 64 images, few rounds: under 5 minutes")
    group.addoption("--csv", type=Path, metavar="FILE", help="write medians, ratios and peaks into this file")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("quick"):
        return
    kept = [item for item in items if item.get_closest_marker("full") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: takes minutes; left out by --quick")
    # One function is compiled for many networks and shapes; going on without compiling would be no baseline.
    torch._dynamo.config.recompile_limit = 100
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    logging.getLogger("torch.__trace").propagate = False  # pytest would collect every step of compiling


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("quick"))


@pytest.fixture(scope="session")
def images(quick: bool) -> int:
    """How many are evaluated together."""
    return 64 if quick else 256


@pytest.fixture
def compare(benchmark: BenchmarkFixture, quick: bool) -> Callable[..., None]:
    """Times contenders against each other; ours makes the benchmark's row.

    ``compare(contenders, rounds)`` with name -> `Contender` or function without arguments, the baseline
    first and ours last. Verify results before. Median seconds of each and the ratios of the others' to ours
    go into the row's extra_info and into the table at the end.
    """

    def run(contenders: Mapping[str, Contender | Callable[[], Any]], rounds: int = 5) -> None:
        everybody = {n: c if isinstance(c, Contender) else Contender(c) for n, c in contenders.items()}
        *others, ours = everybody
        seconds: dict[str, list[float]] = {name: [] for name in everybody}
        for contender in everybody.values():
            contender.seconds()  # warm-up, and compilation where there is any

        def timed(name: str) -> None:
            seconds[name].append(everybody[name].seconds())

        def time_others() -> None:
            for name in others:
                timed(name)

        benchmark.pedantic(lambda: timed(ours), setup=time_others, rounds=min(rounds, 2) if quick else rounds)
        benchmark.extra_info["medians"] = {name: median(values) for name, values in seconds.items()}
        benchmark.extra_info["ratios"] = {n: ratio_of_rounds(seconds[n], seconds[ours]) for n in others}
        benchmark.extra_info["notes"] = {n: c.note for n, c in everybody.items() if c.note}

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    everything = getattr(session, "benchmarks", [])
    rows = [row for row in everything if "ratios" in row.extra_info]
    if not rows:
        return
    terminalreporter.section(
        "others against ours: median seconds or peak memory, and median ratio of a round"
    )
    for row in everything:
        if "rate" in row.extra_info:
            terminalreporter.write_line(f"{row.name}: {row.extra_info['rate']}")
    for row in rows:
        terminalreporter.write_line(row.name)
        for line in table_lines(row.extra_info):
            terminalreporter.write_line(line)
    if (path := config.getoption("csv")) is not None:
        write_csv(path, rows)
        terminalreporter.write_line(f"written: {path}")


def table_lines(info: Mapping[str, Any]) -> list[str]:
    """One line for each contender of a row."""
    lines = []
    for name in {**info.get("medians", {}), **info.get("peaks", {})}:
        ratio = f"{info['ratios'][name]:7.2f} x" if name in info["ratios"] else " " * 9
        peak = f"{info['peaks'][name] / MIB:9.1f} MiB" if name in info.get("peaks", {}) else ""
        value = peak or f"{info['medians'][name]:11.5f} s"
        lines.append(f"    {name:<28} {value:<13} {ratio}  {info.get('notes', {}).get(name, '')}".rstrip())
    return lines


def write_csv(path: Path, rows: list[Any]) -> None:
    """A line for each contender of each benchmark; the ratio is theirs to ours, 1 for ours itself."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["benchmark", "contender", "median_seconds", "ratio", "peak_mib", "note"])
        for row in rows:
            info = row.extra_info
            medians, peaks = info.get("medians", {}), info.get("peaks", {})
            for name in {**medians, **peaks}:
                ratio = info["ratios"].get(name, 1.0 if name == OURS.name else None)
                peak = peaks[name] / MIB if name in peaks else None
                note = info.get("notes", {}).get(name, "")
                lines.writerow([row.name, name, medians.get(name), ratio, peak, note])
