"""Leave-one-out evaluation of any supernet: what is evaluated, batched and in a loop, what is left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from leave_one_out_cases import MODES, assert_same, drop_statistics, every_mode
from op_contract import half_of
from perturbation_cases import (
    GumbelSupernet,
    accelerated,
    assert_all_same,
    batches,
    specified,
    trained,
)
from supernets import MixedOp
from torch import Tensor, nn
from whole_supernets import DartsSupernet, EdgesSupernet

from vpdarts_fast import Supernet, UserError, leave_one_out, native
from vpdarts_fast.evaluation.leave_one_out import BatchNorm
from vpdarts_fast.evaluation.perturbation import Perturbation

pytestmark = pytest.mark.usefixtures("one_thread", "calibrate_on_ten")

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "darts": DartsSupernet,
    "darts of one node": lambda: DartsSupernet(steps=1),
    "edges": EdgesSupernet,
    "affine": lambda: EdgesSupernet(affine=True),
}
OTHERS = ("edges", "affine")
"""But DARTS, of which a cell of two nodes takes longer than all the others: it has fewer settings."""


def one_node() -> nn.Module:
    """Two edges of each type: enough where it does not matter what lies between nodes."""
    return accelerated(trained(FAMILIES["darts of one node"]))


# What is evaluated -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "mode", "perturbation"),
    [
        ("darts", "running", "keep"),
        ("darts", "batch", "remove"),
        ("darts of one node", "running", "remove"),
        ("darts of one node", "batch", "keep"),
        *half_of(0, OTHERS, ("running", "batch"), ("remove", "keep")),
    ],
)
def test_the_loop_is_what_is_specified(family: str, mode: BatchNorm, perturbation: Perturbation) -> None:
    model, some = trained(FAMILIES[family]), batches(7, 4)
    result = leave_one_out(model, some, batch_norm=mode, perturbation=perturbation)
    assert set(result.cells) == ({"normal"} if family in OTHERS else {"normal", "reduction"})
    if mode == "batch":
        drop_statistics(model)
    for name, found in result.cells.items():
        expected = specified(model, some, perturbation, name == "reduction")
        assert float(expected.loss.std()) > 1e-3
        assert_same(found, expected)


@pytest.mark.parametrize(
    ("family", "mode", "perturbation"),
    [
        ("darts", "recalibrated", "remove"),
        ("darts", "batch", "keep"),
        ("darts of one node", "running", "remove"),
        ("darts of one node", "batch", "remove"),
        ("edges", "recalibrated", "remove"),
        ("edges", "batch", "keep"),
        ("affine", "running", "remove"),
        ("affine", "batch", "remove"),
        ("darts of one node", "variant", "keep"),
        ("edges", "variant", "keep"),
        ("affine", "variant", "remove"),
    ],
)
def test_batched_is_the_loop(family: str, mode: BatchNorm, perturbation: Perturbation) -> None:
    model, some = trained(FAMILIES[family]), batches(11, 3)
    options: dict[str, Any] = {"batch_norm": mode, "perturbation": perturbation}
    plain = leave_one_out(model, some, **options)
    batched = leave_one_out(accelerated(model), some, **options)
    assert batched.batched and batched.remark == "", batched.remark
    assert not plain.batched and "is not accelerated" in plain.remark
    assert_all_same(batched, plain)


@pytest.mark.parametrize(
    ("family", "mode"), [("darts of one node", "running"), ("edges", "recalibrated"), ("affine", "variant")]
)
def test_the_loop_of_an_accelerated_model_is_the_plain_ones(family: str, mode: BatchNorm) -> None:
    model, some = trained(FAMILIES[family]), batches(6, 5)
    plain = leave_one_out(model, some, batch_norm=mode)
    loop = leave_one_out(accelerated(model), some, batch_norm=mode, batched=False)
    assert not loop.batched and loop.remark == "batched=False"
    assert_all_same(loop, plain)


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
@pytest.mark.parametrize(
    ("family", "mode"), [("darts", "running"), ("darts", "variant"), *product(OTHERS, MODES)]
)
def test_batched_on_cpu_kernels(family: str, mode: BatchNorm) -> None:
    model, some = trained(FAMILIES[family], torch.float32), batches(6, 5, dtype=torch.float32)
    batched = leave_one_out(accelerated(model, "cpu"), some, batch_norm=mode)
    assert batched.batched, batched.remark
    double = [(images.double(), labels) for images, labels in some]
    assert_all_same(batched, leave_one_out(model.double(), double, batch_norm=mode), rtol=1e-4, turned=1)


@every_mode
def test_equal_to_that_of_our_own_supernet(mode: BatchNorm) -> None:
    ours, theirs = trained(lambda: Supernet2()), EdgesSupernet().double()
    own = [*ours.supernet.state_dict().values()]
    names = [name for name in theirs.state_dict() if name != "alphas"]
    theirs.load_state_dict({**dict(zip(names, own, strict=True)), "alphas": ours.alphas})
    some = batches(6, 5, 3)
    expected = leave_one_out(ours.supernet, some, ours.alphas, batch_norm=mode)
    result = leave_one_out(accelerated(theirs), some, batch_norm=mode)
    assert result.batched, result.remark
    assert_same(result.cells["normal"], expected)


class Supernet2(nn.Module):
    """Ours, called as theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.supernet = Supernet(4, 1, 4, skip_dropout=0.0)
        self.alphas = nn.Parameter(torch.randn(6, 5) / 2)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.supernet(images, self.alphas)
        return out


