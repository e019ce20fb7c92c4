"""What a search has to know of a space: the base class `Space`, and the words that it is described in.

A space is a frozen dataclass whose fields are its settings, as the channels of its supernet. Its alphas stand
in one table [E, O]: the rows of all cell types, one type below the other, a row for each edge. An edge with
fewer than O operations has entries that are not `present`; alpha and the weights of the ops are 0 there.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from vpdarts_fast.bounds import BOUNDS, check_bound
from vpdarts_fast.errors import UserError
from vpdarts_fast.parts import Part
from vpdarts_fast.spaces.edges import MakeEdge
from vpdarts_fast.spaces.stems import check_stem


@dataclass(frozen=True)
class AlphaTable:
    """The rows of alpha that belong to one type of cells.

    Attributes:
        name: of the cell type, as `normal`; a word.
        edges: the names of the edges, `0->1` from node 0 to node 1.
        ops: of each edge, the names of its candidate operations; words.
    """

    name: str
    edges: tuple[str, ...]
    ops: tuple[tuple[str, ...], ...]

    @classmethod
    def uniform(cls, name: str, edges: Sequence[str], ops: Sequence[str]) -> AlphaTable:
        """Makes a table whose edges all have the same operations."""
        return cls(name, tuple(edges), (tuple(ops),) * len(edges))


@dataclass(frozen=True)
class CellDrawing:
    """What a picture shows of a cell; plain enough for a file of JSON.

    Attributes:
        name: of the cell type.
        nodes: the names of the nodes, in the order in which they are computed: inputs first, outputs last.
        edges: (source, target, operation) of each arrow, by the numbers of the nodes.
    """

    name: str
    nodes: tuple[str, ...]
    edges: tuple[tuple[int, int, str], ...]


Genotype = TypeVar("Genotype", bound=Any)
"""What a space writes a choice of operations down as: hashable, `str` of it is what `Space.parse` reads."""


class Space(Part, ABC, Generic[Genotype], kind="space"):
    """What can be searched: cell types, their edges and operations, supernet and found networks.

    A subclass has a `name` and defines `tables`, `supernet` and `network`. What else there is fits spaces in
    which one operation is chosen for each edge, whose genotypes are then `OpPerEdge`.

    Attributes:
        name: as --space has it.
        fused: whether `supernet` runs on the fused ops by itself; others are accelerated by the search.
        reduction: how many times smaller an image's height and width are behind the last reduction.
        kept: how many of the edges into a node a choice keeps; None for all.
    """

    name: ClassVar[str]
    fused: ClassVar[bool] = False
    reduction: ClassVar[int] = 4
    kept: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            check_setting(field.name, getattr(self, field.name))

    @property
    @abstractmethod
    def tables(self) -> tuple[AlphaTable, ...]:
        """The rows of alpha, one table for each cell type."""

    @abstractmethod
    def supernet(self, num_classes: int, *, fused: bool = False, backend: str = "auto") -> nn.Module:
        """A new supernet, called with images [N, 3, H, W] and weights of the ops [E, O]; returns logits.

        Args:
            num_classes: of the classifier.
            fused: run on the fused ops, where the space has `fused`.
            backend: what serves them.
        """

    def varied_supernet(self, num_classes: int, make_edge: MakeEdge, further: int) -> nn.Module:
        """A new supernet with edges of another make, which the search accelerates.

        It is called with images [N, 3, H, W] and weights [E, O + `further`], whose rows go to the edges.

        Raises:
            UserError: the space has none.
        """
        raise UserError(
            f"--space {self.name} has no supernet whose edges can be made in another way: it defines no "
            "varied_supernet. Leave --variation out"
        )

    @abstractmethod
    def network(self, genotype: Genotype, num_classes: int) -> nn.Module:
        """The network of a found choice, as large as its paper trains it; called with images [N, 3, H, W]."""

    def finalist_network(
        self, genotype: Genotype, num_classes: int, *, fused: bool = False, backend: str = "auto"
    ) -> nn.Module:
        """A smaller network of the choice, in which finalists are compared.

        With the same random numbers, networks of choices that share an operation should begin alike in it.
        """
        return self.network(genotype, num_classes)

    def trained_network(
        self,
        genotype: Genotype,
        num_classes: int,
        *,
        channels: int | None = None,
        depth: int | None = None,
        auxiliary: bool = False,
        fused: bool = False,
    ) -> nn.Module:
        """The network of a found choice, of any size, as it is trained from scratch.

        Args:
            genotype: the choice.
            num_classes: of the classifier.
            channels: of the first cells; None: as many as the paper has.
            depth: how many cells, of each stage where there are stages of them; None: as the paper has.
            auxiliary: with an auxiliary head, called by `forward_with_auxiliary`.
            fused: train on the fused ops, where the network has such a path of its own.

        Raises:
            UserError: a size out of bounds, or one that the space's networks do not have.
        """
        asked = {"--channels": channels, "--depth": depth, "--auxiliary-weight": auxiliary or None}
        if unknown := [name for name, value in asked.items() if value is not None]:
            raise UserError(
                f"--space {self.name} has networks of one kind and defines no trained_network: leave "
                f"{', '.join(unknown)} out"
            )
        return self.network(genotype, num_classes)

    @property
    def finalist(self) -> Space[Genotype]:
        """The space whose sizes are those of the networks of finalists."""
        return self

    def parameters(self, num_classes: int) -> int:
        """How many parameters the supernet has."""
        with torch.device("meta"):
            supernet = self.supernet(num_classes)
        return sum(parameter.numel() for parameter in supernet.parameters())

    def stages(self, image_size: tuple[int, int]) -> Sequence[tuple[int, int, int]]:
        """Channels, height and width of a node in each part of the supernet where they are the same.

        Empty where that is not known.
        """
        return ()

    def kept_values(self, image_size: tuple[int, int], *, edges: bool = True) -> int:
        """How many values a training step keeps of an image for the backward pass, at least; 0 if not known.

        Args:
            image_size: height and width.
            edges: also those of all edges of a supernet, or only the nodes of a single cell.
        """
        return 0

    def smallest(self, image_size: tuple[int, int]) -> int:
        """How many pixels are left of an image of that height and width behind the last reduction."""
        height, width = image_size
        return -(-height // self.reduction) * -(-width // self.reduction)

    def select(self, order: Tensor) -> Genotype:
        """The choice of the strongest operations.

        Args:
            order: [E, O] int64, different numbers that grow with the importance of an operation, over all
                edges; -1 where there is none to choose.
        """
        return self._from_choices(order.argmax(1).tolist())

    def chosen(self, genotype: Genotype) -> Tensor:
        """Marks which operations a choice consists of, as many for every choice: [E, O] bool, on the CPU."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device="cpu")
        ops = (op for table in genotype.ops for op in table)
        for row, (names, op) in enumerate(zip(self._rows(), ops, strict=True)):
            mask[row, names.index(op)] = True
        return mask

    def neighbours(self, genotype: Genotype) -> Iterator[Genotype]:
        """Yields all choices that differ in one operation."""
        choices = self.chosen(genotype).int().argmax(1).tolist()
        for row, names in enumerate(self._rows()):
            for op in range(len(names)):
                if op != choices[row]:
                    yield self._from_choices([*choices[:row], op, *choices[row + 1 :]])

    def parse(self, text: str) -> Genotype:
        """The inverse of `str`; `UserError` for anything else."""
        found: list[tuple[str, ...]] = []
        parts = re.findall(r"(\w+)\(([^()]*)\)", text)
        for table, (name, inside) in zip(self.tables, parts, strict=False):
            pairs = [pair.split(" ") for pair in inside.split(", ")]
            edges = [pair[0] for pair in pairs]
            ops = tuple(pair[-1] for pair in pairs)
            if name != table.name or edges != list(table.edges) or any(len(pair) != 2 for pair in pairs):
                break
            if not all(op in names for op, names in zip(ops, table.ops, strict=True)):
                break
            found.append(ops)
        genotype = OpPerEdge(self.tables, tuple(found)) if len(found) == len(self.tables) else None
        if genotype is None or str(genotype) != text:
            raise UserError(f"{text[:200]!r} is no choice in the space {self.name}; one is {self._first()}")
        return genotype  # type: ignore[return-value]

    def drawings(self, genotype: Genotype) -> tuple[CellDrawing, ...]:
        """What pictures show of the choice, one for each cell type."""
        drawings = []
        for table, ops in zip(self.tables, genotype.ops, strict=True):
            pairs = [tuple(map(int, edge.split("->"))) for edge in table.edges]
            nodes = tuple(str(node) for node in range(1 + max(target for _, target in pairs)))
            edges = tuple((source, target, op) for (source, target), op in zip(pairs, ops, strict=True))
            drawings.append(CellDrawing(table.name, nodes, edges))
        return tuple(drawings)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """How many edges and operations alpha has: (E, O)."""
        rows = self._rows()
        return len(rows), max(len(names) for names in rows)

    @cached_property
    def present(self) -> Tensor:
        """Marks where an edge has an operation: [E, O] bool, on the CPU."""
        edges, ops = self.shape
        mask = torch.zeros(edges, ops, dtype=torch.bool, device="cpu")
        for row, names in enumerate(self._rows()):
            mask[row, : len(names)] = True
        return mask

    @cached_property
    def nones(self) -> Tensor:
        """Marks the ops called `none`, which add nothing to their edges: [E, O] bool, on the CPU."""
        edges, ops = self.shape
        mask = torch.zeros(edges, ops, dtype=torch.bool, device="cpu")
        for row, names in enumerate(self._rows()):
            mask[row, : len(names)] = torch.tensor([name == "none" for name in names], device="cpu")
        return mask

    @cached_property
    def edges_of_nodes(self) -> tuple[int, ...]:
        """How many edges enter each node, in the order of the rows of alpha.

        Raises:
            UserError: the rows of a node's edges do not follow each other.
        """
        targets = [(table.name, edge.split("->")[1]) for table in self.tables for edge in table.edges]
        nodes = [(node, len(list(edges))) for node, edges in groupby(targets)]
        if len({node for node, _ in nodes}) < len(nodes):
            raise UserError(
                f"--space {self.name}: the edges into a node do not follow each other in its tables"
            )
        return tuple(count for _, count in nodes)

    @cached_property
    def decisions(self) -> int:
        """How many edges a choice keeps of a type of cells, of that which keeps most."""
        if self.kept is None:
            return max(len(table.edges) for table in self.tables)
        of_types, nodes = [0], iter(self.edges_of_nodes)
        for table in self.tables:
            left = len(table.edges)
            of_types.append(0)
            while left:
                edges = next(nodes)
                of_types[-1] += min(edges, self.kept)
                left -= edges
        return max(of_types)

    def split(self, table: Tensor) -> dict[str, Tensor]:
        """Splits a table [E, ...] into the rows of each cell type, by the types' names."""
        parts = torch.split(table, [len(each.edges) for each in self.tables])
        return {each.name: part for each, part in zip(self.tables, parts, strict=True)}

    def _rows(self) -> list[tuple[str, ...]]:
        """The operations of each row of alpha."""
        return [names for table in self.tables for names in table.ops]

    def _from_choices(self, choices: Sequence[int]) -> Genotype:
        ops = iter(names[choice] for names, choice in zip(self._rows(), choices, strict=True))
        found = tuple(tuple(next(ops) for _ in table.edges) for table in self.tables)
        return OpPerEdge(self.tables, found)  # type: ignore[return-value]

    def _first(self) -> Genotype:
        return self._from_choices([0] * self.shape[0])


@dataclass(frozen=True)
class OpPerEdge:
    """One operation for each edge of each cell type.

    Attributes:
        tables: of the space.
        ops: of each table, the names of the chosen operations, in the order of its edges.
    """

    tables: tuple[AlphaTable, ...]
    ops: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        """As in ``normal(0->1 conv, 0->2 skip) reduction(0->1 pool, 0->2 conv)``."""
        parts = []
        for table, ops in zip(self.tables, self.ops, strict=True):
            pairs = ", ".join(f"{edge} {op}" for edge, op in zip(table.edges, ops, strict=True))
            parts.append(f"{table.name}({pairs})")
        return " ".join(parts)


def check_setting(name: str, value: Any) -> None:
    """Holds a setting of a space to `vpdarts_fast.bounds`, where it has a bound there, or to the stems."""
    if name == "stem":
        check_stem(value)
    if name in BOUNDS:
        check_bound(name, value, "--" + name.replace("_", "-"))
