"""A moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class MovingAverage:
    """The exponential moving average of a network, parameters and batch norm's statistics alike.

    After n steps the average keeps min(decay, (1 + n) / (10 + n)) of itself, so that it forgets the first
    weights soon. What is counted in whole numbers is taken as it is.

    Args:
        network: whose entries are averaged.
        decay: the share of itself that the average keeps in a step, at last.

    Attributes:
        tensors: the average of each entry of the state dict.
        steps: how many it has seen.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        self.steps = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Moves the average towards the network as it is after a step."""
        self.steps += 1
        weight = 1 - min(self._decay, (1 + self.steps) / (10 + self.steps))
        state = network.state_dict()
        floating = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        averages, values = [self.tensors[name] for name in floating], [state[name] for name in floating]
        torch._foreach_lerp_(averages, values, weight)
        for name in self.tensors.keys() - set(floating):
            self.tensors[name].copy_(state[name])

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Goes on from an average of so many steps."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
        self.steps = steps
