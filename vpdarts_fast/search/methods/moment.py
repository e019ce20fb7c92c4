"""When a part is asked: the epoch, as a tensor, and what the part keeps from one call to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor


@dataclass
class Moment:
    """Where a search is, for one of its parts.

    Attributes:
        epoch: [] float64 on the supernet's device, the epoch in progress, from 0; once all are over, their
            number. What is computed of it follows the search also inside of a step that is captured as a CUDA
            graph.
        epochs: how many the search has.
        state: what the part keeps, by names of its own (`new_state` of its kind); changed in place, saved in
            checkpoints.
    """

    epoch: Tensor
    epochs: int
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def share(self) -> Tensor:
        """How far the search is, [] float64: 0 in the first epoch, 1 in the last and after it."""
        return (self.epoch / max(self.epochs - 1, 1)).clamp(max=1)

    @property
    def left(self) -> Tensor:
        """How much of the search is left, [] float64: 1 in the first epoch, 0 once all epochs are over."""
        return 1 - self.epoch / self.epochs


@dataclass(frozen=True)
class Ramp:
    """A number that goes from one value to another over the epochs of a search.

    Attributes:
        start: in the first epoch.
        end: in the last epoch.
        shape: `linear`, or `cosine`, which is slow at both ends.
    """

    start: float
    end: float
    shape: Literal["linear", "cosine"] = "linear"

    def at(self, moment: Moment) -> Tensor:
        """Its value in the epoch of that moment, [] float64."""
        share = moment.share
        if self.shape == "cosine":
            share = (1 - torch.cos(torch.pi * share)) / 2
        return self.start + (self.end - self.start) * share
