"""What an alpha step minimises besides the loss on validation images: one class for each term."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from vpdarts_fast.errors import UserError
from vpdarts_fast.parts import Part
from vpdarts_fast.search.methods.moment import Moment, Ramp


class Regulariser(Part, kind="regulariser"):
    """A term that is added to the loss of alpha steps; Adam's weight decay is a setting of the optimisers."""

    @abstractmethod
    def term(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor | None:
        """Computes the term [] of alpha [E, O] at that moment of the search; None for nothing to add."""

    def new_state(self, shape: tuple[int, int]) -> dict[str, Tensor]:
        """Makes what the regulariser keeps (`Moment.state`), as it begins, on the CPU."""
        return {}


@dataclass(frozen=True)
class NoRegulariser(Regulariser):
    """Nothing is added (VP-DARTS, DARTS)."""

    name: ClassVar[str] = "none"

    @override
    def term(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor | None:
        return None


@dataclass(frozen=True)
class ZeroOne(Regulariser):
    """Pushes the sigmoid of each alpha away from 1/2, towards 0 or 1 (FairDARTS, Eq. 4)."""

    name: ClassVar[str] = "zero-one"

    zero_one: float = 10.0
    """Factor of the mean squared distance from 1/2, which is subtracted from the loss."""

    @override
    def term(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor | None:
        distances = (torch.sigmoid(alpha) - 0.5).square() * alive
        return -self.zero_one * distances.sum() / alive.sum()


@dataclass(frozen=True)
class BetaDecay(Regulariser):
    """The mean over the edges of alpha's logsumexp, by a factor that grows linearly (beta-DARTS, Eq. 11)."""

    name: ClassVar[str] = "beta-decay"

    beta: float = 0.0
    """Factor of beta decay in the first epoch."""
    beta_end: float = 50.0
    """Factor of beta decay in the last epoch."""

    def __post_init__(self) -> None:
        if not (0 <= self.beta < torch.inf and 0 <= self.beta_end < torch.inf):
            raise UserError(f"--beta and --beta-end must be at least 0; got {self.beta} and {self.beta_end}")

    @override
    def term(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor | None:
        live = alpha.masked_fill(~alive, -torch.inf)
        return Ramp(self.beta, self.beta_end).at(moment) * live.logsumexp(1).mean()
