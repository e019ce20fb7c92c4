"""What the tests that `accelerate` never computes anything else share."""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from acceleration_cases import CHANNELS, images
from supernets import (
    MixedOp,
    Style,
    weighted,
)
from torch import Tensor, nn

from vpdarts_fast.acceleration import AccelerationReport, accelerate
from vpdarts_fast.acceleration.copies import differing_state


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def outcome(module: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Values and gradients in training mode, then values in evaluation mode."""
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    module.zero_grad()
    torch.manual_seed(1)
    out = module.train()(x, weights)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    found = {"out": out, "x": x.grad, "weights": weights.grad}
    found |= {name: parameter.grad for name, parameter in module.named_parameters()}
    with torch.no_grad():
        found["evaluated"] = module.eval()(x, weights)
    return {name: value.detach() for name, value in found.items() if value is not None}


def assert_faithful(
    plain: nn.Module, shape: tuple[int, ...] = (8,), channels: int = CHANNELS
) -> AccelerationReport:
    """Accelerated, the module computes and keeps what it did; returns the report."""
    fused = copy.deepcopy(randomised(plain))
    before = copy.deepcopy(fused)
    report = accelerate(fused, backend="pytorch")
    assert differing_state(before, fused) is None
    assert_same_outcome(fused, plain, shape, channels)
    return report


def assert_same_outcome(
    fused: nn.Module, plain: nn.Module, shape: tuple[int, ...] = (8,), channels: int = CHANNELS
) -> None:
    x, weights = images(torch.float64, channels), torch.rand(shape, dtype=torch.float64)
    for _ in range(2):
        found, expected = outcome(fused, x, weights), outcome(plain, x, weights)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)
        assert differing_state(plain, fused) is None


def assert_values(fused: nn.Module, plain: nn.Module, shape: tuple[int, ...]) -> None:
    x, weights = images(torch.float64), torch.rand(shape, dtype=torch.float64)
    found, expected = outcome(fused, x, weights), outcome(plain, x, weights)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


def conv(channels: int, kernel: int, padding: int, stride: int = 1, dilation: int = 1) -> nn.Module:
    layer = nn.Conv2d(CHANNELS, channels, kernel, stride, padding, dilation)
    return nn.Sequential(nn.ReLU(), layer, nn.BatchNorm2d(channels))


class Scaling(MixedOp):
    """Each operation counts as much as its `factor` says."""

    def factor(self, op: nn.Module) -> float:
        raise NotImplementedError

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        factors = [self.factor(op) for op in self._ops]
        return weighted([w * f for w, f in zip(weights, factors, strict=True)], self._ops, x)


class ByInstance(Scaling):
    def factor(self, op: nn.Module) -> float:
        return 0.1 if isinstance(op, nn.Identity) else 1.0


class Straight(MixedOp):
    """Gradients of the weights pass as if these were others."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        return super().forward(x, weights.detach() + 2 * (weights - weights.detach()))


class Switched(ByInstance):
    """It looks at its operations once it is told to."""

    def __init__(self, ops: list[nn.Module]) -> None:
        super().__init__(ops)
        self.config, self.scales = argparse.Namespace(looks=False), {"identity": [1.0]}

    def factor(self, op: nn.Module) -> float:
        scale = super().factor(op) if self.config.looks else 1.0
        return scale * (self.scales["identity"][0] if isinstance(op, nn.Identity) else 1.0)


class CountingOp(nn.Module):
    """A separable convolution of the space."""

    def __init__(self) -> None:
        super().__init__()
        self.op = Style().separable(CHANNELS, 3, 1, 1, 1)
        self.calls, self.shapes = 0, []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.shapes.append(1)
        out: Tensor = self.op(x)
        return out
