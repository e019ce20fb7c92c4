"""Finalists: how a cell is trained and judged, and what is kept of it in the run folder."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from finalist_cases import CLOSE_ON_THE_FOURTH, CONV_1, CONV_3, NONE, PAPER, POOL, SIX, SKIP, cell
from torch import Tensor

from vpdarts_fast.data import ImageData, load, split_halves
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.objective import Metric
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.formats import FINALISTS
from vpdarts_fast.search import SearchConfig
from vpdarts_fast.search.finalists import Finalists
from vpdarts_fast.search.finalists.contestants import Calls
from vpdarts_fast.search.finalists.progress import Progress
from vpdarts_fast.search.finalists.rounds import (
    Score,
)
from vpdarts_fast.search.finalists.training import CellTraining, Images, finish, score
from vpdarts_fast.spaces.nas_bench_201 import DiscreteNetwork, NasBench201, build_network
from vpdarts_fast.spaces.nas_bench_201.genotype import Genotype

pytestmark = pytest.mark.usefixtures("one_thread")

# --- training

TINY = SearchConfig().replaced(
    preset="quick", dataset="digits", max_images=64, channels=2, cells_per_stage=1, warmup_epochs=1,
    pruning_epochs=1, batch_size=8, evaluation_batch_size=8, device="cpu", finalists=3, finalist_channels=2,
    finalist_cells_per_stage=1, finalist_steps=2, finalist_budget=60,
)  # fmt: skip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    data = load("digits")
    return dataclasses.replace(data, train_images=data.train_images[:64], train_labels=data.train_labels[:64])


@pytest.fixture(scope="module")
def images(digits: ImageData) -> Images:
    return Images(*split_halves(digits, 0), TINY)


def training(genotype: Genotype, steps: int = 3, repetition: int = 0, **settings: object) -> CellTraining:
    return CellTraining(genotype, steps, repetition, TINY.replaced(**settings), 10, CPU)


MIXED = cell(SKIP, CONV_3, CONV_1, POOL, NONE, CONV_3)


@pytest.mark.parametrize("genotype", [MIXED, PAPER, cell(*[NONE] * 6), cell(*[SKIP] * 6)], ids=str)
def test_a_cell_is_trained_as_its_own_network_is(genotype: Genotype) -> None:
    """SGD on the plain network of the cell, whose batch norms stay as they start: 1 and 0."""
    ours = training(genotype, momentum=0.9)
    ours.network.double()
    network = twin(ours, genotype).double().train()
    optimizer = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad], momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        x = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64)
        y = torch.randint(10, (8,), generator=generator)
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / 3)) / 2
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), TINY.optimisers.gradient_clip)
        optimizer.step()
        ours.train((x, y), counts=step == 2)
    assert ours.last_epoch.summary()[0] == pytest.approx(loss.item(), rel=1e-9)
    network.eval()
    ours.network.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours.network(x), network(x), rtol=1e-8, atol=1e-8)


def twin(ours: CellTraining, genotype: Genotype) -> DiscreteNetwork:
    """The plain network of the cell with the same weights; of its ops, batch norms are not trained."""
    supernet = ours.network
    network = build_network(genotype, supernet.channels, supernet.cells_per_stage, supernet.num_classes)
    for name in ("stem", "lastact", "classifier"):
        getattr(network, name).load_state_dict(getattr(supernet, name).state_dict())
    searched = iter(supernet.search_cells())
    for plain, source in zip(network.cells, supernet.cells, strict=True):
        if source not in list(supernet.search_cells()):
            plain.load_state_dict(source.state_dict())
            continue
        for layer, mixed, choice in zip(
            plain.layers, next(searched).mixed_ops(), genotype.choices, strict=True
        ):
            layer.load_state_dict(mixed[choice].state_dict(), strict=False)
            for module in layer.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.requires_grad_(False)
    return network


def test_what_a_cell_does_not_hold_is_not_trained(images: Images) -> None:
    trained = training(MIXED)
    before = {name: value.clone() for name, value in trained.network.state_dict().items()}
    finish(trained, images, lambda: None)
    changed = {name for name, value in trained.network.state_dict().items() if not value.equal(before[name])}
    of_ops = {tuple(name.split(".")[3:5]) for name in changed if ".edges." in name}
    expected = zip(("2<-0", "2<-1", "3<-2"), (CONV_3, CONV_1, CONV_3), strict=True)
    assert of_ops == {(edge, str(op)) for edge, op in expected}
    count = sum(parameter.numel() for parameter in trained.parameters)
    plain = [p for name, p in build_network(MIXED, 2, 1, 10).named_parameters() if "op.2" not in name
             or "conv_" in name]  # fmt: skip
    assert count == sum(parameter.numel() for parameter in plain)


def test_cells_begin_with_the_same_weights_and_see_the_same_images(images: Images) -> None:
    one, other, again = training(PAPER), training(SIX), training(PAPER, repetition=1)
    for name, value in one.network.state_dict().items():
        assert value.equal(other.network.state_dict()[name])
    assert not one.network.stem[0].weight.equal(again.network.stem[0].weight)
    first, second = images.epoch(0, 0)(1), images.epoch(0, 0)(1)
    assert first[0].equal(second[0]) and not images.epoch(1, 0)(1)[0].equal(first[0])
    assert not images.epoch(0, 1)(1)[0].equal(first[0])
    assert first[1].equal(second[1]) and not images.epoch(1, 0)(1)[1].equal(first[1]), "the order"
    assert not images.epoch(0, 1)(1)[1].equal(first[1])
    assert images.steps_per_epoch == 4


def test_short_trainings_are_judged_on_the_first_images_of_long_ones(images: Images) -> None:
    few, many = (torch.cat(images.judged_by(steps)) for steps in (3, 100))
    assert len(few) == images.judging(3) == 12 and len(many) == len(images.validation) == 32
    assert few.equal(many[:12]) and many.sort().values.equal(torch.arange(32))


@pytest.mark.parametrize("steps", [2, 6])
def test_the_loss_is_that_of_the_last_epoch(
    steps: int, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    trained = training(PAPER, steps)
    real = trained.train

    def noted(batch: tuple[Tensor, Tensor], *, counts: bool) -> None:
        total = trained.last_epoch.to_dict()["loss"]
        real(batch, counts=counts)
        losses.append((trained.last_epoch.to_dict()["loss"] - total) / len(batch[1]) if counts else 0.0)

    monkeypatch.setattr(trained, "train", noted)
    score = finish(trained, images, lambda: None)
    assert score.training_loss == pytest.approx(sum(losses[-4:]) / min(steps, 4))
    assert len(losses) == steps and all(losses[-4:]) and not any(losses[:-4])
    assert len(score.correct) == images.judging(steps)


def test_it_is_judged_as_a_network_in_use(images: Images) -> None:
    """By the running statistics: a mean so high that nothing passes the last ReLU leaves the bias alone."""
    trained = training(PAPER, 12)
    finish(trained, images, lambda: None)
    trained.network.lastact[0].running_mean.fill_(1e6)
    before = {name: value.clone() for name, value in trained.network.state_dict().items()}
    score = finish(trained, images, lambda: None)
    labels = images.validation.labels[torch.cat(images.judged_by(12))]
    assert score.correct.equal(labels == trained.network.classifier.bias.argmax())
    assert all(value.equal(before[name]) for name, value in trained.network.state_dict().items())
    assert trained.network.training, "it could go on"


class Stop(Exception):
    pass


def test_a_stopped_training_goes_on_bit_for_bit(images: Images, tmp_path: Path) -> None:
    """Stopped before every step, once before the first batch that judges and once before the second."""
    expected = finish(training(MIXED), images, lambda: None)
    progress = Progress(tmp_path / "finalists.pt", {}, images.judging, NasBench201())

    def go_on(calls: int) -> Score:
        counter = itertools.count()

        def stop() -> None:
            if next(counter) == calls:
                raise Stop

        trained = training(MIXED)
        progress.load()
        progress.restore(trained)
        steps.append(trained.step)
        try:
            return finish(trained, images, stop)
        except Stop:
            progress.save(trained)
            raise

    steps: list[int] = []
    for calls in (0, 1, 1, 1, 0, 1):
        with pytest.raises(Stop):
            go_on(calls)
    score = go_on(1000)
    assert steps == [0, 0, 1, 2, 3, 3, 3]
    assert score.correct.equal(expected.correct) and score.training_loss == expected.training_loss


def test_numbers_that_are_not_finite_lose_and_are_not_kept(images: Images, tmp_path: Path) -> None:
    trained = training(PAPER, 4)
    with torch.no_grad():
        trained.network.stem[0].weight.fill_(math.nan)
    score = finish(trained, images, lambda: None)
    assert score.training_loss is None and trained.state_dict() is None
    progress = Progress(tmp_path / "finalists.pt", {}, images.judging, NasBench201())
    progress.scores[PAPER, 4, 0] = score
    progress.save(trained)
    progress.load()
    assert progress.unfinished is None and progress.scores[PAPER, 4, 0].training_loss is None


# --- the file


def finalists(images: Images, path: Path, cell_of_search: Calls = CLOSE_ON_THE_FOURTH) -> Finalists:
    return Finalists(TINY, 10, images.training, images.validation, cell_of_search, path, "blake2b 00")


@pytest.fixture(scope="module")
def written_once(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with trainings that are done and one that is not."""
    path = tmp_path_factory.mktemp("finalists") / "finalists.pt"

    def stop(steps: int) -> None:
        if steps == 11:
            raise Stop

    with pytest.raises(Stop):
        finalists(images, path).compare([], stop, lambda rung: None)
    return path


