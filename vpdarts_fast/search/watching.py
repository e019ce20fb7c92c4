"""Signs of a collapse, at the end of each epoch: skip connections, entropy, curvature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpdarts_fast.spaces.space import Space

SKIP = "skip_connect"
"""What skip connections are called in the spaces of the package."""

TOLERANCE = 1e-2
"""Relative accuracy of the eigenvalue."""


def skips_of(space: Space[Any], genotype: Any) -> int:
    """Counts the skip connections that a choice consists of."""
    rows = [names for table in space.tables for names in table.ops]
    return sum(rows[row][op] == SKIP for row, op in space.chosen(genotype).nonzero().tolist())


def mean_entropy(strength: Tensor, present: Tensor) -> float:
    """Computes the entropy of an edge's ops, in nats, as the mean over all edges with several ops.

    Args:
        strength: [E, O], not negative; of each edge it is scaled to sum 1.
        present: [E, O] bool.
    """
    share = strength.double().cpu() * present
    share = share / share.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    entropies = -torch.special.xlogy(share, share).sum(1)[present.sum(1) > 1]
    return float(entropies.mean()) if len(entropies) else 0.0


def largest_eigenvalue(loss_of: Callable[[Tensor], Tensor], alpha: Tensor, free: Tensor) -> float:
    """Finds the largest eigenvalue of the Hessian of a loss by alpha, from a few products with it (Lanczos).

    Args:
        loss_of: alpha [E, O] -> loss [], twice differentiable.
        alpha: [E, O].
        free: [E, O] bool, of the entries that may change; the others are constants.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh  # takes a moment, and few searches need it

    leaf = alpha.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(leaf), leaf, create_graph=True)
    free = free.to(alpha.device)
    size = int(free.sum())

    def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        direction = torch.zeros_like(alpha)
        direction[free] = torch.from_numpy(vector.reshape(-1)).to(alpha)
        (bent,) = torch.autograd.grad(gradient, leaf, direction, retain_graph=True)
        product: NDArray[np.float64] = bent[free].double().cpu().numpy()
        return product

    if not size:
        return 0.0
    if size < 3:  # too small for an iteration
        return float(np.linalg.eigvalsh(np.stack([product(unit) for unit in np.eye(size)])).max())
    hessian = LinearOperator((size, size), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(size)
    (largest,) = eigsh(hessian, k=1, which="LA", v0=start, tol=TOLERANCE, return_eigenvectors=False)
    return float(largest)
