"""Searches that go on: other settings, damaged files and full disks, several seeds, TensorBoard."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Hostile
from search_commands import TINY, edited, error_of, full_disk, rewrite, stop_after

from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.formats import SETTINGS
from vpdarts_fast.search import RunFolder
from vpdarts_fast.search.__main__ import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(5, monkeypatch)
        assert main([*TINY, "--out", str(folder)]) == 130
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(stopped_once, tmp_path / "run")
    return tmp_path / "run"


def test_resume_goes_on_and_refuses_other_settings(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(["--resume", str(stopped), "--channels", "3", "--seed", "4"], capsys)
    assert "--channels: the run has 2, asked for 3" in said and "--seeds" in said
    assert "stays in its folder" in error_of(["--resume", str(stopped), "--out", "elsewhere"], capsys)
    assert main(["--resume", str(stopped)]) == 0
    assert "vp-darts search in nas-bench-201, continued at epoch 2, step " in capsys.readouterr().out
    assert [line["epoch"] for line in RunFolder(stopped).metrics()] == [0, 1, 2]


def hostile(path: Path) -> Hostile:
    """Leaves a trace beside the file that it is read from."""
    return Hostile(Path.touch, path.with_name("trace"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def change_checkpoint(**entries: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        checkpoint.save(path, {**checkpoint.load(path), **entries})

    return change


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (truncate, "checkpoint.pt is damaged or not a search checkpoint"),
        (lambda path: path.write_bytes(b""), "checkpoint.pt is damaged or not a search checkpoint"),
        (
            lambda path: path.write_bytes(os.urandom(1000)),
            "checkpoint.pt is damaged or not a search checkpoint",
        ),
        (lambda path: torch.save({"weights": torch.ones(3)}, path), "holds no search checkpoint"),
        (lambda path: torch.save(torch.ones(3), path), "holds no search checkpoint"),
        (lambda path: torch.save(hostile(path), path), "damaged or not a search checkpoint"),
        (lambda path: path.write_bytes(pickle.dumps(hostile(path), 2)), "damaged or not"),
        (lambda path: torch.save({"format": "another"}, path), "holds no search checkpoint: expected format"),
        (change_checkpoint(alpha=torch.ones(3, 5)), "does not fit the settings of its run: alpha is [3, 5]"),
        (change_checkpoint(supernet={}), "does not fit the settings of its run"),
        (change_checkpoint(config=None), "holds no search settings; got None"),
        (change_checkpoint(config={"channels": 2}), "the entry 'data' is missing"),
    ],
)
def test_bad_checkpoints(
    spoil: Callable[[Path], None], complaint: str, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(stopped / "checkpoint.pt")
    said = error_of(["--resume", str(stopped)], capsys)
    assert "checkpoint.pt" in said and complaint in said
    assert not (stopped / "trace").exists(), "what is in a checkpoint is not run"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"channels": "x"}, "config.json: channels must be int; got 'x'"),
        ({"channels": 2.5}, "config.json: channels must be int; got 2.5"),
        ({"channels": True}, "config.json: channels must be int; got True"),
        ({"fused": 1}, "config.json: fused must be bool; got 1"),
        ({"alpha_betas": [0.5]}, "config.json: alpha_betas must be"),
        ({"pruning": "medium"}, "must hold the settings of Pruning; got 'medium'"),
        (
            {"pruning": {"name": "medium"}},
            "config.json: --pruning medium is not known; there are soft, hard, progressive",
        ),
        ({"pruning": {"name": ["soft"]}}, "config.json: --pruning must have a name; got ['soft']"),
        ({"pruning": {"name": "soft"}}, "missing or unknown settings: decay"),
        ({"space": {"name": "os"}}, "config.json: --space os is not known; there are nas-bench-201"),
        ({"dataset": ["digits"]}, "config.json: dataset must be str; got ['digits']"),
        ({"channels": 0}, "config.json: --channels must be at least 1; got 0"),
        ({"colour": "red"}, "missing or unknown settings: colour"),
        (
            {"learning_rate": 0.5},
            "checkpoint.pt contradicts config.json:\n  --learning-rate: the run has 0.025",
        ),
        ({"channels": 4}, "checkpoint.pt contradicts config.json:\n  --channels: the run has 2, asked for 4"),
    ],
)
def test_edited_settings(
    changes: dict[str, Any], complaint: str, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stopped / "config.json"
    rewrite(path, SETTINGS, **edited(SETTINGS.read_json(path), **changes))
    assert complaint in error_of(["--resume", str(stopped)], capsys)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", "[]", "config.json is damaged: expected a JSON object; got []"),
        ("metrics.jsonl", '{"epoch": 0', "metrics.jsonl, line 1, is damaged: not valid JSON"),
        ("metrics.jsonl", "{}\n", "metrics.jsonl, line 1, is damaged: the entry 'importance' is missing"),
        ("result.json", "{}", "result.json is damaged"),
        ("seeds.json", "{}", "seeds.json is damaged"),
    ],
)
def test_damaged_files(
    name: str, content: str, complaint: str, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped / name).write_text(content)
    assert complaint in error_of(["--resume", str(stopped)], capsys)


def test_a_full_disk_keeps_the_last_checkpoint(
    stopped: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (stopped / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", full_disk)
        said = error_of(["--resume", str(stopped)], capsys)
    assert "No space left on device" in said and f"--resume {stopped}" in said
    assert (stopped / "checkpoint.pt").read_bytes() == before
    assert not list(stopped.glob("*.partial"))
    assert main(["--resume", str(stopped)]) == 0


def test_several_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second seed's search and continued, they come to the same."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*TINY, "--seeds", "3", "7", "--jobs", "1", "--out", str(whole)]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((whole / "summary.json").read_text())
    results = [json.loads((whole / f"seed-{seed}" / "result.json").read_text()) for seed in (3, 7)]
    low, high = sorted(result["base_accuracy"] for result in results)
    measured = summary["accuracies"]["base_accuracy"]
    assert measured["mean"] == pytest.approx((low + high) / 2)
    assert measured["variance"] == pytest.approx((high - low) ** 2 / 2)
    assert measured["standard_deviation"] == pytest.approx(statistics.stdev([low, high]))
    assert [summary["seeds"][seed]["architecture"] for seed in ("3", "7")] == [
        result["architecture"] for result in results
    ]
    assert f"base_accuracy: mean {(low + high) / 2:.2f} %, standard deviation" in printed
    assert [
        json.loads((whole / f"seed-{s}" / "config.json").read_text())["search"]["seed"] for s in (3, 7)
    ] == [3, 7]

    with monkeypatch.context() as patch:
        stop_after(15, patch)
        assert main([*TINY, "--seeds", "3", "7", "--jobs", "1", "--out", str(parts)]) == 130
    assert f"--resume {parts}\n" in capsys.readouterr().out
    assert RunFolder(parts / "seed-3").result() and not RunFolder(parts / "seed-7").result()
    assert "exists and is not empty" in error_of([*TINY, "--seeds", "3", "7", "--out", str(parts)], capsys)
    assert "--seeds: the run has (3, 7)" in error_of(["--resume", str(parts), "--seeds", "3"], capsys)
    assert main(["--resume", str(parts), "--jobs", "1"]) == 0
    assert json.loads((parts / "summary.json").read_text()) == summary


def test_tensorboard_has_each_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        assert main([*TINY, "--tensorboard", "--out", str(folder)]) == 130
    assert main(["--resume", str(folder)]) == 0
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/weights")] == [0, 1, 2]
    assert [event.step for event in events.Scalars("accuracy/leave_one_out_base")] == [1, 2, 3]
