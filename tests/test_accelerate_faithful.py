"""`accelerate` never computes anything else, whatever a module's code looks at, writes to or is given."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from acceleration_cases import CHANNELS, images
from supernets import (
    Cell,
    MixedOp,
    Residual,
    Style,
    Wrapped,
    Zero,
    darts_ops,
    weighted,
)
from torch import Tensor, nn

from vpdarts_fast.acceleration import AccelerationReport, accelerate, comparison, restore
from vpdarts_fast.acceleration.copies import differing_state

pytestmark = pytest.mark.usefixtures("one_thread")


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def outcome(module: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Values and gradients in training mode, then values in evaluation mode."""
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    module.zero_grad()
    torch.manual_seed(1)
    out = module.train()(x, weights)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    found = {"out": out, "x": x.grad, "weights": weights.grad}
    found |= {name: parameter.grad for name, parameter in module.named_parameters()}
    with torch.no_grad():
        found["evaluated"] = module.eval()(x, weights)
    return {name: value.detach() for name, value in found.items() if value is not None}


def assert_faithful(
    plain: nn.Module, shape: tuple[int, ...] = (8,), channels: int = CHANNELS
) -> AccelerationReport:
    """Accelerated, the module computes and keeps what it did; returns the report."""
    fused = copy.deepcopy(randomised(plain))
    before = copy.deepcopy(fused)
    report = accelerate(fused, backend="pytorch")
    assert differing_state(before, fused) is None
    assert_same_outcome(fused, plain, shape, channels)
    return report


def assert_same_outcome(
    fused: nn.Module, plain: nn.Module, shape: tuple[int, ...] = (8,), channels: int = CHANNELS
) -> None:
    x, weights = images(torch.float64, channels), torch.rand(shape, dtype=torch.float64)
    for _ in range(2):
        found, expected = outcome(fused, x, weights), outcome(plain, x, weights)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)
        assert differing_state(plain, fused) is None


# Code that looks at its operations -------------------------------------------------------------------------


class Scaling(MixedOp):
    """Each operation counts as much as its `factor` says."""

    def factor(self, op: nn.Module) -> float:
        raise NotImplementedError

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        factors = [self.factor(op) for op in self._ops]
        return weighted([w * f for w, f in zip(weights, factors, strict=True)], self._ops, x)


class ByInstance(Scaling):
    def factor(self, op: nn.Module) -> float:
        return 0.1 if isinstance(op, nn.Identity) else 1.0


class ByExactType(Scaling):
    def factor(self, op: nn.Module) -> float:
        return 0.1 if type(op) is Wrapped else 1.0


class ByName(Scaling):
    def factor(self, op: nn.Module) -> float:
        return 0.1 if type(op).__name__ == "Wrapped" else 1.0


class ByDefault(Scaling):
    def factor(self, op: nn.Module) -> float:
        return float(getattr(op, "stride", 0.1))


class ByPresence(Scaling):
    def factor(self, op: nn.Module) -> float:
        return 0.1 if hasattr(op, "layers") else 1.0


class ByParameters(Scaling):
    def factor(self, op: nn.Module) -> float:
        return 0.1 if any(True for _ in op.parameters()) else 1.0


class ByChildren(Scaling):
    def factor(self, op: nn.Module) -> float:
        return 1.0 + len(list(op.modules()))


class ByDictionary(Scaling):
    """It sees an attribute that only stand-ins have."""

    def factor(self, op: nn.Module) -> float:
        return 1.0 if "forward" in op.__dict__ else 0.1


class ByValue(Scaling):
    """Only values of its parameters tell."""

    def factor(self, op: nn.Module) -> float:
        return sum(float(p.detach().abs().sum()) for p in op.parameters()) + 1


class ByMode(Scaling):
    def factor(self, op: nn.Module) -> float:
        return 0.1 if isinstance(op, nn.Identity) and not self.training else 1.0


class Detaching(MixedOp):
    """The values are right, the gradients are not."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        terms = [w * op(x) for w, op in zip(weights, self._ops, strict=True)]
        return sum(
            t.detach() if isinstance(op, Wrapped) else t for t, op in zip(terms, self._ops, strict=True)
        )  # type: ignore[return-value]


class Straight(MixedOp):
    """Gradients of the weights pass as if these were others."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        return super().forward(x, weights.detach() + 2 * (weights - weights.detach()))


