"""The device and dtype of a model decide, whatever the process has for defaults; and all changes or none."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from acceleration_cases import CHANNELS, images, softmax
from op_contract import flat, normal
from supernets import (
    AuxiliaryMixedOp,
    Cell,
    MixedOp,
    PartialMixedOp,
    Residual,
    SkippingMixedOp,
    Style,
    darts_ops,
)
from torch import Tensor, nn
from whole_supernets import DartsSupernet, EdgesSupernet

from vpdarts_fast import leave_one_out, ops
from vpdarts_fast.acceleration import accelerate, restore
from vpdarts_fast.acceleration.fused import Fused
from vpdarts_fast.spaces.nas_bench_201 import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS: dict[str, Callable[[], Any]] = {
    "meta": lambda: default_device("meta"),
    "meta, entered": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
}
every_default = pytest.mark.parametrize("default", DEFAULTS)


class Half(nn.Module):
    """A number, and one that half precision does not have."""

    def forward(self, x: Tensor) -> float:
        return 0.1234567


def mixed_ops() -> nn.Module:
    torch.manual_seed(0)
    modules: list[nn.Module] = [
        MixedOp([*darts_ops(CHANNELS, 1, Style(affine=True, bias=True)), Half()]),
        SkippingMixedOp(darts_ops(CHANNELS, 1, Style())),
        PartialMixedOp(darts_ops(CHANNELS // 4, 1, Style()), 4),
        AuxiliaryMixedOp(darts_ops(CHANNELS, 1, Style()), nn.Conv2d(CHANNELS, CHANNELS, 1)),
        Cell(CHANNELS, Style(bias=True)),
        Residual(CHANNELS),
    ]
    return nn.ModuleList(modules)


@every_default
def test_accelerate_and_train(default: str) -> None:
    """With settings that change on the way, so that it is recognised anew."""
    found = []
    for context in (DEFAULTS[default], lambda: default_dtype(torch.float32)):
        model, x = mixed_ops(), images(torch.float32).requires_grad_()
        alphas = [softmax(normal(count, dtype=torch.float32)) for count in (9, 8, 8, 8)]
        table = softmax(normal(6, 5, dtype=torch.float32))
        with context():
            report = accelerate(model)
            assert len(report.fused) == len(model) and not report.left, str(report)
            for part in model.modules():
                part.note = "changed"  # type: ignore[assignment]
            value = x
            for module, alpha in zip(model, [*alphas, table], strict=False):
                value = module(value, alpha)
            value = model[-1](value)
            value.square().mean().backward()
            restore(model)
        parameters = (parameter.grad for parameter in model.parameters())
        found.append(flat([value.detach(), x.grad, *parameters, *model.buffers()]))
    for value, expected in zip(*found, strict=True):
        assert value.dtype == expected.dtype and value.device == expected.device
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@every_default
@pytest.mark.parametrize("kind", [DartsSupernet, EdgesSupernet])
def test_leave_one_out_of_accelerated_models(default: str, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind()
    batch = normal(6, 3, 8, 8, dtype=torch.float32), torch.arange(6) % 4
    found = []
    for context in (DEFAULTS[default], lambda: default_dtype(torch.float32)):
        with context():
            accelerate(model)
            found.append(leave_one_out(model, [batch], batch_norm="batch").cells)
    for name, expected in found[1].items():
        assert found[0][name].loss.device.type == "cpu" and found[0][name].loss.dtype == torch.float64
        torch.testing.assert_close(found[0][name].loss, expected.loss, rtol=1e-5, atol=1e-6)


@every_default
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("batch_norm", ["running", "recalibrated", "batch"])
def test_leave_one_out_of_a_supernet(default: str, fused: bool, batch_norm: Any) -> None:
    torch.manual_seed(0)
    supernet = Supernet(4, 1, 4, fused=True)
    batch, alpha = (normal(6, 3, 8, 8, dtype=torch.float32), torch.arange(6) % 4), supernet.new_alpha()
    found = []
    for context in (DEFAULTS[default], lambda: default_dtype(torch.float32)):
        with context():
            found.append(leave_one_out(supernet, [batch], alpha, batched=fused, batch_norm=batch_norm))
    torch.testing.assert_close(found[0].loss, found[1].loss, rtol=1e-5, atol=1e-6)


@every_default
@pytest.mark.parametrize("backend", ["auto", "pytorch", "reference"])
def test_ops(default: str, backend: str) -> None:
    """Those with the most values of their own making: seeds of dropout, statistics, alphas that differ."""
    x, weights = normal(1, 2, 4, 5, 5), (normal(3, 4, 4, 1, 1), normal(3, 4, 4, 3, 3))
    alpha, statistics = normal(3, 3, 5), normal(3, 2, 4).square()
    single = [tensor.float() for tensor in (x, *weights, alpha)]
    seeds = torch.arange(3)
    found = []
    for context in (DEFAULTS[default], lambda: default_dtype(torch.float32)):
        with context():
            trained = ops.mixed_cell(*single, seeds, 0.25, backend=backend)
            fixed = ops.masked_cell(
                *single[:3], statistics.float(), statistics.float(), single[3], backend=backend
            )
            found.append([*trained, fixed])
    for value, expected in zip(*found, strict=True):
        assert value.dtype == expected.dtype and value.device == expected.device
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@every_default
def test_a_supernet_trains(default: str) -> None:
    torch.manual_seed(0)
    supernet = Supernet(4, 1, 4, skip_dropout=0.0, fused=True)
    x, found = normal(6, 3, 8, 8, dtype=torch.float32), []
    for context in (DEFAULTS[default], lambda: default_dtype(torch.float32)):
        with context():
            alpha = supernet.new_alpha().requires_grad_()
            logits = supernet(x, alpha)
            found.append([logits.detach(), *torch.autograd.grad(logits.logsumexp(1).sum(), alpha)])
    for value, expected in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


class Interrupting(MixedOp):
    """It cannot be recognised, as somebody presses Ctrl-C."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        raise KeyboardInterrupt


class Sealed(MixedOp):
    """Its class cannot be changed."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__" and value is not Sealed:
            raise KeyboardInterrupt
        super().__setattr__(name, value)


def snapshot(model: nn.Module) -> list[Any]:
    return [(type(module), set(module.__dict__)) for module in model.modules()]


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("kind", [Interrupting, Sealed])
def test_accelerate_changes_all_or_nothing(kind: type[MixedOp], accelerated: bool) -> None:
    """Also where it was accelerated before."""
    model = mixed_ops()
    assert isinstance(model, nn.ModuleList)
    if accelerated:
        accelerate(model)
    model.append(kind(darts_ops(CHANNELS, 1, Style())))
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        accelerate(model)
    assert snapshot(model) == before
    model.pop(-1)
    assert any(isinstance(module, Fused) for module in model) is accelerated
    expected, fresh = copy.deepcopy(model), mixed_ops()
    assert str(accelerate(expected)) == str(accelerate(fresh))
