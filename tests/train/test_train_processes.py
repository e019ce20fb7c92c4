"""A training of two processes: stopped, and gone on with to its end."""

from __future__ import annotations

from pathlib import Path

from torchruns import Program, forked
from train_cases import CELL

from vpdarts_fast.train.folder import TrainFolder

TRAINING = [
    CELL, "--max-images", "320", "--channels", "4", "--depth", "1", "--epochs", "5", "--batch-size", "16",
    "--threads", "1", "--images", "half", "--no-onnx",
]  # fmt: skip


def test_two_stop_together_and_go_on_to_the_end(tmp_path: Path) -> None:
    """One of them validates, tests, writes and exports."""
    folder = tmp_path / "run"
    (ended, said), (again, of_rest) = forked(
        tmp_path,
        Program("vpdarts_fast.train", [*TRAINING, "--out", str(folder)], stopped_after=2),
        Program("vpdarts_fast.train", ["--resume", str(folder)]),
    )
    assert ended == "stopped" and "2 processes of 1 threads" in said, said
    assert said.count("nothing is lost") == 1, said
    assert f"continue with: torchrun --nproc-per-node 2 -m vpdarts_fast.train --resume {folder}" in said
    assert again == "done" and of_rest.count("epoch 5/5") == 1, of_rest
    run = TrainFolder(folder)
    epochs, result = run.metrics(), run.result()
    assert result is not None and len(epochs) == 5 and (folder / "model.safetensors").exists()
    assert all(epoch["validation"] is not None for epoch in epochs)
    assert epochs[-1]["training"]["loss"] < epochs[0]["training"]["loss"]
