"""Snapshots of a search, and Kendall's tau of every signal against the true ranking of the benchmark."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from search_commands import TINY, edited, rewrite, stop_after
from small_tables import CHOICES, COLUMNS, WORTH, additive_table

from vpdarts_fast.analysis.evaluation import MODES, TAYLOR, evaluate_run
from vpdarts_fast.analysis.kendall import main
from vpdarts_fast.analysis.signals import SIGNALS, Signal, Spread, Summary, Verdict, judge, summarise
from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.data import load
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import NONES, leave_one_out
from vpdarts_fast.evaluation.taylor import taylor
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.formats import SETTINGS, SNAPSHOT
from vpdarts_fast.search import RunFolder, running
from vpdarts_fast.search.__main__ import main as search
from vpdarts_fast.search.driver import Search
from vpdarts_fast.search.methods.criteria import Importance
from vpdarts_fast.search.ranking import kendall_tau, levels, true_ranks
from vpdarts_fast.search.streams import stream
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, OPS, Genotype

pytestmark = pytest.mark.usefixtures("one_thread")


def importance(score: Any, tie_break: Any = None) -> Importance:
    tensor = torch.tensor(score, dtype=torch.float64)
    return Importance(tensor, torch.zeros_like(tensor) if tie_break is None else torch.tensor(tie_break))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.csv.gz"
    additive_table().save(path)
    return path


@pytest.fixture(scope="module")
def runs_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with two seeds and snapshots."""
    folder = tmp_path_factory.mktemp("searched") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "draw_pictures", lambda folder: [])
        assert search([*TINY, "--seeds", "3", "7", "--snapshots", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def runs(runs_once: Path, tmp_path: Path) -> Path:
    """A copy of it to write into and to spoil."""
    shutil.copytree(runs_once, tmp_path / "runs")
    return tmp_path / "runs"


# --- the true ranking --------------------------------------------------------------------------


def test_true_ranks_of_an_additive_table() -> None:
    """Where every op adds a fixed amount, it has the same rank among all others; equals share theirs."""
    expected = [
        [5, 4, 3, 2, 1],
        [1, 2, 3, 4, 5],
        [3, 5, 4, 1, 2],
        [3, 3, 3, 3, 3],
        [4.5, 4.5, 2.5, 2.5, 1],
        [2, 4, 1, 5, 3],
    ]
    assert true_ranks(additive_table(), "cifar10_test_200ep").tolist() == expected


def test_true_ranks_are_means_over_the_other_edges() -> None:
    """Op 4 is the best on the first edge where the last edge has op 0, else the worst."""
    first, last = CHOICES[:, 0], CHOICES[:, -1]
    accuracy = 50.0 + np.where(first == 4, np.where(last == 0, 10, -10), 0)
    ranks = true_ranks(BenchmarkTable(("cifar10_test_200ep",), accuracy[:, None]), "cifar10_test_200ep")
    best, worst = 1 / 5, 4 / 5  # shares of the contexts
    np.testing.assert_allclose(ranks[0, 4], best * 1 + worst * 5)
    np.testing.assert_allclose(ranks[0, :4], best * 3.5 + worst * 2.5)
    np.testing.assert_allclose(ranks.sum(1), 15)


def brute_force_ranks(accuracy: NDArray[np.float64], edge: int) -> NDArray[np.float64]:
    """Architecture by architecture, as the paper words it; [O]."""
    ranks = []
    others: list[Any] = [range(len(OPS))] * (len(EDGES) - 1)
    for context in itertools.islice(itertools.product(*others), 0, None, 7):
        values = [
            accuracy[Genotype.from_choices([*context[:edge], op, *context[edge:]]).index]
            for op in range(len(OPS))
        ]
        ranks.append([1 + sum(other > value for other in values) for value in values])
    return np.mean(ranks, axis=0)


@pytest.mark.parametrize("edge", [0, 3])
def test_true_ranks_of_the_benchmark(edge: int) -> None:
    """A seventh of the contexts gives nearly the ranks of all; 3x3 is the best op, pooling the worst."""
    table = BenchmarkTable.published()
    ranks = true_ranks(table, "cifar10_test_200ep")
    sampled = brute_force_ranks(table.column("cifar10_test_200ep"), edge)
    np.testing.assert_allclose(ranks[edge], sampled, atol=0.1)
    assert (ranks.argmin(1) == OPS.index("nor_conv_3x3")).all()
    assert (ranks.argmax(1) == OPS.index("avg_pool_3x3")).all()


def test_true_ranks_need_all_architectures() -> None:
    values = np.full((len(CHOICES), 1), 50.0)
    values[[3, 5]] = np.nan
    table = BenchmarkTable(("cifar10_test_200ep",), values)
    with pytest.raises(UserError, match=r"needs every architecture; .* lacks 2 of 15,625"):
        true_ranks(table, "cifar10_test_200ep")
    with pytest.raises(UserError, match="no column 'cifar10'"):
        true_ranks(table, "cifar10")


# --- Kendall's tau -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "tau"),
    [
        ([5, 4, 3, 2, 1], 1),
        ([1, 2, 3, 4, 5], -1),
        ([4, 5, 3, 2, 1], (9 - 1) / 10),  # one of the ten pairs is the wrong way round
        ([5, 1, 2, 3, 4], (4 - 6) / 10),
        ([1, 1, 0, 0, 0], 6 / math.sqrt(6 * 10)),  # tau-b: six pairs differ in one ranking, ten in the other
        ([2, 2, 2, 2, 2], math.nan),
    ],
)
def test_tau_against_hand_counted_pairs(score: list[float], tau: float) -> None:
    found = kendall_tau(importance([score]), np.array([[1.0, 2.2, 2.9, 4.0, 4.9]]))
    np.testing.assert_allclose(found, [tau])


def test_tau_breaks_ties_as_the_search_does() -> None:
    """Equal scores are ordered by the tie break; what is equal in both stays equal."""
    both = importance([[2.0, 2.0, 1.0, 1.0, 1.0]], [[0.5, 0.7, 0.1, 0.3, 0.1]])
    assert levels(both).tolist() == [[2, 3, 0, 1, 0]]
    tau = kendall_tau(both, np.array([[2.0, 1.0, 4.0, 3.0, 5.0]]))
    np.testing.assert_allclose(tau, [9 / math.sqrt(9 * 10)])


def test_tau_is_taken_edge_by_edge() -> None:
    scores = np.where(WORTH.std(1, keepdims=True) > 0, WORTH, 0.0)
    scores[1] *= -1
    tau = kendall_tau(importance(scores.tolist()), true_ranks(additive_table(), "cifar10_test_200ep"))
    np.testing.assert_allclose(tau, [1, -1, 1, math.nan, 1, 1])


def test_mean_and_spread_over_runs() -> None:
    def verdict(tau: list[float], accuracy: float) -> Verdict:
        genotype = Genotype.from_choices([0] * len(EDGES))
        return Verdict(4, Signal("loss", "batch"), np.array(tau), genotype, {"column": accuracy})

    first, second = verdict([0.2, 0.6, math.nan], 90.0), verdict([0.0, 0.2, 0.4], 93.0)
    assert first.mean_tau == pytest.approx(0.4) and math.isnan(verdict([math.nan], 0).mean_tau)
    (summary,) = summarise([[first], [second]])
    assert (summary.epoch, summary.runs, str(summary.signal)) == (4, 2, "batch, loss")
    assert summary.tau.mean == pytest.approx(0.3) and summary.tau.deviation == pytest.approx(0.02**0.5)
    assert summary.benchmark["column"].mean == 91.5
    assert summary.benchmark["column"].deviation == pytest.approx(4.5**0.5)
    assert summarise([[first]])[0].tau == Spread(pytest.approx(0.4), 0.0)
    assert isinstance(summary, Summary)


# --- snapshots ---------------------------------------------------------------------------------


def test_snapshots_change_nothing_and_survive_a_stop(
    runs: Path, tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One before each pruning epoch and one at the end; the search's numbers are those without."""
    without, stopped = tmp_path / "without", tmp_path / "stopped"
    assert search([*TINY, "--seed", "3", "--out", str(without)]) == 0
    assert not (without / "snapshots").exists()
    with monkeypatch.context() as patch:
        stop_after(8, patch)
        assert search([*TINY, "--seed", "3", "--snapshots", "--out", str(stopped)]) == 130
    assert search(["--resume", str(stopped)]) == 0
    for folder in (runs / "seed-3", stopped):
        assert sorted(path.name for path in (folder / "snapshots").iterdir()) == [
            f"epoch-0{epoch}.pt" for epoch in (1, 2, 3)
        ]
        lines, expected = RunFolder(folder).metrics(), RunFolder(without).metrics()
        for line in (*lines, *expected):
            del line["seconds"]
        assert lines == expected
    first, last = (
        checkpoint.load(runs / "seed-3" / "snapshots" / f"epoch-0{epoch}.pt", SNAPSHOT) for epoch in (1, 3)
    )
    assert (first["alpha"] == 0.2).all(), "taken before the pruning"
    end = checkpoint.load(without / "checkpoint.pt")
    assert torch.equal(last["alpha"], end["alpha"]) and last["epoch"] == 3
    assert all(torch.equal(last["supernet"][name], value) for name, value in end["supernet"].items())


def test_a_snapshot_evaluates_as_its_supernet_did(runs: Path, table: Path) -> None:
    """The stored weights give the evaluation that a fresh loop over the plain modules gives."""
    _, config = RunFolder.open(runs / "seed-3")
    run = evaluate_run(runs / "seed-3", config, data=None, images=20, every=1, reuse=False)
    assert [snapshot.epoch for snapshot in run.snapshots] == [1, 2, 3] and run.images == 20
    whole = Search(config, load("digits"), RunFolder(runs / "seed-3"), observer=None)  # type: ignore[arg-type]
    whole.resume()
    drawn = torch.randperm(32, generator=stream(config.search.seed, "analysis images"))[:20]
    batches = [whole.validation.batch(drawn)]
    for way, found in run.snapshots[-1].evaluations.items():
        if way == TAYLOR:
            expected = taylor(whole.state.supernet, batches, whole.state.alpha, nones=NONES)
        else:
            mode: Any = way
            expected = leave_one_out(
                whole.state.supernet, batches, whole.state.alpha, batch_norm=mode, batched=False
            )
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-4)
        assert found.images == expected.images == 20
    verdicts = judge(run, true_ranks(BenchmarkTable.load(table), COLUMNS[0]), BenchmarkTable.load(table))
    alphas = [verdict.epoch for verdict in verdicts if verdict.signal == Signal("alpha")]
    assert alphas == [2, 3], "before it has trained, alpha says nothing"
    assert len(verdicts) == 3 * len(SIGNALS) - 1


# --- the command line --------------------------------------------------------------------------


def test_two_seeds_from_the_command_line(
    runs: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [str(runs), "--benchmark-table", str(table), "--images", "16", "--threads", "1"]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "True ranking" in printed and "seeds 3, 7; 16 images" in printed and "±" in printed
    for folder in (out, runs / "seed-3", runs / "seed-7"):
        assert {"kendall.json", "kendall.csv", "kendall.png"} <= {path.name for path in folder.iterdir()}
    content = json.loads((out / "kendall.json").read_text())
    assert [run["seed"] for run in content["runs"]] == [3, 7]
    assert content["true_ranks"] == true_ranks(additive_table(), COLUMNS[0]).tolist()
    per_run = [run["signals"] for run in content["runs"]]
    for number, summary in enumerate(content["summary"]):
        pair = [signals[number] for signals in per_run]
        for entry in pair:
            assert [entry[key] for key in ("epoch", "criterion", "batch_norm")] == [
                summary[key] for key in ("epoch", "criterion", "batch_norm")
            ]
            assert entry["index"] == Genotype.from_string(entry["architecture"]).index
            assert entry["benchmark"] == additive_table().accuracy(entry["index"])
            defined = [value for value in entry["tau"] if value is not None]
            assert entry["mean_tau"] == pytest.approx(sum(defined) / len(defined))
        assert summary["tau"]["mean"] == pytest.approx(sum(entry["mean_tau"] for entry in pair) / 2)
    with (out / "kendall.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(map(len, per_run))
    assert [row["arch"] for row in rows] == [entry["architecture"] for run in per_run for entry in run]


def test_ops_are_removed_as_asked(
    runs: Path, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As leave-one-out does, in every mode; files and tables say how."""
    asked: list[str] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        asked.append(options["removal"])
        return leave_one_out(*arguments, **options)

    monkeypatch.setattr("vpdarts_fast.analysis.evaluation.leave_one_out", spy)
    arguments = [str(runs / "seed-3"), "--benchmark-table", str(table), "--images", "16", "--every", "9"]
    losses = {}
    for removal in ("zero", "renormalised"):
        assert main([*arguments, "--removal", removal]) == 0
        assert f"16 images; removal {removal}" in " ".join(capsys.readouterr().out.split())
        content = json.loads((runs / "seed-3" / "kendall.json").read_text())
        assert content["removal"] == removal
        evaluations = content["snapshots"][-1]["evaluations"]
        losses[removal] = {mode: torch.tensor(evaluations[mode]["loss"]) for mode in MODES}
    assert asked == ["zero"] * 2 * len(MODES) + ["renormalised"] * 2 * len(MODES)
    for mode in MODES:
        zero, renormalised = losses["zero"][mode], losses["renormalised"][mode]
        assert torch.equal(zero[:, 0], renormalised[:, 0]), "without `none` it is the unmodified supernet"
        assert not torch.equal(zero[:, 1:], renormalised[:, 1:])


def test_reuse_computes_nothing_twice(
    runs: Path, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the last snapshot and every second, then the rest; otherwise removed or on other images, all."""
    evaluated: list[str] = []
    real = leave_one_out

    def spy(*arguments: Any, **options: Any) -> Any:
        evaluated.append(options["batch_norm"])
        return real(*arguments, **options)

    monkeypatch.setattr("vpdarts_fast.analysis.evaluation.leave_one_out", spy)
    arguments = [str(runs / "seed-3"), "--benchmark-table", str(table), "--images", "16", "--reuse"]
    assert main([*arguments, "--every", "2"]) == 0 and len(evaluated) == 2 * len(MODES)
    halves = json.loads((runs / "seed-3" / "kendall.json").read_text())
    assert [snapshot["epoch"] for snapshot in halves["snapshots"]] == [1, 3]
    assert main(arguments) == 0 and len(evaluated) == 3 * len(MODES)
    whole = json.loads((runs / "seed-3" / "kendall.json").read_text())
    assert [whole["snapshots"][0], whole["snapshots"][2]] == halves["snapshots"]
    for _ in range(2):
        assert main([*arguments, "--removal", "renormalised"]) == 0 and len(evaluated) == 6 * len(MODES)
    assert main([*arguments, "--images", "8"]) == 0 and len(evaluated) == 9 * len(MODES)
    (runs / "seed-3" / "kendall.json").write_text('{"snapshots": [{}]}')
    assert "kendall.json is damaged" in error_of(arguments, capsys)


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says on its way out with status 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    return captured.err


def change_snapshot(**entries: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = checkpoint.load(path, SNAPSHOT)
        checkpoint.save(path, {**content, **entries}, SNAPSHOT)

    return change


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-500]), "damaged or not a search snapshot"),
        (lambda path: torch.save({"supernet": {}}, path), "holds no search snapshot"),
        (lambda path: checkpoint.save(path, {}), "holds no search snapshot"),
        (change_snapshot(supernet={}), "does not fit the settings of its run"),
        (change_snapshot(alpha=torch.ones(3, 5)), "does not fit the settings of its run: alpha is [3, 5]"),
        (change_snapshot(alive=torch.ones(6, 5)), "does not fit the settings of its run: alive is"),
        (change_snapshot(epoch=None), "does not fit the settings of its run"),
    ],
)
def test_bad_snapshots(
    spoil: Callable[[Path], None], complaint: str, runs: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(runs / "seed-3" / "snapshots" / "epoch-01.pt")
    said = error_of([str(runs / "seed-3"), "--benchmark-table", str(table)], capsys)
    assert "epoch-01.pt" in said and complaint in said


def test_what_it_refuses(runs: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = str(runs / "seed-3"), str(runs / "seed-7")
    known = ["--benchmark-table", str(table)]
    assert "holds no config.json" in error_of([str(tmp_path / "nowhere"), *known], capsys)
    assert "cannot read benchmark table" in error_of([first, "--benchmark-table", "nowhere.csv"], capsys)
    assert "no column 'accuracy'" in error_of([first, *known, "--column", "accuracy"], capsys)
    assert "a run is named twice" in error_of([first, str(runs), *known], capsys)
    assert "--device must be" in error_of([first, *known, "--device", "abacus"], capsys)
    path = runs / "seed-7" / "config.json"
    rewrite(path, SETTINGS, **edited(SETTINGS.read_json(path), alpha_start=1.0))
    said = error_of([first, second, *known], capsys)
    assert "are not seeds of one search: alpha_start is None and 1.0" in said
    shutil.rmtree(runs / "seed-3" / "snapshots")
    assert "has no snapshots: run the search with --snapshots" in error_of([first, *known], capsys)
    (tmp_path / "file").touch()
    rewrite(path, SETTINGS, **edited(SETTINGS.read_json(path), alpha_start=None))
    said = error_of([second, *known, "--images", "8", "--out", str(tmp_path / "file")], capsys)
    assert "cannot make the folder" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["RUN", "--images", "0"], "--images must be at least 1; got 0"),
        (["RUN", "--every", "0"], "--every must be at least 1; got 0"),
        (["--every", "1"], "name at least one RUN"),
    ],
)
def test_bad_flags(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(arguments)
    assert exit_status.value.code == 2
    shown = capsys.readouterr()
    assert complaint in " ".join((shown.out + shown.err).replace("│", " ").split())


def test_relaxed_alphas_are_evaluated_as_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a search by softmax: removals from the softmax, which is also what alpha says of the ops."""
    monkeypatch.setattr(running, "draw_pictures", lambda folder: [])
    folder = tmp_path / "run"
    assert search([*TINY, "--method", "darts", "--snapshots", "--out", str(folder)]) == 0
    run, config = RunFolder.open(folder)
    (*_, last) = evaluate_run(folder, config, data=None, images=16, every=1, reuse=False).snapshots
    whole = Search(config, load("digits"), run, observer=None)  # type: ignore[arg-type]
    whole.resume()
    weights = whole.state.alpha.detach().softmax(1)
    drawn = torch.randperm(32, generator=stream(config.search.seed, "analysis images"))[:16]
    expected = leave_one_out(whole.state.supernet, [whole.validation.batch(drawn)], weights)
    torch.testing.assert_close(last.evaluations["recalibrated"].loss, expected.loss, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last.strength, weights)
