"""What `accelerate` lists as fused and as left, what a first call makes, and what is compared once."""

from __future__ import annotations

import argparse
import copy
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from acceleration_cases import CHANNELS, images
from faithful_cases import (
    ByInstance,
    CountingOp,
    Straight,
    Switched,
    assert_faithful,
    assert_same_outcome,
    conv,
    outcome,
    randomised,
)
from supernets import (
    Cell,
    MixedOp,
    Style,
    Zero,
    darts_ops,
)
from torch import Tensor, nn
from whole_supernets import DartsSupernet

from vpdarts_fast.acceleration import accelerate, comparison, restore

pytestmark = pytest.mark.usefixtures("one_thread")


# What is listed --------------------------------------------------------------------------------------------


class Sequences(nn.Module):
    """A convolution of sequences or of volumes, a batch norm, and a ReLU."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dimensions == 1 else (nn.Conv3d, nn.BatchNorm3d)
        self.layers = nn.Sequential(nn.ReLU(), conv(CHANNELS, CHANNELS, 3, padding=1), norm(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


@pytest.mark.parametrize("dimensions", [1, 3])
def test_sequences_and_volumes_are_left(dimensions: int) -> None:
    module = MixedOp([Zero(1), nn.Identity(), Sequences(dimensions)])
    (entry,) = accelerate(module).left
    assert entry.remark == "forward cannot be run on its own: is of sequences or volumes, not of images"
    x = torch.randn(2, CHANNELS, *[6] * dimensions)
    assert module(x, torch.rand(3)).shape == x.shape


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.gelu(self.conv(x))
        return out


def scaled(x: Tensor) -> Tensor:
    return x.mul(torch.finfo(torch.float32).max)


class Calling(nn.Module):
    """A function, which `torch.fx` shows with its address."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(F.hardswish(scaled(x)))


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"not with {scaled}, nor with {object()}")


def test_operations_that_are_all_unknown_are_listed_and_left() -> None:
    report = assert_faithful(nn.ModuleList([MixedOp([Unknown(), Calling(), Unknown()])])[0], (3,))
    (entry,) = report.left
    assert entry.remark.startswith("has no operation that is known (operation 0: unknown layers: ")
    assert "gelu; operation 1: " in entry.remark
    cell = Cell(CHANNELS, Style())
    for edge in cell.edges.values():
        for o in range(5):
            edge[o] = Unknown()  # type: ignore[operator]
    (entry,) = accelerate(cell).left
    assert entry.remark.startswith("has no operation that is known (operation 0: ")


def test_a_cell_may_have_edges_of_unknown_operations() -> None:
    cell = Cell(CHANNELS, Style())
    for o in range(5):
        cell.edges["2<-1"][o] = Unknown()  # type: ignore[index,operator]
    (entry,) = assert_faithful(cell, (6, 5)).fused
    assert "operation 0 runs as it is" in entry.remark


def test_remarks_contain_no_addresses() -> None:
    report = accelerate(MixedOp([*darts_ops(CHANNELS, 1, Style()), Calling(), Raising()]))
    report2 = accelerate(MixedOp([Calling(), Raising()]))
    texts = str(report) + str(report2)
    assert "erf" in texts and "not with <function scaled>" in texts and "0x" not in texts


class Joined(nn.Module):
    """A cell of a network that was found: two images come in."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = conv(CHANNELS, 1, 0)
        self.ops = nn.ModuleList(darts_ops(CHANNELS, 1, Style())[3:6])

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        s0, s1 = self.preprocess(s0), self.preprocess(s1)
        return torch.cat([self.ops[0](s0) + self.ops[1](s1), self.ops[2](s0)], 1)


class Chained(nn.Module):
    """Its layers run one behind the other, and are dropped at times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(CHANNELS, 3, 1), conv(CHANNELS, 3, 1)
        self.shortcut = nn.Identity()

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        out: Tensor = self.shortcut(self.second(self.first(x))) * scale.mean()
        return out


class Squeezed(Chained):
    """Its layers have several strides."""

    def __init__(self) -> None:
        super().__init__()
        self.second = conv(CHANNELS, 3, 1, 2)


class Changed(Chained):
    """It has a layer that changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(CHANNELS, CHANNELS, 1))


class Attending(nn.Module):
    """Nothing of it is known, and its second argument is no row of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.query = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.key(x) @ self.query(y).transpose(-1, -2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Joined, Chained, Squeezed, Changed, Attending])
def test_modules_that_are_no_mixed_operations_are_not_listed(kind: type[nn.Module]) -> None:
    entries = accelerate(kind()).entries
    assert [entry.name for entry in entries] == (["preprocess"] if kind is Joined else [])


# First calls -----------------------------------------------------------------------------------------------


class Measuring(MixedOp):
    """It measures its operations at its first call, with random images."""

    flops: Any = None

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        if self.flops is None:
            image = torch.randn(1, *x.shape[1:], dtype=x.dtype)
            self.flops = [float(op(image).numel()) for op in self._ops]
        return super().forward(x, weights)


