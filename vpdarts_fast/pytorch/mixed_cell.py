"""`mixed_cell` in PyTorch: `relu_conv` and `mixed_sum` node by node.

Variants that share a node's value share its convolutions (`vpdarts_fast.sharing`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vpdarts_fast.pytorch.dropout import skip_scale
from vpdarts_fast.pytorch.mixed_sum import mixed_sum
from vpdarts_fast.pytorch.relu_conv import relu_conv
from vpdarts_fast.sharing import alpha_rows, combinations, pick


def mixed_cell(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    alpha: Tensor,
    skip_seed: Tensor | None = None,
    skip_dropout: float = 0.0,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.reference.mixed_cell`."""
    variants, edges, _ = alpha.shape
    tables = alpha_rows(alpha)
    nodes = [x]
    of = [list(range(variants)) if len(x) > 1 else [0] * variants]
    raw: dict[int, tuple[Tensor, Tensor]] = {}
    means, variances = [], []
    while (first := len(nodes) * (len(nodes) - 1) // 2) < edges:
        i = len(nodes)
        incoming = range(first, first + i)
        source = nodes[-1]
        outgoing = [e for e in range(first + i - 1, edges) if _source(e) == i - 1]
        outputs = relu_conv(source.flatten(0, 1), weight_1x1[outgoing], weight_3x3[outgoing])
        for e, raw_1x1, raw_3x3 in zip(outgoing, *outputs, strict=True):
            raw[e] = raw_1x1.view_as(source), raw_3x3.view_as(source)
        distinct, numbers = combinations(of, tables, incoming)
        sources = [[c.sources[j] for c in distinct] for j in range(i)]
        pairs = [raw.pop(e) for e in incoming]
        scales = []
        if skip_seed is not None and skip_dropout > 0:
            scale = [skip_scale(int(skip_seed[e]), skip_dropout, x[0]).unsqueeze(0) for e in incoming]
            scales = [s.expand(len(distinct), *s.shape[1:]) for s in scale]
        first_of = torch.tensor([numbers.index(u) for u in range(len(distinct))], device=alpha.device)
        node, mean, variance = mixed_sum(
            [pick(node, sources[j]) for j, node in enumerate(nodes)],
            [pick(pair[0], sources[j]) for j, pair in enumerate(pairs)],
            [pick(pair[1], sources[j]) for j, pair in enumerate(pairs)],
            alpha[first_of, first : first + i] if variants > 1 else alpha[:, first : first + i],
            scales,
            eps,
        )
        nodes.append(node)
        of.append(numbers)
        means.append(mean[numbers] if variants > 1 else mean)
        variances.append(variance[numbers] if variants > 1 else variance)
    return pick(nodes[-1], of[-1]), torch.cat(means, dim=1), torch.cat(variances, dim=1)


def _source(e: int) -> int:
    """The node that edge e leaves."""
    target = 1
    while target * (target + 1) // 2 <= e:
        target += 1
    return e - target * (target - 1) // 2
