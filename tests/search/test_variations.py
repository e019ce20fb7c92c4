"""Variations of supernets against textbook formulas in float64, written out here a second time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vpdarts_fast.acceleration import accelerate, run
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import leave_one_out
from vpdarts_fast.evaluation.of_table import rows_of_modules
from vpdarts_fast.search import SearchConfig
from vpdarts_fast.search.methods.criteria import AlphaCriterion
from vpdarts_fast.search.methods.moment import Moment
from vpdarts_fast.search.methods.relaxations import GumbelSoftmax
from vpdarts_fast.search.methods.variations import AuxiliarySkip, ChosenOp, PartialChannels, Variation
from vpdarts_fast.search.step import alpha_step
from vpdarts_fast.spaces.darts import Darts, DartsS1, DartsS3
from vpdarts_fast.spaces.edges import EdgeSite, WithFurtherWeights
from vpdarts_fast.spaces.nas_bench_201 import NasBench201
from vpdarts_fast.spaces.space import Space

pytestmark = pytest.mark.usefixtures("one_thread")

NORMALISED = PartialChannels(channel_parts=2, edge_normalisation=True)
VARIATIONS = {"partial": PartialChannels(channel_parts=2), "normalised": NORMALISED, "skip": AuxiliarySkip()}
SPACES: dict[str, Space[Any]] = {
    "nas-bench-201": NasBench201(channels=4, cells_per_stage=1, skip_dropout=0.0),
    "darts-s1": DartsS1(channels=4, layers=3),
    "darts-s3": DartsS3(channels=4, layers=3),
}


def moment(epoch: int = 3, epochs: int = 10) -> Moment:
    return Moment(torch.tensor(epoch, dtype=torch.float64), epochs)


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def a_batch(count: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    return double(count, 3, 8, 8, seed=seed), torch.arange(count) % 4


def tables_of(variation: Variation, space: Space[Any]) -> dict[str, Tensor]:
    """As far from each other as trained ones."""
    first = variation.new_tables(space, torch.Generator().manual_seed(0))
    return {name: 500 * table for name, table in first.items()}


def a_supernet(variation: Variation, space: Space[Any]) -> nn.Module:
    torch.manual_seed(0)
    return variation.supernet(space, 4, fused=False, backend="auto").double().train()


# What an edge computes --------------------------------------------------------------------------------------


def incoming(space: Space[Any]) -> list[list[int]]:
    """The rows of the edges into each node."""
    nodes: dict[tuple[str, str], list[int]] = {}
    names = [(table.name, edge) for table in space.tables for edge in table.edges]
    for row, (table, edge) in enumerate(names):
        nodes.setdefault((table, edge.rpartition(">")[2]), []).append(row)
    return list(nodes.values())


def shares(numbers: Tensor, space: Space[Any]) -> Tensor:
    """The softmax of the numbers [E] over the edges into each node, one by one."""
    found = torch.zeros_like(numbers)
    for rows in incoming(space):
        total = sum(numbers[row].exp() for row in rows)
        for row in rows:
            found[row] = numbers[row].exp() / total
    return found


def textbook_edge(edge: nn.Module, x: Tensor, row: Tensor, beta: Tensor | float, parts: int) -> Tensor:
    """`beta` is what the variation has: the share of the edge, or the weight of the auxiliary skip."""
    candidates = list(edge.mixed_op.children())  # type: ignore[operator, union-attr]
    if len(candidates) == 1:  # a list of them
        candidates = list(candidates[0].children())
    channels = x.shape[1]
    through = x[:, : channels // parts]
    terms = [w * op(through) for w, op in zip(row, candidates, strict=False)]
    mixed = torch.stack(terms).sum(0)
    if parts == 1:
        return mixed + beta * edge.skip(x)  # type: ignore[operator]
    rest = x[:, channels // parts :]
    if mixed.shape[2:] != rest.shape[2:]:
        n, c, h, w = rest.shape
        rest = rest.reshape(n, c, h // 2, 2, w // 2, 2).amax((3, 5))
    joined = torch.cat([mixed, rest], 1)
    order = [
        group * (channels // parts) + place for place in range(channels // parts) for group in range(parts)
    ]
    return beta * joined[:, order]


def sites(space: Space[Any]) -> list[EdgeSite]:
    found: list[EdgeSite] = []

    def remember(site: EdgeSite) -> nn.Module:
        found.append(site)
        return nn.Identity()

    space.varied_supernet(4, remember, 0)
    return found


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", VARIATIONS)
def test_an_edge_is_that_of_the_textbook(name: str, stride: int, space: Space[Any]) -> None:
    variation = VARIATIONS[name]
    (site, *_), parts = [site for site in sites(space) if site.stride == stride] or [None], 2
    if site is None:
        return  # NAS-Bench-201 has none of stride 2
    torch.manual_seed(0)
    edge = variation.edge(site).double().train()
    x, row = double(5, site.channels, 6, 6), double(site.ops, seed=3)
    if name == "partial":
        found, expected = edge(x, row), textbook_edge(edge, x, row, 1.0, parts)
    elif name == "normalised":
        found = edge(x, torch.cat([0.3 * row, torch.tensor([0.3], dtype=torch.float64)]))
        expected = textbook_edge(edge, x, row, 0.3, parts)
    else:
        found = edge(x, torch.cat([row, torch.tensor([0.7], dtype=torch.float64)]))
        expected = textbook_edge(edge, x, row, 0.7, 1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_one_part_is_all_channels() -> None:
    """Edge normalisation alone; the mixed operation scaled by the share."""
    site = sites(SPACES["nas-bench-201"])[0]
    edge = PartialChannels(1, edge_normalisation=True).edge(site).double()
    x, row = double(2, 4, 6, 6), double(6, seed=1)
    torch.testing.assert_close(edge(x, row), edge.mixed_op(x, row[:5]))  # type: ignore[operator]


def test_odd_images_are_halved_upwards() -> None:
    site = next(site for site in sites(SPACES["darts-s3"]) if site.stride == 2)
    edge = PartialChannels(2).edge(site).double()
    assert edge(double(2, site.channels, 5, 7), double(3)).shape == (2, site.channels, 3, 4)


@pytest.mark.parametrize("space", [*SPACES.values(), Darts()], ids=[*SPACES, "darts"])
def test_the_shares_of_a_nodes_edges(space: Space[Any]) -> None:
    tables = {"edges": double(space.shape[0])}
    found = NORMALISED.shares(tables, space)
    torch.testing.assert_close(found[:, 0], shares(tables["edges"], space), rtol=1e-12, atol=0)
    assert sum(space.edges_of_nodes) == space.shape[0]
    weights = double(*space.shape, seed=2)
    table = NORMALISED.weights(weights, tables, space, moment())
    torch.testing.assert_close(table[:, :-1], weights * found)
    torch.testing.assert_close(table[:, -1:], found)


@pytest.mark.parametrize("epochs", [1, 8, 50])
def test_the_auxiliary_skip_falls_to_nothing(epochs: int) -> None:
    """beta(e) = 1 - e/E, or half of 1 + cos(pi e/E); e = E in the last evaluation."""
    space, weights = SPACES["nas-bench-201"], double(6, 5)
    for epoch in range(epochs + 1):
        for decay, beta in (
            ("linear", (epochs - epoch) / epochs),
            ("cosine", (1 + math.cos(math.pi * epoch / epochs)) / 2),
        ):
            table = AuxiliarySkip(decay).weights(weights, {}, space, moment(epoch, epochs))  # type: ignore[arg-type]
            assert torch.equal(table[:, :5], weights)
            torch.testing.assert_close(
                table[:, 5], torch.full((6,), beta, dtype=torch.float64), rtol=0, atol=1e-9
            )


# Steps and evaluation ---------------------------------------------------------------------------------------


def textbook_supernet(supernet: Any, images: Tensor, weights: Tensor, betas: Tensor, parts: int) -> Tensor:
    """That of NAS-Bench-201 with one cell a stage."""
    x = supernet.stem(images)
    for cell in supernet.cells:
        if not hasattr(cell, "edges"):
            x = cell(x)
            continue
        nodes, row = [x], 0
        for target in range(1, 4):
            total: Any = 0
            for source in range(target):
                total = total + textbook_edge(cell.edges[row], nodes[source], weights[row], betas[row], parts)
                row += 1
            nodes.append(total)
        x = nodes[-1]
    return supernet.classifier(supernet.lastact(x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", VARIATIONS)
def test_an_alpha_step_descends_the_textbooks_loss(name: str) -> None:
    """Of alpha, and of the numbers of the edges in the same step."""
    variation, space = VARIATIONS[name], SPACES["nas-bench-201"]
    supernet, (images, labels) = a_supernet(variation, space), a_batch()
    alpha = double(6, 5, seed=4).requires_grad_()
    tables = {key: table.requires_grad_() for key, table in tables_of(variation, space).items()}
    leaves = [alpha, *tables.values()]
    own = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    betas = {
        "partial": lambda: torch.ones(6).double(),
        "normalised": lambda: shares(own[1], space),
        "skip": lambda: torch.full((6,), 0.7, dtype=torch.float64),
    }[name]()
    weights = own[0].exp() / own[0].exp().sum(1, keepdim=True)
    logits = textbook_supernet(supernet, images, weights, betas, 1 if name == "skip" else 2)
    loss = -logits.log_softmax(1)[range(6), labels].mean()
    gradients = torch.autograd.grad(loss, own)
    measured, _ = alpha_step(
        supernet,
        alpha,
        torch.ones(6, 5, dtype=torch.bool),
        (images, labels),
        torch.optim.SGD(leaves, lr=0.1),
        tables=tuple(tables.values()),
        weights_of=lambda alpha: variation.weights(alpha.softmax(1), tables, space, moment()),
    )
    torch.testing.assert_close(measured, loss.detach(), rtol=1e-9, atol=0)
    for leaf, start, gradient in zip(leaves, own, gradients, strict=True):
        assert gradient.abs().max() > 1e-6
        torch.testing.assert_close(leaf.detach(), start.detach() - 0.1 * gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "of"),
    [*((name, "nas-bench-201") for name in VARIATIONS), ("normalised", "darts-s3"), ("skip", "darts-s1")],
)
def test_leave_one_out_leaves_what_is_beside_the_operations(name: str, of: str) -> None:
    """Evaluated together and one by one, each as a forward pass with that one weight 0."""
    variation, space = VARIATIONS[name], SPACES[of]
    supernet = a_supernet(variation, space)
    weights = double(*space.shape, seed=5).softmax(1) * space.present
    table = variation.weights(weights, tables_of(variation, space), space, moment())
    ops = space.shape[1]
    images, labels = a_batch()
    tried = [(0, 0), (space.shape[0] - 1, 1), (2, 1)]
    only = torch.zeros(space.shape, dtype=torch.bool)
    only[:: 1 if of == "nas-bench-201" else 4] = True  # edges of each kind of cell and of both strides
    only[[edge for edge, _ in tried]] = True
    expected = []
    for edge, op in tried:
        changed = table.clone()
        changed[edge, op] = 0
        with torch.no_grad():
            logits = supernet(images, changed)
        expected.append(-logits.log_softmax(1)[range(6), labels].mean())
    whole: nn.Module = supernet
    if variation.further:
        whole = WithFurtherWeights(supernet, table[:, ops:])
    results = []
    for batched in (False, True):
        if batched:
            accelerate(supernet, backend="pytorch")
            assert rows_of_modules(whole, space.shape, images) is not None, "or it is evaluated one by one"
        found = leave_one_out(
            whole, [(images, labels)], table[:, :ops], batch_norm="batch", batched=batched, nones=space.nones,
            only=only,
        )  # type: ignore[call-overload]  # fmt: skip
        for (edge, op), loss in zip(tried, expected, strict=True):
            torch.testing.assert_close(found.loss[edge, op], loss, rtol=1e-8, atol=0)
        results.append(found)
    torch.testing.assert_close(results[1].loss, results[0].loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", VARIATIONS)
def test_every_mixed_operation_is_accelerated(name: str, space: Space[Any]) -> None:
    variation = VARIATIONS[name]
    supernet = a_supernet(variation, space)
    weights = double(*space.shape, seed=5).softmax(1) * space.present
    table = variation.weights(weights, tables_of(variation, space), space, moment())
    plain = supernet(a_batch()[0], table)
    report = accelerate(supernet, backend="pytorch")
    torch.testing.assert_close(supernet(a_batch()[0], table), plain, rtol=1e-9, atol=1e-9)
    edges = [name for name, _ in supernet.named_modules() if name.endswith(".mixed_op")]
    assert edges and set(edges) <= {entry.name for entry in report.fused}


# Selection --------------------------------------------------------------------------------------------------


def pc_darts_cell(strength: Tensor, names: Iterable[tuple[str, ...]]) -> list[tuple[str, int]]:
    """PC-DARTS's rule for one type of cells: of each node the two edges with the strongest operations."""
    rows, found = iter(zip(strength.tolist(), names, strict=True)), []
    for node in range(2, 6):
        edges = []
        for source in range(node):
            row, ops = next(rows)
            best = max((value, op) for value, op in zip(row, ops, strict=False) if op != "none")
            edges.append((*best, source))
        strongest = max(combinations(edges, 2), key=lambda pair: sorted((e[0] for e in pair), reverse=True))
        found += [(op, source) for _, op, source in sorted(strongest, key=lambda edge: edge[2])]
    return found


