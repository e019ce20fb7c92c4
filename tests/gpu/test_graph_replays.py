"""A search of replayed CUDA graphs is the one without: all its state lies in tensors.

Proven without a GPU; tests/support/capture.py says how.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from capture import NotCapturable, Tape
from graph_cases import CONFIG, record_with, state_module
from search_calls import outcome, run

from vpdarts_fast.backends import registry
from vpdarts_fast.backends.registry import BACKENDS
from vpdarts_fast.data import ImageData, ImageSet
from vpdarts_fast.data.batches import DeviceImageSet
from vpdarts_fast.evaluation import racing
from vpdarts_fast.runtime import graphs
from vpdarts_fast.runtime.graphs import Captured
from vpdarts_fast.search import step
from vpdarts_fast.search.optimizers import CapturableSGD, alpha_optimizer, weights_optimizer
from vpdarts_fast.search.state import SearchState
from vpdarts_fast.spaces import blocks

pytestmark = pytest.mark.usefixtures("one_thread")


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
        {"precision": "bf16", "batch_norm": "running", "pruning_epochs": 1},
        {
            **{"variation": "partial-channels", "channel_parts": 2, "edge_normalisation": True},
            **{"relaxation": "softmax", "pruning": "hard", "criterion": "alpha"},
        },
        {
            **{"variation": "auxiliary-skip", "fused": False, "criterion": "alpha", "pruning": "hard"},
            **{"schedule": "greedy", "commit_after": 1, "commit_every": 2, "batch_growth": 3},
        },
        {
            **{"variation": "partial-channels", "channel_parts": 2, "wide_parts": 1, "criterion": "alpha"},
            **{"schedule": "widening", "warmup_epochs": 0, "half_epochs": 3, "relaxation": "softmax"},
            "pruning": "hard",
        },
    ],
    ids=["default", "batch", "running, progressive", "plain", "bf16", "partial", "greedy, skip", "widening"],
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
