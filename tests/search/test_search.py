"""The search as a whole, on a few digits: what it writes, that it repeats itself, that nothing gets lost."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from search_calls import SHORT, TINY, Watcher, outcome, run, stop_at
from torch import Tensor

from vpdarts_fast.data import ImageData, ImageSet
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import leave_one_out
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.search import Interrupted, RunFolder, Search
from vpdarts_fast.search.methods.criteria import AccuracyCriterion
from vpdarts_fast.search.seeds import summarise
from vpdarts_fast.search.step import weights_step
from vpdarts_fast.spaces.nas_bench_201 import EDGES, OPS, Genotype, Supernet

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that was not interrupted."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(TINY, digits, folder)
    return folder


@pytest.fixture(scope="module")
def short(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a shorter search comes to that was not interrupted."""
    folder = tmp_path_factory.mktemp("short") / "run"
    run(SHORT, digits, folder)
    return outcome(folder)


def test_metrics_say_what_happened_in_each_epoch(finished: Path) -> None:
    lines = RunFolder(finished).metrics()
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["phase"] for line in lines] == ["warm-up"] * 2 + ["pruning"] * 3
    cosine = [0.001 + 0.024 * (1 + math.cos(math.pi * epoch / 5)) / 2 for epoch in range(5)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(cosine)
    for line in lines[:2]:
        assert torch.tensor(line["alpha"]).eq(torch.tensor(0.2)).all(), "alpha is frozen in the warm-up"
        assert line["alpha_loss"] is line["importance"] is line["genotype"] is line["decay"] is None
    assert [line["decay"] for line in lines[2:]] == pytest.approx([1, 2 / 3, 1 / 3])
    for line in lines:
        assert 0 < line["weights_loss"] < 10 and 0 <= line["weights_accuracy"] <= 100
        assert set(line["seconds"]) == {"train", "leave_one_out"}
    for line in lines[2:]:
        importance = line["importance"]
        assert importance["images"] == 16, "half of the 32 validation images"
        assert line["genotype"] == chosen(importance)
        assert line["index"] == Genotype.from_string(line["genotype"]).index
        assert 0 < line["alpha_loss"] < 10


def chosen(importance: dict[str, Any]) -> str:
    """Per edge the op with the lowest accuracy without it, ties by the highest loss, then by number."""
    choices = []
    for accuracies, losses in zip(importance["accuracy"], importance["loss"], strict=True):
        keys = [(accuracy, -loss) for accuracy, loss in zip(accuracies, losses, strict=True)]
        choices.append(keys.index(min(keys)))
    return str(Genotype.from_choices(choices))


def test_alphas_are_pruned_and_trained(finished: Path) -> None:
    """Adam's first steps change an alpha by at most the learning rate each: the rest is decay."""
    lines = RunFolder(finished).metrics()
    for before, after in itertools.pairwise(lines[1:]):
        factors = torch.full((len(EDGES), len(OPS)), after["decay"])
        best = torch.tensor(Genotype.from_string(after["genotype"]).choices)
        factors.scatter_(1, best[:, None], 1.0)
        moved = (torch.tensor(after["alpha"]) - torch.tensor(before["alpha"]) * factors).abs()
        assert 0 < moved.max() < 2 * 4 * TINY.optimisers.alpha_learning_rate


def test_result_is_the_choice_of_the_last_evaluation(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["architecture"] == chosen(result["importance"])
    assert result["index"] == Genotype.from_string(result["architecture"]).index
    assert result["base_accuracy"] == result["importance"]["base_accuracy"]
    assert result["alpha"] == RunFolder(finished).metrics()[-1]["alpha"]
    assert RunFolder.open(finished)[1] == TINY


def test_same_seed_gives_the_same_bits(digits: ImageData, finished: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # what else uses PyTorch's generator does not matter
    run(TINY, digits, tmp_path / "again")
    assert outcome(tmp_path / "again") == outcome(finished)


def test_another_seed_gives_another_search(digits: ImageData, finished: Path, tmp_path: Path) -> None:
    run(TINY.replaced(seed=1), digits, tmp_path / "other")
    first, other = (
        RunFolder(folder).metrics()[0]["weights_loss"] for folder in (finished, tmp_path / "other")
    )
    assert first != other


def test_fused_and_plain_agree(digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole search in float64, where rounding stays too small to tip a ReLU or a tie; same dropout."""
    take = ImageSet.take

    def double_take(*args: Any) -> tuple[Tensor, Tensor]:
        images, labels = take(*args)
        return images.double(), labels

    monkeypatch.setattr(ImageSet, "take", double_take)
    torch.set_default_dtype(torch.float64)
    config = SHORT.replaced(evaluation_batch_size=16)
    try:
        plain, fused = (
            run(config.replaced(fused=is_fused), digits, tmp_path / str(is_fused))
            for is_fused in (False, True)
        )
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(torch.tensor(plain["alpha"]), torch.tensor(fused["alpha"]), rtol=0, atol=1e-9)
    lines = zip(*(RunFolder(tmp_path / str(is_fused)).metrics() for is_fused in (False, True)), strict=True)
    for plain_line, line in lines:
        assert plain_line["weights_loss"] == pytest.approx(line["weights_loss"], abs=1e-9)
        assert plain_line["genotype"] == line["genotype"]
    importance, expected = (torch.tensor(result["importance"]["loss"]) for result in (plain, fused))
    torch.testing.assert_close(importance, expected, rtol=0, atol=1e-9)


PRUNINGS: list[dict[str, Any]] = [
    {"pruning": "soft", "decay": "fixed"},
    {"pruning": "soft", "decay": "adjustable"},
    {"pruning": "hard"},
    {"pruning": "progressive"},
]


@pytest.mark.parametrize("criterion", ["accuracy", "loss", "alpha"])
@pytest.mark.parametrize("pruning", PRUNINGS, ids=lambda values: "-".join(values.values()))
def test_ablations(pruning: dict[str, Any], criterion: Any, digits: ImageData, tmp_path: Path) -> None:
    config = TINY.replaced(criterion=criterion, validation_proportion=0.25, **pruning)
    watcher = Watcher()
    result = run(config, digits, tmp_path / "run", watcher=watcher)
    alpha = torch.tensor(result["alpha"])
    choices = torch.tensor(Genotype.from_string(result["architecture"]).choices)[:, None]
    evaluations = sum(description == "leave-one-out" for description, *_ in watcher.phases)
    due = {"soft": 3, "hard": 0, "progressive": 2}[config.method.pruning.name]
    assert evaluations == (0 if criterion == "alpha" else due + 1)
    if criterion == "alpha":
        assert result["importance"] is result["base_accuracy"] is None
        assert torch.equal(alpha.abs().gather(1, choices), alpha.abs().amax(1, keepdim=True))
    else:
        assert result["importance"]["images"] == 8, "a quarter of 32"
    if config.method.pruning.name == "progressive":
        assert (alpha != 0).sum(1).tolist() == [2] * len(EDGES)
        assert (alpha.gather(1, choices) != 0).all(), "a removed op is never chosen"
    else:
        # An alpha of `none` has no gradient: nothing brings it back once it is zero.
        assert (alpha[:, 1:] != 0).all(), "nothing is removed before the end; pruned alphas keep training"
    decays: dict[str, list[float]] = {"fixed": [0, 0, 0], "adjustable": [1, 2 / 3, 1 / 3]}
    expected: list[Any] = list(decays.get(pruning.get("decay", "none"), [None] * 3))
    if criterion == "alpha":
        expected[0] = None  # alpha was frozen until then: there is nothing to prune by
    assert [line["decay"] for line in watcher.lines[2:]] == pytest.approx(expected)


def test_odd_numbers_of_images(digits: ImageData, tmp_path: Path) -> None:
    """67 images: 33 to train on, 34 to validate with, the last batches smaller than the others."""
    config = TINY.replaced(max_images=67, warmup_epochs=0, pruning_epochs=1)
    run(config, digits, tmp_path / "run")
    assert len(RunFolder(tmp_path / "run").metrics()) == 1


def test_progress_runs_from_the_first_to_the_last_epoch(digits: ImageData, tmp_path: Path) -> None:
    watcher = Watcher()
    run(TINY, digits, tmp_path / "run", watcher=watcher)
    assert watcher.positions == sorted(watcher.positions)
    assert watcher.positions[0] == 0.5 and watcher.positions[-1] == 5
    assert watcher.phases[:3] == [("warm-up", 2, 0), ("warm-up", 2, 0), ("leave-one-out", 16, 0)]


# Three epochs of two steps and an end; two evaluation batches in two pruning epochs and at the end.
STOPS = 3 * 3 + 3 * 2


def test_an_interrupted_search_ends_the_same(
    digits: ImageData, short: dict[str, Any], tmp_path: Path
) -> None:
    """Stopped in and after the warm-up, in evaluations, before and in pruning epochs and at the end."""
    positions = set()
    for call in (1, 2, 4, 5, 9, 11, STOPS - 1):
        folder = tmp_path / str(call)
        with pytest.raises(Interrupted):
            run(SHORT, digits, folder, stop_at(call))
        assert RunFolder(folder).result() is None
        saved = checkpoint.load(folder / "checkpoint.pt")
        positions.add((saved["epoch"], saved["step"], saved["record"]["began"]))
        run(SHORT, digits, folder)
        assert outcome(folder) == short, f"stopped at call {call}"
        shutil.rmtree(folder)
    assert {(0, 1, False), (1, 0, False), (1, 0, True), (2, 1, True), (3, 0, False)} <= positions
    run(SHORT, digits, tmp_path / "last", stop_at(STOPS))  # nobody asks once more


def test_a_search_interrupted_many_times_ends_the_same(
    digits: ImageData, short: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    interruptions = 0
    while not (folder / "result.json").exists():
        try:
            run(SHORT, digits, folder, stop_at(2))
        except Interrupted:
            interruptions += 1
    assert interruptions > 3
    assert outcome(folder) == short


def test_a_killed_search_ends_the_same(digits: ImageData, short: dict[str, Any], tmp_path: Path) -> None:
    """No checkpoint is written on the way out; the last one is older than the last line of metrics."""
    folder = tmp_path / "run"

    class Killed(Exception):
        pass

    saves = itertools.count()

    class Dying(Search):
        def _save(self) -> None:
            if next(saves) == 2:  # the third epoch's, whose metrics are written
                raise Killed
            super()._save()

    with pytest.raises(Killed):
        Dying(SHORT, digits, RunFolder.create(folder, SHORT), Watcher()).search()
    assert len(RunFolder(folder).metrics()) == 3
    assert checkpoint.load(folder / "checkpoint.pt")["epoch"] == 2
    run(SHORT, digits, folder)
    assert outcome(folder) == short


def test_a_search_stopped_before_its_first_checkpoint_starts_again(
    digits: ImageData, short: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    RunFolder.create(folder, SHORT)
    run(SHORT, digits, folder)
    assert outcome(folder) == short


def test_a_lost_checkpoint_is_no_new_start(digits: ImageData, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match=r"checkpoint\.pt is missing, but metrics\.jsonl has 5 epochs"):
        run(TINY, digits, folder)


def test_the_planted_operation_is_found(digits: ImageData) -> None:
    """A supernet that learned with the 3x3 convolution on 0->3 alone is nothing without it."""
    planted = EDGES.index((0, 3)), OPS.index("nor_conv_3x3")
    torch.manual_seed(0)
    supernet = Supernet(4, 1, 10).train()
    alpha = torch.zeros_like(supernet.new_alpha())
    alpha[planted] = 1.0
    images = (digits.train_images[:128].permute(0, 3, 1, 2).float() / 255 - 0.3) / 0.35
    labels = digits.train_labels[:128]
    optimizer = torch.optim.SGD(supernet.parameters(), 0.1, momentum=0.9)
    for _ in range(25):
        for part in torch.arange(128).view(2, 64):
            weights_step(supernet, alpha, (images[part], labels[part]), optimizer, 5.0)
    noise = torch.rand(alpha.shape, generator=torch.Generator().manual_seed(0)) * 0.02
    evaluation = leave_one_out(supernet, [(images, labels)], alpha + noise)
    ranking = (
        AccuracyCriterion().importance(alpha, evaluation).ranking(torch.ones_like(alpha, dtype=torch.bool))
    )
    assert evaluation.base_accuracy > 60
    assert evaluation.accuracy[planted] < 30
    assert ranking[planted[0], 0] == planted[1]
    others = evaluation.accuracy.clone()
    others[planted] = evaluation.base_accuracy
    assert (others - evaluation.base_accuracy).abs().max() < 5, "and of the others none matters"


def test_summary_of_seeds() -> None:
    """Mean 92, deviations -2, 0, 2: variance (4 + 0 + 4) / 2."""

    def found(seed: int, accuracy: float, c10: float | None) -> dict[str, Any]:
        benchmark = None if c10 is None else {"cifar10_test_200ep": c10}
        return {
            "architecture": f"a{seed}",
            "index": seed,
            "base_accuracy": accuracy,
            "benchmark": benchmark,
            "finalists": None,
        }

    summary = summarise({0: found(0, 90, 93.0), 1: found(1, 92, 94.0), 5: found(5, 94, None)})
    assert summary["accuracies"] == {"base_accuracy": {"mean": 92, "standard_deviation": 2, "variance": 4}}, (
        "the benchmark accuracy is not known for all seeds"
    )
    assert {**summary["seeds"]["5"], "finalists": None} == found(5, 94, None)
    single = summarise({3: found(3, 90, 93.0)})["accuracies"]
    assert single["cifar10_test_200ep"] == {"mean": 93, "standard_deviation": None, "variance": None}
    alone = {"finalists": {"search": {"benchmark": {"cifar10_test_200ep": 92.0}}}}
    both = summarise({seed: found(seed, 90, 93.0) | alone for seed in (0, 1)})["accuracies"]
    column = "cifar10_test_200ep"
    assert [both[name]["mean"] for name in (column, f"{column}, the search alone")] == [93, 92]
