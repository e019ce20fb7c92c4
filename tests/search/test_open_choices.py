"""Settings for what the paper leaves open: each does what it says, and nothing where it is left alone."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from search_calls import SHORT, outcome, run, stop_at
from search_commands import TINY as FLAGS
from search_commands import edited
from torch import Tensor

from vpdarts_fast.data import ImageData, ImageSet, split_halves
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import leave_one_out
from vpdarts_fast.search import Interrupted, RunFolder, SearchConfig
from vpdarts_fast.search import member as member_module
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.finalists.training import CellTraining
from vpdarts_fast.search.member import Member
from vpdarts_fast.search.optimizers import alpha_rate, weights_optimizer
from vpdarts_fast.search.preflight import steps_of_epoch
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, OPS, Genotype

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def halves(digits: ImageData) -> tuple[ImageSet, ImageSet]:
    few = dataclasses.replace(
        digits, train_images=digits.train_images[:64], train_labels=digits.train_labels[:64]
    )
    return split_halves(few, seed=0)


def member(config: SearchConfig, halves: tuple[ImageSet, ImageSet], number: int = 0) -> Member:
    """A supernet of a committee, on 32 training images."""
    return Member(config, number, 10, torch.device("cpu"), *halves)


# Nesterov --------------------------------------------------------------------------------------------------


def moved(optimizer: torch.optim.Optimizer, weight: Tensor, gradients: list[float]) -> float:
    for gradient in gradients:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    return float(weight.detach())


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize(
    ("nesterov", "momentum", "expected"),
    [
        (True, 0.9, -0.1 * ((1 + 0.9 * 1) + (2 + 0.9 * 2.9))),
        (False, 0.9, -0.1 * (1 + (0.9 * 1 + 2))),
        (True, 0.0, -0.1 * (1 + 2)),
        (False, 0.0, -0.1 * (1 + 2)),
    ],
)
def test_nesterov_or_plain_momentum(nesterov: bool, momentum: float, expected: float, captured: bool) -> None:
    """Two steps, written out; without momentum there is none of either kind."""
    config = SearchConfig().replaced(
        learning_rate=0.1, momentum=momentum, weight_decay=0.0, nesterov=nesterov
    )
    weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    assert moved(weights_optimizer([weight], config, captured), weight, [1.0, 2.0]) == pytest.approx(expected)


@pytest.mark.parametrize("nesterov", [True, False])
def test_finalists_train_with_the_momentum_of_the_search(nesterov: bool) -> None:
    config = SHORT.replaced(nesterov=nesterov, finalist_channels=1, finalist_cells_per_stage=1)
    training = CellTraining(Genotype.from_index(0), 2, 0, config, 10, torch.device("cpu"))
    assert training.optimizer.param_groups[0]["nesterov"] is nesterov


# The order of the steps ------------------------------------------------------------------------------------


class Steps:
    """Watches the steps of members."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order: list[str] = []
        self._monkeypatch = monkeypatch
        for name in ("weights_step", "alpha_step"):
            self._note(name, getattr(member_module, name))

    def _note(self, name: str, real: Any) -> None:
        def noted(*arguments: Any, **options: Any) -> Any:
            self.order.append(name)
            return real(*arguments, **options)

        self._monkeypatch.setattr(member_module, name, noted)


