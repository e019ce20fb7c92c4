"""The test of what keeps compiled programs: nothing stale, nothing half-made."""

from __future__ import annotations

import os
import time
from pathlib import Path

import compile_cache
import pytest
from compile_cache import compiled, digest_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(compile_cache, "CACHE", folder)
    return folder


def write(folder: Path) -> None:
    (folder / "program").write_text(str(time.perf_counter_ns()))


def test_the_same_is_built_once_and_another_anew() -> None:
    first = compiled(["flags", "a"], write)
    program = (first / "program").read_text()
    assert (compiled(["flags", "a"], write) / "program").read_text() == program
    assert compiled(["flags", "b"], write) != first
    assert compiled(["other", "a"], write) != first


def test_a_build_that_fails_leaves_nothing(cache: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise AssertionError("a warning")

    with pytest.raises(AssertionError, match="a warning"):
        compiled(["flags"], fail)
    assert list(cache.iterdir()) == []
    assert (compiled(["flags"], write) / "program").exists()


def test_two_processes_may_build_the_same(cache: Path) -> None:
    def while_another_does(folder: Path) -> None:
        write(folder)
        compiled(["flags"], write)

    folder = compiled(["flags"], while_another_does)
    assert list(cache.iterdir()) == [folder]


def test_what_has_not_been_used_for_long_goes(cache: Path) -> None:
    old = compiled(["old"], write)
    os.utime(old, (0, 0))
    new = compiled(["new"], write)
    assert list(cache.iterdir()) == [new]


def test_a_digest_tells_names_contents_and_borders_apart(tmp_path: Path) -> None:
    digests = set()
    for number, files in enumerate(
        (
            {"a": "1", "b": "2"},
            {"a": "12", "b": ""},
            {"a": "1", "c": "2"},
            {"a": "1", "b": "3"},
            {"a": "1"},
            {"a": "1", "no_source.py": "2"},
        )
    ):
        for place in ("here", "there"):
            folder = tmp_path / place / str(number)
            folder.mkdir(parents=True)
            for name, content in files.items():
                (folder / name).write_text(content)
            digests.add(digest_of([folder]))
    assert len(digests) == 5
