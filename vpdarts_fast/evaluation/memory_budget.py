"""How many variants and images are evaluated together, so that their activations fit a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from vpdarts_fast.backends.registry import preferred, serving
from vpdarts_fast.errors import UserError


@dataclass(frozen=True)
class Need:
    """Bytes that the cells' activations take, for each image.

    Attributes:
        variant: of each variant that is evaluated with others.
        once: besides, however many variants there are.
    """

    variant: int
    once: int = 0

    def total(self, variants: int, images: int) -> int:
        """How many bytes so many variants of so many images take."""
        return (self.once + self.variant * variants) * images

    def times(self, count: int) -> Need:
        """So many times the need: of an image's pixels, for instance, the image's."""
        return Need(self.variant * count, self.once * count)


def cell_op(batch_statistics: bool) -> str:
    """Names the op that evaluates cells whose batch norms use each batch's statistics, or fixed ones."""
    return "mixed_cell" if batch_statistics else "masked_cell"


def cell_need(op: str, backend: str, activations: Tensor, node_bytes: int) -> Need:
    """What `op`, `masked_cell` or `mixed_cell`, takes on the backend that serves it.

    Args:
        op: see `cell_op`.
        backend: as the supernet has it.
        activations: a tensor of their dtype and device.
        node_bytes: of a cell's node, for one image.
    """
    server = serving(op, [activations], preferred(op, backend))
    return Need(server.node_values[op] * node_bytes, server.node_values_once.get(op, 0) * node_bytes)


Cut = Callable[[Need, int, int, int | None, int], tuple[int, int]]
"""How many variants and images are evaluated together; takes and raises what `few_images` does."""


@dataclass(frozen=True)
class Pieces:
    """How all batches of an evaluation are cut, as it is decided before the first one comes.

    Attributes:
        cut: `few_images`, `few_variants`, or `whole_batches` of a batch norm mode.
        need: of the model, for each pixel of an image.
        budget: bytes, or none for what is fast.
        default: bytes that are fast.
    """

    cut: Cut
    need: Need
    budget: int | None
    default: int

    def of(self, variants: int, images: Tensor) -> Iterator[tuple[slice, list[slice]]]:
        """Yields which images [N, C, H, W] make a piece, and which of the V variants do, one after the other.

        Raises:
            UserError: the budget is too small for one variant; says the least that will do.
        """
        need = self.need.times(images.shape[2] * images.shape[3])
        together, at_once = self.cut(need, variants, len(images), self.budget, self.default)
        for some in slices(len(images), at_once):
            yield some, list(slices(variants, together))


def slices(count: int, size: int) -> Iterator[slice]:
    """Yields so many things in parts of a size, the last one smaller."""
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def few_images(need: Need, variants: int, images: int, budget: int | None, default: int) -> tuple[int, int]:
    """How many variants and how many images are evaluated together, each at least one; variants first.

    Args:
        need: of the model, for each image.
        variants: how many there are.
        images: of the batch.
        budget: bytes, or none for what is fast.
        default: bytes that are fast.

    Raises:
        UserError: the budget is too small for one variant of an image; says the least that will do.
    """
    _check(need.total(1, 1), budget, images, "an image", "")
    allowed = default if budget is None else budget
    count = _at_least_one(variants, allowed - need.once if budget is not None else allowed, need.variant)
    return count, max(1, allowed // need.total(count, 1))


def few_variants(need: Need, variants: int, images: int, budget: int | None, default: int) -> tuple[int, int]:
    """Does what `few_images` does, but fits as many images of the batch as it can before more variants.

    It takes and raises what `few_images` does.
    """
    _check(need.total(1, 1), budget, images, "an image", "")
    allowed = default if budget is None else budget
    together = max(1, min(images, allowed // need.total(1, 1)))
    return _at_least_one(variants, allowed - need.once * together, need.variant * together), together


def whole_batches(
    need: Need, variants: int, images: int, budget: int | None, default: int, batch_norm: str
) -> tuple[int, int]:
    """Does what `few_images` does, but never cuts the batch, as its own statistics normalise it.

    Args:
        need: of the model, for each image.
        variants: how many there are.
        images: of the batch.
        budget: bytes, or none for what is fast.
        default: bytes that are fast.
        batch_norm: the setting that forbids to cut the batch, for the error.

    Raises:
        UserError: the budget is too small for one variant of the batch; says the least that will do.
    """
    what = f"a batch of {images} images, which batch_norm={batch_norm!r} cannot cut"
    _check(need.total(1, images), budget, images, what, " or evaluate smaller batches")
    allowed = default if budget is None else budget - need.once * images
    return _at_least_one(variants, allowed, need.variant * images), images


def _check(least: int, budget: int | None, images: int, what: str, or_else: str) -> None:
    if budget is not None and budget < least and images > 0:
        raise UserError(
            f"memory_budget must be at least {least:,} bytes, of one variant of {what}; got {budget:,}. "
            f"Allow that{or_else}"
        )


def _at_least_one(variants: int, allowed: int, each: int) -> int:
    """How many of the variants may take so many bytes, if each takes so many."""
    return max(1, min(variants, allowed // max(1, each)))
