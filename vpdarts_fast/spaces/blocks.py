"""The building blocks of a supernet as plain modules, and their fused form through `vpdarts_fast.ops`.

Parameter names are those of the public NAS-Bench-201 search networks, so that their checkpoints load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from vpdarts_fast import ops
from vpdarts_fast.backends.pytorch.dropout import skip_scale
from vpdarts_fast.backends.registry import preferred
from vpdarts_fast.contract.derivatives import with_statistics
from vpdarts_fast.contract.sharing import can_be_read
from vpdarts_fast.contract.transforms import in_transform
from vpdarts_fast.runtime.synchronised import SynchronisedBatchNorm2d
from vpdarts_fast.spaces.norms import (
    Fixed,
    kept_statistics,
    normalises_batches,
    update_running_statistics,
)


class ReLUConvBN(nn.Module):
    """ReLU, then a convolution without bias, then a batch norm.

    [N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)], for an odd kernel.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(channels_out, affine=affine),
        )

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution, whose weight is [C_out, C_in, kernel, kernel]."""
        conv = self.op[1]
        assert isinstance(conv, nn.Conv2d)
        return conv

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The batch norm of the C_out channels."""
        norm = self.op[2]
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x` [N, C_in, H, W] to [N, C_out, ceil(H / stride), ceil(W / stride)]."""
        out: Tensor = self.op(x)
        return out


class Zero(nn.Module):
    """The `none` operation."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Returns zeros [N, C, ceil(H / stride), ceil(W / stride)] for `x` [N, C, H, W]."""
        return torch.zeros_like(x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride])

    @override
    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class SkipConnect(nn.Module):
    """The identity, with dropout behind it while training (paper, section 4.2).

    The draw is a function of a seed, which comes from PyTorch's generator, and of an element's place
    (`vpdarts_fast.contract.dropout.keep_bits`), so that fused cells draw the same and need not store it.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` [N, C, H, W], in training mode with dropout.

        Dropout makes elements 0 with the probability `dropout`, and scales the others up by as much as keeps
        the expected value.
        """
        if not self.training or self.dropout == 0:
            return x
        return x * skip_scale(draw_seeds(1, x.device)[0], self.dropout, x)

    @override
    def extra_repr(self) -> str:
        return f"dropout={self.dropout}"


def draw_seeds(count: int, device: torch.device) -> Tensor:
    """Draws seeds [count] int64 on the device, from PyTorch's generator of that device."""
    return torch.empty(count, dtype=torch.int64, device=device).random_(-(2**63), None)


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
        """Adds up what the operations make of `x` [N, C, H, W], weighted by `alpha` [O]: [N, C, H, W]."""
        out: Tensor = alpha[0] * self[0](x)
        for o in range(1, len(self)):
            out = out + alpha[o] * self[o](x)
        return out