def test_the_edges_are_named() -> None:
    darts = leave_one_out(trained(DartsSupernet), batches(2))
    assert set(darts.edges) == {"normal", "reduction"}
    assert darts.edges["reduction"] == tuple(f"_ops.{e}" for e in range(5))
    edges = leave_one_out(trained(EdgesSupernet), batches(5))
    expected = ("1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2")
    assert edges.edges["normal"] == tuple(f"edges.{edge}" for edge in expected)


def test_one_type_of_cells_only() -> None:
    model, some = one_node(), batches(7)
    both = leave_one_out(model, some)
    for name in ("normal", "reduction"):
        one = leave_one_out(model, some, cells=name)  # type: ignore[arg-type]
        assert set(one.cells) == set(one.edges) == {name}
        assert_same(one.cells[name], both.cells[name])  # type: ignore[index]


def test_removing_none_is_the_base_exactly() -> None:
    result = leave_one_out(one_node(), batches(7))
    for found in result.cells.values():
        assert torch.equal(found.loss[:, 0], torch.full((2,), found.base_loss, dtype=torch.float64))
        assert (found.loss[:, 1:] != found.base_loss).all()


@pytest.mark.parametrize(
    ("mode", "cells"), [("recalibrated", "reduction"), ("running", "normal"), ("batch", "normal")]
)
def test_any_memory_budget(mode: BatchNorm, cells: Any) -> None:
    model, some = accelerated(trained(DartsSupernet)), batches(3, 2)
    expected = leave_one_out(model, some, cells=cells, batch_norm=mode)
    for memory_budget in (60_000, 100_000):
        found = leave_one_out(model, some, cells=cells, batch_norm=mode, memory_budget=memory_budget)
        assert found.batched
        assert_all_same(found, expected)


def test_the_least_memory_that_a_batch_takes_is_enough() -> None:
    """What is kept of the unmodified model gives way."""
    model, some = accelerated(trained(DartsSupernet)), batches(7)
    with pytest.raises(UserError, match="memory_budget must be at least") as raised:
        leave_one_out(model, some, batch_norm="batch", memory_budget=1)
    least = int(re.search(r"at least ([\d,]+) bytes", str(raised.value))[1].replace(",", ""))  # type: ignore[index]
    found = leave_one_out(model, some, batch_norm="batch", memory_budget=least)
    assert found.batched
    assert_all_same(found, leave_one_out(model, some, batch_norm="batch"))


def test_the_stem_runs_once_for_many_variants() -> None:
    model, calls = one_node(), []
    model.stem.register_forward_hook(lambda *_: calls.append(1))
    leave_one_out(model, batches(7), batch_norm="batch")
    assert len(calls) == 1 + 2 + 2  # the base, and the variants of each edge of each type
    calls.clear()
    leave_one_out(model, batches(7), batch_norm="batch", batched=False)
    assert len(calls) == 1 + 2 * 2 * 4  # `none` is the base


