"""Supernets of NAS-Bench-201 in float64, and what goes in."""

from __future__ import annotations

import torch
from torch import Tensor

from vpdarts_fast.spaces.blocks import ResidualBlock, SearchCell
from vpdarts_fast.spaces.nas_bench_201 import Supernet


def make_supernet(channels: int = 4, cells: int = 1, classes: int = 5, dropout: float = 0.0) -> Supernet:
    """In float64, its running statistics and affine parameters anything but their initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        supernet = Supernet(channels, cells, classes, skip_dropout=dropout).double()
        for name, tensor in supernet.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_()
            elif name.endswith("running_var") or ("weight" in name and tensor.dim() == 1):
                tensor.uniform_(0.5, 1.5)
    return supernet


def fuse(supernet: Supernet) -> None:
    for cell in supernet.cells:
        assert isinstance(cell, (SearchCell, ResidualBlock))
        cell.fused = True


def make_input(*size: int, n: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images [n, 3, H, W] and alpha [6, 5], float64."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, *size, generator=generator, dtype=torch.float64)
    return images, torch.randn(6, 5, generator=generator, dtype=torch.float64) / 2