class SearchCell(nn.Module):
    """Nodes in which every node feeds every later one through a mixed operation.

    Attributes:
        fused: run through `vpdarts_fast.ops` instead of module by module where the batch norms use the
            batch's own statistics; the same function.
        backend: what serves the ops that it has (`vpdarts_fast.backends.registry.preferred`), or auto.
    """

    def __init__(self, channels: int, op_names: Sequence[str], num_nodes: int, skip_dropout: float) -> None:
        super().__init__()
        self.num_nodes = num_nodes
        self.fused = False
        self.backend = "auto"
        self.edges = nn.ModuleDict(
            {
                f"{i}<-{j}": MixedOp(OPERATIONS[name](channels, skip_dropout, False) for name in op_names)
                for i in range(1, num_nodes)
                for j in range(i)
            }
        )

    def mixed_ops(self) -> list[MixedOp]:
        """Lists the cell's mixed operations in the order of alpha's rows."""
        return [edge for edge in self.edges.values() if isinstance(edge, MixedOp)]

    def convolutions(self) -> list[tuple[ReLUConvBN, ReLUConvBN]]:
        """The 1x1 and 3x3 convolutions of each edge, in the order of alpha's rows."""
        pairs = []
        for edge in self.mixed_ops():
            conv_1x1, conv_3x3 = edge[2], edge[3]
            assert isinstance(conv_1x1, ReLUConvBN) and isinstance(conv_3x3, ReLUConvBN)
            pairs.append((conv_1x1, conv_3x3))
        return pairs

    def convolution_weights(self) -> tuple[Tensor, Tensor]:
        """Stacks the weights of all edges' convolutions: 1x1 [E, C, C, 1, 1] and 3x3 [E, C, C, 3, 3]."""
        convolutions = self.convolutions()
        return (
            torch.stack([conv_1x1.conv.weight for conv_1x1, _ in convolutions]),
            torch.stack([conv_3x3.conv.weight for _, conv_3x3 in convolutions]),
        )

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The first of the batch norms, which all have its mode and its eps."""
        conv_1x1 = self.mixed_ops()[0][2]
        assert isinstance(conv_1x1, ReLUConvBN)
        return conv_1x1.norm

    def skip_connections(self) -> list[SkipConnect]:
        """Lists the edges' skip connections in the order of alpha's rows."""
        skips = [edge[1] for edge in self.mixed_ops()]
        return [skip for skip in skips if isinstance(skip, SkipConnect)]

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        """Computes the last node [N, C, H, W] of `x` [N, C, H, W], the ops weighted by `alpha` [E, O]."""
        if self.fused and not in_transform():
            norm = self.norm
            if normalises_batches(norm):
                separate = isinstance(norm, SynchronisedBatchNorm2d)
                return self._synchronised(x, alpha) if separate else self._trained(x, alpha)
            if can_be_read(alpha) and not wants_gradients(x, alpha, *self.parameters()):
                return self.with_fixed_statistics(x.unsqueeze(0), alpha.unsqueeze(0)).squeeze(0)
        nodes = [x]
        rows = iter(zip(self.mixed_ops(), alpha.unbind(0), strict=True))
        for i in range(1, self.num_nodes):
            terms = [edge(nodes[j], row) for j, (edge, row) in zip(range(i), rows, strict=False)]
            node = terms[0]
            for term in terms[1:]:
                node = node + term
            nodes.append(node)
        return nodes[-1]

    def with_fixed_statistics(self, x: Tensor, alpha: Tensor, fixed: Fixed | None = None) -> Tensor:
        """Computes the cell for V alpha tables through `vpdarts_fast.ops`, without gradients.

        Args:
            x: [1 or V, N, C, H, W].
            alpha: [V, E, O].
            fixed: mean and variance that the batch norms use, [E, 2, C] each or [V, E, 2, C] each; None takes
                those that they keep.

        Returns:
            The last node [V, N, C, H, W].
        """
        if fixed is None:
            norms = [conv.norm for pair in self.convolutions() for conv in pair]
            mean, variance = kept_statistics(norms)
            fixed = mean.view(-1, 2, x.shape[2]), variance.view(-1, 2, x.shape[2])
        backend = preferred("masked_cell", self.backend)
        return ops.masked_cell(x, *self.convolution_weights(), *fixed, alpha, self.norm.eps, backend=backend)

    def with_batch_statistics(self, x: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the cell for V alpha tables through `vpdarts_fast.ops`, each with the batch's statistics.

        Ops whose alpha is 0 are left out; there is no dropout.

        Args:
            x: [1 or V, N, C, H, W].
            alpha: [V, E, O].

        Returns:
            The last node [V, N, C, H, W], and mean and biased variance [V, E, 2, C] of the batch norms.
        """
        backend = preferred("mixed_cell", self.backend)
        weights = self.convolution_weights()
        return ops.mixed_cell(x, *weights, alpha, eps=self.norm.eps, skip_zeros=True, backend=backend)

    def _synchronised(self, x: Tensor, alpha: Tensor) -> Tensor:
        """The cell in training, its batch norms modules of their own behind the fused convolutions."""
        weight_1x1, weight_3x3 = self.convolution_weights()
        edges, convolutions = self.mixed_ops(), self.convolutions()
        nodes, terms = [x], dict[int, Tensor]()
        for i in range(1, self.num_nodes):
            source = i - 1
            leaving = [edge_index(source, target) for target in range(i, self.num_nodes)]
            raw = ops.relu_conv(
                nodes[source],
                weight_1x1[leaving],
                weight_3x3[leaving],
                backend=preferred("relu_conv", self.backend),
            )
            for edge, raw_1x1, raw_3x3 in zip(leaving, *raw, strict=True):
                row, (conv_1x1, conv_3x3) = alpha[edge], convolutions[edge]
                skip, pool = (edges[edge][op](nodes[source]) for op in (1, 4))
                normalised = row[2] * conv_1x1.norm(raw_1x1) + row[3] * conv_3x3.norm(raw_3x3)
                terms[edge] = row[1] * skip + normalised + row[4] * pool
            nodes.append(sum((terms[edge_index(j, i)] for j in range(1, i)), start=terms[edge_index(0, i)]))
        return nodes[-1]

    def _trained(self, x: Tensor, alpha: Tensor) -> Tensor:
        skips, weights = self.skip_connections(), self.convolution_weights()
        drops = skips[0].training and skips[0].dropout > 0
        seeds = draw_seeds(len(skips), x.device) if drops else None
        norms = [conv.norm for pair in self.convolutions() for conv in pair]

        skips_zeros = can_be_read(alpha) and not wants_gradients(alpha)

        def cell() -> tuple[Tensor, Tensor, Tensor]:
            return ops.mixed_cell(
                x.unsqueeze(0),
                *weights,
                alpha.unsqueeze(0),
                seeds,
                skips[0].dropout,
                self.norm.eps,
                skips_zeros,
                backend=preferred("mixed_cell", self.backend),
            )

        def keep(_: Tensor, mean: Tensor, variance: Tensor) -> None:
            found = mean[0].flatten(0, 1), variance[0].flatten(0, 1)
            rows = alpha.tolist() if skips_zeros else []
            computed = [value != 0 for row in rows for value in row[2:4]] or None
            update_running_statistics(norms, *found, x, computed)

        return with_statistics(cell, keep).squeeze(0)


