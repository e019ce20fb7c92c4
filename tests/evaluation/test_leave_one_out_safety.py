"""Leave-one-out evaluation: what it leaves untouched, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from leave_one_out_cases import both_ways, every_mode, make_alpha, make_batches, make_supernet
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import Batch, BatchNorm, leave_one_out
from vpdarts_fast.spaces.nas_bench_201 import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

# What must not change --------------------------------------------------------------------------------------


def snapshot(supernet: Supernet) -> dict[str, Any]:
    """Everything a supernet is: values and identity of its tensors, flags, hyperparameters."""
    state: dict[str, Any] = {}
    for name, tensor in [*supernet.named_parameters(), *supernet.named_buffers()]:
        state[name] = (tensor.data_ptr(), tensor.requires_grad, tensor.detach().clone().numpy().tobytes())
    for name, module in supernet.named_modules():
        plain = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        state[f"{name}:"] = {key: value for key, value in plain.items() if not isinstance(value, Tensor)}
    return state


class Stop(Exception):
    """Raised by the caller's own code."""


def stop(images: int) -> None:
    if images > 5:
        raise Stop


@both_ways
@every_mode
@pytest.mark.usefixtures("calibrate_on_few")
@pytest.mark.parametrize("event", ["nothing", "on_batch raises", "a bad batch", "batches raise"])
def test_the_supernet_is_left_as_it_was(mode: BatchNorm, fused: bool, event: str) -> None:
    supernet = make_supernet()
    next(iter(supernet.parameters())).requires_grad_(False)
    supernet.search_cells()[1].fused = True
    supernet.cells[1].eval()  # training flags may differ within a supernet
    before = snapshot(supernet)
    batches = make_batches(20, 10, 5)

    def given() -> Iterator[Batch]:
        yield from batches[:2]
        if event == "batches raise":
            raise Stop
        if event == "a bad batch":
            yield batches[2][0], batches[2][1] + 100
        yield batches[2]

    def run() -> None:
        on_batch = stop if event == "on_batch raises" else None
        leave_one_out(supernet, given(), make_alpha(), batch_norm=mode, batched=fused, on_batch=on_batch)

    if event == "nothing":
        run()
    else:
        with pytest.raises(UserError if event == "a bad batch" else Stop):
            run()
    assert snapshot(supernet) == before


@both_ways
@every_mode
def test_the_random_state_is_left_as_it_was(mode: BatchNorm, fused: bool) -> None:
    supernet, batches = make_supernet().train(), make_batches(5)
    before = torch.get_rng_state()
    leave_one_out(supernet, batches, make_alpha(), batch_norm=mode, batched=fused)
    assert torch.equal(torch.get_rng_state(), before), "no dropout draws"


# Errors ----------------------------------------------------------------------------------------------------

IMAGES, LABELS = make_batches(4)[0]


@both_ways
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no images; `batches` was empty"),
        (make_batches(0, 0), "no images"),
        ([(IMAGES[0], LABELS)], r"images must have shape \[N, 3, H, W\]; got \[3, 6, 6\]"),
        ([(IMAGES[:, :2], LABELS)], r"images must have shape .*; got \[4, 2, 6, 6\]"),
        ([(IMAGES[..., :0], LABELS)], r"images must have shape .*; got \[4, 3, 6, 0\]"),
        ([(IMAGES.movedim(1, 3), LABELS)], r"images must have shape .*; got \[4, 6, 6, 3\]"),
        ([(IMAGES.byte(), LABELS)], "images must be torch.float64, like the supernet; got torch.uint8"),
        ([(IMAGES.float(), LABELS)], "images must be torch.float64, like the supernet; got torch.float32"),
        ([(IMAGES, LABELS[:3])], r"labels must be int64 \[N\] = \[4\]; got \[3\]"),
        ([(IMAGES, LABELS[:0])], r"labels must be int64 \[N\] = \[4\]; got \[0\]"),
        ([(IMAGES, LABELS[0])], r"labels must be int64 \[N\] = \[4\]; got \[\]"),
        ([(IMAGES, LABELS.int())], "labels must be int64 .* of torch.int32"),
        ([(IMAGES, LABELS.new_tensor([0, 1, 4, 2]))], r"labels must be in 0..3; got 0..4: the"),
        ([(IMAGES, LABELS.new_tensor([0, 1, -1, 2]))], r"labels must be in 0..3; got -1..2"),
    ],
)  # fmt: skip
def test_bad_batches_are_refused(fused: bool, batches: list[Batch], message: str) -> None:
    with pytest.raises(UserError, match=message):
        leave_one_out(make_supernet(), batches, make_alpha(), batched=fused)


@both_ways
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": torch.zeros(5, 6)}, r"alpha must be .* = \[6, 5\]; got \[5, 6\]"),
        ({"alpha": torch.zeros(6, 5).long()}, "alpha must be a floating-point table"),
        ({"alpha": torch.full((6, 5), torch.nan)}, "alpha must be finite"),
        ({"alpha": torch.full((6, 5), torch.inf)}, "alpha must be finite"),
        (
            {"batch_norm": "eval"},
            "batch_norm must be one of recalibrated, running, batch, variant; got 'eval'",
        ),
        ({"memory_budget": 0}, "memory_budget must be positive, in bytes; got 0"),
        ({"memory_budget": -1}, "memory_budget must be positive"),
    ],
)
def test_bad_arguments_are_refused(fused: bool, arguments: dict[str, Any], message: str) -> None:
    arguments.setdefault("alpha", make_alpha())
    with pytest.raises(UserError, match=message):
        leave_one_out(make_supernet(), make_batches(4), batched=fused, **arguments)


@pytest.mark.parametrize("mode", ["batch", "recalibrated"])
@both_ways
def test_a_batch_without_variance_is_refused(mode: BatchNorm, fused: bool) -> None:
    supernet, single = make_supernet(), torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    with pytest.raises(UserError, match="a batch of 1 image of 4x4 has no variance"):
        leave_one_out(
            supernet,
            [(single, torch.zeros(1, dtype=torch.int64))],
            make_alpha(),
            batch_norm=mode,
            batched=fused,
        )
