"""A run folder and who works in it: locks, beginnings that fail, ends that were killed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from op_contract import half_of
from search_commands import TINY, error_of, full_disk

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.files import LOCK_FILE, is_empty, write_atomically
from vpdarts_fast.runs.lock import claimed, locked
from vpdarts_fast.search import RunFolder, Search, running
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.console import Console

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURES = {"cell.png", "cell.svg", "alpha.png", "importance.png", "curves.png"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- one process at a time ----------------------------------------------------------------------


def forked(work: Callable[[], None]) -> int:
    """The id of a process that does this and nothing else."""
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    return process


def test_the_second_process_hears_who_the_first_is(
    tmp_path: Path, no_pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """And once the first was killed, its lock means nothing."""
    folder = tmp_path / "run"
    folder.mkdir()
    reader, writer = os.pipe()

    def hold() -> None:
        with locked(folder):
            os.write(writer, b"x")
            time.sleep(60)  # at most, should this test fail

    process = forked(hold)
    assert os.read(reader, 1) == b"x"
    said = error_of([*TINY, "--out", str(folder)], capsys)
    assert f"{folder} is in use by process {process} on {socket.gethostname()} since 2" in said
    assert names(folder) == {LOCK_FILE}
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert (folder / LOCK_FILE).exists() and is_empty(folder)
    assert main([*TINY, "--out", str(folder)]) == 0
    assert LOCK_FILE not in names(folder), "removed at the end"


@pytest.mark.parametrize("arguments", [["--seeds", "3", "4"], ["--seeds", "3"]])
def test_a_run_that_is_read_or_continued_elsewhere(
    arguments: list[str], tmp_path: Path, no_pictures: None, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of a group, neither the group nor the seed at work can be resumed by another."""
    folder = tmp_path / "runs"
    inner = folder / "seed-3" if len(arguments) > 2 else folder
    real = Search.search

    def search(self: Search) -> Any:
        for place in {folder, inner}:
            monkeypatch.setattr(Search, "search", real)
            in_use = f"{place} is in use by process {os.getpid()} on "
            with pytest.raises(UserError, match=in_use), locked(place):
                pass
        return real(self)

    monkeypatch.setattr(Search, "search", search)
    assert main([*TINY, *arguments, "--out", str(folder)]) == 0
    with locked(folder), pytest.raises(UserError, match="is in use by process"), claimed(folder):
        pass
    with locked(folder):
        assert f"is in use by process {os.getpid()} on" in error_of(["--resume", str(folder)], capsys)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": "x"}', "[" * 100_000])
def test_a_lock_that_does_not_say_whose_it_is(content: str, tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK_FILE).write_text(content)
        with pytest.raises(UserError, match="is in use by another process: wait until"), locked(tmp_path):
            pass


def test_locks_exclude_each_other_while_they_come_and_go(tmp_path: Path) -> None:
    """Locks are removed at the end: nobody must hold one that has been removed already."""

    def work() -> None:
        done = 0
        while done < 40:
            try:
                with locked(tmp_path):
                    os.close(os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL))
                    (tmp_path / "inside").unlink()
                done += 1
            except UserError:
                pass
            except OSError:
                (tmp_path / "two inside").touch()
                return

    for process in [forked(work) for _ in range(4)]:
        os.waitpid(process, 0)
    assert not names(tmp_path)


def test_files_written_at_once_are_whole(tmp_path: Path) -> None:
    """Each writer has a temporary file of its own."""
    contents = [bytes([number]) * 20_000 for number in range(8)]
    failures: list[Exception] = []

    def work(content: bytes) -> None:
        try:
            for _ in range(10):
                write_atomically(tmp_path / "file", content)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and (tmp_path / "file").read_bytes() in contents and names(tmp_path) == {"file"}


# --- beginnings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [["3"], ["3", "4"]])
def test_what_a_killed_first_write_leaves_is_an_empty_folder(
    seeds: list[str], tmp_path: Path, no_pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (
        "config.json.0123abcd.partial",
        "seeds.json.0123abcd.partial",
        "config.json.partial",
        LOCK_FILE,
    ):
        (folder / name).write_text("{")
    said = error_of(["--resume", str(folder)], capsys)
    assert f"no run has begun in {folder}: start one with --out {folder}" in said
    assert main([*TINY, "--seeds", *seeds, "--out", str(folder)]) == 0
    assert not list(folder.rglob("*.partial")) and not list(folder.rglob(LOCK_FILE))


class Broken(RuntimeError):
    """What nobody has thought of."""


@pytest.mark.parametrize(
    ("error", "where", "seeds"),
    half_of(
        0,
        [UserError("no"), KeyboardInterrupt(), Broken(), MemoryError()],
        ["made", "searched"],
        [["3"], ["3", "4"]],
    ),
)
def test_a_run_that_did_not_begin_leaves_nothing(
    error: BaseException, where: str, seeds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(*((running, "Search") if where == "made" else (Search, "_train_epoch")), fail)
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments in ([], ["--out", "deep/er"], ["--out", str(empty)]):
        with contextlib.suppress(Broken, MemoryError):
            assert main([*TINY, "--snapshots", "--seeds", *seeds, *arguments]) in (2, 130)
        assert names(tmp_path) == {"empty"} and not names(empty)


def test_a_later_seed_that_does_not_begin_leaves_the_others(
    tmp_path: Path, no_pictures: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = tmp_path / "runs", itertools.count()
    real = Search.__init__

    def fail(self: Search, *arguments: Any, **options: Any) -> None:
        if next(calls) == 1:
            raise UserError("the second cannot")
        real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "__init__", fail)
        assert "the second cannot" in error_of([*TINY, "--seeds", "3", "4", "--out", str(folder)], capsys)
    assert names(folder) == {"seeds.json", "seed-3"}
    assert main(["--resume", str(folder), "--jobs", "1"]) == 0
    assert set(json.loads((folder / "summary.json").read_text())["seeds"]) == {"3", "4"}


def test_a_run_that_has_begun_stays_whatever_happens(
    tmp_path: Path, no_pictures: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def fail(self: Search) -> None:
        raise UserError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(Search, "_end_epoch", fail)
        error_of([*TINY, "--out", str(folder)], capsys)
    assert names(folder) == {"config.json", "space.json", "log.txt"}
    assert main(["--resume", str(folder)]) == 0


@pytest.mark.parametrize("what", ["metrics", "snapshot", "result"])
def test_a_full_disk_names_the_folder_to_resume(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    writes: dict[str, Callable[[], None]] = {
        "metrics": lambda: run.append_metrics({"epoch": 0}),
        "snapshot": lambda: run.write_snapshot(0, {}),
        "result": lambda: run.write_result({}),
    }
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=rf"No space left on device.* with --resume {tmp_path}\)"):
        writes[what]()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- ends ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """In place of a signal that nobody hears."""


@pytest.mark.parametrize("where", ["lines", "pictures"])
def test_what_follows_the_result_is_done_on_resume(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def kill(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*((Console, "result") if where == "lines" else (running, "draw_pictures")), kill)
        with pytest.raises(Killed):
            main([*TINY, "--out", str(folder)])
    assert "result.json" in names(folder) and not names(folder) & PICTURES
    if where == "lines":  # the other draws them really
        monkeypatch.setattr(running, "draw_pictures", lambda run: (run / "cell.png").touch())
    assert main(["--resume", str(folder)]) == 0
    assert names(folder) >= (PICTURES if where == "pictures" else {"cell.png"})
    found = RunFolder(folder).result()
    assert found and f"found: {found['architecture']}\n" in (folder / "log.txt").read_text()
