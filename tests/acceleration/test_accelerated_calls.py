"""What `accelerate` leaves alone, and which calls of what it fuses run the module's own code."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from acceleration_cases import CHANNELS, assert_same_output, both, images
from supernets import (
    Cell,
    MixedOp,
    Style,
    darts_ops,
)
from torch import Tensor, nn

from vpdarts_fast.acceleration import accelerate
from vpdarts_fast.errors import UserError

pytestmark = pytest.mark.float32


@pytest.fixture
def mixed_op() -> nn.Module:
    torch.manual_seed(0)
    module = MixedOp(darts_ops(CHANNELS, 1, Style()))
    accelerate(module)
    return module


ARGUMENTS = images(torch.float32), torch.linspace(0, 1, 8)


def run(module: nn.Module) -> Tensor:
    out: Tensor = module(*ARGUMENTS)
    return out


def test_forwards_for_sampling_are_left(calls: list[str]) -> None:
    plain, fused = both(Cell(CHANNELS, Style()), torch.float32)
    (entry,) = accelerate(fused).fused
    assert entry.remark == "in forward and forward_joint only"
    index = torch.arange(6) % 5
    assert torch.equal(
        fused.forward_select(images(torch.float32), index),  # type: ignore[operator]
        plain.forward_select(images(torch.float32), index),  # type: ignore[operator]
    )
    assert calls == []


def test_further_forwards_that_compute_the_same_are_fused(calls: list[str]) -> None:
    plain, fused = both(Cell(CHANNELS, Style()), torch.float32)
    x, alpha = images(torch.float32), torch.rand(6, 5)
    for call in ("__call__", "forward_joint"):
        assert_same_output(fused, plain, x, alpha, call=call)
    assert calls == ["mixed_cell"] * 2


class Product(MixedOp):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, weights) * x


class Twice(MixedOp):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x + 1, weights)


class Softened(MixedOp):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, F.softmax(weights, -1))


class Noisy(MixedOp):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, weights + torch.randn_like(weights))


class Rarely(MixedOp):
    """It drops its output once in a thousand calls."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, weights) * (0.0 if self.training and random.random() < 1e-3 else 1.0)


class Merging(MixedOp):
    """It runs the operations whose weight is not 0 where these are few."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        if int((weights != 0).sum()) > 3:
            return super().forward(x, weights)
        return torch.stack([w * op(x) for w, op in zip(weights, self._ops, strict=True) if w != 0]).sum(0)


class Dropped(MixedOp):
    """It drops its output at times, by NumPy's random numbers."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, weights) * float(np.random.rand() > 1e-3)


class Uncopied(MixedOp):
    """It has a layer of its own that cannot be copied."""

    def __init__(self, ops: list[nn.Module]) -> None:
        super().__init__(ops)
        self.layer = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.layer.generator = (i for i in range(3))  # type: ignore[assignment]

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, weights) + self.layer(x)


@pytest.mark.parametrize("kind", [Product, Twice, Softened, Noisy, Rarely, Dropped, Merging])
def test_what_is_no_weighted_sum_is_left(kind: type[MixedOp]) -> None:
    model = nn.Sequential(kind(darts_ops(CHANNELS, 1, Style())))
    state, numpy = torch.get_rng_state(), str(np.random.get_state())
    report = accelerate(model)
    assert torch.equal(torch.get_rng_state(), state) and str(np.random.get_state()) == numpy
    assert not report.fused and type(model[0]) is kind
    (entry,) = report.left
    assert entry.name == "0" and entry.remark.startswith("forward ")
    assert f"0  left   {kind.__name__}: forward " in str(report)


def test_what_cannot_be_copied_is_left() -> None:
    (entry,) = accelerate(Uncopied(darts_ops(CHANNELS, 1, Style()))).left
    assert entry.remark == "cannot be copied: TypeError: cannot pickle 'generator' object"


def test_what_looks_like_no_mixed_op_is_not_listed() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            out: Tensor = self.parts[0](x) + self.parts[1](y)
            return out

    report = accelerate(nn.Sequential(Two(), nn.Conv2d(3, 4, 1)))
    assert report.entries == () and str(report).startswith("0 of 0 modules fused\n")


