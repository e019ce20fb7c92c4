"""Benchmark tables made by hand."""

from __future__ import annotations

import numpy as np

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, all_genotypes

COLUMNS = ("cifar10_test_200ep", "cifar100_test_200ep", "imagenet16_120_test_200ep")

CHOICES = np.array([genotype.choices for genotype in all_genotypes()])  # [15625, E]

WORTH = np.array(
    [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 1, 4, 3], [1, 1, 1, 1, 1], [0, 0, 5, 5, 9], [3, 1, 4, 0, 2]]
)
"""[E, O] per cent that each op adds to an architecture of the hand-made table."""


def additive_table() -> BenchmarkTable:
    """The accuracy of an architecture is the sum of what its ops are worth."""
    accuracy = WORTH[np.arange(len(EDGES)), CHOICES].sum(1).astype(np.float64)
    return BenchmarkTable(COLUMNS, np.stack([accuracy, accuracy / 2, accuracy / 4], axis=1))
