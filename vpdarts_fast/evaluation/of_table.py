"""Leave-one-out evaluation of a supernet of any space, called with images and the weights of its ops.

Where the supernet's mixed operations are accelerated, and each of them is called with a row of the table,
many variants are evaluated together (`vpdarts_fast.evaluation.perturbation`); else one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.measuring import check_finite, measured, numbered
from vpdarts_fast.evaluation.objective import Objective
from vpdarts_fast.evaluation.perturbation.cells import CellType, CellTypes, cell_types
from vpdarts_fast.evaluation.perturbation.variants import Evaluation, Group, same_random_numbers
from vpdarts_fast.evaluation.perturbation.weights import Weights
from vpdarts_fast.evaluation.racing import Race, Racing
from vpdarts_fast.evaluation.removal import removals
from vpdarts_fast.evaluation.validation import (
    Batch,
    BatchNorm,
    LeaveOneOut,
    LogitsOf,
    Removal,
    calibration_batches,
    check_options,
    checked_batches,
    checked_mask,
    one_by_one,
)


@torch.no_grad()
def leave_one_out_of_table(
    supernet: nn.Module,
    batches: Iterable[Batch],
    weights: Tensor,
    *,
    batch_norm: BatchNorm = "recalibrated",
    removal: Removal = "zero",
    batched: bool = True,
    memory_budget: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    nones: Tensor | None = None,
    racing: Racing | None = None,
    only: Tensor | None = None,
    objective: Objective | None = None,
) -> LeaveOneOut:
    """Validates a supernet once for each (edge, op) that adds anything to its edge, without that op.

    Args:
        supernet: called with images [N, 3, H, W] and weights of the ops [E, O]; returns logits [N, classes].
        batches: images and labels [N] int64; iterated once. Every variant sees all of them, unless ops
            race.
        weights: [E, O], the same in all batches.
        batch_norm: as `vpdarts_fast.evaluation.leave_one_out.leave_one_out` has it.
        removal: likewise.
        batched: evaluate many variants together, where the supernet is accelerated.
        memory_budget: as `vpdarts_fast.evaluation.leave_one_out.leave_one_out` has it.
        on_batch: likewise.
        nones: [E, O] bool, which ops add nothing to their edges: removing them changes nothing.
        racing: ops leave the evaluation once they cannot be their edge's most important one any more, `none`
            aside. The last op of an edge goes on to the end, since a space may compare edges by it.
        only: [E, O] bool, the ops that are left out; None: all.
        objective: as `vpdarts_fast.evaluation.leave_one_out.leave_one_out` has it.

    Returns:
        Accuracy and loss [E, O]; of an op with weight 0, of `none` and of what is not left out, those of the
        unmodified supernet.

    Raises:
        UserError: no images, labels of a wrong shape or out of range, weights or outputs that are not finite,
            unknown options, a `memory_budget` that is too small.
    """
    check_options(batch_norm, memory_budget, removal)
    parameter = next(supernet.parameters())
    weights = weights.detach().to(parameter.device, parameter.dtype)
    if not weights.isfinite().all():
        raise UserError("the weights of the ops must be finite; got NaN or infinity: the search has diverged")
    only = checked_mask(only, weights.shape, racing is not None)
    table = Table(weights, removals(weights.cpu(), removal, nones).to(weights), nones, only)
    stream = checked_batches(batches)
    first = next(stream, None)
    if first is None:
        raise UserError("leave_one_out: no images; `batches` was empty")
    stream = chain([first], stream)
    calibration = calibration_batches(stream, batch_norm)
    rows = rows_of_modules(supernet, weights.shape, first[0][:2]) if batched else None
    if rows is None:
        variants = table.removable
        evaluation = _one_by_one(supernet, table, variants, batch_norm, calibration)
    else:
        groups, variants = _groups(table, rows)
        model, of_places = WithWeights(supernet, weights), Weights(rows.types)
        all_of_them = Evaluation(
            model, of_places, groups, lambda logits: logits, batch_norm, True, memory_budget
        )
        evaluation = all_of_them.prepared(calibration)
    number = numbered(variants, *weights.shape)
    race = Race(racing, number, to_the_end=True) if racing else None
    with evaluation as logits_of:
        found = measured(
            logits_of, number, chain(calibration, stream), race=race, on_batch=on_batch, objective=objective
        )
    check_finite(found)
    return found


@dataclass(frozen=True)
class Table:
    """The weights of all ops, and what they become without each.

    Attributes:
        weights: [E, O].
        removed: [E*O, E, O].
        nones: [E, O] bool, which ops add nothing; None for no op.
        only: [E, O] bool, which ops are left out; None for all.
    """

    weights: Tensor
    removed: Tensor
    nones: Tensor | None
    only: Tensor | None = None

    @property
    def changes(self) -> Tensor:
        """Marks the ops that are left out, and whose removal changes anything: [E, O] bool, on the CPU."""
        weighted = self.weights.cpu() != 0
        if self.only is not None:
            weighted &= self.only
        return weighted if self.nones is None else weighted & ~self.nones

    @property
    def removable(self) -> list[tuple[int, int]]:
        """Lists the pairs (edge, op) whose removal changes anything."""
        pairs: list[tuple[int, int]] = self.changes.nonzero().tolist()
        return [(e, o) for e, o in pairs]

    def without(self, edge: int, op: int) -> Tensor:
        """The weights [E, O] without this op on this edge."""
        return self.removed[edge * self.weights.shape[1] + op]


@contextmanager
def _one_by_one(
    supernet: nn.Module,
    table: Table,
    variants: Sequence[tuple[int, int]],
    batch_norm: BatchNorm,
    calibration: Sequence[Batch],
) -> Iterator[LogitsOf]:
    def logits_of(weights: Tensor, images: Tensor) -> Tensor:
        with same_random_numbers(images.device):
            logits = supernet(images, weights)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise UserError("the supernet must return logits [N, classes]")
        return logits

    tables = [table.weights, *(table.without(*variant) for variant in variants)]
    forwards = [partial(logits_of, weights) for weights in tables]
    with one_by_one(supernet, forwards, batch_norm, calibration) as logits_of_variants:
        yield logits_of_variants


def _groups(table: Table, rows: Rows) -> tuple[list[Group], list[tuple[int, int]]]:
    """All variants that differ from the unmodified supernet in groups, and their (edge, op) in the table."""
    groups: list[Group] = []
    variants: list[tuple[int, int]] = []
    changes = table.changes
    for name, cells in rows.types.items():
        of_type = rows.rows[name]
        for edges in [range(len(of_type))] if cells.whole else [[edge] for edge in range(len(of_type))]:
            pairs = [(e, o) for e in edges for o in range(cells.ops) if changes[of_type[e], o]]
            if not pairs:
                continue
            factor = torch.stack([_factor(table, of_type, e, o, cells.ops) for e, o in pairs])
            groups.append(Group(name, 1 + len(variants), tuple(pairs), factor, None))
            variants += [(of_type[e], o) for e, o in pairs]
    return groups, variants


def _factor(table: Table, rows: Sequence[int], edge: int, op: int, ops: int) -> Tensor:
    """[E, O] by which the weights of a cell type's edges are multiplied where one of its ops is left out."""
    factor = table.weights.new_ones(len(rows), ops)
    before = table.weights[rows[edge], :ops]
    after = table.without(rows[edge], op)[rows[edge], :ops]
    factor[edge] = torch.where(before == 0, 1.0, after / before)
    return factor


