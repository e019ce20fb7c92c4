"""A supernet whose edges have different numbers of operations, and images for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def a_batch(count: int = 5, seed: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=generator)
    return [(images, torch.randint(4, (count,), generator=generator))]


class MixedOp(nn.ModuleList):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Takes whole rows [O], also where it has fewer operations."""
        return sum(weight * op(x) for weight, op in zip(weights, self, strict=False))  # type: ignore[return-value]


class TwoEdges(nn.Module):
    """A cell of two edges from one node to another."""

    def __init__(self, make: Callable[[], list[nn.Module]]) -> None:
        super().__init__()
        self.edges = nn.ModuleList(MixedOp(make()) for _ in range(2))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.edges[0](x, weights[0]) + self.edges[1](x, weights[1])


def conv(stride: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 3, stride, padding=1, bias=False), nn.BatchNorm2d(3))


class RaggedSupernet(nn.Module):
    """A normal cell with two operations on each edge, a reduction cell with three."""

    def __init__(self) -> None:
        super().__init__()
        self.normal = TwoEdges(lambda: [conv(1), nn.Identity()])
        self.reduction = TwoEdges(lambda: [conv(2), conv(2), nn.AvgPool2d(3, 2, 1)])
        self.classifier = nn.Linear(3, 4)

    def forward(self, images: Tensor, weights: Tensor) -> Tensor:
        x = self.reduction(self.normal(images, weights[:2]), weights[2:])
        return self.classifier(x.mean((2, 3)))