def test_edge_normalisation_decides_which_edges_stay() -> None:
    space = Darts()
    for seed in range(10):
        alpha, tables = double(28, 8, seed=seed), {"edges": 2 * double(28, seed=100 + seed)}
        strength = NORMALISED.strength(alpha.softmax(1), tables, space)
        order = AlphaCriterion().importance(strength, None).order(space.present)
        found = space.select(order)
        expected = alpha.softmax(1) * shares(tables["edges"], space)[:, None]
        torch.testing.assert_close(strength, expected)
        normal, reduction = space.tables
        assert list(found.normal) == pc_darts_cell(expected[:14], normal.ops)
        assert list(found.reduce) == pc_darts_cell(expected[14:], reduction.ops)
    plain = space.select(AlphaCriterion().importance(alpha.softmax(1), None).order(space.present))
    assert plain != found
    assert AuxiliarySkip().strength(alpha, {}, space) is alpha


def test_an_edge_refuses_channels_that_it_cannot_divide() -> None:
    with pytest.raises(UserError, match="4 channels cannot be divided into 3 equal parts"):
        PartialChannels(3).edge(sites(SPACES["nas-bench-201"])[0])


# One op of an edge ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_the_chosen_op_is_the_one_hot_sum(space: Space[Any]) -> None:
    """With the same parameters as the supernet of all ops; only the drawn ones are computed."""
    variation = ChosenOp()
    chosen = a_supernet(variation, space)
    whole = space.varied_supernet(4, lambda site: site.mixed_op(site.channels), 0).double().train()
    parameters = dict(zip(chosen.state_dict(), whole.state_dict(), strict=True))
    whole.load_state_dict({other: chosen.state_dict()[own] for own, other in parameters.items()})
    ops = space.present.sum(1)
    drawn = torch.tensor([(3 * edge) % int(count) for edge, count in enumerate(ops)])
    weights = torch.nn.functional.one_hot(drawn, space.shape[1]).double()
    images, _ = a_batch()
    called: list[nn.Module] = []
    for module in chosen.modules():
        if type(module).__name__ == "ChosenEdge":
            for op in module.ops:
                op.register_forward_hook(lambda op, *_: called.append(op))
    torch.testing.assert_close(chosen(images, weights), whole(images, weights), rtol=1e-9, atol=1e-9)
    edges = [module for module in chosen.modules() if type(module).__name__ == "ChosenEdge"]
    assert len(called) == len(edges), "one op of an edge"


