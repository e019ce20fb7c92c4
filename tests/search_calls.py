"""Searches as calls that take a moment, and what they come to: what the tests of several files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from vpdarts_fast.runs import checkpoint
from vpdarts_fast.search import RunFolder

SMALL: dict[str, Any] = {
    "channels": 2, "warmup_epochs": 1, "pruning_epochs": 1, "batch_size": 8, "evaluation_batch_size": 8,
    "finalists": 0, "threads": 1, "device": "cpu", "progress": "none",
}  # fmt: skip


def without_seconds(value: Any) -> Any:
    """Less all entries called seconds and what says where a file lies; tensors as bytes."""
    if isinstance(value, Tensor):
        return str(value.dtype), list(value.shape), value.contiguous().view(-1).numpy().tobytes()
    if isinstance(value, dict):
        return {key: without_seconds(entry) for key, entry in value.items() if key != "seconds"}
    return [without_seconds(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def outcome(folder: Path) -> dict[str, Any]:
    """All that two equal runs have in common."""
    run = RunFolder(folder)
    content = {"metrics": run.metrics(), "result": run.result(), "saved": checkpoint.load(run.checkpoint)}
    return without_seconds(content)  # type: ignore[no-any-return]


def pixels(count: int = 32, size: int = 8, classes: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % classes
    )