class WithWeights(nn.Module):
    """A supernet with the weights of its ops, called with images alone."""

    def __init__(self, supernet: nn.Module, weights: Tensor) -> None:
        super().__init__()
        self.supernet, self.weights = supernet, weights

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, 3, H, W] to the supernet's logits [N, classes] with these weights."""
        logits: Tensor = self.supernet(images, self.weights)
        return logits


@dataclass(frozen=True)
class Rows:
    """Which rows of the table the edges of a supernet's cells take their weights from.

    Attributes:
        types: the cells of the supernet.
        rows: of each type, the row of each of its edges.
    """

    types: dict[CellTypes, CellType]
    rows: dict[CellTypes, list[int]]


def rows_of_modules(supernet: nn.Module, shape: Sequence[int], images: Tensor) -> Rows | None:
    """Finds the rows by a look at what mixed operations are called with; None where that cannot be told.

    The supernet is run on the images [N, 3, H, W] with weights that are all different.
    """
    model = WithWeights(supernet, torch.empty(0))
    try:
        types = cell_types(model)
    except UserError:
        return None
    parameter = next(supernet.parameters())
    numbers = torch.arange(1, 1 + shape[0] * shape[1], dtype=parameter.dtype, device=parameter.device)
    model.weights = (numbers / len(numbers)).view(*shape)
    seen: dict[str, Any] = {}
    of_places = Weights(types, lambda place, given: seen.setdefault(place.name, given))
    with _evaluating(supernet), of_places.intercepted(), same_random_numbers(images.device):
        model(images)
    places = {row.data_ptr(): number for number, row in enumerate(model.weights)}
    rows: dict[CellTypes, list[int]] = {}
    for name, cells in types.items():
        found: list[int] = []
        for place in cells.places:
            given = seen.get(place.name)
            if not isinstance(given, Tensor):
                return None
            of_place = [given] if place.edge is not None else list(given)
            start = 0 if place.edge is None else place.edge
            for edge, row in enumerate(of_place, start=start):
                number = _row_of(row, model.weights, places)
                if number is None or row.numel() != cells.ops:
                    return None
                if edge == len(found):
                    found.append(number)
                elif found[edge] != number:
                    return None
        rows[name] = found
    taken = [row for of_type in rows.values() for row in of_type]
    return Rows(types, rows) if sorted(taken) == list(range(shape[0])) else None


def _row_of(given: Tensor, weights: Tensor, places: dict[int, int]) -> int | None:
    """The number of the row that is given, or whose beginning it is."""
    number = places.get(given.data_ptr())
    if number is None:  # a copy, as of an index
        equal = [n for n, row in enumerate(weights) if torch.equal(row[: given.numel()], given.flatten())]
        number = equal[0] if equal else None
    if number is None or not torch.equal(weights[number][: given.numel()], given.flatten()):
        return None
    return number


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
