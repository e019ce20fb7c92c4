"""Several runs compared: what belongs together, means over seeds, what is drawn and written."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from pathlib import Path

import pytest
from search_commands import TINY, stop_after

from vpdarts_fast.report.__main__ import main
from vpdarts_fast.report.comparison import Spread, compare, run_folders
from vpdarts_fast.search import RunFolder, running
from vpdarts_fast.search.__main__ import main as search
from vpdarts_fast.search.ranking import kendall_tau, true_ranks

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMN = "cifar10_test_200ep"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DARTS from two seeds, VP-DARTS from one, and one that was stopped."""
    root = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "draw_pictures", lambda folder: [])
        assert search([*TINY, "--method", "darts", "--seeds", "0", "1", "--out", str(root / "darts")]) == 0
        assert search([*TINY, "--out", str(root / "vp")]) == 0
        with patch.context() as stopping:
            stop_after(8, stopping)
            assert search([*TINY, "--decay", "fixed", "--out", str(root / "stopped")]) == 130
    return root


def test_seeds_of_a_method_belong_together(searched: Path) -> None:
    folders = run_folders([searched / "darts", searched / "vp", searched / "stopped"])
    assert [folder.name for folder in folders] == ["seed-0", "seed-1", "vp", "stopped"]
    darts, vp, stopped = compare(folders)
    assert [len(each.folders) for each in (darts, vp, stopped)] == [2, 1, 1]
    assert darts.label == "darts" and vp.label == "vp-darts (decay adjustable)"
    assert stopped.label == "vp-darts (decay fixed)" and (vp.finished, stopped.finished) == (1, 0)
    results = [RunFolder(searched / "darts" / f"seed-{seed}").result() for seed in (0, 1)]
    found = [result["benchmark"][COLUMN] for result in results if result]
    last = darts.points[-1]
    assert (last.epoch, last.runs) == (3, 2)
    assert last.accuracies[COLUMN].mean == pytest.approx(statistics.fmean(found))
    assert last.accuracies[COLUMN].deviation == pytest.approx(statistics.stdev(found))
    assert last.seconds == pytest.approx(statistics.fmean(sum(r["seconds"].values()) for r in results if r))
    metrics = RunFolder(searched / "vp").metrics()
    assert vp.points[2].accuracies[COLUMN].mean == metrics[2]["benchmark"][COLUMN]
    assert vp.points[2].seconds == pytest.approx(sum(sum(m["seconds"].values()) for m in metrics[:2]))
    assert not vp.points[0].accuracies and vp.points[0].tau is None, "there is no cell in the warm-up"
    assert len(stopped.points) < len(vp.points)


def test_tau_is_that_of_the_method_s_own_ranking(searched: Path) -> None:
    """By leave-one-out of VP-DARTS, and by alpha's softmax of DARTS; from the files alone."""
    import torch

    from vpdarts_fast.benchmark_table import BenchmarkTable
    from vpdarts_fast.search.methods.criteria import AccuracyCriterion, AlphaCriterion
    from vpdarts_fast.search.records import evaluation_from_json

    ranks = true_ranks(BenchmarkTable.published(), COLUMN)

    def mean(taus: object) -> float:
        return statistics.fmean(tau for tau in taus if tau == tau)  # type: ignore[attr-defined]

    for line in RunFolder(searched / "vp").metrics()[1:]:
        importance = AccuracyCriterion().importance(
            torch.zeros(6, 5), evaluation_from_json(line["importance"])
        )
        assert line["tau"] == pytest.approx(mean(kendall_tau(importance, ranks)))
    _, before, after = RunFolder(searched / "darts" / "seed-0").metrics()
    alpha = torch.tensor(before["alpha"], dtype=torch.float64)
    importance = AlphaCriterion().importance(alpha.softmax(1), None)
    assert before["tau"] is None and after["tau"] == pytest.approx(mean(kendall_tau(importance, ranks)))


def test_the_command(searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    runs = [str(searched / name) for name in ("darts", "vp")]
    assert main([*runs, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "darts" in said and "vp-darts" in said and str(out / "comparison.png") in said
    assert (out / "comparison.png").stat().st_size > 10_000
    values = json.loads((out / "comparison.json").read_text())
    lines = list(csv.DictReader((out / "comparison.csv").open()))
    assert [each["label"] for each in values] == ["darts", "vp-darts"]
    assert len(lines) == sum(len(each["points"]) for each in values)
    last = values[0]["points"][-1]["accuracies"][COLUMN]
    (line,) = [line for line in lines if line["method"] == "darts" and line["epoch"] == "3"]
    assert float(line[COLUMN]) == last["mean"] and float(line[f"{COLUMN}_deviation"]) > 0


def test_what_cannot_be_compared(searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vp = str(searched / "vp")
    for arguments, reason in (
        ([], "name at least one RUN"),
        ([vp, vp], "a run is named twice"),
        ([vp, str(tmp_path)], "holds no run that has finished an epoch: there is no metrics.jsonl"),
        ([vp, str(searched / "darts"), "--column", "cifar9"], "no run has an accuracy cifar9 (--column)"),
    ):
        assert main(arguments) == 2
        assert reason in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("")
    assert main([vp, str(searched / "darts"), "--out", str(file / "x")]) == 2
    assert "cannot make the folder" in capsys.readouterr().err
    damaged = tmp_path / "damaged"
    shutil.copytree(searched / "vp", damaged)
    (damaged / "config.json").write_text("{}")
    assert main([vp, str(damaged)]) == 2
    assert "config.json is damaged" in capsys.readouterr().err


def test_spreads() -> None:
    assert Spread.of([]) is None and Spread.of([float("nan")]) is None
    assert Spread.of([1.0, float("nan")]) == Spread(1.0, 0.0)
    assert Spread.of([1.0, 3.0]) == Spread(2.0, pytest.approx(2**0.5))
