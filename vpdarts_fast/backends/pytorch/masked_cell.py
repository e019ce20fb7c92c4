"""`masked_cell` in PyTorch.

With fixed statistics an edge is one convolution on relu(x), a skip and a pool, all linear in alpha:

    edge(x; a) = W(a) * relu(x) + b(a) + a_skip x + pool(a_pool x)
    W(a) = a_1x1 W1 / s1 (centre tap) + a_3x3 W3 / s3,    b(a) = -a_1x1 m1 / s1 - a_3x3 m3 / s3

So every variant is computed with the alphas most variants have, all of them in one convolution, and
then corrected on the few (variant, edge) pairs whose alphas differ: + edge(x; a - a_common). Where
variants share a node's value (an input shared by all, until the first edge that differs), it is
computed once. Of half precision, what is folded and what is added up is float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vpdarts_fast.backends.pytorch.pool import avg_pool_3x3
from vpdarts_fast.contract.sharing import Row, alpha_rows, combinations, pick, some_tables
from vpdarts_fast.runtime.precision import wide


@dataclass
class Node:
    """The distinct values of a node over all variants.

    Attributes:
        values: [U, N, C, H, W].
        of: for each of the V variants, the number of its value.
    """

    values: Tensor
    of: list[int]

    def __post_init__(self) -> None:
        self.rectified = F.relu(self.values)


@dataclass(frozen=True)
class Edges:
    """Normalised convolutions of all edges: weights and means over the standard deviation."""

    weight_1x1: Tensor
    weight_3x3: Tensor
    mean: Tensor

    def kernel(self, e: int, row: Row) -> Tensor:
        """The kernel W(a) [C, C, 3, 3] of edge e with the alphas a = `row`."""
        kernel = self.weight_3x3[e] * row[3]
        kernel[:, :, 1:2, 1:2] += self.weight_1x1[e] * row[2]
        return kernel

    def bias(self, e: int, row: Row) -> Tensor:
        """The bias b(a) [C] of edge e with the alphas a = `row`."""
        return -row[2] * self.mean[e, 0] - row[3] * self.mean[e, 1]


@torch.no_grad()
def masked_cell(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    mean: Tensor,
    variance: Tensor,
    alpha: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """See `vpdarts_fast.contract.reference.masked_cell`."""
    if mean.dim() == 4:  # variants with statistics of their own have no weights in common
        cells = []
        for v, images in enumerate(x.expand(len(alpha), *x.shape[1:])):
            fixed = mean[v], variance[v], some_tables(alpha, slice(v, v + 1))
            cells.append(masked_cell(images[None], weight_1x1, weight_3x3, *fixed, eps))
        return torch.cat(cells)
    deviation = torch.sqrt(wide(variance) + eps)
    edges = Edges(
        weight_1x1 / deviation[:, 0, :, None, None, None],
        weight_3x3 / deviation[:, 1, :, None, None, None],
        mean / deviation,
    )
    tables = alpha_rows(alpha)
    variants = len(tables)
    images = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).view_as(x)
    nodes = [Node(images, list(range(variants)) if len(x) > 1 else [0] * variants)]
    first = 0
    while first < alpha.shape[1]:
        nodes.append(_node(nodes, edges, range(first, first + len(nodes)), tables))
        first += len(nodes) - 1
    last = nodes[-1]
    return pick(last.values, last.of)


def _node(nodes: Sequence[Node], edges: Edges, incoming: range, tables: Sequence[Sequence[Row]]) -> Node:
    """The next node from all before it, over the edges `incoming`."""
    distinct, of = combinations([node.of for node in nodes], tables, incoming)
    common = [Counter(c.rows[j] for c in distinct).most_common(1)[0][0] for j in range(len(nodes))]
    one_to_one = all(set(c.sources) == {u} for u, c in enumerate(distinct))
    if one_to_one and all(len(node.values) == len(distinct) for node in nodes):
        values = _common(nodes, edges, incoming, common)
    else:
        parts = [
            _common([node], edges, [e], [row]) for node, e, row in zip(nodes, incoming, common, strict=True)
        ]
        values = pick(parts[0], [c.sources[0] for c in distinct]).clone()
        for j, part in enumerate(parts[1:], start=1):
            values.add_(pick(part, [c.sources[j] for c in distinct]))
    for u, c in enumerate(distinct):
        for j, e in enumerate(incoming):
            if c.rows[j] != common[j]:
                difference = tuple(a - b for a, b in zip(c.rows[j], common[j], strict=True))
                _correct(values[u], nodes[j], c.sources[j], edges, e, difference)
    return Node(values.to(nodes[0].values.dtype), of)


def _common(nodes: Sequence[Node], edges: Edges, incoming: Sequence[int], rows: Sequence[Row]) -> Tensor:
    """sum_e edge(x_e; a_e) for every value of the nodes, [U, N, C, H, W]: one convolution, one pool."""
    kernel = torch.cat([edges.kernel(e, row) for e, row in zip(incoming, rows, strict=True)], dim=1)
    bias = torch.stack([edges.bias(e, row) for e, row in zip(incoming, rows, strict=True)]).sum(0)
    rectified = [node.rectified.flatten(0, 1) for node in nodes]
    values = wide(_conv(rectified[0] if len(nodes) == 1 else torch.cat(rectified, dim=1), kernel, bias))
    pooled = torch.zeros_like(values)
    for node, row in zip(nodes, rows, strict=True):
        x = node.values.flatten(0, 1)
        values.add_(x, alpha=row[1])
        pooled.add_(x, alpha=row[4])
    return values.add_(avg_pool_3x3(pooled)).view_as(nodes[0].values)


def _correct(out: Tensor, node: Node, u: int, edges: Edges, e: int, row: Row) -> None:
    """Adds edge(x_u; a) to `out` [N, C, H, W], of one variant: only the terms whose alpha is not 0."""
    x, rectified = node.values[u], node.rectified[u]
    if row[1]:
        out.add_(x, alpha=row[1])
    if row[3]:
        out.add_(_conv(rectified, edges.kernel(e, row), edges.bias(e, row)))
    elif row[2]:
        out.add_(_conv(rectified, edges.weight_1x1[e] * row[2], edges.bias(e, row)))
    if row[4]:
        out.add_(avg_pool_3x3(wide(x)), alpha=row[4])


def _conv(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Convolves `x` [N, k*C, H, W] with kernel [C, k*C, 3 or 1, 3 or 1], in its dtype, and adds bias [C]."""
    return F.conv2d(x, kernel.to(x.dtype), bias.to(x.dtype), padding=kernel.shape[-1] // 2)
