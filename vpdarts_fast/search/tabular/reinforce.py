"""REINFORCE (Williams, 1992) with one categorical policy an edge, as the NAS-Bench-201 paper runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from vpdarts_fast.errors import UserError
from vpdarts_fast.search.tabular.learner import Cell, Learner, TabularMethod
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, OPS


class _Reinforce(Learner):
    def __init__(self, settings: Reinforce, generator: np.random.Generator) -> None:
        self._momentum, self._generator = settings.baseline_momentum, generator
        start = settings.start_deviation * generator.standard_normal((len(EDGES), len(OPS)))
        self._logits = torch.from_numpy(start)
        self._logits.grad = torch.zeros_like(self._logits)
        self._optimizer = torch.optim.Adam([self._logits], lr=settings.learning_rate, foreach=False)
        self._weighted = self._weights = 0.0

    def _probabilities(self) -> np.ndarray:
        shifted = np.exp(self._logits.numpy() - self._logits.numpy().max(1, keepdims=True))
        probabilities: np.ndarray = shifted / shifted.sum(1, keepdims=True)
        return probabilities

    def ask(self) -> Cell:
        """Inverts each edge's distribution function at a uniform number."""
        below = self._probabilities().cumsum(1)[:, :-1] <= self._generator.random(len(EDGES))[:, None]
        return tuple(below.sum(1).tolist())

    def tell(self, cell: Cell, accuracy: float) -> None:
        """Takes an Adam step down the gradient of -sum_e log p_e(op_e) * (reward - baseline)."""
        self._weighted = self._momentum * self._weighted + (1 - self._momentum) * accuracy
        self._weights = self._momentum * self._weights + (1 - self._momentum)
        advantage = accuracy - self._weighted / self._weights
        gradient = self._probabilities() * advantage
        gradient[range(len(EDGES)), cell] -= advantage
        assert self._logits.grad is not None
        self._logits.grad.copy_(torch.from_numpy(gradient))
        self._optimizer.step()


@dataclass(frozen=True)
class Reinforce(TabularMethod):
    """Draws each edge's op of a policy of its own, and makes what was better than usual more likely.

    The reward is the accuracy in per cent; the baseline is its average so far, exponentially weighted,
    corrected for its start and updated before the advantage is formed: the first cell teaches nothing.

    Raises:
        UserError: a learning rate that is not positive, or a momentum outside of 0..1.
    """

    name: ClassVar[str] = "reinforce"
    learning_rate: float = 0.1
    """Of Adam, which takes a step after every evaluation."""
    baseline_momentum: float = 0.9
    """Of the baseline: the weight of what was before."""
    start_deviation: float = 1e-3
    """Standard deviation of the normal noise that the logits start as."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate of REINFORCE must be positive; got {self.learning_rate}")
        if not 0 <= self.baseline_momentum < 1:
            raise UserError(f"baseline_momentum must be in 0..1, 1 excluded; got {self.baseline_momentum}")

    def learner(self, generator: np.random.Generator) -> Learner:
        """Begins a run, all draws of which come from the generator."""
        return _Reinforce(self, generator)
