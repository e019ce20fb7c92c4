"""Limits on what the network of a found cell costs."""

from __future__ import annotations

import functools
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from search_commands import TINY
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.limits import points
from vpdarts_fast.report.run_files import read_run
from vpdarts_fast.search import RunFolder, SearchConfig
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.finalists.contestants import Calls
from vpdarts_fast.search.limits import Limits, cell_of, every_choice
from vpdarts_fast.search.methods.criteria import Importance
from vpdarts_fast.spaces import costs as costs_module
from vpdarts_fast.spaces.costs import CellCosts, Cost, CostTable, covering, measure_latency
from vpdarts_fast.spaces.darts import Darts, DartsS2
from vpdarts_fast.spaces.nas_bench_201 import OPS, Genotype, NasBench201, build_network
from vpdarts_fast.spaces.space import Space

SMALL_DARTS = Darts(found_channels=4, found_layers=3)


def importance(space: Space[Any], seed: int, distinct: int = 1_000) -> Importance:
    """Random scores, equal ones among them where few are distinct."""
    generator = torch.Generator().manual_seed(seed)
    score, tie_break = (torch.randint(distinct, space.shape, generator=generator).double() for _ in range(2))
    return Importance(score, tie_break)


def calls_of(space: Space[Any], seed: int, alive: Tensor | None = None, distinct: int = 1_000) -> Calls:
    return Calls(importance(space, seed, distinct), space.present if alive is None else alive, space)


@functools.cache
def costs_of(space: Space[Any]) -> CellCosts:
    """Networks are counted once for all tests."""
    return CellCosts(space, 10, (32, 32))


def limits_of(space: Space[Any], **limits: float) -> Limits:
    found = Limits(SearchConfig(space=space).replaced(**limits), 10, (32, 32))
    assert found.space == space
    found.costs = costs_of(space)
    return found


# What networks cost -----------------------------------------------------------------------------------------


def test_costs_of_nas_bench_201_are_those_of_its_layers() -> None:
    """The sums written out: a convolution of C channels has k*k*C*C weights, and its batch norm 2 C."""
    costs = CellCosts(NasBench201(), 10, (32, 32))
    sizes = [(16, 32), (32, 16), (64, 8)]
    for op, kernel in (("nor_conv_1x1", 1), ("nor_conv_3x3", 3), ("skip_connect", 0), ("none", 0)):
        parameters = sum(5 * (kernel**2 * c * c + 2 * c * (kernel > 0)) for c, _ in sizes)
        macs = sum(5 * kernel**2 * c * c * size**2 for c, size in sizes)
        assert (costs.table("parameters").ops[:, OPS.index(op)] == parameters).all()
        assert (costs.table("macs").ops[:, OPS.index(op)] == macs).all()
    empty = Genotype.from_choices((0,) * 6)
    assert costs.table("parameters").base == costs.of(empty, "parameters") == 73_306
    network = build_network(empty)
    assert sum(parameter.numel() for parameter in network.parameters()) == 73_306


@pytest.mark.parametrize(
    ("space", "counted"),
    [
        (NasBench201(), ("parameters", "macs")),
        (SMALL_DARTS, ("parameters",)),
        (DartsS2(found_channels=4, found_layers=3), ("macs",)),
    ],
    ids=["nas-bench-201", "darts", "darts-s2"],
)
def test_costs_are_sums_over_the_ops(space: Space[Any], counted: tuple[Cost, ...]) -> None:
    costs = costs_of(space)
    covered = torch.zeros_like(space.present)
    for genotype in covering(space):
        covered |= space.chosen(genotype)
    assert torch.equal(covered, space.present & ~(space.nones if space.kept else torch.tensor(False)))
    for seed in range(3):
        cell = calls_of(space, seed).chosen
        for cost in counted:
            assert costs.table(cost).of(space.chosen(cell)) == costs.of(cell, cost)


def test_an_auxiliary_head_does_not_count() -> None:
    with_head, without = (Darts(found_channels=4, found_layers=4, auxiliary=head) for head in (True, False))
    cell = calls_of(with_head, 0).chosen
    counted = [CellCosts(space, 10, (32, 32)).of(cell, "parameters") for space in (with_head, without)]
    network = without.network(cell, 10)
    assert counted == [sum(parameter.numel() for parameter in network.parameters())] * 2


