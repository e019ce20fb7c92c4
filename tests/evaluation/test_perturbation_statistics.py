"""Leave-one-out evaluation of any supernet, batched, each variant with statistics of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from leave_one_out_cases import every_mode
from perturbation_cases import accelerated, assert_all_same, batches, trained
from supernets import (
    AuxiliaryMixedOp,
    Cell,
    DropPathMixedOp,
    MixedOp,
    PartialCell,
    PartialMixedOp,
    Residual,
    SkippingCell,
    SkippingMixedOp,
    Style,
)
from torch import Tensor, nn
from whole_supernets import DartsSupernet, EdgesSupernet

from vpdarts_fast import Perturbed, UserError, leave_one_out, native, ops
from vpdarts_fast.contract.transforms import in_transform
from vpdarts_fast.evaluation.leave_one_out import Batch, BatchNorm

pytestmark = pytest.mark.usefixtures("one_thread", "calibrate_on_ten")


def variant(model: nn.Module, some: list[Batch], **options: Any) -> Perturbed:
    return leave_one_out(model, some, batch_norm="variant", **options)


def assert_batched_is_the_loop(model: nn.Module, some: list[Batch], **options: Any) -> Perturbed:
    batched = variant(accelerated(model), some, **options)
    assert batched.batched, batched.remark
    assert_all_same(batched, variant(model, some, **options))
    return batched


def small(kind: Callable[[list[nn.Module]], nn.Module] = MixedOp, **settings: Any) -> Any:
    return trained(lambda: DartsSupernet(mixed_op=kind, steps=1, **settings))


# Models that are written otherwise -------------------------------------------------------------------------


class OnItsOwn(MixedOp):
    """Its own code runs in no transform."""

    def forward(self, x: Tensor, weights: Any) -> Tensor:
        assert not in_transform()
        return super().forward(x, weights)


class CellOnItsOwn(Cell):
    """Its own code runs in no transform."""

    def forward(self, inputs: Tensor, weights: Tensor) -> Tensor:
        assert not in_transform()
        return super().forward(inputs, weights)


class PartialCellOnItsOwn(PartialCell):
    """Its own code runs in no transform."""

    def forward(self, inputs: Tensor, weights: Tensor) -> Tensor:
        assert not in_transform()
        return super().forward(inputs, weights)


class CellsSupernet(EdgesSupernet):
    """With other cells."""

    def __init__(self, cell: Callable[[int], nn.Module], channels: int = 4) -> None:
        super().__init__(channels)
        for i, own in enumerate(self.cells):
            if isinstance(own, Cell):
                self.cells[i] = cell(next(own.parameters()).shape[0])


@pytest.mark.parametrize(
    "model",
    [
        lambda: small(OnItsOwn),
        lambda: trained(lambda: CellsSupernet(lambda c: CellOnItsOwn(c, Style(affine=True, bias=True)))),
        lambda: trained(lambda: CellsSupernet(lambda c: PartialCellOnItsOwn(c, Style()))),
    ],
    ids=["mixed operations", "cells", "partial cells"],
)
def test_accelerated_modules_run_on_ops(model: Callable[[], nn.Module]) -> None:
    batched = variant(accelerated(model()), batches(11))
    assert batched.batched, batched.remark


class ResidualOnItsOwn(Residual):
    """Its own code runs in no transform."""

    def forward(self, x: Tensor) -> Tensor:
        assert not in_transform()
        return super().forward(x)


class ResidualSupernet(EdgesSupernet):
    def __init__(self) -> None:
        super().__init__()
        for i in (1, 3):
            self.cells[i] = ResidualOnItsOwn(self.cells[i].conv_a[1].in_channels)


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
@every_mode
def test_accelerated_modules_run_on_kernels_that_are_chosen(mode: BatchNorm) -> None:
    model = accelerated(trained(ResidualSupernet, torch.float32), "auto")
    result = leave_one_out(model, batches(11, dtype=torch.float32), batch_norm=mode)
    assert result.batched, result.remark


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        (SkippingMixedOp, 1),
        (DropPathMixedOp, 1),
        (lambda ops: PartialMixedOp(ops, 2), 2),
        (lambda ops: AuxiliaryMixedOp(ops, nn.AvgPool2d(ops[0].stride, ops[0].stride)), 1),
    ],
    ids=["skipping", "drop_path", "partial", "auxiliary"],
)
def test_mixed_operations(kind: Callable[[list[nn.Module]], nn.Module], part: int) -> None:
    assert_batched_is_the_loop(small(kind, part=part), batches(11))


@pytest.mark.parametrize(
    "cell",
    [
        lambda c: SkippingCell(c, Style()),
        lambda c: PartialCell(c, Style()),
        lambda c: Cell(c, Style(affine=True, bias=True, track=False)),
    ],
    ids=["skipping", "partial", "biased"],
)
def test_cells(cell: Callable[[int], nn.Module]) -> None:
    assert_batched_is_the_loop(trained(lambda: CellsSupernet(cell)), batches(6, 5, 2))


class Unknown(nn.Module):
    """An operation with a batch norm within that runs as it is; with random numbers, if asked."""

    def __init__(self, stride: int, noise: bool) -> None:
        super().__init__()
        self.norm, self.stride, self.noise = nn.BatchNorm2d(4), stride, noise

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        noise = torch.randn(x.shape[1:]).to(x) if self.noise else 0
        return torch.tanh(self.norm(x + noise))


class UnknownSupernet(DartsSupernet):
    def __init__(self, noise: bool = False) -> None:
        super().__init__(steps=1)
        for module in self.modules():
            if isinstance(module, MixedOp):
                unknown = Unknown(module._ops[0].stride, noise)
                unknown.norm = nn.BatchNorm2d(module._ops[3].layers[-1].num_features)
                module._ops[0] = unknown


@pytest.mark.parametrize("noise", [False, True])
def test_batch_norms_in_operations_that_are_not_known(noise: bool) -> None:
    assert_batched_is_the_loop(trained(lambda: UnknownSupernet(noise)), batches(6, 5, 2))


class SharedSupernet(DartsSupernet):
    """A batch norm that is called twice, in front of what differs and behind it, and one of features."""

    def __init__(self) -> None:
        super().__init__(steps=1)
        self.twice = self.stem[1]
        self.behind = nn.BatchNorm2d(self.classifier.in_features)
        self.last = nn.BatchNorm1d(self.classifier.in_features)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        s0 = s1 = self.stem(images)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.weights(i in self.reductions))
            if i == 0:
                s0 = self.twice(s0 + s1.mean())
        features = F.adaptive_avg_pool2d(self.behind(s1), 1).flatten(1)
        return features, self.classifier(self.last(features))


class LendingSupernet(DartsSupernet):
    """A batch norm of an operation is called for another one of the same cell as well, behind it."""

    def __init__(self) -> None:
        super().__init__()
        ops = [self.cells[0]._ops[e]._ops for e in (0, 1)]
        norms = [next(m for m in some.modules() if isinstance(m, nn.BatchNorm2d)) for some in ops]
        for module in ops[0].modules():
            for name, child in module.named_children():
                if child is norms[0]:
                    setattr(module, name, norms[1])


class Doubled(nn.BatchNorm2d):
    """Has code of its own around what PyTorch does."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x) + self.running_mean.mean() * 0


