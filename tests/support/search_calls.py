"""Searches as calls that take a moment, and what they come to: what the tests of several files share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.data import ImageData
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.formats import FINALISTS
from vpdarts_fast.search import RunFolder, Search, SearchConfig
from vpdarts_fast.search.finalists.rounds import Rung

SMALL: dict[str, Any] = {
    "channels": 2, "warmup_epochs": 1, "pruning_epochs": 1, "batch_size": 8, "evaluation_batch_size": 8,
    "finalists": 0, "threads": 1, "device": "cpu", "progress": "none",
}  # fmt: skip
"""Options of search_cells."""

TINY = SearchConfig().replaced(
    preset="quick", dataset="digits", max_images=64, channels=2, cells_per_stage=1, warmup_epochs=2,
    pruning_epochs=3, batch_size=16, evaluation_batch_size=8, device="cpu",
)  # fmt: skip

SHORT = TINY.replaced(warmup_epochs=1, pruning_epochs=2)


class Watcher:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int, int]] = []
        self.done: list[int] = []
        self.positions: list[float] = []
        self.lines: list[dict[str, Any]] = []
        self.rungs: list[Rung] = []

    def phase(self, description: str, total: int, done: int = 0) -> None:
        self.phases.append((description, total, done))

    def advance(self, done: int, epochs: float) -> None:
        self.done.append(done)
        self.positions.append(epochs)

    def epoch(self, metrics: dict[str, Any]) -> None:
        self.lines.append(metrics)

    def rung(self, rung: Rung) -> None:
        self.rungs.append(rung)


def never() -> bool:
    return False


def stop_at(*calls: int) -> Callable[[], bool]:
    """Says stop when it is asked for the n-th time, from 0."""
    counter = itertools.count()
    return lambda: next(counter) in calls


def run(
    config: SearchConfig,
    data: ImageData,
    folder: Path,
    stop: Callable[[], bool] = never,
    watcher: Watcher | None = None,
    table: BenchmarkTable | None = None,
) -> dict[str, Any]:
    """A new search, or the one of the folder continued."""
    place = RunFolder.open(folder)[0] if folder.exists() else RunFolder.create(folder, config)
    search = Search(config, data, place, watcher or Watcher(), table, stop)
    if place.has_begun():
        search.resume()
    return search.search()


def bits(value: Any, leave_out: Collection[str] = ()) -> Any:
    """A nested structure with tensors as bytes, so that == is bitwise, less the entries of these names."""
    if isinstance(value, Tensor):
        return str(value.dtype), list(value.shape), value.contiguous().view(-1).numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(entry, leave_out) for key, entry in value.items() if key not in leave_out}
    return [bits(entry, leave_out) for entry in value] if isinstance(value, (list, tuple)) else value


def without_seconds(value: Any) -> Any:
    """The bits of what two equal runs have in common."""
    return bits(value, leave_out=("seconds",))


def outcome(folder: Path) -> dict[str, Any]:
    """All that two equal runs have in common."""
    place = RunFolder(folder)
    content = {
        "metrics": place.metrics(), "result": place.result(), "checkpoint": checkpoint.load(place.checkpoint),
    }  # fmt: skip
    if place.finalists.exists():
        content["finalists"] = checkpoint.load(place.finalists, FINALISTS)
    return without_seconds(content)  # type: ignore[no-any-return]


def pixels(count: int = 32, size: int = 8, classes: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % classes
    )
