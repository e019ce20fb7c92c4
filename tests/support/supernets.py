"""Parts of supernets as code bases write them, with the variations that occur."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Style:
    """How a code base builds its layers."""

    affine: bool = False
    track: bool = True
    bias: bool = False
    momentum: float | None = 0.1
    pool_norm: bool = True
    padded_reduce: bool = False

    def norm(self, channels: int, affine: bool | None = None) -> nn.BatchNorm2d:
        affine = self.affine if affine is None else affine
        return nn.BatchNorm2d(channels, affine=affine, track_running_stats=self.track, momentum=self.momentum)

    def dense(self, channels: int, kernel: int, stride: int) -> nn.Module:
        conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, bias=self.bias)
        return Wrapped(nn.Sequential(nn.ReLU(), conv, self.norm(channels)))

    def separable(self, channels: int, kernel: int, dilation: int, stride: int, stages: int) -> nn.Module:
        layers: list[nn.Module] = []
        for stage in range(stages):
            padding, step = dilation * (kernel - 1) // 2, stride if stage == 0 else 1
            layers += [
                nn.ReLU(inplace=stage > 0),
                nn.Conv2d(channels, channels, kernel, step, padding, dilation, channels, bias=False),
                nn.Conv2d(channels, channels, 1, bias=self.bias),
                self.norm(channels),
            ]
        return Wrapped(nn.Sequential(*layers))

    def pool(self, kind: str, channels: int, stride: int) -> nn.Module:
        pool: nn.Module = nn.MaxPool2d(3, stride, 1)
        if kind == "avg":
            pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        return nn.Sequential(pool, self.norm(channels, affine=False)) if self.pool_norm else pool

    def skip(self, channels: int, stride: int) -> nn.Module:
        return nn.Identity() if stride == 1 else FactorisedReduce(channels, self)


class Wrapped(nn.Module):
    """Layers under a name of their own."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.0) if self.stride == 1 else x[:, :, :: self.stride, :: self.stride].mul(0.0)


