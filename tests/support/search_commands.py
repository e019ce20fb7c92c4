"""Searches from the command line that take a moment: what the tests of several programs share."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from vpdarts_fast.runs.formats import Format
from vpdarts_fast.search.__main__ import StopRequest, main

TINY = [
    "--max-images", "64", "--channels", "2", "--warmup-epochs", "1", "--pruning-epochs", "2",
    "--batch-size", "16", "--threads", "1", "--finalists", "0", "--jobs", "1",
]  # fmt: skip
"""A search; of several seeds one after the other, in this process."""


def stop_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the next search stop when it has asked so often whether it should."""
    counter = itertools.count()
    monkeypatch.setattr(StopRequest, "__call__", lambda self: next(counter) == calls)


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says on its way out with status 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    return captured.err


def full_disk(*arguments: Any, **options: Any) -> None:
    """In place of what writes to a disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def edited(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Settings as files have them with other values, each in the group that has one of its name."""
    left = dict(changes)

    def within(group: dict[str, Any]) -> dict[str, Any]:
        taken = {name: left.pop(name) for name in group if name in left}
        return {
            name: within(value) if isinstance(value, dict) and name not in taken else taken.get(name, value)
            for name, value in group.items()
        }

    return {**within(settings), **left}


def rewrite(path: Path, form: Format, **entries: Any) -> None:
    """Changes entries of a file of JSON as its writer would have written them, digest included."""
    path.write_text(form.to_json({**form.read_json(path), **entries}) + "\n")
