"""Racing: who may leave and when, what it costs to be wrong, and that the rest is as in a full evaluation."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from leave_one_out_cases import (
    MODES,
    assert_same,
    both_ways,
    every_mode,
    make_alpha,
    make_batches,
    make_supernet,
)
from search_calls import SHORT, outcome, run, stop_at
from search_commands import TINY as FLAGS
from torch import Tensor

from vpdarts_fast.data import ImageData
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation import racing
from vpdarts_fast.evaluation.leave_one_out import BatchNorm, leave_one_out
from vpdarts_fast.evaluation.racing import Race, Racing
from vpdarts_fast.search import Interrupted
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.methods.criteria import AccuracyCriterion, LossCriterion
from vpdarts_fast.search.ranking import levels
from vpdarts_fast.search.records import evaluation_from_json
from vpdarts_fast.spaces.nas_bench_201.genotype import Genotype

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_EDGE = torch.arange(5)[None]


@pytest.fixture
def early_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "FIRST_LOOK", 12)


def raced(scores: Tensor, number: Tensor = ONE_EDGE, confidence: float = 0.99) -> tuple[list[int], Tensor]:
    """A race on scores [V, N]: the leader of each edge at its end, and on how many images each op was."""
    images = scores.shape[1]
    race = Race(Racing(images, "loss", confidence), number)
    before = 0
    for look in (*Racing(images, "loss").looks(), images):
        running = scores[race.running, before:look].double()
        race.look(look - before, running.sum(1), running @ running.T)
        before = look
        if race.over:
            break
    on = race.images_of_ops(before)
    leaders = []
    for edge, variants in enumerate(number.tolist()):
        last = [v for v, count in zip(variants, on[edge].tolist(), strict=True) if count == on[edge].max()]
        leaders.append(max(last, key=lambda v: float(scores[v, : int(on[edge].max())].double().mean())))
    return leaders, on


# The rule --------------------------------------------------------------------------------------------------


def test_what_is_far_behind_leaves_at_the_first_look() -> None:
    scores = torch.randn(5, 4000, generator=torch.Generator().manual_seed(0))
    scores[3] += 1
    leaders, images = raced(scores)
    assert leaders == [3]
    assert images.tolist() == [[racing.FIRST_LOOK] * 5]


def test_the_bound_is_that_of_a_sample_without_replacement() -> None:
    """Two ops, one look: the first is out if its lag exceeds z standard errors, and stays if not."""
    n, total = 500, 700
    noise = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()
    looks = len(Racing(total, "loss").looks())
    z = 2.3263478740408408  # of 0.99, for one look and one rival
    assert looks == 1
    threshold = z * math.sqrt(1 / n - 1 / total)
    for lag, stays in ((0.999 * threshold, True), (1.001 * threshold, False)):
        race = Race(Racing(total, "loss", 0.99), torch.tensor([[0, 1]]))
        scores = torch.stack([torch.zeros(n, dtype=torch.float64), noise + lag])
        race.look(n, scores.sum(1), scores @ scores.T)
        assert race.over != stays
        assert race.running == ([0, 1] if stays else [0]), "the unmodified supernet is always needed"


def test_the_leader_of_all_images_is_kept_as_surely_as_stated() -> None:
    """600 races between ops as close as the noise of all images, with a confidence that leaves errors."""
    generator = torch.Generator().manual_seed(2)
    wrong = spent = 0
    races, images = 600, 3000
    for _ in range(races):
        shared = torch.randn(images, generator=generator)
        own = 0.5 * torch.randn(5, images, generator=generator)
        gaps = torch.randn(5, 1, generator=generator) / images**0.5
        scores = shared + own + gaps
        leaders, on = raced(scores, confidence=0.9)
        wrong += leaders != [int(scores.double().mean(1).argmax())]
        spent += int(on.sum())
    assert wrong <= 0.1 * races
    assert wrong > 0, "a bound that is never wrong wastes images"
    assert spent < 0.9 * races * 5 * images


def test_more_looks_and_more_rivals_are_paid_for() -> None:
    few, many = Race(Racing(600, "loss"), ONE_EDGE[:, :2]), Race(Racing(12_500, "loss"), ONE_EDGE)
    assert few._z < many._z


def test_ops_of_one_variant_race_as_one() -> None:
    scores = torch.randn(4, 2000, generator=torch.Generator().manual_seed(3))
    scores[0] += 1
    leaders, images = raced(scores, torch.tensor([[0, 1, 2, 3, 0]]))
    assert leaders == [0]
    assert images.tolist() == [[500] * 5]


def test_equal_ops_stay_to_the_end() -> None:
    scores = torch.randn(5, 2000, generator=torch.Generator().manual_seed(4))
    scores[1] = scores[2]
    scores[1:3] += 1
    _, images = raced(scores)
    assert images.tolist() == [[500, 2000, 2000, 500, 500]]


def test_losses_that_are_not_finite_part_nobody() -> None:
    """The search then says that it has diverged."""
    scores = torch.randn(5, 2000, generator=torch.Generator().manual_seed(5))
    scores[2, 100] = math.nan
    _, images = raced(scores)
    assert images.tolist() == [[2000] * 5]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((0, "loss"), "race_images must be at least 1; got 0"),
        ((10, "alpha"), "the criterion of a race must be accuracy or loss; got 'alpha'"),
        ((10, "loss", 1.0), r"race_confidence must be in \(0.5, 1\); got 1.0"),
        ((10, "loss", 0.5), r"race_confidence must be in \(0.5, 1\); got 0.5"),
    ],
)
def test_rules_that_make_no_sense_are_refused(arguments: tuple[int, str, float], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Racing(*arguments)


# Leave-one-out ---------------------------------------------------------------------------------------------


@both_ways
@every_mode
@pytest.mark.usefixtures("early_looks", "calibrate_on_few")
def test_a_race_to_the_end_is_the_full_evaluation(mode: BatchNorm, fused: bool) -> None:
    """With a confidence that nothing reaches, looks change nothing."""
    supernet, batches, alpha = make_supernet(), make_batches(9, 9, 9, 9), make_alpha([(1, 2)])
    options = {"batch_norm": mode, "batched": fused}
    full = leave_one_out(supernet, batches, alpha, **options)
    patient = leave_one_out(supernet, batches, alpha, **options, racing=Racing(36, "loss", 1 - 1e-15))
    assert full.op_images is None
    assert torch.equal(patient.op_images, torch.full((6, 5), 36))
    assert_same(patient, full)


@pytest.mark.parametrize(
    ("mode", "criterion"), [*((mode, "loss") for mode in MODES), ("running", "accuracy")]
)
@pytest.mark.usefixtures("early_looks", "calibrate_on_few")
def test_who_has_left_keeps_what_it_had(mode: BatchNorm, criterion: str) -> None:
    """Fused and plain agree; ops that stay to the end have what a full evaluation of all images has."""
    supernet, batches, alpha = make_supernet(), make_batches(25, 9, 9, 9, 9), make_alpha()
    rules = Racing(61, criterion, 0.55)
    fused = leave_one_out(supernet, batches, alpha, batch_norm=mode, racing=rules)
    plain = leave_one_out(supernet, batches, alpha, batch_norm=mode, racing=rules, batched=False)
    assert_same(fused, plain)
    assert torch.equal(fused.op_images, plain.op_images)
    counts = set(fused.op_images.flatten().tolist())
    assert counts <= {25, 34, 43, 52, 61}
    assert len(counts) > 1 or criterion == "accuracy"
    for images in counts:  # what an op has: its difference to the base in its images, on top of all images
        part = leave_one_out(supernet, batches[: images // 9 - 1], alpha, batch_norm=mode)
        on = fused.op_images == images
        base_loss, base_accuracy = fused.base_loss - part.base_loss, fused.base_accuracy - part.base_accuracy
        torch.testing.assert_close(fused.loss[on], part.loss[on] + base_loss)
        expected = (part.accuracy[on] + base_accuracy).clamp(0, 100)
        torch.testing.assert_close(fused.accuracy[on], expected)


@pytest.mark.usefixtures("early_looks")
def test_a_race_that_is_over_takes_no_more_images() -> None:
    """Labels are what the supernet predicts, mostly by one op of each edge."""
    supernet, alpha = make_supernet().eval(), torch.full((6, 5), 0.01, dtype=torch.float64)
    alpha[:, 3] = 3
    with torch.no_grad():
        batches = [(x, supernet(x, alpha).argmax(1)) for x, _ in make_batches(*[20] * 40)]
    unseen, progress = iter(batches), list[int]()
    result = leave_one_out(
        supernet, unseen, alpha, batch_norm="running", racing=Racing(800, "loss"), on_batch=progress.append
    )
    assert LossCriterion().importance(alpha, result).ranking(alpha > 0)[:, 0].tolist() == [3] * 6
    assert result.images == progress[-1] == int(result.op_images.max()) < 800
    assert sum(1 for _ in unseen) == 40 - len(progress)


def test_who_stayed_longer_is_more_important() -> None:
    images = torch.full((6, 5), 500)
    images[2, 3] = 900
    evaluation = dataclasses.replace(
        leave_one_out(make_supernet(), make_batches(5), make_alpha(), batch_norm="running"), op_images=images
    )
    for criterion in (AccuracyCriterion(), LossCriterion()):
        importance = criterion.importance(make_alpha(), evaluation)
        plain = dataclasses.replace(importance, images=None)
        alive = torch.ones(6, 5, dtype=torch.bool)
        ranking, without = importance.ranking(alive), plain.ranking(alive)
        assert ranking[2, 0] == 3
        assert ranking[2, 1:].tolist() == [op for op in without[2].tolist() if op != 3]
        assert torch.equal(ranking[[0, 1, 3, 4, 5]], without[[0, 1, 3, 4, 5]])
        assert levels(importance)[2].argmax() == 3
        assert (levels(importance)[[0, 1, 3, 4, 5]] == levels(plain)[[0, 1, 3, 4, 5]]).all()


# The search ------------------------------------------------------------------------------------------------

RACING = SHORT.replaced(evaluation="racing", race_confidence=0.6, criterion="loss")


@pytest.fixture
def tiny_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "FIRST_LOOK", 6)


@pytest.mark.usefixtures("tiny_looks")
def test_a_search_races_and_is_continued_bit_for_bit(digits: ImageData, tmp_path: Path) -> None:
    config = RACING.replaced(evaluation_batch_size=4, validation_proportion=1.0)
    run(config, digits, tmp_path / "whole")
    whole = outcome(tmp_path / "whole")
    lines = [line for line in whole["metrics"] if line["importance"]]
    assert lines
    for line in (*lines, {**whole["result"], "genotype": whole["result"]["architecture"]}):
        evaluation = evaluation_from_json(line["importance"])
        assert evaluation.op_images is not None
        assert evaluation.op_images.min() < evaluation.images
        chosen = torch.tensor(Genotype.from_string(line["genotype"]).choices)[:, None]
        longest = evaluation.op_images.max(1, keepdim=True).values
        assert torch.equal(evaluation.op_images.gather(1, chosen), longest)
    with pytest.raises(Interrupted):
        run(config, digits, tmp_path / "stopped", stop=stop_at(9))
    run(config, digits, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == whole


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"criterion": "alpha"}, "--criterion alpha has none"),
        ({"pruning": "progressive"}, "--pruning progressive needs the order of all: use --evaluation full"),
        ({"committee": 2}, "not for the mean of --committee 2; use --evaluation full"),
        ({"race_confidence": 1.0}, r"--race-confidence must be in \(0.5, 1\); got 1.0"),
    ],
)
def test_settings_that_no_race_serves_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        RACING.replaced(**settings)


@pytest.mark.usefixtures("tiny_looks")
def test_the_console_says_on_how_many_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*FLAGS, "--evaluation", "racing", "--race-confidence", "0.6", "--criterion", "loss"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert re.search(r"leave-one-out [\d.]+ s \(1?\d images an op\)", capsys.readouterr().out)
