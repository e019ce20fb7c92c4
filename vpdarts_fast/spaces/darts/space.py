"""The DARTS space: `Darts`, and RobustDARTS' smaller spaces, which differ in their operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.darts.genotype import (
    EDGES,
    KEPT,
    NODES,
    PREDECESSORS,
    Genotype,
    Pairs,
    by_node,
)
from vpdarts_fast.spaces.darts.network import DartsNetwork, FoundCell
from vpdarts_fast.spaces.darts.supernet import ALL_OPS, DartsSupernet, OpsOfEdges
from vpdarts_fast.spaces.edges import MakeEdge
from vpdarts_fast.spaces.space import AlphaTable, CellDrawing, Space
from vpdarts_fast.spaces.stems import Stem, behind_stem

EDGE_NAMES = tuple(f"{source}->{node}" for source, node in EDGES)

NODE_NAMES = ("c_{k-2}", "c_{k-1}", *(str(node - NODES.start) for node in NODES), "c_{k}")
"""What pictures of the field call the inputs, the nodes and the output."""


@dataclass(frozen=True)
class Darts(Space[Genotype]):
    """The space of DARTS (Liu, Simonyan and Yang, 2019): normal and reduction cells, 8 operations an edge."""

    name: ClassVar[str] = "darts"
    kept: ClassVar[int | None] = KEPT
    normal_ops: ClassVar[OpsOfEdges] = ALL_OPS
    reduction_ops: ClassVar[OpsOfEdges] = ALL_OPS

    channels: int = 16
    """C, the channels of the supernet's first cells."""
    layers: int = 8
    """Cells of the supernet."""
    stem: Stem = "auto"
    """First layers of all networks: plain, halving or quartering (images are so much smaller behind them), or
    auto (halving from 64 pixels on, quartering from 128)."""
    found_channels: int = 36
    """C of the found network."""
    found_layers: int = 20
    """Cells of the found network."""
    auxiliary: bool = True
    """Give the found network an auxiliary head."""
    drop_path: float = 0.2
    """Drop-path of the found network, which trainers ramp up to this."""
    finalist_channels: int = 8
    """C of the networks in which finalists are trained."""
    finalist_layers: int = 5
    """Cells of these networks."""

    @property
    def tables(self) -> tuple[AlphaTable, ...]:
        """Rows 0 to 13 are of the edges of normal cells, 14 to 27 of reduction cells."""
        return (
            AlphaTable("normal", EDGE_NAMES, self.normal_ops),
            AlphaTable("reduction", EDGE_NAMES, self.reduction_ops),
        )

    def supernet(self, num_classes: int, *, fused: bool = False, backend: str = "auto") -> nn.Module:
        """A new `DartsSupernet`; it has no fused path of its own, so that the last two do not matter."""
        return DartsSupernet(
            self.channels,
            self.layers,
            num_classes,
            normal_ops=self.normal_ops,
            reduction_ops=self.reduction_ops,
            stem=self.stem,
        )

    def varied_supernet(self, num_classes: int, make_edge: MakeEdge, further: int) -> nn.Module:
        """A new `DartsSupernet` with edges of another make."""
        return DartsSupernet(
            self.channels,
            self.layers,
            num_classes,
            normal_ops=self.normal_ops,
            reduction_ops=self.reduction_ops,
            make_edge=make_edge,
            further=further,
            stem=self.stem,
        )

    def network(self, genotype: Genotype, num_classes: int) -> nn.Module:
        """A `DartsNetwork` of the choice, as large as the paper trains it."""
        return DartsNetwork(
            genotype,
            self.found_channels,
            self.found_layers,
            num_classes,
            auxiliary=self.auxiliary,
            drop_path_prob=self.drop_path,
            stem=self.stem,
        )

    @override
    def op_modules(self, network: nn.Module, genotype: Genotype) -> Iterator[tuple[int, int, nn.Module]]:
        for cell in network.modules():
            if isinstance(cell, FoundCell):
                start = len(EDGES) if cell.reduction else 0
                pairs = _operations(genotype.reduce if cell.reduction else genotype.normal)
                for (op, source, node), module in zip(pairs, cell.operations(), strict=True):
                    row = start + EDGES.index((source, node))
                    yield row, self._rows()[row].index(op), module

    @override
    def trained_network(
        self,
        genotype: Genotype,
        num_classes: int,
        *,
        channels: int | None = None,
        depth: int | None = None,
        auxiliary: bool = False,
        fused: bool = False,
    ) -> DartsNetwork:
        size = (
            self.found_channels if channels is None else channels,
            self.found_layers if depth is None else depth,
        )
        return DartsNetwork(genotype, *size, num_classes, auxiliary=auxiliary, stem=self.stem)

    @override
    def smallest(self, image_size: tuple[int, int]) -> int:
        return super().smallest(behind_stem(image_size, self.stem))

    @property
    @override
    def finalist(self) -> Darts:
        return dataclasses.replace(self, channels=self.finalist_channels, layers=self.finalist_layers)

    def finalist_network(
        self, genotype: Genotype, num_classes: int, *, fused: bool = False, backend: str = "auto"
    ) -> nn.Module:
        """A small `DartsNetwork` without auxiliary head and drop-path.

        With the same random numbers, the networks of two choices begin with the same weights in all
        operations that both have on an edge, and in all that is not between nodes.
        """
        number = int(torch.randint(2**63 - 1, (), device="cpu"))
        with torch.random.fork_rng(devices=[]):  # how much it draws depends on the choice
            network = DartsNetwork(
                genotype,
                self.finalist_channels,
                self.finalist_layers,
                num_classes,
                auxiliary=False,
                stem=self.stem,
            )
        network.draw_by_place(number)
        return network

    def select(self, order: Tensor) -> Genotype:
        """The strongest operations of the two strongest predecessors of every node.

        An edge is as strong as its strongest operation other than `none`, and keeps that one. Where the
        order is that of the operations' weights, softmax of alpha within each edge, this is the rule of the
        DARTS paper. Where it is that of leave-one-out, an edge is as strong as the operation on it that is
        missed most.

        Args:
            order: [28, O] int64, different numbers that grow with the importance of an operation; -1 where
                there is none to choose.

        Returns:
            the choice, with the operations of each node in the order of their sources.
        """
        choosable = self.present.clone()
        for row, names in enumerate(self._rows()):
            if "none" in names:
                choosable[row, names.index("none")] = False
        strengths, ops = order.cpu().masked_fill(~choosable, -2).max(1)
        found = []
        for start in (0, len(EDGES)):
            pairs: list[tuple[str, int]] = []
            for node in NODES:
                rows = [start + EDGES.index((source, node)) for source in PREDECESSORS[node]]
                strongest = strengths[rows].topk(KEPT).indices.sort().values.tolist()
                pairs += [
                    (self._rows()[rows[source]][int(ops[rows[source]])], source) for source in strongest
                ]
            found.append(tuple(pairs))
        return Genotype(*found)

    def chosen(self, genotype: Genotype) -> Tensor:
        """Marks the 16 operations of the choice: [28, O] bool, on the CPU."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device="cpu")
        for start, pairs in ((0, genotype.normal), (len(EDGES), genotype.reduce)):
            for op, source, node in _operations(pairs):
                row = start + EDGES.index((source, node))
                mask[row, self._rows()[row].index(op)] = True
        return mask

    def neighbours(self, genotype: Genotype) -> Iterator[Genotype]:
        """All choices with one other operation, on the same edge or of another predecessor of the node.

        `none` is never chosen. The operations of each node stand in the order of their sources.
        """
        for normal in _exchanges(genotype.normal, self.normal_ops):
            yield Genotype(normal, genotype.reduce).sorted()
        for reduce in _exchanges(genotype.reduce, self.reduction_ops):
            yield Genotype(genotype.normal, reduce).sorted()

    def parse(self, text: str) -> Genotype:
        """The inverse of `str`; also reads genotypes as other public code prints them.

        Raises:
            UserError: text that is no genotype, or one with an operation that its edge has not in this space.
        """
        genotype = Genotype.from_string(text)
        for name, pairs, ops in (
            ("normal", genotype.normal, self.normal_ops),
            ("reduce", genotype.reduce, self.reduction_ops),
        ):
            for op, source, node in _operations(pairs):
                candidates = ops[EDGES.index((source, node))]
                if op not in candidates:
                    raise UserError(
                        f"{name}: {op} is no operation of the edge {source}->{node} in the space "
                        f"{self.name}; expected one of {', '.join(_without_none(candidates))}"
                    )
        return genotype

    def drawings(self, genotype: Genotype) -> tuple[CellDrawing, ...]:
        """Draws nodes and operations of each type of cells, and arrows `concat` from nodes to the output."""
        output = NODES.stop
        concat = tuple((node, output, "concat") for node in NODES)
        return tuple(
            CellDrawing(
                table.name,
                NODE_NAMES,
                tuple((source, node, op) for op, source, node in _operations(pairs)) + concat,
            )
            for table, pairs in zip(self.tables, (genotype.normal, genotype.reduce), strict=True)
        )


def _operations(pairs: Pairs) -> list[tuple[str, int, int]]:
    """(operation, source, node) of the pairs of a type of cells."""
    return [(op, source, node) for node, both in by_node(pairs).items() for op, source in both]


def _without_none(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name != "none"]


def _exchanges(pairs: Pairs, ops: OpsOfEdges) -> Iterator[Pairs]:
    """The pairs of a type of cells with one of them exchanged."""
    for i, (old, old_source) in enumerate(pairs):
        node = NODES[i // KEPT]
        _, other_source = pairs[i + 1 - 2 * (i % KEPT)]
        for source in PREDECESSORS[node]:
            if source == other_source:
                continue
            for op in _without_none(ops[EDGES.index((source, node))]):
                if (op, source) != (old, old_source):
                    yield (*pairs[:i], (op, source), *pairs[i + 1 :])
