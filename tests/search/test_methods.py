"""The parts of methods against textbook formulas in float64, written out here a second time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import leave_one_out
from vpdarts_fast.parts import Part
from vpdarts_fast.search import SearchConfig
from vpdarts_fast.search.methods.alpha_rules import FirstOrder, Frozen
from vpdarts_fast.search.methods.criteria import Importance
from vpdarts_fast.search.methods.moment import Moment, Ramp
from vpdarts_fast.search.methods.recipes import RECIPES
from vpdarts_fast.search.methods.regularisers import BetaDecay, NoRegulariser, ZeroOne
from vpdarts_fast.search.methods.relaxations import (
    Dirichlet,
    GumbelSoftmax,
    Raw,
    Relaxation,
    Sigmoid,
    Softmax,
)
from vpdarts_fast.search.step import alpha_step, weights_step
from vpdarts_fast.spaces.nas_bench_201 import EDGES, OPS, NasBench201, Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = len(EDGES), len(OPS)


def moment(epoch: int = 3, epochs: int = 11) -> Moment:
    return Moment(torch.tensor(epoch, dtype=torch.float64), epochs)


def an_alpha() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(SHAPE, dtype=torch.float64, generator=generator)


def some_alive() -> Tensor:
    alive = torch.ones(SHAPE, dtype=torch.bool)
    alive[0, 2] = alive[3, :4] = False
    return alive


# Relaxations: row by row, op by op --------------------------------------------------------------------------


def raw(alpha: Tensor, alive: Tensor) -> Tensor:
    return alpha


def softmax(alpha: Tensor, alive: Tensor) -> Tensor:
    powers = alpha.exp() * alive
    return powers / powers.sum(1, keepdim=True)


def gumbel(alpha: Tensor, alive: Tensor) -> Tensor:
    """At a temperature that went 3 of 10 parts of the way from 10 to 1."""
    noise = -torch.empty_like(alpha).exponential_().log()
    powers = ((alpha.softmax(1).log() + noise) / 7.3).exp() * alive
    return powers / powers.sum(1, keepdim=True)


def dirichlet(alpha: Tensor, alive: Tensor) -> Tensor:
    drawn = torch.distributions.Dirichlet(torch.where(alpha > 0, alpha + 1, alpha.exp())).rsample() * alive
    return drawn / drawn.sum(1, keepdim=True)


def sigmoid(alpha: Tensor, alive: Tensor) -> Tensor:
    return alive / (1 + (-alpha).exp())


TEXTBOOK: dict[str, tuple[Relaxation, Callable[[Tensor, Tensor], Tensor]]] = {
    "raw": (Raw(), raw),
    "softmax": (Softmax(), softmax),
    "sigmoid": (Sigmoid(), sigmoid),
    "gumbel": (GumbelSoftmax(), gumbel),
    "dirichlet": (Dirichlet(), dirichlet),
}


@pytest.mark.parametrize(("relaxation", "formula"), TEXTBOOK.values(), ids=TEXTBOOK)
def test_relaxations_and_their_gradients(
    relaxation: Relaxation, formula: Callable[[Tensor, Tensor], Tensor]
) -> None:
    alpha, alive = an_alpha() * some_alive(), some_alive()
    found, expected = [], []
    for compute, results in (
        (lambda alpha: relaxation.weights(alpha, alive, moment()), found),
        (lambda alpha: formula(alpha, alive), expected),
    ):
        leaf = alpha.clone().requires_grad_()
        torch.manual_seed(7)
        weights = compute(leaf)
        (gradient,) = torch.autograd.grad(
            (weights * torch.arange(30.0, dtype=torch.float64).view(6, 5)).sum(), leaf
        )
        results += [weights.detach(), gradient]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert (found[0][~alive] == 0).all()
    if not isinstance(relaxation, (Raw, Sigmoid)):
        torch.testing.assert_close(found[0].sum(1), torch.ones(6, dtype=torch.float64))


def test_hard_gumbel_takes_one_op_and_has_the_gradient_of_the_soft_one() -> None:
    alpha, alive = an_alpha(), some_alive()
    results = []
    for hard in (True, False):
        leaf = alpha.clone().requires_grad_()
        torch.manual_seed(7)
        weights = GumbelSoftmax(hard=hard).weights(leaf, alive, moment())
        (gradient,) = torch.autograd.grad((weights * alpha).sum(), leaf)
        results.append((weights.detach(), gradient))
    (one_hot, gradient), (soft, soft_gradient) = results
    torch.testing.assert_close(one_hot.sort(1).values, F.one_hot(torch.full((6,), 4), 5).double())
    assert torch.equal(one_hot.argmax(1), soft.argmax(1))
    torch.testing.assert_close(gradient, soft_gradient)


def test_random_weights_follow_their_distributions() -> None:
    """Means over many draws: of Dirichlet by concentration, of the hard Gumbel softmax by softmax."""
    alpha, alive = an_alpha()[:1].repeat(20_000, 1), torch.ones(20_000, 5, dtype=torch.bool)
    torch.manual_seed(0)
    concentration = F.elu(alpha[0]) + 1
    drawn = Dirichlet().weights(alpha, alive, moment())
    torch.testing.assert_close(drawn.mean(0), concentration / concentration.sum(), rtol=0, atol=0.01)
    torch.testing.assert_close(
        Dirichlet().strength(alpha[:1], alive[:1])[0], concentration / concentration.sum()
    )
    taken = GumbelSoftmax(hard=True).weights(alpha, alive, moment())
    torch.testing.assert_close(taken.mean(0), alpha[0].softmax(0), rtol=0, atol=0.015)


def test_a_dirichlet_draw_survives_alphas_of_any_size() -> None:
    alpha = torch.tensor([[-1e4, -50.0, 0.0, 50.0, 1e4]] * 6, requires_grad=True)
    weights = Dirichlet().weights(alpha, torch.ones(SHAPE, dtype=torch.bool), moment())
    (gradient,) = torch.autograd.grad(weights[:, 0].sum(), alpha)
    assert weights.isfinite().all() and gradient.isfinite().all()


def test_ramps() -> None:
    line, curve = Ramp(10, 0), Ramp(0, 4, "cosine")
    assert [float(line.at(moment(epoch, 5))) for epoch in range(5)] == [10, 7.5, 5, 2.5, 0]
    assert [float(curve.at(moment(epoch, 3))) for epoch in range(3)] == pytest.approx([0, 2, 4], abs=1e-6)
    assert float(curve.at(moment(1, 5))) == pytest.approx(2 - 2 * math.cos(math.pi / 4), rel=1e-6)
    assert float(line.at(moment(0, 1))) == 10, "a search of one epoch begins and ends there"


def test_beta_decay() -> None:
    """Its gradient is the factor times softmax, over the number of edges."""
    alpha = an_alpha().requires_grad_()
    term = BetaDecay(beta=0.0, beta_end=50.0).term(alpha, torch.ones(SHAPE, dtype=torch.bool), moment())
    assert term is not None
    (gradient,) = torch.autograd.grad(term, alpha)
    torch.testing.assert_close(gradient, 15 * alpha.detach().softmax(1) / 6)
    torch.testing.assert_close(term.detach(), 15 * alpha.detach().exp().sum(1).log().mean())
    assert NoRegulariser().term(alpha, some_alive(), moment()) is None


def test_the_zero_one_loss_pushes_sigmoids_away_from_a_half() -> None:
    """Ten times the mean of (sigmoid - 1/2)^2 over the live ops is taken off the loss (FairDARTS)."""
    alpha, alive = an_alpha().requires_grad_(), some_alive()
    term = ZeroOne().term(alpha, alive, moment())
    assert term is not None
    live = sigmoid(alpha.detach(), torch.ones_like(alive))[alive]
    torch.testing.assert_close(term.detach(), -10 * (live - 0.5).square().mean())
    (gradient,) = torch.autograd.grad(term, alpha)
    expected = torch.zeros_like(gradient)
    expected[alive] = -20 * (live - 0.5) * live * (1 - live) / int(alive.sum())
    torch.testing.assert_close(gradient, expected)
    assert ((gradient * alpha)[alive] <= 0).all(), "a step against it makes alphas larger in magnitude"


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"temperature_end": -1.0}, {"temperature": math.nan}]
)
def test_temperatures_are_above_zero(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="--temperature and --temperature-end must be above 0"):
        GumbelSoftmax(**settings)  # type: ignore[arg-type]


# Steps and evaluation through a relaxation ------------------------------------------------------------------


@pytest.fixture
def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(2, 1, 4, skip_dropout=0.0).double().train()


def a_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=generator)
    return images, torch.randint(4, (6,), generator=generator)


@pytest.mark.parametrize(("relaxation", "formula"), TEXTBOOK.values(), ids=TEXTBOOK)
def test_an_alpha_step_descends_the_loss_of_the_relaxed_supernet(
    relaxation: Relaxation, formula: Callable[[Tensor, Tensor], Tensor], supernet: Supernet
) -> None:
    alpha, alive = (0.3 * an_alpha()).requires_grad_(), torch.ones(SHAPE, dtype=torch.bool)
    images, labels = a_batch(1)
    torch.manual_seed(3)
    own = alpha.detach().clone().requires_grad_()
    loss = -supernet(images, formula(own, alive)).log_softmax(1)[range(6), labels].mean()
    penalty = 15 * own.exp().sum(1).log().mean()
    (gradient,) = torch.autograd.grad(loss + penalty, own)
    torch.manual_seed(3)
    measured, correct = alpha_step(
        supernet,
        alpha,
        alive,
        (images, labels),
        torch.optim.SGD([alpha], lr=0.1),
        rule=FirstOrder(),
        weights_of=lambda alpha: relaxation.weights(alpha, alive, moment()),
        penalty=lambda alpha: BetaDecay().term(alpha, alive, moment()),
    )
    torch.testing.assert_close(alpha.detach(), own.detach() - 0.1 * gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(measured, loss.detach(), rtol=1e-9, atol=0)
    assert 0 <= int(correct) <= 6


@pytest.mark.parametrize(("relaxation", "formula"), TEXTBOOK.values(), ids=TEXTBOOK)
def test_a_weights_step_descends_it_too(
    relaxation: Relaxation, formula: Callable[[Tensor, Tensor], Tensor], supernet: Supernet
) -> None:
    alive = torch.ones(SHAPE, dtype=torch.bool)
    images, labels = a_batch(2)
    weight = supernet.classifier.weight
    torch.manual_seed(3)
    loss = -supernet(images, formula(an_alpha(), alive)).log_softmax(1)[range(6), labels].mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    expected = weight.detach() - 0.1 * gradient
    torch.manual_seed(3)
    weights = relaxation.weights(an_alpha(), alive, moment())
    weights_step(supernet, weights, (images, labels), torch.optim.SGD(supernet.parameters(), lr=0.1), 1e9)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("relaxation", "formula"), TEXTBOOK.values(), ids=TEXTBOOK)
@pytest.mark.parametrize("batched", [True, False])
def test_leave_one_out_removes_ops_from_the_relaxed_weights(
    batched: bool, relaxation: Relaxation, formula: Callable[[Tensor, Tensor], Tensor], supernet: Supernet
) -> None:
    """A mask on the weights, of random ones the same draw for all variants; not a zero in alpha."""
    alive = torch.ones(SHAPE, dtype=torch.bool)
    images, labels = a_batch(3)
    torch.manual_seed(3)
    drawn = formula(an_alpha(), alive)
    torch.manual_seed(3)
    weights = relaxation.weights(an_alpha(), alive, moment())
    found = leave_one_out(supernet, [(images, labels)], weights, batch_norm="batch", batched=batched)
    for edge, op in ((0, 1), (2, 3), (5, 4), (4, 0)):
        mask = torch.ones(SHAPE, dtype=torch.float64)
        mask[edge, op] = 0
        with torch.no_grad():
            logits = supernet(images, drawn * mask)
        expected = -logits.log_softmax(1)[range(6), labels].mean()
        torch.testing.assert_close(found.loss[edge, op], expected, rtol=1e-8, atol=0)


# Importance over all edges, recipes, parts by name ----------------------------------------------------------


def test_the_order_of_all_ops_agrees_with_the_ranking_of_each_edge() -> None:
    generator = torch.Generator().manual_seed(1)
    score = torch.randint(4, SHAPE, generator=generator).double()
    tie_break = torch.randint(3, SHAPE, generator=generator).double()
    importance, alive = Importance(score, tie_break), some_alive()
    order = importance.order(alive)
    assert (order[~alive] == -1).all() and len(order[alive].unique()) == int(alive.sum())
    for row, ranked in zip(order, importance.ranking(alive), strict=True):
        assert row.argsort(descending=True, stable=True).tolist()[:1] == ranked[:1].tolist()
    flat = [
        (float(s), float(t), -n)
        for n, (s, t) in enumerate(zip(score.flatten(), tie_break.flatten(), strict=True))
    ]
    places = [n for n in sorted(range(30), key=lambda n: flat[n]) if alive.flatten()[n]]
    assert sorted(places, key=lambda n: int(order.flatten()[n])) == places


def test_every_recipe_is_a_search() -> None:
    for name in RECIPES:
        config = SearchConfig().replaced(recipe=name)
        assert config.method.recipe == name
        assert SearchConfig.from_json(config.to_json(), "config.json") == config
        dropout = 0.2 if name.startswith("vp-darts") else 0.0
        assert config.flat()["skip_dropout"] == dropout, "the paper's own means against skips"
    darts = SearchConfig().replaced(recipe="darts")
    assert darts.method.relaxation == Softmax() and not darts.method.criterion.needs_evaluation
    assert darts.replaced(temperature_end=2.0, relaxation="gumbel").method.relaxation == GumbelSoftmax(
        10.0, 2.0
    )


def test_what_changes_over_the_epochs_of_a_recipe_is_as_in_its_code() -> None:
    """Of NAS-Bench-201: the temperature of SNAS and the factor of beta decay, for each of 100 epochs."""
    snas, beta = (SearchConfig().replaced(recipe=name) for name in ("snas", "beta-darts"))
    assert isinstance(snas.method.relaxation, GumbelSoftmax) and not snas.method.relaxation.hard
    temperature = Ramp(snas.method.relaxation.temperature, snas.method.relaxation.temperature_end)
    assert isinstance(beta.method.regulariser, BetaDecay)
    for config in (snas, beta, SearchConfig().replaced(recipe="drnas")):
        assert config.epochs == 100 and config.method.step_order == "alpha-first"
        assert config.optimisers.alpha_weight_decay == 1e-3 and not config.optimisers.nesterov
    alpha, alive = an_alpha(), torch.ones(SHAPE, dtype=torch.bool)
    for epoch in range(100):
        now = moment(epoch, 100)
        assert float(temperature.at(now)) == pytest.approx(10 + epoch * (1 - 10) / 100)
        term = beta.method.regulariser.term(alpha, alive, now)
        assert float(term) == pytest.approx(50 * epoch / 100 * float(alpha.exp().sum(1).log().mean()))


def test_a_lineage_goes_over_the_recipe_and_flags_over_the_lineage() -> None:
    """Both as public code has them; asked for alone it changes what it names and nothing else."""
    darts = SearchConfig().replaced(recipe="darts")
    autodl = SearchConfig().replaced(recipe="darts", lineage="autodl")
    assert (autodl.method.step_order, autodl.optimisers.nesterov) == ("weights-first", True)
    assert (autodl.optimisers.weight_decay, autodl.images.split) == (5e-4, "random")
    quark = autodl.replaced(lineage="quark0", weight_decay=1e-4)
    assert (quark.method.step_order, quark.optimisers.nesterov) == ("alpha-first", False)
    assert (quark.optimisers.weight_decay, quark.images.split) == (1e-4, "ranges")
    assert quark.method.relaxation == darts.method.relaxation and quark.epochs == darts.epochs
    with pytest.raises(UserError, match="--lineage nobody is not known; there are recipe, quark0, autodl"):
        SearchConfig().replaced(lineage="nobody")


def test_soft_pruning_needs_alphas_that_are_weights() -> None:
    with pytest.raises(
        UserError, match=r"--pruning soft makes alphas smaller.*--relaxation softmax use --pruning hard"
    ):
        SearchConfig().replaced(relaxation="softmax")
    SearchConfig().replaced(relaxation="softmax", pruning="hard")


def test_unknown_settings_and_parts_are_named() -> None:
    with pytest.raises(UserError, match="no setting is called --temperature"):
        SearchConfig().replaced(temperature=1.0)
    with pytest.raises(
        UserError, match="--relaxation gauss is not known; there are raw, softmax, sigmoid, gumbel"
    ):
        SearchConfig().replaced(relaxation="gauss")
    with pytest.raises(UserError, match="--method gauss is not known"):
        SearchConfig().replaced(recipe="gauss")
    assert Frozen().moves is False


def test_two_parts_of_one_name_are_an_error() -> None:
    class Kind(Part, kind="kind-of-this-test"):
        pass

    class First(Kind):
        name = "first"

    assert Kind.named("first") is First
    with pytest.raises(UserError, match="two parts are called --kind-of-this-test first"):

        class Second(Kind):
            name = "first"


def test_alpha_starts_at_what_a_softmax_of_equal_alphas_gives() -> None:
    from vpdarts_fast.search.state import first_alpha

    config = SearchConfig()
    assert torch.equal(first_alpha(config), torch.full(SHAPE, 0.2, dtype=torch.float64))
    assert torch.equal(
        first_alpha(config.replaced(space=NasBench201(), alpha_start=0.0)), torch.zeros(SHAPE).double()
    )
