"""Processor time of every test, and from it the list of the slow ones that `make check` leaves out.

PYTHONPATH=tests/support CPU_TIMES=FILE python -m pytest -p cpu_times tests   appends a line for each test
python tests/support/cpu_times.py FILE [SECONDS]            prints seconds by file, writes tests/slow.txt

Processor time, also that of the processes that a test starts, says the same on a busy machine.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import fresh_process
import pytest
from places import TESTS

SLOW = TESTS / "slow.txt"
BUDGET = 90.0
"""Seconds of all tests that are not slow."""


def spent() -> float:
    """Seconds of this process and of all that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return fresh_process.processor_seconds + sum(usage.ru_utime + usage.ru_stime for usage in usages)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    before = spent()
    result = yield
    with Path(os.environ["CPU_TIMES"]).open("a") as file:
        file.write(json.dumps([item.nodeid, round(spent() - before, 4)]) + "\n")
    return result


def function_of(nodeid: str) -> str:
    """tests/ops/test_a.py::test_b[c] -> test_a.py::test_b."""
    return nodeid.partition("[")[0].rpartition("/")[2]


def main(file: Path, budget: float) -> None:
    """Of the functions whose cases take longest, as many are slow as leave the others within the budget."""
    cases: dict[str, list[float]] = defaultdict(list)
    files: dict[str, float] = defaultdict(float)
    for nodeid, seconds in map(json.loads, file.read_text().splitlines()):
        cases[function_of(nodeid)].append(seconds)
        files[function_of(nodeid).partition("::")[0]] += seconds
    for name, seconds in sorted(files.items(), key=lambda item: -item[1]):
        print(f"{seconds:8.1f} {name}")
    left = sum(files.values())
    print(f"{left:8.1f} of all")
    slow = []
    for name, some in sorted(cases.items(), key=lambda item: -sum(item[1]) / len(item[1])):
        if left <= budget:
            break
        left -= sum(some)
        slow.append(name)
    SLOW.write_text("".join(f"{name}\n" for name in sorted(slow)))
    print(f"{left:8.1f} of all but {len(slow)} slow ones")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else BUDGET)