def test_latency_is_measured_in_all_and_in_each_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs_module, "RUNS", 3)
    network = build_network(4244, 4, 1).eval()
    found = measure_latency(network, torch.zeros(1, 3, 16, 16))
    assert found.keys() == {name for name, _ in network.named_modules()} and found[""] > 0
    cells = sum(found[f"cells.{cell}"] for cell in range(5))
    assert all(found[f"cells.0.layers.{edge}"] > 0 for edge in range(6)) and cells > found["cells.0"]


# The choice -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distinct", [3, 1_000])
def test_all_cells_come_as_the_closest_calls_do(distinct: int) -> None:
    space = NasBench201()
    alive = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    alive[:, 1] = True
    calls = calls_of(space, 5, alive, distinct)
    assert [cell_of(choice, space) for choice in every_choice(calls)] == list(calls.closest())


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_all_cells_within_the_limits_is_found(seed: int) -> None:
    space = NasBench201()
    calls = calls_of(space, seed)
    limits = limits_of(space, max_parameters=400_000, max_macs=40_000_000)
    found = limits.choose(calls).genotype
    score, best = calls.importance.score.tolist(), (-1.0, ())
    for choices in itertools.product(range(5), repeat=6):
        convs = [
            sum(choice == OPS.index(name) for choice in choices) for name in ("nor_conv_1x1", "nor_conv_3x3")
        ]
        parameters = 73_306 + 28_000 * convs[0] + 243_040 * convs[1]
        macs = 7_783_040 + 3_932_160 * convs[0] + 35_389_440 * convs[1]
        if parameters <= 400_000 and macs <= 40_000_000:
            total = sum(score[edge][op] for edge, op in enumerate(choices))
            best = max(best, (total, choices), key=lambda pair: pair[0])
    assert sum(score[edge][op] for edge, op in enumerate(found.choices)) == best[0]
    assert limits.within(found) and (limits.choose(calls).unlimited == calls.chosen)


@pytest.mark.parametrize("space", [NasBench201(), SMALL_DARTS], ids=lambda space: space.name)
def test_what_is_within_the_limits_anyway_stays(space: Space[Any]) -> None:
    calls = calls_of(space, 0)
    limited = limits_of(space, max_parameters=10**9).choose(calls)
    assert limited.genotype == limited.unlimited == calls.chosen


@pytest.mark.parametrize("seed", range(2))
def test_by_exchanges_it_ends_where_no_other_exchange_is_better(seed: int) -> None:
    space = SMALL_DARTS
    calls = calls_of(space, seed)
    unlimited = costs_of(space).of(calls.chosen, "parameters")
    limits = limits_of(space, max_parameters=int(0.8 * unlimited))
    limited = limits.choose(calls)
    assert limits.within(limited.genotype) and limited.path[0] == calls.chosen
    better = [
        cell for cell in calls.neighbours(limited.genotype) if calls.lag(cell) < calls.lag(limited.genotype)
    ]
    assert better and not any(limits.within(cell) for cell in better)


