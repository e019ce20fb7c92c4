"""What an edge of a supernet is made of, so that it can be made in another way than its space makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class EdgeSite:
    """Where an edge is, and its parts.

    Attributes:
        channels: C, of what enters and of what leaves it.
        stride: 1, or 2, which halves height and width, rounding up.
        ops: O, the columns of the table of weights. The edge may have fewer operations than that.
        candidates: channels -> new operations, those that the edge has to choose from, with so many channels;
            each is called with x [N, channels, H, W].
        mixed_op: channels -> a new mixed operation of the edge's candidates with so many channels; it is
            called with x [N, channels, H, W] and weights [O] and returns their weighted sum.
        skip: -> a new skip connection of C channels, without dropout; at stride 2 it has parameters.
    """

    channels: int
    stride: int
    ops: int
    candidates: Callable[[int], list[nn.Module]]
    mixed_op: Callable[[int], nn.Module]
    skip: Callable[[], nn.Module]


MakeEdge = Callable[[EdgeSite], nn.Module]
"""Makes the edge at a site, a module that is called with x [N, C, H, W] and a row of weights: those of the O
operations, and behind them what its maker wants."""


def plain_edge(site: EdgeSite) -> nn.Module:
    """Makes the edge as its space does: the mixed operation of all channels."""
    return site.mixed_op(site.channels)


class WithFurtherWeights(nn.Module):
    """A supernet whose edges take further weights, with these given: called as a supernet without them.

    Args:
        supernet: called with images and weights [E, O + W].
        further: [E, W].
    """

    def __init__(self, supernet: nn.Module, further: Tensor) -> None:
        super().__init__()
        self.supernet, self.further = supernet, further

    def forward(self, images: Tensor, weights: Tensor) -> Tensor:
        """Maps images [N, 3, H, W] to logits [N, classes], with weights [E, O] of the operations."""
        logits: Tensor = self.supernet(images, torch.cat([weights, self.further], dim=1))
        return logits