@pytest.mark.parametrize("first", ["weights", "alpha"])
def test_the_order_of_the_steps(
    first: str, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alternating in every pruning epoch, with the chosen one first; the warm-up has one kind."""
    steps = Steps(monkeypatch)
    config = SHORT.replaced(pruning_epochs=1, step_order=f"{first}-first")  # type: ignore[arg-type]
    run(config, digits, tmp_path / "run")
    pair = [f"{first}_step", "alpha_step" if first == "weights" else "weights_step"]
    assert steps.order == ["weights_step"] * 2 + pair * 2


def test_what_comes_first_sees_the_other_as_it_was(halves: tuple[ImageSet, ImageSet]) -> None:
    """The first step of alpha sees the weights of the warm-up's end, and the weights the alpha after it."""
    config = SHORT.replaced(warmup_epochs=0, skip_dropout=0.0, step_order="alpha-first")
    searched, by_hand = member(config, halves), member(config, halves)
    by_hand._train_alpha(by_hand._draws(by_hand.validation, "validation")[0])
    by_hand._train_weights(by_hand._draws(by_hand.training, "training")[0])

    class StopAfterOneStep:
        def __init__(self) -> None:
            self.calls = itertools.count()

        def begins(self, phase: str, total: int, done: int) -> None:
            pass

        def stop_if_asked(self) -> None:
            if next(self.calls):
                raise Interrupted

        def done(self, done: int, total: int) -> None:
            pass

    with pytest.raises(Interrupted):
        searched.train_epoch(StopAfterOneStep())
    assert torch.equal(searched.state.alpha, by_hand.state.alpha)
    for name, value in searched.state.supernet.state_dict().items():
        assert torch.equal(value, by_hand.state.supernet.state_dict()[name]), name
    weights_first = member(config.replaced(step_order="weights-first"), halves)
    with pytest.raises(Interrupted):
        weights_first.train_epoch(StopAfterOneStep())
    stem = "stem.0.weight"
    assert not torch.equal(
        weights_first.state.supernet.state_dict()[stem], searched.state.supernet.state_dict()[stem]
    )


# Alpha's rate and start ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "batch", "size", "steps"),
    [(25_000, 64, 32, 391), (32, 16, 16, 2), (33, 16, 16, 3), (33, 16, 4, 2), (16, 16, 4, 1), (1, 2, 4, 0)],
)
def test_steps_of_an_epoch(images: int, batch: int, size: int, steps: int) -> None:
    """As many as it has batches, less a last one that has nothing to normalise with."""
    config = SearchConfig().replaced(batch_size=batch)
    assert steps_of_epoch(config, images, (size, size)) == steps
    if images > 1:
        part = config.replaced(images_per_epoch=images)
        assert steps_of_epoch(part, 3 * images, (size, size)) == steps


def test_a_scaled_rate_times_its_steps_is_that_of_the_paper() -> None:
    scaled = SearchConfig().replaced(alpha_rate_scaling=True)
    assert alpha_rate(scaled, 391) == 3e-4, "the paper's own setting stays as it is"
    for steps, epochs, rate in ((156, 30, 3e-4), (391, 4, 3e-4), (1_000, 60, 1e-3)):
        config = scaled.replaced(pruning_epochs=epochs, alpha_learning_rate=rate)
        assert alpha_rate(config, steps) * steps * epochs == pytest.approx(rate * 391 * 30)
        assert alpha_rate(config.replaced(alpha_rate_scaling=False), steps) == rate
    assert alpha_rate(scaled.replaced(pruning_epochs=0), 391) == 3e-4, "alpha takes no step"