def test_ops_that_were_not_chosen_learn_as_numbers_that_are_added() -> None:
    """GDAS: the gradient of their weights is the sum of that of the edge's output."""
    torch.manual_seed(0)
    space = NasBench201(channels=4, cells_per_stage=1, skip_dropout=0.0)
    edges: list[nn.Module] = []

    def keeping(site: EdgeSite) -> nn.Module:
        edges.append(ChosenOp().edge(site))
        return edges[-1]

    space.varied_supernet(4, keeping, 0)
    edge, x = edges[0].double().train(), double(3, 4, 5, 5)
    soft = torch.tensor([0.1, 0.2, 0.05, 0.4, 0.25], dtype=torch.float64, requires_grad=True)
    one_hot = torch.eye(5, dtype=torch.float64)[3] - soft.detach() + soft
    out = edge(x, one_hot)
    incoming = double(*out.shape, seed=4)
    (gradient,) = torch.autograd.grad(out, soft, incoming)
    expected = incoming.sum().repeat(5)
    expected[3] = (incoming * out.detach()).sum()
    torch.testing.assert_close(gradient, expected)


def test_one_op_is_chosen_by_weights_that_choose_one() -> None:
    with pytest.raises(UserError, match="--variation chosen-op computes one op of an edge: use --relax"):
        SearchConfig().replaced(recipe="gdas", hard=False)
    gdas = SearchConfig().replaced(recipe="gdas")
    assert gdas.method.relaxation == GumbelSoftmax(10.0, 0.1, True) and not gdas.method.capturable


