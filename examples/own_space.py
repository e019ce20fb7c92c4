"""A search space of one's own: two types of cells with three nodes, two or three operations on an edge.

python -m vpdarts_fast.search --plugin examples/own_space.py --space two-cells
"""

from dataclasses import dataclass

from torch import Tensor, nn

from vpdarts_fast.spaces.space import AlphaTable, OpPerEdge, Space

EDGES = ("0->1", "0->2", "1->2")
WIDE, DEEP = (("conv", "pool"), ("conv", "pool", "skip"), ("conv", "skip")), (("conv", "skip"),) * 3
MODULES = {
    "conv": lambda c: nn.Sequential(nn.ReLU(), nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)),
    "pool": lambda c: nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.BatchNorm2d(c)),
    "skip": lambda c: nn.Identity(),
}


class MixedOp(nn.ModuleList):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:  # of the edge with most operations there are O
        return sum(weight * op(x) for weight, op in zip(weights[: len(self)], self, strict=True))


class Network(nn.Module):  # with all operations, or one on each edge
    def __init__(self, channels: int, num_classes: int, cells: list[tuple[tuple[str, ...], ...]]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        edges = [MixedOp(MODULES[op](channels) for op in names) for cell in cells for names in cell]
        self.cells = nn.ModuleList([nn.ModuleList(edges[:3]), nn.ModuleList(edges[3:])])
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor, weights: Tensor | None = None) -> Tensor:
        x, rows = self.stem(images), images.new_ones(6, 1) if weights is None else weights  # [E, O]
        for cell, (row_01, row_02, row_12) in zip(self.cells, rows.split(3), strict=True):
            node = cell[0](x, row_01)
            x = nn.functional.avg_pool2d(cell[1](x, row_02) + cell[2](node, row_12), 2)
        return self.classifier(x.mean((2, 3)))


@dataclass(frozen=True)
class TwoCells(Space[OpPerEdge]):
    """Two cells that are searched apart."""

    name = "two-cells"
    channels: int = 8
    """C, the channels of both cells."""

    @property
    def tables(self) -> tuple[AlphaTable, ...]:
        return AlphaTable("wide", EDGES, WIDE), AlphaTable("deep", EDGES, DEEP)

    def supernet(self, num_classes: int, *, fused: bool = False, backend: str = "auto") -> nn.Module:
        return Network(self.channels, num_classes, [WIDE, DEEP])

    def network(self, genotype: OpPerEdge, num_classes: int) -> nn.Module:
        return Network(4 * self.channels, num_classes, [tuple((op,) for op in ops) for ops in genotype.ops])
