"""`mixed_cell` in PyTorch: `relu_conv` and `mixed_sum` node by node.

Variants that share a node's value share its convolutions (`vpdarts_fast.contract.sharing`).
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

import torch
from torch import Tensor

from vpdarts_fast.backends.pytorch.mixed_sum import mixed_sum_with_dropout
from vpdarts_fast.backends.pytorch.relu_conv import relu_conv
from vpdarts_fast.contract.sharing import alpha_rows, combinations, index, pick

ReluConv = Callable[[Tensor, Tensor, Tensor], tuple[list[Tensor], list[Tensor]]]
MixedSum = Callable[[list[Tensor], list[Tensor], list[Tensor], Tensor, range], tuple[Tensor, Tensor, Tensor]]
"""Of xs, raw_1x1, raw_3x3, alpha [V, k, 5] and the k edges that enter the node."""


def mixed_cell(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    alpha: Tensor,
    skip_seed: Tensor | None = None,
    skip_dropout: float = 0.0,
    eps: float = 1e-5,
    skip_zeros: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.contract.reference.mixed_cell`. Everything is computed."""
    seeds = skip_seed.to(x.device) if skip_seed is not None and skip_dropout > 0 else None

    def sum_with_dropout(
        xs: list[Tensor], raw_1x1: list[Tensor], raw_3x3: list[Tensor], table: Tensor, incoming: range
    ) -> tuple[Tensor, Tensor, Tensor]:
        some = seeds[incoming.start : incoming.stop] if seeds is not None else None
        return mixed_sum_with_dropout(xs, raw_1x1, raw_3x3, table, some, skip_dropout, eps)

    cell = node_by_node(x, weight_1x1, weight_3x3, alpha, relu_conv, sum_with_dropout)
    return without_zeros(alpha, *cell) if skip_zeros else cell


def without_zeros(
    alpha: Tensor, node: Tensor, mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `mixed_cell` returns, with 0 for the statistics of convolutions whose alpha is 0."""
    computed = alpha[:, :, 2:4, None] != 0
    return node, torch.where(computed, mean, 0), torch.where(computed, variance, 0)


def node_by_node(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    alpha: Tensor,
    relu_conv: ReluConv,
    mixed_sum: MixedSum,
) -> tuple[Tensor, Tensor, Tensor]:
    """`mixed_cell` out of the two ops of a node. Alpha is only read where several variants may share."""
    variants, edges, _ = alpha.shape
    tables = alpha_rows(alpha) if variants > 1 else [[()] * edges]
    nodes = [x]
    of = [list(range(variants)) if len(x) > 1 else [0] * variants]
    # Taken apart once, so that the gradients of the parts are put together at once.
    parts = [weight.unbind() for weight in (weight_1x1, weight_3x3)]
    of_nodes = torch.split(alpha, list(range(1, (1 + isqrt(1 + 8 * edges)) // 2)), dim=1)
    raw: dict[int, tuple[Tensor, Tensor]] = {}
    means, variances = [], []
    for i, table in enumerate(of_nodes, 1):
        first = i * (i - 1) // 2
        incoming = range(first, first + i)
        source = nodes[-1]
        outgoing = [e for e in range(first + i - 1, edges) if _source(e) == i - 1]
        weights = (torch.stack([weight[e] for e in outgoing]) for weight in parts)
        outputs = relu_conv(source.flatten(0, 1), *weights)
        for e, raw_1x1, raw_3x3 in zip(outgoing, *outputs, strict=True):
            raw[e] = raw_1x1.view_as(source), raw_3x3.view_as(source)
        distinct, numbers = combinations(of, tables, incoming)
        sources = [[c.sources[j] for c in distinct] for j in range(i)]
        pairs = [raw.pop(e) for e in incoming]
        if variants > 1:
            table = table[index(tuple(numbers.index(u) for u in range(len(distinct))), alpha.device)]
        node, mean, variance = mixed_sum(
            [pick(node, sources[j]) for j, node in enumerate(nodes)],
            [pick(pair[0], sources[j]) for j, pair in enumerate(pairs)],
            [pick(pair[1], sources[j]) for j, pair in enumerate(pairs)],
            table,
            incoming,
        )
        nodes.append(node)
        of.append(numbers)
        if variants > 1:
            mean, variance = (some[index(tuple(numbers), alpha.device)] for some in (mean, variance))
        means.append(mean)
        variances.append(variance)
    return pick(nodes[-1], of[-1]), torch.cat(means, dim=1), torch.cat(variances, dim=1)


def _source(e: int) -> int:
    """The node that edge e leaves."""
    target = 1
    while target * (target + 1) // 2 <= e:
        target += 1
    return e - target * (target - 1) // 2
