"""Searches over a benchmark table: each learner against another one that is written here, and results."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.errors import UserError
from vpdarts_fast.search.tabular.__main__ import FINAL, main
from vpdarts_fast.search.tabular.evolution import Evolution
from vpdarts_fast.search.tabular.learner import Cell, TabularMethod
from vpdarts_fast.search.tabular.local_search import LocalSearch
from vpdarts_fast.search.tabular.random_search import RandomSearch
from vpdarts_fast.search.tabular.reinforce import Reinforce
from vpdarts_fast.search.tabular.renas import Renas, agreement, encoded_cells, ranking_loss
from vpdarts_fast.search.tabular.running import SIGNAL, TabularRuns, search_table
from vpdarts_fast.spaces.nas_bench_201 import EDGES, Genotype

pytestmark = pytest.mark.usefixtures("one_thread")

TABLE = BenchmarkTable.published()
SIGNALS = TABLE.column(SIGNAL)


def signal(cell: Cell) -> float:
    return float(SIGNALS[Genotype.from_choices(cell).index])


# Trajectories ----------------------------------------------------------------------------------------------


def trajectory(method: TabularMethod, evaluations: int, seed: int) -> list[Cell]:
    learner, cells = method.learner(np.random.default_rng((seed, 0))), []
    for _ in range(evaluations):
        cells.append(learner.ask())
        learner.tell(cells[-1], signal(cells[-1]))
    return cells


def expected_random(draw: np.random.Generator, evaluations: int) -> list[Cell]:
    """Six numbers of 0..4 at a time."""
    return [tuple(map(int, row)) for row in (draw.integers(0, 5, 6) for _ in range(evaluations))]


def expected_evolution(draw: np.random.Generator, evaluations: int) -> list[Cell]:
    """A list in the order of births; a member dies when its turn comes."""
    history: list[Cell] = []
    for n in range(evaluations):
        if n < 4:
            history.append(tuple(map(int, draw.integers(0, 5, 6))))
            continue
        alive = history[-4:]
        sample = [alive[i] for i in draw.integers(0, 4, 3)]
        scores = [signal(cell) for cell in sample]
        child = list(sample[scores.index(max(scores))])
        node = draw.integers(1, 4)
        source = draw.integers(0, node)
        place = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)].index((source, node))
        others = [op for op in range(5) if op != child[place]]
        child[place] = others[draw.integers(0, 4)]
        history.append(tuple(child))
    return history


def expected_reinforce(draw: np.random.Generator, evaluations: int) -> list[Cell]:
    """The policy's gradient by autograd, the baseline as the weighted mean of all rewards."""
    logits = torch.nn.Parameter(1e-3 * torch.from_numpy(draw.standard_normal((6, 5))))
    adam = torch.optim.Adam([logits], lr=0.3)
    rewards: list[float] = []
    cells: list[Cell] = []
    for _ in range(evaluations):
        policy = torch.softmax(logits, 1)
        uniform = draw.random(6)
        cell = []
        for e in range(6):
            cumulated = np.cumsum(policy[e].detach().numpy())
            cell.append(next((o for o in range(4) if uniform[e] < cumulated[o]), 4))
        cells.append(tuple(cell))
        rewards.append(signal(cells[-1]))
        shares = [0.9 ** (len(rewards) - 1 - i) for i in range(len(rewards))]
        baseline = sum(s * r for s, r in zip(shares, rewards, strict=True)) / sum(shares)
        adam.zero_grad()
        log_probability = torch.log(policy[range(6), cell]).sum()
        (-log_probability * (rewards[-1] - baseline)).backward()
        adam.step()
    return cells


def expected_local_search(draw: np.random.Generator, evaluations: int, first: bool) -> list[Cell]:
    """Recursion in place of a state: climbs from one cell after the other."""
    cells: list[Cell] = []

    def climb(cell: Cell) -> Iterator[None]:
        around = [(*cell[:e], o, *cell[e + 1 :]) for e in range(6) for o in range(5) if o != cell[e]]
        fresh = [neighbour for neighbour in around if neighbour not in cells]
        order = [fresh[i] for i in draw.permutation(len(fresh))]
        for neighbour in reversed(order):
            cells.append(neighbour)
            yield
            if first and signal(neighbour) > signal(cell):
                yield from climb(neighbour)
                return
        best = max(around, key=signal)
        if signal(best) > signal(cell):
            yield from climb(best)

    while len(cells) < evaluations:
        start = tuple(map(int, draw.integers(0, 5, 6)))
        if start in cells:
            continue
        cells.append(start)
        for _ in climb(start):
            if len(cells) == evaluations:
                break
    return cells


CASES: dict[str, tuple[TabularMethod, Callable[[np.random.Generator, int], list[Cell]]]] = {
    "random": (RandomSearch(), expected_random),
    "evolution": (Evolution(population=4, tournament=3), expected_evolution),
    "reinforce": (Reinforce(learning_rate=0.3), expected_reinforce),
    "local search": (LocalSearch(), lambda draw, n: expected_local_search(draw, n, True)),
    "local search, best": (LocalSearch(False), lambda draw, n: expected_local_search(draw, n, False)),
}


