"""What NAS-Bench-201 says of a cell, beside what a training of ours came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.train.config import TrainConfig

_NAMES = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet16-120": "imagenet16_120"}


def compared(
    config: TrainConfig,
    table: BenchmarkTable | None,
    test: Mapping[str, float],
    validation: Mapping[str, float] | None,
) -> dict[str, Any] | None:
    """The benchmark's accuracy of the cell by the same protocol, and ours.

    After 200 epochs on all images it is the test accuracy. After 12 it is the validation accuracy: of
    CIFAR-10 trained on one half of the images and measured on the other, of the others on half of the test
    images. The benchmark's halves are others than ours.

    Args:
        config: the settings of the training.
        table: where the cell is looked up.
        test: loss and accuracy on the test images.
        validation: the same on the half that did not train, if there is one.

    Returns:
        None where the benchmark has trained no such network; data sets are those that --benchmark-data or
        --dataset names.
    """
    network, training = config.network, config.training
    said = config.reporting.benchmark_data
    name = _NAMES.get(config.images.dataset if said == "auto" else said)
    if table is None or name is None or (network.channels or 16, network.depth or 5) != (16, 5):
        return None
    halves = name == "cifar10"
    if training.epochs == 200 and training.images == "all":
        column, ours, measured = f"{name}_test_200ep", test, "test"
    elif training.epochs == 12 and training.images == ("half" if halves else "all"):
        column, ours, measured = f"{name}_valid_12ep", test, "test"
        if halves and validation is not None:
            ours, measured = validation, "validation"
    else:
        return None
    accuracies = table.accuracy(config.cell)
    if column not in accuracies:
        return None
    return {"column": column, "benchmark": accuracies[column], "ours": ours["accuracy"], "measured": measured}
