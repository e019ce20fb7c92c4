"""What happens to ops that are not important: decay and pruning (paper, sections 3.2 and 5.1)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from vpdarts_fast.parts import Part


class Pruning(Part, kind="pruning"):
    """What happens to alpha at the beginning of a pruning epoch.

    Attributes:
        decays: it scales alpha, which means something only where a smaller alpha is a smaller weight.
        needs_order: it takes the order of all ops of an edge, not only the most important one.
    """

    decays: ClassVar[bool] = False
    needs_order: ClassVar[bool] = False

    @abstractmethod
    def due(self, epoch: int, epochs: int) -> bool:
        """Whether pruning epoch `epoch`, from 0, of so many prunes by importance."""

    @abstractmethod
    def apply(self, alpha: Tensor, alive: Tensor, ranking: Tensor, epoch: int, epochs: int) -> float | None:
        """Changes alpha [E, O] and alive [E, O] in place, by a ranking [E, O] on the same device.

        Returns the decay factor, if there is one.
        """


@dataclass(frozen=True)
class SoftPruning(Pruning):
    """Decays all ops but the most important one of each edge; none is removed (paper, section 3.2).

    alpha <- alpha * (1 - K / max_epoch) (Eq. 2), where max_epoch is the number of pruning epochs. K is the
    index of the pruning epoch, from 0, or, fixed, max_epoch.
    """

    name: ClassVar[str] = "soft"
    decays: ClassVar[bool] = True

    decay: Literal["adjustable", "fixed"] = "adjustable"
    """Soft pruning's K: adjustable (the pruning epoch) or fixed (pruned alphas become 0)."""

    @override
    def due(self, epoch: int, epochs: int) -> bool:
        return True

    @override
    def apply(self, alpha: Tensor, alive: Tensor, ranking: Tensor, epoch: int, epochs: int) -> float | None:
        factor = self.factor(epoch, epochs)
        pruned = torch.ones_like(alive).scatter_(1, ranking[:, :1], False)
        with torch.no_grad():
            alpha[pruned] *= factor
        return factor

    def factor(self, epoch: int, epochs: int) -> float:
        """The decay factor 1 - K / max_epoch of pruning epoch `epoch`, from 0."""
        return 0.0 if self.decay == "fixed" else 1.0 - epoch / epochs


@dataclass(frozen=True)
class HardPruning(Pruning):
    """Nothing until the end, where the selection prunes once (section 5.1)."""

    name: ClassVar[str] = "hard"

    @override
    def due(self, epoch: int, epochs: int) -> bool:
        return False

    @override
    def apply(self, alpha: Tensor, alive: Tensor, ranking: Tensor, epoch: int, epochs: int) -> float | None:
        return None


@dataclass(frozen=True)
class ProgressivePruning(Pruning):
    """Removes ops for good in stages, SIZES[s] ops an edge live in stage s (section 5.1).

    The stages are as long as each other, up to an epoch. With fewer epochs than stages the last stages
    are left out: the selection at the end goes to one op from wherever it is.
    """

    name: ClassVar[str] = "progressive"
    needs_order: ClassVar[bool] = True
    SIZES: ClassVar[tuple[int, ...]] = (5, 3, 2)

    @override
    def due(self, epoch: int, epochs: int) -> bool:
        return epoch > 0 and self._stage(epoch, epochs) != self._stage(epoch - 1, epochs)

    @override
    def apply(self, alpha: Tensor, alive: Tensor, ranking: Tensor, epoch: int, epochs: int) -> float | None:
        alive.scatter_(1, ranking[:, self.SIZES[self._stage(epoch, epochs)] :], False)
        with torch.no_grad():
            alpha[~alive] = 0
        return None

    def _stage(self, epoch: int, epochs: int) -> int:
        return epoch * len(self.SIZES) // epochs