def test_a_stopped_comparison_is_in_the_file(written_once: Path) -> None:
    content = checkpoint.load(written_once, FINALISTS)
    assert [entry["steps"] for entry in content["trainings"]] == [2] * 5
    assert content["unfinished"]["step"] == 1 and content["search"] == str(SIX)


def test_a_file_of_the_version_before_goes_on(written_once: Path, images: Images, tmp_path: Path) -> None:
    """It knew no metric but accuracy."""
    content = checkpoint.load(written_once, FINALISTS)
    for training in content["trainings"]:
        assert training.pop("value") is None and training.pop("share") is None
    before = dataclasses.replace(FINALISTS, upgrades=())
    checkpoint.save(tmp_path / "finalists.pt", content, before)
    trained: list[int] = []
    decisions = [
        finalists(images, path).compare([], trained.append, lambda rung: None)
        for path in (tmp_path / "finalists.pt", tmp_path / "fresh.pt")
    ]
    assert decisions[0].winner == decisions[1].winner and trained[0] == 11


@pytest.mark.parametrize("metric", ["balanced-accuracy", "macro-f1"])
def test_cells_are_judged_by_the_metric_that_is_asked_for(
    metric: str, images: Images, tmp_path: Path
) -> None:
    """And what they came to is in the file."""
    config, path = TINY.replaced(metric=metric), tmp_path / "finalists.pt"
    decisions = [
        Finalists(config, 10, images.training, images.validation, CLOSE_ON_THE_FOURTH, path, "").compare(
            [], lambda steps: None, lambda rung: None
        )
        for _ in range(2)
    ]
    scores = [s for rung in decisions[1].rounds[0].rungs for some in rung.scores.values() for s in some]
    for found in scores:
        assert found.value is not None and found.share is not None and found.accuracy == found.value
        if metric == "balanced-accuracy":
            assert found.value == pytest.approx(100 * float(found.share[found.correct].sum()))
    assert decisions[0].winner == decisions[1].winner


