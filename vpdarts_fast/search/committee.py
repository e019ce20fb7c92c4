"""What the supernets of a search, which learn apart, are and say together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vpdarts_fast.evaluation.leave_one_out import LeaveOneOut
from vpdarts_fast.evaluation.validation import mean_of
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.member import Member
from vpdarts_fast.search.methods.commits import decide
from vpdarts_fast.search.methods.criteria import AlphaCriterion, Importance
from vpdarts_fast.search.methods.stopping import Watched
from vpdarts_fast.search.methods.variations import Tables
from vpdarts_fast.search.records import evaluation_from_json
from vpdarts_fast.search.state import SearchState
from vpdarts_fast.search.watching import mean_entropy, skips_of


class Committee:
    """The members of a search, of which there may be one.

    Args:
        config: the settings of the search.
        members: in their order; the epoch of the first is that of the search.
    """

    def __init__(self, config: SearchConfig, members: Sequence[Member]) -> None:
        self._space, self._method = config.space, config.method
        self.members = list(members)

    @property
    def states(self) -> list[SearchState]:
        """Of each member."""
        return [member.state for member in self.members]

    @property
    def choosable(self) -> Tensor:
        """Marks the ops that may still be chosen, [E, O] bool, on the CPU; all members have the same."""
        return self.members[0].state.choosable

    @property
    def alpha(self) -> Tensor:
        """The mean of the members' alphas, [E, O]."""
        return mean([state.alpha for state in self.states])

    @property
    def tables(self) -> dict[str, Tensor]:
        """The means of what the members train beside alpha."""
        first, *_ = self.states
        return {name: mean([state.tables[name] for state in self.states]) for name in first.tables}

    @property
    def evaluation(self) -> LeaveOneOut | None:
        """The mean of the members' evaluations of this epoch, if there are any."""
        found = [state.record.evaluation for state in self.states]
        return mean_of([evaluation_from_json(values) for values in found if values]) if all(found) else None

    @property
    def importance(self) -> Importance:
        """Says how important each op is to the members on average, by their evaluations of this epoch.

        By alpha, where there are none.
        """
        return self._importance(self.alpha, self.tables, self.evaluation)

    @property
    def importance_of_alpha(self) -> Importance:
        """Says how important each op is by alpha alone."""
        return self._importance(self.alpha, self.tables, None)

    def importance_to(self, state: SearchState) -> Importance:
        """Says how important each op is to one member, by its evaluation of this epoch."""
        values = state.record.evaluation
        evaluation = evaluation_from_json(values) if values else None
        return self._importance(state.alpha.detach(), state.tables, evaluation)

    @property
    def settled(self) -> bool:
        """Whether nothing is left to choose."""
        return self._space.kept is None and bool((self.choosable.sum(1) == 1).all())

    @torch.no_grad()
    def watched(self, eigenvalue: float | None) -> Watched:
        """What is watched of the search at the end of an epoch; the eigenvalue is given."""
        cell = self._space.select(self.importance_of_alpha.order(self.choosable))
        strength = self._method.relaxation.strength(self.alpha, self.members[0].state.alive)
        choosable = self.choosable
        entropy = mean_entropy(strength.cpu() * choosable, choosable)
        return Watched(skips_of(self._space, cell), entropy, eigenvalue)

    def decide(self) -> None:
        """Decides an edge of each type of cells by the members' mean alpha, for all members."""
        strength = self._method.relaxation.strength(self.alpha, self.members[0].state.alive)
        for state in self.states:
            decided = state.decided.cpu()
            decide(decided, strength.double().cpu(), self._space)
            state.decided.copy_(decided)

    def widen(self, ops: int) -> None:
        """Prunes all but so many ops of each edge, by the members' mean alpha, and widens all members."""
        ranking = self.importance_of_alpha.ranking(self.choosable)
        for member in self.members:
            member.widen(ranking, ops)

    def decide_edge(self, edge: int) -> None:
        """Decides an edge by the importance of its ops in the evaluations of this epoch, for all members."""
        op = int(self.importance.ranking(self.choosable)[edge, 0])
        for state in self.states:
            state.decided[edge] = op

    @torch.no_grad()
    def _importance(self, alpha: Tensor, tables: Tables, evaluation: LeaveOneOut | None) -> Importance:
        on_edges = self._method.relaxation.strength(alpha, self.members[0].state.alive)
        strength = self._method.variation.strength(on_edges, tables, self._space)
        criterion = self._method.criterion
        if criterion.needs_evaluation and evaluation is None:
            criterion = AlphaCriterion()
        return criterion.importance(strength.double().cpu(), evaluation)


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """Takes the mean of tensors of one shape, without gradient; of one it is that itself."""
    detached = [tensor.detach() for tensor in tensors]
    return detached[0] if len(detached) == 1 else torch.stack(detached).mean(0)
