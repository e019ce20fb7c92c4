"""Leave-one-out evaluation of the DARTS supernet of `examples/`, C=16, 3 layers, 32x32: the loop and ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from contenders import CHANNELS, Contender, new_batch, relative_error
from example_step import evaluate_one, example
from torch import nn

from vpdarts_fast import Perturbed, accelerate, leave_one_out
from vpdarts_fast.evaluation.leave_one_out import Batch, BatchNorm

pytestmark = pytest.mark.full

LAYERS, IMAGES, CHECKED = 3, 16, 2
VARIANTS = 1 + 14 * 7
"""The unmodified supernet, and every operation but `none` removed from every edge of the reduction cells."""


def supernet() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = example("darts").Network(CHANNELS, LAYERS)
    return network


def evaluate(network: nn.Module, batch: Batch, mode: BatchNorm, batched: bool = True) -> Perturbed:
    return leave_one_out(network, [batch], cells="reduction", batch_norm=mode, batched=batched)


def verify(fast: nn.Module, batch: Batch, mode: BatchNorm) -> None:
    """The losses of the plain loop in float64."""
    images, labels = batch[0][:CHECKED], batch[1][:CHECKED]
    exact = evaluate(supernet().double(), (images.double(), labels), mode).cells["reduction"]
    found = evaluate(fast, (images, labels), mode)
    assert found.batched, found.remark
    assert relative_error(found.cells["reduction"].loss, exact.loss) < 1e-5


@pytest.mark.parametrize("batch_norm", ["running", "batch", "variant"])
def test_darts_leave_one_out(batch_norm: BatchNorm, compare: Callable[..., None]) -> None:
    batch = new_batch(IMAGES)
    plain, fast = supernet(), supernet()
    accelerate(fast)
    verify(fast, batch, batch_norm)
    loops = {"eager, the loop": plain, "ours, the loop": copy.deepcopy(fast)}
    contenders = {
        name: Contender(
            partial(evaluate_one, network, batch[0], batch_norm),
            VARIANTS,
            note=f"extrapolated from 1 of {VARIANTS} variants",
        )
        for name, network in loops.items()
    }
    contenders["ours"] = Contender(lambda: evaluate(fast, batch, batch_norm))
    compare(contenders, rounds=3)
