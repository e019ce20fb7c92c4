"""Decay, ranking and pruning against cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vpdarts_fast.evaluation.leave_one_out import LeaveOneOut
from vpdarts_fast.search.methods.criteria import AccuracyCriterion, AlphaCriterion, LossCriterion
from vpdarts_fast.search.methods.pruning import HardPruning, ProgressivePruning, SoftPruning
from vpdarts_fast.search.methods.relaxations import Raw

EDGES, OPS = 6, 5


def table(row: list[float], other: float = 50.0) -> Tensor:
    """[E, O] float64: `row` on the first edge, `other` elsewhere."""
    values = torch.full((EDGES, OPS), other, dtype=torch.float64)
    values[0] = torch.tensor(row, dtype=torch.float64)
    return values


def measured(accuracy: list[float], loss: list[float]) -> LeaveOneOut:
    """An evaluation with these values on the first edge, and nothing but ties on the others."""
    return LeaveOneOut(table(accuracy), table(loss, 1.0), 60.0, 1.0, 100)


def all_alive() -> Tensor:
    return torch.ones(EDGES, OPS, dtype=torch.bool)


def ranking_by_number() -> Tensor:
    """Op 0 is the most important one on every edge, op 4 the least."""
    return torch.arange(OPS).repeat(EDGES, 1)


# 30 pruning epochs; alpha 0.2 is multiplied with 1 - K / 30, where K is the epoch.
ADJUSTABLE = [(0, 0.2), (1, 0.2 * 29 / 30), (15, 0.1), (29, 0.2 / 30)]


@pytest.mark.parametrize(
    ("pruning", "epoch", "expected"),
    [(SoftPruning("adjustable"), *case) for case in ADJUSTABLE]
    + [(SoftPruning("fixed"), epoch, 0.0) for epoch in (0, 1, 15, 29)],
)
def test_soft_pruning_decays_all_but_the_most_important(
    pruning: SoftPruning, epoch: int, expected: float
) -> None:
    alpha = torch.full((EDGES, OPS), 0.2, dtype=torch.float64, requires_grad=True)
    alive = all_alive()
    ranking = ranking_by_number().roll(-2, 1)  # op 2 leads
    assert pruning.due(epoch, 30)
    factor = pruning.apply(alpha, alive, ranking, epoch, 30)
    assert factor == pytest.approx(expected / 0.2, abs=1e-15)
    wanted = torch.full((EDGES, OPS), expected, dtype=torch.float64)
    wanted[:, 2] = 0.2
    torch.testing.assert_close(alpha.detach(), wanted, rtol=0, atol=1e-15)
    assert alive.all(), "soft pruning removes nothing"
    assert alpha.requires_grad and alpha.grad_fn is None, "pruned alphas keep training"


def test_adjustable_decay_accumulates_over_epochs() -> None:
    """An op pruned in each of 3 epochs: 1 * 2/3 * 1/3; one that leads in epoch 1 misses 2/3."""
    alpha = torch.ones(EDGES, OPS, dtype=torch.float64)
    pruning = SoftPruning()
    for epoch, leader in enumerate((0, 1, 0)):
        pruning.apply(alpha, all_alive(), ranking_by_number().roll(-leader, 1), epoch, 3)
    expected = torch.tensor([2 / 3, 1 / 3, 2 / 9, 2 / 9, 2 / 9], dtype=torch.float64)
    torch.testing.assert_close(alpha, expected.repeat(EDGES, 1))


@pytest.mark.parametrize(
    ("accuracy", "loss", "expected"),
    [
        # The lower the accuracy without it, the more important.
        ([50, 40, 30, 20, 10], [1, 1, 1, 1, 1], [4, 3, 2, 1, 0]),
        # Ops 1 and 3 tie in accuracy: the higher loss without it decides.
        ([50, 40, 60, 40, 55], [1, 1.1, 9, 1.2, 9], [3, 1, 0, 4, 2]),
        # Everything ties: the lower op number.
        ([50, 50, 50, 50, 50], [1, 1, 1, 1, 1], [0, 1, 2, 3, 4]),
        # A tie in both between 2 and 4, in accuracy with 0.
        ([40, 90, 40, 80, 40], [1, 1, 2, 1, 2], [2, 4, 0, 3, 1]),
    ],
)
def test_ranking_by_accuracy(accuracy: list[float], loss: list[float], expected: list[int]) -> None:
    importance = AccuracyCriterion().importance(torch.ones(EDGES, OPS), measured(accuracy, loss))
    ranking = importance.ranking(all_alive())
    assert ranking.dtype == torch.int64
    assert ranking[0].tolist() == expected
    assert ranking[1:].tolist() == [[0, 1, 2, 3, 4]] * (EDGES - 1)


@pytest.mark.parametrize(
    ("accuracy", "loss", "expected"),
    [
        ([10, 20, 30, 40, 50], [1, 2, 3, 4, 5], [4, 3, 2, 1, 0]),
        # Ops 0, 2 and 3 tie in loss: the lower accuracy decides, then the number.
        ([50, 10, 40, 40, 10], [2, 1, 2, 2, 3], [4, 2, 3, 0, 1]),
    ],
)
def test_ranking_by_loss(accuracy: list[float], loss: list[float], expected: list[int]) -> None:
    importance = LossCriterion().importance(torch.ones(EDGES, OPS), measured(accuracy, loss))
    assert importance.ranking(all_alive())[0].tolist() == expected


def test_ranking_by_the_magnitude_of_alpha() -> None:
    """A large negative alpha weighs as much as a positive one; no evaluation is needed."""
    criterion = AlphaCriterion()
    assert not criterion.needs_evaluation
    alpha = table([0.1, -0.5, 0.3, -0.05, 0.5], 0.2).float().requires_grad_()
    strength = Raw().strength(alpha, all_alive()).detach().double()
    ranking = criterion.importance(strength, None).ranking(all_alive())
    assert ranking[0].tolist() == [1, 4, 2, 0, 3]
    assert ranking[1].tolist() == [0, 1, 2, 3, 4]


def test_removed_ops_rank_last() -> None:
    """However important the evaluation makes them."""
    alive = all_alive()
    alive[0, 4] = alive[0, 1] = False
    evaluation = measured([50, 40, 30, 20, 10], [1, 1, 1, 1, 1])
    ranking = AccuracyCriterion().importance(torch.ones(EDGES, OPS), evaluation).ranking(alive)
    assert ranking[0].tolist() == [3, 2, 0, 4, 1]


@pytest.mark.parametrize(
    ("max_epoch", "expected"),
    [
        # {epoch that prunes: ops left on an edge}
        (30, {10: 3, 20: 2}),
        (31, {11: 3, 21: 2}),
        (5, {2: 3, 4: 2}),
        (4, {2: 3, 3: 2}),
        (3, {1: 3, 2: 2}),
        (2, {1: 3}),  # there is no epoch for the last stage
        (1, {}),  # the same as pruning hard at the end
    ],
)
def test_progressive_pruning_goes_in_stages(max_epoch: int, expected: dict[int, int]) -> None:
    pruning = ProgressivePruning()
    alpha, alive = torch.full((EDGES, OPS), 0.2), all_alive()
    left = {}
    for epoch in range(max_epoch):
        if pruning.due(epoch, max_epoch):
            assert pruning.apply(alpha, alive, ranking_by_number(), epoch, max_epoch) is None
            counts = alive.sum(1)
            assert (counts == counts[0]).all()
            left[epoch] = int(counts[0])
    assert left == expected
    # The most important ones are left, at their alpha; the others are gone.
    remaining = min(expected.values(), default=OPS)
    assert alive[0].tolist() == [op < remaining for op in range(OPS)]
    assert torch.equal(alpha, torch.where(alive, torch.tensor(0.2), torch.tensor(0.0)))


def test_progressive_pruning_never_revives_an_op() -> None:
    pruning = ProgressivePruning()
    alpha, alive = torch.full((EDGES, OPS), 0.2), all_alive()
    pruning.apply(alpha, alive, ranking_by_number(), 1, 3)
    evaluation = measured([50, 40, 30, 20, 10], [1, 1, 1, 1, 1])  # the removed ops 3 and 4 look important
    ranking = AccuracyCriterion().importance(alpha, evaluation).ranking(alive)
    pruning.apply(alpha, alive, ranking, 2, 3)
    assert alive[0].tolist() == [False, True, True, False, False]


def test_hard_pruning_leaves_the_search_alone() -> None:
    pruning = HardPruning()
    alpha, alive = torch.full((EDGES, OPS), 0.2), all_alive()
    assert not any(pruning.due(epoch, 30) for epoch in range(30))
    assert pruning.apply(alpha, alive, ranking_by_number(), 29, 30) is None
    assert alive.all() and (alpha == 0.2).all()
