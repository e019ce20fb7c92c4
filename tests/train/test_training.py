"""Trainings: resumed bit for bit, killed in any write, with and without what the presets have."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train_cases import (
    TINY,
    TINY_DARTS,
    content,
    error_of,
    plain,
    stop_after,
    trained,
    without_what_follows,
)

from vpdarts_fast.data import ImageData, load
from vpdarts_fast.evaluation.objective import ImageLoss, class_weights
from vpdarts_fast.runtime.processes import ALONE
from vpdarts_fast.train import trainer
from vpdarts_fast.train.__main__ import main
from vpdarts_fast.train.arguments import parse
from vpdarts_fast.train.config import TrainConfig
from vpdarts_fast.train.ema import MovingAverage
from vpdarts_fast.train.folder import TrainFolder
from vpdarts_fast.train.state import TrainingState

pytestmark = pytest.mark.usefixtures("one_thread")

EXTRAS = ["--ema", "0.9", "--images", "half", "--cutout", "4"]
CASES = {"nas-bench-201": [*TINY, *EXTRAS], "darts": [*TINY_DARTS, *EXTRAS, "--drop-path", "0.3"]}


@pytest.mark.parametrize("case", CASES)
def test_a_training_that_is_stopped_goes_on_bit_for_bit(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_what_follows(monkeypatch)
    expected = content(trained(tmp_path / "alone", *CASES[case]))
    folder = tmp_path / "in parts"
    with monkeypatch.context() as patched:
        stop_after(1, patched)  # within the first epoch
        assert main([*CASES[case], "--out", str(folder)]) == 130
    said = re.search(r"continue with: python -m vpdarts_fast.train (.*)", capsys.readouterr().out)
    assert said
    assert TrainFolder(folder).metrics() == [] and (folder / "checkpoint.pt").exists()
    with monkeypatch.context() as patched:
        stop_after(4, patched)  # in the second one
        assert main(shlex.split(said[1])) == 130
    assert main(shlex.split(said[1])) == 0
    assert content(folder) == expected


class Killed(BaseException):
    """In place of SIGKILL."""


def test_a_training_that_is_killed_in_a_write_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_what_follows(monkeypatch)
    one_epoch = ["1" if value == "2" else value for value in TINY]
    expected = content(trained(tmp_path / "alone", *one_epoch))
    writes, fsync = [0], os.fsync

    def counted(descriptor: int) -> None:
        writes[0] -= 1
        if writes[0] == 0:
            raise Killed
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    for number in range(1, 20):
        folder = tmp_path / str(number)
        writes[0] = number
        try:
            trained(folder, *one_epoch)
            break
        except Killed:
            begun = (folder / "config.json").exists()
            command = ["--resume", str(folder)] if begun else [*one_epoch, "--out", str(folder)]
            assert main(command) == 0
        assert content(folder) == expected
    assert number == 9  # settings, metrics, checkpoint, result: each a file and its folder


def test_the_moving_average_is_the_sum_of_what_it_has_seen() -> None:
    network = nn.Linear(2, 1, bias=False).double()
    average, weight = MovingAverage(network, 0.75), torch.zeros(1, 2, dtype=torch.float64)
    expected = network.weight.detach().clone()
    for step in range(1, 41):
        with torch.no_grad():
            network.weight.copy_(weight + step)
        average.update(network)
        kept = min(0.75, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * (weight + step)
    torch.testing.assert_close(average.tensors["weight"], expected)
    assert average.steps == 40


def test_test_images_are_seen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_what_follows(monkeypatch)
    seen = []

    def evaluate(network: nn.Module, images: object, *arguments: object) -> object:
        seen.append(len(images))  # type: ignore[arg-type]
        return real(network, images, *arguments)  # type: ignore[arg-type]

    real = trainer.evaluate
    monkeypatch.setattr(trainer, "evaluate", evaluate)
    folder = trained(tmp_path / "run", *TINY, "--images", "half")
    assert seen == [20, 20, 360]
    assert main(["--resume", str(folder)]) == 0
    assert len(seen) == 3
    result = TrainFolder(folder).result()
    assert result is not None and result["images"] == {"training": 20, "validation": 20, "test": 360}
    assert sum(map(sum, result["test"]["confusion"])) == 360


def test_a_moving_average_is_what_is_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_what_follows(monkeypatch)
    first, second = (
        TrainFolder(trained(tmp_path / name, *TINY, *flags)).result()
        for name, flags in (("with", ["--ema", "0.5"]), ("without", []))
    )
    assert first is not None and second is not None
    assert plain(first["test_without_average"]) == plain(second["test"])
    assert first["test"]["loss"] != second["test"]["loss"] and second["test_without_average"] is None


def test_rates_and_paths_follow_the_epochs() -> None:
    config = TrainConfig().replaced(
        epochs=4, learning_rate=0.2, learning_rate_end=0.1, channels=4, depth=1, anneal="epochs"
    )
    state = TrainingState(config, 3, torch.device("cpu"), 10)
    rates = []
    for state.epoch in range(4):
        state.step = 9  # of the epoch, which does not matter
        rates.append(state.learning_rate)
    cosine = [1.0, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2]
    assert rates == pytest.approx([0.1 + 0.1 * share for share in cosine])
    by_steps = TrainingState(config.replaced(anneal="steps"), 3, torch.device("cpu"), 10)
    by_steps.epoch, by_steps.step = 1, 10
    assert by_steps.learning_rate == pytest.approx(0.15)


def test_a_training_that_diverges_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_what_follows(monkeypatch)
    arguments = [*TINY, "--learning-rate", "1e20", "--out", str(tmp_path / "run")]
    assert "diverged" in error_of(arguments, capsys)


def test_bf16_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_what_follows(monkeypatch)
    folder = trained(tmp_path / "run", *TINY, "--precision", "bf16")
    *_, last = TrainFolder(folder).metrics()
    assert 0 < last["training"]["loss"] < 10


def test_a_folder_in_use_or_with_something_in_it_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is not empty" in error_of([*TINY, "--out", str(tmp_path)], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("flags", "loss"),
    [
        (["--loss", "label-smoothing", "--label-smoothing", "0.3"], ImageLoss(smoothing=0.3)),
        (["--loss", "focal", "--focal-gamma", "1"], ImageLoss(gamma=1.0)),
        (["--loss", "class-weights"], ImageLoss(weights=class_weights(torch.arange(10).repeat(4), 10))),
    ],
)
def test_the_loss_that_is_named_is_minimised(flags: list[str], loss: ImageLoss) -> None:
    """A first step of the training is one of the module that minimises this loss."""
    config = parse([*TINY, *flags, "--batch-size", "40", "--ema", "0"]).config
    data = load("digits")
    assert isinstance(data, ImageData)
    data = data.subset(torch.cat([(data.train_labels == digit).nonzero()[:4, 0] for digit in range(10)]))
    training = trainer.Training(config, data, TrainFolder(Path("nowhere")), SilentObserver())
    state, (order,) = training.state, training.images.order(config, 0)
    (images, labels), share = training.images.batch(order, config, 0, 0, ALONE)
    expected = loss(state.network(images), labels)
    state.train((images, labels), len(labels), share)
    assert state.record.summary()[0] == pytest.approx(float(expected.detach()), rel=1e-5)


class SilentObserver:
    """Hears nothing."""

    def phase(self, description: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, done: int, epochs: float) -> None:
        pass

    def epoch(self, metrics: dict[str, Any]) -> None:
        pass