class WritingSupernet(DartsSupernet):
    """With a batch norm that updates its buffers itself."""

    def __init__(self, norm: Callable[[int], nn.BatchNorm2d]) -> None:
        super().__init__(steps=1)
        self.norm = norm(self.classifier.in_features)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        s0 = s1 = self.stem(images)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.weights(i in self.reductions))
        features = F.adaptive_avg_pool2d(self.norm(s1), 1).flatten(1)
        return features, self.classifier(features)


class Writing(nn.BatchNorm2d):
    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor) -> None:
        self.running_mean += (mean - self.running_mean) * self.momentum
        self.running_var += (variance - self.running_var) * self.momentum

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            variance, mean = torch.var_mean(x, (0, 2, 3))
            self.update(mean, variance)
        else:
            mean, variance = self.running_mean, self.running_var
        return (x - mean[:, None, None]) / (variance[:, None, None] + self.eps).sqrt()


class Replacing(Writing):
    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor) -> None:
        self.running_mean = torch.lerp(self.running_mean, mean, self.momentum)
        self.running_var = torch.lerp(self.running_var, variance, self.momentum)


class Frozen(nn.BatchNorm2d):
    """Normalises with what it keeps, always."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


@pytest.mark.parametrize("norm", [Doubled, Frozen])
def test_batch_norms_with_code_of_their_own(norm: type[nn.BatchNorm2d]) -> None:
    assert_batched_is_the_loop(trained(lambda: WritingSupernet(norm)), batches(6, 5, 2))


@pytest.mark.parametrize("norm", [Writing, Replacing])
def test_a_batch_norm_that_updates_its_buffers_itself_runs_in_a_loop(norm: type[nn.BatchNorm2d]) -> None:
    model, some = trained(lambda: WritingSupernet(norm)), batches(6, 5, 2)
    result = variant(accelerated(model), some)
    assert not result.batched
    assert result.remark.startswith("torch.vmap: RuntimeError: ")
    assert_all_same(result, variant(model, some))


def test_batch_norms_outside_of_cells() -> None:
    assert_batched_is_the_loop(trained(SharedSupernet), batches(6, 5, 2))


# In a loop ------------------------------------------------------------------------------------------------


class DecidingSupernet(DartsSupernet):
    """What it does depends on a value that differs between variants, in one of its passes or in all."""

    def __init__(self, evaluated_only: bool) -> None:
        super().__init__(steps=1)
        self.evaluated_only = evaluated_only

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = super().forward(images)
        if self.evaluated_only and self.stem[1].training:
            return features, logits
        return features, logits if logits[0, 0].item() > 0 else 2 * logits


@pytest.mark.parametrize("evaluated_only", [False, True])
def test_a_model_that_cannot_be_batched_runs_in_a_loop(evaluated_only: bool) -> None:
    model, some = trained(lambda: DecidingSupernet(evaluated_only)), batches(6, 5, 2)
    result = variant(accelerated(model), some)
    assert not result.batched
    assert result.remark.startswith("torch.vmap: RuntimeError: vmap: ")
    assert_all_same(result, variant(model, some))


# What is shared, and how much memory it takes --------------------------------------------------------------


def test_what_comes_before_an_edge_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, Any]] = []
    own = ops.mixed_op

    def mixed_op(x: Tensor, alpha: Tensor, branches: Any, *args: Any, **options: Any) -> Any:
        if len(branches) > 1:  # and not what stands in front of a cell
            statistics = args[1]
            calls.append((len(x), len(alpha), None if statistics is None else statistics.dim()))
        return own(x, alpha, branches, *args, **options)

    model, stems = accelerated(small()), []
    model.stem.register_forward_hook(lambda *_: stems.append(1))
    monkeypatch.setattr(ops, "mixed_op", mixed_op)
    variant(model, batches(11), cells="reduction")
    assert len(stems) == 2 * (1 + 2)  # estimated and evaluated: the base, and the variants of two edges
    # Three cells, of which the second and the third reduce, of two edges each.
    # The first edge of the third leaves the first, which all variants share.
    alone, changed, behind = (1, 1), (1, 4), (4, 4)
    passes = [
        [alone] * 6,
        [alone, alone, changed, alone, changed, behind],
        [alone, alone, alone, changed, alone, behind],
    ]
    # What cells of this type share has been computed for the unmodified model; the first is of the other.
    served = [sizes for one in passes[1:] for e, sizes in enumerate(one) if e < 2 or sizes != alone]
    estimated = [(*sizes, None) for sizes in (*passes[0], *served)]
    fixed = [(*sizes, 4 if sizes == behind else 3) for sizes in (*passes[0], *served)]
    assert calls == estimated + fixed


def test_one_batch_of_calibration_images_is_the_loop() -> None:
    """What the unmodified model computes is not computed again, unless batch norms have two places."""
    for make in (small, LendingSupernet, SharedSupernet):
        assert_batched_is_the_loop(trained(make), batches(11))


def test_any_memory_budget() -> None:
    model = accelerated(small())
    some = batches(6, 5, 2)
    expected = variant(model, some)
    with pytest.raises(UserError) as raised:
        variant(model, some, memory_budget=1)
    message = str(raised.value)
    assert "one variant of a batch of 6 images, which batch_norm='variant' cannot cut" in message
    least = int(re.search(r"at least ([\d,]+) bytes", message)[1].replace(",", ""))  # type: ignore[index]
    for memory_budget in (least, 3 * least):  # one variant at a time; three, and the fourth by itself
        found = variant(model, some, memory_budget=memory_budget)
        assert found.batched, found.remark
        assert_all_same(found, expected)


def test_any_memory_budget_of_whole_cells() -> None:
    model, some = accelerated(trained(EdgesSupernet)), batches(11, 2)
    expected = variant(model, some)
    for memory_budget in (7_000_000, 20_000_000):
        found = variant(model, some, memory_budget=memory_budget)
        assert found.batched, found.remark
        assert_all_same(found, expected)
