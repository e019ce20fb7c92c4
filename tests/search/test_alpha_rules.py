"""Gradients of alpha by each rule, against the formulas in float64, written out here a second time.

The textbook knows no fused op, and takes second derivatives in forward mode where the rules do not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vpdarts_fast.errors import UserError
from vpdarts_fast.search import SearchConfig
from vpdarts_fast.search.methods.alpha_rules import AlphaRule, FirstOrder, Implicit, Joint, Problem, Unrolled
from vpdarts_fast.search.step import alpha_step, joint_step, weights_step
from vpdarts_fast.spaces.nas_bench_201 import EDGES, OPS, Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = len(EDGES), len(OPS)
RATE, MOMENTUM, DECAY = 0.05, 0.9, 3e-4

Weights = Mapping[str, Tensor]


def a_supernet(fused: bool = False) -> Supernet:
    torch.manual_seed(0)
    return Supernet(4, 1, 4, skip_dropout=0.0, fused=fused).double().train()


def an_alpha() -> Tensor:
    return 0.3 * torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def a_batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=generator)
    return images.to(dtype), torch.randint(4, (8,), generator=generator)


def an_optimizer(supernet: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(supernet.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)


class Textbook:
    """The losses as functions of weights and alpha, and what follows from them."""

    def __init__(
        self, supernet: nn.Module, training: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]
    ):
        self.supernet = copy.deepcopy(supernet)
        for module in self.supernet.modules():
            if isinstance(module, nn.BatchNorm2d):  # the batch's own statistics, and no others to be kept
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        self.train = lambda weights, alpha: self.loss(weights, alpha, training)
        self.validate = lambda weights, alpha: (
            self.loss(weights, alpha, validation) + 0.01 * alpha.square().sum()
        )
        self.weights: Weights = {name: p.detach().clone() for name, p in supernet.named_parameters()}

    def loss(self, weights: Weights, alpha: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = functional_call(self.supernet, dict(weights), (images, alpha.softmax(1)))
        return -logits.log_softmax(1)[range(len(labels)), labels].mean()

    def first_order(self, alpha: Tensor, momenta: Weights) -> Tensor:
        return torch.func.grad(self.validate, argnums=1)(self.weights, alpha)

    def joint(self, alpha: Tensor, momenta: Weights) -> Tensor:
        """Of the training loss and the same regulariser."""
        return torch.func.grad(lambda alpha: self.train(self.weights, alpha) + 0.01 * alpha.square().sum())(
            alpha
        )

    def unrolled(self, alpha: Tensor, momenta: Weights) -> Tensor:
        """The derivative at w - rate (momentum + gradient + decay w), by finite differences as in DARTS."""
        slope = torch.func.grad(self.train)(self.weights, alpha)
        ahead = {
            name: w - RATE * (MOMENTUM * momenta[name] + slope[name] + DECAY * w)
            for name, w in self.weights.items()
        }
        v, direct = torch.func.grad(self.validate, argnums=(0, 1))(ahead, alpha)
        e = 0.01 / sum(part.square().sum() for part in v.values()).sqrt()
        plus, minus = (
            torch.func.grad(self.train, argnums=1)(
                {name: w + sign * e * v[name] for name, w in self.weights.items()}, alpha
            )
            for sign in (1, -1)
        )
        return direct - RATE * (plus - minus) / (2 * e)

    def unrolled_exactly(self, alpha: Tensor, momenta: Weights) -> Tensor:
        """By differentiating through the step itself."""

        def after_a_step(alpha: Tensor) -> Tensor:
            slope = torch.func.grad(self.train)(self.weights, alpha)
            return self.validate(
                {
                    name: w - RATE * (MOMENTUM * momenta[name] + slope[name] + DECAY * w)
                    for name, w in self.weights.items()
                },
                alpha,
            )

        return torch.func.grad(after_a_step)(alpha)

    def implicit(self, alpha: Tensor, momenta: Weights, terms: int = 2) -> Tensor:
        """Products with the Hessian, and the mixed derivative, as derivatives along a direction."""
        power, direct = torch.func.grad(self.validate, argnums=(0, 1))(self.weights, alpha)
        total = power
        of_weights = torch.func.grad(self.train)
        for _ in range(terms):
            _, bent = torch.func.jvp(lambda w: of_weights(w, alpha), (self.weights,), (power,))
            power = {name: power[name] - RATE * bent[name] for name in power}
            total = {name: total[name] + power[name] for name in total}
        of_alpha = torch.func.grad(self.train, argnums=1)
        _, mixed = torch.func.jvp(lambda w: of_alpha(w, alpha), (self.weights,), (total,))
        return direct - RATE * mixed


RULES: dict[str, tuple[AlphaRule, Callable[[Textbook, Tensor, Weights], Tensor]]] = {
    "first-order": (FirstOrder(), Textbook.first_order),
    "joint": (Joint(), Textbook.joint),
    "unrolled": (Unrolled(), Textbook.unrolled),
    "implicit": (Implicit(), Textbook.implicit),
}


def gradient_of(
    rule: AlphaRule, supernet: nn.Module, alpha: Tensor, seeds: tuple[int, int], optimizer: torch.optim.SGD
) -> Tensor:
    leaf = alpha.detach().clone().requires_grad_()
    training, validation = (a_batch(seed, alpha.dtype) for seed in seeds)
    (gradient,), _, _ = rule.gradient(
        Problem(
            supernet,
            leaf,
            (),
            lambda alpha: alpha.softmax(1),
            lambda alpha: 0.01 * alpha.square().sum(),
            F.cross_entropy,
            training,
            validation,
            optimizer,
        )
    )
    return gradient


@pytest.mark.parametrize(("rule", "formula"), RULES.values(), ids=RULES)
def test_gradients_over_three_steps(
    rule: AlphaRule, formula: Callable[[Textbook, Tensor, Weights], Tensor]
) -> None:
    """Of a search that alternates them with steps of the weights, whose momentum the rule may look at."""
    supernet, alpha = a_supernet(), an_alpha()
    optimizer = an_optimizer(supernet)
    for step in range(3):
        before = {name: p.detach().clone() for name, p in supernet.named_parameters()}
        momenta = {
            name: optimizer.state.get(p, {}).get("momentum_buffer", torch.zeros_like(p)).clone()
            for name, p in supernet.named_parameters()
        }
        textbook = Textbook(supernet, a_batch(2 * step), a_batch(2 * step + 1))
        expected = formula(textbook, alpha, momenta)
        found = gradient_of(rule, supernet, alpha, (2 * step, 2 * step + 1), optimizer)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)
        for name, parameter in supernet.named_parameters():
            assert torch.equal(parameter, before[name]), "the supernet is as it was"
            assert parameter.grad is None or step, "and so are its gradients"
        alpha = alpha - 0.1 * expected
        weights_step(supernet, alpha.softmax(1), a_batch(2 * step), optimizer, 5.0)


def test_finite_differences_come_to_the_derivative_through_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the distance of the two points falls; at DARTS' own one there are kinks of ReLUs between them."""
    supernet, alpha = a_supernet(), an_alpha()
    optimizer = an_optimizer(supernet)
    textbook = Textbook(supernet, a_batch(0), a_batch(1))
    nothing = {name: torch.zeros_like(p) for name, p in textbook.weights.items()}
    exact = textbook.unrolled_exactly(alpha, nothing)
    monkeypatch.setattr(Unrolled, "DISTANCE", 1e-6)
    found = gradient_of(Unrolled(), supernet, alpha, (0, 1), optimizer)
    first = textbook.first_order(alpha, nothing)
    assert (found - exact).norm() < 1e-4 * (first - exact).norm()


