"""What alpha becomes before it multiplies the operations: one class for each relaxation.

In all of them alpha and the weights of the ops are tables [E, O], and an op that is not alive has weight 0.
Random numbers come from PyTorch's generator of alpha's device, which the search seeds for every step.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from vpdarts_fast.errors import UserError
from vpdarts_fast.parts import Part
from vpdarts_fast.search.methods.moment import Moment, Ramp


class Relaxation(Part, kind="relaxation"):
    """What alpha becomes before it multiplies the operations.

    Attributes:
        zero_removes: whether an op with alpha 0 has weight 0, so that decaying alpha removes it.
        draws: whether the weights are random.
    """

    zero_removes: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    @property
    def one_hot(self) -> bool:
        """Whether one op of each edge has weight 1 and all others have 0."""
        return False

    @abstractmethod
    def weights(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor:
        """Makes the weights of the ops [E, O] of alpha [E, O]; the gradient goes to alpha.

        Args:
            alpha: [E, O].
            alive: [E, O] bool; the other ops have weight 0.
            moment: of the search.
        """

    def strength(self, alpha: Tensor, alive: Tensor) -> Tensor:
        """Says how strong ops are, [E, O], where alpha alone decides; no random numbers are drawn."""
        return masked_softmax(alpha, alive)

    def new_state(self, shape: tuple[int, int]) -> dict[str, Tensor]:
        """Makes what the relaxation keeps (`Moment.state`), as it begins, on the CPU."""
        return {}


def masked_softmax(logits: Tensor, alive: Tensor) -> Tensor:
    """Takes the softmax of logits [E, O] over the live ops of each edge; it is 0 elsewhere."""
    return F.softmax(logits.masked_fill(~alive, -torch.inf), dim=1)


@dataclass(frozen=True)
class Raw(Relaxation):
    """Alpha itself is the weight, with any sign and sum (VP-DARTS, Eq. 3)."""

    name: ClassVar[str] = "raw"
    zero_removes: ClassVar[bool] = True

    @override
    def weights(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor:
        return alpha  # 0 where an op is not alive: the alpha step keeps it so

    @override
    def strength(self, alpha: Tensor, alive: Tensor) -> Tensor:
        return alpha.abs()


@dataclass(frozen=True)
class Softmax(Relaxation):
    """A softmax over the ops of an edge (DARTS, Eq. 2)."""

    name: ClassVar[str] = "softmax"

    @override
    def weights(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor:
        return masked_softmax(alpha, alive)


@dataclass(frozen=True)
class Sigmoid(Relaxation):
    """Each op for itself, between 0 and 1 (FairDARTS, Eq. 2)."""

    name: ClassVar[str] = "sigmoid"

    @override
    def weights(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor:
        return self.strength(alpha, alive)

    @override
    def strength(self, alpha: Tensor, alive: Tensor) -> Tensor:
        return torch.sigmoid(alpha) * alive


@dataclass(frozen=True)
class GumbelSoftmax(Relaxation):
    """A softmax of alpha with Gumbel noise, by a temperature that falls (SNAS; hard: GDAS)."""

    name: ClassVar[str] = "gumbel"
    draws: ClassVar[bool] = True

    temperature: float = 10.0
    """Of the Gumbel softmax, in the first epoch."""
    temperature_end: float = 1.0
    """Of the Gumbel softmax, in the last epoch; it falls linearly."""
    hard: bool = False
    """Take one op of each edge with weight 1; the gradient is that of the soft weights."""

    def __post_init__(self) -> None:
        if not (0 < self.temperature < torch.inf and 0 < self.temperature_end < torch.inf):
            raise UserError(
                "--temperature and --temperature-end must be above 0; "
                f"got {self.temperature} and {self.temperature_end}"
            )

    @property
    @override
    def one_hot(self) -> bool:
        return self.hard

    @override
    def weights(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor:
        gumbel = -torch.empty_like(alpha).exponential_().log()
        logits = F.log_softmax(alpha, dim=1) + gumbel
        temperature = Ramp(self.temperature, self.temperature_end).at(moment)
        soft = masked_softmax(logits / temperature, alive)
        if not self.hard:
            return soft
        one_hot = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
        return one_hot - soft.detach() + soft


@dataclass(frozen=True)
class Dirichlet(Relaxation):
    """A Dirichlet draw for each edge, its concentration elu(alpha) + 1 (DrNAS, section 3)."""

    name: ClassVar[str] = "dirichlet"
    draws: ClassVar[bool] = True

    @override
    def weights(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor:
        drawn = torch.distributions.Dirichlet(self.concentration(alpha), validate_args=False).rsample()
        kept = drawn * alive
        return kept / kept.sum(1, keepdim=True)

    @override
    def strength(self, alpha: Tensor, alive: Tensor) -> Tensor:
        concentration = self.concentration(alpha) * alive
        return concentration / concentration.sum(1, keepdim=True)

    @staticmethod
    def concentration(alpha: Tensor) -> Tensor:
        """Computes elu(alpha) + 1, the concentration [E, O] of the draws, kept above 0.

        In float32 it would come as close to 0 as there are numbers; the least is 1e-4.
        """
        return (F.elu(alpha) + 1).clamp_min(1e-4)
