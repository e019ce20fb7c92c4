"""Ops that race in spaces that compare edges, and in any model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from leave_one_out_cases import assert_same
from perturbation_cases import accelerated, trained
from perturbation_cases import batches as model_batches
from ragged_supernet import RaggedSupernet, a_batch
from torch import Tensor
from whole_supernets import DartsSupernet

from vpdarts_fast.acceleration import accelerate
from vpdarts_fast.evaluation import racing
from vpdarts_fast.evaluation.leave_one_out import BatchNorm, LeaveOneOut, leave_one_out
from vpdarts_fast.evaluation.measuring import measured, numbered
from vpdarts_fast.evaluation.perturbation import Perturbation
from vpdarts_fast.evaluation.racing import Race, Racing
from vpdarts_fast.evaluation.validation import Logits, Piece
from vpdarts_fast.search.methods.criteria import AccuracyCriterion, Criterion, LossCriterion
from vpdarts_fast.spaces.darts import Darts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def early_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "FIRST_LOOK", 12)


def test_what_changes_nothing_does_not_race_and_winners_go_on_to_the_end() -> None:
    """An edge of three ops and `none`, one of two, one of a single op, one without any."""
    number = torch.tensor([[1, 2, 3, 0], [4, 0, 5, 0], [6, 0, 0, 0], [0, 0, 0, 0]])
    scores = torch.randn(7, 2000, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    scores[0] += 5  # removing `none` looks best of all
    scores[2] += 1
    scores[5] -= 1
    race = Race(Racing(2000, "loss", 0.99), number, to_the_end=True)
    assert race.running == list(range(7)) and race.look_is_due(500)
    race.look(500, scores[:, :500].sum(1), scores[:, :500] @ scores[:, :500].T)
    assert race.running == [0, 2, 4, 6]
    assert race.decided and not race.over and not race.look_is_due(2000)
    expected = [[500, 2000, 500, 2000], [2000, 2000, 500, 2000], [2000] * 4, [2000] * 4]
    assert race.images_of_ops(2000).tolist() == expected


def test_what_is_kept_alone_races_for_the_least_loss() -> None:
    number, scores = torch.tensor([[1, 2]]), torch.zeros(3, 500, dtype=torch.float64)
    scores[1] = 1  # the loss
    race = Race(Racing(2000, "loss"), number, to_the_end=True, keeps=True)
    of_images = race.scores(scores, scores > 0)
    race.look(500, of_images.sum(1), of_images @ of_images.T)
    assert race.running == [0, 2]


DARTS = Darts()
ALIVE = DARTS.present.clone()
ALIVE[14:, 5:] = False  # the edges of reduction cells have fewer operations
N_IMAGES = 3000


def outcomes() -> tuple[Tensor, Tensor]:
    """Which variants are right on which images, and the variants' numbers [E, O]; of `none` there is none.

    Without an edge's first or second operation many more images are wrong than without its others, not as
    many more on each edge; without some operations fewer are than of the unmodified supernet.
    """
    number = numbered((ALIVE & ~DARTS.nones).nonzero().tolist(), *DARTS.shape)
    generator = torch.Generator().manual_seed(7)
    rates = torch.full((1 + int(number.max()),), 0.8)
    for edge in range(DARTS.shape[0]):
        of_edge = number[edge][number[edge] > 0]
        rates[of_edge] = 0.75 + 0.1 * torch.rand(len(of_edge), generator=generator)
        rates[of_edge[edge % 2]] = 0.3 + 0.01 * edge
    return torch.rand(len(rates), N_IMAGES, generator=generator) < rates[:, None], number


def evaluated(right: Tensor, number: Tensor, race: Race | None) -> tuple[LeaveOneOut, list[int]]:
    """Images are their own numbers, 100 a batch, with losses of 0 or 1024, so that all sums are exact.

    Returns how many variants each batch was evaluated for, too.
    """
    asked = []

    def logits_of(variants: Sequence[int]) -> Logits:
        def logits(images: Tensor) -> Iterator[Piece]:
            asked.append(len(variants))
            for piece in (slice(0, 60), slice(60, 100)):
                right_ones = right[list(variants)][:, images[piece]]
                yield slice(0, len(variants)), piece, 1024.0 * torch.stack([right_ones, ~right_ones], 2)

        return logits

    batches = [(images, torch.zeros_like(images)) for images in torch.arange(N_IMAGES).split(100)]
    return measured(logits_of, number, batches, race=race), asked


@pytest.mark.parametrize("criterion", [AccuracyCriterion(), LossCriterion()], ids=lambda c: c.name)
def test_a_space_that_compares_edges_gets_the_choice_of_the_full_evaluation(criterion: Criterion) -> None:
    """Winners and their strengths, to the bit; the same from race to race."""
    right, number = outcomes()
    full, asked = evaluated(right, number, None)
    assert asked == [len(right)] * 30 and full.op_images is None
    rules = Racing(N_IMAGES, criterion.name)
    raced, asked = evaluated(right, number, Race(rules, number, to_the_end=True))
    again, _ = evaluated(right, number, Race(rules, number, to_the_end=True))
    assert asked[4] == len(right) and asked[-1] == 1 + DARTS.shape[0], "the base and a winner of each edge"
    assert raced.images == N_IMAGES and raced.op_images is not None and again.op_images is not None
    assert torch.equal(raced.loss, again.loss) and torch.equal(raced.op_images, again.op_images)
    orders = [criterion.importance(ALIVE, found).order(ALIVE) for found in (full, raced)]
    chosen = [DARTS.select(order) for order in orders]
    assert chosen[0] == chosen[1]
    winners = orders[0].where(number > 0, -1).argmax(1, keepdim=True)
    for whole, part in ((full.loss, raced.loss), (full.accuracy, raced.accuracy)):
        assert torch.equal(whole.gather(1, winners), part.gather(1, winners))
    assert (raced.op_images.gather(1, winners) == N_IMAGES).all()
    assert (raced.op_images[number == 0] == N_IMAGES).all(), "known on all, without an evaluation"
    spent = raced.op_images[number > 0]
    assert spent.min() == racing.FIRST_LOOK
    assert int(spent.sum()) < 0.6 * len(spent) * N_IMAGES


@pytest.mark.usefixtures("early_looks")
@pytest.mark.parametrize("mode", ["running", "batch", "variant"])
def test_races_in_another_space_fused_and_one_by_one(mode: BatchNorm) -> None:
    """The same images an op; who goes on to the end has what the full evaluation has."""
    torch.manual_seed(0)
    supernet = RaggedSupernet().double()
    weights = torch.tensor([[0.3, 0.4, 0], [0.5, 0.2, 0], [0.3, 0.6, 0.1], [0.2, 0.5, 0.7]]).double()
    batches = [batch for seed in range(6) for batch in a_batch(9, seed)]
    options = {"batch_norm": mode, "nones": torch.zeros(4, 3, dtype=torch.bool)}
    rules = Racing(54, "loss", 0.6)
    plain = leave_one_out(supernet, batches, weights, batched=False, racing=rules, **options)
    accelerate(supernet, backend="pytorch")
    fused = leave_one_out(supernet, batches, weights, racing=rules, **options)
    full = leave_one_out(supernet, batches, weights, **options)
    assert_same(fused, plain)
    assert fused.op_images is not None and torch.equal(fused.op_images, plain.op_images)
    to_the_end = fused.op_images == 54
    assert to_the_end.any(1).all() and not to_the_end.all()
    torch.testing.assert_close(fused.loss[to_the_end], full.loss[to_the_end], rtol=1e-9, atol=0)
    assert (fused.loss[:2, 2] == fused.base_loss).all(), "what an edge has not"


@pytest.mark.usefixtures("early_looks", "calibrate_on_few")
@pytest.mark.parametrize(("perturbation", "mode"), [("remove", "variant"), ("keep", "recalibrated")])
def test_ops_of_any_model_race(perturbation: Perturbation, mode: BatchNorm) -> None:
    model, some = trained(DartsSupernet), model_batches(13, 9, 9)
    options = {"perturbation": perturbation, "batch_norm": mode, "racing": Racing(31, "loss", 0.55)}
    plain = leave_one_out(model, some, batched=False, **options)
    fast = accelerated(model)
    fused = leave_one_out(fast, some, **options)
    full = leave_one_out(fast, some, perturbation=perturbation, batch_norm=mode)
    assert fused.batched and fused.cells.keys() == plain.cells.keys() == {"normal", "reduction"}
    for name, found in fused.cells.items():
        assert_same(found, plain.cells[name])
        assert found.op_images is not None and torch.equal(found.op_images, plain.cells[name].op_images)
        assert found.op_images.shape == found.loss.shape and found.images == 31
        to_the_end = found.op_images == 31
        assert to_the_end.any(1).all() and not to_the_end.all()
        expected = full.cells[name].loss[to_the_end]
        torch.testing.assert_close(found.loss[to_the_end], expected, rtol=1e-9, atol=0)