@pytest.mark.parametrize("case", CASES)
def test_trajectories_are_those_of_another_implementation_with_the_same_draws(case: str) -> None:
    method, expected = CASES[case]
    for seed in range(5):
        assert trajectory(method, 150, seed) == expected(np.random.default_rng((seed, 0)), 150)


def test_local_search_evaluates_every_cell_once_and_ends() -> None:
    """In a table of 15,625 cells nothing is left then, and what is asked for does not matter."""
    learner, seen = LocalSearch(first_improvement=False).learner(np.random.default_rng(0)), set()
    for _ in range(15_625):
        cell = learner.ask()
        assert cell not in seen
        seen.add(cell)
        learner.tell(cell, float(sum(cell)))  # one optimum
    learner.ask()


# ReNAS -----------------------------------------------------------------------------------------------------


def test_encodings_are_those_of_the_papers_networks() -> None:
    """At (source, target): the op, then multiply-adds and parameters in each of fifteen cells."""
    cells, encodings = encoded_cells("numbers")
    assert encodings.shape == (15_625, 31, 4, 4) and len(set(cells)) == 15_625
    cell = (3, 0, 2, 1, 4, 2)
    encoding = encodings[cells.index(cell)]
    assert encoding[0].tolist() == [[0, 3, 0, 1], [0, 0, 2, 4], [0, 0, 0, 2], [0, 0, 0, 0]]
    for number, (channels, side) in enumerate([(16, 32)] * 5 + [(32, 16)] * 5 + [(64, 8)] * 5):
        flops, parameters = encoding[1 + 2 * number], encoding[2 + 2 * number]
        assert float(flops[0, 1]) == pytest.approx(1e-7 * (9 * channels**2 + 2 * channels) * side**2)
        assert float(parameters[1, 2]) == pytest.approx(1e-5 * (channels**2 + 2 * channels))
        assert flops[0, 2] == flops[0, 3] == flops[1, 3] == 0
    _, one_hot = encoded_cells("one-hot")
    assert one_hot.shape == (15_625, 35, 4, 4) and torch.equal(one_hot[:, 5:], encodings[:, 1:])
    for (source, target), op in zip(EDGES, cell, strict=True):
        assert one_hot[cells.index(cell), :5, source, target].tolist() == [float(o == op) for o in range(5)]
    assert float(one_hot[:, :5].sum()) == 6 * 15_625


def test_the_ranking_loss_is_the_papers() -> None:
    scores = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    accuracies = torch.tensor([90.0, 91.0, 91.0])
    expected = []
    for i in range(3):
        for j in range(3):
            if i != j:
                sign = float(accuracies[i] > accuracies[j]) - float(accuracies[i] < accuracies[j])
                expected.append(np.log1p(np.exp(-(scores[i] - scores[j]).item() * sign)))
    torch.testing.assert_close(ranking_loss(scores, accuracies), torch.tensor(np.mean(expected)))
    assert agreement(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])) == pytest.approx(1 / 3)


def test_renas_evaluates_random_cells_and_then_what_it_predicts() -> None:
    method = Renas(samples=40, top=10, epochs=40)
    cells = trajectory(method, 60, seed=1)
    state = torch.get_rng_state()
    assert cells[:50] == trajectory(method, 50, seed=1) and len(set(cells)) == 60
    assert torch.equal(torch.get_rng_state(), state)
    first = [tuple(row) for row in np.random.default_rng((1, 0)).integers(0, 5, (40, 6)).tolist()]
    assert cells[:40] == first  # no cell was drawn twice
    predicted, drawn = np.mean([signal(c) for c in cells[40:]]), np.mean([signal(c) for c in cells[:40]])
    assert predicted > drawn + 5  # per cent


# Results ---------------------------------------------------------------------------------------------------

PUBLISHED = {
    "random": ((93.70, 0.36), (71.04, 1.07), (44.57, 1.25)),
    "reinforce": ((93.85, 0.37), (71.71, 1.09), (45.24, 1.18)),
    "evolution": ((93.92, 0.30), (71.84, 0.99), (45.54, 1.03)),
}
"""Mean and deviation of 500 runs of 12,000 seconds on CIFAR-10, CIFAR-100 and ImageNet16-120 (of the
NAS-Bench-201 paper, as Table 1 of VP-DARTS repeats them)."""


@pytest.fixture(scope="module")
def many() -> dict[str, TabularRuns]:
    methods = (RandomSearch(), Reinforce(), Evolution(), LocalSearch())
    return {method.name: search_table(method, runs=200) for method in methods}


def test_results_are_the_published_ones(many: dict[str, TabularRuns]) -> None:
    for name, rows in PUBLISHED.items():
        for column, (mean, deviation) in zip(FINAL.values(), rows, strict=True):
            assert abs(TABLE.column(column)[many[name].found].mean() - mean) < deviation / 2, (name, column)


