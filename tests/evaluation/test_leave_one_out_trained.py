"""Leave-one-out of a supernet that a search has trained: the fused evaluation predicts what the loop does."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from leave_one_out_cases import MODES

from vpdarts_fast.data import ImageData, load
from vpdarts_fast.evaluation.fused_evaluation import together
from vpdarts_fast.evaluation.leave_one_out import Batch, BatchNorm, removals
from vpdarts_fast.evaluation.validation import one_by_one
from vpdarts_fast.search import RunFolder, Search
from vpdarts_fast.search.config import PRESETS, SearchConfig

SHARE = 1e-4  # of the predictions that rounding may turn


class Silent:
    def phase(self, description: str, total: int, done: int = 0) -> None: ...
    def advance(self, done: int, epochs: float) -> None: ...
    def epoch(self, metrics: dict[str, Any]) -> None: ...


def searched(config: SearchConfig, data: ImageData, folder: Path) -> Search:
    search = Search(config, data, RunFolder.create(folder, config), Silent())
    search.search()
    return search


def turned_predictions(search: Search, batch: Batch, mode: BatchNorm) -> tuple[int, int]:
    """How many of all removals' predictions differ between the fused evaluation and the loop; of how many."""
    supernet, alpha = search.state.supernet, search.state.alpha.detach()
    tables = torch.cat([alpha[None], removals(alpha)])
    if mode == "variant":  # the loop estimates anew for every one: some will do
        tables = tables[::5]
    images = batch[0]
    fused = torch.zeros(len(tables), len(images), dtype=torch.int64)
    with torch.no_grad(), together(supernet, tables, mode, [batch], None) as logits_of:
        for variants, some, logits in logits_of(range(len(tables)))(images):
            fused[variants, some] = logits.argmax(2)
    forwards = [partial(supernet, alpha=table) for table in tables]
    plain = torch.zeros_like(fused)
    with torch.no_grad(), supernet.plain(), one_by_one(supernet, forwards, mode, [batch]) as logits_of:
        for variants, some, logits in logits_of(range(len(tables)))(images):
            plain[variants, some] = logits.argmax(2)
    assert len(fused.unique()) > 1
    return int((fused != plain).sum()), fused.numel()


@pytest.mark.float32
def test_a_trained_supernet_predicts_the_same(tmp_path: Path, one_thread: None) -> None:
    # The alphas decide, so that the search itself evaluates nothing.
    config = PRESETS["quick"].replaced(warmup_epochs=3, pruning_epochs=2, finalists=0, criterion="alpha")
    data = load("digits")
    search = searched(config, data, tmp_path / "run")
    turned, predictions = 0, 0
    batch = search.validation.batch(torch.arange(0, len(search.validation), 4), None)
    for mode in MODES:
        some, all_of_them = turned_predictions(search, batch, mode)
        turned, predictions = turned + some, predictions + all_of_them
    assert predictions > 15_000
    assert turned <= SHARE * predictions
