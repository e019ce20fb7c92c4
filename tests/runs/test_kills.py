"""A few kills of searches; `python tests/support/kills.py` makes as many as asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from fresh_process import run_python
from kills import kind_of
from places import SUPPORT


def test_killed_searches_come_back(tmp_path: Path) -> None:
    """In a process of its own, which forks: nothing has computed there before.

    The seed's kills hit a search of two seeds: at a random moment, and then in a write of what continues it.
    """
    status, output = run_python([str(SUPPORT / "kills.py"), "--kills", "2", "--seed", "5243"], tmp_path)
    assert status == 0, output
    kills, text = output.splitlines()[-1].split(" kills, ")
    assert int(kills) >= 2 and text.startswith("0 searches did not come back")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/a/run/config.json", "config.json"),
        ("/a/run/config.json.0123abcd.partial", "config.json"),
        ("/a/run/snapshots/epoch-01.pt.0123abcd.partial", "epoch.pt"),
        ("/a/run/seed-3", "seed"),
    ],
)
def test_names_of_what_was_killed(path: str, kind: str) -> None:
    assert kind_of(path) == kind
