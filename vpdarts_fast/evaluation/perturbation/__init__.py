"""Leave-one-out evaluation of any supernet whose mixed operations are recognised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.measuring import check_finite, measured, numbered
from vpdarts_fast.evaluation.objective import Objective
from vpdarts_fast.evaluation.perturbation.cells import CellType, CellTypes, cell_types
from vpdarts_fast.evaluation.perturbation.variants import Evaluation, Group
from vpdarts_fast.evaluation.perturbation.weights import Weights, keeps, removals
from vpdarts_fast.evaluation.racing import Race, Racing
from vpdarts_fast.evaluation.validation import (
    Batch,
    BatchNorm,
    LeaveOneOut,
    calibration_batches,
    check_options,
    checked_batches,
)

__all__ = ["CellTypes", "Perturbation", "Perturbed", "leave_one_out_of_model"]

Perturbation = Literal["remove", "keep"]


@dataclass(frozen=True)
class Perturbed:
    """What leave-one-out evaluation measured of a model, all of it on the same images unless ops race.

    Attributes:
        cells: for each type of cells that was perturbed, accuracy and loss [E, O], and those of the
            unmodified model, which are the same for all types.
        edges: for each of these types, the names of its E edges, in a cell.
        batched: many variants were evaluated together, all the time.
        remark: why not.
    """

    cells: Mapping[CellTypes, LeaveOneOut]
    edges: Mapping[CellTypes, tuple[str, ...]]
    batched: bool
    remark: str


@torch.no_grad()
def leave_one_out_of_model(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    cells: CellTypes | None = None,
    perturbation: Perturbation = "remove",
    batch_norm: BatchNorm = "recalibrated",
    batched: bool = True,
    memory_budget: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    logits: Callable[[Any], Tensor] | None = None,
    racing: Racing | None = None,
    objective: Objective | None = None,
) -> Perturbed:
    """Validates a model once for each (edge, op) of its cells, with that op perturbed in all cells of a type.

    The weights are changed on their way into the mixed operations, whatever the model makes them of; the
    forward pass is the model's own. Parameters, buffers, modes and hooks stay as they are. Every variant
    draws the same random numbers from PyTorch's generators, which are then as they were before each batch.

    Args:
        model: called with images [N, ...]; mixed operations as `vpdarts_fast.acceleration` recognises them.
            Any mode; dropout is off while it is evaluated.
        batches: images [N, ...] and labels [N]; iterated once. Every variant sees all of them, unless ops
            race.
        cells: the one type to perturb; None perturbs each in turn. Cells are what mixed operations are parts
            of; reduction cells those with a mixed operation of stride 2, normal cells all others.
        perturbation: `remove` sets the weight of the op to 0; `keep` leaves the edge only this op, with the
            sum of the edge's weights.
        batch_norm: of all batch norms in the model. `running` uses the stored statistics; `recalibrated`
            re-estimates them first for the unmodified model, as the average over the first batches with 250
            images or more; `batch` uses each batch's own, per variant; `variant` re-estimates them for every
            variant, as `recalibrated` does for the unmodified model.
        batched: evaluate many variants together where the model is accelerated, instead of in a loop; the
            same results.
        memory_budget: bytes that the activations of the variants evaluated together may take in a cell; None
            picks what is fast. With `batch` and `variant`, which take statistics of every variant, a batch
            cannot be cut, so that one variant of it is the least.
        on_batch: called with the number of images done after each batch; may raise to stop.
        logits: [N, classes] of what the model returns; None takes a tensor as it is, and the end of a tuple.
        racing: ops leave the evaluation once they cannot be their edge's most important one any more, the one
            without which most is lost or, with `keep`, with which alone least is. The last op of an edge goes
            on to the end, so that edges can be compared by it; removals of `none` need no images.
        objective: as `vpdarts_fast.evaluation.leave_one_out.leave_one_out` has it.

    Returns:
        Accuracy and loss [E, O] of each type of cells; edges in the order of the model's modules, or of the
        rows of the weights where a module is a whole cell.

    Raises:
        UserError: no mixed operations are recognised, or cells of a type differ; a mixed operation that is
            not called, or with other weights than one for each op; no images; labels of a wrong
            shape or dtype, or out of range; unknown options; a `memory_budget` that is too small;
            `running` for a model that keeps no running statistics; outputs that are not finite.
    """
    check_options(batch_norm, memory_budget)
    if perturbation not in get_args(Perturbation):
        raise UserError(f"perturbation must be remove or keep; got {perturbation!r}")
    types = _chosen(cell_types(model), cells)
    groups = _groups(types, perturbation, next(model.parameters()))
    evaluation = Evaluation(
        model, Weights(types), groups, logits or _last, batch_norm, batched, memory_budget
    )
    number = _numbers(types, groups)
    race = Race(racing, number, to_the_end=True, keeps=perturbation == "keep") if racing else None
    stream = checked_batches(batches)
    calibration = calibration_batches(stream, batch_norm)
    with evaluation.prepared(calibration) as logits_of:
        found = measured(
            logits_of, number, chain(calibration, stream), race=race, on_batch=on_batch, objective=objective
        )
    check_finite(found)
    return Perturbed(
        _results(types, found),
        {name: cells.edges for name, cells in types.items()},
        evaluation.batched,
        evaluation.remark,
    )


def _chosen(types: dict[CellTypes, CellType], cells: CellTypes | None) -> dict[CellTypes, CellType]:
    if cells is None:
        return types
    if cells not in get_args(CellTypes):
        raise UserError(f"cells must be None, normal or reduction; got {cells!r}")
    if cells not in types:
        raise UserError(f"the model has no {cells} cells; it has {' and '.join(types)} cells")
    return {cells: types[cells]}


def _groups(
    types: Mapping[CellTypes, CellType], perturbation: Perturbation, parameter: Tensor
) -> list[Group]:
    """All variants that differ from the unmodified model, those of an edge in one group."""
    groups = []
    change = removals if perturbation == "remove" else keeps
    number = 1
    for name, cells in types.items():
        unchanged = cells.zeros if perturbation == "remove" else frozenset()
        by_edge = [
            [(e, o) for o in range(cells.ops) if (e, o) not in unchanged] for e in range(len(cells.edges))
        ]
        for pairs in filter(None, [list(chain(*by_edge))] if cells.whole else by_edge):
            groups.append(Group(name, number, tuple(pairs), *change(cells, pairs, parameter)))
            number += len(pairs)
    return groups


def _numbers(types: Mapping[CellTypes, CellType], groups: Iterable[Group]) -> Tensor:
    """Which variant each op's removal is, the edges of all types below each other; as `measured` takes it."""
    start, first = 0, {}
    for name, cells in types.items():
        first[name] = start
        start += len(cells.edges)
    pairs = [(first[group.cells] + e, o) for group in groups for e, o in group.pairs]
    return numbered(pairs, start, max(cells.ops for cells in types.values()))


def _results(types: Mapping[CellTypes, CellType], found: LeaveOneOut) -> dict[CellTypes, LeaveOneOut]:
    """Of each type, of what was found for the edges of all types."""
    results, start = {}, 0
    for name, cells in types.items():
        rows = slice(start, start + len(cells.edges)), slice(cells.ops)
        start += len(cells.edges)
        results[name] = replace(
            found,
            accuracy=found.accuracy[rows],
            loss=found.loss[rows],
            op_images=None if found.op_images is None else found.op_images[rows],
        )
    return results


def _last(output: Any) -> Tensor:
    logits = output[-1] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise UserError(
            "the model must return logits [N, classes], or a tuple with them at its end; `logits=` tells else"
        )
    return logits