@pytest.mark.parametrize("space", [NasBench201(), SMALL_DARTS], ids=lambda space: space.name)
def test_a_latency_is_what_is_measured_not_what_is_estimated(
    space: Space[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole networks take half as long again as the sum of their parts says."""
    weights = torch.rand(space.shape, generator=torch.Generator().manual_seed(3)).double() * ~space.nones
    table = CostTable(2.0, weights)
    measured: list[Any] = []

    def of(self: CellCosts, genotype: Any, cost: str) -> float:
        measured.append(genotype)
        return 1.5 * table.of(self.space.chosen(genotype))

    monkeypatch.setattr(CellCosts, "of", of)
    monkeypatch.setattr(CellCosts, "table", lambda self, cost: table)
    calls = calls_of(space, 1)
    limit = 1.5 * table.of(space.chosen(calls.chosen)) * 0.9
    limits = limits_of(space, max_latency_ms=limit)
    found = limits.choose(calls).genotype
    assert 1.5 * table.of(space.chosen(found)) <= limit and len(set(measured)) < 30
    if space.kept is None:
        best = next(cell for cell in calls.closest() if 1.5 * table.of(space.chosen(cell)) <= limit / 1.01)
        assert calls.lag(found) <= calls.lag(best)


def test_what_no_cell_meets_is_refused_with_the_least_there_is() -> None:
    for space, least in ((NasBench201(), 73_306), (SMALL_DARTS, None)):
        limits = limits_of(space, max_parameters=100)
        with pytest.raises(
            UserError, match=f"is met by no cell of --space {space.name}: the smallest possible"
        ):
            limits.check()
        cheapest = int(limits.costs.table("parameters").base)
        if least is not None:
            assert cheapest == least
        limits_of(space, max_parameters=cheapest).check()
        with pytest.raises(UserError, match=f"smallest possible value is {cheapest:,}, of"):
            limits_of(space, max_parameters=cheapest - 1).check()


def test_what_is_left_may_all_be_above_the_limit() -> None:
    space = NasBench201()
    alive = torch.zeros(6, 5, dtype=torch.bool)
    alive[:, OPS.index("nor_conv_3x3")] = True
    with pytest.raises(
        UserError, match="no cell of the operations that are left is within --max-parameters 500,000"
    ):
        limits_of(space, max_parameters=500_000).choose(calls_of(space, 0, alive))


# Searches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--max-parameters", "0"], "--max-parameters must be at least 1; got 0"),
        (["--max-latency-ms", "0"], "--max-latency-ms must be above 0; got 0"),
        (["--max-macs", "1000000"], "--max-macs 1,000,000 is met by no cell"),
        (
            ["--method", "sgas", "--max-macs", "90000000"],
            "--max-macs is for the choice at the end of a search, which --schedule greedy",
        ),
        (
            ["--method", "darts", "--stopping", "skips", "--max-macs", "90000000"],
            "--stopping skips makes before",
        ),
    ],
)
def test_limits_that_make_no_sense_are_refused(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as status:
        sys.exit(main([*arguments, "--out", str(tmp_path / "run")]))
    assert status.value.code == 2
    shown = capsys.readouterr()
    assert complaint in " ".join((shown.out + shown.err).replace("│", " ").split())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_search_with_limits_and_finalists(
    tmp_path: Path, pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """All cells that are trained are within; what it costs is in result.json, console and picture."""
    folder = tmp_path / "run"
    few = ["--finalists", "3", "--finalist-steps", "4", "--finalist-budget", "40", "--finalist-channels", "4"]
    flags = [*TINY, *few, "--max-parameters", "150000", "--channels", "4"]
    assert main([*flags, "--out", str(folder)]) == 0
    result = RunFolder(folder).result()
    assert result is not None
    limits, space = result["limits"], NasBench201()
    costs = CellCosts(space, 10, (16, 16))
    taken = space.parse(result["architecture"])
    assert limits["given"] == {"parameters": 150_000.0}
    assert limits["costs"]["parameters"] == costs.of(taken, "parameters") <= 150_000
    for played in result["finalists"]["rounds"]:
        for cell in (cell for rung in played["rungs"] for cell in rung["cells"]):
            assert costs.of(space.parse(cell["architecture"]), "parameters") <= 150_000
    said = capsys.readouterr().out
    assert f"cost: {limits['costs']['parameters']:,.0f} parameters, " in said
    assert "; at most 150,000 parameters" in said
    assert (folder / "limits.png").stat().st_size > 10_000
    drawn = read_run(folder).result
    assert drawn is not None and drawn.limits is not None
    values, lags = points(drawn.limits, "parameters")
    assert len(values) == 5**6 and sorted(set(np.round(values))) == sorted(
        {73_306.0 + 28_000 * ones + 243_040 * threes for ones in range(7) for threes in range(7 - ones)}
    )
    assert lags.min() == pytest.approx(0, abs=1e-9)


def test_a_limit_can_be_given_to_a_search_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until there is a result."""
    folder = tmp_path / "run"
    assert main([*TINY, "--out", str(folder)]) == 0
    (folder / "result.json").unlink()
    assert main(["--resume", str(folder), "--max-parameters", "74000"]) == 0
    result = RunFolder(folder).result()
    assert result is not None and result["limits"]["costs"]["parameters"] <= 74_000
