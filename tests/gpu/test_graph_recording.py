"""What is recorded as a CUDA graph waits for nothing: real steps and chunks on tensors without values.

Proven without a GPU; tests/support/capture.py says how.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture import META, WAITS, Watched
from graph_cases import CONFIG, evaluation, record_with
from leave_one_out_cases import MODES, every_mode
from search_calls import Watcher
from torch import Tensor

from vpdarts_fast.backends import registry
from vpdarts_fast.backends.registry import BACKENDS, Backend
from vpdarts_fast.contract.sharing import alpha_rows, some_tables, tables_on
from vpdarts_fast.data import ImageData
from vpdarts_fast.evaluation import fused_evaluation, measuring
from vpdarts_fast.evaluation.leave_one_out import BatchNorm, leave_one_out
from vpdarts_fast.evaluation.measuring import Part
from vpdarts_fast.runtime import graphs
from vpdarts_fast.search import RunFolder, Search
from vpdarts_fast.spaces.nas_bench_201 import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

driver = importlib.import_module("vpdarts_fast.search.driver")


def serve_meta(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backend `name`, and PyTorch's for what it has not, serve the device `meta` as they would a GPU."""
    if name == "triton":
        pytest.importorskip("triton")
        ops = {
            op: getattr(importlib.import_module(f"vpdarts_fast.backends.triton.{op}"), op)
            for op in TRITON_OPS
        }
        masked_cell = importlib.import_module("vpdarts_fast.backends.triton.masked_cell")
        for kernel in ("fold_weights", "cell_node"):
            monkeypatch.setattr(masked_cell, kernel, NoKernel())
    elif name == "cuda":
        if not registry.native.available():
            pytest.skip(str(registry.native.why_not()))
        from vpdarts_fast.backends.cpu.mixed_sum import mixed_sum
        from vpdarts_fast.backends.cuda.masked_cell import masked_cell as native_cell

        ops = {"masked_cell": native_cell, "mixed_sum": mixed_sum}
    else:
        ops = {}
    values = {"masked_cell": 5, "mixed_cell": 17}
    first = Backend(name, ops, frozenset({"meta"}), frozenset({torch.float32}), values)
    rest = tuple(b for b in BACKENDS if b.name == "pytorch")
    monkeypatch.setattr(registry, "BACKENDS", (first, *rest))


TRITON_OPS = ("relu_conv", "mixed_sum", "mixed_cell", "masked_cell")


class NoKernel:
    """A kernel that does nothing: what a launch computes does not matter where there are no values."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **sizes: None


@pytest.fixture
def fused_sgd_without_values(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch's fused optimisers on `meta`: SGD's kernel has no form for it, and both refuse the device."""
    for module in ("torch.optim.sgd", "torch.optim.adam"):
        monkeypatch.setattr(sys.modules[module], "_device_dtype_check_for_fused", lambda parameter: None)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_fused_sgd_.tensor_lr", lambda *args, **settings: None, "Meta")
        yield