# What is left behind ---------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> list[Any]:
    modules = [
        (m.training, len(m._forward_pre_hooks), len(m._forward_hooks), len(m._forward_pre_hooks_with_kwargs))
        for m in model.modules()
    ]
    tensors = [(id(tensor), tensor.clone()) for tensor in model.state_dict(keep_vars=True).values()]
    settings = [(m.momentum, m.track_running_stats) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return [modules, settings, torch.get_rng_state(), tensors]


class CountingSupernet(GumbelSupernet):
    """Has a buffer that every pass changes; two edges of each type."""

    def __init__(self) -> None:
        super().__init__(steps=1)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.passes += 1
        return super().forward(images)


class Stop(Exception):
    """Raised by tests."""


@every_mode
@pytest.mark.parametrize("fails", [None, "on_batch", "model"])
def test_the_model_is_left_as_it_was(mode: BatchNorm, fails: str | None) -> None:
    model = accelerated(trained(CountingSupernet)).train()
    model.cells[0].eval()
    before = state_of(model)
    done: list[int] = []

    def on_batch(images: int) -> None:
        done.append(images)
        if fails == "on_batch":
            raise Stop

    some = batches(6, 5, 3)
    if fails == "model":
        some[2] = (torch.zeros(3, 4, 8, 8, dtype=torch.float64), some[2][1])
    if fails is None:
        leave_one_out(model, some, batch_norm=mode, on_batch=on_batch)
        assert done == [6, 11, 14]
    else:
        with pytest.raises(Stop if fails == "on_batch" else RuntimeError):
            leave_one_out(model, some, batch_norm=mode, on_batch=on_batch)
    after = state_of(model)
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    for (own, values), (same, now) in zip(before[3], after[3], strict=True):
        assert own == same and torch.equal(values, now)


# Errors ----------------------------------------------------------------------------------------------------


def test_no_mixed_operations() -> None:
    with pytest.raises(UserError, match="no mixed operations are recognised: there is none"):
        leave_one_out(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), batches(3))

    class Mean(MixedOp):
        def forward(self, x: Tensor, weights: Any) -> Tensor:
            return super().forward(x, weights) / 2

    with pytest.raises(UserError, match=r"cells.0._ops.0 \(Mean\) .*is not the weighted sum"):
        leave_one_out(trained(lambda: DartsSupernet(mixed_op=Mean)), batches(3))


def test_mixed_operations_that_are_not_called() -> None:
    class Sampling(MixedOp):
        def __call__(self, x: Tensor, weights: Any) -> Tensor:
            return self.sample(x, weights)

        def sample(self, x: Tensor, weights: Any) -> Tensor:
            out: Tensor = self._ops[1](x)
            return out

    model = trained(lambda: DartsSupernet(mixed_op=Sampling))
    with pytest.raises(UserError, match=r"cells.0._ops.0: .* does not call its forward"):
        leave_one_out(model, batches(3))
    assert type(model.cells[0]._ops[0]) is Sampling


def test_weights_that_are_not_one_for_each_op() -> None:
    class Nothing(DartsSupernet):
        def weights(self, reduction: bool) -> Any:
            return [None] * 5

    with pytest.raises(UserError, match=r"cells.0._ops.0 is called with weights that are not one number"):
        leave_one_out(trained(Nothing), batches(3))


def test_cells_that_differ() -> None:
    model = trained(lambda: DartsSupernet(layers=4))  # the first and the last are normal cells
    del model.cells[3]._ops[4]
    with pytest.raises(UserError, match=r"normal cells differ in edges or operations: cells.0 and cells.3"):
        leave_one_out(model, batches(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": "reduction"}, "has no reduction cells; it has normal cells"),
        ({"cells": "reduce"}, "cells must be None, normal or reduction; got 'reduce'"),
        ({"perturbation": "zero"}, "perturbation must be remove or keep; got 'zero'"),
        ({"batch_norm": "train"}, "batch_norm must be one of"),
        ({"memory_budget": 0}, "memory_budget must be positive"),
    ],
)
def test_unknown_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        leave_one_out(trained(EdgesSupernet), batches(3), **options)


@pytest.mark.parametrize("fast", [True, False])
def test_bad_batches(fast: bool) -> None:
    model = trained(EdgesSupernet)
    model = accelerated(model) if fast else model
    with pytest.raises(UserError, match="no images"):
        leave_one_out(model, [])
    ((images, labels),) = batches(3)
    with pytest.raises(UserError, match=r"labels must be in 0\.\.3; got 0\.\.4"):
        leave_one_out(model, [(images, torch.tensor([0, 1, 4]))])
    with pytest.raises(UserError, match=r"labels must be int64 \[N\] = \[3\]"):
        leave_one_out(model, [(images, labels[:2])])
    with pytest.raises(UserError, match="not finite"):
        leave_one_out(model, [(images * float("nan"), labels)])


def test_running_needs_running_statistics() -> None:
    model = trained(EdgesSupernet)
    drop_statistics(model)
    with pytest.raises(UserError, match="needs running statistics"):
        leave_one_out(model, batches(3), batch_norm="running")
    assert leave_one_out(model, batches(3)).cells["normal"].images == 3
