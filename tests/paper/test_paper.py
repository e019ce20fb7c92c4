"""Tables and figures of many runs: what is run, that it goes on where it stopped, and what is reported."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.errors import UserError
from vpdarts_fast.paper import rows, tabular
from vpdarts_fast.paper.__main__ import main
from vpdarts_fast.paper.outcome import Outcome, csv_text, markdown, spread
from vpdarts_fast.paper.published import COLUMNS, TABLE_1, TABLE_2, TABLE_3
from vpdarts_fast.paper.rows import COMMON, EPOCHS, Row, config_of, own_settings, rows_of, shared_settings
from vpdarts_fast.paper.tabular import tabular_outcome
from vpdarts_fast.search import RunFolder, SearchConfig
from vpdarts_fast.search.__main__ import main as search
from vpdarts_fast.search.jobs import queue
from vpdarts_fast.search.jobs.job import Job
from vpdarts_fast.search.jobs.local import LocalWorkers
from vpdarts_fast.search.jobs.queue import Ended
from vpdarts_fast.search.methods.recipes import LINEAGES, RECIPES
from vpdarts_fast.search.methods.schedules import Greedy, Perturbation, WarmUpAndPruning
from vpdarts_fast.search.tabular.random_search import RandomSearch
from vpdarts_fast.spaces.nas_bench_201 import NasBench201

# What is run ------------------------------------------------------------------------------------------------


def test_the_tables_have_the_paper_s_rows() -> None:
    for what, published in (("table1", TABLE_1), ("table2", TABLE_2), ("table3", TABLE_3)):
        assert [row.name for row in rows_of(what, ())] == list(published)  # type: ignore[arg-type]
    (alpha, accuracy) = (config_of(row, "paper", "autodl", {}) for row in rows_of("table3", ()))
    assert alpha.method.pruning == accuracy.method.pruning and alpha.method.pruning.name == "soft"
    assert alpha.flat()["decay"] == accuracy.flat()["decay"] == "fixed", "both with fixed K"
    assert [row.settings["validation_proportion"] for row in rows_of("figure8", ())] == [
        0.1,
        0.3,
        0.5,
        0.7,
        1.0,
    ]
    assert [row.name for row in rows_of("figure5", ())] == ["darts-snapshots"]
    with pytest.raises(UserError, match="--methods magic is not known; there are random, reinforce"):
        rows_of("table1", ["magic"])
    with pytest.raises(UserError, match="figure8 is about supernets; --methods random has none"):
        rows_of("figure8", ["random"])


@pytest.mark.parametrize("lineage", ["autodl", "quark0"])
def test_all_methods_share_their_conditions_and_keep_their_parts(lineage: str) -> None:
    own_kinds = (
        "relaxation",
        "variation",
        "alpha_rule",
        "regulariser",
        "criterion",
        "pruning",
        "alpha_start",
    )
    for size, epochs in EPOCHS.items():
        configs = {name: config_of(Row(name, name), size, lineage, {}) for name in RECIPES}
        shared = shared_settings(list(configs.values()))
        assert {*COMMON, *LINEAGES[lineage]} - {"split"} <= set(shared)
        for name, config in configs.items():
            own, flat = SearchConfig().replaced(recipe=name).flat(), config.flat()
            assert {kind: flat[kind] for kind in own_kinds} == {kind: own[kind] for kind in own_kinds}
            assert config.epochs == epochs or not config.method.schedule.prunes
            assert abs(config.epochs - epochs) <= 2
            assert SearchConfig.from_json(config.to_json(), "config.json") == config
            for setting, (theirs, here) in own_settings(Row(name, name), config).items():
                assert theirs == own.get(setting) and here == flat[setting] and theirs != here


def test_schedules_of_another_length_keep_their_proportions() -> None:
    space = NasBench201()
    assert WarmUpAndPruning().of_length(25, space) == WarmUpAndPruning(10, 15)
    assert WarmUpAndPruning(15, 35).of_length(10, space) == WarmUpAndPruning(3, 7)
    greedy = Greedy().of_length(20, space)
    assert greedy == Greedy(commit_after=8, commit_every=2) and greedy.epochs(space) == 20
    assert Greedy().of_length(1, space).epochs(space) == 7, "as many decisions, at least an epoch for each"
    perturbing = Perturbation().of_length(25, space)
    assert perturbing == Perturbation(training_epochs=19, tuning_epochs=1) and perturbing.epochs(space) == 25
    assert Perturbation().of_length(125, space) == Perturbation()


# What becomes of it -----------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of a moment."""
    size = {"dataset": "digits", "channels": 4, "cells_per_stage": 1, "max_images": 48}
    monkeypatch.setattr(rows, "SIZES", {"quick": size})
    monkeypatch.setattr(rows, "EPOCHS", {"quick": 3})


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each search runs to its end in this process, which takes less time than to start another."""

    class Here:
        def __init__(self, status: int) -> None:
            self.status = status

        def ended(self) -> Ended:
            return Ended(f"status {self.status}", lost=False)

    def start(workers: LocalWorkers, job: Job) -> Here:
        return Here(search(["--resume", str(job.folder), "--threads", str(workers.threads)]))

    monkeypatch.setattr(LocalWorkers, "start", start)
    monkeypatch.setattr(queue, "POLL", 0.0)


def of_table3(folder: Path, *more: str) -> int:
    return main(["table3", "--seeds", "0", "1", "--jobs", "2", "--out", str(folder), *more])


@pytest.mark.usefixtures("tiny", "here", "no_pictures")
def test_a_table_from_the_first_run_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["table9"])
    capsys.readouterr()
    assert of_table3(tmp_path, "--report-only") == 2
    assert "there is nothing to report: no search in" in capsys.readouterr().err
    assert of_table3(tmp_path / "none", "--ray", "nowhere") == 2
    assert "cannot join the Ray cluster at nowhere" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert of_table3(tmp_path) == 0
    said = capsys.readouterr().out
    assert "Table 3" in said and "88.86 ± 1.49" in said
    results = {
        name: [RunFolder(tmp_path / name / f"seed-{seed}").result() for seed in (0, 1)] for name in TABLE_3
    }
    lines = list(csv.DictReader((tmp_path / "table3.csv").open()))
    assert [(line["method"], line["dataset"]) for line in lines] == [
        (name, data) for name in TABLE_3 for data in COLUMNS
    ]
    for line in lines:
        found = [result["benchmark"][COLUMNS[line["dataset"]]] for result in results[line["method"]]]  # type: ignore[index]
        assert float(line["mean"]) == pytest.approx(np.mean(found))
        assert float(line["variance"]) == pytest.approx(np.var(found, ddof=1))
        seconds = [sum(result["seconds"].values()) for result in results[line["method"]]]  # type: ignore[index]
        assert float(line["seconds"]) == pytest.approx(np.mean(seconds))
    text = (tmp_path / "table3.md").read_text()
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert len(links) == 4 and all((tmp_path / link / "result.json").exists() for link in links)
    assert "weight_decay 0.0005" in text and "alpha_rate_scaling True (own: False)" in text
    assert (tmp_path / "table3.png").stat().st_size > 10_000

    def none(*arguments: Any, **options: Any) -> None:
        raise AssertionError("what is finished is kept")

    monkeypatch.setattr(LocalWorkers, "start", none)
    assert of_table3(tmp_path) == 0
    assert (tmp_path / "table3.md").read_text() == text
    assert main(["table2", "--methods", "vp-darts-fixed", "--seeds", "1", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert of_table3(tmp_path, "--lineage", "quark0") == 2
    error = capsys.readouterr().err
    assert "holds a run with other settings; choose another --out" in error and "--weight-decay" in error


@pytest.mark.usefixtures("tiny", "here", "no_pictures")
def test_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Shares of the validation images, and tau of the snapshots of DARTS."""
    monkeypatch.setattr(rows, "PROPORTIONS", (0.1, 1.0))
    asked = ["--jobs", "2", "--out", str(tmp_path), "--seeds", "0"]
    assert main(["figure8", "--methods", "vp-darts-fixed", *asked]) == 0
    for share in (10, 100):
        result = RunFolder(tmp_path / f"vp-darts-fixed-{share}-percent" / "seed-0").result()
        assert result is not None and result["importance"]["images"] == max(1, round(24 * share / 100))
    assert (tmp_path / "figure8.png").stat().st_size > 10_000
    assert main(["figure5", *asked, "1"]) == 0
    said = capsys.readouterr().out
    assert "the paper's tau: -0.2 by alpha, 0.6 by accuracy" in said
    analysis = json.loads((tmp_path / "figure5" / "kendall.json").read_text())
    assert [run["seed"] for run in analysis["runs"]] == [0, 1]
    assert (tmp_path / "figure5" / "kendall.png").exists() and (tmp_path / "figure5.csv").exists()


