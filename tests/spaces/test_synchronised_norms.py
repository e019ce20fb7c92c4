"""Batch norms over several processes, which here have the same part of a batch: as one would be with it.

What processes of different parts come to is in `tests/search/test_processes.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from vpdarts_fast.runtime.processes import ALONE, Processes
from vpdarts_fast.runtime.synchronised import SynchronisedBatchNorm2d, synchronise


class Alike(Processes):
    """Two that have the same of everything."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.sent = 0

    @override
    def add_up(self, tensors: Sequence[Tensor], share: float = 1.0) -> None:
        self.sent += 1
        for tensor in tensors:
            tensor.mul_(2 * share)


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.float64, {}),
        (torch.float64, {"affine": False, "momentum": None}),
        (torch.float32, {"track_running_stats": False}),
        (torch.bfloat16, {}),
    ],
)
def test_equal_parts_are_normalised_as_one_of_them(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3, **settings)
    if dtype is torch.float64:
        plain.double()
    together = copy.deepcopy(plain)
    synchronise(together, Alike())
    assert isinstance(together, SynchronisedBatchNorm2d)
    x = (3 + torch.randn(40, 3, 7, 7)).to(dtype)
    outputs, gradients = [], []
    for norm in (plain, together):
        mine = x.clone().requires_grad_()
        out = norm(mine)
        out.square().mul(torch.arange(7, dtype=dtype)).sum().backward()
        assert out.dtype == dtype and mine.grad is not None
        outputs.append(out.detach())
        gradients.append([mine.grad, *(parameter.grad for parameter in norm.parameters())])
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.02}[dtype]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(*reversed(gradients), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance
    values = 40 * 7 * 7
    for (name, ours), (_, theirs) in zip(together.named_buffers(), plain.named_buffers(), strict=True):
        # Twice as many values make the unbiased variance a little smaller.
        less = (1 - 1 / values) / (1 - 1 / (2 * values)) if name == "running_var" else 1.0
        kept = (
            theirs if plain.momentum is None else (theirs.double() - 0.9) if name == "running_var" else theirs
        )
        found = ours if plain.momentum is None else (ours.double() - 0.9) if name == "running_var" else ours
        torch.testing.assert_close(found.double(), kept.double() * less, rtol=1e-2 * tolerance, atol=1e-6)


def test_what_evaluates_and_what_is_alone_sends_nothing() -> None:
    processes, x = Alike(), torch.randn(8, 3, 5, 5)
    norm = nn.Sequential(nn.BatchNorm2d(3))
    synchronise(norm, processes)
    with torch.no_grad():
        norm(x)
    norm.eval()(x)
    assert not processes.sent
    norm.train()(x)
    assert processes.sent == 2
    alone = nn.Sequential(nn.BatchNorm2d(3))
    synchronise(alone, ALONE)
    assert type(alone[0]) is nn.BatchNorm2d
