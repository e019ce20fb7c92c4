"""A training of two processes: stopped, and gone on with to its end."""

from __future__ import annotations

from pathlib import Path

from torchruns import finished, torchrun, wait_for_epochs
from train_cases import CELL

from vpdarts_fast.train.folder import TrainFolder

TRAINING = [
    CELL, "--max-images", "400", "--channels", "4", "--depth", "1", "--epochs", "8", "--batch-size", "16",
    "--threads", "1", "--images", "half", "--no-onnx",
]  # fmt: skip


def test_two_stop_together_and_go_on_to_the_end(tmp_path: Path) -> None:
    """One of them validates, tests, writes and exports."""
    folder = tmp_path / "run"
    process = torchrun("-m", "vpdarts_fast.train", *TRAINING, "--out", str(folder))
    wait_for_epochs(folder, 2, process)
    process.terminate()
    code, said = finished(process)
    assert code != 0 and "2 processes of 1 threads" in said and said.count("nothing is lost") == 1, said
    assert f"continue with: torchrun --nproc-per-node 2 -m vpdarts_fast.train --resume {folder}" in said
    code, said = finished(torchrun("-m", "vpdarts_fast.train", "--resume", str(folder)))
    assert code == 0 and said.count("epoch 8/8") == 1, said
    run = TrainFolder(folder)
    epochs, result = run.metrics(), run.result()
    assert result is not None and len(epochs) == 8 and (folder / "model.safetensors").exists()
    assert all(epoch["validation"] is not None for epoch in epochs)
    assert epochs[-1]["training"]["loss"] < epochs[0]["training"]["loss"]