# Methods over a table ---------------------------------------------------------------------------------------


def test_runs_over_the_table_are_kept_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, method = tmp_path / "random" / "runs.json", RandomSearch()
    first = tabular_outcome(method, 5, 3, path, TABLE_1["random"])
    assert first.runs == 5 and not first.seconds
    found = json.loads(path.read_text())["found"]
    column = BenchmarkTable.published().column("cifar10_test_200ep")
    assert list(first.accuracies["CIFAR-10"]) == column[found].tolist()
    with monkeypatch.context() as patch:
        patch.setattr(tabular, "search_table", None)
        assert tabular_outcome(method, 5, 3, path, None).accuracies == first.accuracies
    assert tabular_outcome(method, 6, 3, path, None).runs == 6, "of other runs it is written anew"
    content = json.loads(path.read_text())
    content["found"][0] = 10**6
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"runs.json is damaged.*remove it to have them run again"):
        tabular_outcome(method, 6, 3, path, None)


def test_a_report_without_spread_and_without_a_paper() -> None:
    one = Outcome("mine", None, {data: [90.0] for data in COLUMNS}, [12.0], [Path("runs/a")], ["cell"])
    text = markdown("Title", [one], Path("runs"), ["a note"])
    assert "| mine | 1 | 90.00 |  | 90.00 |  | 90.00 |  | 12 |  | [90.00](a) |" in text and "a note" in text
    assert csv_text([one], Path("runs")).splitlines()[1] == "mine,1,CIFAR-10,90.0,,,12.0,,,,a"
    assert spread([1.0]) == (1.0, None, None) and spread([1.0, 3.0])[2] == 2.0