def test_predictions_by_each_metric() -> None:
    predicted, labels = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    found = {metric: score(predicted, labels, metric, 1.0, 2.0).accuracy for metric in get_args(Metric)}
    by_classes = {"balanced-accuracy": 75, "macro-f1": 100 * (4 / 5 + 2 / 3) / 2}
    assert found == pytest.approx({"accuracy": 75} | by_classes)
    rare = score(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]), "balanced-accuracy", None, 0.0)
    assert rare.accuracy == 50


DAMAGED: dict[str, Callable[[dict], object]] = {
    "another search": lambda content: content.update(search=str(PAPER)),
    "other images": lambda content: content.update(images="blake2b 11"),
    "no trainings": lambda content: content.pop("trainings"),
    "trainings that are none": lambda content: content.update(trainings=[3]),
    "no cell": lambda content: content["trainings"][0].update(architecture="|a~0|"),
    "a repetition too many": lambda content: content["trainings"][0].update(repetition=2),
    "steps that are text": lambda content: content["trainings"][0].update(steps="2"),
    "too few images": lambda content: content["trainings"][0].update(correct=torch.ones(3, dtype=torch.bool)),
    "images that are numbers": lambda content: content["trainings"][0].update(correct=torch.ones(8)),
    "a loss that is text": lambda content: content["trainings"][0].update(training_loss="low"),
    "negative seconds": lambda content: content["trainings"][0].update(seconds=-1.0),
    "a step too many": lambda content: content["unfinished"].update(step=3),
    "weights of another size": lambda content: content["unfinished"]["supernet"].update(
        {"stem.0.weight": torch.zeros(3, 3, 3, 3)}
    ),
    "another optimizer": lambda content: content["unfinished"]["optimizer"].pop("param_groups"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_that_does_not_fit_is_refused(
    case: str, written_once: Path, images: Images, tmp_path: Path
) -> None:
    path = tmp_path / "finalists.pt"
    content = checkpoint.load(written_once, FINALISTS)
    DAMAGED[case](content)
    checkpoint.save(path, content, FINALISTS)
    with pytest.raises(UserError, match=r"finalists\.pt is damaged: .*remove it, and --resume"):
        finalists(images, path).compare([], lambda steps: None, lambda rung: None)


def test_a_file_of_a_newer_version_is_refused(written_once: Path, images: Images, tmp_path: Path) -> None:
    newer = dataclasses.replace(FINALISTS, upgrades=(*FINALISTS.upgrades, lambda content: content))
    checkpoint.save(tmp_path / "finalists.pt", checkpoint.load(written_once, FINALISTS), newer)
    with pytest.raises(UserError, match="written by a newer vpdarts_fast: progress of finalists, version 3"):
        finalists(images, tmp_path / "finalists.pt")


def test_a_changed_byte_is_found(written_once: Path, images: Images, tmp_path: Path) -> None:
    data = bytearray(written_once.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "finalists.pt").write_bytes(data)
    with pytest.raises(UserError, match="digest does not fit"):
        finalists(images, tmp_path / "finalists.pt")
