"""How many variants and images are evaluated together, so that their activations fit a memory budget."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vpdarts_fast.backends import preferred, serving
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
        """Bytes of so many variants of so many images."""
        return (self.once + self.variant * variants) * images


def cell_op(batch_statistics: bool) -> str:
    """The op that evaluates cells whose batch norms use each batch's statistics, or fixed ones."""
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


def pieces(
    need: Need, variants: int, images: int, budget: int | None, default: int, whole_batches: bool
) -> tuple[int, int]:
    """How many variants and how many images are evaluated together, each at least one.

    Args:
        need: of the model, for each image.
        variants: how many there are.
        images: of the batch.
        budget: bytes, or none for what is fast.
        default: bytes for the variants alone that are fast.
        whole_batches: a batch cannot be cut, as its own statistics normalise it.

    Raises:
        UserError: the budget is too small for one variant of what cannot be cut; says the least that will do.
    """
    together = images if whole_batches else 1
    least = need.total(1, together)
    if budget is not None and budget < least and images > 0:
        what = (
            f"a batch of {images} images, which batch_norm='batch' cannot cut"
            if whole_batches
            else "an image"
        )
        raise UserError(
            f"memory_budget must be at least {least:,} bytes, of one variant of {what}; got {budget:,}. "
            f"Allow that{' or evaluate smaller batches' if whole_batches else ''}"
        )
    for_variants = default if budget is None else budget - need.once * together
    count = max(1, min(variants, for_variants // max(1, need.variant * together)))
    if whole_batches:
        return count, images
    return count, max(1, (default if budget is None else budget) // need.total(count, 1))
