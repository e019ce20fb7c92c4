"""The whole 30-way leave-one-out evaluation, C=16, N=1, 32x32: the plain loop, compiled, and ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vpdarts_fast import Supernet, leave_one_out
from vpdarts_fast.leave_one_out import BatchNorm, evaluation_mode, removals

IMAGES = 64


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(16, 1, 10)


@pytest.fixture(scope="module")
def alpha(supernet: Supernet) -> Tensor:
    alpha = supernet.new_alpha()
    return alpha + 0.02 * torch.randn(alpha.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def batch(supernet: Supernet, alpha: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, 32, 32, generator=generator)
    with torch.no_grad():
        for _ in range(5):
            supernet(images, alpha)  # running statistics
    return images, torch.randint(10, (IMAGES,), generator=generator)


@pytest.mark.parametrize("batch_norm", ["recalibrated", "running", "batch"])
def test_leave_one_out(
    supernet: Supernet,
    alpha: Tensor,
    batch: tuple[Tensor, Tensor],
    batch_norm: BatchNorm,
    compare: Callable[..., None],
) -> None:
    images, labels = batch
    tables = removals(alpha)

    def loop(forward: Callable[[Tensor, Tensor], Tensor], images: Tensor) -> list[int]:
        """The plain loop: one pass per (edge, op)."""
        with torch.no_grad(), evaluation_mode(supernet, batch_norm, [(images, labels)], alpha):
            return [int((forward(images, table).argmax(1) == labels).sum()) for table in tables]

    def ours() -> Tensor:
        return leave_one_out(supernet, [batch], alpha, batch_norm=batch_norm).accuracy

    channels_last = images.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(supernet, dynamic=False)
    expected = torch.tensor(loop(supernet, images)).view(alpha.shape) * (100 / IMAGES)
    assert torch.equal(ours(), expected.double())
    compare(
        {
            "eager": lambda: loop(supernet, images),
            "eager, channels last": lambda: loop(supernet, channels_last),
            "torch.compile": lambda: loop(compiled, channels_last),
            "fused": ours,
        }
    )
