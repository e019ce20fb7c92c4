"""Parameters and multiply-adds, against what NAS-Bench-201 publishes and a count by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from train_cases import DARTS_CELL

from vpdarts_fast.spaces.costs import multiply_adds, parameters_of
from vpdarts_fast.spaces.darts import Darts
from vpdarts_fast.spaces.nas_bench_201 import Genotype, NasBench201


@pytest.mark.parametrize(
    ("op", "millions", "parameters"),
    # What the benchmark says of these cells on CIFAR-10: FLOPs and parameters, in millions.
    [
        ("skip_connect", 7.78305, 73_306),
        ("nor_conv_3x3", 220.11969, 1_531_546),
    ],
)
def test_counts_are_those_of_the_benchmark(op: str, millions: float, parameters: int) -> None:
    network = NasBench201().trained_network(Genotype((op,) * 6), 10)
    # It counts the ten additions of the classifier's bias too.
    assert multiply_adds(network, (32, 32)) + 10 == round(millions * 1e6)
    assert parameters_of(network) == parameters
    assert network.training


def test_counts_of_a_darts_network_are_those_of_its_layers() -> None:
    space = Darts()
    network = space.trained_network(space.parse(DARTS_CELL), 10, channels=4, depth=3, auxiliary=True)
    counted = 0

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal counted
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        counted += weight[0].numel() * output.numel()

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    network.eval()(torch.zeros(1, 3, 32, 32))
    expected, counted = counted, 0
    assert multiply_adds(network, (32, 32)) == expected > 0
    plain = space.trained_network(space.parse(DARTS_CELL), 10, channels=4, depth=3)
    assert parameters_of(network) == sum(parameter.numel() for parameter in plain.parameters())
