"""What the tests of `accelerate` share: a module before and after it, and how both are trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from closeness import Results, Training, assert_close_to_truth, assert_trains_alike
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


def images(dtype: torch.dtype, channels: int = CHANNELS, size: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(3, channels, size, size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Mixture(nn.Module):
    """A mixed operation or a cell, called with weights made of alphas that are a parameter here."""

    def __init__(
        self, module: nn.Module, alpha: Tensor, weights: Callable[[Tensor], Any], call: str = "__call__"
    ) -> None:
        super().__init__()
        self.module, self.weights, self.call = module, weights, call
        self.alpha = nn.Parameter(alpha.clone())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = getattr(self.module, self.call)(x, self.weights(self.alpha))
        return out


def step(module: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor) -> Results:
    """Of a sum of the output's elements, each weighted in its own way."""
    optimiser.zero_grad()
    x = x.clone().requires_grad_()
    out = module(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    optimiser.step()
    assert x.grad is not None and out.dtype == x.dtype
    return {"out": out, "x": x.grad}


def assert_trains_the_same(
    plain: nn.Module,
    fused: nn.Module,
    alpha: Tensor,
    weights: Callable[[Tensor], Any],
    call: str = "__call__",
) -> None:
    """A few steps; outputs, gradients of the input, of the alphas and of all parameters, and the state."""
    trainings = [Training(Mixture(module, alpha, weights, call), step) for module in (plain, fused)]
    assert_trains_alike(*trainings, lambda seed: images(alpha.dtype, seed=seed))


def assert_same_output(fused: Any, plain: Any, *args: Any, call: str = "__call__") -> None:
    """That of a call, held against the plain module's in float64."""
    out = getattr(fused, call)(*args)
    truth = copy.deepcopy(plain).double()
    wanted = getattr(truth, call)(*(arg.double() if isinstance(arg, Tensor) else arg for arg in args))
    assert_close_to_truth({"out": out}, {"out": wanted})


def softmax(alpha: Tensor) -> Tensor:
    return F.softmax(alpha, dim=-1)


def is_weight(name: str) -> bool:
    return "alpha" not in name


def alphas_of(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if not is_weight(name)]


def supernet_images(dtype: torch.dtype, seed: int) -> Tensor:
    """Three batches of three."""
    return torch.randn(9, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def unrolled_step(model: Any, optimiser: torch.optim.Optimizer, images: Tensor) -> Results:
    """A second-order step of DARTS: the alphas through a weights step of a copy, then the weights."""

    def backward(model: nn.Module, batch: Tensor) -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(batch)[1], torch.arange(len(batch)) % 4)
        loss.backward()
        return loss

    batches = images.chunk(3)
    unrolled = copy.deepcopy(model)
    backward(unrolled, batches[0])
    with torch.no_grad():
        for name, parameter in unrolled.named_parameters():
            if is_weight(name):
                parameter.sub_(parameter.grad, alpha=0.05)
    losses = [backward(unrolled, batches[1])]
    for own, alpha in zip(alphas_of(model), alphas_of(unrolled), strict=True):
        own.data.sub_(alpha.grad, alpha=0.1)
    found = {f"unrolled gradient {i}": alpha.grad for i, alpha in enumerate(alphas_of(unrolled))}
    losses.append(backward(model, batches[2]))
    optimiser.step()
    return found | {"losses": torch.stack(losses)}