def test_every_learner_is_better_than_random_search(many: dict[str, TabularRuns]) -> None:
    for name in ("reinforce", "evolution", "local-search"):
        for column in FINAL.values():
            values = TABLE.column(column)
            differences = values[many[name].found] - values[many["random"].found]
            half = 1.96 * differences.std(ddof=1) / len(differences) ** 0.5
            assert differences.mean() - half > 0, (name, column)


def test_what_is_found_is_the_best_by_the_signal_alone(many: dict[str, TabularRuns]) -> None:
    for runs in many.values():
        best = SIGNALS[runs.evaluated].max(1)
        assert (SIGNALS[runs.found] == best).all() and runs.evaluated.shape == (200, 100)


def test_a_run_is_the_same_in_any_number_of_runs(many: dict[str, TabularRuns]) -> None:
    for runs in many.values():
        few = search_table(runs.method, runs=3, evaluations=60)
        assert (few.evaluated == runs.evaluated[:3, :60]).all()
    other = search_table(RandomSearch(), runs=3, seed=1)
    assert not (other.evaluated == many["random"].evaluated[:3]).all()


# The command line ------------------------------------------------------------------------------------------


def test_the_command_line_prints_and_writes_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.csv"
    few = ["--runs", "4", "--evaluations", "30"]
    assert main(["random", "evolution", *few, "--evolution.population", "5", "--csv", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 runs of 30 evaluations, told cifar10_valid_12ep") and "more than random" in out
    rows = list(csv.DictReader(path.open()))
    assert [row["method"] for row in rows] == ["random"] * 4 + ["evolution"] * 4
    expected = search_table(Evolution(population=5), runs=4, evaluations=30)
    assert [row["arch"] for row in rows[4:]] == [TABLE.architectures[i] for i in expected.found]
    assert main(["local-search", *few]) == 0
    assert "more than random" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "0"], "runs must be at least 1; got 0"),
        (["--evaluations", "-1"], "evaluations must be at least 1; got -1"),
        (["--seed", "-1"], "seed must be at least 0; got -1"),
        (["--signal", "speed"], "the table has no column 'speed'"),
        (["--csv", "/nowhere/at/all.csv"], "there is no directory /nowhere/at"),
        (
            ["evolution", "--evolution.population", "0"],
            "population of regularised evolution must be at least 1",
        ),
        (
            ["evolution", "--evolution.tournament", "0"],
            "tournament of regularised evolution must be at least 1",
        ),
        (
            ["reinforce", "--reinforce.learning-rate", "0"],
            "learning_rate of REINFORCE must be positive; got 0",
        ),
        (["reinforce", "--reinforce.baseline-momentum", "1"], "baseline_momentum must be in 0..1"),
        (["renas", "--renas.samples", "1"], "samples of ReNAS must be at least 2; got 1"),
        (["renas", "--renas.learning-rate", "-1"], "learning_rate of ReNAS must be positive"),
    ],
)
def test_mistakes_are_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as stop:  # of a setting, which the parser of flags explains
        status = stop.code
    assert status == 2 and message in " ".join(capsys.readouterr().err.split())


def test_a_table_that_is_not_complete_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.csv"
    path.write_text(f"arch,{SIGNAL}\n{TABLE.architectures[0]},90.0\n")
    assert main(["random", "--table", str(path)]) == 2
    assert "a search over a table needs all 15,625 cells; this one holds" in capsys.readouterr().err


# A budget in seconds ----------------------------------------------------------------------------------------


def test_a_budget_in_seconds_ends_before_it_is_exceeded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = BenchmarkTable.published()
    seconds = np.random.default_rng(0).uniform(50, 150, 15_625).round(3)
    values = np.column_stack([published.column(name) for name in published.columns])
    path = tmp_path / "timed.csv.gz"
    BenchmarkTable(published.columns, values, seconds).save(path)
    table = BenchmarkTable.load(path)
    assert table.seconds is not None and (table.seconds == seconds).all()
    assert table.columns == published.columns and len(table.accuracy(0)) == len(published.columns)
    timed = search_table(RandomSearch(), table, budget_seconds=2_000, runs=20)
    counted = search_table(RandomSearch(), table, evaluations=60, runs=20)
    for run, cells in enumerate(timed.evaluated):
        count = int((cells >= 0).sum())
        following = counted.evaluated[run, : count + 1]
        assert (cells[:count] == following[:count]).all(), "the same draws"
        assert seconds[following[:count]].sum() <= 2_000 < seconds[following].sum()
    assert main(["random", "--table", str(path), "--budget-seconds", "2000", "--runs", "20"]) == 0
    least, most = ((timed.evaluated >= 0).sum(1).min(), (timed.evaluated >= 0).sum(1).max())
    assert f"20 runs of {least} to {most} evaluations" in capsys.readouterr().out
    with pytest.raises(
        UserError, match="a budget in seconds needs a table with the column cifar10_valid_12ep_s"
    ):
        search_table(RandomSearch(), budget_seconds=2_000)
    with pytest.raises(UserError, match="60 seconds do not pay for the first evaluation of every run"):
        search_table(RandomSearch(), table, budget_seconds=60, runs=20)
