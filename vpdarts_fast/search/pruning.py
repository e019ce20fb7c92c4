"""What happens to ops that are not important: decay and pruning (paper, sections 3.2 and 5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vpdarts_fast.search.config import SearchConfig


class Decay(Protocol):
    """K of the paper's Eq. 2, alpha <- alpha * (1 - K / max_epoch)."""

    def factor(self, epoch: int, max_epoch: int) -> float: ...


class FixedDecay:
    """K = max_epoch: pruned alphas become zero."""

    def factor(self, epoch: int, max_epoch: int) -> float:
        return 0.0


class AdjustableDecay:
    """K = the index of the pruning epoch, from 0: linear decay."""

    def factor(self, epoch: int, max_epoch: int) -> float:
        return 1.0 - epoch / max_epoch


class Pruning(Protocol):
    """What happens to alpha at the beginning of a pruning epoch."""

    def due(self, epoch: int) -> bool:
        """Whether pruning epoch `epoch`, from 0, prunes by importance."""

    def apply(self, alpha: Tensor, alive: Tensor, ranking: Tensor, epoch: int) -> float | None:
        """Changes alpha [E, O] and alive [E, O] in place, by a ranking [E, O] on the same device.

        Returns the decay factor, if there is one.
        """


@dataclass(frozen=True)
class SoftPruning:
    """Decays all ops but the most important one of each edge; none is removed (paper, section 3.2)."""

    decay: Decay
    max_epoch: int

    def due(self, epoch: int) -> bool:
        return True

    def apply(self, alpha: Tensor, alive: Tensor, ranking: Tensor, epoch: int) -> float | None:
        factor = self.decay.factor(epoch, self.max_epoch)
        pruned = torch.ones_like(alive).scatter_(1, ranking[:, :1], False)
        with torch.no_grad():
            alpha[pruned] *= factor
        return factor


class HardPruning:
    """Nothing until the end, where the selection prunes once (section 5.1)."""

    def due(self, epoch: int) -> bool:
        return False

    def apply(self, alpha: Tensor, alive: Tensor, ranking: Tensor, epoch: int) -> float | None:
        return None


@dataclass(frozen=True)
class ProgressivePruning:
    """Removes ops for good in stages, sizes[s] ops an edge live in stage s (section 5.1).

    The stages are as long as each other, up to an epoch. With fewer epochs than stages the last stages
    are left out: the selection at the end goes to one op from wherever it is.
    """

    max_epoch: int
    sizes: tuple[int, ...] = (5, 3, 2)

    def due(self, epoch: int) -> bool:
        return epoch > 0 and self._stage(epoch) != self._stage(epoch - 1)

    def apply(self, alpha: Tensor, alive: Tensor, ranking: Tensor, epoch: int) -> float | None:
        alive.scatter_(1, ranking[:, self.sizes[self._stage(epoch)] :], False)
        with torch.no_grad():
            alpha[~alive] = 0
        return None

    def _stage(self, epoch: int) -> int:
        return epoch * len(self.sizes) // self.max_epoch


def make_pruning(config: SearchConfig) -> Pruning:
    decays: dict[str, Decay] = {"fixed": FixedDecay(), "adjustable": AdjustableDecay()}
    prunings: dict[str, Pruning] = {
        "soft": SoftPruning(decays[config.decay], config.pruning_epochs),
        "hard": HardPruning(),
        "progressive": ProgressivePruning(config.pruning_epochs),
    }
    return prunings[config.pruning]
