"""The list of slow tests names tests that are there, and is the costliest ones'."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import cpu_times
import pytest
from places import TESTS


@cache
def functions_of(file: str) -> set[str]:
    (path,) = TESTS.glob(f"*/{file}")
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", cpu_times.SLOW.read_text().split())
def test_every_slow_test_exists(name: str) -> None:
    file, _, function = name.partition("::")
    assert function in functions_of(file)


def test_the_costliest_cases_are_slow_until_the_others_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu_times, "SLOW", tmp_path / "slow.txt")
    times = {
        "tests/ops/test_a.py::test_long": 5.0,
        "tests/ops/test_a.py::test_many[0-x]": 1.0,
        "tests/ops/test_a.py::test_many[1-x::y]": 2.0,
        "tests/runs/test_b.py::test_short": 1.0,
    }
    file = tmp_path / "times"
    file.write_text("".join(json.dumps(item) + "\n" for item in times.items()))
    for budget, slow in ((9, []), (4, ["a.py::test_long"]), (3, ["a.py::test_long", "a.py::test_many"])):
        cpu_times.main(file, budget)
        assert cpu_times.SLOW.read_text().split() == [f"test_{name}" for name in slow]
    assert "     8.0 test_a.py\n     1.0 test_b.py\n     9.0 of all\n" in capsys.readouterr().out