class MeasuringOp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.op = Style().dense(CHANNELS, 3, 1)
        self.flops = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.flops:
            self.flops = int(torch.rand(3).numel() + len(x))
        out: Tensor = self.op(x)
        return out


def test_a_first_call_that_differs_is_made_by_the_user() -> None:
    module = Measuring(darts_ops(CHANNELS, 1, Style()))
    (entry,) = assert_faithful(module).left
    assert entry.remark.endswith("call the model once, then accelerate it"), entry.remark
    module = randomised(Measuring(darts_ops(CHANNELS, 1, Style())))  # type: ignore[assignment]
    outcome(module, images(torch.float64), torch.rand(8, dtype=torch.float64))
    assert assert_faithful(module).fused


def test_operations_whose_first_call_differs() -> None:
    module = MixedOp([*darts_ops(CHANNELS, 1, Style()), MeasuringOp()])
    (entry,) = assert_faithful(module, (9,)).fused
    assert "operation 8 runs as it is" in entry.remark and entry.remark.endswith("then accelerate it")
    (entry,) = assert_faithful(module, (9,)).fused
    assert entry.remark == ""


class Lazy(MixedOp):
    """It has a parameter whose shape the first call tells."""

    def __init__(self, ops: list[nn.Module]) -> None:
        super().__init__(ops)
        self.lazy = nn.LazyConv2d(CHANNELS, 1)

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        return super().forward(x, weights) + self.lazy(x)


def test_compiled_operations_are_copied_as_they_were() -> None:
    """What is compiled holds on to the module that it was compiled for."""
    module = MixedOp([*darts_ops(CHANNELS, 1, Style()), CountingOp()])
    called: list[int] = []
    for op in module._ops:
        op._compiled_call_impl = lambda x: called.append(1)
    assert accelerate(module).fused and not called


class Unequal:
    """What cannot be compared with anything."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("not to be compared")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        (torch.eye(3).to_sparse(), ""),
        (torch.tensor([1, float("nan")]), ""),
        (argparse.Namespace(a=[1, {2: "b"}]), ""),
        (Unequal(), "cannot be compared with its own code: ValueError: not to be compared"),
        (threading.Lock(), "cannot be copied: TypeError: cannot pickle '_thread.lock' object"),
    ],
)
def test_whatever_a_module_holds(held: object, reason: str) -> None:
    module: Any = MixedOp(darts_ops(CHANNELS, 1, Style()))
    module.held = held
    (entry,) = accelerate(module).entries
    assert entry.remark == reason and entry.fused == (not reason)
    assert module(images(torch.float32), torch.rand(8)).isfinite().all()
    assert module.held is held


def test_parameters_without_a_shape() -> None:
    module = Lazy(darts_ops(CHANNELS, 1, Style()))
    (entry,) = accelerate(module).left
    assert "call the model once, then accelerate" in entry.remark
    module(images(torch.float32), torch.rand(8))
    assert accelerate(module).fused


# On meta, and many alike -----------------------------------------------------------------------------------


def test_on_meta_nothing_is_compared_until_there_are_values(calls: list[str]) -> None:
    plain = Straight(darts_ops(CHANNELS, 1, Style()))
    other = MixedOp(darts_ops(CHANNELS, 1, Style()))
    for module in (plain, other):
        module.to("meta")
        (entry,) = accelerate(module, backend="pytorch").fused
        assert "not compared with its own code, as its parameters are on meta" in entry.remark
        module.to_empty(device="cpu")
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_running_stats()
    expected = [copy.deepcopy(module) for module in (plain, other)]
    for module, own in zip((plain, other), expected, strict=True):
        randomised(module)
        restore(own)
        own.double().load_state_dict(module.state_dict())
        assert_same_outcome(module, own)
    assert calls


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The modules that are compared with their plan."""
    modules: list[nn.Module] = []
    compare = comparison.compare

    def recording(module: nn.Module, plan: Any) -> Any:
        modules.append(module)
        return compare(module, plan)

    monkeypatch.setattr(comparison, "compare", recording)
    return modules


def test_modules_that_are_alike_are_compared_once(compared: list[nn.Module]) -> None:
    """Also where they hold what is not simple, as a configuration, and where they are left."""

    class Alike(Switched):
        """A class of its own, that nothing is known of yet."""

    class Left(Alike):
        """The same."""

        factor = ByInstance.factor

    config = argparse.Namespace(looks=False)
    model = nn.ModuleList([kind(darts_ops(CHANNELS, 1, Style())) for kind in (Alike, Left) for _ in range(5)])
    for module in model:
        module.config = config
    report = accelerate(model)
    assert (len(report.fused), len(report.left)) == (5, 5)
    assert len(compared) == 1


def test_a_whole_supernet_takes_a_comparison_for_each_stride_and_width(compared: list[nn.Module]) -> None:
    class Alike(MixedOp):
        """A class of its own, that nothing is known of yet."""

    report = accelerate(DartsSupernet(layers=8, mixed_op=Alike))
    mixed = [entry for entry in report.fused if entry.operations]
    assert len(mixed) == 40 and sum(isinstance(module, Alike) for module in compared) == 5
