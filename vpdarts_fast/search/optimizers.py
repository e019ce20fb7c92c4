"""The optimisers of weights and alpha, also for steps that are captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vpdarts_fast.search.config import SearchConfig


class CapturableSGD(torch.optim.SGD):
    """SGD that finds the learning rate in device memory, so that a captured step follows the schedule.

    Schedules and checkpoints see a number, as without it; `publish` copies that to the device.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, **settings: Any) -> None:
        super().__init__(params, lr, fused=True, **settings)
        device = self.param_groups[0]["params"][0].device
        self._rate = torch.full((), lr, dtype=torch.float32, device=device)

    def publish(self) -> None:
        """From now on steps take the learning rate that `param_groups` has, also those already captured."""
        self._rate.fill_(self.param_groups[0]["lr"])

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        (group,) = self.param_groups
        number, group["lr"] = group["lr"], self._rate
        try:
            loss: float | None = super().step(closure)
            return loss
        finally:
            group["lr"] = number


def weights_optimizer(
    parameters: Iterable[nn.Parameter], config: SearchConfig, captured: bool
) -> torch.optim.SGD:
    make = CapturableSGD if captured else torch.optim.SGD
    return make(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )


def alpha_optimizer(alpha: Tensor, config: SearchConfig, captured: bool) -> torch.optim.Adam:
    return torch.optim.Adam(
        [alpha],
        lr=config.alpha_learning_rate,
        betas=config.alpha_betas,
        weight_decay=config.alpha_weight_decay,
        fused=True if captured else None,
        capturable=captured and alpha.is_cuda,
    )


def adapted(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A saved state dict for this optimiser: how a step is computed is a matter of the device it is on."""
    own = {
        name: optimizer.defaults[name]
        for name in ("foreach", "fused", "capturable")
        if name in optimizer.defaults
    }
    return {**saved, "param_groups": [{**group, **own} for group in saved["param_groups"]]}
