"""Leave-one-out evaluation: what the batch norm modes mean, which variants there are, any batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from leave_one_out_cases import (
    MODES,
    assert_same,
    both_ways,
    drop_statistics,
    every_mode,
    make_alpha,
    make_batches,
    make_supernet,
)
from torch import Tensor, nn

from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import (
    Batch,
    BatchNorm,
    LeaveOneOut,
    distinct_variants,
    leave_one_out,
    removals,
)
from vpdarts_fast.evaluation.racing import Racing
from vpdarts_fast.evaluation.validation import CALIBRATION_IMAGES
from vpdarts_fast.spaces.nas_bench_201 import EDGES, OPS, Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

# What the modes mean ---------------------------------------------------------------------------------------


@torch.no_grad()
def validated(network: nn.Module, batches: Sequence[Batch], table: Tensor) -> tuple[float, float]:
    """Accuracy, in per cent, and loss of one variant."""
    network.eval()
    logits = torch.cat([network(images, table) for images, _ in batches]).double()
    labels = torch.cat([labels for _, labels in batches])
    right = int((logits.argmax(1) == labels).sum())
    return 100 * right / len(labels), float(F.cross_entropy(logits, labels))


def specified(network: nn.Module, batches: Sequence[Batch], alpha: Tensor) -> LeaveOneOut:
    """The loop of the paper, written out: each entry of alpha set to zero in turn."""
    accuracy, loss = torch.zeros(2, 6, 5, dtype=torch.float64)
    for e in range(len(EDGES)):
        for o in range(len(OPS)):
            table = alpha.detach().clone()
            table[e, o] = 0
            accuracy[e, o], loss[e, o] = validated(network, batches, table)
    base = validated(network, batches, alpha)
    return LeaveOneOut(accuracy, loss, *base, sum(len(labels) for _, labels in batches))


@both_ways
def test_running_is_eval_mode(fused: bool) -> None:
    supernet, batches, alpha = make_supernet(), make_batches(7, 7, 3), make_alpha()
    result = leave_one_out(supernet, batches, alpha, batch_norm="running", batched=fused)
    assert_same(result, specified(supernet, batches, alpha))


@both_ways
def test_batch_uses_the_statistics_of_each_batch(fused: bool) -> None:
    supernet, batches, alpha = make_supernet(), make_batches(7, 7, 3), make_alpha()
    result = leave_one_out(supernet, batches, alpha, batch_norm="batch", batched=fused)
    drop_statistics(supernet)
    assert_same(result, specified(supernet, batches, alpha))


def test_recalibrated_takes_250_images() -> None:
    supernet, alpha, ((images, labels),) = make_supernet(), make_alpha(), make_batches(50, image=(2, 2))
    requested: list[int] = []

    class Enough(Exception):
        """Raised once the calibration images are collected."""

    def stop(*_: object) -> None:
        raise Enough

    def endless() -> Iterator[Batch]:
        while True:
            requested.append(len(labels))
            yield images, labels

    supernet.stem.register_forward_pre_hook(stop)
    with pytest.raises(Enough):
        leave_one_out(supernet, endless(), alpha)
    assert sum(requested) == CALIBRATION_IMAGES == 250


def calibrated(supernet: Supernet, batches: Sequence[Batch], alpha: Tensor) -> Supernet:
    """A copy whose running statistics are the averages of those of the batches, with this alpha."""
    collected: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def collect(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0]
            collected.setdefault(name, []).append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=1)))

        return hook

    batch_wise = copy.deepcopy(supernet).eval()
    drop_statistics(batch_wise)
    for name, module in batch_wise.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(collect(name))
    with torch.no_grad():
        for images, _ in batches:
            batch_wise(images, alpha)
    assert len(collected) == 3 * 12 + 2 * 2 + 2
    settled = copy.deepcopy(supernet)
    for name, statistics in collected.items():
        norm = settled.get_submodule(name)
        norm.running_mean = torch.stack([mean for mean, _ in statistics]).mean(0)
        norm.running_var = torch.stack([variance for _, variance in statistics]).mean(0)
    return settled


@both_ways
@pytest.mark.usefixtures("calibrate_on_few")
def test_recalibrated_averages_over_the_first_batches(fused: bool) -> None:
    supernet, alpha = make_supernet(), make_alpha()
    batches = make_batches(10, 10, 10, 10, 3)  # the first three hold 25 images
    result = leave_one_out(supernet, batches, alpha, batched=fused)
    assert_same(result, specified(calibrated(supernet, batches[:3], alpha), batches, alpha))


@both_ways
@pytest.mark.usefixtures("calibrate_on_few")
def test_variant_averages_for_each_variant(fused: bool) -> None:
    supernet, alpha = make_supernet(), make_alpha(zeros=[(1, 2)])
    batches = make_batches(10, 10, 10, 10, 3)  # the first three hold 25 images
    before = copy.deepcopy(supernet.state_dict())
    result = leave_one_out(supernet, batches, alpha, batch_norm="variant", batched=fused)
    for e, o in [(0, 0), (0, 1), (1, 2), (2, 2), (3, 3), (4, 4), (5, 3)]:
        table = alpha.clone()
        table[e, o] = 0
        accuracy, loss = validated(calibrated(supernet, batches[:3], table), batches, table)
        assert float(result.loss[e, o]) == pytest.approx(loss, rel=1e-9)
        assert float(result.accuracy[e, o]) == pytest.approx(accuracy)
    base = specified(calibrated(supernet, batches[:3], alpha), batches, alpha)
    assert result.base_loss == pytest.approx(base.base_loss, rel=1e-9)
    assert float((result.loss - base.loss).abs().max()) > 1e-3  # each variant has its own
    for name, value in supernet.state_dict().items():
        assert torch.equal(value, before[name]), name


@both_ways
def test_recalibrated_does_with_what_there_is(fused: bool) -> None:
    few = leave_one_out(make_supernet(), make_batches(8, 7), make_alpha(), batched=fused)
    assert few.images == 15 < CALIBRATION_IMAGES
    assert few.loss.isfinite().all()


def test_the_modes_differ() -> None:
    supernet, batches, alpha = make_supernet(), make_batches(7, 7, 3), make_alpha()
    losses = [leave_one_out(supernet, batches, alpha, batch_norm=mode).base_loss for mode in MODES]
    assert len({round(loss, 6) for loss in losses}) == 3  # the base of `variant` is that of `recalibrated`


@both_ways
@every_mode
def test_a_supernet_that_keeps_no_statistics(mode: BatchNorm, fused: bool) -> None:
    supernet, batches, alpha = make_supernet(), make_batches(30, 30), make_alpha()
    expected = None if mode == "running" else leave_one_out(supernet, batches, alpha, batch_norm=mode)
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False
    if expected is None:
        with pytest.raises(UserError, match="needs running statistics, and this supernet keeps none"):
            leave_one_out(supernet, batches, alpha, batch_norm=mode, batched=fused)
    else:
        assert_same(leave_one_out(supernet, batches, alpha, batch_norm=mode, batched=fused), expected)
    assert not [name for name, _ in supernet.named_buffers()]


# Variants --------------------------------------------------------------------------------------------------


def test_removals() -> None:
    alpha = make_alpha()
    tables = removals(alpha)
    assert tables.shape == (30, 6, 5)
    for number, table in enumerate(tables):
        changed = (table != alpha).nonzero().tolist()
        assert changed == [list(divmod(number, 5))]
        assert table[divmod(number, 5)] == 0


def test_distinct_variants_leave_out_what_is_the_base() -> None:
    alpha = make_alpha(zeros=[(2, 3), (4, 1)])
    removed = removals(alpha)
    tables, number = distinct_variants(alpha, removed)
    assert len(tables) == 1 + 24 - 2
    assert len(torch.unique(tables, dim=0)) == len(tables)
    assert torch.equal(tables[0], alpha)
    for n in range(30):
        expected = alpha if n % 5 == 0 else removed[n]  # `none` contributes nothing
        assert torch.equal(tables[number[n]], expected)


@both_ways
@every_mode
def test_removing_nothing_is_the_base_exactly(mode: BatchNorm, fused: bool) -> None:
    zeros = [(0, 1), (2, 3), (5, 2), (5, 4)]
    result = leave_one_out(
        make_supernet(), make_batches(9, 5), make_alpha(zeros), batch_norm=mode, batched=fused
    )
    for e, o in [*zeros, *((e, 0) for e in range(6))]:
        assert float(result.accuracy[e, o]) == result.base_accuracy
        assert float(result.loss[e, o]) == result.base_loss
    assert float(result.loss[0, 3]) != result.base_loss


# Batches, chunks, dtypes -----------------------------------------------------------------------------------


@both_ways
@every_mode
@pytest.mark.usefixtures("calibrate_on_few")
def test_batches_may_be_an_iterator(mode: BatchNorm, fused: bool) -> None:
    supernet, batches, alpha = make_supernet(), make_batches(15, 15, 2), make_alpha()
    taken = []

    def once() -> Iterator[Batch]:
        for batch in batches:
            taken.append(len(batch[1]))
            yield batch

    done: list[int] = []
    result = leave_one_out(supernet, once(), alpha, batch_norm=mode, batched=fused, on_batch=done.append)
    assert taken == [15, 15, 2]
    assert done == [15, 30, 32]
    assert result.images == 32
    assert_same(result, leave_one_out(supernet, batches, alpha, batch_norm=mode, batched=fused))


@both_ways
@every_mode
def test_empty_batches_count_for_nothing(mode: BatchNorm, fused: bool) -> None:
    supernet, alpha = make_supernet(), make_alpha()
    batches = make_batches(0, 9, 0, 5)
    result = leave_one_out(supernet, batches, alpha, batch_norm=mode, batched=fused)
    assert_same(
        result, leave_one_out(supernet, [batches[1], batches[3]], alpha, batch_norm=mode, batched=fused)
    )


@both_ways
def test_the_split_into_batches_is_irrelevant_with_fixed_statistics(fused: bool) -> None:
    supernet, alpha, ((images, labels),) = make_supernet(), make_alpha(), make_batches(17)
    whole = leave_one_out(supernet, [(images, labels)], alpha, batch_norm="running", batched=fused)
    parts = zip(images.tensor_split((5, 10)), labels.tensor_split((5, 10)), strict=True)
    assert_same(leave_one_out(supernet, parts, alpha, batch_norm="running", batched=fused), whole)


@every_mode
def test_layouts_of_the_images(mode: BatchNorm) -> None:
    supernet, alpha, batches = make_supernet(), make_alpha(), make_batches(9, 4)
    expected = leave_one_out(supernet, batches, alpha, batch_norm=mode)
    channels_last = [
        (images.contiguous(memory_format=torch.channels_last), labels) for images, labels in batches
    ]
    transposed = [(images.mT.contiguous().mT, labels) for images, labels in batches]
    for others in (channels_last, transposed):
        assert_same(leave_one_out(supernet, others, alpha, batch_norm=mode), expected)


@pytest.mark.float32
@both_ways
def test_alpha_may_have_another_dtype(fused: bool) -> None:
    supernet, alpha = make_supernet(torch.float32), make_alpha()
    batches = make_batches(9, 4, dtype=torch.float32)
    expected = leave_one_out(supernet, batches, alpha.float(), batched=fused)
    assert_same(leave_one_out(supernet, batches, alpha, batched=fused), expected)


def test_the_result() -> None:
    supernet, alpha = make_supernet(), make_alpha().requires_grad_()
    result = leave_one_out(supernet, make_batches(9, 4), alpha)
    for tensor in (result.accuracy, result.loss):
        assert tensor.shape == (6, 5)
        assert tensor.dtype == torch.float64
        assert not tensor.requires_grad
    assert 0 <= float(result.accuracy.min()) <= float(result.accuracy.max()) <= 100
    assert result.images == 13
    with torch.no_grad():
        assert_same(leave_one_out(supernet, make_batches(9, 4), alpha), result)
    assert alpha.grad is None


# Some of the ops -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batched", [True, False])
def test_only_some_ops_are_left_out(mode: BatchNorm, batched: bool) -> None:
    """All others have the values of the unmodified supernet, and are not computed."""
    supernet, alpha = make_supernet(), make_alpha()
    batches = make_batches(8, 5)
    only = torch.zeros(len(EDGES), len(OPS), dtype=torch.bool)
    only[3], only[1, 2] = True, True
    options: dict[str, Any] = {"batch_norm": mode, "batched": batched}
    whole = leave_one_out(supernet, batches, alpha, **options)
    some = leave_one_out(supernet, batches, alpha, only=only, **options)
    torch.testing.assert_close(some.loss[only], whole.loss[only], rtol=1e-6, atol=1e-6)
    assert (some.loss[~only] == some.base_loss).all() and (some.accuracy[~only] == some.base_accuracy).all()
    assert some.base_accuracy == whole.base_accuracy
    tables, number = distinct_variants(alpha, removals(alpha, "zero"), only)
    assert len(tables) == 1 + 4 + 1, "the base, all of an edge but none, and one more"
    assert (number.view(alpha.shape) > 0).sum() == 5
    with pytest.raises(UserError, match=r"only must be bool \[6, 5\]; got torch.float32 \[6, 5\]"):
        leave_one_out(supernet, batches, alpha, only=alpha.float(), **options)
    with pytest.raises(UserError, match="only and racing exclude each other"):
        leave_one_out(supernet, batches, alpha, only=only, racing=Racing(13, "loss"), **options)