class Odd(nn.Module):
    """Its layers look like a convolution of the space; what it returns is something else."""

    def __init__(self) -> None:
        super().__init__()
        self.op = Style().dense(CHANNELS, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x) + x
        return out


class Dropping(nn.Module):
    """Its layers are a convolution of the space, which it drops at times."""

    def __init__(self) -> None:
        super().__init__()
        self.op = Style().dense(CHANNELS, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x * 0 if random.random() < 1e-3 else x)
        return out


class Two(nn.Module):
    """A number."""

    def forward(self, x: Tensor) -> float:
        return 2.0


def test_operations_that_change_their_input_leave_the_module_alone() -> None:
    changing = [nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(CHANNELS, CHANNELS, 1)), InPlace()]
    for op in changing:
        (entry,) = accelerate(MixedOp([*darts_ops(CHANNELS, 1, Style()), op])).left
        assert entry.remark == "operation 8 changes its input in place"


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.tanh_() + 1


def test_operations_that_are_not_known_run_as_they_are(calls: list[str]) -> None:
    torch.manual_seed(0)
    others = [
        Odd(),
        nn.Sequential(nn.Identity(), nn.Dropout(0.0)),
        Dropping(),
        nn.AdaptiveAvgPool2d(1),
        Two(),
    ]
    plain = MixedOp([*darts_ops(CHANNELS, 1, Style()), *others])
    fused = copy.deepcopy(plain)
    report = accelerate(fused)
    assert [f"operation {o} runs as it is" in str(report) for o in range(13)] == [False] * 8 + [True] * 5
    x, weights = images(torch.float32), torch.linspace(0, 1, 13)
    assert_same_output(fused, plain, x, weights)
    assert calls == ["mixed_op"]


def test_a_dtype_without_a_kernel_runs_the_modules_own_code(mixed_op: nn.Module, calls: list[str]) -> None:
    (entry,) = accelerate(mixed_op).fused
    assert entry.remark == ""
    (entry,) = accelerate(mixed_op.double()).fused
    assert entry.remark == "its own code runs in float64 on cpu, without a kernel"
    mixed_op(images(torch.float64), torch.linspace(0, 1, 8, dtype=torch.float64))
    assert calls == []


