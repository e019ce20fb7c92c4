"""A few kills of searches; `python tests/support/kills.py` makes as many as asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
from kills import kind_of
from places import SUPPORT


def test_killed_searches_come_back() -> None:
    """In a process of its own, which forks: nothing has computed there before. The seed's kills hit."""
    script = SUPPORT / "kills.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "2", "--seed", "46"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills, text = done.stdout.splitlines()[-1].split(" kills, ")
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