class Entangled(MixedOp):
    """One kernel, of which the smaller convolutions take the middle: operations are not called."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        out = weighted(weights[:6], self._ops[:6], x)
        kernel = self._ops[6].layers[1].weight  # type: ignore[union-attr,index]
        return out + F.conv2d(
            F.relu(x), kernel * weights[6] * weights[7], padding=2, dilation=2, groups=CHANNELS
        )


class Merged(MixedOp):
    """All operations are called, and a kernel is used once more."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        kernel = self._ops[6].layers[1].weight  # type: ignore[union-attr,index]
        return super().forward(x, weights) + F.conv2d(x, kernel, padding=2, dilation=2, groups=CHANNELS)


class Reaching(MixedOp):
    """It takes an operation apart."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        *others, last = self._ops
        return weighted(weights[:7], others, x) + weights[7] * last.layers(x)  # type: ignore[operator]


class Penalised(MixedOp):
    """A term that only weights of operations are in."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        return super().forward(x, weights) + 0.01 * sum(p.square().sum() for p in self._ops.parameters())


LOOKING: list[type[MixedOp]] = [
    ByInstance,
    ByExactType,
    ByName,
    ByDefault,
    ByPresence,
    ByParameters,
    ByChildren,
    ByDictionary,
    ByValue,
    ByMode,
    Detaching,
    Straight,
    Entangled,
    Merged,
    Reaching,
]


@pytest.mark.parametrize("kind", LOOKING)
def test_code_that_looks_at_its_operations_is_left(kind: type[MixedOp]) -> None:
    report = assert_faithful(kind(darts_ops(CHANNELS, 1, Style())))
    assert not report.fused and report.left[0].remark.startswith("forward ")


class Forwarding(MixedOp):
    """It calls their forwards."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        return sum(w * op.forward(x) for w, op in zip(weights, self._ops, strict=True))  # type: ignore[return-value]


class Checking(MixedOp):
    """It asks for what all of its operations have, and for what makes no difference."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        assert isinstance(self._ops[0], Zero) and self._ops[0].stride == 1 and hasattr(self._ops[4], "layers")
        terms = [(w, op) for w, op in zip(weights, self._ops, strict=True) if callable(op)]
        zeros = [w * op(x) for w, op in terms if isinstance(op, Zero)]
        return sum([w * op(x) for w, op in terms if not isinstance(op, Zero)], *zeros)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", [Forwarding, Checking, Penalised])
def test_code_that_looks_at_its_operations_in_vain_is_fused(kind: type[MixedOp]) -> None:
    report = assert_faithful(kind(darts_ops(CHANNELS, 1, Style())))
    assert report.fused and not report.left, str(report)


class LookingCell(Cell):
    """An average of its pools and convolutions, in one of its nodes."""

    def forward(self, inputs: Tensor, weights: Tensor) -> Tensor:
        scales = [0.5 if isinstance(op, nn.AvgPool2d) else 1.0 for op in self.edges["3<-0"]]  # type: ignore[union-attr]
        row = torch.zeros(6, 5, dtype=weights.dtype)
        row[self.edge2index["3<-0"]] = torch.tensor(scales, dtype=weights.dtype) - 1
        return super().forward(inputs, weights * (1 + row))


class DetachingCell(Cell):
    """Its probes see what another method does, and its gradients are its own."""

    def forward(self, inputs: Tensor, weights: Tensor) -> Tensor:
        return super().forward(inputs.detach(), weights)


class LookingResidual(Residual):
    """Its layers are traced as always; the gradient of the shortcut stops."""

    def forward(self, x: Tensor, _: Any = None) -> Tensor:
        return self.downsample(x).detach() + self.conv_b(self.conv_a(x))


def test_cells_and_residual_blocks_are_compared_too() -> None:
    (entry,) = assert_faithful(LookingCell(CHANNELS, Style()), (6, 5)).entries
    assert entry.remark == "in forward_joint only"

    (entry,) = assert_faithful(DetachingCell(CHANNELS, Style()), (6, 5)).entries
    assert entry.remark == "in forward_joint only"

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = LookingResidual(CHANNELS)

        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            out: Tensor = self.block(x) * weights
            return out

    assert not assert_faithful(Scaled(), ()).fused


class Switched(ByInstance):
    """It looks at its operations once it is told to."""

    def __init__(self, ops: list[nn.Module]) -> None:
        super().__init__(ops)
        self.config, self.scales = argparse.Namespace(looks=False), {"identity": [1.0]}

    def factor(self, op: nn.Module) -> float:
        scale = super().factor(op) if self.config.looks else 1.0
        return scale * (self.scales["identity"][0] if isinstance(op, nn.Identity) else 1.0)


