"""What leaving an op out does to the rest of its edge: nothing, or it is scaled up."""

from __future__ import annotations

import copy

import pytest
import torch
from leave_one_out_cases import (
    assert_same,
    both_ways,
    drop_statistics,
    every_mode,
    make_alpha,
    make_batches,
    make_supernet,
)
from torch import Tensor

from vpdarts_fast.contract import reference
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation import racing
from vpdarts_fast.evaluation.leave_one_out import (
    NONES,
    BatchNorm,
    LeaveOneOut,
    distinct_variants,
    leave_one_out,
    removals,
)
from vpdarts_fast.evaluation.racing import Racing
from vpdarts_fast.spaces.nas_bench_201 import EDGES, OPS

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = [(e, o) for e in range(len(EDGES)) for o in range(len(OPS))]


def one_edge(*row: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Alpha with this row on the third edge."""
    alpha = torch.full((6, 5), 0.2, dtype=dtype)
    alpha[2] = torch.tensor(row, dtype=dtype)
    return alpha


ALPHAS = {
    "equal": torch.full((6, 5), 0.2, dtype=torch.float64),
    "of both signs": make_alpha(),
    "some zero": make_alpha(zeros=[(0, 1), (2, 3), (2, 4), (5, 0)]),
    "all zero": torch.zeros(6, 5, dtype=torch.float64),
    "others zero": one_edge(0.5, 0, 0, 0.3, 0),
    "others cancel": one_edge(0.1, 0.25, -0.25, 0.3, 0),
    "all cancel": one_edge(0, 0.25, -0.5, 0.25, 0),
    "others next to zero": one_edge(0.1, 1e-320, 0, 0.3, -1e-320),
    "next to zero in float32": one_edge(0.1, 1e-42, 0, 0.3, 0, dtype=torch.float32),
    "large": one_edge(-1e30, 2e30, 1e-6, 3e30, 1, dtype=torch.float32),
}


# The tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("removal", ["zero", "renormalised"])
def test_tables_are_those_of_the_reference(removal: str, alpha: Tensor) -> None:
    tables = removals(alpha, removal, NONES)  # type: ignore[arg-type]
    assert tables.shape == (30, 6, 5) and tables.dtype == alpha.dtype and tables.isfinite().all()
    for table, (e, o) in zip(tables, PAIRS, strict=True):
        expected = reference.without_op(alpha, e, o, renormalised=removal == "renormalised")
        torch.testing.assert_close(table, expected, rtol=1e-6, atol=0)
        others = [edge for edge in range(6) if edge != e]
        assert torch.equal(table[others], alpha[others]) and table[e, o] == 0


def test_zero_is_the_default_and_leaves_the_rest_alone() -> None:
    alpha = make_alpha()
    for table, (e, o) in zip(removals(alpha), PAIRS, strict=True):
        assert [tuple(place) for place in (table != alpha).nonzero().tolist()] == [(e, o)]


def test_renormalised_keeps_what_the_edge_carries() -> None:
    """Written out for alphas of one sign, where magnitudes are the alphas themselves."""
    alpha = make_alpha().abs()
    for table, (e, o) in zip(removals(alpha, "renormalised", NONES), PAIRS, strict=True):
        whole = float(alpha[e, 1:].sum())
        assert float(table[e, 1:].sum()) == pytest.approx(whole, rel=1e-12)
        for other in set(range(1, 5)) - {o}:
            rest = whole - (float(alpha[e, o]) if o else 0)
            assert float(table[e, other]) == pytest.approx(float(alpha[e, other]) * whole / rest, rel=1e-12)
    (with_both_signs,) = removals(one_edge(0.9, 0.1, -0.3, 0.4, 0), "renormalised", NONES)[2 * 5 + 3, None, 2]
    torch.testing.assert_close(with_both_signs, torch.tensor([0.9, 0.2, -0.6, 0, 0], dtype=torch.float64))


@pytest.mark.parametrize("alpha", [ALPHAS["others zero"], ALPHAS["others next to zero"]])
def test_without_others_there_is_nothing_to_scale(alpha: Tensor) -> None:
    (row,) = removals(alpha, "renormalised", NONES)[2 * 5 + 3, None, 2]
    assert row[3] == 0 and torch.equal(row[[0, 1, 2, 4]], alpha[2, [0, 1, 2, 4]])


@pytest.mark.parametrize("removal", ["zero", "renormalised"])
def test_none_is_no_part_of_what_an_edge_carries(removal: str) -> None:
    """So its removal is the unmodified supernet, and its alpha makes no difference to others'."""
    alpha = make_alpha(zeros=[(2, 3), (4, 1)])
    removed = removals(alpha, removal, NONES)  # type: ignore[arg-type]
    tables, number = distinct_variants(alpha, removed)
    assert len(tables) == len(torch.unique(tables, dim=0)) == 1 + 24 - 2
    for n, (_, o) in enumerate(PAIRS):
        table = tables[number[n]]
        assert torch.equal(table[:, 1:], removed[n, :, 1:]), "exactly, so that they are equally important"
        assert torch.equal(table, alpha if o == 0 else removed[n])
    other = alpha.clone()
    other[:, 0] = 7
    assert torch.equal(removals(other, removal, NONES)[:, :, 1:], removed[:, :, 1:])  # type: ignore[arg-type]


# Leave-one-out ---------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("mode", ["running", "batch"])
def test_every_op_is_left_out_as_the_reference_says(mode: BatchNorm, fused: bool) -> None:
    supernet, batches, alpha = make_supernet().eval(), make_batches(7, 3), make_alpha(zeros=[(1, 2), (3, 3)])
    result = leave_one_out(supernet, batches, alpha, batch_norm=mode, removal="renormalised", batched=fused)
    if mode == "batch":
        drop_statistics(supernet)
    accuracy, loss = torch.zeros(2, 6, 5, dtype=torch.float64)
    labels = torch.cat([labels for _, labels in batches])
    for e, o in PAIRS:
        table = reference.without_op(alpha, e, o, renormalised=True)
        with torch.no_grad(), supernet.plain():
            logits = torch.cat([supernet(images, table) for images, _ in batches])
        accuracy[e, o] = 100 * (logits.argmax(1) == labels).double().mean()
        loss[e, o] = torch.nn.functional.cross_entropy(logits, labels)
    assert_same(result, LeaveOneOut(accuracy, loss, result.base_accuracy, result.base_loss, 10))
    zeroed = leave_one_out(make_supernet(), batches, alpha, batch_norm=mode, batched=fused)
    assert float((zeroed.loss - result.loss).abs().max()) > 1e-3
    assert zeroed.base_loss == result.base_loss


@both_ways
@pytest.mark.usefixtures("calibrate_on_few")
def test_each_variant_has_the_statistics_of_its_own_table(fused: bool) -> None:
    supernet, batches, alpha = make_supernet(), make_batches(15, 15, 4), make_alpha()
    result = leave_one_out(
        supernet, batches, alpha, batch_norm="variant", removal="renormalised", batched=fused
    )
    for e, o in [(0, 0), (1, 2), (3, 3), (5, 4)]:
        table = reference.without_op(alpha, e, o, renormalised=True)
        alone = leave_one_out(supernet, batches, table, batch_norm="recalibrated")
        assert float(result.loss[e, o]) == pytest.approx(alone.base_loss, rel=1e-9)
        assert float(result.accuracy[e, o]) == pytest.approx(alone.base_accuracy)


@pytest.mark.float32
@every_mode
def test_the_kernels_compute_what_the_plain_modules_do(mode: BatchNorm) -> None:
    supernet, alpha = make_supernet(torch.float32, channels=8), make_alpha(dtype=torch.float32)
    batches = make_batches(20, 9, image=(8, 8), dtype=torch.float32)
    result = leave_one_out(supernet, batches, alpha, batch_norm=mode, removal="renormalised")
    exact = [(images.double(), labels) for images, labels in batches]
    truth = leave_one_out(
        copy.deepcopy(supernet).double(), exact, alpha.double(),
        batch_norm=mode, removal="renormalised", batched=False,
    )  # fmt: skip
    assert_same(result, truth, rtol=1e-4, turned=2)


@both_ways
@pytest.mark.parametrize("mode", ["running", "batch"])
def test_removing_nothing_is_the_base_exactly(mode: BatchNorm, fused: bool) -> None:
    zeros = [(0, 1), (2, 3), (5, 2), (5, 4)]
    result = leave_one_out(
        make_supernet(), make_batches(9, 5), make_alpha(zeros),
        batch_norm=mode, removal="renormalised", batched=fused,
    )  # fmt: skip
    for e, o in [*zeros, *((e, 0) for e in range(6))]:
        assert float(result.accuracy[e, o]) == result.base_accuracy
        assert float(result.loss[e, o]) == result.base_loss
    assert float(result.loss[0, 3]) != result.base_loss


@both_ways
@pytest.mark.usefixtures("calibrate_on_few")
def test_renormalised_ops_race(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An op that stays to the end has what a full evaluation has."""
    monkeypatch.setattr(racing, "FIRST_LOOK", 12)
    supernet, batches, alpha = make_supernet(), make_batches(*[9] * 6), make_alpha()
    full = leave_one_out(supernet, batches, alpha, removal="renormalised", batched=fused)
    raced = leave_one_out(
        supernet, batches, alpha, removal="renormalised", batched=fused, racing=Racing(54, "loss", 0.6)
    )
    assert raced.op_images is not None
    stayed = raced.op_images == raced.op_images.max()
    assert 0 < int(stayed.sum()) < 30
    assert raced.images == int(raced.op_images.max()) == 54, "some edge races to the end"
    torch.testing.assert_close(raced.loss[stayed], full.loss[stayed], rtol=1e-9, atol=0)
    winners = raced.loss.where(raced.op_images == raced.op_images.amax(1, keepdim=True), -1).argmax(1)
    assert (winners == full.loss.argmax(1)).sum() >= 4


def test_an_unknown_removal_is_refused() -> None:
    supernet, alpha = make_supernet(), make_alpha()
    with pytest.raises(UserError, match="removal must be one of zero, renormalised; got 'hard'"):
        leave_one_out(supernet, make_batches(9), alpha, removal="hard")  # type: ignore[call-overload]
