"""Steps and leave-one-out chunks as CUDA graphs, proven without a GPU (tests/capture.py says how)."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture import META, WAITS, NotCapturable, Tape, Watched
from leave_one_out_cases import MODES, every_mode
from test_search import Watcher, outcome, run
from torch import Tensor

from vpdarts_fast.backends import registry
from vpdarts_fast.backends.registry import BACKENDS, Backend
from vpdarts_fast.contract.sharing import alpha_rows, some_tables, tables_on
from vpdarts_fast.data import ImageData, ImageSet, load
from vpdarts_fast.data.batches import DeviceImageSet
from vpdarts_fast.evaluation import racing
from vpdarts_fast.evaluation.leave_one_out import BatchNorm, Counts, leave_one_out
from vpdarts_fast.runtime import graphs
from vpdarts_fast.runtime.graphs import Captured
from vpdarts_fast.search import RunFolder, Search, SearchConfig, step
from vpdarts_fast.search.optimizers import CapturableSGD, alpha_optimizer, weights_optimizer
from vpdarts_fast.search.state import SearchState
from vpdarts_fast.spaces import blocks
from vpdarts_fast.spaces.nas_bench_201 import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = SearchConfig().replaced(
    preset="quick", dataset="digits", max_images=64, channels=2, cells_per_stage=1, warmup_epochs=2,
    pruning_epochs=3, batch_size=12, evaluation_batch_size=4, device="cpu",
)  # fmt: skip
"""Batches of 12, 12 and 8 images, evaluations of four batches: more of a shape than are run as they are."""

evaluation = importlib.import_module("vpdarts_fast.evaluation.leave_one_out")  # no name of a function
state_module = importlib.import_module("vpdarts_fast.search.state")
driver = importlib.import_module("vpdarts_fast.search.driver")
member = importlib.import_module("vpdarts_fast.search.member")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load("digits")


def record_with(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU, or `meta`, in place of a GPU."""
    monkeypatch.setattr(state_module, "captures", lambda device: True)
    monkeypatch.setattr(blocks, "can_be_read", lambda alpha: False)
    for module in (evaluation, member):
        monkeypatch.setattr(module, "recorder_for", lambda device: recorder)


