"""Schedules and greedy decisions, against SGAS's criterion in float64, written out here a second time."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from places import SUPPORT
from search_calls import outcome
from search_commands import stop_after
from torch import Tensor

from vpdarts_fast.analysis.evaluation import nas_bench_201
from vpdarts_fast.errors import UserError
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.search import PRESETS, RunFolder, SearchConfig
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.methods.commits import (
    DROPPED,
    OPEN,
    choosable,
    decide,
    decided_weights,
    nothing_decided,
    selection_scores,
)
from vpdarts_fast.search.methods.schedules import (
    Commit,
    Greedy,
    Perturb,
    Perturbation,
    Prune,
    WarmUpAndPruning,
)
from vpdarts_fast.search.step import alpha_step
from vpdarts_fast.spaces.darts import Darts, DartsS1, DartsS2, Genotype
from vpdarts_fast.spaces.nas_bench_201 import OPS, NasBench201, Supernet
from vpdarts_fast.spaces.space import Space

pytestmark = pytest.mark.usefixtures("one_thread")


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Stages and events ------------------------------------------------------------------------------------------


def test_greedy_decisions_come_when_those_of_sgas_do() -> None:
    """Of epochs from 0: behind the epochs 9, 14, 19, ..., and 5 epochs follow the last; batches grow by 8."""
    greedy = Greedy()
    for space, decisions in ((NasBench201(), 6), (Darts(), 8)):
        assert greedy.epochs(space) == 9 + 5 * (decisions - 1) + 5 + 1
        behind = [epoch for epoch in range(9, 100) if (epoch - 9) % 5 == 0][:decisions]
        for epoch in range(greedy.epochs(space)):
            count = sum(epoch > end for end in behind)
            assert greedy.event(epoch, space) == (Commit() if epoch - 1 in behind else None)
            assert greedy.batch_size(epoch, 64, space) == 64 + 8 * count
            stage = greedy.stage(epoch, space)
            assert (stage.weights, stage.alpha) == (True, count < decisions)
    later = Greedy(warmup_epochs=3, commit_after=2, commit_every=1, batch_growth=0)
    assert [later.stage(epoch, NasBench201()).name for epoch in range(12)] == [
        *["warm-up"] * 3, *["deciding"] * 7, "decided", "decided",
    ]  # fmt: skip
    assert [later.event(epoch, NasBench201()) for epoch in range(11)] == [None] * 5 + [Commit()] * 6


def test_warm_up_and_pruning() -> None:
    schedule, space = WarmUpAndPruning(2, 3), NasBench201()
    assert [schedule.stage(epoch, space).alpha for epoch in range(5)] == [False, False, True, True, True]
    events = [schedule.event(epoch, space) for epoch in range(5)]
    assert events == [None, None, Prune(0, 3), Prune(1, 3), Prune(2, 3)]
    assert {schedule.batch_size(epoch, 64, space) for epoch in range(5)} == {64}
    assert PRESETS["quick"].stages == WarmUpAndPruning(10, 15).stages(space)


# Decisions --------------------------------------------------------------------------------------------------


def textbook_scores(alpha: Tensor, names: tuple[tuple[str, ...], ...]) -> list[float]:
    """SGAS, criterion 1, of the edges of a type of cells."""
    importance, certainty = [], []
    for row, ops in zip(alpha.tolist(), names, strict=True):
        powers = [math.exp(value) for value in row[: len(ops)]]
        p = {op: power / sum(powers) for op, power in zip(ops, powers, strict=True)}
        others = {op: share for op, share in p.items() if op != "none"}
        importance.append(sum(others.values()))
        q = [share / importance[-1] for share in others.values()]
        certainty.append(1 + sum(share * math.log(share) for share in q) / math.log(len(q)))

    def spread(values: list[float]) -> list[float]:
        least, most = min(values), max(values)
        if most - least < 1e-12:  # no op is `none`
            return [1.0] * len(values)
        return [(value - least) / (most - least) for value in values]

    return [one * other for one, other in zip(spread(importance), spread(certainty), strict=True)]


@pytest.mark.parametrize("space", [NasBench201(), Darts(), DartsS1()], ids=lambda space: space.name)
@pytest.mark.parametrize("seed", range(5))
def test_the_next_edge_is_that_of_sgas(space: Space[Any], seed: int) -> None:
    """Decision by decision, with other alphas each time, to the end."""
    decided = nothing_decided(space.shape[0])
    for number in range(space.decisions):
        alpha = double(*space.shape, seed=100 * seed + number) * space.present
        p = alpha.masked_fill(~space.present, -torch.inf).softmax(1)
        before = decided.clone()
        decide(decided, p, space)
        start = 0
        for table in space.tables:
            end = start + len(table.edges)
            scores = textbook_scores(alpha[start:end], table.ops)
            found = selection_scores(
                p[start:end], (space.present & ~space.nones)[start:end], space.present[start:end]
            )
            torch.testing.assert_close(found, torch.tensor(scores).double(), rtol=1e-6, atol=1e-6)
            still = [row for row in range(len(scores)) if before[start + row] == OPEN]
            best = max(still, key=lambda row: (float(found[row]), -row))
            names = table.ops[best]
            choice = max(
                (float(alpha[start + best, o]), -o) for o, name in enumerate(names) if name != "none"
            )
            assert int(decided[start + best]) == -choice[1]
            assert ((decided[start:end] >= 0) & (before[start:end] < 0)).sum() == 1
            start = end
        assert torch.equal(decided[before != OPEN], before[before != OPEN]), "what is decided stays"
        for edges, of_node in zip(
            space.edges_of_nodes, torch.split(decided, list(space.edges_of_nodes)), strict=True
        ):
            kept = edges if space.kept is None else min(space.kept, edges)
            full = (of_node >= 0).sum() == kept
            assert (of_node == OPEN).any() != full, "a node with all that it keeps has no open edge"
            assert full or not (of_node == DROPPED).any()
    assert not (decided == OPEN).any()
    chosen = space.select(torch.arange(space.present.numel()).view(space.shape).where(
        choosable(space.present, decided), -1))  # fmt: skip
    assert int((space.chosen(chosen) & choosable(space.present, decided)).sum()) == int((decided >= 0).sum())


def test_of_edges_without_none_the_certainty_decides() -> None:
    space = DartsS2()
    strength = double(28, 2).softmax(1)
    decided = nothing_decided(28)
    decide(decided, strength, space)
    surest = strength[:14].max(1).values.argmax()
    assert int(decided[surest]) == int(strength[surest].argmax())


def test_equal_edges_are_decided_in_their_order() -> None:
    space, decided = NasBench201(), nothing_decided(6)
    for edge in range(6):
        decide(decided, torch.full((6, 5), 0.2).double(), space)
        assert decided.tolist() == [1] * (edge + 1) + [OPEN] * (5 - edge), "the first op but none"


def test_weights_of_decided_edges() -> None:
    """1 for the op, without a gradient; those of dropped edges are all 0."""
    decided = torch.tensor([OPEN, 3, DROPPED, OPEN, 0, OPEN])
    weights = double(6, 5).requires_grad_()
    found = decided_weights(weights, decided)
    (gradient,) = torch.autograd.grad(found.square().sum(), weights)
    expected = weights.detach().clone()
    expected[1:3] = expected[4] = 0
    torch.testing.assert_close(gradient, 2 * expected)
    expected[1, 3] = expected[4, 0] = 1
    torch.testing.assert_close(found.detach(), expected)


def test_alphas_of_decided_edges_stay() -> None:
    """Whatever Adam's moments and its weight decay would do to them."""
    torch.manual_seed(0)
    supernet = Supernet(2, 1, 4, skip_dropout=0.0).double()
    alpha, alive = double(6, 5).requires_grad_(), torch.ones(6, 5, dtype=torch.bool)
    optimizer = torch.optim.Adam([alpha], lr=0.1, weight_decay=0.1)
    batch = double(4, 3, 8, 8), torch.arange(4)
    decided = nothing_decided(6)
    for step in range(3):
        before = alpha.detach().clone()
        if step:
            decided[2] = 1
        alpha_step(
            supernet,
            alpha,
            alive,
            batch,
            optimizer,
            moving=decided == OPEN,
            weights_of=lambda alpha: decided_weights(alpha.softmax(1), decided),
        )
        same = (alpha.detach() == before).all(1)
        assert same.tolist() == [False, False, step > 0, False, False, False]


