"""A supernet of NAS-Bench-201 as other code bases write it: cells with edges by name, alphas of its own.

Parameters and buffers are called as in `vpdarts_fast.Supernet`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReLUConvBN(nn.Module):
    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.0)


class Cell(nn.Module):
    def __init__(self, channels: int, affine: bool) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {
                f"{i}<-{j}": nn.ModuleList(
                    [
                        Zero(),
                        nn.Identity(),
                        ReLUConvBN(channels, channels, 1, 1, affine),
                        ReLUConvBN(channels, channels, 3, 1, affine),
                        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
                    ]
                )
                for i in range(1, 4)
                for j in range(i)
            }
        )
        self.rows = {key: row for row, key in enumerate(sorted(self.edges))}

    def forward(self, inputs: Tensor, weights: Tensor) -> Tensor:
        nodes = [inputs]
        for i in range(1, 4):
            terms = []
            for j in range(i):
                row = weights[self.rows[f"{i}<-{j}"]]
                terms.append(
                    sum(w * op(nodes[j]) for w, op in zip(row, self.edges[f"{i}<-{j}"], strict=True))
                )
            nodes.append(sum(terms))
        return nodes[-1]


class Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(channels_in, channels, 3, 2, True)
        self.conv_b = ReLUConvBN(channels, channels, 3, 1, True)
        self.downsample = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(channels_in, channels, 1, bias=False)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.downsample(inputs) + self.conv_b(self.conv_a(inputs))
        return out


class EdgesSupernet(nn.Module):
    """Returns features and logits; the cells' weights are the alphas as they are."""

    def __init__(self, channels: int, cells: int, classes: int = 4, affine: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.cells.append(Residual(channels, 2 * channels))
                channels *= 2
            self.cells.extend(Cell(channels, affine) for _ in range(cells))
        self.lastact = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, classes)
        self.alphas = nn.Parameter(torch.randn(6, 5) / 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(images)
        for cell in self.cells:
            x = cell(x, self.alphas) if isinstance(cell, Cell) else cell(x)
        features = F.adaptive_avg_pool2d(self.lastact(x), 1).flatten(1)
        return features, self.classifier(features)
