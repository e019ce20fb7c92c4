"""Ratios: contenders are timed in turn, round by round, so that a drift of the machine hits all of them.

Without flags the rows of the README's table are measured, in less than ten minutes on two cores with nothing
compiled before; --full adds all the rest. A row is printed and kept as soon as it is measured.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import pytest
import torch._dynamo
from contenders import Contender, Form, compared, compile_seconds, ratio_of_rounds
from pytest_benchmark.fixture import BenchmarkFixture
from rows import NoTable, Row, Table

BEGAN = pytest.StashKey[float]()
TABLE = pytest.StashKey[Table]()
ROWS = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vpdarts_fast")
    group.addoption(
        "--full", action="store_true", help="every benchmark, hours; not those of the README only"
    )
    group.addoption(
        "--csv",
        type=Path,
        metavar="FILE",
        default=Path("benchmarks.csv"),
        help="add each row to this file when it is measured (default: %(default)s)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("full"):
        return
    kept = [item for item in items if item.get_closest_marker("full") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BEGAN], config.stash[ROWS] = monotonic(), []
    try:
        now = datetime.datetime.now().isoformat(timespec="seconds")
        config.stash[TABLE] = Table(config.getoption("csv"), now)
    except NoTable as error:
        raise pytest.UsageError(str(error)) from error
    # One function is compiled for many networks and shapes; going on without compiling would be no baseline.
    torch._dynamo.config.recompile_limit = 100
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    logging.getLogger("torch.__trace").propagate = False  # pytest would collect every step of compiling


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("full"))


@pytest.fixture
def forms(request: pytest.FixtureRequest, full: bool, benchmark: BenchmarkFixture) -> tuple[Form, ...]:
    """Those that a row compares, ours last."""
    found, remark = compared(full, monotonic() - request.config.stash[BEGAN])
    if remark:
        benchmark.extra_info["remark"] = remark
    return found


@pytest.fixture
def compare(benchmark: BenchmarkFixture) -> Callable[..., None]:
    """Times contenders against each other; ours makes the benchmark's row.

    ``compare(contenders, rounds)`` with name -> `Contender` or function without arguments, the baseline
    first and ours last. Verify results before. Median seconds of each and the ratios of the others' to ours
    go into the row's extra_info, and with them what was compiled during this benchmark.
    """
    compiled_before = compile_seconds()

    def run(contenders: Mapping[str, Contender | Callable[[], Any]], rounds: int = 5) -> None:
        everybody = {n: c if isinstance(c, Contender) else Contender(c) for n, c in contenders.items()}
        *others, ours = everybody
        seconds: dict[str, list[float]] = {name: [] for name in everybody}
        for contender in everybody.values():
            contender.seconds()  # warm-up, and compilation where there is any
        compiled = compile_seconds() - compiled_before

        def timed(name: str) -> None:
            seconds[name].append(everybody[name].seconds())

        def time_others() -> None:
            for name in others:
                timed(name)

        benchmark.pedantic(lambda: timed(ours), setup=time_others, rounds=rounds)
        benchmark.extra_info["medians"] = {name: median(values) for name, values in seconds.items()}
        benchmark.extra_info["ratios"] = {n: ratio_of_rounds(seconds[n], seconds[ours]) for n in others}
        benchmark.extra_info["notes"] = {n: c.note for n, c in everybody.items() if c.note}
        if compiled:
            remark = f"compiling took {compiled:.0f} s, which are not counted"
            benchmark.extra_info.setdefault("remark", remark)

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:  # the type of its result is pytest's
    """Prints and keeps a row as soon as its benchmark has passed."""
    report = yield
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if call.when == "call" and benchmark is not None and call.excinfo is None:
        row = Row(item.name, benchmark.extra_info)
        if row.contenders or "rate" in row.info:
            item.config.stash[ROWS].append(row)
            item.config.stash[TABLE].add(row)
            show(item.config, row.lines())
    return report


def show(config: pytest.Config, lines: Iterator[str]) -> None:
    """Writes lines at once, whatever has begun one and wherever the output goes."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        for line in lines:
            reporter.write_line(line)
        reporter.flush()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if rows := config.stash[ROWS]:
        terminalreporter.section("times as long as ours, median ratio of a round")
        for row in rows:
            terminalreporter.write_line(row.summary())
        terminalreporter.write_line(f"kept: {config.stash[TABLE].path}")