@pytest.mark.parametrize("name", ["unrolled", "implicit", "joint"])
def test_the_fused_supernet_gives_the_same_gradient(name: str) -> None:
    """In float32, held against the formula in float64."""
    rule, formula = RULES[name]
    plain, fused = a_supernet(), a_supernet(fused=True).float()
    alpha = an_alpha()
    textbook = Textbook(plain, a_batch(0), a_batch(1))
    expected = formula(textbook, alpha, {n: torch.zeros_like(p) for n, p in textbook.weights.items()})
    found = gradient_of(rule, fused, alpha.float(), (0, 1), an_optimizer(fused))
    assert (found.double() - expected).norm() < 0.02 * expected.norm()


def test_neumann_terms_change_the_gradient() -> None:
    supernet, alpha = a_supernet(), an_alpha()
    optimizer = an_optimizer(supernet)
    textbook = Textbook(supernet, a_batch(0), a_batch(1))
    found = []
    for terms in (0, 3):
        found.append(gradient_of(Implicit(terms), supernet, alpha, (0, 1), optimizer))
        expected = textbook.implicit(alpha, {}, terms)
        torch.testing.assert_close(found[-1], expected, rtol=1e-7, atol=1e-10)
    assert not torch.allclose(*found, rtol=1e-3)
    with pytest.raises(UserError, match="--neumann-terms must be at least 0; got -1"):
        SearchConfig().replaced(alpha_rule=Implicit(-1))