@pytest.mark.parametrize("scaling", [False, True])
def test_alpha_learns_at_the_scaled_rate(
    scaling: bool, digits: ImageData, tmp_path: Path, halves: tuple[ImageSet, ImageSet]
) -> None:
    """Also after a stop; the run's own settings stay those that were asked for."""
    config = SHORT.replaced(pruning_epochs=1, alpha_rate_scaling=scaling)
    rate = 3e-4 * (391 * 30 / 2 if scaling else 1)
    (group,) = member(config, halves).state.alpha_optimizer.param_groups
    assert group["lr"] == pytest.approx(rate)
    run(config, digits, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(config, digits, tmp_path / "stopped", stop_at(6))
    run(config, digits, tmp_path / "stopped")
    whole = outcome(tmp_path / "whole")
    assert outcome(tmp_path / "stopped") == whole
    assert whole["checkpoint"]["alpha_optimizer"]["param_groups"][0]["lr"] == pytest.approx(rate)
    assert RunFolder.open(tmp_path / "whole")[1] == config
    moves = torch.tensor(whole["metrics"][1]["alpha"]) - torch.tensor(whole["metrics"][0]["alpha"])
    assert 0.5 * rate < float(moves.abs().max()) < 3 * rate


def test_alpha_starts_with_noise_of_its_own(halves: tuple[ImageSet, ImageSet]) -> None:
    config = SHORT.replaced(alpha_start=0.05, alpha_noise=1e-3, committee=3)
    alphas = [member(config, halves, number).state.alpha.detach() for number in range(3)]
    for alpha in alphas:
        deviations = (alpha - 0.05) / 1e-3
        assert 0.6 < float(deviations.std()) < 1.4 and float(deviations.mean().abs()) < 0.6
        assert len(alpha.unique()) == len(EDGES) * len(OPS)
    assert not torch.equal(alphas[0], alphas[1]) and not torch.equal(alphas[1], alphas[2])
    twice = config.replaced(alpha_noise=2e-3)
    torch.testing.assert_close(member(twice, halves, 2).state.alpha - 0.05, 2 * (alphas[2] - 0.05))
    torch.manual_seed(1)
    alone = member(config.replaced(committee=1), halves)
    assert torch.equal(alone.state.alpha, alphas[0]), "that of a search without others"
    other_seed = member(config.replaced(seed=1), halves)
    assert not torch.equal(other_seed.state.alpha, alphas[0])


def test_noise_changes_nothing_else(halves: tuple[ImageSet, ImageSet]) -> None:
    without, noisy = (member(SHORT.replaced(alpha_noise=noise), halves) for noise in (0.0, 0.1))
    assert torch.equal(without.state.alpha, torch.full((6, 5), 0.2))
    state = noisy.state.supernet.state_dict()
    for name, value in without.state.supernet.state_dict().items():
        assert torch.equal(value, state[name])
    for ours, theirs in zip(*(m._draws(halves[0], "training") for m in (without, noisy)), strict=True):
        assert torch.equal(ours, theirs)


# Epochs of a part of the images ----------------------------------------------------------------------------


def test_an_epoch_visits_so_many_images_of_each_half(
    digits: ImageData, tmp_path: Path, halves: tuple[ImageSet, ImageSet]
) -> None:
    """Others in every epoch; to the last bit the same after a stop."""
    config = SHORT.replaced(images_per_epoch=24)
    one = member(config, halves)
    visited = []
    for epoch in range(3):
        one.state.epoch = epoch
        for half in halves:
            draws = one._draws(half, "training")
            assert [draw.shape[1] for draw in draws] == [16, 8]
            visited.append(frozenset(torch.cat(draws, dim=1)[0].tolist()))
            assert len(visited[-1]) == 24
    assert len(set(visited)) == 3, "the same of both halves, others in each epoch"
    run(config, digits, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(config, digits, tmp_path / "stopped", stop_at(7))
    run(config, digits, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


# The command line ------------------------------------------------------------------------------------------

CHOICES = [
    "--removal", "renormalised", "--no-nesterov", "--step-order", "alpha-first", "--alpha-rate-scaling",
    "--alpha-start", "0", "--alpha-noise", "0.001",
]  # fmt: skip


def test_all_of_them_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        asked.append(options["removal"])
        return leave_one_out(*arguments, **options)

    monkeypatch.setattr(member_module, "leave_one_out", spy)
    folder = tmp_path / "run"
    assert main([*FLAGS, *CHOICES, "--out", str(folder)]) == 0
    _, config = RunFolder.open(folder)
    assert (config.search.removal, config.optimisers.nesterov, config.method.step_order) == (
        "renormalised",
        False,
        "alpha-first",
    )
    assert (
        config.optimisers.alpha_rate_scaling
        and config.method.alpha_noise == 1e-3
        and config.optimisers.alpha_learning_rate == 3e-4
    )
    assert asked == ["renormalised"] * 3
    assert "alpha's learning rate, scaled: 0.88" in capsys.readouterr().out
    capsys.readouterr()
    assert main(["--resume", str(folder), "--nesterov"]) == 2
    assert "--nesterov: the run has False, asked for True" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("alpha_noise", -1e-3, "--alpha-noise must be at least 0; got -0.001"),
        ("alpha_noise", float("nan"), "--alpha-noise must be at least 0; got nan"),
        ("alpha_noise", float("inf"), "--alpha-noise must be at most"),
    ],
)
def test_bad_values_are_refused(name: str, value: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        SearchConfig().replaced(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("removal", "hard"), ("step_order", "both"), ("nesterov", 1), ("alpha_rate_scaling", "yes")],
)
def test_bad_values_in_a_file_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"config.json: {name} must be "):
        SearchConfig.from_json(edited(SearchConfig().to_json(), **{name: value}), "config.json")