def test_autocast_to_a_dtype_without_a_kernel_runs_the_modules_own_code(
    mixed_op: nn.Module, calls: list[str]
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert run(mixed_op).isfinite().all()
    assert calls == []


def test_weights_per_image_run_the_modules_own_code(mixed_op: nn.Module, calls: list[str]) -> None:
    out = mixed_op(images(torch.float32), torch.rand(8, 3, 1, 1, 1))
    assert out.shape == (3, CHANNELS, 6, 6) and calls == []


def test_an_unknown_backend_is_refused(mixed_op: nn.Module) -> None:
    with pytest.raises(UserError, match="unknown backend 'fast'"):
        accelerate(mixed_op, backend="fast")


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(UserError, match="model must be an nn"):
        accelerate([])  # type: ignore[arg-type]


class Choosing(MixedOp):
    def forward(self, x: Tensor, weights: Any, index: int | None = None) -> Tensor:
        if index is not None:
            out: Tensor = self._ops[index](x)
            return out
        return super().forward(x, weights)


def test_further_arguments(calls: list[str]) -> None:
    plain, fused = both(Choosing(darts_ops(CHANNELS, 1, Style())), torch.float32)
    x, weights = images(torch.float32), torch.rand(8)
    for further in ([], [None], [3]):
        assert_same_output(fused, plain, x, weights, *further)
    assert calls == ["mixed_op"] * 2


def test_arguments_by_keyword(mixed_op: nn.Module, calls: list[str]) -> None:
    x, weights = images(torch.float32), torch.linspace(0, 1, 8)
    for out in (mixed_op(x, weights=weights), mixed_op(weights=weights, x=x)):
        assert torch.equal(out, run(mixed_op))
    assert calls == ["mixed_op"] * 4
    with pytest.raises(TypeError, match="unexpected keyword argument 'weight'"):
        mixed_op(x, weight=weights)


class Filtered(MixedOp):
    """Leaves out operations whose weight is none."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        pairs = zip(weights, self._ops, strict=True)
        out: Tensor = sum(weight * op(x) for weight, op in pairs if weight is not None)  # type: ignore[assignment]
        return out


@pytest.mark.parametrize(
    "weight",
    [None, 1j, torch.ones(1, dtype=torch.float64), torch.tensor(1j), torch.tensor(2)],
    ids=["none", "complex", "float64 of one dimension", "complex tensor", "integer tensor"],
)
def test_lists_of_other_weights_run_the_modules_own_code(weight: Any, calls: list[str]) -> None:
    plain, fused = both(Filtered(darts_ops(CHANNELS, 1, Style())), torch.float32)
    x, weights = images(torch.float32), [0.3, *[0.5] * 6, weight]
    expected, out = plain(x, weights), fused(x, weights)
    assert out.dtype == expected.dtype and torch.equal(out, expected)
    assert calls == []


@pytest.mark.parametrize(
    "weight",
    [0.25, 2, np.float64(0.25), torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64), torch.ones(1)],
    ids=str,
)
def test_lists_of_numbers_run_on_the_ops(weight: Any, calls: list[str]) -> None:
    plain, fused = both(Filtered(darts_ops(CHANNELS, 1, Style())), torch.float32)
    assert_same_output(fused, plain, images(torch.float32), [0.3, *[0.5] * 6, weight])
    assert calls == ["mixed_op"]


class Holding(MixedOp):
    """Holds something, and scales its sum by it if it is a tuple of two tensors."""

    held: Any = ()

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        out = super().forward(x, weights)
        return (
            out * self.held[0] * self.held[1] if isinstance(self.held, tuple) and len(self.held) == 2 else out
        )


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("place", ["class", "instance"])
def test_tensors_in_a_tuple_may_be_replaced(place: str, length: int, calls: list[str]) -> None:
    module = Holding(darts_ops(CHANNELS, 1, Style()))
    if place == "instance":
        module.held = ()
    plain, fused = both(module, torch.float32)
    for factor in (1.0, 2.0, 3.0):
        held = (torch.full((2, 1, 1), factor).repeat(4, 1, 1),) * length
        plain.held = fused.held = held  # type: ignore[assignment]
        assert_same_output(fused, plain, *ARGUMENTS)
    assert calls == ["mixed_op"] * (3 if length == 1 else 0)


@pytest.mark.parametrize("name", ["factor", "scaled"])
def test_what_comes_to_stand_in_front_of_an_attribute_of_the_class_is_seen(
    name: str, calls: list[str]
) -> None:
    class Factor(MixedOp):
        factor = 1.0

        def scaled(self, out: Tensor) -> Tensor:
            return out * self.factor

        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            return self.scaled(super().forward(x, weights))

    plain, fused = both(Factor(darts_ops(CHANNELS, 1, Style())), torch.float32)
    assert_same_output(fused, plain, *ARGUMENTS)
    for module in (plain, fused):
        setattr(module, name, 3.0 if name == "factor" else torch.neg)
    assert_same_output(fused, plain, *ARGUMENTS)
    for module in (plain, fused):
        delattr(module, name)
    assert_same_output(fused, plain, *ARGUMENTS)
    assert calls == ["mixed_op"] * 2


def test_a_tensor_made_in_inference_mode_may_be_an_attribute(calls: list[str]) -> None:
    module = Holding(darts_ops(CHANNELS, 1, Style()))
    with torch.inference_mode():
        module.held = torch.ones(3)
    assert accelerate(module).fused
    run(module)
    assert calls == ["mixed_op"]


def test_a_setting_that_is_no_number_is_no_change(calls: list[str]) -> None:
    module = Holding(darts_ops(CHANNELS, 1, Style()))
    module.held = float("nan")
    assert accelerate(module).fused
    state = module.__dict__["_vpdarts_fast"]
    retries = state.retries
    run(module)
    assert calls == ["mixed_op"] and state.retries == retries


def test_a_list_that_holds_itself(calls: list[str]) -> None:
    module = Holding(darts_ops(CHANNELS, 1, Style()))
    module.held = [None]
    module.held.append(module.held)
    assert accelerate(module).fused
    run(module)
    assert calls == ["mixed_op"]


def test_classes_of_other_code_bases_may_have_any_attribute(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Holding, "own_class", "something", raising=False)
    module = Holding(darts_ops(CHANNELS, 1, Style()))
    assert accelerate(module).fused
    run(module)
    assert calls == ["mixed_op"]
