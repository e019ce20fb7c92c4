"""Committees: several supernets, one decision; each by streams of its own, and nothing lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from search_calls import SHORT, TINY, Watcher, outcome, run, stop_at
from search_commands import TINY as FLAGS

from vpdarts_fast.analysis.evaluation import evaluate_run
from vpdarts_fast.data import ImageData
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.validation import mean_of
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.formats import SNAPSHOT
from vpdarts_fast.search import Interrupted, RunFolder, preflight
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.methods.criteria import AccuracyCriterion
from vpdarts_fast.search.records import evaluation_from_json
from vpdarts_fast.spaces.nas_bench_201.genotype import Genotype

pytestmark = pytest.mark.usefixtures("one_thread")

TWO = SHORT.replaced(committee=2)


@pytest.fixture(scope="module")
def two(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of a search by two supernets that nobody stopped."""
    folder = tmp_path_factory.mktemp("two") / "run"
    run(TWO, digits, folder)
    return outcome(folder)


def test_the_first_member_warms_up_as_a_search_without_others_does(
    digits: ImageData, two: dict[str, Any], tmp_path: Path
) -> None:
    run(SHORT, digits, tmp_path / "one")
    alone, first, second = outcome(tmp_path / "one")["metrics"][0], *two["metrics"][0]["members"]
    assert alone["members"] == []
    for name in ("weights_loss", "weights_accuracy"):
        assert first[name] == alone[name]
        assert two["metrics"][0][name] == pytest.approx((first[name] + second[name]) / 2)
    assert second["weights_loss"] != alone["weights_loss"]
    assert first["alpha"] == second["alpha"] == alone["alpha"], "alpha does not train yet"


def test_importance_is_the_mean_of_the_members(two: dict[str, Any]) -> None:
    assert len(two["metrics"]) == 3
    lines = two["metrics"][1:]
    for line in (*lines, {**two["result"], "genotype": two["result"]["architecture"]}):
        evaluations = [evaluation_from_json(member["importance"]) for member in line["members"]]
        mean = evaluation_from_json(line["importance"])
        assert not torch.equal(evaluations[0].loss, evaluations[1].loss)
        torch.testing.assert_close(mean.accuracy, (evaluations[0].accuracy + evaluations[1].accuracy) / 2)
        torch.testing.assert_close(mean.loss, (evaluations[0].loss + evaluations[1].loss) / 2)
        assert mean.images == evaluations[0].images
        alive = torch.ones(6, 5, dtype=torch.bool)
        for evaluation, chosen in zip(
            (mean, *evaluations), (line, *line["members"]), strict=True
        ):  # each member says what it would take by itself
            ranking = AccuracyCriterion().importance(torch.zeros(6, 5), evaluation).ranking(alive)
            assert chosen["genotype"] == str(Genotype.from_choices(ranking[:, 0].tolist()))
    assert lines[0]["members"][0]["alpha"] != lines[0]["members"][1]["alpha"]
    alphas = torch.tensor([member["alpha"] for member in lines[1]["members"]])
    torch.testing.assert_close(torch.tensor(lines[1]["alpha"]), alphas.mean(0))


