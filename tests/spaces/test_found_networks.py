"""Networks of one architecture: sizes, names, and that a cell is the supernet's with one-hot alpha."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from supernet_cases import make_input, make_supernet
from torch import Tensor, nn

from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.nas_bench_201 import (
    DiscreteCell,
    DiscreteNetwork,
    Genotype,
    NasBench201,
    build_network,
)
from vpdarts_fast.spaces.space import Space

Close = Callable[[Tensor, Tensor], None]


PAPER = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


@pytest.mark.parametrize(
    ("op", "parameters"),
    # per edge and cell of width C: 9 C C (or C C) weights and 2 C of the batch norm
    [("none", 73_306), ("skip_connect", 73_306), ("avg_pool_3x3", 73_306)]
    + [(f"nor_conv_{k}x{k}", 73_306 + 30 * sum(k * k * c * c + 2 * c for c in (16, 32, 64))) for k in (1, 3)],
)
def test_parameter_counts_are_those_of_the_benchmark(op: str, parameters: int) -> None:
    network = build_network(Genotype((op,) * 6))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_a_network_takes_string_index_or_genotype() -> None:
    genotype = Genotype.from_string(PAPER)
    for architecture in (PAPER, genotype.index, genotype):
        network = build_network(architecture, 2, 1, 7)
        assert network.genotype == genotype
        assert str(network.genotype) == PAPER
        assert network(torch.randn(2, 3, 9, 8)).shape == (2, 7)
    with pytest.raises(UserError, match="architecture index must be in"):
        build_network(-1)
    with pytest.raises(UserError, match="is not of the form"):
        build_network("nor_conv_3x3")


def test_a_discrete_cell_is_the_supernets_cell_with_one_hot_alpha(assert_close: Close) -> None:
    genotype = Genotype.from_choices((3, 1, 2, 4, 0, 3))
    search = make_supernet(4).search_cells()[0].eval()
    cell = DiscreteCell(genotype, 4).double().eval()
    for layer, edge, choice in zip(cell.layers, search.mixed_ops(), genotype.choices, strict=True):
        layer.load_state_dict(edge[choice].state_dict(), strict=False)  # affine: one and zero
    alpha = F.one_hot(torch.tensor(genotype.choices), 5).double()
    x = make_input(5, 7)[0].repeat(1, 2, 1, 1)[:, :4]
    assert_close(cell(x), search(x, alpha))


def test_names_of_a_network_are_the_public_ones() -> None:
    names = set(build_network(PAPER, 4, 1).state_dict())
    assert "cells.0.layers.5.op.1.weight" in names
    assert "cells.0.layers.5.op.2.bias" in names
    assert not [name for name in names if name.startswith("cells.0.layers.3.")], "skip has no parameters"
    assert "cells.1.downsample.1.weight" in names


@pytest.mark.parametrize("choices", [(3, 1, 2, 4, 0, 3), (3, 3, 3, 3, 3, 3), (2, 3, 2, 2, 4, 1)])
def test_a_fused_network_trains_as_its_modules_do(choices: tuple[int, ...]) -> None:
    """Both are held against the modules in float64, by a bound that rounding in float32 keeps anywhere."""
    genotype = Genotype.from_choices(choices)
    torch.manual_seed(0)
    truth = DiscreteNetwork(genotype, 4, 1, 5).double()
    images, labels = torch.randn(12, 3, 12, 12), torch.arange(12) % 5
    fused, plain = (DiscreteNetwork(genotype, 4, 1, 5, fused=flag) for flag in (True, False))
    for network in (fused, plain):
        network.load_state_dict(truth.state_dict())
    F.cross_entropy(truth(images.double()), labels).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in truth.parameters()])
    for network in (fused, plain):
        F.cross_entropy(network(images), labels).backward()
        found = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        assert (found - expected).norm() < 1e-3 * expected.norm()
        for name, buffer in truth.named_buffers():
            torch.testing.assert_close(
                network.get_buffer(name).double(), buffer.double(), atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("choices", [(3, 1, 2, 4, 0, 3), (2, 3, 2, 2, 4, 1), (1, 0, 4, 0, 0, 1)])
def test_a_fused_network_evaluates_as_its_modules_do(choices: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    truth = DiscreteNetwork(Genotype.from_choices(choices), 4, 1, 5).double()
    images = torch.randn(6, 3, 12, 12)
    with torch.no_grad():
        for norm in truth.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.normal_()  # of either sign
                norm.bias.normal_()
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.1, 2)
        fused = DiscreteNetwork(truth.genotype, 4, 1, 5, fused=True).eval()
        fused.load_state_dict(truth.state_dict())
        expected = truth.eval()(images.double())
        found = fused(images)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    (gradient,) = torch.autograd.grad(fused(images.requires_grad_()).sum(), images)
    assert gradient.isfinite().all()


def test_a_space_without_networks_of_other_sizes_says_so() -> None:
    class Single(NasBench201):
        trained_network = Space.trained_network

    genotype = Genotype.from_string(PAPER)
    assert isinstance(Single().trained_network(genotype, 3), DiscreteNetwork)
    with pytest.raises(UserError, match="leave --channels out"):
        Single().trained_network(genotype, 3, channels=4)