class NewZero(Zero):
    """Zeros that do not come from its input."""

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.size()
        return torch.FloatTensor(count, channels, height // self.stride, width // self.stride).fill_(0)


class FactorisedReduce(nn.Module):
    """In two layouts."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        first, second = (
            nn.Conv2d(channels, part, 1, 2, bias=style.bias)
            for part in (channels // 2, channels - channels // 2)
        )
        if style.padded_reduce:
            self.convs = nn.ModuleList([first, second])
            self.pad = nn.ConstantPad2d((0, 1, 0, 1), 0)
        else:
            self.conv_1, self.conv_2 = first, second
        self.bn = style.norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        if hasattr(self, "pad"):
            further = self.pad(x)
            parts = [self.convs[0](x), self.convs[1](further[:, :, 1:, 1:])]
        else:
            parts = [self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])]
        out: Tensor = self.bn(torch.cat(parts, dim=1))
        return out


def darts_ops(channels: int, stride: int, style: Style) -> list[nn.Module]:
    return [
        Zero(stride),
        style.pool("max", channels, stride),
        style.pool("avg", channels, stride),
        style.skip(channels, stride),
        style.separable(channels, 3, 1, stride, 2),
        style.separable(channels, 5, 1, stride, 2),
        style.separable(channels, 3, 2, stride, 1),
        style.separable(channels, 5, 2, stride, 1),
    ]


def nas_bench_201_ops(channels: int, style: Style) -> list[nn.Module]:
    return [
        Zero(1),
        nn.Identity(),
        style.dense(channels, 1, 1),
        style.dense(channels, 3, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    ]


def weighted(weights: Any, ops: Iterable[nn.Module], x: Tensor) -> Tensor:
    total: Tensor = sum(w * op(x) for w, op in zip(weights, ops, strict=False))  # type: ignore[assignment]
    return total


class MixedOp(nn.Module):
    """Family A."""

    def __init__(self, ops: list[nn.Module]) -> None:
        super().__init__()
        self._ops = nn.ModuleList(ops)

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        if weights is None:
            return weighted([1.0] * len(self._ops), self._ops, x)
        return weighted(weights, self._ops, x)


class NumberedMixedOp(nn.Module):
    """Its operations are children."""

    def __init__(self, ops: list[nn.Module]) -> None:
        super().__init__()
        for o, op in enumerate(ops):
            self.add_module(f"primitive-{o}", op)

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        return weighted(weights, self.children(), x)


class OtherMethodMixedOp(nn.Module):
    """It has no `forward`, and a method for sampling."""

    def __init__(self, ops: list[nn.Module]) -> None:
        super().__init__()
        self.ops = nn.ModuleList(ops)

    def forward_sampled(self, x: Tensor, weights: Any, index: int) -> Tensor:
        out: Tensor = self.ops[index](x) * weights[index]
        return out

    def forward_darts(self, x: Tensor, weights: Any) -> Tensor:
        return weighted(weights, self.ops, x)


class SkippingMixedOp(MixedOp):
    """It does not run operations of weight 0."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        kept = [(w, op) for w, op in zip(weights, self._ops, strict=False) if w != 0]
        return weighted([w for w, _ in kept], [op for _, op in kept], x)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Its channels."""
    count, channels, height, width = x.shape
    grouped = x.view(count, groups, channels // groups, height, width)
    return torch.transpose(grouped, 1, 2).contiguous().view(count, -1, height, width)


class PartialMixedOp(MixedOp):
    """A part 1/k of the channels."""

    def __init__(self, ops: list[nn.Module], k: int) -> None:
        super().__init__(ops)
        self.k = k
        self.mp = nn.MaxPool2d(2, 2)

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        part = x.shape[1] // self.k
        mixed, rest = weighted(weights, self._ops, x[:, :part]), x[:, part:]
        if mixed.shape[2] != x.shape[2]:
            rest = self.mp(rest)
        return shuffled(torch.cat([mixed, rest], dim=1), self.k)


class AuxiliaryMixedOp(MixedOp):
    """It adds another skip connection, which fades."""

    def __init__(self, ops: list[nn.Module], auxiliary: nn.Module) -> None:
        super().__init__(ops)
        self.auxiliary, self.decay = auxiliary, 1.0

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        out = weighted(weights, self._ops, x)
        out += self.auxiliary(x) * self.decay
        return out


class DropPathMixedOp(MixedOp):
    """It drops operations once a probability is set, as schedules do."""

    drop_prob = 0.0

    def __init__(self, ops: list[nn.Module]) -> None:
        super().__init__(ops)
        self.drop_prob = 0.0

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        out = weighted(weights, self._ops, x)
        return F.dropout2d(out, self.drop_prob, self.training) if self.drop_prob > 0 else out


class Cell(nn.Module):
    """Family B."""

    def __init__(self, channels: int, style: Style, max_nodes: int = 4) -> None:
        super().__init__()
        self.max_nodes = max_nodes
        self.edges = nn.ModuleDict(
            {
                f"{i}<-{j}": nn.ModuleList(nas_bench_201_ops(channels, style))
                for i in range(1, max_nodes)
                for j in range(i)
            }
        )
        self.edge2index = {key: e for e, key in enumerate(sorted(self.edges))}

    def forward(self, inputs: Tensor, weights: Tensor) -> Tensor:
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            keys = [f"{i}<-{j}" for j in range(i)]
            terms = [
                weighted(weights[self.edge2index[key]], self.edges[key], nodes[j])  # type: ignore[arg-type]
                for j, key in enumerate(keys)
            ]
            nodes.append(sum(terms))  # type: ignore[arg-type]
        return nodes[-1]

    def forward_joint(self, inputs: Tensor, weights: Tensor) -> Tensor:
        return Cell.forward(self, inputs, weights)

    def forward_select(self, inputs: Tensor, index: Tensor) -> Tensor:
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            keys = [f"{i}<-{j}" for j in range(i)]
            terms = [
                self.edges[key][int(index[self.edge2index[key]])](nodes[j]) for j, key in enumerate(keys)
            ]  # type: ignore[index]
            nodes.append(sum(terms))
        return nodes[-1]


class SkippingCell(Cell):
    """It does not run operations of weight 0."""

    def forward(self, inputs: Tensor, weights: Tensor) -> Tensor:
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            terms = []
            for j, key in enumerate(f"{i}<-{j}" for j in range(i)):
                edge, row = self.edges[key], weights[self.edge2index[key]]
                assert isinstance(edge, nn.ModuleList)
                terms.append(sum(w * op(nodes[j]) for w, op in zip(row, edge, strict=True) if w != 0))
            nodes.append(sum(terms))
        return nodes[-1]


class PartialCell(Cell):
    """A part 1/k of the channels; operations of weight 0 are not run."""

    def __init__(self, channels: int, style: Style, k: int = 2) -> None:
        super().__init__(channels // k, style)
        self.k = k

    def mixed_op(self, x: Tensor, key: str, weights: Tensor) -> Tensor:
        part = x.shape[1] // self.k
        edge = self.edges[key]
        assert isinstance(edge, nn.ModuleList)
        terms = [w * op(x[:, :part]) for w, op in zip(weights, edge, strict=True) if w != 0]
        return shuffled(torch.cat([sum(terms), x[:, part:]], dim=1), self.k)  # type: ignore[list-item]

    def forward(self, inputs: Tensor, weights: Tensor) -> Tensor:
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            keys = [f"{i}<-{j}" for j in range(i)]
            terms = [
                self.mixed_op(nodes[j], key, weights[self.edge2index[key]]) for j, key in enumerate(keys)
            ]
            nodes.append(sum(terms))  # type: ignore[arg-type]
        return nodes[-1]


class Residual(nn.Module):
    """Between the stages of family B."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide, style = 2 * channels, Style(affine=True)
        self.conv_a = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, wide, 3, 2, 1, bias=False), style.norm(wide)
        )
        self.conv_b = nn.Sequential(nn.ReLU(), nn.Conv2d(wide, wide, 3, 1, 1, bias=False), style.norm(wide))
        self.downsample = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(channels, wide, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_b(self.conv_a(x))
        shortcut: Tensor = self.downsample(x)
        return shortcut + out
