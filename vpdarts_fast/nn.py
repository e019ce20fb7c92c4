"""The building blocks of a supernet as plain modules, and their fused form through `vpdarts_fast.ops`.

Parameter names are those of the public NAS-Bench-201 search networks, so that their checkpoints load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vpdarts_fast import ops


class ReLUConvBN(nn.Module):
    """ReLU, convolution without bias, batch norm. [N, C_in, H, W] -> [N, C_out, H/stride, W/stride]."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(channels_out, affine=affine),
        )

    @property
    def conv(self) -> nn.Conv2d:
        conv = self.op[1]
        assert isinstance(conv, nn.Conv2d)
        return conv

    @property
    def norm(self) -> nn.BatchNorm2d:
        norm = self.op[2]
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class Zero(nn.Module):
    """The `none` operation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class SkipConnect(nn.Module):
    """The identity, with dropout behind it while training (paper, section 4.2).

    A probability counts in steps of 1/65536: the draw compares 16 random bits an element, which takes
    an eighth of the time of PyTorch's Bernoulli draw on a CPU.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def scale(self, x: Tensor) -> Tensor | None:
        """What the skip is multiplied with: a fresh draw of 0 or 1/(1-p) shaped like x; None is one."""
        kept = round((1 - self.dropout) * 2**16)
        if not self.training or kept == 2**16:
            return None
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()]
        # In the order of x's memory: channels last stays channels last.
        strides = x.stride()
        order = sorted(range(x.dim()), key=lambda d: (-strides[d], d))
        drawn = bits.view([x.shape[d] for d in order]).permute([order.index(d) for d in range(x.dim())])
        return (drawn < kept - 2**15).to(x.dtype) * (2**16 / kept)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale(x)
        return x if scale is None else x * scale

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}"


OPERATIONS: dict[str, Callable[[int, float, bool], nn.Module]] = {
    "none": lambda channels, dropout, affine: Zero(),
    "skip_connect": lambda channels, dropout, affine: SkipConnect(dropout),
    "nor_conv_1x1": lambda channels, dropout, affine: ReLUConvBN(channels, channels, 1, 1, affine),
    "nor_conv_3x3": lambda channels, dropout, affine: ReLUConvBN(channels, channels, 3, 1, affine),
    "avg_pool_3x3": lambda channels, dropout, affine: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
}
"""Builds a candidate operation: (channels, skip dropout, affine batch norm) -> module."""


class MixedOp(nn.ModuleList):
    """The alpha-weighted sum of an edge's candidate operations (paper, Eq. 3: no softmax)."""

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        """x [N, C, H, W], alpha [O] -> [N, C, H, W]."""
        out: Tensor = alpha[0] * self[0](x)
        for o in range(1, len(self)):
            out = out + alpha[o] * self[o](x)
        return out


class SearchCell(nn.Module):
    """Nodes in which every node feeds every later one through a mixed operation.

    Attributes:
        fused: run through `vpdarts_fast.ops` instead of module by module; the same function.
    """

    def __init__(self, channels: int, op_names: Sequence[str], num_nodes: int, skip_dropout: float) -> None:
        super().__init__()
        self.num_nodes = num_nodes
        self.fused = False
        self.edges = nn.ModuleDict(
            {
                f"{i}<-{j}": MixedOp(OPERATIONS[name](channels, skip_dropout, False) for name in op_names)
                for i in range(1, num_nodes)
                for j in range(i)
            }
        )

    def mixed_ops(self) -> list[MixedOp]:
        """In the order of alpha's rows."""
        return [edge for edge in self.edges.values() if isinstance(edge, MixedOp)]

    def convolutions(self) -> list[tuple[ReLUConvBN, ReLUConvBN]]:
        """The 1x1 and 3x3 convolutions of each edge, in the order of alpha's rows."""
        pairs = []
        for edge in self.mixed_ops():
            conv_1x1, conv_3x3 = edge[2], edge[3]
            assert isinstance(conv_1x1, ReLUConvBN) and isinstance(conv_3x3, ReLUConvBN)
            pairs.append((conv_1x1, conv_3x3))
        return pairs

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        """x [N, C, H, W], alpha [E, O] -> [N, C, H, W]."""
        if self.fused and self.training:
            return self._forward_fused(x, alpha)
        nodes = [x]
        rows = iter(zip(self.mixed_ops(), alpha.unbind(0), strict=True))
        for i in range(1, self.num_nodes):
            terms = [edge(nodes[j], row) for j, (edge, row) in zip(range(i), rows, strict=False)]
            node = terms[0]
            for term in terms[1:]:
                node = node + term
            nodes.append(node)
        return nodes[-1]

    def _forward_fused(self, x: Tensor, alpha: Tensor) -> Tensor:
        mixed_ops, convolutions = self.mixed_ops(), self.convolutions()
        nodes: list[Tensor] = [x]
        raw: dict[int, tuple[Tensor, Tensor]] = {}
        for i in range(1, self.num_nodes):
            outgoing = [edge_index(i - 1, target) for target in range(i, self.num_nodes)]
            outputs = ops.relu_conv(
                nodes[i - 1],
                torch.stack([convolutions[e][0].conv.weight for e in outgoing]),
                torch.stack([convolutions[e][1].conv.weight for e in outgoing]),
            )
            raw.update(zip(outgoing, zip(*outputs, strict=True), strict=True))
            incoming = [edge_index(j, i) for j in range(i)]
            scales = [skip_scale(mixed_ops[e], nodes[j]) for j, e in enumerate(incoming)]
            node, mean, variance = ops.mixed_sum(
                [node[None] for node in nodes],
                [raw[e][0][None] for e in incoming],
                [raw[e][1][None] for e in incoming],
                alpha[None, incoming[0] : incoming[-1] + 1],
                [scale[None] for scale in scales if scale is not None],
                convolutions[0][0].norm.eps,
            )
            for e, edge_mean, edge_variance in zip(incoming, mean[0], variance[0], strict=True):
                for o in (0, 1):
                    update_running_statistics(convolutions[e][o].norm, edge_mean[o], edge_variance[o], x)
            nodes.append(node.squeeze(0))
        return nodes[-1]


def edge_index(source: int, target: int) -> int:
    """The row of alpha for the edge source -> target."""
    return target * (target - 1) // 2 + source


def skip_scale(mixed_op: MixedOp, x: Tensor) -> Tensor | None:
    skip = mixed_op[1]
    assert isinstance(skip, SkipConnect)
    return skip.scale(x)


@torch.no_grad()
def update_running_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, x: Tensor) -> None:
    """What a training-mode forward of `norm` does to its buffers. mean, biased variance [C], of x's batch."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    momentum = norm.momentum
    if momentum is None:
        momentum = 1.0 / float(norm.num_batches_tracked)
    count = x.numel() // x.shape[1]
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a pooled 1x1 shortcut, stride 2.

    [N, C, H, W] -> [N, C_out, ceil(H/2), ceil(W/2)].
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(channels_in, channels_out, 3, 2, affine=True)
        self.conv_b = ReLUConvBN(channels_out, channels_out, 3, 1, affine=True)
        self.downsample = nn.Sequential(
            nn.AvgPool2d(
                2, 2, ceil_mode=True
            ),  # the same as without for even sizes, fits conv_a for odd ones
            nn.Conv2d(channels_in, channels_out, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.downsample(x)
        residual: Tensor = self.conv_b(self.conv_a(x))
        return shortcut + residual