@pytest.mark.parametrize(
    "variation", [PartialChannels(channel_parts=2), AuxiliarySkip()], ids=["partial", "skip"]
)
def test_edges_of_nas_bench_201_train_as_cells_of_two_nodes(
    variation: Variation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every edge of every cell is one `mixed_cell`; in an evaluation with fixed statistics none is."""
    space = NasBench201(channels=4, cells_per_stage=1, skip_dropout=0.0)
    exact, fast = a_supernet(variation, space), a_supernet(variation, space).float()
    accelerate(fast)
    calls: list[tuple[int, ...]] = []
    real = run.ops.mixed_cell

    def counting(x: Tensor, *arguments: Any, **options: Any) -> Any:
        calls.append(tuple(x.shape))
        return real(x, *arguments, **options)

    monkeypatch.setattr(run.ops, "mixed_cell", counting)
    weights = double(6, 5 + variation.further, seed=3)
    images, labels = a_batch()
    found = []
    for supernet, dtype in ((exact, torch.float64), (fast, torch.float32)):
        leaf = weights.to(dtype, copy=True).requires_grad_()
        loss = torch.nn.functional.cross_entropy(supernet(images.to(dtype), leaf), labels)
        (gradient,) = torch.autograd.grad(loss, leaf)
        found.append((loss.detach().double(), gradient.double()))
    assert len(calls) == 18 and {shape[2] for shape in calls} == {
        c // (2 if variation.further == 0 else 1) for c in (4, 8, 16)
    }
    torch.testing.assert_close(*(loss for loss, _ in found), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*(gradient for _, gradient in found), rtol=2e-2, atol=2e-3)
    calls.clear()
    fast.eval()
    with torch.no_grad():
        fast(images.float(), weights.float())
    assert not calls
