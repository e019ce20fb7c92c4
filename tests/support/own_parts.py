"""Parts that nothing in the package knows, for tests, one of each of some kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vpdarts_fast.evaluation.leave_one_out import LeaveOneOut
from vpdarts_fast.search.methods.criteria import Criterion, Importance
from vpdarts_fast.search.methods.moment import Moment
from vpdarts_fast.search.methods.regularisers import Regulariser
from vpdarts_fast.search.methods.relaxations import Relaxation
from vpdarts_fast.search.methods.schedules import Commit, Event, Schedule, Stage
from vpdarts_fast.search.methods.variations import Tables, Variation
from vpdarts_fast.spaces.edges import EdgeSite
from vpdarts_fast.spaces.space import Space


@dataclass(frozen=True)
class Sigmoid(Relaxation):
    """A sigmoid of each alpha, with noise from the step's random numbers."""

    name: ClassVar[str] = "test-sigmoid"
    draws: ClassVar[bool] = True

    sharpness: float = 2.0
    """Alpha is multiplied with it."""

    def weights(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor:
        noise = 0.01 * torch.randn_like(alpha)
        return torch.sigmoid(self.sharpness * alpha + noise) * alive

    def strength(self, alpha: Tensor, alive: Tensor) -> Tensor:
        return torch.sigmoid(self.sharpness * alpha) * alive


@dataclass(frozen=True)
class Both(Criterion):
    """The loss without an op, and half of its accuracy."""

    name: ClassVar[str] = "test-both"

    def importance(self, strength: Tensor, evaluation: LeaveOneOut | None) -> Importance:
        assert evaluation is not None
        return Importance(evaluation.loss - evaluation.accuracy / 200, strength)


@dataclass(frozen=True)
class Pull(Regulariser):
    """Pulls alpha to where it was on average in all steps so far, which is what the part keeps."""

    name: ClassVar[str] = "test-pull"

    force: float = 0.5
    """Of the pull."""

    def new_state(self, shape: tuple[int, int]) -> dict[str, Tensor]:
        return {"sum": torch.zeros(shape), "steps": torch.zeros((), dtype=torch.int64)}

    def term(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor | None:
        moment.state["sum"].add_(alpha.detach())
        moment.state["steps"].add_(1)
        mean = moment.state["sum"] / moment.state["steps"]
        return self.force * ((alpha - mean).square() * alive).sum()


class Gate(nn.Module):
    """A mixed operation, and a gate behind it."""

    def __init__(self, site: EdgeSite) -> None:
        super().__init__()
        self.ops, self.mixed_op = site.ops, site.mixed_op(site.channels)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        out: Tensor = self.mixed_op(x, weights[: self.ops]) * weights[self.ops]
        return out


@dataclass(frozen=True)
class Gated(Variation):
    """A trained gate behind each edge, which is told how often it has been asked."""

    name: ClassVar[str] = "test-gated"

    openness: float = 0.5
    """Where the gates start."""

    @property
    def further(self) -> int:
        return 1

    def edge(self, site: EdgeSite) -> nn.Module:
        return Gate(site)

    def new_tables(self, space: Space[Any], generator: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(space.shape[0], 1, dtype=torch.float64, generator=generator)
        return {"gates": self.openness + 0.01 * noise}

    def new_state(self, shape: tuple[int, int]) -> dict[str, Tensor]:
        return {"asked": torch.zeros((), dtype=torch.int64)}

    def weights(self, weights: Tensor, tables: Tables, space: Space[Any], moment: Moment) -> Tensor:
        moment.state["asked"].add_(1)
        return torch.cat([weights, tables["gates"] + 0.1 * moment.left], dim=1)


@dataclass(frozen=True)
class Restless(Schedule):
    """A stage of each kind: none of both, the weights, alpha, both; an edge is decided before the last."""

    name: ClassVar[str] = "test-restless"
    commits: ClassVar[bool] = True

    each: int = 1
    """Epochs of each stage."""

    def stages(self, space: Space[Any]) -> tuple[Stage, ...]:
        return (
            Stage("rest", self.each, weights=False, alpha=False),
            Stage("weights", self.each, alpha=False),
            Stage("alpha", self.each, weights=False),
            Stage("both", self.each),
        )

    def event(self, epoch: int, space: Space[Any]) -> Event | None:
        return Commit() if epoch == 3 * self.each else None
