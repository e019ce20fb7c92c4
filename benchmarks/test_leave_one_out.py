"""The whole 30-way leave-one-out evaluation, C=16, 32x32: the plain loop in every form, and ours.

The running statistics are those of the batch, as `recalibrated` estimates them, so that the constants that
freezing folds in are right for both. In a search they change before every evaluation, which would have to
be compiled anew; compilation is not counted here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import pytest
import torch
from contenders import EAGER, OURS, Contender, Form, new_alpha, new_batch, relative_error
from torch import Tensor, nn

from vpdarts_fast import Supernet, leave_one_out
from vpdarts_fast.evaluation.leave_one_out import Batch, BatchNorm, LeaveOneOut, removals
from vpdarts_fast.evaluation.validation import evaluation_mode

N5 = pytest.param(5, marks=pytest.mark.full)
IMAGES = 256
CHECKED = 16  # images on which all 30 evaluations are verified


def norms(supernet: Supernet) -> list[nn.BatchNorm2d]:
    return [module for module in supernet.modules() if isinstance(module, nn.BatchNorm2d)]


@cache
def with_statistics(form: Form, cells: int, images: int) -> Supernet:
    """A supernet whose running statistics are those of `new_batch(images)`."""
    supernet = form.supernet(cells)
    x, labels = new_batch(images)
    batches, base = [(form.images(x), labels)], partial(supernet, alpha=new_alpha())
    with torch.no_grad(), evaluation_mode(supernet, "recalibrated", batches, [base]):
        estimated = [(norm.running_mean, norm.running_var) for norm in norms(supernet)]
    for norm, (mean, variance) in zip(norms(supernet), estimated, strict=True):
        norm.running_mean, norm.running_var = mean, variance
    return supernet


@cache
def forward(form: Form, cells: int, images: int, batch_statistics: bool) -> nn.Module:
    """The supernet in the state in which the passes of the loop find it: compiled once for two modes."""
    supernet = copy.deepcopy(with_statistics(form, cells, images)).eval()
    if batch_statistics:
        for norm in norms(supernet):  # without buffers it uses the batch's own statistics
            norm.running_mean = norm.running_var = None
    return form.forward(supernet)


def loop(
    form: Form, cells: int, batch: Batch, batch_norm: BatchNorm, passes: int
) -> tuple[Contender, Tensor]:
    """The plain loop, one pass per (edge, op): some of them timed, and their logits [passes, N, classes]."""
    images, labels = form.images(batch[0]), batch[1]
    tables = removals(new_alpha())
    timed = tables[:: len(tables) // passes][:passes]
    supernet = with_statistics(form, cells, len(images))
    network = forward(form, cells, len(images), batch_norm == "batch")

    def calibrate() -> None:
        base = partial(supernet, alpha=new_alpha())
        with torch.no_grad(), evaluation_mode(supernet, "recalibrated", [(images, labels)], [base]):
            pass

    work = form.inference(lambda: torch.stack([network(images, table) for table in timed]))
    once = calibrate if batch_norm == "recalibrated" else None
    note = f"extrapolated from {passes} of {len(tables)} passes"
    return Contender(work, len(tables) / passes, once, note), work()


def evaluation(form: Form, supernet: Supernet, batch: Batch, mode: BatchNorm) -> Callable[[], LeaveOneOut]:
    """The fused evaluation."""
    images, labels = form.images(batch[0]), batch[1]
    return form.inference(lambda: leave_one_out(supernet, [(images, labels)], new_alpha(), batch_norm=mode))


def verify(forms: Iterable[Form], cells: int, batch: Batch, mode: BatchNorm) -> None:
    """Every fused form finds the 30 losses of the plain loop in float64."""
    supernet = with_statistics(EAGER, cells, len(batch[1]))
    images, labels = batch[0][:CHECKED], batch[1][:CHECKED]
    double = copy.deepcopy(supernet).double()
    alpha = new_alpha().double()
    exact = leave_one_out(double, [(images.double(), labels)], alpha, batch_norm=mode, batched=False)
    for form in forms:
        if form.fused:
            found = evaluation(form, supernet, (images, labels), mode)()
            assert relative_error(found.loss, exact.loss) < 1e-5, form.name
            assert (found.accuracy - exact.accuracy).abs().max() <= 100 / CHECKED, form.name  # a tie at most


@pytest.mark.parametrize("cells", [1, N5], ids=lambda n: f"N={n}")
@pytest.mark.parametrize("batch_norm", ["recalibrated", "running", "batch"])
def test_leave_one_out(
    batch_norm: BatchNorm, cells: int, forms: Sequence[Form], compare: Callable[..., None]
) -> None:
    batch = new_batch(IMAGES)
    verify(forms, cells, batch, batch_norm)
    contenders = {}
    expected = None
    for form in forms:
        if form.fused:
            supernet = with_statistics(form, cells, IMAGES)
            contenders[form.name] = Contender(evaluation(form, supernet, batch, batch_norm))
        else:
            contenders[form.name], logits = loop(form, cells, batch, batch_norm, passes=2)
            expected = logits if expected is None else expected
            assert relative_error(logits, expected) < 1e-3, form.name
    compare(contenders, rounds=5 if cells == 1 else 3)


@pytest.mark.full
@pytest.mark.parametrize("cells", [1, 5], ids=lambda n: f"N={n}")
def test_statistics_of_each_variant(cells: int, compare: Callable[..., None]) -> None:
    """Ours on 2,500 images: what statistics of each variant cost."""
    images, labels = new_batch(2500)
    batches = list(zip(OURS.images(images).split(250), labels.split(250), strict=True))
    supernet, alpha = OURS.supernet(cells), new_alpha()

    def evaluate(mode: BatchNorm) -> Callable[[], LeaveOneOut]:
        return OURS.inference(lambda: leave_one_out(supernet, batches, alpha, batch_norm=mode))

    few = batches[0][0][:CHECKED], batches[0][1][:CHECKED]
    exact = leave_one_out(
        copy.deepcopy(supernet).double(),
        [(few[0].double(), few[1])],
        alpha.double(),
        batch_norm="variant",
        batched=False,
    )
    found = leave_one_out(supernet, [few], alpha, batch_norm="variant")
    assert relative_error(found.loss, exact.loss) < 1e-5
    contenders = {"recalibrated": evaluate("recalibrated"), "variant": evaluate("variant")}
    compare(contenders, rounds=3 if cells == 1 else 2)