# --- nothing waits: real steps and chunks on tensors that have no values ------------------------------


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
    monkeypatch.setattr(evaluation, "recorder_for", lambda device: watched)
    monkeypatch.setattr(Counts, "read", lambda self: (torch.zeros(len(self._correct)),) * 2)
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

    def first_variants(alpha: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
        tables, number = all_variants(alpha, removed)
        return tables[:6], number % 6

    monkeypatch.setattr(evaluation, "_all_variants", first_variants)
    assert evaluate_on_meta("recalibrated", monkeypatch, fused=False).recorded == 1


@every_mode
def test_tables_that_are_not_known_are_found(
    mode: BatchNorm, monkeypatch: pytest.MonkeyPatch, calibrate_on_few: None
) -> None:
    """Test the test: alphas are read back where nobody has told what they are."""
    serve_meta("triton", monkeypatch)
    monkeypatch.setattr(evaluation, "tables_on", lambda device, tables: tables.to(device))
    with pytest.raises(WAITS):
        evaluate_on_meta(mode, monkeypatch)


def test_known_tables_are_read_anew_after_a_change() -> None:
    tables = torch.randn(4, 6, 5)
    known = tables_on(torch.device("cpu"), tables)
    assert known.data_ptr() != tables.data_ptr() and alpha_rows(known) is alpha_rows(known)
    assert alpha_rows(some_tables(known, slice(1, 3))) == alpha_rows(tables[1:3].clone())
    known[0, 0, 0] = 7
    assert alpha_rows(known)[0][0][0] == 7


# --- all state lies in tensors: whole searches from a tape ---------------------------------------------


def search_with(
    recorder: Any, digits: ImageData, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> dict[str, Any]:
    """The outcome of a search as on a GPU, but on the CPU."""
    monkeypatch.setattr(ImageSet, "to", lambda self, device: DeviceImageSet(self, device))
    record_with(recorder, monkeypatch)
    run(CONFIG.replaced(**settings), digits, folder)
    return outcome(folder)


def search_both_ways(
    digits: ImageData, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[Tape, dict[str, Any], dict[str, Any]]:
    """Replayed and step by step."""
    tape = Tape()
    replayed = search_with(tape, digits, folder / "replayed", monkeypatch, **settings)
    monkeypatch.setattr(graphs, "WARM_UP", sys.maxsize)
    return tape, replayed, search_with(Tape(), digits, folder / "eager", monkeypatch, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_norm": "batch"},
        {"batch_norm": "running", "pruning": "progressive"},
        {"fused": False, "criterion": "alpha"},
        {"precision": "bf16", "pruning_epochs": 1},
        {
            **{"variation": "partial-channels", "channel_parts": 2, "edge_normalisation": True},
            **{"relaxation": "softmax", "pruning": "hard", "criterion": "alpha"},
        },
        {
            **{"variation": "auxiliary-skip", "fused": False, "criterion": "alpha", "pruning": "hard"},
            **{"schedule": "greedy", "commit_after": 1, "commit_every": 2, "batch_growth": 3},
        },
    ],
    ids=["default", "batch", "running, progressive", "plain", "bf16", "partial", "greedy, skip"],
)
def test_a_search_of_replays_is_the_same_bits(
    settings: dict[str, Any], digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches, crops, dropout, learning rate, alphas and their pruning change; the last batch is smaller."""
    tape, replayed, eager = search_both_ways(digits, tmp_path, monkeypatch, **settings)
    assert replayed == eager
    assert tape.replayed > tape.recorded >= 4


def test_a_search_of_replays_through_pytorch_is_the_same_bits(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose multi-variant ops are written around the tables."""
    monkeypatch.setattr(registry, "BACKENDS", tuple(b for b in BACKENDS if b.name == "pytorch"))
    _, replayed, eager = search_both_ways(digits, tmp_path, monkeypatch, warmup_epochs=1, pruning_epochs=1)
    assert replayed == eager


def test_races_of_replays_are_the_same_bits(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each look other variants are captured."""
    monkeypatch.setattr(racing, "FIRST_LOOK", 16)
    settings = {"evaluation": "racing", "race_confidence": 0.6, "criterion": "loss", "pruning_epochs": 1}
    _, replayed, eager = search_both_ways(
        digits, tmp_path, monkeypatch, validation_proportion=1.0, **settings
    )
    assert replayed == eager
    assert min(map(min, eager["result"]["importance"]["op_images"])) == 16


@pytest.mark.parametrize("fault", ["learning rate", "dropout"])
def test_state_outside_of_tensors_is_found(
    fault: str, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test the test: what a graph would have recorded as a constant."""
    if fault == "learning rate":
        monkeypatch.setattr(CapturableSGD, "step", torch.optim.SGD.step)
    else:
        monkeypatch.setattr(
            blocks, "draw_seeds", lambda count, device: torch.arange(count) + torch.initial_seed() // 2
        )
    _, replayed, eager = search_both_ways(digits, tmp_path, monkeypatch, pruning_epochs=1)
    assert replayed != eager


def test_an_optimiser_that_counts_on_the_host_is_found(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test the test: Adam as it is where nothing is captured."""
    monkeypatch.setattr(
        state_module, "alpha_optimizer", lambda alpha, config, *_: alpha_optimizer(alpha, config, False)
    )
    with pytest.raises(NotCapturable, match="_local_scalar_dense"):
        search_with(Tape(), digits, tmp_path / "run", monkeypatch)


# --- optimisers and checkpoints ------------------------------------------------------------------


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """So that rounding tips no ReLU, and no sign of a gradient that Adam makes a whole step of."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_optimisers_of_captured_steps_step_alike(momentum: float) -> None:
    """As those of other steps, but for rounding; the schedule counts once it is published."""
    config = CONFIG.replaced(momentum=momentum)
    torch.manual_seed(0)
    start = torch.randn(7, 5)
    ends = []
    for captured in (False, True):
        weights, alpha = torch.nn.Parameter(start.clone()), start.clone().requires_grad_()
        optimizers = [
            weights_optimizer([weights], config, captured),
            alpha_optimizer(alpha, config, captured),
        ]
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[0], T_max=5)
        for i in range(5):
            for parameter in (weights, alpha):
                parameter.grad = torch.sin(start * (i + 1))
            for optimizer in optimizers:
                optimizer.step()
            schedule.step()
            if isinstance(optimizers[0], CapturableSGD):
                optimizers[0].publish()
        assert schedule.get_last_lr() == [0.0]
        ends.append((weights.detach(), alpha.detach()))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-7)


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("written_by", [False, True], ids=["eager", "captured"])
def test_checkpoints_of_captured_and_other_searches_are_the_same_kind(
    written_by: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain numbers and tensors; each reads the other's, and goes on in its own way."""

    def new(captured: bool) -> SearchState:
        monkeypatch.setattr(state_module, "captures", lambda device: captured)
        return SearchState(CONFIG, 4, torch.device("cpu"))

    def train(state: SearchState) -> None:
        batch = torch.randn(6, 3, 8, 8), torch.arange(6) % 4
        step.weights_step(state.supernet, state.alpha, batch, state.weights_optimizer, 5.0)
        step.alpha_step(state.supernet, state.alpha, state.alive, batch, state.alpha_optimizer)

    writer, reader = new(written_by), new(not written_by)
    train(writer)
    writer.schedule.step()
    writer.epoch = 1
    content = copy.deepcopy(writer.state_dict())
    assert content["weights_optimizer"]["param_groups"][0]["lr"] == writer.schedule.get_last_lr()[0]
    assert isinstance(content["weights_optimizer"]["param_groups"][0]["lr"], float)
    reader.load_state_dict(content, "test", epochs=50, steps=1)
    for own, others in zip(
        (reader.weights_optimizer, reader.alpha_optimizer),
        (new(not written_by).weights_optimizer, new(not written_by).alpha_optimizer),
        strict=True,
    ):
        for name in ("fused", "foreach", "capturable"):
            assert own.param_groups[0].get(name) == others.param_groups[0].get(name)
    for state in (writer, reader):
        state.publish_epoch()
        torch.manual_seed(1)
        train(state)
    torch.testing.assert_close(reader.alpha, writer.alpha, rtol=0, atol=1e-7)
    torch.testing.assert_close(reader.supernet.state_dict(), writer.supernet.state_dict(), rtol=0, atol=1e-7)


# --- on a GPU ------------------------------------------------------------------------------------

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")


@on_a_gpu
def test_replays_on_a_gpu_follow_the_seed() -> None:
    device = torch.device("cuda")
    captured = Captured(lambda x: x + blocks.draw_seeds(4, x.device), graphs.recorder_for(device))
    zero = torch.zeros(4, dtype=torch.int64, device=device)
    for seed in (1, 2, 3, 4, 1, 5):
        torch.manual_seed(seed)
        found = captured(zero).clone()
        torch.manual_seed(seed)
        assert torch.equal(found, blocks.draw_seeds(4, device))


@on_a_gpu
@pytest.mark.parametrize("settings", [{}, {"batch_norm": "batch"}, {"fused": False, "pruning_epochs": 1}])
def test_a_search_on_a_gpu_is_the_same_captured_or_not(
    settings: dict[str, Any], digits: ImageData, tmp_path: Path
) -> None:
    config = CONFIG.replaced(device="cuda", **settings)
    captured = run(config, digits, tmp_path / "captured")
    eager = run(config.replaced(cuda_graphs=False), digits, tmp_path / "eager")
    found, expected = (torch.tensor(result["alpha"]) for result in (captured, eager))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
