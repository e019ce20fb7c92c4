"""Runs that are continued elsewhere: data and folder have moved, and what they run on is another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from search_calls import outcome
from search_commands import TINY, error_of, stop_after

from vpdarts_fast.data import load
from vpdarts_fast.runs import checkpoint, environment
from vpdarts_fast.search import RunFolder, running
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.settings import ImageSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def computed(folder: Path) -> dict[str, Any]:
    """What a search comes to wherever its images lie."""
    content = outcome(folder)
    del content["checkpoint"]["config"]
    return content


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
        assert main(["--resume", str(runs), "--jobs", "1", "--data", str(tmp_path / "two.npz")]) == 130
    assert main(["--resume", str(runs), "--jobs", "1"]) == 0
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

    def load_few(settings: ImageSettings, *, quiet: bool) -> Any:
        roots.append(settings.data)
        return load("npz", images)

    monkeypatch.setattr(running, "load_images", load_few)
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert main([*TINY, "--dataset", "cifar10", "--out", "run"]) == 130
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert main(["--resume", "../run"]) == 0
    assert roots == [None, tmp_path / "data"]
