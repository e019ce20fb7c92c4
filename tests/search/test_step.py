"""One step of each phase against the formulas of the paper, written out here a second time."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vpdarts_fast.search.methods.alpha_rules import frozen
from vpdarts_fast.search.step import alpha_step, weights_step
from vpdarts_fast.spaces.nas_bench_201 import EDGES, OPS, Supernet

CHANNELS, CLASSES = 3, 4
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4
ALPHA_LEARNING_RATE, BETAS, ALPHA_WEIGHT_DECAY = 3e-4, (0.5, 0.999), 1e-3
pytestmark = pytest.mark.usefixtures("one_thread")

NO_CLIP = 1e9

Batch = tuple[Tensor, Tensor]
Tensors = dict[str, Tensor]


@pytest.fixture(params=[False, True], ids=["modules", "fused"])
def supernet(request: pytest.FixtureRequest) -> Supernet:
    torch.manual_seed(0)
    return Supernet(CHANNELS, 1, CLASSES, skip_dropout=0.0, fused=request.param).double().train()


@pytest.fixture
def alpha() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(len(EDGES), len(OPS), generator=generator, dtype=torch.float64) * 0.3
    return table.requires_grad_()


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(7, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(CLASSES, (7,), generator=generator)


class Textbook:
    """The supernet as a function of a state dict: no modules of the package, running statistics by hand."""

    def __init__(self, state: Tensors) -> None:
        self.tensors = {name: value.clone() for name, value in state.items()}
        self.weights = {
            name: value.requires_grad_()
            for name, value in self.tensors.items()
            if name.endswith(("weight", "bias"))
        }

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        with torch.no_grad():
            unbiased = x.var((0, 2, 3), unbiased=True)
            for statistic, value in (("running_mean", mean), ("running_var", unbiased)):
                self.tensors[f"{name}.{statistic}"] = 0.9 * self.tensors[f"{name}.{statistic}"] + 0.1 * value
            self.tensors[f"{name}.num_batches_tracked"] = self.tensors[f"{name}.num_batches_tracked"] + 1
        out = (x - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + 1e-5)
        if f"{name}.weight" in self.tensors:
            scale, shift = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
            out = out * scale[:, None, None] + shift[:, None, None]
        return out

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def relu_conv_norm(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        return self.norm(self.conv(x.clamp(min=0), f"{name}.op.1", stride), f"{name}.op.2")

    def average(self, x: Tensor) -> Tensor:
        """3x3, the border not counted."""
        ones = torch.ones_like(x)
        return F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(ones, 3, 1, 1)

    def cell(self, x: Tensor, name: str, alpha: Tensor) -> Tensor:
        """Eq. 3: every node is the sum over its edges of the alpha-weighted sum of all ops."""
        nodes = [x]
        for i in range(1, 4):
            node = torch.zeros_like(x)
            for j in range(i):
                row, edge = alpha[EDGES.index((j, i))], f"{name}.edges.{i}<-{j}"
                node = (
                    node
                    + row[0] * torch.zeros_like(x)
                    + row[1] * nodes[j]
                    + row[2] * self.relu_conv_norm(nodes[j], f"{edge}.2")
                    + row[3] * self.relu_conv_norm(nodes[j], f"{edge}.3")
                    + row[4] * self.average(nodes[j])
                )
            nodes.append(node)
        return nodes[3]

    def reduce(self, x: Tensor, name: str) -> Tensor:
        residual = self.relu_conv_norm(self.relu_conv_norm(x, f"{name}.conv_a", 2), f"{name}.conv_b")
        return self.conv(F.avg_pool2d(x, 2), f"{name}.downsample.1") + residual

    def loss(self, batch: Batch, alpha: Tensor) -> Tensor:
        images, labels = batch
        x = self.norm(self.conv(images, "stem.0"), "stem.1")
        x = self.reduce(self.cell(x, "cells.0", alpha), "cells.1")
        x = self.reduce(self.cell(x, "cells.2", alpha), "cells.3")
        x = self.norm(self.cell(x, "cells.4", alpha), "lastact.0").clamp(min=0).mean((2, 3))
        logits = x @ self.tensors["classifier.weight"].t() + self.tensors["classifier.bias"]
        return -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()

    def buffers(self) -> Tensors:
        return {name: value for name, value in self.tensors.items() if name not in self.weights}


def sgd(supernet: Supernet) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        supernet.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )


def adam(alpha: Tensor) -> torch.optim.Optimizer:
    return torch.optim.Adam([alpha], ALPHA_LEARNING_RATE, betas=BETAS, weight_decay=ALPHA_WEIGHT_DECAY)


def nesterov(weight: Tensor, gradient: Tensor, velocity: Tensor | None) -> tuple[Tensor, Tensor]:
    """The step by hand: new weight and velocity."""
    gradient = gradient + WEIGHT_DECAY * weight
    velocity = gradient if velocity is None else MOMENTUM * velocity + gradient
    return weight - LEARNING_RATE * (gradient + MOMENTUM * velocity), velocity


def assert_same(actual: Tensors, expected: Tensors) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-8, atol=1e-10, msg=f"{name}: ".__add__)


def test_weights_steps_follow_the_formula(supernet: Supernet, alpha: Tensor, batch: Batch) -> None:
    """Two of them, so that the momentum counts."""
    optimizer, before = sgd(supernet), alpha.detach().clone()
    images, labels = batch
    batches = [batch, (images.flip(0) * 0.5, labels.flip(0))]
    velocity: dict[str, Tensor | None] = {}
    for step in batches:
        textbook = Textbook(supernet.state_dict())
        loss = textbook.loss(step, before)
        gradients = torch.autograd.grad(loss, list(textbook.weights.values()))
        expected = textbook.buffers()
        for (name, weight), gradient in zip(textbook.weights.items(), gradients, strict=True):
            expected[name], velocity[name] = nesterov(weight.detach(), gradient, velocity.get(name))
        measured, _ = weights_step(supernet, alpha, step, optimizer, NO_CLIP)
        assert measured.item() == pytest.approx(loss.item(), rel=1e-10)
        assert_same(dict(supernet.state_dict()), {**expected})
    assert torch.equal(alpha.detach(), before) and alpha.grad is None


def test_alpha_steps_follow_the_formula(supernet: Supernet, alpha: Tensor, batch: Batch) -> None:
    """Two of them, so that Adam's moments count."""
    optimizer, alive = adam(alpha), torch.ones_like(alpha, dtype=torch.bool)
    weights = {name: value.detach().clone() for name, value in supernet.named_parameters()}
    first = second = torch.zeros_like(alpha)
    for t in (1, 2):
        textbook, table = Textbook(supernet.state_dict()), alpha.detach().clone().requires_grad_()
        loss = textbook.loss(batch, table)
        (plain,) = torch.autograd.grad(loss, table)
        gradient = plain + ALPHA_WEIGHT_DECAY * table.detach()
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        direction = (first / (1 - BETAS[0] ** t)) / ((second / (1 - BETAS[1] ** t)).sqrt() + 1e-8)
        measured, _ = alpha_step(supernet, alpha, alive, batch, optimizer)
        assert measured.item() == pytest.approx(loss.item(), rel=1e-10)
        assert alpha.grad is not None
        torch.testing.assert_close(alpha.grad, plain, rtol=1e-8, atol=1e-11)
        expected = table.detach() - ALPHA_LEARNING_RATE * direction
        torch.testing.assert_close(alpha.detach(), expected, rtol=1e-8, atol=1e-10)
        assert_same(
            {name: value for name, value in supernet.state_dict().items() if name not in weights},
            textbook.buffers(),
        )
    for name, value in supernet.named_parameters():
        assert torch.equal(value.detach(), weights[name]) and value.grad is None


