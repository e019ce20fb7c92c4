"""The choice of a DARTS search as the field writes it down, and its strict parser.

DARTS space (Liu, Simonyan and Yang, 2019): a cell has two inputs, numbered 0 and 1, and four nodes, 2 to 5.
Every node is the sum of two operations, each of an earlier input or node; the output of the cell is the
concatenation of the nodes. There are normal cells, and reduction cells, which halve the image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vpdarts_fast.errors import UserError

DARTS_OPS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""Candidate operations in the order of alpha's columns, which is that of public checkpoints."""

FOUND_OPS = (*DARTS_OPS[1:], "noise")
"""What a choice may consist of; `noise` is of one space of RobustDARTS only."""

INPUTS = 2
NODES = range(INPUTS, 6)
KEPT = 2
"""How many operations a node of a choice has."""

PREDECESSORS = {node: range(node) for node in NODES}
"""Of each node, the inputs and nodes before it."""

EDGES = tuple((source, node) for node in NODES for source in PREDECESSORS[node])
"""Edges (source, node) in the order of the rows of alpha: 0->2, 1->2, 0->3, 1->3, 2->3, 0->4, ..."""

Pairs = tuple[tuple[str, int], ...]
"""(operation, source), two for each node."""

EXAMPLE = (
    "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=..., reduce_concat=...)"
)


@dataclass(frozen=True)
class Genotype:
    """A choice: two operations for each node of each type of cells, with where they come from.

    `str` prints it as public code prints its namedtuple of this name, and `from_string` reads that. The two
    operations of a node stand in any order, which a found network keeps and equality minds; `sorted` is the
    same choice in a fixed one.

    Attributes:
        normal: (operation, source) of normal cells, two for each node; kept as tuples.
        reduce: likewise of reduction cells.

    Raises:
        UserError: not two known operations a node, from different inputs or nodes before it.
    """

    normal: Pairs
    reduce: Pairs

    def __post_init__(self) -> None:
        for name in ("normal", "reduce"):
            pairs = tuple((op, source) for op, source in getattr(self, name))
            check_pairs(name, pairs)
            object.__setattr__(self, name, pairs)

    @classmethod
    def from_string(cls, text: str) -> Genotype:
        """Parses what `str` prints, also with ``[2, 3, 4, 5]`` for ``range(2, 6)`` and other white space.

        Raises:
            UserError: anything else.
        """
        match = _WHOLE.fullmatch(text)
        if match is None:
            raise UserError(
                f"{text[:200]!r} is no DARTS genotype; expected is {EXAMPLE} with {len(NODES) * KEPT} pairs "
                f"(operation, source) of each type of cells"
            )
        normal, reduce = (
            tuple((op, int(source)) for op, source in _PARTS_OF_PAIR.findall(pairs))
            for pairs in match.groups()
        )
        return cls(normal, reduce)

    def sorted(self) -> Genotype:
        """The same choice with the operations of each node in the order of their sources."""
        normal, reduce = (
            tuple(pair for both in by_node(pairs).values() for pair in sorted(both, key=lambda pair: pair[1]))
            for pairs in (self.normal, self.reduce)
        )
        return Genotype(normal, reduce)

    def __str__(self) -> str:
        return (
            f"Genotype(normal={list(self.normal)}, normal_concat={NODES}, "
            f"reduce={list(self.reduce)}, reduce_concat={NODES})"
        )


def by_node(pairs: Pairs) -> dict[int, Pairs]:
    """The pairs (operation, source) of each node."""
    return {node: pairs[KEPT * i : KEPT * (i + 1)] for i, node in enumerate(NODES)}


def check_pairs(name: str, pairs: Sequence[tuple[str, int]]) -> None:
    """Raises `UserError` unless these are the pairs of a type of cells."""
    if len(pairs) != KEPT * len(NODES):
        raise UserError(f"{name} has {KEPT * len(NODES)} pairs (operation, source); got {len(pairs)}")
    for node, both in by_node(tuple(pairs)).items():
        for op, source in both:
            if op not in FOUND_OPS:
                raise UserError(f"{name}: unknown operation {op!r}; expected one of {', '.join(FOUND_OPS)}")
            if type(source) is not int or source not in PREDECESSORS[node]:
                raise UserError(f"{name}: a source of node {node} is one of 0..{node - 1}; got {source!r}")
        if both[0][1] == both[1][1]:
            raise UserError(f"{name}: node {node} has two operations of {both[0][1]}; sources must differ")


def _tokens(*tokens: str) -> str:
    """A pattern of tokens with any white space between them."""
    return r"\s*".join(tokens)


_PARTS_OF_PAIR = re.compile(r"""['"](\w+)['"]\s*,\s*([0-9])""", re.ASCII)
_PAIR = _tokens(r"\(", r"""(?:'\w+'|"\w+")""", ",", "[0-9]", r"\)")
_MORE_PAIRS = rf"(?:{_tokens(',', _PAIR, '')}){{{KEPT * len(NODES) - 1}}}"
_PAIRS = rf"(\[\s*{_PAIR}\s*{_MORE_PAIRS}(?:,\s*)?\])"
_RANGE = _tokens("range", r"\(", str(NODES.start), ",", str(NODES.stop), r"\)")
_LIST = _tokens(r"\[", _tokens(*" , ".join(map(str, NODES)).split()), r"\]")
_CONCAT = f"(?:{_RANGE}|{_LIST})"
_FIELDS = (
    _tokens(name, "=", value)
    for name, value in (
        ("normal", _PAIRS),
        ("normal_concat", _CONCAT),
        ("reduce", _PAIRS),
        ("reduce_concat", _CONCAT),
    )
)
_WHOLE = re.compile(_tokens("", "Genotype", r"\(", _tokens("", ",", "").join(_FIELDS), r"\)", ""), re.ASCII)
