"""Ratios: contenders are timed in turn, round by round, so that a drift of the machine hits all of them."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

Contenders = dict[str, Callable[[], Any]]


@pytest.fixture
def compare(benchmark: BenchmarkFixture) -> Callable[..., None]:
    """Times contenders against each other; the last one is ours and makes the benchmark's row.

    ``compare(contenders, rounds)`` with name -> function without arguments, the baseline first. Verify
    results before. Median seconds of each and the ratios of the others' to ours go into the row's
    extra_info and into the table at the end.
    """

    def run(contenders: Contenders, rounds: int = 5) -> None:
        *others, ours = contenders
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for function in contenders.values():
            function()  # warm-up, and compilation where there is any

        def timed(name: str) -> None:
            started = perf_counter()
            contenders[name]()
            seconds[name].append(perf_counter() - started)

        def time_others() -> None:
            for name in others:
                timed(name)

        benchmark.pedantic(lambda: timed(ours), setup=time_others, rounds=rounds)
        benchmark.extra_info["medians"] = {name: median(values) for name, values in seconds.items()}
        benchmark.extra_info["ratios"] = {
            name: median(theirs / own for theirs, own in zip(seconds[name], seconds[ours], strict=True))
            for name in others
        }

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = [row for row in getattr(session, "benchmarks", []) if "ratios" in row.extra_info]
    if not rows:
        return
    terminalreporter.section("ours against the others: median seconds, and median ratio of a round")
    for row in rows:
        medians, ratios = row.extra_info["medians"], row.extra_info["ratios"]
        terminalreporter.write_line(row.name)
        for name, value in medians.items():
            ratio = f"{ratios[name]:6.2f} x" if name in ratios else "  ours"
            terminalreporter.write_line(f"    {name:<28} {value:9.4f} s {ratio}")
