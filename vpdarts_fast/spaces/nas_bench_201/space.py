"""NAS-Bench-201 as a space that can be searched."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.edges import MakeEdge
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, NUM_NODES, OPS, Genotype
from vpdarts_fast.spaces.nas_bench_201.supernet import DiscreteCell, DiscreteNetwork, Supernet
from vpdarts_fast.spaces.nas_bench_201.varied import VariedSupernet
from vpdarts_fast.spaces.space import AlphaTable, CellDrawing, Space
from vpdarts_fast.spaces.stems import Stem, behind_stem


@dataclass(frozen=True)
class NasBench201(Space[Genotype]):
    """One cell of four nodes, an operation on each of its six edges; 15,625 architectures."""

    name: ClassVar[str] = "nas-bench-201"
    fused: ClassVar[bool] = True

    channels: int = 16
    """C, the channels of the first stage."""
    cells_per_stage: int = 5
    """N, the cells of each of the three stages."""
    skip_dropout: float = 0.2
    """Probability of the dropout behind every skip connection while training."""
    stem: Stem = "auto"
    """First layers: plain, halving or quartering (images are so much smaller behind them), or auto (halving
    from 64 pixels on, quartering from 128)."""
    finalist_channels: int = 8
    """C of the networks in which finalists are trained."""
    finalist_cells_per_stage: int = 5
    """N of these networks."""

    @property
    @override
    def tables(self) -> tuple[AlphaTable, ...]:
        return (AlphaTable.uniform("cell", [f"{source}->{target}" for source, target in EDGES], OPS),)

    @override
    def supernet(self, num_classes: int, *, fused: bool = False, backend: str = "auto") -> Supernet:
        return Supernet(
            self.channels,
            self.cells_per_stage,
            num_classes,
            skip_dropout=self.skip_dropout,
            fused=fused,
            backend=backend,
            stem=self.stem,
        )

    @override
    def varied_supernet(self, num_classes: int, make_edge: MakeEdge, further: int) -> VariedSupernet:
        return VariedSupernet(
            self.channels,
            self.cells_per_stage,
            num_classes,
            skip_dropout=self.skip_dropout,
            make_edge=make_edge,
            further=further,
            stem=self.stem,
        )

    @override
    def network(self, genotype: Genotype, num_classes: int) -> DiscreteNetwork:
        return DiscreteNetwork(genotype, 16, 5, num_classes, self.stem)

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
    ) -> DiscreteNetwork:
        if auxiliary:
            raise UserError(
                f"--auxiliary-weight is for networks that have an auxiliary head; those of {self.name} have "
                "none: use 0"
            )
        size = 16 if channels is None else channels, 5 if depth is None else depth
        return DiscreteNetwork(genotype, *size, num_classes, self.stem, fused=fused)

    @override
    def op_modules(self, network: nn.Module, genotype: Genotype) -> Iterator[tuple[int, int, nn.Module]]:
        for cell in network.modules():
            if isinstance(cell, DiscreteCell):
                for edge, (op, module) in enumerate(zip(genotype.choices, cell.layers, strict=True)):
                    yield edge, op, module

    @override
    def finalist_network(
        self, genotype: Genotype, num_classes: int, *, fused: bool = False, backend: str = "auto"
    ) -> OneCell:
        size = self.finalist_channels, self.finalist_cells_per_stage
        return OneCell(
            genotype, *size, num_classes, skip_dropout=0.0, fused=fused, backend=backend, stem=self.stem
        )

    @property
    @override
    def finalist(self) -> NasBench201:
        return dataclasses.replace(
            self, channels=self.finalist_channels, cells_per_stage=self.finalist_cells_per_stage
        )

    def parameters(self, num_classes: int) -> int:
        """How many parameters the supernet has."""
        return _parameters(self, num_classes)

    @override
    def stages(self, image_size: tuple[int, int]) -> list[tuple[int, int, int]]:
        height, width = behind_stem(image_size, self.stem)
        return [
            (self.channels * 2**stage, -(-height // 2**stage), -(-width // 2**stage)) for stage in range(3)
        ]

    def kept_values(self, image_size: tuple[int, int], *, edges: bool = True) -> int:
        """How many values a training step keeps of an image for the backward pass, at least.

        They are, of each cell, its nodes and the output of each edge's 3x3 convolution before its batch norm.
        """
        of_stages = sum(channels * height * width for channels, height, width in self.stages(image_size))
        return of_stages * self.cells_per_stage * (NUM_NODES + (len(EDGES) if edges else 0))

    @override
    def smallest(self, image_size: tuple[int, int]) -> int:
        return super().smallest(behind_stem(image_size, self.stem))

    @override
    def chosen(self, genotype: Genotype) -> Tensor:
        return F.one_hot(torch.tensor(genotype.choices, device="cpu"), len(OPS)).bool()

    @override
    def neighbours(self, genotype: Genotype) -> Iterator[Genotype]:
        choices = genotype.choices
        for edge in range(len(EDGES)):
            for op in range(len(OPS)):
                if op != choices[edge]:
                    yield Genotype.from_choices((*choices[:edge], op, *choices[edge + 1 :]))

    @override
    def parse(self, text: str) -> Genotype:
        return Genotype.from_string(text)

    @override
    def drawings(self, genotype: Genotype) -> tuple[CellDrawing, ...]:
        edges = tuple((*edge, op) for edge, op in zip(EDGES, genotype.ops, strict=True))
        return (CellDrawing("cell", tuple(map(str, range(NUM_NODES))), edges),)

    def _from_choices(self, choices: Sequence[int]) -> Genotype:
        return Genotype.from_choices(choices)


class OneCell(Supernet):
    """A supernet that trains a single cell: alpha is 1 on its ops and 0, which costs nothing, elsewhere.

    Two of them that are made with the same random numbers begin with the same weights where their cells have
    the same op on an edge.
    """

    def __init__(
        self,
        genotype: Genotype,
        channels: int,
        cells_per_stage: int,
        num_classes: int,
        *,
        skip_dropout: float,
        fused: bool,
        backend: str,
        stem: Stem = "plain",
    ) -> None:
        super().__init__(
            channels,
            cells_per_stage,
            num_classes,
            skip_dropout=skip_dropout,
            fused=fused,
            backend=backend,
            stem=stem,
        )
        one_hot = F.one_hot(torch.tensor(genotype.choices, device="cpu"), len(OPS)).float()
        self.register_buffer("alpha", one_hot, persistent=False)
        for cell in self.search_cells():
            for mixed_op, choice in zip(cell.mixed_ops(), genotype.choices, strict=True):
                for op, module in enumerate(mixed_op):
                    module.requires_grad_(op == choice)

    def forward(self, images: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Maps images [N, 3, H, W] to logits [N, classes]; an `alpha` is ignored, its own one is used."""
        own = self.get_buffer("alpha")
        return super().forward(images, own)


@functools.lru_cache(maxsize=64)
def _parameters(space: NasBench201, num_classes: int) -> int:
    """Counts them in two small supernets, which tell, as all cells of a stage are alike."""
    first, second = (
        Space.parameters(dataclasses.replace(space, cells_per_stage=cells), num_classes) for cells in (1, 2)
    )
    return first + (space.cells_per_stage - 1) * (second - first)