def test_phases_leave_the_gradients_of_each_other(supernet: Supernet, alpha: Tensor, batch: Batch) -> None:
    alpha_optimizer, alive = adam(alpha), torch.ones_like(alpha, dtype=torch.bool)
    weights_step(supernet, alpha, batch, sgd(supernet), NO_CLIP)
    gradients = {
        name: value.grad.clone() for name, value in supernet.named_parameters() if value.grad is not None
    }
    assert len(gradients) == len(list(supernet.parameters()))
    alpha_step(supernet, alpha, alive, batch, alpha_optimizer)
    for name, value in supernet.named_parameters():
        assert value.grad is not None and torch.equal(value.grad, gradients[name])
    assert alpha.grad is not None
    alpha_gradient, table = alpha.grad.clone(), alpha.detach().clone()
    weights_step(supernet, alpha, batch, sgd(supernet), NO_CLIP)
    assert torch.equal(alpha.grad, alpha_gradient) and torch.equal(alpha.detach(), table)


def test_gradient_is_clipped_to_its_norm(supernet: Supernet, alpha: Tensor, batch: Batch) -> None:
    other = copy.deepcopy(supernet)
    for network, limit in ((supernet, NO_CLIP), (other, 0.25)):
        weights_step(network, alpha, batch, torch.optim.SGD(network.parameters(), 1.0), limit)
    full, clipped = (
        torch.cat([value.grad.flatten() for value in network.parameters() if value.grad is not None])
        for network in (supernet, other)
    )
    assert full.norm() > 0.25
    assert clipped.norm().item() == pytest.approx(0.25, rel=1e-4)
    torch.testing.assert_close(clipped, full * (0.25 / full.norm()), rtol=1e-4, atol=1e-9)


def test_removed_ops_stay_at_zero(supernet: Supernet, alpha: Tensor, batch: Batch) -> None:
    alive = torch.ones_like(alpha, dtype=torch.bool)
    alive[0, 3] = alive[5, 1] = False
    with torch.no_grad():
        alpha *= alive
    before = alpha.detach().clone()
    alpha_step(supernet, alpha, alive, batch, adam(alpha))
    assert alpha[0, 3] == 0 and alpha[5, 1] == 0
    assert (alpha[alive] != before[alive]).all()


def test_steps_count_what_was_right(supernet: Supernet, alpha: Tensor, batch: Batch) -> None:
    """Before the step, with the loss of the same forward pass."""
    images, labels = batch
    with torch.no_grad():
        logits = copy.deepcopy(supernet)(images, alpha)
    right = int((logits.argmax(1) == labels).sum())
    loss, correct = weights_step(supernet, alpha, batch, sgd(supernet), NO_CLIP)
    assert correct == right
    assert math.isclose(float(loss), F.cross_entropy(logits, labels).item(), rel_tol=1e-10)


def test_the_weights_are_frozen_only_in_the_step_of_alpha(
    supernet: Supernet, alpha: Tensor, batch: Batch
) -> None:
    """Those that have been before stay so; an error thaws the others too."""
    supernet.classifier.bias.requires_grad_(False)
    before = [parameter.requires_grad for parameter in supernet.parameters()]
    alpha_step(supernet, alpha, torch.ones_like(alpha), batch, adam(alpha))
    assert [parameter.requires_grad for parameter in supernet.parameters()] == before
    assert all(parameter.grad is None for parameter in supernet.parameters())
    with pytest.raises(ZeroDivisionError), frozen(supernet):
        assert not any(parameter.requires_grad for parameter in supernet.parameters())
        raise ZeroDivisionError
    assert [parameter.requires_grad for parameter in supernet.parameters()] == before
