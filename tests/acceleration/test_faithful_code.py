"""`accelerate` never computes anything else, whatever a module's code looks at or draws."""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from acceleration_cases import CHANNELS, images
from faithful_cases import (
    ByInstance,
    Scaling,
    Straight,
    Switched,
    assert_faithful,
    assert_same_outcome,
    randomised,
)
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

from vpdarts_fast.acceleration import accelerate

pytestmark = pytest.mark.usefixtures("one_thread")


# Code that looks at its operations -------------------------------------------------------------------------


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


class Evaluated(MixedOp):
    """Its gradients stop in evaluation mode."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        return super().forward(x, weights if self.training else weights.detach())


class Detaching(MixedOp):
    """The values are right, the gradients are not."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        terms = [w * op(x) for w, op in zip(weights, self._ops, strict=True)]
        return sum(
            t.detach() if isinstance(op, Wrapped) else t for t, op in zip(terms, self._ops, strict=True)
        )  # type: ignore[return-value]


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


def test_gradients_in_evaluation_mode_are_compared() -> None:
    """Batch norms that keep no running statistics have some there."""
    assert not accelerate(Evaluated(darts_ops(CHANNELS, 1, Style(track=False)))).fused


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_modules_are_compared_wherever_they_are_accelerated(context: Callable[[], Any]) -> None:
    class Here(MixedOp):
        """A class that nothing is known of yet."""

    class Wrong(Straight):
        """The same."""

    with context(), torch.autocast("cpu", torch.bfloat16):
        assert accelerate(Here(darts_ops(CHANNELS, 1, Style()))).fused
        assert not accelerate(Wrong(darts_ops(CHANNELS, 1, Style()))).fused
    module = Here(darts_ops(CHANNELS, 1, Style()))
    module.flag = False  # type: ignore[assignment]
    assert accelerate(module).fused
    with context():
        module.flag = True  # type: ignore[assignment]
        module(images(torch.float32), torch.rand(8))
    module(images(torch.float32), torch.rand(8)).sum().backward()


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


# Random operations -----------------------------------------------------------------------------------------


class Drawing(nn.Module):
    """Noise from every generator."""

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(x.shape[1:], dtype=x.dtype) + torch.rand_like(x[0]) + float(torch.randperm(9)[0])
        return F.dropout(x + noise, 0.3) * random.random() + np.random.rand()


class DetachingDrawing(Detaching):
    """A random operation does not hide what is wrong with another."""


@pytest.mark.parametrize(("kind", "fused"), [(MixedOp, True), (DetachingDrawing, False)])
def test_random_operations_are_compared_with_shared_draws(kind: type[MixedOp], fused: bool) -> None:
    module = kind([*darts_ops(CHANNELS, 1, Style()), Drawing(), nn.Dropout(0.5)])
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    report = accelerate(module)
    assert bool(report.fused) == fused, str(report)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), str(np.random.get_state())) == states[1:]