def wants_gradients(*tensors: Tensor) -> bool:
    """Whether a gradient of any of the tensors is kept track of."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def edge_index(source: int, target: int) -> int:
    """The row of alpha for the edge source -> target."""
    return target * (target - 1) // 2 + source


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a pooled 1x1 shortcut, stride 2.

    [N, C, H, W] -> [N, C_out, ceil(H/2), ceil(W/2)].

    Attributes:
        fused: run through `vpdarts_fast.ops` instead of module by module where the batch norms use the
            batch's own statistics; the same function.
        backend: what serves the ops that it has (`vpdarts_fast.backends.registry.preferred`), or auto.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.fused = False
        self.backend = "auto"
        self.conv_a = ReLUConvBN(channels_in, channels_out, 3, 2, affine=True)
        self.conv_b = ReLUConvBN(channels_out, channels_out, 3, 1, affine=True)
        self.downsample = nn.Sequential(
            nn.AvgPool2d(
                2, 2, ceil_mode=True
            ),  # the same as without for even sizes, fits conv_a for odd ones
            nn.Conv2d(channels_in, channels_out, 1, bias=False),
        )

    @property
    def shortcut(self) -> nn.Conv2d:
        """The 1x1 convolution behind the pool, whose weight is [C_out, C, 1, 1]."""
        conv = self.downsample[1]
        assert isinstance(conv, nn.Conv2d)
        return conv

    @property
    def norms(self) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
        """The batch norms of both 3x3 convolutions, a and b."""
        return self.conv_a.norm, self.conv_b.norm

    def convolution_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weights of a, b and the shortcut: [C_out, C, 3, 3], [C_out, C_out, 3, 3], [C_out, C, 1, 1]."""
        return self.conv_a.conv.weight, self.conv_b.conv.weight, self.shortcut.weight

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x` [N, C, H, W] to [N, C_out, ceil(H / 2), ceil(W / 2)]."""
        if self.fused and not in_transform():
            norm = self.conv_a.norm
            if normalises_batches(norm):
                if not isinstance(norm, SynchronisedBatchNorm2d):
                    return with_statistics(
                        lambda: self.with_batch_statistics(x),
                        lambda out, mean, variance: update_running_statistics(
                            self.norms, mean, variance, out
                        ),
                    )
            elif not wants_gradients(x, *self.parameters()):
                return self.with_fixed_statistics(x)
        shortcut: Tensor = self.downsample(x)
        residual: Tensor = self.conv_b(self.conv_a(x))
        return shortcut + residual

    def with_fixed_statistics(self, x: Tensor, fixed: Fixed | None = None) -> Tensor:
        """Computes the output through `vpdarts_fast.ops`, without gradients.

        Args:
            x: [N, C, H, W].
            fixed: mean and variance that the batch norms of a and b use, [2, C_out] each; None takes those
                that they keep.
        """
        mean, variance = fixed or kept_statistics(self.norms)
        weight = torch.stack([norm.weight for norm in self.norms])
        bias = torch.stack([norm.bias for norm in self.norms])
        scale = weight / torch.sqrt(variance + self.conv_a.norm.eps)
        backend = preferred("residual_block", self.backend)
        weights = self.convolution_weights()
        return ops.residual_block(x, *weights, scale, bias - mean * scale, backend=backend)

    def with_batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the output through `vpdarts_fast.ops`, with the statistics of the batch.

        Returns:
            The output [N, C_out, ceil(H / 2), ceil(W / 2)], and mean and biased variance [2, C_out] of a and
            b.
        """
        norms = self.norms
        return ops.trained_residual_block(
            x,
            *self.convolution_weights(),
            torch.stack([norm.weight for norm in norms]),
            torch.stack([norm.bias for norm in norms]),
            norms[0].eps,
            backend=preferred("trained_residual_block", self.backend),
        )
