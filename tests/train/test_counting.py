"""Parameters and multiply-adds, against what NAS-Bench-201 publishes and a count by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from train_cases import CELL, DARTS_CELL, TINY, trained, without_what_follows

from vpdarts_fast.spaces.darts import Darts
from vpdarts_fast.spaces.nas_bench_201 import Genotype
from vpdarts_fast.train.config import TrainConfig
from vpdarts_fast.train.folder import TrainFolder
from vpdarts_fast.train.networks import cost_of


@pytest.mark.parametrize(
    ("op", "millions", "parameters"),
    # What the benchmark says of these cells on CIFAR-10, the smallest and the largest: FLOPs in millions.
    [("skip_connect", 7.78305, 73_306), ("nor_conv_3x3", 220.11969, 1_531_546)],
)
def test_counts_are_those_of_the_benchmark(op: str, millions: float, parameters: int) -> None:
    config = TrainConfig().replaced(cell=str(Genotype((op,) * 6)))
    # It counts the ten additions of the classifier's bias too.
    expected = {"parameters": parameters, "multiply_adds": round(millions * 1e6) - 10}
    assert cost_of(config, 10, (32, 32)) == expected


def counted(network: nn.Module, size: int) -> int:
    """Multiply-adds by the sizes of weights and outputs."""
    total = 0

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        total += weight[0].numel() * output.numel()

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    network.eval()(torch.zeros(1, 3, size, size))
    return total


def test_counts_of_a_darts_network_are_those_of_its_layers() -> None:
    space = Darts()
    config = TrainConfig().replaced(
        cell=DARTS_CELL, space=space, channels=4, depth=3, auxiliary_weight=0.4, drop_path=0.2
    )
    network = space.trained_network(space.parse(DARTS_CELL), 10, channels=4, depth=3)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    expected = {"parameters": parameters, "multiply_adds": counted(network, 32)}
    assert cost_of(config, 10, (32, 32)) == expected


def test_a_training_on_the_ops_says_what_its_modules_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    without_what_follows(monkeypatch)
    result = TrainFolder(trained(tmp_path / "run", *TINY)).result()
    network = TrainConfig().space.trained_network(Genotype.from_string(CELL), 10, channels=4, depth=1)
    assert result is not None and result["multiply_adds"] == counted(network, 16)
