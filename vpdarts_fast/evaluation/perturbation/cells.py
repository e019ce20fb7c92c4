"""The cells of any supernet whose mixed operations are recognised, by type."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from vpdarts_fast.acceleration import mixtures
from vpdarts_fast.acceleration.plans import (
    CellPlan,
    MixedOpPlan,
    MixturePlan,
    OpaquePlan,
    OpPlan,
    PoolPlan,
    SepConvPlan,
    ZeroPlan,
    at,
)
from vpdarts_fast.errors import UserError

CellTypes = Literal["normal", "reduction"]
"""A cell with a mixed operation of stride 2 is a reduction cell, any other a normal one."""


@dataclass(frozen=True)
class Place:
    """A module that is called with weights.

    Attributes:
        name: in the model.
        module: a mixed operation, or a whole cell.
        methods: that may be called.
        edge: its number in the cell; none for a whole cell.
    """

    name: str
    module: nn.Module
    methods: tuple[str, ...]
    edge: int | None


@dataclass(frozen=True)
class CellType:
    """All cells of one type.

    Attributes:
        places: in all of them, cell by cell.
        edges: names of the E edges.
        ops: O.
        zeros: (edge, op) whose removal changes nothing, as it is the operation `none`.
    """

    places: tuple[Place, ...]
    edges: tuple[str, ...]
    ops: int
    zeros: frozenset[tuple[int, int]]

    @property
    def whole(self) -> bool:
        """Whether weights come for whole cells, not for each edge."""
        return self.places[0].edge is None


Cell = list[tuple[str, nn.Module, MixedOpPlan | CellPlan]]
"""The mixed operations of one cell, or the one cell: name, module, plan."""


def cell_types(model: nn.Module) -> dict[CellTypes, CellType]:
    """Finds the cells of a model whose ops leave-one-out evaluation can change, by their types.

    Raises:
        UserError: no mixed operations are recognised, or cells of one type differ.
    """
    whole: Cell = []
    single: Cell = []
    reasons: list[str] = []
    for name, module, plan in mixtures(model):
        if any(name.startswith(f"{cell}.") for cell, _, _ in whole):
            continue  # what this cell consists of
        if isinstance(plan, str):
            reasons.append(f"{name} ({type(module).__name__}) {plan}")
            continue
        (whole if isinstance(plan, CellPlan) else single).append((name, module, plan))
    all_cells = {name: [(name, module, plan)] for name, module, plan in whole} | _cells_of(model, single)
    if not all_cells:
        why = "".join(f"\n  {reason}" for reason in reasons) or ": there is none that looks like one"
        raise UserError(f"leave_one_out: no mixed operations are recognised{why}")
    types: dict[CellTypes, dict[str, Cell]] = {}
    for name, cell in all_cells.items():
        stride = max(mixture.stride for _, _, plan in cell for mixture in _mixtures_of(plan))
        types.setdefault("reduction" if stride == 2 else "normal", {})[name] = cell
    return {name: _cell_type(name, cells, reasons) for name, cells in types.items()}


def _cells_of(model: nn.Module, mixed_ops: Cell) -> dict[str, Cell]:
    """Mixed operations by what they are parts of: the nearest modules above them that hold several."""
    modules = dict(model.named_modules())
    cells: dict[str, Cell] = {name: [(name, module, plan)] for name, module, plan in mixed_ops}
    while cells and any(cells) and all(len(cell) == 1 for cell in cells.values()):
        above: dict[str, Cell] = defaultdict(list)
        for name, cell in cells.items():
            above[_above(name, modules)] += cell
        cells = dict(above)
    return cells


def _above(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The nearest module above that is no container."""
    containers = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
    above = name.rpartition(".")[0]
    while above and isinstance(modules[above], containers):
        above = above.rpartition(".")[0]
    return above


def _mixtures_of(plan: MixedOpPlan | CellPlan) -> list[MixturePlan]:
    """In the order of the weights."""
    if isinstance(plan, MixedOpPlan):
        return [plan.mixture]
    return [edge.mixture for edge in sorted(plan.edges, key=lambda edge: edge.row)]


def _cell_type(name: CellTypes, cells: Mapping[str, Cell], reasons: Sequence[str]) -> CellType:
    """Of all cells of a type; `UserError` if they differ, with why other mixed operations are none."""
    (first, first_cell), *others = cells.items()
    for other, cell in others:
        if not _are_alike(first_cell, cell):
            why = "".join(f"\n  not recognised: {reason}" for reason in reasons)
            raise UserError(f"the {name} cells differ in edges or operations: {first} and {other}{why}")
    mixtures = _mixtures(first_cell)
    if len({len(mixture.ops) for mixture in mixtures}) > 1:
        raise UserError(f"the edges of {first} have different numbers of operations")
    return CellType(
        tuple(
            Place(name, module, plan.methods, None if isinstance(plan, CellPlan) else edge)
            for cell in cells.values()
            for edge, (name, module, plan) in enumerate(cell)
        ),
        tuple(_edge_names(first, first_cell)),
        len(mixtures[0].ops),
        frozenset.intersection(*map(_zeros, cells.values())),
    )


def _mixtures(cell: Cell) -> list[MixturePlan]:
    """Of all edges of a cell."""
    return [mixture for _, _, plan in cell for mixture in _mixtures_of(plan)]


def _zeros(cell: Cell) -> frozenset[tuple[int, int]]:
    """(edge, op) where a cell has the operation `none`."""
    return frozenset(
        (e, o)
        for e, mixture in enumerate(_mixtures(cell))
        for o, op in enumerate(mixture.plans)
        if isinstance(op, ZeroPlan)
    )


def _edge_names(cell_name: str, cell: Cell) -> Iterator[str]:
    """As they are called in the cell."""
    for name, _, plan in cell:
        if isinstance(plan, CellPlan):
            yield from (".".join(mixture.ops[0][:-1]) for mixture in _mixtures_of(plan))
        else:
            yield name[len(cell_name) + 1 :] if cell_name else name


def _are_alike(one: Cell, other: Cell) -> bool:
    """Whether two cells have the same operations on the same edges, of any numbers of channels.

    What is known of one and unknown of the other is the same operation if it is of the same class.
    """
    edges, others = _mixtures(one), _mixtures(other)
    shapes, other_shapes = (
        [(mixture.stride, len(mixture.ops)) for mixture in mixtures] for mixtures in (edges, others)
    )
    if shapes != other_shapes:
        return False
    return all(map(_same_operation, _operations(one), _operations(other)))


def _operations(cell: Cell) -> Iterator[tuple[nn.Module, OpPlan]]:
    for _, module, plan in cell:
        for mixture in _mixtures_of(plan):
            yield from ((at(module, path), op) for path, op in zip(mixture.ops, mixture.plans, strict=True))


def _same_operation(one: tuple[nn.Module, OpPlan], other: tuple[nn.Module, OpPlan]) -> bool:
    if any(isinstance(plan, OpaquePlan) for _, plan in (one, other)):
        return type(one[0]) is type(other[0])
    return type(one[1]) is type(other[1]) and _detail(*one) == _detail(*other)


def _detail(op: nn.Module, plan: OpPlan) -> object:
    if isinstance(plan, PoolPlan):
        return plan.kind
    if isinstance(plan, SepConvPlan):
        convolutions = (at(op, stage.depthwise) for stage in plan.stages)
        return tuple((conv.kernel_size, conv.dilation) for conv in convolutions)
    return None
