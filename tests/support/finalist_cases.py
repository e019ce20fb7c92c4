"""Cells and evaluations that the tests of finalists share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vpdarts_fast.search.finalists.contestants import Calls
from vpdarts_fast.search.methods.criteria import Importance
from vpdarts_fast.spaces.nas_bench_201 import NasBench201
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, OPS, Genotype

NONE, SKIP, CONV_1, CONV_3, POOL = range(5)

SIX = Genotype.from_choices([CONV_3] * 6)
"""Six 3x3 convolutions."""

PAPER = Genotype.from_choices([CONV_3, CONV_3, CONV_3, SKIP, CONV_3, CONV_3])
"""The paper's cell, one exchange away."""


def cell(*choices: int) -> Genotype:
    return Genotype.from_choices(choices)


def calls(*edges: Mapping[int, float], alive: Tensor | None = None) -> Calls:
    """An evaluation that gives these ops of each edge an importance, and all others none."""
    score = torch.zeros(len(EDGES), len(OPS), dtype=torch.float64)
    for row, given in zip(score, edges, strict=True):
        for op, value in given.items():
            row[op] = value
    importance = Importance(score, torch.zeros_like(score))
    everything = torch.ones_like(score, dtype=torch.bool)
    return Calls(importance, everything if alive is None else alive, NasBench201())


CLOSE_ON_THE_FOURTH = calls(*[{CONV_3: 5.0, CONV_1: 1.0}] * 3, {CONV_3: 5.0, SKIP: 4.8, POOL: 4.0},
                            *[{CONV_3: 5.0, CONV_1: 1.0}] * 2)  # fmt: skip
"""Six 3x3 convolutions; the closest call is the skip on 0->3."""