# Whole searches ---------------------------------------------------------------------------------------------

GREEDY = [
    "--schedule", "greedy", "--commit-after", "1", "--commit-every", "1", "--batch-growth", "2",
    "--relaxation", "softmax", "--criterion", "alpha", "--pruning", "hard", "--alpha-noise", "0.001",
    "--max-images", "32", "--channels", "4", "--batch-size", "8", "--threads", "1", "--finalists", "0",
]  # fmt: skip
SEARCHES = {
    "nas-bench-201": (10, GREEDY),
    "DARTS": (6, [*GREEDY, "--space", "darts-s3", "--layers", "3", "--no-fused"]),
    "evaluated": (
        7, [*GREEDY, "--criterion", "loss", "--committee", "2", "--warmup-epochs", "1", "--no-fused"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEARCHES)
def test_a_greedy_search_ends_with_what_it_has_decided(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And bit for bit the same if it is stopped on its way."""
    after, flags = SEARCHES[name]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*flags, "--out", str(whole)]) == 0
    with monkeypatch.context() as patch:
        stop_after(after, patch)
        assert main([*flags, "--out", str(stopped)]) == 130
    assert main(["--resume", str(stopped)]) == 0
    assert outcome(stopped) == outcome(whole)
    metrics, result = RunFolder(whole).metrics(), RunFolder(whole).result()
    assert result is not None
    decided = metrics[-1]["decided"]
    assert torch.equal(checkpoint.load(whole / "checkpoint.pt")["decided"], torch.tensor(decided))
    assert {line["phase"] for line in metrics} - {"warm-up"} == {"deciding", "decided"}
    assert sum(result["stages"].values()) == len(metrics)
    for before, line in itertools.pairwise(metrics):
        now = [(old, new) for old, new in zip(before["decided"], line["decided"], strict=True) if old != OPEN]
        assert all(old == new for old, new in now), "a decision stays"
        fixed = [row for row, op in enumerate(before["decided"]) if op != OPEN]
        assert all(before["alpha"][row] == line["alpha"][row] for row in fixed)
    if name == "DARTS":
        assert [decided.count(DROPPED), len(metrics)] == [12, 9]
        found = Genotype.from_string(result["architecture"])
        mask = torch.zeros(28, 3, dtype=torch.bool)
        for row, op in enumerate(decided):
            if op >= 0:
                mask[row, op] = True
        _, config = RunFolder.open(whole)
        assert torch.equal(config.space.chosen(found), mask)
    else:
        chosen = [OPS[op] for op in decided]
        assert [op for *_, op in result["drawing"]["cells"][0]["edges"]] == chosen


def test_stages_of_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a schedule of a plugin, whose first epoch trains nothing."""
    flags = [
        "--plugin", str(SUPPORT / "own_parts.py"), *GREEDY[8:], "--schedule", "test-restless", "--no-fused",
    ]  # fmt: skip
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*flags, "--out", str(whole)]) == 0
    trained = [
        (line["phase"], line["weights_loss"] is not None, line["alpha_loss"] is not None)
        for line in RunFolder(whole).metrics()
    ]
    assert trained == [
        ("rest", False, False), ("weights", True, False), ("alpha", False, True), ("both", True, True),
    ]  # fmt: skip
    assert sorted(RunFolder(whole).metrics()[-1]["decided"])[:6].count(OPEN) == 5
    with monkeypatch.context() as patch:
        stop_after(6, patch)
        assert main([*flags, "--out", str(stopped)]) == 130
    assert main(["--plugin", str(SUPPORT / "own_parts.py"), "--resume", str(stopped)]) == 0
    assert outcome(stopped) == outcome(whole)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--finalists", "0"],
            "--schedule greedy decides by itself which ops stay: use --pruning hard",
        ),
        (["--pruning", "hard"], "use --finalists 0; got 4"),
        (["--pruning", "hard", "--commit-every", "0"], "--commit-every must be at least 1; got 0"),
        (["--pruning", "hard", "--commit-after", "0"], "--commit-after must be at least 1; got 0"),
        (["--pruning", "hard", "--batch-growth", "-1"], "--batch-growth must be at least 0; got -1"),
        (["--pruning", "hard", "--pruning-epochs", "3"], "--pruning-epochs"),
    ],
)
def test_what_a_greedy_search_cannot_is_refused(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as status:
        sys.exit(main(["--schedule", "greedy", *arguments, "--out", str(tmp_path / "run")]))
    assert status.value.code == 2
    shown = capsys.readouterr()
    assert complaint in " ".join((shown.out + shown.err).replace("│", " ").split())


def test_a_checkpoint_with_other_decisions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert main([*GREEDY, "--no-fused", "--out", str(folder)]) == 130
    content = checkpoint.load(folder / "checkpoint.pt")
    checkpoint.save(folder / "checkpoint.pt", {**content, "decided": torch.tensor([0, 1, 2, 3, 4, 5])})
    assert main(["--resume", str(folder)]) == 2
    assert "decided must be numbers of ops, -1 or -2; got [0, 1, 2, 3, 4, 5]" in capsys.readouterr().err


def test_the_recipe_and_parts_in_place_of_a_recipes() -> None:
    sgas = SearchConfig().replaced(recipe="sgas")
    assert sgas.method.schedule == Greedy(0, 10, 5, 8) and sgas.epochs == 40
    assert sgas.replaced(space="darts").epochs == 50
    greedy = SearchConfig().replaced(recipe="darts", schedule="greedy")
    assert greedy.method.schedule == Greedy(), "the recipe's pruning epochs have no place there"
    with pytest.raises(UserError, match="no setting is called --pruning-epochs"):
        SearchConfig().replaced(recipe="darts", schedule="greedy", pruning_epochs=3)


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        ("sgas", "--schedule greedy; the analysis knows pruning"),
        ("darts-minus", "--variation auxiliary-skip"),
    ],
)
def test_the_analysis_refuses_what_it_does_not_know(recipe: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        nas_bench_201(SearchConfig().replaced(recipe=recipe), Path("run"))


# Decisions by perturbation ----------------------------------------------------------------------------------


def test_edges_are_decided_when_those_of_darts_pt_are() -> None:
    """At the epochs 0, 5, 10, 15, 20 and 24 of the tuning, which has 25 at a constant rate."""
    config = SearchConfig().replaced(recipe="darts-pt")
    schedule, space = config.method.schedule, config.space
    assert isinstance(schedule, Perturbation) and config.epochs == 125
    due = [epoch - 100 for epoch in range(125) if schedule.event(epoch, space) is not None]
    assert due == [0, 5, 10, 15, 20, 24]
    assert schedule.event(100, space) == Perturb()
    tuning = schedule.stage(100, space)
    assert (tuning.name, tuning.learning_rate, tuning.weights, tuning.alpha) == ("tuning", 0.0025, True, True)
    assert schedule.stage(99, space).learning_rate is None and schedule.annealed_epochs(space) == 100
    assert config.search.batch_norm == "batch" and config.search.validation_proportion == 1
    fixed = SearchConfig().replaced(recipe="darts-pt-fixed")
    assert fixed.alpha_epochs == 0 and not fixed.stage(0).alpha


PERTURBED = [
    "--method", "darts-pt", "--training-epochs", "1", "--tuning-epochs", "1", "--max-images", "48",
    "--channels", "4", "--batch-size", "16", "--threads", "1",
]  # fmt: skip


@pytest.mark.parametrize("method", ["darts-pt", "darts-pt-fixed"])
def test_a_search_by_perturbation_stops_and_goes_on(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edge by edge, each by the op that the supernet misses most; the learning rate as the stage says."""
    flags = [*PERTURBED, "--method", method]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*flags, "--out", str(whole)]) == 0
    epochs = RunFolder(whole).metrics()
    counts = [sum(op != OPEN for op in epoch["decided"]) for epoch in epochs]
    assert counts == [0, 1, 2, 3, 4, 5, 6]
    assert [epoch["learning_rate"] for epoch in epochs] == [0.025, *[0.0025] * 6]
    assert all(
        earlier in (later, OPEN)
        for before, after in itertools.pairwise(epochs)
        for earlier, later in zip(before["decided"], after["decided"], strict=True)
    )
    for before, epoch in itertools.pairwise(epochs):
        (edge,) = [
            e
            for e, (old, new) in enumerate(zip(before["decided"], epoch["decided"], strict=True))
            if old != new
        ]
        found = epoch["importance"]
        lowest = min(range(5), key=lambda op: (found["accuracy"][edge][op], -found["loss"][edge][op]))
        assert epoch["decided"][edge] == lowest
        others = [loss for e, row in enumerate(found["loss"]) for loss in row if e != edge]
        assert others == [found["base_loss"]] * len(others), "no other edge is evaluated"
    alphas = [epoch["alpha"] for epoch in epochs]
    assert (alphas[0] == alphas[-1]) == (method == "darts-pt-fixed")
    result = RunFolder(whole).result()
    assert result is not None
    assert NasBench201().parse(result["architecture"]).choices == tuple(epochs[-1]["decided"])
    with monkeypatch.context() as patch:
        stop_after({"darts-pt": 3, "darts-pt-fixed": 8}[method], patch)
        assert main([*flags, "--out", str(stopped)]) == 130
    assert main(["--resume", str(stopped)]) == 0
    assert outcome(stopped) == outcome(whole)


def test_perturbation_is_for_spaces_that_keep_all_edges() -> None:
    with pytest.raises(UserError, match="--schedule perturbation decides ops, and --space darts also asks"):
        SearchConfig().replaced(recipe="darts-pt", space=Darts())
    with pytest.raises(
        UserError, match="--schedule perturbation evaluates one edge at a time: use --evaluation f"
    ):
        SearchConfig().replaced(recipe="darts-pt", evaluation="racing")
