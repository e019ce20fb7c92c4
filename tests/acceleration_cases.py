"""What the tests of `accelerate` share: a module before and after it, and how both are trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast.acceleration import accelerate

CHANNELS = 8
DTYPES = [torch.float64, torch.float32]


def both(module: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The module as it is, and accelerated; by the native kernels where they have the dtype."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    plain = module.to(dtype)
    fused = copy.deepcopy(plain)
    report = accelerate(fused, backend="pytorch" if dtype == torch.float64 else "auto")
    assert report.fused and not report.left, str(report)
    return plain, fused


def images(dtype: torch.dtype, channels: int = CHANNELS, size: int = 6) -> Tensor:
    return torch.randn(3, channels, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def train(
    module: nn.Module, x: Tensor, alpha: Tensor, weights: Callable[[Tensor], Any], call: str = "__call__"
) -> dict[str, Tensor]:
    """Five steps of an optimiser; the last outputs and gradients, and what is kept."""
    x, alpha = x.clone().requires_grad_(), alpha.clone().requires_grad_()
    optimiser = torch.optim.SGD([*module.parameters(), alpha], lr=0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(5):
        optimiser.zero_grad()
        x.grad = None
        out = getattr(module, call)(x, weights(alpha))
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        optimiser.step()
    found = {"out": out.detach(), "x": x.grad, "alpha": alpha.grad}
    found |= {f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()}
    found |= {name: value for name, value in module.state_dict().items()}
    return {name: value for name, value in found.items() if value is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = 1e-9 if value.dtype == torch.float64 else 2e-3
        scale = max(1.0, float(value.detach().abs().max())) if value.numel() else 1.0
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        error = float((found[name].detach().double() - value.detach().double()).abs().max()) / scale
        assert error < tolerance, f"{name}: {error}"


def softmax(alpha: Tensor) -> Tensor:
    return F.softmax(alpha, dim=-1)