def test_passes_that_are_compared_share_their_random_numbers() -> None:
    """Finite differences of two draws would be noise divided by a small number."""
    supernet, alpha = a_supernet(), an_alpha()
    optimizer = an_optimizer(supernet)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        leaf = alpha.clone().requires_grad_()
        noisy = lambda alpha: (alpha + 0.5 * torch.randn_like(alpha)).softmax(1)  # noqa: E731
        (gradient,), _, _ = Unrolled().gradient(
            Problem(
                supernet,
                leaf,
                (),
                noisy,
                lambda alpha: None,
                F.cross_entropy,
                a_batch(0),
                a_batch(1),
                optimizer,
            )
        )
        return gradient

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert max(first.abs().max(), other.abs().max()) < 1.0


def test_a_joint_step_is_one_gradient_for_weights_and_alpha() -> None:
    supernet, alpha = a_supernet(), an_alpha().requires_grad_()
    textbook = Textbook(supernet, a_batch(0), a_batch(1))
    slope = torch.func.grad(textbook.train)(textbook.weights, alpha.detach())
    gradient = textbook.joint(alpha.detach(), {})
    loss = textbook.train(textbook.weights, alpha.detach())
    alive = torch.ones(SHAPE, dtype=torch.bool)
    alive[1, 2] = False
    moving = torch.tensor([True, True, True, False, True, True])
    expected = (alpha.detach() - 0.1 * gradient) * alive
    expected[3] = alpha.detach()[3]
    measured, _ = joint_step(
        supernet,
        alpha,
        alive,
        a_batch(0),
        torch.optim.SGD(supernet.parameters(), lr=0.01),
        torch.optim.SGD([alpha], lr=0.1),
        1e9,
        moving=moving,
        weights_of=lambda alpha: alpha.softmax(1),
        penalty=lambda alpha: 0.01 * alpha.square().sum(),
    )
    torch.testing.assert_close(alpha.detach(), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(measured, loss, rtol=1e-9, atol=0)
    for name, parameter in supernet.named_parameters():
        moved = textbook.weights[name] - 0.01 * slope[name]
        torch.testing.assert_close(parameter.detach(), moved, rtol=1e-9, atol=1e-12)


def test_an_alpha_step_takes_the_rule_s_gradient_and_counts_what_it_measured() -> None:
    """The joint rule measures the training batch, in a stage that trains alpha alone."""
    supernet = a_supernet()
    for rule in (Joint(), Unrolled()):
        alpha = an_alpha().requires_grad_()
        training, validation = a_batch(0), a_batch(1)
        gradient = gradient_of(rule, supernet, alpha.detach(), (0, 1), optimizer := an_optimizer(supernet))
        loss, correct = alpha_step(
            supernet,
            alpha,
            torch.ones(SHAPE, dtype=torch.bool),
            validation,
            torch.optim.SGD([alpha], lr=0.1),
            rule=rule,
            weights_of=lambda alpha: alpha.softmax(1),
            penalty=lambda alpha: 0.01 * alpha.square().sum(),
            training=training,
            weights_optimizer=optimizer,
        )
        torch.testing.assert_close(alpha.detach(), an_alpha() - 0.1 * gradient, rtol=1e-9, atol=1e-12)
        assert 0 <= int(correct) <= 8 and loss.isfinite()


def test_alpha_every_thins_out_the_steps_of_alpha() -> None:
    """One for four of the weights, as iDARTS has them; the scaled learning rate counts them."""
    idarts = SearchConfig().replaced(recipe="idarts", alpha_rate_scaling=True)
    assert idarts.method.alpha_every == 4 and idarts.epochs == 120
    from vpdarts_fast.search.optimizers import alpha_rate

    assert alpha_rate(idarts, 391) == pytest.approx(3e-4 * 11_730 / (97 * 120))
