"""The optimisers of weights and alpha, also for steps that are captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vpdarts_fast.runs.formats import shown
from vpdarts_fast.runs.values import number, tensor_like, whole
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
        """Takes a step of SGD with the learning rate that was published last.

        Args:
            closure: computes the loss anew, as PyTorch's SGD takes it.

        Returns:
            What the closure returned, or None without one.
        """
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
    """Makes the optimiser of a network's weights: SGD, with momentum and decay as the settings say.

    Args:
        parameters: the weights.
        config: the settings.
        captured: whether its steps are recorded as CUDA graphs; it is then a `CapturableSGD`.
    """
    make = CapturableSGD if captured else torch.optim.SGD
    return make(
        parameters,
        lr=config.optimisers.learning_rate,
        momentum=config.optimisers.momentum,
        weight_decay=config.optimisers.weight_decay,
        nesterov=config.optimisers.nesterov and config.optimisers.momentum > 0,
    )


PAPER_ALPHA_STEPS = 30 * 391
"""Of alpha in the paper's search: pruning epochs, and batches of 64 in 25,000 images."""


def alpha_rate(config: SearchConfig, steps: int) -> float:
    """Alpha's learning rate in a search whose epochs have so many training steps.

    A step of Adam moves an alpha by about the rate, whatever the gradient: scaled, rate times steps, how far
    it can get from where it starts, is that of a search with `PAPER_ALPHA_STEPS`.
    """
    count = steps // config.method.alpha_every * config.alpha_epochs
    factor = PAPER_ALPHA_STEPS / count if config.optimisers.alpha_rate_scaling and count else 1.0
    return config.optimisers.alpha_learning_rate * factor


def alpha_optimizer(
    alpha: Tensor, config: SearchConfig, captured: bool, tables: Iterable[Tensor] = ()
) -> torch.optim.Adam:
    """Makes the optimiser of alpha [E, O]: Adam, with betas and decay as the settings say.

    Args:
        alpha: [E, O], a leaf that requires a gradient.
        config: the settings; their `alpha_learning_rate` is taken as it is, see `alpha_rate`.
        captured: whether its steps are recorded as CUDA graphs.
        tables: what is trained beside alpha, leaves that require gradients.
    """
    return torch.optim.Adam(
        [alpha, *tables],
        lr=config.optimisers.alpha_learning_rate,
        betas=config.optimisers.alpha_betas,
        weight_decay=config.optimisers.alpha_weight_decay,
        fused=True if captured else None,
        capturable=captured and alpha.is_cuda,
    )


def adapted(saved: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Turns a saved state dict into one for this optimiser, whose settings and way of computing stay.

    Taken from `saved` are the learning rate, which a schedule has moved, and what the optimiser keeps of each
    parameter.

    Raises:
        ValueError, KeyError, TypeError: it is of another optimiser or not of these parameters.
    """
    names = (
        {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    )
    (group,), (own_group,) = saved["param_groups"], optimizer.state_dict()["param_groups"]
    parameters = optimizer.param_groups[0]["params"]
    state = {}
    for position, entries in saved["state"].items():
        parameter = parameters[whole(position, "a parameter's number", 0, len(parameters) - 1)]
        if set(entries) != names:
            raise ValueError(
                f"a {type(optimizer).__name__} keeps {', '.join(sorted(names))}; got {shown(set(entries))}"
            )
        state[position] = {name: _kept(entry, name, parameter) for name, entry in entries.items()}
    return {"state": state, "param_groups": [{**own_group, "lr": number(group["lr"], "learning rate", 0)}]}


def _kept(value: Any, name: str, parameter: Tensor) -> Tensor | None:
    """What an optimiser keeps of a parameter under this name."""
    if name == "momentum_buffer" and value is None:  # without momentum
        return None
    if name != "step":
        return tensor_like(value, parameter, name)
    # Adam counts in either, by PyTorch's default dtype and by whether it is captured.
    double = isinstance(value, Tensor) and value.dtype == torch.float64
    step = tensor_like(value, torch.zeros((), dtype=torch.float64 if double else torch.float32), name)
    number(step.item(), name, 0)
    return step
