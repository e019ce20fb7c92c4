"""Scores of an evaluation, against scikit-learn, and what the benchmark says beside ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score
from torch import nn
from train_cases import CELL, DARTS_CELL

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.data import load
from vpdarts_fast.spaces.darts import Darts
from vpdarts_fast.train.comparison import compared
from vpdarts_fast.train.config import PRESETS
from vpdarts_fast.train.evaluating import Scores, evaluate


class Pixels(nn.Module):
    """A network whose logits are the first numbers of an image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, 60:70]


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_scores_are_those_of_scikit_learn(batch_size: int) -> None:
    half = load("digits").test_half()
    batches: list[int] = []
    network = Pixels().train()
    scores = evaluate(network, half, 10, batch_size, batches.append)
    images, labels = half.batch(torch.arange(len(half)))
    logits = network(images)
    predicted, true = logits.argmax(1).numpy(), labels.numpy()
    assert scores.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert scores.confusion.tolist() == confusion_matrix(true, predicted, labels=range(10)).tolist()
    assert scores.accuracy == pytest.approx(100 * np.mean(predicted == true))
    assert scores.balanced_accuracy == pytest.approx(100 * balanced_accuracy_score(true, predicted))
    assert scores.macro_f1 == pytest.approx(100 * f1_score(true, predicted, average="macro"))
    assert network.training and batches == list(range(-(-len(half) // batch_size)))


def test_classes_without_images_count_for_nothing() -> None:
    scores = Scores(1.0, torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    assert scores.per_class == [75.0, 100.0, None]
    assert scores.balanced_accuracy == 87.5
    assert scores.macro_f1 == pytest.approx(100 * (6 / 7 + 4 / 5) / 2)


@pytest.mark.parametrize(
    ("preset", "changes", "column"),
    [
        ("nas-bench-201-12", {}, "cifar10_valid_12ep"),
        ("nas-bench-201-200", {}, "cifar10_test_200ep"),
        ("nas-bench-201-200", {"dataset": "cifar100"}, "cifar100_test_200ep"),
        ("nas-bench-201-12", {"dataset": "cifar100", "images": "all"}, "cifar100_valid_12ep"),
        ("nas-bench-201-12", {"dataset": "folder", "benchmark_data": "cifar10"}, "cifar10_valid_12ep"),
        ("nas-bench-201-12", {"dataset": "folder"}, None),
        ("nas-bench-201-200", {"benchmark_data": "none"}, None),
        ("nas-bench-201-12", {"images": "all"}, None),
        ("nas-bench-201-200", {"channels": 8}, None),
        ("short", {}, None),
    ],
)
def test_the_benchmarks_value_of_the_same_protocol_stands_beside_ours(
    preset: str, changes: dict[str, Any], column: str | None
) -> None:
    table = BenchmarkTable.published()
    config = PRESETS[preset].replaced(cell=CELL, **changes)
    test, validation = {"accuracy": 90.0}, {"accuracy": 80.0}
    found = compared(config, table, test, validation if config.training.images == "half" else None)
    if column is None:
        assert found is None
        return
    ours = 80.0 if column == "cifar10_valid_12ep" else 90.0
    measured = "validation" if column == "cifar10_valid_12ep" else "test"
    value = table.accuracy(CELL)[column]
    assert found == {"column": column, "benchmark": value, "ours": ours, "measured": measured}


def test_other_spaces_are_in_no_benchmark() -> None:
    config = PRESETS["darts"].replaced(cell=DARTS_CELL, space=Darts())
    assert compared(config, None, {"accuracy": 90.0}, None) is None
