"""Small supernets, images and alphas, and what the tests of leave-one-out evaluation share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from vpdarts_fast.evaluation.fused_evaluation import FusedVariants, Normalisation, own_statistics, pieces_of
from vpdarts_fast.evaluation.leave_one_out import Batch, BatchNorm, LeaveOneOut
from vpdarts_fast.spaces.nas_bench_201 import Supernet

MODES: tuple[BatchNorm, ...] = get_args(BatchNorm)
every_mode = pytest.mark.parametrize("mode", MODES)
both_ways = pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])


def make_batches(
    *sizes: int, image: tuple[int, int] = (6, 6), dtype: torch.dtype = torch.float64, classes: int = 4
) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(n, 3, *image, generator=generator, dtype=dtype),
            torch.randint(classes, (n,), generator=generator),
        )
        for n in sizes
    ]


def make_supernet(dtype: torch.dtype = torch.float64, channels: int = 2, cells: int = 1) -> Supernet:
    """With running statistics that suit the random images of `make_batches`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        supernet = Supernet(channels, cells, 4).to(dtype)
        for images, _ in make_batches(20, 20, 20, dtype=dtype):
            supernet(images, supernet.new_alpha())
    return supernet


def make_alpha(zeros: Sequence[tuple[int, int]] = (), dtype: torch.dtype = torch.float64) -> Tensor:
    alpha = torch.randn(6, 5, generator=torch.Generator().manual_seed(6), dtype=dtype) / 2
    for e, o in zeros:
        alpha[e, o] = 0
    return alpha


def assert_same(a: LeaveOneOut, b: LeaveOneOut, rtol: float = 1e-9, turned: int = 0) -> None:
    """Losses within rtol; predictions alike but for `turned` of them, since rounding decides ties."""
    assert a.images == b.images
    differences = (a.accuracy - b.accuracy).abs().sum() + abs(a.base_accuracy - b.base_accuracy)
    assert float(differences) * a.images / 100 <= turned + 1e-6
    torch.testing.assert_close(a.loss, b.loss, rtol=rtol, atol=0)
    assert a.base_loss == pytest.approx(b.base_loss, rel=rtol)


def fused_variants(
    mode: BatchNorm,
    supernet: Supernet,
    batches: Sequence[Batch],
    tables: Tensor,
    memory_budget: int | None = None,
) -> FusedVariants:
    """What `together` evaluates in a mode, of a supernet that is in evaluation mode already."""
    normalisation: Normalisation = "batch" if mode == "batch" else "stored"
    if mode == "variant":
        estimation = pieces_of(supernet, mode, memory_budget, estimates=True)
        normalisation = own_statistics(supernet, [images for images, _ in batches], tables, estimation)
    return FusedVariants(supernet, tables, normalisation, pieces_of(supernet, mode, memory_budget))


def drop_statistics(network: nn.Module) -> None:
    """Makes every batch norm use the batch's own statistics, also in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None
