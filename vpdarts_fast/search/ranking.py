"""The true ranking of the ops of each edge, and Kendall's tau against it (paper, Figure 5)."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.errors import UserError
from vpdarts_fast.search.methods.criteria import Importance
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, OPS, all_genotypes

Array = NDArray[np.float64]


TRUE = "cifar10_test_200ep"
"""The accuracy that makes the true ranking."""


def mean_tau(importance: Importance, table: BenchmarkTable | None) -> float | None:
    """Takes the mean of tau over the edges that have one; None where none has or no true ranking is known.

    Args:
        importance: of [E, O] ops of NAS-Bench-201.
        table: that makes the true ranking; it may lack what that needs.
    """
    if table is None or TRUE not in table.columns or not table.held.all():
        return None
    taus = kendall_tau(importance, true_ranks(table, TRUE))
    defined = taus[~np.isnan(taus)]
    return float(defined.mean()) if len(defined) else None


@functools.cache
def _choices() -> tuple[NDArray[np.int64], ...]:
    """Per edge the op number [15625] of every architecture, in official order."""
    return tuple(np.array([genotype.choices for genotype in all_genotypes()]).T)


@functools.lru_cache(maxsize=4)
def true_ranks(table: BenchmarkTable, column: str) -> Array:
    """The mean rank of every op on every edge, by benchmark accuracy.

    The paper puts each op on the edge of 100 random architectures and averages the ranks. Here it is all
    3,125 choices of the other edges, of which those 100 are a sample: it is as cheap and needs no seed.

    Returns:
        [E, O], from 1 (always the best) to O; equal accuracies share their mean rank.

    Raises:
        UserError: no such column, or the table lacks an architecture.
    """
    from scipy.stats import rankdata  # takes a moment, and no search without a table needs it

    accuracy = table.column(column)
    if np.isnan(accuracy).any():
        raise UserError(
            f"the true ranking needs every architecture; column {column} of the table lacks "
            f"{np.isnan(accuracy).sum():,} of {len(accuracy):,}"
        )
    grid = np.empty((len(OPS),) * len(EDGES))
    grid[_choices()] = accuracy
    edges = (np.moveaxis(grid, edge, -1).reshape(-1, len(OPS)) for edge in range(len(EDGES)))
    return np.stack([rankdata(-contexts, axis=1).mean(0) for contexts in edges])


def levels(importance: Importance) -> NDArray[np.int64]:
    """Importance as whole numbers [E, O]: the higher the more important, equal only where nothing decides."""
    images = torch.zeros_like(importance.score) if importance.images is None else importance.images
    keys = np.stack([table.numpy() for table in (images, importance.score, importance.tie_break)], axis=-1)
    return np.stack([np.unique(edge, axis=0, return_inverse=True)[1].reshape(-1) for edge in keys])


def kendall_tau(importance: Importance, ranks: Array) -> Array:
    """Kendall's tau-b between the importance of ops and their true ranks, edge by edge.

    Args:
        importance: of [E, O] ops.
        ranks: [E, O], as `true_ranks` gives them.

    Returns:
        [E], 1 where the orders agree and -1 where they are opposed; NaN where all ops are equal.
    """
    from scipy.stats import kendalltau

    return np.array(
        [kendalltau(level, -rank).statistic for level, rank in zip(levels(importance), ranks, strict=True)]
    )
