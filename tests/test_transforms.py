"""Fused supernets in every transform of PyTorch: float32, by whatever runs, against the plain modules in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_contract import flat, normal
from supernets import Cell, MixedOp, Residual, Style, darts_ops
from torch import Tensor, nn
from transforms import BACKWARD, BATCHES, FORWARD, FUNC, MODES, TRACES, Transform, direction

from vpdarts_fast import ops
from vpdarts_fast.acceleration import accelerate
from vpdarts_fast.branches import Norm, Pool, SepConv, Skip, Stage
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.nas_bench_201 import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")


class Scaled(nn.Module):
    """A residual block whose output alpha multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual(4)

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        out: Tensor = self.block(x) * alpha.sum()
        return out


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "supernet": (lambda: Supernet(3, 1, 3, skip_dropout=0.0), (6, 5), 3),
    "mixed op": (lambda: MixedOp(darts_ops(4, 2, Style(affine=True))), (8,), 4),
    "cell": (lambda: Cell(4, Style()), (6, 5), 4),
    "cell, affine": (lambda: Cell(4, Style(affine=True, bias=True)), (6, 5), 4),
    "residual block": (Scaled, (2,), 4),
}
"""How a module is made, the shape of its alpha, and its channels."""

every_family = pytest.mark.parametrize("family", FAMILIES)


def plain_and_fused(family: str, statistics: bool) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """The module in float64 and its fused form in float32, with or without running statistics; x and alpha."""
    make, shape, channels = FAMILIES[family]
    torch.manual_seed(0)
    plain = make()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.5)
    if not statistics:
        torch.func.replace_all_batch_norm_modules_(plain)
    fused = copy.deepcopy(plain)
    if isinstance(fused, Supernet):
        for cell in fused.cells:
            cell.fused = True
    else:
        report = accelerate(fused)
        assert report.fused and not report.left
    return plain.double(), fused, normal(3, channels, 6, 6, seed=1), normal(*shape, seed=2)


def found(transform: Transform, module: nn.Module, x: Tensor, alpha: Tensor) -> list[Tensor]:
    """What comes out, and what the module's buffers have become."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about what is slow or on its way out
        out = transform(module, x, alpha)
    return [tensor.detach().clone() for tensor in flat([out, list(module.buffers())])]


def check(transform: Transform, family: str, *, statistics: bool, training: bool = True) -> None:
    plain, fused, x, alpha = plain_and_fused(family, statistics)
    expected = found(transform, plain.train(training), x.clone(), alpha.clone())
    actual = found(transform, fused.train(training), x.float(), alpha.float())
    largest = [float(truth.abs().max()) if truth.numel() else 0.0 for truth in expected]
    assert max(largest) > 0
    for value, truth, scale in zip(actual, expected, largest, strict=True):
        assert value.shape == truth.shape
        tolerance = 1e-4 * (scale + max(largest) / 10)  # a gradient may be zero but for rounding
        torch.testing.assert_close(value.double(), truth.double(), rtol=0, atol=tolerance)


@every_family
@pytest.mark.parametrize("name", FUNC)
def test_functions_of_torch_func(name: str, family: str) -> None:
    check(FUNC[name], family, statistics=False)


@every_family
@pytest.mark.parametrize("name", FORWARD)
def test_forward_mode(name: str, family: str) -> None:
    check(FORWARD[name], family, statistics=True)


@every_family
@pytest.mark.parametrize("name", BACKWARD)
def test_backward_passes_of_any_kind(name: str, family: str) -> None:
    check(BACKWARD[name], family, statistics=True)


@every_family
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_calls(name: str, training: bool, gradients: bool, family: str) -> None:
    """With running statistics in evaluation and in ensembles; elsewhere PyTorch refuses to update them."""
    with torch.set_grad_enabled(gradients):
        check(BATCHES[name], family, statistics=not training or name == "ensemble", training=training)


@every_family
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", TRACES)
def test_traces(name: str, training: bool, family: str) -> None:
    check(TRACES[name], family, statistics=True, training=training)


@every_family
@pytest.mark.parametrize("name", MODES)
def test_modes_around_a_step(name: str, family: str) -> None:
    check(MODES[name], family, statistics=True)
