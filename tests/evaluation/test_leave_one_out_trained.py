"""Leave-one-out of a supernet that a search has trained: the fused evaluation predicts what the loop does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from leave_one_out_cases import MODES, normalisation_of

from vpdarts_fast.data import ImageData, load
from vpdarts_fast.evaluation.fused_evaluation import variant_logits
from vpdarts_fast.evaluation.leave_one_out import Batch, BatchNorm, evaluation_mode, removals
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
    stored: BatchNorm = "recalibrated" if mode == "variant" else mode
    with torch.no_grad(), evaluation_mode(supernet, stored, [batch], tables):
        normalisation = normalisation_of(mode, supernet, [batch], tables)
        for variants, some, logits in variant_logits(supernet, images, tables, normalisation, None):
            fused[variants, some] = logits.argmax(2)
    plain = []
    with (
        torch.no_grad(),
        supernet.plain(),
        evaluation_mode(supernet, mode, [batch], tables) as use_statistics_of,
    ):
        for variant, table in enumerate(tables):
            use_statistics_of(variant)
            plain.append(supernet(images, table).argmax(1))
    assert len(fused.unique()) > 1
    return int((fused != torch.stack(plain)).sum()), fused.numel()


@pytest.mark.float32
def test_a_trained_supernet_predicts_the_same(tmp_path: Path, one_thread: None) -> None:
    config = PRESETS["quick"].replaced(warmup_epochs=3, pruning_epochs=2, finalists=0)
    data = load("digits")
    search = searched(config, data, tmp_path / "run")
    turned, predictions = 0, 0
    batch = search.validation.batch(torch.arange(0, len(search.validation), 2), None)
    for mode in MODES:
        some, all_of_them = turned_predictions(search, batch, mode)
        turned, predictions = turned + some, predictions + all_of_them
    assert predictions > 30_000
    assert turned <= SHARE * predictions
