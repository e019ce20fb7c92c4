"""Changes the weights of mixed operations on their way into them, from outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor

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
    """The weights of all mixed operations of a model, and what the unmodified model made of them.

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
        self._output_bytes: dict[str, int] = {}
        self._kept: dict[str, Kept | None] = {}
        self._room = 0
        self._images: slice | None = None

    @contextmanager
    def keeping_outputs(self, room: int) -> Iterator[None]:
        """Within, outputs without a change are kept, and serve where a place is called with the same input.

        That is what `torch.vmap` over changes does not batch: what comes before the first change (`serving`).
        Those that are computed first are kept, as many as `room` has bytes for. Of a place that is called
        more than once in a forward pass, or that draws random numbers, nothing is kept.
        """
        self._room = room
        try:
            yield
        finally:
            self.keep_none()

    def keep_none(self) -> None:
        """Forgets what is kept, and keeps nothing more."""
        self._kept, self._room = {}, 0

    def kept_bytes(self) -> int:
        """Counts the bytes of what is kept."""
        return sum(kept.whole.untyped_storage().nbytes() for kept in self._kept.values() if kept)

    @contextmanager
    def serving(self, images: slice) -> Iterator[None]:
        """Within a `torch.vmap`, what is kept serves; the model is called with so many of the images."""
        self._images = images
        try:
            yield
        finally:
            self._images = None

    def output_bytes(self) -> int:
        """Counts the bytes of all outputs for an image; 0 before the first call."""
        return sum(self._output_bytes.values())

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

    def _call(self, name: CellTypes, cells: CellType, place: Place, call: Call) -> Any:
        """What a place computes, with its weights changed."""
        change = self.change
        if change is None:
            return self._unchanged(place, call)
        if change.cells != name or (place.edge is not None and place.edge not in change.edges):
            output = self._served(place, call)
            return call() if output is None else output
        if place.edge is None:
            changed = _changed_table(place.name, call.weights, change, (len(cells.edges), cells.ops))
        else:
            share = None if change.share is None else change.share[place.edge]
            changed = _changed_row(place.name, call.weights, change.factor[place.edge], share)
        return call.with_weights(changed)()

    def _served(self, place: Place, call: Call) -> Tensor | None:
        """What is kept of a place, if it is called with what it was called with then."""
        kept = self._kept.get(place.name)
        if self._images is None or kept is None or any(map(is_batchedtensor, tensors(call.arguments))):
            return None
        return kept.of(self._images)

    def _unchanged(self, place: Place, call: Call) -> Any:
        x = call.x
        self.image[place.name] = torch.empty_like(x[0], device="meta")
        self._given(place, call.weights)
        if not self._room:
            return call()
        state = random_state(x.device)
        output = call()
        # What draws random numbers is called every time, or what follows would draw others.
        draws = not torch.equal(state, random_state(x.device))
        again = place.name in self._kept
        self._kept[place.name] = None
        if isinstance(output, Tensor) and output.dim() > 0 and len(output) == len(x):
            size = output.untyped_storage().nbytes()
            self._output_bytes[place.name] = size // max(len(x), 1)
            if not (again or draws or output.is_inference()) and self.kept_bytes() + size <= self._room:
                self._kept[place.name] = Kept(output, output._version)
        return output


@dataclass(frozen=True)
class Call:
    """A call of a place.

    Attributes:
        compute: the place's own method.
        parameters: the names of its parameters: of x, of the weights, and others.
        args: those that are given by position.
        kwargs: those that are given by name.
    """

    compute: Callable[..., Any]
    parameters: Sequence[str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        """Runs the method."""
        return self.compute(*self.args, **self.kwargs)

    @property
    def arguments(self) -> tuple[object, ...]:
        """All of them, by position and by name."""
        return *self.args, *self.kwargs.values()

    @property
    def x(self) -> Any:
        """The first argument: images [N, C, H, W]."""
        return self.args[0] if self.args else self.kwargs[self.parameters[0]]

    @property
    def weights(self) -> Any:
        """The second argument: the weights [O] of an edge, or [E, O] of a cell, or a sequence of these."""
        return self.args[1] if len(self.args) > 1 else self.kwargs[self.parameters[1]]

    def with_weights(self, weights: object) -> Call:
        """Makes the same call with other weights."""
        if len(self.args) > 1:
            return replace(self, args=(self.args[0], weights, *self.args[2:]))
        return replace(self, kwargs={**self.kwargs, self.parameters[1]: weights})


def random_state(device: torch.device) -> Tensor:
    """Reads the state of the generators that code for a device may draw from, as one vector of bytes."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


@dataclass(frozen=True)
class Kept:
    """An output of the unmodified model.

    Attributes:
        whole: [N, C, H, W], of all images.
        version: of the tensor when it was kept; another one says that it has been changed in place since.
    """

    whole: Tensor
    version: int

    def of(self, images: slice) -> Tensor | None:
        """Returns what it is of some of the images; none if it has been changed."""
        return self.whole[images] if self.whole._version == self.version else None


@cache
def _intercepted(kind: type[nn.Module], methods: tuple[str, ...]) -> type[nn.Module]:
    """The subclass whose methods get changed weights."""
    return subclass(kind, {method: _intercepting(kind, method) for method in methods})


def _intercepting(kind: type[nn.Module], method: str) -> Callable[..., Any]:
    original = getattr(kind, method)
    _, *names = inspect.signature(original).parameters

    @wraps(original)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__[CALL](Call(partial(original, self), names, args, kwargs))

    return run


def tensors(value: object) -> Iterator[Tensor]:
    """Yields the tensors of nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


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
