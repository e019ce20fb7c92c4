"""Whole supernets as code bases write them, their alphas within: of the parts in `supernets`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from supernets import Cell, MixedOp, Residual, Style, darts_ops
from torch import Tensor, nn

CHOSEN = 0, 1, 3, 4, 7
"""none, max_pool_3x3, skip_connect, sep_conv_3x3 and dil_conv_5x5, of the DARTS space."""


class DartsCell(nn.Module):
    """Two input nodes, `steps` more, of which the output is made."""

    def __init__(
        self,
        before: int,
        last: int,
        channels: int,
        mixed_ops: Sequence[nn.Module],
        reduced: bool,
        steps: int,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.preprocess0 = preprocess(before, channels, 2 if reduced else 1)
        self.preprocess1 = preprocess(last, channels, 1)
        self._ops = nn.ModuleList(mixed_ops)

    def forward(self, s0: Tensor, s1: Tensor, weights: Any) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        first = 0
        for _ in range(self.steps):
            node = sum(self._ops[first + j](h, weights[first + j]) for j, h in enumerate(states))
            first += len(states)
            states.append(node)
        return torch.cat(states[2:], 1)


def preprocess(channels_in: int, channels: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(channels, affine=False))


class DartsSupernet(nn.Module):
    """Cells of which those at a third and at two thirds reduce; returns features and logits.

    Args:
        channels: of the first cells' nodes.
        layers: cells.
        mixed_op: makes a mixed operation of its operations.
        ops: which of the DARTS space.
        steps: nodes of a cell.
    """

    def __init__(
        self,
        channels: int = 4,
        layers: int = 3,
        classes: int = 4,
        mixed_op: Callable[[list[nn.Module]], nn.Module] = MixedOp,
        ops: Sequence[int] = CHOSEN,
        steps: int = 2,
        part: int = 1,
    ) -> None:
        super().__init__()
        before = last = 3 * channels
        self.stem = nn.Sequential(nn.Conv2d(3, last, 3, padding=1, bias=False), nn.BatchNorm2d(last))
        self.cells = nn.ModuleList()
        self.reductions = {layers // 3, 2 * layers // 3}
        edges = [min(j, 2) for i in range(steps) for j in range(2 + i)]
        for i in range(layers):
            channels *= 2 if i in self.reductions else 1
            strides = [2 if i in self.reductions and source < 2 else 1 for source in edges]
            some = [darts_ops(channels // part, stride, Style()) for stride in strides]
            mixed_ops = [mixed_op([every[o] for o in ops]) for every in some]
            self.cells.append(DartsCell(before, last, channels, mixed_ops, i - 1 in self.reductions, steps))
            before, last = last, steps * channels
        self.classifier = nn.Linear(last, classes)
        self.alphas_normal = nn.Parameter(torch.randn(len(edges), len(ops)) / 2)
        self.alphas_reduce = nn.Parameter(torch.randn(len(edges), len(ops)) / 2)

    def weights(self, reduction: bool) -> Any:
        """[E, O]."""
        return F.softmax(self.alphas_reduce if reduction else self.alphas_normal, -1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        s0 = s1 = self.stem(images)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.weights(i in self.reductions))
        features = F.adaptive_avg_pool2d(s1, 1).flatten(1)
        return features, self.classifier(features)


class EdgesSupernet(nn.Module):
    """Of NAS-Bench-201; parameters and buffers in the order of `vpdarts_fast.Supernet`, and the alphas.

    The cells' weights are the alphas as they are.
    """

    def __init__(self, channels: int = 4, cells: int = 1, classes: int = 4, affine: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.cells.append(Residual(channels))
                channels *= 2
            self.cells.extend(Cell(channels, Style(affine=affine)) for _ in range(cells))
        self.lastact = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, classes)
        self.alphas = nn.Parameter(torch.randn(6, 5) / 2)

    def weights(self, reduction: bool) -> Tensor:
        """[E, O]; there are no reduction cells."""
        return self.alphas

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(images)
        for cell in self.cells:
            x = cell(x, self.weights(False)) if isinstance(cell, Cell) else cell(x)
        features = F.adaptive_avg_pool2d(self.lastact(x), 1).flatten(1)
        return features, self.classifier(features)
