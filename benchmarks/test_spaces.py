"""A search epoch in the DARTS space, as `--space darts` runs it: steps of both phases and leave-one-out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from time import perf_counter

import pytest
import torch
from contenders import CHANNELS, CLASSES, EAGER, OURS, Contender, Form, new_batch, relative_error
from example_step import EXAMPLE_FORMS, evaluate_one
from torch import Tensor, nn

from vpdarts_fast import accelerate, leave_one_out
from vpdarts_fast.evaluation.leave_one_out import BatchNorm, LeaveOneOut
from vpdarts_fast.evaluation.of_table import WithWeights
from vpdarts_fast.runtime.machine import reuse_memory
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.step import alpha_step, weights_step
from vpdarts_fast.spaces.darts import Darts
from vpdarts_fast.spaces.darts.supernet import MixedOp

pytestmark = pytest.mark.full

SPACE = Darts(channels=CHANNELS, layers=3)
BATCH, IMAGES, CHECKED = 64, 16, 2


def new_alpha() -> Tensor:
    return SPACE.present / SPACE.shape[1]


class Step:
    """A step of a phase in a form: raw alphas, the optimisers of the search."""

    def __init__(self, form: Form, phase: str, batch: int = BATCH) -> None:
        torch.manual_seed(0)
        self.form, self.phase = form, phase
        self.supernet = form.module(SPACE.supernet(CLASSES)).train()
        if form.fused:
            report = accelerate(self.supernet)
            assert report.fused and not report.left, report
        if form.compiled:
            self.supernet.requires_grad_(phase == "weights")  # freezing it later would be compiled for
            for part in self.supernet.modules():
                if isinstance(part, MixedOp):
                    part.compile(dynamic=False)
        self.alpha = new_alpha().requires_grad_()
        images, labels = new_batch(batch)
        self.batch = form.images(images), labels
        settings = SearchConfig().optimisers
        self.weights_optimizer = torch.optim.SGD(
            self.supernet.parameters(), lr=settings.learning_rate, momentum=settings.momentum, nesterov=True
        )
        self.alpha_optimizer = torch.optim.Adam([self.alpha], lr=settings.alpha_learning_rate)

    def __call__(self) -> float:
        """Takes a step; returns the mean loss."""
        return self.form.run(self._step)()

    def _step(self) -> float:
        if self.phase == "weights":
            loss, _ = weights_step(self.supernet, self.alpha, self.batch, self.weights_optimizer, 5.0)
        else:
            alive = SPACE.present
            loss, _ = alpha_step(self.supernet, self.alpha, alive, self.batch, self.alpha_optimizer)
        return float(loss)

    def gradient(self) -> Tensor:
        """Of the last step, as one vector."""
        if self.phase == "alpha":
            return self.alpha.grad.flatten().double()
        return torch.cat([parameter.grad.flatten().double() for parameter in self.supernet.parameters()])


def verify_step(phase: str) -> None:
    """Of a few images against eager PyTorch in float64; as far off as eager PyTorch in float32."""
    exact = Step(EAGER, phase, batch=8)
    exact.supernet.double()
    exact.alpha.data, exact.batch = exact.alpha.data.double(), (exact.batch[0].double(), exact.batch[1])
    loss, gradient = exact(), exact.gradient()
    errors = {}
    for form in EXAMPLE_FORMS:
        if not form.compiled:
            step = Step(form, phase, batch=8)
            assert step() == pytest.approx(loss, rel=1e-5), form.name
            errors[form.name] = relative_error(step.gradient(), gradient)
    yardstick = max(error for form, error in errors.items() if form.startswith("eager"))
    assert max(errors.values()) < 3 * max(yardstick, 1e-3), errors


@pytest.mark.parametrize("phase", ["weights", "alpha"])
def test_darts_search_step(phase: str, compare: Callable[..., None]) -> None:
    verify_step(phase)
    steps, notes = {form.name: Step(form, phase) for form in EXAMPLE_FORMS}, {}
    for name, step in steps.items():
        started = perf_counter()
        step()
        if step.form.compiled:
            notes[name] = f"each mixed operation; the first step took {perf_counter() - started:.0f} s"
    compare({n: Contender(step, note=notes.get(n, "")) for n, step in steps.items()}, rounds=5)


def evaluated(supernet: nn.Module, batch: tuple[Tensor, Tensor], mode: BatchNorm) -> LeaveOneOut:
    return leave_one_out(supernet, [batch], new_alpha(), batch_norm=mode, nones=SPACE.nones)


@pytest.mark.parametrize("batch_norm", ["running", "batch", "variant"])
def test_darts_search_evaluation(batch_norm: BatchNorm, compare: Callable[..., None]) -> None:
    """All operations of both cell types."""
    reuse_memory()  # as the search does
    images, labels = new_batch(IMAGES)
    batch = OURS.images(images), labels
    torch.manual_seed(0)
    plain = SPACE.supernet(CLASSES)
    torch.manual_seed(0)
    fast = OURS.module(SPACE.supernet(CLASSES))
    accelerate(fast)
    few = batch[0][:CHECKED], batch[1][:CHECKED]
    torch.manual_seed(0)
    exact = evaluated(SPACE.supernet(CLASSES).double(), (few[0].double(), few[1]), batch_norm)
    assert relative_error(evaluated(fast, few, batch_norm).loss, exact.loss) < 1e-5
    variants = 1 + int((SPACE.present & ~SPACE.nones).sum())
    loops = {
        "eager, the loop": (plain, images),
        "eager, channels last, the loop": (OURS.module(copy.deepcopy(plain)), batch[0]),
    }
    contenders = {
        name: Contender(
            partial(evaluate_one, WithWeights(supernet, new_alpha()), inputs, batch_norm),
            variants,
            note=f"extrapolated from 1 of {variants} variants",
        )
        for name, (supernet, inputs) in loops.items()
    }
    contenders["ours"] = Contender(lambda: evaluated(fast, batch, batch_norm))
    compare(contenders, rounds=3)
