"""What is done to a space's supernet before it trains: one class for each variation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from vpdarts_fast.errors import UserError
from vpdarts_fast.parts import Part
from vpdarts_fast.search.methods.moment import Moment
from vpdarts_fast.spaces.edges import EdgeSite, plain_edge
from vpdarts_fast.spaces.space import Space

Tables = Mapping[str, Tensor]
"""What is trained beside alpha, by names of the variation's own."""


class Variation(Part, kind="variation"):
    """How the edges of a supernet are made, and what is trained beside alpha.

    An edge takes the weights of its O operations and, behind them, `further` ones: those of what belongs to
    no operation, and stays where one is left out.

    Attributes:
        varies: whether the supernet is another than the space's own.
        one_hot: whether it takes weights of which one is 1 on each edge and all others are 0.
        capturable: whether a step of its supernet can be recorded as a CUDA graph.
    """

    varies: ClassVar[bool] = True
    one_hot: ClassVar[bool] = False
    capturable: ClassVar[bool] = True

    @property
    def further(self) -> int:
        """How many further weights an edge takes."""
        return 0

    def edge(self, site: EdgeSite) -> nn.Module:
        """Makes an edge: a module that is called with x [N, C, H, W] and weights [O + further]."""
        return plain_edge(site)

    def check(self, space: Space[Any]) -> None:
        """Raises `UserError` for a space whose supernet cannot be varied like this."""
        if self.varies and type(space).varied_supernet is Space.varied_supernet:
            space.varied_supernet(2, self.edge, self.further)

    def supernet(self, space: Space[Any], num_classes: int, *, fused: bool, backend: str) -> nn.Module:
        """Makes the supernet, which is called with images and weights [E, O + further].

        Args:
            space: whose supernet it is.
            num_classes: of the classifier.
            fused: run a supernet that is not varied on the fused ops, where its space can.
            backend: what serves them.
        """
        if not self.varies:
            return space.supernet(num_classes, fused=fused, backend=backend)
        return space.varied_supernet(num_classes, self.edge, self.further)

    def parameters(self, space: Space[Any], num_classes: int) -> int:
        """How many parameters the supernet has."""
        if not self.varies:
            return space.parameters(num_classes)
        with torch.device("meta"):
            supernet = self.supernet(space, num_classes, fused=False, backend="auto")
        return sum(parameter.numel() for parameter in supernet.parameters())

    def new_tables(self, space: Space[Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Makes what alpha's optimiser trains beside alpha, as it begins: float64 on the CPU."""
        return {}

    def weights(self, weights: Tensor, tables: Tables, space: Space[Any], moment: Moment) -> Tensor:
        """Makes what the supernet is called with, [E, O + further]; the gradient goes to weights and tables.

        Args:
            weights: [E, O], of the ops, as the relaxation makes them of alpha.
            tables: what is trained beside alpha.
            space: that is searched.
            moment: of the search.
        """
        return weights

    def strength(self, strength: Tensor, tables: Tables, space: Space[Any]) -> Tensor:
        """Says how strong ops are, [E, O], of how strong they are on their edges by alpha alone, [E, O]."""
        return strength

    def new_state(self, shape: tuple[int, int]) -> dict[str, Tensor]:
        """Makes what the variation keeps (`Moment.state`), as it begins, on the CPU."""
        return {}


@dataclass(frozen=True)
class NoVariation(Variation):
    """The supernet is that of its space."""

    name: ClassVar[str] = "none"
    varies: ClassVar[bool] = False


@dataclass(frozen=True)
class PartialChannels(Variation):
    """A part of an edge's channels goes through its operations, the others by-pass them (PC-DARTS, 3.2, 3.3).

    With edge normalisation, what an edge adds to its node is multiplied with the edge's share, by-passed
    channels too: a softmax over all edges into the node of numbers that are trained with alpha.
    """

    name: ClassVar[str] = "partial-channels"
    EDGES: ClassVar[str] = "edges"
    NOISE: ClassVar[float] = 1e-3

    channel_parts: int = 4
    """K: one K-th of the channels goes through the operations, and the channels are then shuffled."""
    edge_normalisation: bool = False
    """Multiply each edge with its share of its node, a softmax of numbers that are trained with alpha. An op
    is then as strong as its weight times the share of its edge."""

    @property
    @override
    def further(self) -> int:
        return 1 if self.edge_normalisation else 0

    @override
    def check(self, space: Space[Any]) -> None:
        super().check(space)
        channels = getattr(space, "channels", 0)  # of other spaces, an edge says so when it is made
        if channels % self.channel_parts:
            raise UserError(
                f"--channels must be a multiple of --channel-parts {self.channel_parts}, into which "
                f"--variation {self.name} divides them; got {channels}"
            )
        if self.edge_normalisation:
            _ = space.edges_of_nodes

    @override
    def edge(self, site: EdgeSite) -> nn.Module:
        return PartialEdge(site, self.channel_parts)

    @override
    def new_tables(self, space: Space[Any], generator: torch.Generator) -> dict[str, Tensor]:
        if not self.edge_normalisation:
            return {}
        noise = torch.randn(space.shape[0], dtype=torch.float64, device="cpu", generator=generator)
        return {self.EDGES: self.NOISE * noise}

    @override
    def weights(self, weights: Tensor, tables: Tables, space: Space[Any], moment: Moment) -> Tensor:
        if not self.edge_normalisation:
            return weights
        shares = self.shares(tables, space)
        return torch.cat([weights * shares, shares], dim=1)

    @override
    def strength(self, strength: Tensor, tables: Tables, space: Space[Any]) -> Tensor:
        return strength * self.shares(tables, space) if self.edge_normalisation else strength

    def shares(self, tables: Tables, space: Space[Any]) -> Tensor:
        """Computes the share [E, 1] that each edge has of its node; those of a node add up to 1."""
        of_nodes = torch.split(tables[self.EDGES], list(space.edges_of_nodes))
        return torch.cat([F.softmax(of_node, dim=0) for of_node in of_nodes]).unsqueeze(1)


class PartialEdge(nn.Module):
    """Operations on the first of K equal parts of the channels; the others by-pass them.

    At stride 2 these are max-pooled. Then the channels are shuffled in K groups, so that the next edge has
    others among its first ones.
    """

    def __init__(self, site: EdgeSite, parts: int) -> None:
        super().__init__()
        if site.channels % parts:
            raise UserError(f"{site.channels} channels cannot be divided into {parts} equal parts")
        self.ops, self.parts, self.through = site.ops, parts, site.channels // parts
        self.mixed_op = site.mixed_op(self.through)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True) if site.stride == 2 else nn.Identity()

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Computes the edge [N, C, H', W'] of `x` [N, C, H, W], with weights [O] or [O + 1].

        The last of O + 1 weights is that of the channels that by-pass the operations; of O it is 1.
        """
        mixed: Tensor = self.mixed_op(x[:, : self.through], weights[: self.ops])
        if self.parts == 1:
            return mixed
        rest = self.pool(x[:, self.through :])
        for weight in weights[self.ops :]:
            rest = rest * weight
        return F.channel_shuffle(torch.cat([mixed, rest], dim=1), self.parts)


@dataclass(frozen=True)
class AuxiliarySkip(Variation):
    """A skip connection beside each mixed operation, whose weight falls from 1 to 0 (DARTS-, section 3.2).

    It takes no part in any softmax, and none in the selection.
    """

    name: ClassVar[str] = "auxiliary-skip"

    skip_decay: Literal["linear", "cosine"] = "linear"
    """How the weight of the auxiliary skip falls: linearly, or slowly at both ends."""

    @property
    @override
    def further(self) -> int:
        return 1

    @override
    def edge(self, site: EdgeSite) -> nn.Module:
        return SkippedEdge(site)

    @override
    def weights(self, weights: Tensor, tables: Tables, space: Space[Any], moment: Moment) -> Tensor:
        left = moment.left
        beta = left if self.skip_decay == "linear" else (1 - torch.cos(math.pi * left)) / 2
        return torch.cat([weights, beta.to(weights.dtype).expand(len(weights), 1)], dim=1)


class SkippedEdge(nn.Module):
    """A mixed operation, and a skip connection beside it."""

    def __init__(self, site: EdgeSite) -> None:
        super().__init__()
        self.ops = site.ops
        self.mixed_op = site.mixed_op(site.channels)
        self.skip = site.skip()

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Computes the edge [N, C, H', W'] of `x` [N, C, H, W]; the last of O + 1 weights is the skip's."""
        mixed: Tensor = self.mixed_op(x, weights[: self.ops])
        skipped: Tensor = self.skip(x)
        return mixed + weights[self.ops] * skipped


@dataclass(frozen=True)
class ChosenOp(Variation):
    """Only the op that was drawn is computed; the weights of the others are added to it as numbers (GDAS).

    These are 0, but for their gradient: an op that was not drawn learns from how much the loss wants the
    output of the edge to grow, wherever that is (public code of GDAS; the paper's Eq. 4 does not say).
    """

    name: ClassVar[str] = "chosen-op"
    one_hot: ClassVar[bool] = True
    capturable: ClassVar[bool] = False

    @override
    def edge(self, site: EdgeSite) -> nn.Module:
        return ChosenEdge(site)


class ChosenEdge(nn.Module):
    """The operation of an edge that has weight 1."""

    def __init__(self, site: EdgeSite) -> None:
        super().__init__()
        self.ops = nn.ModuleList(site.candidates(site.channels))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Computes the edge [N, C, H', W'] of `x` [N, C, H, W] with weights [O], one 1, the others 0."""
        chosen = int(weights.argmax())
        out: Tensor = self.ops[chosen](x)
        return out * weights[chosen] + (weights.sum() - weights[chosen])
