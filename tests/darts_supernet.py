"""A supernet of the DARTS space as other code bases write it: its alphas are its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.0) if self.stride == 1 else x[:, :, ::2, ::2].mul(0.0)


class FactorizedReduce(nn.Module):
    """Half of the channels from even pixels, half from odd ones."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(channels_in, channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels_in, channels // 2, 1, stride=2, bias=False)
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        out: Tensor = self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))
        return out


def separable(channels: int, kernel: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel - 1) // 2
    depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, channels, bias=False)
    return [nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False), norm(channels)]


class MixedOp(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        skip = nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
        self._ops = nn.ModuleList(
            [
                Zero(stride),
                nn.Sequential(nn.MaxPool2d(3, stride, 1), norm(channels)),
                skip,
                nn.Sequential(*separable(channels, 3, stride), *separable(channels, 3, 1)),
                nn.Sequential(*separable(channels, 5, stride, 2)),
            ]
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(weight * op(x) for weight, op in zip(weights, self._ops, strict=True))  # type: ignore[return-value]


class Cell(nn.Module):
    """Two input nodes, `steps` more, of which the output is made."""

    def __init__(
        self, before: int, last: int, channels: int, reduction: bool, reduced: bool, steps: int
    ) -> None:
        super().__init__()
        self.reduction, self.steps = reduction, steps
        self.preprocess0 = (
            FactorizedReduce(before, channels)
            if reduced
            else nn.Sequential(nn.ReLU(), nn.Conv2d(before, channels, 1, bias=False), norm(channels))
        )
        self.preprocess1 = nn.Sequential(nn.ReLU(), nn.Conv2d(last, channels, 1, bias=False), norm(channels))
        self._ops = nn.ModuleList(
            MixedOp(channels, 2 if reduction and j < 2 else 1) for i in range(steps) for j in range(2 + i)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        first = 0
        for _ in range(self.steps):
            edges = zip(states, self._ops[first:], weights[first:], strict=False)
            node = sum(op(h, row) for h, op, row in edges)
            first += len(states)
            states.append(node)
        return torch.cat(states[2:], 1)


class DartsSupernet(nn.Module):
    """A stem, cells, of which those at a third and two thirds reduce, and a classifier.

    Returns features and logits, as many of these code bases do.
    """

    def __init__(self, channels: int, layers: int, classes: int = 4, steps: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 3 * channels, 3, padding=1, bias=False), nn.BatchNorm2d(3 * channels)
        )
        before = last = 3 * channels
        self.cells = nn.ModuleList()
        reduced = False
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            self.cells.append(Cell(before, last, channels, reduction, reduced, steps))
            before, last, reduced = last, steps * channels, reduction
        self.classifier = nn.Linear(last, classes)
        edges = len(self.cells[0]._ops)
        self.alphas_normal = nn.Parameter(torch.randn(edges, 5) / 2)
        self.alphas_reduce = nn.Parameter(torch.randn(edges, 5) / 2)

    def weights(self, reduction: bool) -> Tensor:
        return F.softmax(self.alphas_reduce if reduction else self.alphas_normal, -1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        s0 = s1 = self.stem(images)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, self.weights(cell.reduction))
        features = F.adaptive_avg_pool2d(s1, 1).flatten(1)
        return features, self.classifier(features)