def test_the_decision_prunes_the_same_ops_of_all(digits: ImageData, tmp_path: Path) -> None:
    """Progressive pruning leaves them at 0."""
    config = TWO.replaced(pruning="progressive", pruning_epochs=3)
    run(config, digits, tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    (other,) = saved["members"]
    assert torch.equal(saved["alive"], other["alive"]) and not saved["alive"].all()
    assert not saved["alpha"][~saved["alive"]].any() and not other["alpha"][~other["alive"]].any()
    assert not torch.equal(saved["alpha"], other["alpha"])


# Two epochs of two steps for each, and an end; two evaluation batches for each, once and at the end.
STOPS = 2 * (2 * 2 + 1) + 2 * 2 * 2


def test_an_interrupted_committee_ends_the_same(digits: ImageData, tmp_path: Path) -> None:
    """Stopped in each member's part of the warm-up, an evaluation, a pruning epoch and the end."""
    config = TWO.replaced(pruning_epochs=1, batch_norm="running")
    run(config, digits, tmp_path / "whole")
    whole = outcome(tmp_path / "whole")
    for call in (1, 3, 4, 6, 7, 9, 12, STOPS - 1):
        folder = tmp_path / str(call)
        with pytest.raises(Interrupted):
            run(config, digits, folder, stop_at(call))
        run(config, digits, folder)
        assert outcome(folder) == whole, f"stopped at call {call}"
    run(config, digits, tmp_path / "more", stop_at(STOPS))
    assert outcome(tmp_path / "more") == whole, "there was no further call"


def test_a_checkpoint_of_fewer_members_is_refused(digits: ImageData, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(TWO, digits, folder, stop_at(7))
    content = checkpoint.load(folder / "checkpoint.pt")
    for members, complaint in (
        ([], "it holds 1 of the committee's 2 supernets"),
        ([3], "a member"),
        ([{**content["members"][0], "alpha": torch.ones(2)}], "alpha is"),
    ):
        checkpoint.save(folder / "checkpoint.pt", {**content, "members": members})
        with pytest.raises(UserError, match=complaint):
            run(TWO, digits, folder)


def test_progress_names_the_supernet(digits: ImageData, tmp_path: Path) -> None:
    watcher = Watcher()
    run(TWO, digits, tmp_path / "run", watcher=watcher)
    assert [phase for phase, _, _ in watcher.phases[:4]] == [
        "warm-up 1/2", "warm-up 2/2", "leave-one-out 1/2", "leave-one-out 2/2",
    ]  # fmt: skip
    assert watcher.positions == sorted(watcher.positions) and watcher.positions[-1] <= SHORT.epochs


def test_snapshots_of_a_committee_are_evaluated_as_it_was(digits: ImageData, tmp_path: Path) -> None:
    """The mean of what each member's weights give alone."""
    config = TWO.replaced(snapshots=True)
    run(config, digits, tmp_path / "both")
    both = evaluate_run(tmp_path / "both", config, data=None, images=20, every=9, reuse=False).snapshots[-1]
    path = tmp_path / "both" / "snapshots" / "epoch-03.pt"
    content = checkpoint.load(path, SNAPSHOT)
    evaluations = []
    for member in (content, {**content["members"][0]}):
        checkpoint.save(path, {**member, "members": []}, SNAPSHOT)
        one = evaluate_run(tmp_path / "both", config, data=None, images=20, every=9, reuse=False)
        evaluations.append(one.snapshots[-1].evaluations)
    assert not torch.equal(evaluations[0]["running"].loss, evaluations[1]["running"].loss)
    for mode, found in both.evaluations.items():
        expected = mean_of([evaluation[mode] for evaluation in evaluations])
        assert torch.equal(found.loss, expected.loss) and torch.equal(found.accuracy, expected.accuracy)
    alphas = torch.stack([content["alpha"], content["members"][0]["alpha"]])
    assert torch.equal(both.strength, alphas.mean(0).abs())


def test_the_preset_cpu_is_a_committee_that_is_evaluated_once_and_finalists(
    tmp_path: Path, pictures: None
) -> None:
    folder = tmp_path / "run"
    small = ["--dataset", "digits", "--channels", "2", "--cells-per-stage", "1", "--committee", "3"]
    size = ["--max-images", "64", "--batch-size", "16", "--warmup-epochs", "1", "--threads", "1"]
    short = ["--finalist-channels", "1", "--finalist-cells-per-stage", "1", "--finalist-steps", "2"]
    short += ["--finalist-budget", "32"]
    assert main(["--preset", "cpu", *small, *size, *short, "--out", str(folder)]) == 0
    (line,) = (json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines())
    assert line["phase"] == "warm-up" and line["importance"] is None
    result = json.loads((folder / "result.json").read_text())
    evaluations = [evaluation_from_json(member["importance"]) for member in result["members"]]
    assert len(evaluations) == 3 and result["importance"]["batch_norm"] == "variant"
    mean = torch.stack([evaluation.loss for evaluation in evaluations]).mean(0)
    finalists = result["finalists"]
    assert finalists["search"]["architecture"] == str(Genotype.from_choices(mean.argmax(1).tolist()))
    assert len(finalists["rounds"][0]["rungs"][0]["cells"]) == 12
    assert {"cell.png", "cell.svg", "curves.png"} <= {path.name for path in folder.iterdir()}


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main([*FLAGS, "--committee", "2", "--out", str(folder)]) == 0
    output = capsys.readouterr().out
    for number in (1, 2):
        assert output.count(f"  supernet {number}  weights ") == 3, "epochs"
        assert output.count(f"  supernet {number}  alone |") == 1, "the result"
    result = json.loads((folder / "result.json").read_text())
    assert [len(member["alpha"]) for member in result["members"]] == [6, 6]
    assert RunFolder(folder).result() is not None


def test_several_supernets_need_more_memory(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that has room for twenty, whatever this one has."""
    one = 4 * 3 * TINY.space.parameters(10)
    monkeypatch.setattr(preflight, "memory_of", lambda device: 20 * one)
    preflight.check_memory(TINY.replaced(batch_size=2), digits, torch.device("cpu"))
    many = TINY.replaced(batch_size=2, committee=21)
    with pytest.raises(UserError, match=r"choose a smaller --committee \(21\)"):
        preflight.check_memory(many, digits, torch.device("cpu"))
