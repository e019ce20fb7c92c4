"""A search whose steps and chunks are recorded as CUDA graphs, where there is no GPU."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from vpdarts_fast.evaluation import measuring
from vpdarts_fast.search import SearchConfig
from vpdarts_fast.spaces import blocks

evaluation = importlib.import_module("vpdarts_fast.evaluation.leave_one_out")  # no name of a function
state_module = importlib.import_module("vpdarts_fast.search.state")
member = importlib.import_module("vpdarts_fast.search.member")

CONFIG = SearchConfig().replaced(
    preset="quick", dataset="digits", max_images=64, channels=2, cells_per_stage=1, warmup_epochs=2,
    pruning_epochs=3, batch_size=12, evaluation_batch_size=4, device="cpu",
)  # fmt: skip
"""Batches of 12, 12 and 8 images, evaluations of four batches: more of a shape than are run as they are."""


def record_with(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU, or `meta`, in place of a GPU."""
    monkeypatch.setattr(state_module, "captures", lambda device: True)
    monkeypatch.setattr(blocks, "can_be_read", lambda alpha: False)
    for module in (measuring, member):
        monkeypatch.setattr(module, "recorder_for", lambda device: recorder)
