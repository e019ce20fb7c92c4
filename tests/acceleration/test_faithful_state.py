"""What modules keep: code that writes to a module, an operation or a class is not fused away."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from acceleration_cases import CHANNELS, images
from faithful_cases import (
    CountingOp,
    assert_faithful,
)
from supernets import (
    Cell,
    MixedOp,
    Residual,
    Style,
    darts_ops,
)
from torch import Tensor, nn

from vpdarts_fast.acceleration import accelerate

pytestmark = pytest.mark.usefixtures("one_thread")


class Counting(MixedOp):
    def __init__(self, ops: list[nn.Module]) -> None:
        super().__init__(ops)
        self.calls, self.lists, self.held = 0, [[]], {"calls": torch.zeros(())}
        self.register_buffer("total", torch.zeros((), dtype=torch.int64))

    def count(self, weights: Any) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        self.count(weights)
        return super().forward(x, weights)


class InNumber(Counting):
    def count(self, weights: Any) -> None:
        self.calls += 1


class InBuffer(Counting):
    def count(self, weights: Any) -> None:
        self.total += 1


class InList(Counting):
    def count(self, weights: Any) -> None:
        self.lists[0].append(1)


class InTensor(Counting):
    def count(self, weights: Any) -> None:
        self.held["calls"] += 1


class Entropy(Counting):
    """Stored with its history, for a regulariser."""

    def count(self, weights: Any) -> None:
        self.entropy = -(weights.softmax(-1) * weights.log_softmax(-1)).sum()


class Flops(Counting):
    """Measured by hooks of its own while it runs."""

    def count(self, weights: Any) -> None:
        self.flops = sum(p.numel() for p in self._ops.parameters()) * float(weights.detach().sum())


class InClass(Counting):
    """For all mixed operations together."""

    made, seen = 0, [0]

    def count(self, weights: Any) -> None:
        InClass.made += 1
        self.seen[0] += 1


class Inner(Counting):
    """In one of its operations."""

    def count(self, weights: Any) -> None:
        self._ops[4].last = weights  # type: ignore[union-attr]


class New(Counting):
    """A submodule that comes with the first call."""

    def count(self, weights: Any) -> None:
        if not hasattr(self, "scale"):
            self.scale = nn.Identity()


WRITING: list[type[Counting]] = [InNumber, InBuffer, InList, InTensor, Entropy, Flops, Inner]


def test_what_writes_to_its_class_is_left() -> None:
    report = accelerate(InClass(darts_ops(CHANNELS, 1, Style())))
    assert "writes to InClass." in report.left[0].remark and not report.fused
    assert (InClass.made, InClass.seen) == (0, [0])


@pytest.mark.parametrize("kind", WRITING)
def test_what_writes_to_itself_is_left(kind: type[Counting]) -> None:
    report = assert_faithful(kind(darts_ops(CHANNELS, 1, Style())))
    assert "writes to " in report.left[0].remark and not report.fused


def test_a_called_module_that_writes_to_itself_is_left_too() -> None:
    """What it keeps has a history, which `copy.deepcopy` refuses."""
    module = Entropy(darts_ops(CHANNELS, 1, Style()))
    module(images(torch.float32), torch.rand(8, requires_grad=True))
    (entry,) = accelerate(module).left
    assert "writes to entropy" in entry.remark


def test_operations_that_write_to_themselves_run_as_they_are() -> None:
    report = assert_faithful(MixedOp([*darts_ops(CHANNELS, 1, Style()), CountingOp()]), (9,))
    assert "operation 8 runs as it is (writes to calls)" in report.fused[0].remark


class CountingCell(Cell):
    calls = 0

    def forward(self, inputs: Tensor, weights: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(inputs, weights)

    def forward_joint(self, inputs: Tensor, weights: Tensor) -> Tensor:
        return CountingCell.forward(self, inputs, weights)


class CountingResidual(Residual):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class RunningNorm(nn.BatchNorm2d):
    """It counts values, as no other batch norm does."""

    seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.numel()
        return super().forward(x)


def test_cells_and_layers_that_write_to_themselves() -> None:
    assert "writes to calls" in assert_faithful(CountingCell(CHANNELS, Style()), (6, 5)).left[0].remark
    block = nn.Sequential(CountingResidual(CHANNELS))
    assert not accelerate(block).fused
    ops = darts_ops(CHANNELS, 1, Style())
    ops[4].layers[3] = RunningNorm(CHANNELS)  # type: ignore[union-attr,operator]
    assert_faithful(MixedOp(ops))
