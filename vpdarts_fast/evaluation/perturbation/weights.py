"""Changes the weights of mixed operations on their way into them, from outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from vpdarts_fast.acceleration.fused import subclass
from vpdarts_fast.acceleration.snapshot import CALL
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.perturbation.cells import CellType, CellTypes, Place


@dataclass(frozen=True)
class Change:
    """What weights become: factor * weights + share * (the sum of an edge's weights).

    Attributes:
        cells: the type of the cells.
        edges: on which they change; elsewhere factor is 1 and share 0.
        factor: [E, O].
        share: [E, O], or none for zeros.
    """

    cells: CellTypes
    edges: frozenset[int]
    factor: Tensor
    share: Tensor | None


class Weights:
    """The weights of all mixed operations of a model.

    Attributes:
        change: what becomes of them; none leaves them as they are.
        image: for each place that was called without a change, an image of its input: [C, H, W], no values.
    """

    def __init__(
        self,
        types: Mapping[CellTypes, CellType],
        given: Callable[[Place, Any], object] = lambda place, weights: None,
    ) -> None:
        """`given` hears with which weights a place was called without a change."""
        self._given = given
        self.change: Change | None = None
        self._types = types
        self.image: dict[str, Tensor] = {}

    def cells(self) -> Iterator[list[Place]]:
        """Yields the places of each cell."""
        for cells in self._types.values():
            step = 1 if cells.whole else len(cells.edges)
            for first in range(0, len(cells.places), step):
                yield list(cells.places[first : first + step])

    def places(self) -> Iterator[Place]:
        """Yields the places of all mixed operations, or of all cells."""
        for cells in self._types.values():
            yield from cells.places

    @contextmanager
    def intercepted(self) -> Iterator[None]:
        """Within, every call of a mixed operation goes through here."""
        kinds = [(place.module, type(place.module)) for place in self.places()]
        try:
            for name, cells in self._types.items():
                for place in cells.places:
                    place.module.__dict__[CALL] = partial(self._call, name, cells, place)
                    kind = _intercepted(type(place.module), place.methods)  # type: ignore[arg-type]
                    place.module.__class__ = kind
            yield
        finally:
            for module, kind in kinds:
                module.__class__ = kind
                module.__dict__.pop(CALL, None)

    def check_calls(self) -> None:
        """Raises `UserError` if a mixed operation was not called."""
        for place in self.places():
            if place.name not in self.image:
                raise UserError(
                    f"{place.name}: the model's forward pass does not call its {' or '.join(place.methods)}, "
                    "where its weights could be changed"
                )

    def _call(
        self,
        name: CellTypes,
        cells: CellType,
        place: Place,
        parameters: Sequence[str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call, with its weights changed."""
        change = self.change
        if change is None:
            x = args[0] if args else kwargs[parameters[0]]
            self.image[place.name] = torch.empty_like(x[0], device="meta")
            self._given(place, args[1] if len(args) > 1 else kwargs[parameters[1]])
            return args, kwargs
        if change.cells != name or (place.edge is not None and place.edge not in change.edges):
            return args, kwargs
        weights = args[1] if len(args) > 1 else kwargs[parameters[1]]
        if place.edge is None:
            changed = _changed_table(place.name, weights, change, (len(cells.edges), cells.ops))
        else:
            share = None if change.share is None else change.share[place.edge]
            changed = _changed_row(place.name, weights, change.factor[place.edge], share)
        if len(args) > 1:
            return (args[0], changed, *args[2:]), kwargs
        return args, {**kwargs, parameters[1]: changed}


@cache
def _intercepted(kind: type[nn.Module], methods: tuple[str, ...]) -> type[nn.Module]:
    """The subclass whose methods get changed weights."""
    return subclass(kind, {method: _intercepting(kind, method) for method in methods})


def _intercepting(kind: type[nn.Module], method: str) -> Callable[..., Any]:
    original = getattr(kind, method)
    _, *names = inspect.signature(original).parameters

    @wraps(original)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = self.__dict__[CALL](names, args, kwargs)
        return original(self, *args, **kwargs)

    return run


def _changed_table(name: str, weights: Any, change: Change, shape: tuple[int, int]) -> Any:
    """Changes weights [E, O], or a sequence of rows."""
    if isinstance(weights, Tensor) and weights.shape == shape:
        changed = weights * change.factor.to(weights)
        if change.share is not None:
            changed = changed + weights.sum(1, keepdim=True) * change.share.to(weights)
        return changed
    if isinstance(weights, (list, tuple)) and len(weights) == shape[0]:
        shares = [None] * len(weights) if change.share is None else change.share.unbind()
        return [_changed_row(name, *row) for row in zip(weights, change.factor.unbind(), shares, strict=True)]
    raise UserError(f"{name} is called with weights that are not [E, O] = {list(shape)}")


def _changed_row(name: str, weights: Any, factor: Tensor, share: Tensor | None) -> Any:
    """Changes weights [O], or a sequence of numbers and tensors of one element."""
    if isinstance(weights, Tensor) and weights.dim() > 0 and len(weights) == weights.numel() == len(factor):
        changed = weights * factor.to(weights).view(weights.shape)
        return changed if share is None else changed + weights.sum() * share.to(weights).view(weights.shape)
    if isinstance(weights, (list, tuple)) and len(weights) == len(factor):
        products = [weight * kept for weight, kept in zip(weights, factor.unbind(), strict=True)]
        if share is None:
            return products
        total = sum(weights)
        return [product + total * part for product, part in zip(products, share.unbind(), strict=True)]
    raise UserError(
        f"{name} is called with weights that are not one number for each of {len(factor)} operations"
    )


def removals(cells: CellType, variants: Sequence[tuple[int, int]], template: Tensor) -> tuple[Tensor, None]:
    """Makes the changes that remove an op: in variant v the weight of (edge, op) = variants[v] is 0.

    Args:
        cells: the cells whose weights change.
        variants: (edge, op) of each of the V variants.
        template: a tensor of the weights' dtype and device.

    Returns:
        Factors [V, E, O], and no shares (`Change`).
    """
    factor = template.new_ones(len(variants), len(cells.edges), cells.ops)
    for v, (e, o) in enumerate(variants):
        factor[v, e, o] = 0
    return factor, None


def keeps(cells: CellType, variants: Sequence[tuple[int, int]], template: Tensor) -> tuple[Tensor, Tensor]:
    """Makes the changes that keep an op alone: in variant v that of variants[v] has its edge's whole weight.

    Args:
        cells: the cells whose weights change.
        variants: (edge, op) of each of the V variants.
        template: a tensor of the weights' dtype and device.

    Returns:
        Factors and shares, [V, E, O] each (`Change`).
    """
    factor = template.new_ones(len(variants), len(cells.edges), cells.ops)
    share = torch.zeros_like(factor)
    for v, (e, o) in enumerate(variants):
        factor[v, e] = 0
        share[v, e, o] = 1
    return factor, share