def by_class(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    monkeypatch.setattr(Switched, "forward", lambda self, x, weights: 2 * weighted(weights, self._ops, x))


def by_configuration(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    module.config.looks = True


def by_list(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    module.scales["identity"][0] = 2.0


def by_attribute(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    module.config = argparse.Namespace(looks=True)


@pytest.mark.parametrize("change", [by_class, by_configuration, by_list, by_attribute])
def test_what_a_module_has_become_is_compared_too(
    change: Callable[[pytest.MonkeyPatch, Any], None], monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    plain = randomised(Switched(darts_ops(CHANNELS, 1, Style())))
    fused = copy.deepcopy(plain)
    assert accelerate(fused, backend="pytorch").fused
    assert_same_outcome(fused, plain)
    assert calls
    calls.clear()
    for module in (plain, fused):
        change(monkeypatch, module)
    assert_same_outcome(fused, plain)
    assert not calls


# What modules keep -----------------------------------------------------------------------------------------


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


class CountingOp(nn.Module):
    """A separable convolution of the space."""

    def __init__(self) -> None:
        super().__init__()
        self.op = Style().separable(CHANNELS, 3, 1, 1, 1)
        self.calls, self.shapes = 0, []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.shapes.append(1)
        out: Tensor = self.op(x)
        return out


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


# Instances that differ from their class --------------------------------------------------------------------


def doubled(layer: Any) -> None:
    """Its forward holds on to what it was."""
    own = layer.forward
    layer.forward = lambda *args: 2 * own(*args)


def bound(layer: Any) -> None:
    layer.forward = MethodType(lambda self, *args: 2 * type(self).forward(self, *args), layer)


def deeper(layer: Any) -> None:
    """Not its forward, but what this calls."""
    if isinstance(layer, nn.Conv2d):
        layer._conv_forward = lambda x, weight, bias: 2 * F.conv2d(x, weight, bias, padding=layer.padding)
    else:
        doubled(layer)


LAYERS: dict[str, Callable[[Any], Any]] = {
    "operation": lambda module: module._ops[4],
    "batch norm": lambda module: module._ops[4].layers[3],
    "convolution": lambda module: module._ops[8].layers[1],
    "pool": lambda module: module._ops[1][0],
    "norm of a pool": lambda module: module._ops[2][1],
    "identity": lambda module: module._ops[3],
    "mixed operation": lambda module: module,
}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("change", [doubled, bound, deeper])
@pytest.mark.parametrize("where", LAYERS)
def test_methods_that_are_set_on_instances_count(
    where: str, change: Callable[[Any], None], later: bool, calls: list[str]
) -> None:
    ops = [*darts_ops(CHANNELS, 1, Style()), Style().dense(CHANNELS, 3, 1)]
    plain = randomised(MixedOp(ops))
    fused = copy.deepcopy(plain)
    if later:
        accelerate(fused, backend="pytorch")
        assert_same_outcome(fused, plain, (9,))
        assert calls
    for module in (plain, fused):
        change(LAYERS[where](module))
    calls.clear()
    if not later:
        before = [value.clone() for value in fused.state_dict().values()]
        report = accelerate(fused, backend="pytorch")
        assert not report.fused
        (entry,) = report.left
        assert " of its own, not that of its class" in entry.remark, entry.remark
        assert all(map(torch.equal, before, fused.state_dict().values()))
    assert_values(fused, plain, (9,))
    assert not calls


def assert_values(fused: nn.Module, plain: nn.Module, shape: tuple[int, ...]) -> None:
    x, weights = images(torch.float64), torch.rand(shape, dtype=torch.float64)
    found, expected = outcome(fused, x, weights), outcome(plain, x, weights)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


def test_methods_that_are_set_in_a_residual_block_count(calls: list[str]) -> None:
    block = Residual(CHANNELS)
    doubled(block.conv_a[2])
    assert not accelerate(block).fused
    block = Residual(CHANNELS).double()
    accelerate(block, backend="pytorch")
    plain = copy.deepcopy(block)
    restore(plain)
    for module in (block, plain):
        doubled(module.conv_a[2])
    torch.testing.assert_close(block(images(torch.float64)), plain(images(torch.float64)))
    assert not calls


# Numbers of channels and sizes that change -----------------------------------------------------------------


def conv(channels: int, kernel: int, padding: int, stride: int = 1, dilation: int = 1) -> nn.Module:
    layer = nn.Conv2d(CHANNELS, channels, kernel, stride, padding, dilation)
    return nn.Sequential(nn.ReLU(), layer, nn.BatchNorm2d(channels))


SHAPES: dict[str, Callable[[], list[nn.Module]]] = {
    "wider": lambda: [conv(12, 3, 1), conv(12, 1, 0)],
    "narrower": lambda: [conv(4, 3, 1), conv(4, 1, 0), nn.Conv2d(CHANNELS, 4, 1)],
    "to one channel": lambda: [conv(1, 3, 1), conv(1, 1, 0), nn.Identity()],
    "no padding": lambda: [conv(CHANNELS, 3, 0), conv(CHANNELS, 3, 0)],
    "no padding, and unknown": lambda: [conv(CHANNELS, 3, 0), nn.AvgPool2d(3, 1)],
    "more padding": lambda: [conv(CHANNELS, 1, 1), conv(CHANNELS, 3, 2)],
    "other strides": lambda: [conv(CHANNELS, 3, 0, 2), conv(CHANNELS, 3, 0, 2)],
    "one pixel": lambda: [nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (6, 6)))],
    "some to one channel": lambda: [conv(CHANNELS, 3, 1), conv(1, 3, 1), nn.Identity()],
    "all fit": lambda: [
        conv(CHANNELS, 5, 4, 1, 2),
        conv(CHANNELS, 1, 0),
        nn.AdaptiveAvgPool2d(1),
        nn.Identity(),
    ],
}


@pytest.mark.parametrize("name", SHAPES)
def test_operations_that_change_channels_or_size(name: str) -> None:
    ops = SHAPES[name]()
    report = assert_faithful(MixedOp(ops), (len(ops),))
    assert bool(report.fused) == (name == "all fit")


@pytest.mark.parametrize("size", [5, 6, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_what_fits_is_seen_in_every_call(padded: bool, stride: int, size: int) -> None:
    """An image of odd size may be an error, as it was, or not."""
    ops = darts_ops(CHANNELS, stride, Style(padded_reduce=padded))
    plain = randomised(MixedOp([*ops, nn.AvgPool2d(stride, stride)]))
    fused = copy.deepcopy(plain)
    assert accelerate(fused, backend="pytorch").fused
    x, weights = images(torch.float64, CHANNELS, size), torch.rand(9, dtype=torch.float64)
    try:
        expected = plain(x, weights)
    except RuntimeError as error:
        with pytest.raises(RuntimeError) as raised:
            fused(x, weights)
        assert str(raised.value) == str(error)
    else:
        torch.testing.assert_close(fused(x, weights), expected, rtol=1e-9, atol=1e-9)
    assert differing_state(plain, fused) is None


@pytest.mark.parametrize("channels", [4, 12])
def test_other_channels_than_the_operations_have_are_an_error_as_before(channels: int) -> None:
    plain = randomised(MixedOp(darts_ops(CHANNELS, 1, Style())))
    fused = copy.deepcopy(plain)
    accelerate(fused, backend="pytorch")
    x, weights = images(torch.float64, channels), torch.rand(8, dtype=torch.float64)
    errors = []
    for module in (plain, fused):
        with pytest.raises(RuntimeError) as raised:
            module(x, weights)
        errors.append(str(raised.value))
    assert errors[0] == errors[1]


def test_shapes_that_change_after_a_call_run_the_modules_own_code(calls: list[str]) -> None:
    """Parameters are replaced and padding is set: all operations have the new shape."""
    plain = randomised(MixedOp([conv(CHANNELS, 3, 1), conv(CHANNELS, 3, 1)]))
    fused = copy.deepcopy(plain)
    assert accelerate(fused, backend="pytorch").fused
    assert_same_outcome(fused, plain, (2,))
    assert calls
    for module in (plain, fused):
        for op in module._ops:  # type: ignore[union-attr]
            op[1].weight = nn.Parameter(torch.ones(12, CHANNELS, 3, 3, dtype=torch.float64))
            op[1].bias = None
            op[2] = nn.BatchNorm2d(12).double()
    calls.clear()
    assert_values(fused, plain, (2,))
    for module in (plain, fused):
        for op in module._ops:  # type: ignore[union-attr]
            op[1].padding = (0, 0)
    assert_values(fused, plain, (2,))
    assert not calls


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
    assert accelerate(kind()).entries == ()


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


def test_modules_that_are_alike_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they hold what is not simple, as a configuration, and where they are left."""
    compared: list[nn.Module] = []
    compare = comparison.compare

    def recording(module: nn.Module, plan: Any) -> Any:
        compared.append(module)
        return compare(module, plan)

    monkeypatch.setattr(comparison, "compare", recording)

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
