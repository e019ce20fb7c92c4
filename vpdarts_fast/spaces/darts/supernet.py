"""The supernet of the DARTS space, with the parameter names of public DARTS code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.checkpoints import check_fits, entries
from vpdarts_fast.spaces.darts.genotype import DARTS_OPS, EDGES, NODES, PREDECESSORS
from vpdarts_fast.spaces.darts.operations import OPERATIONS, POOLS
from vpdarts_fast.spaces.darts.skeleton import CellInputs, Place, Skeleton
from vpdarts_fast.spaces.edges import EdgeSite, MakeEdge, plain_edge
from vpdarts_fast.spaces.stems import Stem

OpsOfEdges = tuple[tuple[str, ...], ...]
"""Of each of the 14 edges of a cell, the names of its candidate operations."""

ALL_OPS: OpsOfEdges = (DARTS_OPS,) * len(EDGES)

ALPHA_NAMES = (
    ("alphas_normal", "alphas_reduce"),
    ("_arch_parameters.0", "_arch_parameters.1"),
    ("arch_normal_parameters", "arch_reduce_parameters"),
)
"""What public code calls the alphas of normal and of reduction cells."""


class MixedOp(nn.Module):
    """The weighted sum of an edge's candidate operations."""

    def __init__(self, ops: Sequence[nn.Module]) -> None:
        super().__init__()
        self._ops = nn.ModuleList(ops)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Adds up what the operations make of `x` [N, C, H, W], weighted by `weights` [O]: [N, C, H', W'].

        The edge may have fewer operations than weights; the last ones are then not used.
        """
        terms = (weight * op(x) for weight, op in zip(weights, self._ops, strict=False))
        out: Tensor = sum(terms, start=next(terms))
        return out


def candidates(names: Sequence[str], stride: int, normed_pools: bool, channels: int) -> list[nn.Module]:
    """Makes the named operations; behind a pool there may stand a batch norm."""
    made = []
    for name in names:
        op = OPERATIONS[name](channels, stride, False)
        if normed_pools and name in POOLS:
            op = nn.Sequential(op, nn.BatchNorm2d(channels, affine=False))
        made.append(op)
    return made


def mixed_op(names: Sequence[str], stride: int, normed_pools: bool, channels: int) -> MixedOp:
    """Makes the mixed operation of the named candidates."""
    return MixedOp(candidates(names, stride, normed_pools, channels))


class SearchCell(CellInputs):
    """A cell in which a node is the sum of the edges from all inputs and nodes before it.

    Args:
        place: in the network.
        ops: the candidate operations of its edges.
        columns: O, of the weights of the operations.
        normed_pools: whether a batch norm stands behind every pool.
        make_edge: what makes the edges.
    """

    def __init__(
        self, place: Place, ops: OpsOfEdges, columns: int, normed_pools: bool, make_edge: MakeEdge
    ) -> None:
        super().__init__(place, affine=False)
        self._ops = nn.ModuleList()
        for (source, _), names in zip(EDGES, ops, strict=True):
            stride = place.stride(source)
            made = partial(candidates, names, stride, normed_pools)
            mixed = partial(mixed_op, names, stride, normed_pools)
            skip = partial(OPERATIONS["skip_connect"], place.channels, stride, False)
            self._ops.append(make_edge(EdgeSite(place.channels, stride, columns, made, mixed, skip)))

    def forward(self, before_last: Tensor, last: Tensor, weights: Tensor) -> Tensor:
        """Computes the cell's output [N, 4 C, H, W] from those of the two cells before it.

        Args:
            before_last: the output of the cell before the last one.
            last: the output of the last cell.
            weights: [14, O + W], a row for each edge.
        """
        states = self.states(before_last, last)
        edges = iter(zip(self._ops, weights, strict=True))
        for node in NODES:
            sources = PREDECESSORS[node]
            terms = [op(states[source], row) for source, (op, row) in zip(sources, edges, strict=False)]
            states.append(sum(terms[1:], start=terms[0]))
        return torch.cat(states[NODES.start :], dim=1)


class DartsSupernet(Skeleton):
    """The over-parameterised network that holds every candidate operation on every edge.

    Alpha is not part of it: `forward` takes the weights of the operations, so that one supernet serves any.

    Args:
        channels: C; the paper uses 16.
        layers: how many cells; the paper uses 8.
        num_classes: of the classifier.
        normal_ops: the candidate operations of the edges of normal cells.
        reduction_ops: likewise of reduction cells.
        make_edge: what makes the edges.
        further: W, how many weights an edge takes behind those of its operations.
        stem: the first layers (`vpdarts_fast.spaces.stems`).

    Raises:
        UserError: a size out of bounds (`vpdarts_fast.bounds`).
    """

    normed_pools: ClassVar[bool] = True

    def __init__(
        self,
        channels: int = 16,
        layers: int = 8,
        num_classes: int = 10,
        *,
        normal_ops: OpsOfEdges = ALL_OPS,
        reduction_ops: OpsOfEdges = ALL_OPS,
        make_edge: MakeEdge = plain_edge,
        further: int = 0,
        stem: Stem = "plain",
    ) -> None:
        columns = max(len(names) for names in (*normal_ops, *reduction_ops))
        super().__init__(
            channels,
            layers,
            num_classes,
            lambda place: SearchCell(
                place,
                reduction_ops if place.reduction else normal_ops,
                columns,
                self.normed_pools,
                make_edge,
            ),
            stem,
        )
        self.weights_shape = 2 * len(EDGES), columns + further

    def forward(self, images: Tensor, weights: Tensor) -> Tensor:
        """Maps images [N, 3, H, W] to logits [N, classes], with weights [28, O + W] of the operations.

        Rows 0 to 13 of the weights are of the edges of normal cells, the others of reduction cells.

        Raises:
            UserError: a tensor of another shape.
        """
        self.check_images(images)
        if tuple(weights.shape) != self.weights_shape or not weights.is_floating_point():
            raise UserError(
                f"weights must be a floating-point table [edges, ops] = {list(self.weights_shape)}; "
                f"got {list(weights.shape)} of {weights.dtype}"
            )
        normal, reduction = torch.split(weights, len(EDGES))
        before_last = last = self.stem(images)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last, reduction if cell.reduction else normal)
        return self.classify(last)

    def load_public_checkpoint(self, state: Mapping[str, Any]) -> Tensor | None:
        """Loads the state dict of a public DARTS search network and returns its alpha [28, O], if it has one.

        A ``module.`` prefix is dropped; the architecture parameters may be called ``alphas_normal`` and
        ``alphas_reduce``, ``_arch_parameters.0`` and ``.1``, or ``arch_normal_parameters`` and
        ``arch_reduce_parameters``. They are returned as they are, before any softmax.

        Raises:
            UserError: keys, shapes or dtypes that do not fit this supernet, which is left as it was.
        """
        tensors = entries(state)
        self._check_code(tensors)
        names = [pair for pair in ALPHA_NAMES if any(name in tensors for name in pair)]
        alpha = self.classifier.weight.new_empty(len(EDGES), self.weights_shape[1])
        alphas = {name: alpha for pair in names for name in pair}
        check_fits(self._public_entries() | alphas, tensors, "supernet", self.sizes())
        tables = [torch.cat([tensors.pop(name).detach() for name in pair]) for pair in names]
        self.load_state_dict(self._own_entries(tensors))
        return self._own_columns(tables[0]) if tables else None

    def _check_code(self, tensors: Mapping[str, Any]) -> None:
        """Raises `UserError` for a checkpoint of the other public code."""
        if any(".edges." in name for name in tensors):
            raise UserError(
                "the checkpoint is of a search network of AutoDL-Projects, whose pools have no batch norms: "
                "load it into vpdarts_fast.spaces.darts.AutodlSupernet"
            )

    def _public_entries(self) -> dict[str, Tensor]:
        """What a public checkpoint has to hold, beside alphas."""
        return self.state_dict()

    def _own_entries(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of a public checkpoint, which fit, as they are called here."""
        return dict(tensors)

    def _own_columns(self, alpha: Tensor) -> Tensor:
        """A public alpha with its columns in the order of the operations here."""
        return alpha
