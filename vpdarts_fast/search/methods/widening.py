"""Edges with more channels, whose weights begin as those of the edges before (Net2WiderNet; DrNAS, 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vpdarts_fast.search.methods.variations import PartialEdge
from vpdarts_fast.spaces.darts.operations import FactorizedReduce


@dataclass
class Sources:
    """Of which old channel each channel of an edge is a copy: the first ones of themselves.

    Attributes:
        generator: on the CPU; the others are copies of old channels drawn from it.
        drawn: what has been drawn, int64 [wide], by the numbers of channels before and now.
    """

    generator: torch.Generator
    drawn: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def of(self, narrow: int, wide: int) -> Tensor:
        """Finds the old channel of each new one, int64 [wide], the same for all tensors of these sizes."""
        if (narrow, wide) not in self.drawn:
            copies = torch.randint(narrow, (wide - narrow,), generator=self.generator, device="cpu")
            self.drawn[narrow, wide] = torch.cat([torch.arange(narrow, device="cpu"), copies])
        return self.drawn[narrow, wide]

    def of_halves(self, narrow: int, wide: int) -> Tensor:
        """The same where two halves, widened by themselves, are put one behind the other."""
        first = self.of(narrow // 2, wide // 2)
        second = self.of(narrow - narrow // 2, wide - wide // 2)
        return torch.cat([first, narrow // 2 + second])


class ChannelCopies:
    """Of which old channels the channels of a supernet are copies, which is as another but for wider edges.

    Copies are not scaled down, so that the wide supernet is not the same function (public code of DrNAS).

    Args:
        narrow: the supernet before, with a `PartialEdge` wherever `wide` has one.
        wide: the supernet that begins as it.
        generator: on the CPU, where the copied channels of each edge are drawn from.
    """

    def __init__(self, narrow: nn.Module, wide: nn.Module, generator: torch.Generator) -> None:
        self._sources: dict[str, list[tuple[int, Tensor]]] = {}
        before = narrow.state_dict()
        for prefix, edge in wide.named_modules():
            if isinstance(edge, PartialEdge):
                self._add(prefix, edge, before, Sources(generator))

    def _add(self, prefix: str, edge: PartialEdge, before: Mapping[str, Tensor], sources: Sources) -> None:
        """Finds the sources of all tensors of an edge."""
        joined = tuple(
            f"{name}.bn." for name, layer in edge.named_modules() if isinstance(layer, FactorizedReduce)
        )
        for name, tensor in edge.state_dict().items():
            source = sources.of_halves if name.startswith(joined) else sources.of
            sizes = enumerate(zip(before[f"{prefix}.{name}"].shape, tensor.shape, strict=True))
            self._sources[f"{prefix}.{name}"] = [
                (dim, source(old, new)) for dim, (old, new) in sizes if old != new
            ]

    def widened(self, name: str, tensor: Tensor) -> Tensor:
        """Makes the wide form of a parameter or buffer, or of something of its shape, by its name."""
        for dim, source in self._sources.get(name, ()):
            tensor = tensor.index_select(dim, source.to(tensor.device))
        return tensor
