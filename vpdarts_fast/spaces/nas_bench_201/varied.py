"""The supernet of NAS-Bench-201 with edges of another make."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from vpdarts_fast.bounds import check_bound
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.blocks import OPERATIONS, MixedOp
from vpdarts_fast.spaces.edges import EdgeSite, MakeEdge
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, NUM_NODES, OPS
from vpdarts_fast.spaces.nas_bench_201.supernet import Skeleton
from vpdarts_fast.spaces.stems import Stem


def candidates(skip_dropout: float, channels: int) -> list[nn.Module]:
    """Makes all five operations."""
    return [OPERATIONS[name](channels, skip_dropout, False) for name in OPS]


def mixed_op(skip_dropout: float, channels: int) -> MixedOp:
    """Makes the mixed operation of all five operations."""
    return MixedOp(candidates(skip_dropout, channels))


class VariedCell(nn.Module):
    """Nodes in which every node feeds every later one through an edge, a module."""

    def __init__(self, channels: int, skip_dropout: float, make_edge: MakeEdge) -> None:
        super().__init__()
        site = EdgeSite(
            channels,
            1,
            len(OPS),
            partial(candidates, skip_dropout),
            partial(mixed_op, skip_dropout),
            nn.Identity,
        )
        self.edges = nn.ModuleList(make_edge(site) for _ in EDGES)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Computes the last node [N, C, H, W] of `x` [N, C, H, W], with weights [E, O + W] of the edges."""
        nodes = [x]
        edges = iter(zip(self.edges, weights.unbind(0), strict=True))
        while len(nodes) < NUM_NODES:
            terms = [edge(node, row) for node, (edge, row) in zip(nodes, edges, strict=False)]
            nodes.append(sum(terms[1:], start=terms[0]))
        return nodes[-1]


class VariedSupernet(Skeleton):
    """The over-parameterised network of NAS-Bench-201 whose edges somebody else makes.

    Args:
        channels: C, of the first stage.
        cells_per_stage: N.
        num_classes: of the classifier.
        skip_dropout: probability of the dropout behind every candidate skip connection while training.
        make_edge: what makes the edges.
        further: W, how many weights an edge takes behind those of its operations.
        stem: the first layers (`vpdarts_fast.spaces.stems`).

    Raises:
        UserError: a size or probability out of bounds (`vpdarts_fast.bounds`).
    """

    def __init__(
        self,
        channels: int,
        cells_per_stage: int,
        num_classes: int,
        *,
        skip_dropout: float,
        make_edge: MakeEdge,
        further: int,
        stem: Stem = "plain",
    ) -> None:
        check_bound("skip_dropout", skip_dropout)
        super().__init__(
            channels,
            cells_per_stage,
            num_classes,
            lambda width: VariedCell(width, skip_dropout, make_edge),
            stem,
        )
        self.weights_shape = len(EDGES), len(OPS) + further

    def forward(self, images: Tensor, weights: Tensor) -> Tensor:
        """Maps images [N, 3, H, W] to logits [N, classes], with weights [E, O + W] for all cells' edges.

        Raises:
            UserError: a tensor of another shape.
        """
        self.check_images(images)
        if tuple(weights.shape) != self.weights_shape or not weights.is_floating_point():
            raise UserError(
                f"weights must be a floating-point table {list(self.weights_shape)}; "
                f"got {list(weights.shape)} of {weights.dtype}"
            )
        x = self.stem(images)
        for cell in self.cells:
            x = cell(x, weights) if isinstance(cell, VariedCell) else cell(x)
        return self.classify(x)
