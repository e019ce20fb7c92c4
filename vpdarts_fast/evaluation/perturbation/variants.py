"""Logits of many variants of a model: together, by `torch.vmap` over their weights, or one by one.

Under `torch.vmap` what comes before the first change runs once for all variants, and everything behind it
with the variants in front of the batch; accelerated modules take these as they are. Variants that change the
same edge are evaluated together, as they share the most; those of a whole cell all together, as its ops know
what they share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vpdarts_fast.acceleration.fused import Fused, backend_of
from vpdarts_fast.acceleration.vmap import batched_statistics
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.memory_budget import (
    Need,
    cell_need,
    cell_op,
    few_images,
    few_variants,
    slices,
    whole_batches,
)
from vpdarts_fast.evaluation.perturbation.cells import CellTypes, Place
from vpdarts_fast.evaluation.perturbation.draws import transformable_draws
from vpdarts_fast.evaluation.perturbation.layers import ChannelsStayLast
from vpdarts_fast.evaluation.perturbation.statistics import Statistics, estimated, joined, kept
from vpdarts_fast.evaluation.perturbation.weights import Change, Weights
from vpdarts_fast.evaluation.validation import (
    NORMS,
    Batch,
    BatchNorm,
    Logits,
    LogitsOf,
    Piece,
    batch_norms,
    evaluation_mode,
    recalibrate,
)

DEFAULT_BUDGET = 256 << 20
"""Bytes, on the CPU (benchmarks/test_leave_one_out.py)."""

GPU_BUDGET = 4 << 30
"""Bytes: few large launches keep a GPU busier than many small ones."""

FEWEST_KEPT = 8
"""Images: computing fewer together costs more than computing again what was not kept."""


@dataclass(frozen=True)
class Group:
    """Variants that change the same edges.

    Attributes:
        cells: of which type.
        first: the number of the first variant among all; 0 is the unmodified model.
        pairs: (edge, op) of each of the V variants.
        factor: [V, E, O], see `Change`.
        share: [V, E, O], or none.
    """

    cells: CellTypes
    first: int
    pairs: tuple[tuple[int, int], ...]
    factor: Tensor
    share: Tensor | None

    def change(self, variants: slice | int) -> Change:
        """What one variant changes, or what V of them change, in front of whose tables there is V."""
        pairs = self.pairs[variants] if isinstance(variants, slice) else [self.pairs[variants]]
        share = None if self.share is None else self.share[variants]
        return Change(self.cells, frozenset(e for e, _ in pairs), self.factor[variants], share)

    def select(self, places: Sequence[int], first: int) -> Group:
        """Selects some of the variants, by their places in the group; `first` is the number of the first."""
        share = None if self.share is None else self.share[places]
        return Group(self.cells, first, tuple(self.pairs[v] for v in places), self.factor[places], share)


class Evaluation:
    """All variants of a model, evaluated batch by batch.

    Attributes:
        batched: many are evaluated together.
        remark: why not.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Weights,
        groups: Sequence[Group],
        logits: Callable[[Any], Tensor],
        batch_norm: BatchNorm,
        batched: bool,
        memory_budget: int | None,
    ) -> None:
        self._model, self._weights, self._batch_norm = model, weights, batch_norm
        self._groups, self._logits, self._memory_budget = groups, logits, memory_budget
        self._base, self._statistics = Statistics(), [Statistics() for _ in groups]
        self.batched, self.remark = batched, "" if batched else "batched=False"
        slow = [place.name for place in weights.places() if not isinstance(place.module, Fused)]
        if batched and slow:
            self.batched, self.remark = False, f"{slow[0]} is not accelerated"

    @contextmanager
    def prepared(self, calibration: Sequence[Batch]) -> Iterator[LogitsOf]:
        """Within, variants can be evaluated; the model's buffers and modes are as they were behind it.

        Args:
            calibration: batches that statistics are estimated on.
        """
        own = self._batch_norm == "variant"
        stored: BatchNorm = "recalibrated" if own else self._batch_norm
        # Of one batch, what the unmodified model computes before a change is that of the variants.
        keeps = own and self.batched and len(calibration) == 1 and not _shares_norms(self._model)
        with (
            _kept_buffers(self._model),
            self._weights.intercepted(),
            self._weights.keeping_outputs(self._limit(calibration[0][0]) // 2 if keeps else 0),
            evaluation_mode(self._model, stored, calibration, [self.base]),
        ):
            if own and calibration:
                self._estimate_statistics(calibration)
            self._weights.keep_none()
            yield self.logits_of

    def _estimate_statistics(self, calibration: Sequence[Batch]) -> None:
        """Estimates running statistics of each variant; those of the unmodified model are kept already."""
        self._base = kept(batch_norms(self._model))
        self._weights.check_calls()
        largest = max((images for images, _ in calibration), key=len)
        limit = self._limit(largest)
        left = self._left(limit, largest, "mixed_cell") if self.batched else limit
        self._statistics = [
            self._estimated(group, calibration, list(self._pieces(group, largest, "mixed_cell", left)))
            for group in self._groups
        ]

    def _estimated(
        self, group: Group, calibration: Sequence[Batch], pieces: Sequence[tuple[slice, slice]]
    ) -> Statistics:
        """Of all variants of a group, piece by piece."""
        parts: list[Statistics] = []
        sizes: list[int] = []
        for variants, _ in pieces:
            count = variants.stop - variants.start
            if self.batched:
                with self._weights.serving(slice(None)):
                    forward = partial(self._together, group, variants)
                    part = estimated(self._model, self._base, calibration, forward)
                self._base.use()  # what is there now may be of use within `torch.vmap` only
            if self.batched:  # still
                parts.append(part)
                sizes.append(count)
                continue
            for v in range(variants.start, variants.stop):
                recalibrate(self._model, self._base.norms, calibration, partial(self._one, group, v))
                parts.append(kept(self._base.norms))
            sizes += [1] * count
        return joined(parts, sizes)

    def _limit(self, images: Tensor) -> int:
        """Bytes that all variants of a piece may take."""
        return self._memory_budget or (GPU_BUDGET if images.is_cuda else DEFAULT_BUDGET)

    def _left(self, limit: int, images: Tensor, op: str) -> int:
        """What is left of so many bytes beside what is kept, all of them where that would be too little."""
        left = limit - self._weights.kept_bytes()
        together = len(images) if op == "mixed_cell" else 1  # which is never cut
        if left < max(self._need(images, places, op).total(1, together) for places in self._weights.cells()):
            self._weights.keep_none()
            return limit
        return left

    def base(self, images: Tensor) -> Tensor:
        """Computes the logits [N, classes] of the unmodified model."""
        with same_random_numbers(images.device):
            return self._run(images, None)

    def logits_of(self, variants: Sequence[int]) -> Logits:
        """What computes the logits of some variants, the unmodified model in front of them."""
        chosen = []
        first = 1
        for group, statistics in zip(self._groups, self._statistics, strict=True):
            numbers = range(group.first, group.first + len(group.pairs))
            places = [variant - group.first for variant in variants if variant in numbers]
            if places:
                chosen.append((group.select(places, first), statistics.select(places)))
                first += len(places)
        return partial(self._pieces_of, chosen)

    def _pieces_of(self, groups: Sequence[tuple[Group, Statistics]], images: Tensor) -> Iterator[Piece]:
        """The logits of the unmodified model and of all variants of some groups."""
        limit = self._limit(images)
        room = limit // 2 if self.batched else 0
        for some in slices(len(images), self._kept_together(len(images), room)):
            with self._weights.keeping_outputs(room):
                for variants, piece, logits in self._of_some(groups, images[some], limit):
                    yield variants, slice(some.start + piece.start, some.start + piece.stop), logits

    def _kept_together(self, images: int, room: int) -> int:
        """Of how many images there is room for what the unmodified model computes; else all of them."""
        fitting = room // max(self._weights.output_bytes(), 1)
        return fitting if FEWEST_KEPT <= fitting < images and self._batch_norm != "batch" else images

    def _of_some(
        self, groups: Sequence[tuple[Group, Statistics]], images: Tensor, limit: int
    ) -> Iterator[Piece]:
        """The same of images of which outputs are kept."""
        self._base.use()
        yield slice(0, 1), slice(0, len(images)), self.base(images).unsqueeze(0)
        self._weights.check_calls()
        op = cell_op(self._batch_norm == "batch")
        left = self._left(limit, images, op) if self.batched else limit
        for group, statistics in groups:
            for variants, piece in self._pieces(group, images, op, left):
                outputs = None
                if self.batched:
                    with self._weights.serving(piece):
                        outputs = self._together(group, variants, images[piece], statistics.select(variants))
                if outputs is not None:
                    yield slice(group.first + variants.start, group.first + variants.stop), piece, outputs
                    continue
                for v in range(variants.start, variants.stop):
                    statistics.select(v).use()
                    outputs = self._one(group, v, images[piece]).unsqueeze(0)
                    yield slice(group.first + v, group.first + v + 1), piece, outputs

    def _one(self, group: Group, variant: int, images: Tensor) -> Tensor:
        """Logits [N, classes] of one variant of a group."""
        with same_random_numbers(images.device):
            return self._run(images, group.change(variant))

    def _run(self, images: Tensor, change: Change | None) -> Tensor:
        self._weights.change = change
        try:
            return self._logits(self._model(images))
        finally:
            self._weights.change = None

    def _together(
        self, group: Group, variants: slice, images: Tensor, statistics: Statistics | None = None
    ) -> Tensor | None:
        """Logits [variants, N, classes]; none where the model cannot be run so."""
        statistics = statistics or Statistics()

        def run(factor: Tensor, share: Tensor | None, differing: Sequence[Tensor]) -> Tensor:
            with statistics.normalising(differing):
                outputs = self._run(images, Change(group.cells, change.edges, factor, share))
                if len(batched_statistics(self._model)) != len(differing):
                    raise RuntimeError("a batch norm puts other running statistics in place of its own")
            return outputs

        change = group.change(variants)
        in_dims = 0, None if change.share is None else 0, 0
        args = change.factor, change.share, statistics.differing()
        statistics.use()
        try:
            with same_random_numbers(images.device), transformable_draws(), ChannelsStayLast():
                logits: Tensor = torch.vmap(run, in_dims, randomness="same")(*args)
        except UserError:
            raise
        except Exception as error:  # their code may raise anything
            reason = str(error).partition("\n")[0]
            self.batched, self.remark = False, f"torch.vmap: {type(error).__name__}: {reason}"
            return None
        return logits

    def _need(self, images: Tensor, places: Sequence[Place], op: str) -> Need:
        """What a piece takes of a cell.

        It is what the cell's op holds at once; of mixed operations the inputs of all of them, which is more
        than nodes and one edge.
        """
        inputs = [self._weights.image[place.name] for place in places]
        size = sum(image.numel() * image.element_size() for image in inputs)
        if places[0].edge is not None:
            return Need(size)
        activations = images.new_empty(0, dtype=inputs[0].dtype)
        return cell_need(op, backend_of(places[0].module), activations, size)

    def _pieces(self, group: Group, images: Tensor, op: str, budget: int) -> Iterator[tuple[slice, slice]]:
        """Variants of the group and images, so many as fit the budget, bytes; op: see `cell_op`."""
        count, total = len(images), len(group.pairs)
        if not self.batched:
            yield slice(0, total), slice(0, count)
            return
        needs = [self._need(images, places, op) for places in self._weights.cells()]
        need = max(needs, key=lambda need: need.total(1, 1))
        limits = budget if self._memory_budget else None, budget
        if op == "mixed_cell":
            variants_together, images_together = whole_batches(need, total, count, *limits, self._batch_norm)
        else:
            # A whole cell folds statistics of each variant into weights once a piece.
            folds = self._batch_norm == "variant" and any(p.edge is None for p in self._weights.places())
            cut = few_variants if folds else few_images
            variants_together, images_together = cut(need, total, count, *limits)
        for piece in slices(count, images_together):
            for variants in slices(total, variants_together):
                yield variants, piece


def same_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    """Every pass within one of these draws the same, and leaves the generators as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _shares_norms(model: nn.Module) -> bool:
    """Whether a batch norm has two places in the model: what it estimates last is of either."""
    layers = [layer for _, layer in model.named_modules(remove_duplicate=False)]
    norms = [layer for layer in layers if isinstance(layer, NORMS)]
    return len(set(norms)) < len(norms)


@contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    """Buffers that change within get their values back."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, values in kept:
            if not torch.equal(buffer, values):
                buffer.copy_(values)
