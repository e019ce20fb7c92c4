"""One chosen operation per edge of a NAS-Bench-201 cell, and its strict string form.

NAS-Bench-201 (Dong and Yang, 2020): nodes 0..3, an edge from every node to every later one, five
candidate operations, 5^6 = 15,625 architectures.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vpdarts_fast.bounds import shown
from vpdarts_fast.errors import UserError

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""Candidate operations in the order of alpha's columns."""

NUM_NODES = 4

EDGES = tuple((j, i) for i in range(1, NUM_NODES) for j in range(i))
"""Edges (source j, target i) in the order of alpha's rows: 0->1, 0->2, 1->2, 0->3, 1->3, 2->3."""

NUM_ARCHITECTURES = len(OPS) ** len(EDGES)


@dataclass(frozen=True)
class Genotype:
    """An architecture: the name of the chosen operation on each edge, in the order of `EDGES`.

    Raises:
        UserError: not one known operation per edge.
    """

    ops: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ops) != len(EDGES):
            raise UserError(f"a genotype has {len(EDGES)} operations, one per edge; got {len(self.ops)}")
        for op in self.ops:
            if op not in OPS:
                raise UserError(f"unknown operation {op!r}; expected one of {', '.join(OPS)}")

    @classmethod
    def from_string(cls, text: str) -> Genotype:
        """Parses ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``; anything else raises `UserError`."""
        pattern = "+".join("|" + "|".join(f"op~{j}" for j in range(i)) + "|" for i in range(1, NUM_NODES))
        nodes = text.split("+")
        if len(nodes) != NUM_NODES - 1:
            raise UserError(f"architecture string {text!r} is not of the form {pattern}")
        ops: list[str] = []
        for i, node in enumerate(nodes, start=1):
            fields = node.split("|")
            if len(fields) != i + 2 or fields[0] or fields[-1]:
                raise UserError(f"architecture string {text!r} is not of the form {pattern}")
            for j, field in enumerate(fields[1:-1]):
                op, tilde, source = field.partition("~")
                if not tilde or source != str(j):
                    raise UserError(
                        f"architecture string {text!r}: {field!r} should be an operation from node {j}, "
                        f"written op~{j}"
                    )
                ops.append(op)
        return cls(tuple(ops))

    @classmethod
    def from_index(cls, index: int) -> Genotype:
        """The inverse of `index`; `UserError` outside 0..15624."""
        if not 0 <= index < NUM_ARCHITECTURES:
            raise UserError(f"architecture index must be in 0..{NUM_ARCHITECTURES - 1}; got {shown(index)}")
        number = _official_order()[index]
        choices = []
        for _ in EDGES:
            number, choice = divmod(number, len(OPS))
            choices.append(choice)
        return cls.from_choices(choices[::-1])

    @classmethod
    def from_choices(cls, choices: Sequence[int]) -> Genotype:
        """Makes a genotype of one operation number per edge, as an argmax over alpha's columns gives it.

        Raises:
            UserError: not one number per edge, or one that is outside 0..4.
        """
        for choice in choices:
            if not 0 <= choice < len(OPS):
                raise UserError(f"operation number must be in 0..{len(OPS) - 1}; got {shown(choice)}")
        return cls(tuple(OPS[choice] for choice in choices))

    @property
    def choices(self) -> tuple[int, ...]:
        """The operation number per edge."""
        return tuple(OPS.index(op) for op in self.ops)

    @property
    def index(self) -> int:
        """The benchmark's official number of this architecture, 0..15624."""
        number = 0
        for choice in self.choices:
            number = number * len(OPS) + choice
        return _official_indices()[number]

    def __str__(self) -> str:
        nodes = []
        ops = iter(self.ops)
        for i in range(1, NUM_NODES):
            nodes.append("|" + "|".join(f"{next(ops)}~{j}" for j in range(i)) + "|")
        return "+".join(nodes)


def all_genotypes() -> Iterator[Genotype]:
    """Every architecture of the space, in the order of `Genotype.index`."""
    return map(Genotype.from_index, range(NUM_ARCHITECTURES))


@functools.cache
def _official_order() -> list[int]:
    """Official index -> lexicographic number, a base-5 number with edge 0->1 as its leading digit.

    The benchmark's authors numbered the architectures by shuffling the lexicographic order with
    Python's generator, seeded with 88.
    """
    order = list(range(NUM_ARCHITECTURES))
    random.Random(88).shuffle(order)
    return order


@functools.cache
def _official_indices() -> list[int]:
    indices = [0] * NUM_ARCHITECTURES
    for index, number in enumerate(_official_order()):
        indices[number] = index
    return indices
