"""The edges that leave a node side by side, so that its convolutions of one size are one.

A source is any node of a cell but the last; k edges leave it, to the nodes behind it in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import isqrt

import torch
from torch import Tensor

from vpdarts_fast.contract.sharing import index


def source_count(edges: int) -> int:
    """How many nodes of a cell with so many edges have edges that leave them."""
    return (isqrt(1 + 8 * edges) - 1) // 2


def incoming(target: int) -> slice:
    """The numbers of the edges into a node."""
    first = target * (target - 1) // 2
    return slice(first, first + target)


@cache
def by_source(edges: int) -> tuple[int, ...]:
    """The numbers of all edges, source by source."""
    last = source_count(edges)
    return tuple(incoming(i).start + j for j in range(last) for i in range(j + 1, last + 1))


def weights_by_source(weight: Tensor) -> Tensor:
    """[E, C, C, K, K] -> [E*C, C, K, K], channels last."""
    order = index(by_source(len(weight)), weight.device)
    return weight.movedim(2, -1).index_select(0, order).movedim(-1, 2).flatten(0, 1)


def of_each_source(weights: Tensor) -> Sequence[Tensor]:
    """What `weights_by_source` gave -> for each source [k*C, C, K, K]."""
    channels = weights.shape[1]
    sources = source_count(len(weights) // channels)
    return torch.split(weights, [(sources - source) * channels for source in range(sources)])


def weights_by_edge(of_sources: Sequence[Tensor]) -> Tensor:
    """For each source [k*C, C, K, K] -> [E, C, C, K, K]."""
    channels = of_sources[0].shape[1]
    pieces = [edge for some in of_sources for edge in torch.split(some.movedim(1, -1), channels)]
    found = dict(zip(by_source(len(pieces)), pieces, strict=True))
    rows = torch.cat([found[edge] for edge in range(len(pieces))])
    return rows.view(len(pieces), channels, *rows.shape[1:]).movedim(-1, 2).contiguous()


def into(target: int, of_sources: Sequence[Tensor], channels: int) -> list[Tensor]:
    """The edges into a node, [1, N, C, H, W], slices of [N, k*C, H, W] of each source."""
    return [
        some[None].narrow(2, (target - source - 1) * channels, channels)
        for source, some in enumerate(of_sources[:target])
    ]
