"""A run folder and who works in it: locks, beginnings that fail, ends that were killed, data that moved."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from search_calls import outcome
from search_commands import TINY, error_of, full_disk, stop_after

from vpdarts_fast.data import load
from vpdarts_fast.errors import UserError
from vpdarts_fast.runs import checkpoint, environment
from vpdarts_fast.runs.files import LOCK_FILE, is_empty, write_atomically
from vpdarts_fast.runs.lock import claimed, locked
from vpdarts_fast.search import RunFolder, Search, running
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.console import Console

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURES = {"cell.png", "cell.svg", "alpha.png", "importance.png", "curves.png"}


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the search."""
    monkeypatch.setattr(running, "draw_pictures", lambda folder: [])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def computed(folder: Path) -> dict[str, Any]:
    """What a search comes to wherever its images lie."""
    content = outcome(folder)
    del content["checkpoint"]["config"]
    return content


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


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt(), Broken(), MemoryError()])
@pytest.mark.parametrize("where", ["made", "searched"])
@pytest.mark.parametrize("seeds", [["3"], ["3", "4"]])
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
    assert main(["--resume", str(folder)]) == 0
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


# --- where things lie and what they run on ------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 64 digits."""
    data = load("digits")
    path = tmp_path_factory.mktemp("images") / "few.npz"
    arrays = {name: getattr(data, name)[:64].numpy() for name in ("train_images", "train_labels")}
    arrays |= {name: getattr(data, name)[:8].numpy() for name in ("test_images", "test_labels")}
    np.savez(path, classes=np.array(data.classes), **arrays)
    return path


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the search comes to that is not interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "draw_pictures", lambda folder: [])
        assert main([*TINY, "--dataset", "npz", "--data", str(images), "--out", str(folder)]) == 0
    return computed(folder)


@pytest.fixture
def place(images: Path, tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with images/few.npz and runs/one, a search that was begun there with relative paths."""
    folder = tmp_path / "place"
    (folder / "images").mkdir(parents=True)
    shutil.copy(images, folder / "images")
    monkeypatch.chdir(folder)
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        assert main([*TINY, "--dataset", "npz", "--data", "images/few.npz", "--out", "runs/one"]) == 130
    yield folder


def test_resume_from_another_folder(
    place: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--resume", "place/runs/one"]) == 0
    assert computed(place / "runs" / "one") == whole


def test_resume_where_images_and_run_have_moved_together(
    place: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place.rename(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "runs", target_is_directory=True)
    assert main(["--resume", "link/one"]) == 0
    assert computed(tmp_path / "elsewhere" / "runs" / "one") == whole


def test_resume_where_the_run_has_moved(place: Path, whole: Any, tmp_path: Path) -> None:
    (place / "runs" / "one").rename(tmp_path / "one")
    assert main(["--resume", str(tmp_path / "one")]) == 0
    assert computed(tmp_path / "one") == whole


def test_resume_where_the_images_have_moved(
    place: Path, whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The flag says where they are, and is remembered."""
    (place / "images" / "few.npz").rename(tmp_path / "images.npz")
    said = error_of(["--resume", "runs/one"], capsys)
    assert "data set npz not found" in said and str(place / "images" / "few.npz") in said
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert main(["--resume", "runs/one", "--data", str(tmp_path / "images.npz")]) == 130
    assert main(["--resume", "runs/one"]) == 0
    assert computed(place / "runs" / "one") == whole


def test_several_seeds_where_the_images_have_moved(
    images: Path, tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(images, tmp_path / "one.npz")
    runs = tmp_path / "runs"
    with monkeypatch.context() as patch:
        stop_after(15, patch)
        data = ["--dataset", "npz", "--data", str(tmp_path / "one.npz")]
        assert main([*TINY, *data, "--seeds", "3", "4", "--out", str(runs)]) == 130
    (tmp_path / "one.npz").rename(tmp_path / "two.npz")
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert main(["--resume", str(runs), "--data", str(tmp_path / "two.npz")]) == 130
    assert main(["--resume", str(runs)]) == 0
    assert RunFolder.open(runs / "seed-4")[1].images.data == tmp_path / "two.npz"


def test_resume_on_other_images_is_refused(
    place: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same names and shapes, one pixel of difference."""
    with np.load(images) as archive:
        arrays = dict(archive)
    arrays["train_images"][3, 5, 5, 0] ^= 1
    np.savez(place / "images" / "few.npz", **arrays)
    said = error_of(["--resume", "runs/one"], capsys)
    assert "was trained on other images than those that npz is now" in said and "--data" in said


def test_what_a_run_is_computed_on_is_recorded_and_its_change_is_said(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place / "runs" / "one"
    capsys.readouterr()
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert main(["--resume", str(folder)]) == 130
    assert "not what this run" not in capsys.readouterr().out, "nothing has changed"
    saved = checkpoint.load(folder / "checkpoint.pt")["environment"]
    assert saved == {
        "pytorch": torch.__version__, "device": "cpu", "threads": 1, "backend": "auto",
        "isa": environment.native.cpu_isa() if environment.native.available() else "none",
        "pytorch_isa": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip
    monkeypatch.setattr(environment.torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    changes = ["--threads", "2", "--device", "cpu", "--memory-budget-mib", "64", "--snapshots"]
    assert main(["--resume", str(folder), *changes]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "last bits may change" in line]
    assert "threads 1 -> 2, instruction set of PyTorch " in line and line.endswith("-> ABACUS")
    assert line in (folder / "log.txt").read_text()
    threads = [entry["environment"]["threads"] for entry in RunFolder(folder).metrics()]
    assert threads[0] == 1 and threads[-1] == 2
    assert RunFolder.open(folder)[1].execution.threads == 2


def test_the_default_folder_of_images_is_found_again(
    images: Path, tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--data that is left out means ./data, wherever the search is continued."""
    monkeypatch.chdir(tmp_path)
    roots: list[Any] = []

    def load_few(dataset: str, root: Path | None, *, download: bool = False) -> Any:
        roots.append(root)
        return load("npz", images)

    monkeypatch.setattr(running, "load", load_few)
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert main([*TINY, "--dataset", "cifar10", "--out", "run"]) == 130
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert main(["--resume", "../run"]) == 0
    assert roots == [None, tmp_path / "data"]
