"""Draws of a model's own weights under `torch.vmap`, the same for all variants."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import dirichlet

_lock = threading.Lock()
_users = 0


class _DirichletDraw:
    """In place of PyTorch's autograd function, which has no rule for `torch.vmap`; it draws the same numbers.

    Calls with gradients, as of other threads, go to the function that was there.
    """

    original: Any = None

    @staticmethod
    def apply(concentration: Tensor) -> Tensor:
        """Draws once from each of the distributions with concentrations [..., O]."""
        if torch.is_grad_enabled():
            drawn: Tensor = _DirichletDraw.original.apply(concentration)
            return drawn
        return torch._sample_dirichlet(concentration)


@contextmanager
def transformable_draws() -> Iterator[None]:
    """Within, `torch.distributions.Dirichlet` can be drawn from under `torch.vmap` without gradients."""
    global _users
    with _lock:
        if _users == 0:
            _DirichletDraw.original = dirichlet._Dirichlet
            dirichlet._Dirichlet = _DirichletDraw  # type: ignore[misc, assignment]
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                dirichlet._Dirichlet = _DirichletDraw.original  # type: ignore[misc]
