"""What the tests of leave-one-out evaluation of any supernet share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from leave_one_out_cases import assert_same, make_batches
from torch import Tensor, nn
from whole_supernets import DartsSupernet

from vpdarts_fast import Perturbed
from vpdarts_fast.acceleration import accelerate
from vpdarts_fast.evaluation.leave_one_out import Batch, LeaveOneOut
from vpdarts_fast.evaluation.perturbation import Perturbation

every_perturbation = pytest.mark.parametrize("perturbation", ["remove", "keep"])


def batches(*sizes: int, dtype: torch.dtype = torch.float64) -> list[Batch]:
    return make_batches(*sizes, image=(8, 8), dtype=dtype)


def trained(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> Any:
    """With running statistics that suit the images, and all parameters away from where they start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) / 4)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.5
        for images, _ in batches(20, 20, 20, dtype=dtype):
            model(images)
    return model


def accelerated(model: nn.Module, backend: str = "pytorch") -> Any:
    fast = copy.deepcopy(model)
    report = accelerate(fast, backend=backend)
    assert report.fused and not report.left, str(report)
    return fast


def assert_all_same(a: Perturbed, b: Perturbed, rtol: float = 1e-9, turned: int = 0) -> None:
    assert a.cells.keys() == b.cells.keys()
    for name in a.cells:
        assert_same(a.cells[name], b.cells[name], rtol, turned)
    assert a.edges == b.edges


def changed(weights: Tensor, e: int, o: int, perturbation: Perturbation) -> Tensor:
    weights = weights.clone()
    if perturbation == "remove":
        weights[e, o] = 0
    else:
        total = weights[e].sum()
        weights[e] = 0
        weights[e, o] = total
    return weights


@torch.no_grad()
def specified(model: Any, some: list[Batch], perturbation: Perturbation, reduction: bool) -> LeaveOneOut:
    """The loop over all ops of all edges, the model's own weights changed in its own code."""
    model = copy.deepcopy(model).eval()
    own = model.weights
    labels = torch.cat([labels for _, labels in some])

    def validate(e: int | None = None, o: int = 0) -> tuple[float, float]:
        def weights(of_reduction: bool) -> Tensor:
            here = own(of_reduction)
            return here if e is None or of_reduction != reduction else changed(here, e, o, perturbation)

        model.weights = weights
        logits = torch.cat([model(images)[1] for images, _ in some])
        right = int((logits.argmax(1) == labels).sum())
        return 100 * right / len(labels), float(F.cross_entropy(logits, labels))

    accuracy, loss = torch.zeros(2, *own(reduction).shape, dtype=torch.float64)
    for e, o in torch.cartesian_prod(*map(torch.arange, accuracy.shape)).tolist():
        accuracy[e, o], loss[e, o] = validate(e, o)
    return LeaveOneOut(accuracy, loss, *validate(), len(labels))


class GumbelSupernet(DartsSupernet):
    def weights(self, reduction: bool) -> Any:
        return F.gumbel_softmax(self.alphas_reduce if reduction else self.alphas_normal)
