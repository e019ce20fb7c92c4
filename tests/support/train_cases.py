"""Trainings that take a moment: what the tests of several files share."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from vpdarts_fast.command_line import StopRequest
from vpdarts_fast.runs.checkpoint import load as load_checkpoint
from vpdarts_fast.runs.formats import TRAINING_CHECKPOINT
from vpdarts_fast.train import running
from vpdarts_fast.train.__main__ import main
from vpdarts_fast.train.folder import TrainFolder

CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"

PAIRS = "[('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_3x3', 0), ('max_pool_3x3', 1), " \
    "('sep_conv_3x3', 0), ('avg_pool_3x3', 2), ('skip_connect', 0), ('dil_conv_3x3', 3)]"  # fmt: skip
DARTS_CELL = f"Genotype(normal={PAIRS}, normal_concat=range(2, 6), reduce={PAIRS}, reduce_concat=range(2, 6))"

SMALL = [
    "--max-images", "40", "--channels", "4", "--epochs", "2", "--batch-size", "16", "--threads", "1",
]  # fmt: skip
TINY = [CELL, *SMALL, "--depth", "1"]
TINY_DARTS = [DARTS_CELL, *SMALL, "--depth", "3"]


def without_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings write their result and nothing after it: no exports, no pictures."""
    monkeypatch.setattr(running, "export_network", lambda *arguments: [])
    monkeypatch.setattr(running, "draw_training", lambda folder: [])


def stop_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the next training stop when it has asked so often whether it should."""
    counter = itertools.count()
    monkeypatch.setattr(StopRequest, "__call__", lambda self: next(counter) == calls)


def trained(folder: Path, *arguments: str) -> Path:
    """Trains into a folder, which is returned."""
    assert main([*arguments, "--out", str(folder)]) == 0
    return folder


def content(folder: Path) -> tuple[Any, ...]:
    """Checkpoint, metrics and result of a training, comparable bit for bit, but for the times taken."""
    saved = load_checkpoint(folder / "checkpoint.pt", TRAINING_CHECKPOINT)
    run = TrainFolder(folder)
    return plain(saved), plain(run.metrics()), plain(run.result())


def plain(value: Any) -> Any:
    """Tensors as bytes; entries that say how long something took are left out."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items() if "seconds" not in str(key)}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says on its way out with status 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    return captured.err