def search_on_meta(
    digits: ImageData, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[Search, Watched]:
    """A search whose supernet, alpha, images and optimisers have no values."""
    watched = Watched()
    record_with(watched, monkeypatch)
    monkeypatch.setattr(driver, "choose_device", lambda name: META)
    return Search(CONFIG.replaced(**settings), digits, RunFolder(folder), Watcher()), watched


def take_steps(search: Search) -> None:
    """Of both phases, until both are recorded."""
    for draw in [search.members[0]._draws(search.training, "training")[0]] * (graphs.WARM_UP + 2):
        search.members[0]._weights_step(draw)
        search.members[0]._alpha_step(draw)


@pytest.mark.parametrize("backend", ["triton", "cuda", "pytorch", "none: plain modules"])
def test_steps_wait_for_nothing(
    backend: str,
    digits: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fused_sgd_without_values: None,
) -> None:
    serve_meta(backend, monkeypatch)
    search, watched = search_on_meta(digits, tmp_path, monkeypatch, fused=not backend.startswith("none"))
    take_steps(search)
    assert watched.recorded == 2


@pytest.mark.parametrize(
    "fault",
    [
        lambda logits: logits.sum().item(),
        lambda logits: torch.arange(3).to(logits.device),
        lambda logits: logits[logits > 0],
    ],
    ids=["item", "copy from the host", "mask"],
)
def test_a_step_that_waits_is_found(
    fault: Callable[[Tensor], Any],
    digits: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fused_sgd_without_values: None,
) -> None:
    """Test the test."""

    def faulty(logits: Tensor, labels: Tensor) -> Tensor:
        fault(logits)
        return F.cross_entropy(logits, labels)

    search, _ = search_on_meta(digits, tmp_path, monkeypatch)
    monkeypatch.setattr(search.members[0], "_loss", faulty)
    with pytest.raises(WAITS):
        take_steps(search)


def evaluate_on_meta(mode: BatchNorm, monkeypatch: pytest.MonkeyPatch, fused: bool = True) -> Watched:
    """Two batches, the second of them recorded; 10 variants, no more than 4 together."""
    watched = Watched()
    monkeypatch.setattr(graphs, "WARM_UP", 1)
    monkeypatch.setattr(measuring, "recorder_for", lambda device: watched)
    monkeypatch.setattr(Part, "sums", lambda self: torch.zeros(2, len(self.variants)))
    supernet = Supernet(channels=2, cells_per_stage=1, num_classes=4, fused=True).to(META)
    alpha = torch.zeros(6, 5)  # all ops on one edge, and one on each of the others
    for e, o in [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1), (5, 2)]:
        alpha[e, o] = 0.2
    batch = torch.empty(5, 3, 6, 6, device=META), torch.empty(5, dtype=torch.int64, device=META)
    node = 2 * 6 * 6 * 4
    leave_one_out(
        supernet, [batch] * 2, alpha, batch_norm=mode, batched=fused, memory_budget=node * 17 * 5 * 4
    )
    return watched


@pytest.mark.parametrize(
    ("backend", "mode"),
    [(backend, mode) for backend in ("triton", "cuda", "pytorch") for mode in MODES],
)
def test_leave_one_out_waits_for_nothing(
    backend: str, mode: BatchNorm, monkeypatch: pytest.MonkeyPatch, calibrate_on_few: None
) -> None:
    serve_meta(backend, monkeypatch)
    assert evaluate_on_meta(mode, monkeypatch).recorded == 1


def test_the_loop_of_leave_one_out_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch, calibrate_on_few: None
) -> None:
    """Of the first six of its variants, which only differ in their alphas."""
    all_variants = evaluation._all_variants

    def first_variants(alpha: Tensor, removed: Tensor, only: Tensor | None) -> tuple[Tensor, Tensor]:
        tables, number = all_variants(alpha, removed, only)
        return tables[:6], number % 6

    monkeypatch.setattr(evaluation, "_all_variants", first_variants)
    assert evaluate_on_meta("recalibrated", monkeypatch, fused=False).recorded == 1


@every_mode
def test_tables_that_are_not_known_are_found(
    mode: BatchNorm, monkeypatch: pytest.MonkeyPatch, calibrate_on_few: None
) -> None:
    """Test the test: alphas are read back where nobody has told what they are."""
    serve_meta("triton", monkeypatch)
    monkeypatch.setattr(fused_evaluation, "tables_on", lambda device, tables: tables.to(device))
    with pytest.raises(WAITS):
        evaluate_on_meta(mode, monkeypatch)


def test_known_tables_are_read_anew_after_a_change() -> None:
    tables = torch.randn(4, 6, 5)
    known = tables_on(torch.device("cpu"), tables)
    assert known.data_ptr() != tables.data_ptr() and alpha_rows(known) is alpha_rows(known)
    assert alpha_rows(some_tables(known, slice(1, 3))) == alpha_rows(tables[1:3].clone())
    known[0, 0, 0] = 7
    assert alpha_rows(known)[0][0][0] == 7
