"""Searches with finalists: what they write, that they go on where they were stopped, and what they refuse."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from places import VERSION_1
from search_calls import Watcher, outcome, run, without_seconds
from search_commands import TINY, error_of, rewrite
from small_tables import additive_table

from vpdarts_fast.data import ImageData
from vpdarts_fast.errors import UserError
from vpdarts_fast.report.finalists import finalists_figure
from vpdarts_fast.report.pictures import draw_pictures
from vpdarts_fast.report.run_files import read_run
from vpdarts_fast.runs.formats import RESULT, SETTINGS
from vpdarts_fast.search import Interrupted, RunFolder, SearchConfig, member, preflight
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.spaces.nas_bench_201.genotype import Genotype

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = SearchConfig().replaced(
    preset="quick", dataset="digits", max_images=64, channels=2, cells_per_stage=1, warmup_epochs=1,
    pruning_epochs=2, batch_size=16, evaluation_batch_size=8, device="cpu", finalists=3, finalist_channels=2,
    finalist_cells_per_stage=1, finalist_steps=2, finalist_budget=60, finalist_margin=0.01,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watcher]:
    """A search that was not interrupted, and what was heard of it."""
    folder, watcher = tmp_path_factory.mktemp("finished") / "run", Watcher()
    run(CONFIG, digits, folder, watcher=watcher, table=additive_table())
    return folder, watcher


def test_the_result_has_all_finalists_and_both_answers(finished: tuple[Path, Watcher]) -> None:
    folder, watcher = finished
    result = RunFolder(folder).result()
    assert result is not None
    entry, table = result["finalists"], additive_table()
    search = Genotype.from_string(entry["search"]["architecture"])
    accuracy = torch.tensor(result["importance"]["accuracy"])
    loss = torch.tensor(result["importance"]["loss"])
    for choice, row, losses in zip(search.choices, accuracy, loss, strict=True):
        assert row[choice] == row.min() and losses[choice] == losses[row == row.min()].max()
    assert (
        result["architecture"] == entry["rounds"][-1]["winner"] and entry["search"]["index"] == search.index
    )
    assert result["benchmark"] == table.accuracy(Genotype.from_string(result["architecture"]))
    trainings = {
        (cell["architecture"], rung["steps"], seed)
        for played in entry["rounds"]
        for rung in played["rungs"]
        for cell in rung["cells"]
        for seed in range(len(cell["accuracy"]))
    }
    assert entry["steps"] == sum(steps for _, steps, _ in trainings) <= CONFIG.search.finalist_budget
    assert {architecture for architecture, _, _ in trainings} == set(entry["benchmark"])
    for architecture, benchmark in entry["benchmark"].items():
        assert benchmark == table.accuracy(Genotype.from_string(architecture))
    first = entry["rounds"][0]
    assert first["incumbent"] == str(search) == first["rungs"][0]["cells"][0]["architecture"]
    assert first["rungs"][0]["images"] == 16 and len(first["rungs"][0]["cells"]) == CONFIG.search.finalists
    earlier = [epoch["genotype"] for epoch in RunFolder(folder).metrics() if epoch["genotype"]]
    others = [cell for cell in reversed(earlier) if cell != str(search)]
    assert others and first["rungs"][0]["cells"][1]["architecture"] == others[0]
    assert result["seconds"]["finalists"] > 0 and result["seconds"].keys() >= {"train", "leave_one_out"}
    rungs = [rung for played in entry["rounds"] for rung in played["rungs"]]
    assert [rung.steps for rung in watcher.rungs] == [rung["steps"] for rung in rungs]
    assert watcher.phases[-1] == ("finalists", CONFIG.search.finalist_budget, 0)
    heard = watcher.done[-entry["steps"] :]
    assert heard == sorted(heard) and heard[-1] == entry["steps"], "the last is the batch that judges"


def test_without_finalists_the_search_comes_to_the_same_cell(
    finished: tuple[Path, Watcher], digits: ImageData, tmp_path: Path
) -> None:
    result = run(CONFIG.replaced(finalists=0), digits, tmp_path / "run")
    with_them = RunFolder(finished[0]).result()
    assert with_them is not None and result["finalists"] is None and "finalists" not in result["seconds"]
    assert result["architecture"] == with_them["finalists"]["search"]["architecture"]
    assert result["importance"] == with_them["importance"] and result["alpha"] == with_them["alpha"]
    assert not (tmp_path / "run" / "finalists.pt").exists()


def test_the_benchmark_takes_no_part(
    finished: tuple[Path, Watcher], digits: ImageData, tmp_path: Path
) -> None:
    run(CONFIG, digits, tmp_path / "run")
    ours, theirs = (RunFolder(folder).result() for folder in (tmp_path / "run", finished[0]))
    assert ours is not None and theirs is not None
    assert ours["architecture"] == theirs["architecture"] and ours["benchmark"] is None
    assert without_seconds(ours["finalists"]["rounds"]) == without_seconds(theirs["finalists"]["rounds"])


@pytest.fixture(scope="module")
def evaluated(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that was stopped before the first step of the first finalist."""
    folder, watcher = tmp_path_factory.mktemp("evaluated") / "run", Watcher()
    with pytest.raises(Interrupted):
        run(CONFIG, digits, folder, lambda: ("finalists", 60, 0) in watcher.phases, watcher)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(evaluated: Path, digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(CONFIG, digits, folder)
    return folder


@pytest.mark.parametrize("places", [[1, 1, 4], [20, 13]])
def test_a_search_that_is_stopped_among_its_finalists_goes_on_bit_for_bit(
    places: list[int],
    evaluated: Path,
    uninterrupted: Path,
    digits: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(evaluated, folder)
    monkeypatch.setattr(member, "leave_one_out", None)  # nothing is evaluated twice
    for place in places:
        counter = itertools.count()
        with pytest.raises(Interrupted):
            run(CONFIG, digits, folder, lambda counter=counter, place=place: next(counter) == place)
    run(CONFIG, digits, folder)
    assert outcome(folder) == outcome(uninterrupted)


def test_a_search_that_is_killed_among_its_finalists_goes_on_bit_for_bit(
    uninterrupted: Path,
    digits: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What raises here is nothing that is waited for."""
    folder, watcher, counter = tmp_path / "run", Watcher(), itertools.count()

    def kill() -> bool:
        if ("finalists", 60, 0) in watcher.phases and next(counter) == 7:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run(CONFIG, digits, folder, kill, watcher)
    monkeypatch.setattr(member, "leave_one_out", None)
    run(CONFIG, digits, folder)
    assert outcome(folder) == outcome(uninterrupted)


@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": "alpha", "pruning_epochs": 3},
        {"pruning": "progressive", "pruning_epochs": 3},
        {"pruning_epochs": 0, "criterion": "loss"},
        {"fused": False, "batch_norm": "running"},
        {"precision": "bf16", "batch_norm": "running"},
        {"committee": 2},
    ],
    ids=str,
)
def test_any_search_can_have_them(settings: dict[str, Any], digits: ImageData, tmp_path: Path) -> None:
    result = run(CONFIG.replaced(finalist_budget=14, **settings), digits, tmp_path / "run")
    (first, *_) = result["finalists"]["rounds"]
    assert len(first["rungs"][0]["cells"]) == CONFIG.search.finalists
    assert RunFolder(tmp_path / "run").result() is not None


# --- the command line

FLAGS = ["--finalists", "3", "--finalist-channels", "2", "--finalist-cells-per-stage", "1",
         "--finalist-steps", "2", "--finalist-budget", "60"]  # fmt: skip


def test_the_command_tells_both_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.csv.gz"
    additive_table().save(table)
    folder = tmp_path / "run"
    command = [*TINY, *FLAGS, "--finalist-margin", "0", "--benchmark-table", str(table)]
    assert main([*command, "--out", str(folder)]) == 0
    said = capsys.readouterr().out
    result = RunFolder(folder).result()
    assert result is not None
    rungs = [rung for played in result["finalists"]["rounds"] for rung in played["rungs"]]
    for rung in rungs:
        assert f"finalists, {rung['steps']} steps, judged on {rung['images']} images:" in said
        for cell in rung["cells"]:
            assert f"{cell['training_loss'][0]:.3f}" in said and cell["architecture"] in said
    assert f"finalists: {len(result['finalists']['benchmark'])} cells" in said
    search = result["finalists"]["search"]["architecture"]
    assert (f"the search alone: {search}" in said) == (search != result["architecture"])
    assert f"found: {result['architecture']}" in said
    assert f"  {search} " in said[said.index("found: ") :]


def test_both_answers_where_they_differ() -> None:
    """The lines that no tiny search is sure to print."""
    from vpdarts_fast.search.console import finalist_lines

    first, second, third = "|a|", "|b|", "|c|"
    rung = {"steps": 1600, "cells": [{"architecture": name} for name in (first, second, third)]}
    rounds = [
        {"incumbent": first, "winner": second, "tied": [second, third], "rungs": [rung]},
        {"incumbent": second, "winner": second, "tied": [second], "rungs": [rung]},
    ]
    search = {"architecture": first, "index": 1, "benchmark": {"cifar10_test_200ep": 93.5}}
    finalists = {"search": search, "steps": 12_345, "rounds": rounds, "benchmark": {}}
    assert finalist_lines(finalists, second) == [
        "finalists: 3 cells, 12,345 steps",
        "  |a| gives way to |b|, not to be told from 1 other after 1,600 steps",
        "  |b| stays after 1,600 steps",
        "the search alone: |a|  [C10 93.50]",
    ]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"finalists": 1}, "--finalists must be 0, for none, or at least 2"),
        ({"finalists": -1}, "--finalists must be at least 0"),
        ({"finalists": 3, "finalist_budget": 599}, "--finalist-budget must be at least 600"),
        ({"finalists": 9, "finalist_budget": 1_299}, "--finalist-budget must be at least 1,300"),
        ({"finalist_steps": 0}, "--finalist-steps must be at least 1"),
        ({"finalist_margin": -0.5}, "--finalist-margin must be at least 0"),
        ({"finalist_channels": 0}, "--finalist-channels must be at least 1"),
        ({"finalist_cells_per_stage": 1001}, "--finalist-cells-per-stage must be at most 1,000"),
    ],
    ids=str,
)
def test_settings_that_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        SearchConfig().replaced(**settings)


def test_a_budget_that_is_not_used_is_not_looked_at() -> None:
    assert SearchConfig().replaced(finalist_steps=1_000_000).search.finalists == 0
    assert SearchConfig().replaced(finalists=3, finalist_budget=600).search.finalist_steps == 100


def test_a_finalist_too_large_for_the_machine(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.replaced(finalist_channels=512, finalist_cells_per_stage=5)
    cpu = torch.device("cpu")
    network = config.replaced(channels=512, cells_per_stage=5)
    needs = 4 * network.space.parameters(10)
    monkeypatch.setattr(preflight, "memory_of", lambda device: needs)
    with pytest.raises(UserError, match=r"a finalist needs at least .* smaller --finalist-channels"):
        preflight.check_search(config, digits, None, cpu)
    preflight.check_search(config.replaced(finalists=0), digits, None, cpu)
    monkeypatch.setattr(preflight, "memory_of", lambda device: 2 * needs)
    preflight.check_search(config, digits, None, cpu)


def test_finalists_of_a_run_that_has_begun_stay_as_they_are(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(evaluated, folder)
    said = error_of(["--resume", str(folder), "--finalists", "0", "--finalist-steps", "1"], capsys)
    assert "--finalists: the run has 3, asked for 0" in said and "--finalist-steps" in said
    assert main(["--resume", str(folder)]) == 0
    assert "vp-darts search in nas-bench-201, continued at the finalists" in capsys.readouterr().out


# --- files


SETTINGS_OF_VERSION_2 = frozenset(json.loads((VERSION_1 / "seed-4" / "config.json").read_text()))
"""The names that version 1 has, too."""


def test_older_runs_had_none(finished: tuple[Path, Watcher]) -> None:
    values = json.loads((finished[0] / "config.json").read_text())
    flat = {**SearchConfig.from_json(values, "config.json").flat(), "alpha_start": 0.2}
    old = {name: value for name, value in flat.items() if name in SETTINGS_OF_VERSION_2}
    old["format"] = "vpdarts_fast search settings, version 2"
    config = SearchConfig.from_json(old, "config.json")
    assert config.search.finalists == 0 and config.search.finalist_budget == 12_000
    result = json.loads((finished[0] / "result.json").read_text())
    result = {name: value for name, value in result.items() if name not in ("finalists", "digest")}
    result |= {"format": "vpdarts_fast search result, version 2", "warmup_epochs": 1, "pruning_epochs": 2}
    assert RESULT.upgraded(result, "result.json")["finalists"] is None
    assert SETTINGS.version >= 3 and RESULT.version >= 3


def test_finalists_are_read_and_drawn(finished: tuple[Path, Watcher], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    result = read_run(folder).result
    written = RunFolder(folder).result()
    assert result is not None and result.finalists is not None and written is not None
    assert str(result.finalists.search) == written["finalists"]["search"]["architecture"]
    assert result.finalists.winners[-1] == str(result.genotype)
    rung = written["finalists"]["rounds"][0]["rungs"][0]
    for cell in rung["cells"]:
        key = cell["architecture"], rung["steps"]
        assert result.finalists.accuracies[key] == tuple(cell["accuracy"])
    drawn = draw_pictures(folder)
    assert {folder / "cell.png", folder / "finalists.png"} <= set(drawn)


def test_the_picture_has_a_row_for_each_cell_and_a_mark_for_each_training(
    finished: tuple[Path, Watcher],
) -> None:
    record = read_run(finished[0])
    figure = finalists_figure(record)
    assert figure is not None and record.result and record.result.finalists
    (axes,) = figure.subfigs[0].axes
    accuracies = record.result.finalists.accuracies
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == len({cell for cell, _ in accuracies})
    rungs = sorted({steps for _, steps in accuracies})
    assert [line.get_label() for line in axes.lines] == [f"{steps} steps" for steps in rungs]
    for line, rung in zip(axes.lines, rungs, strict=True):
        marks = {(labels[int(row)].split()[-1], value) for value, row in line.get_xydata()}
        expected = {(str(c), v) for (c, steps), values in accuracies.items() if steps == rung for v in values}
        assert marks == expected
    (taken,) = (label for label in labels if "taken" in label)
    (search,) = (label for label in labels if "search" in label)
    assert taken.endswith(str(record.genotype))
    assert search.endswith(str(record.result.finalists.search))
    ranks = [max((s, sum(v) / len(v)) for (c, s), v in accuracies.items() if label.endswith(str(c)))
             for label in labels]  # fmt: skip
    assert ranks == sorted(ranks, reverse=True)
    bare = dataclasses.replace(record, result=dataclasses.replace(record.result, finalists=None))
    assert finalists_figure(bare) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: entry.update(steps=-1),
        lambda entry: entry.pop("rounds"),
        lambda entry: entry["search"].update(index=-1),
        lambda entry: entry["search"].update(architecture=None),
        lambda entry: entry["rounds"][0].update(winner=3),
        lambda entry: entry["rounds"][0]["rungs"][0].update(images="many"),
        lambda entry: entry["rounds"][0]["rungs"][0]["cells"][0].update(accuracy=[101]),
        lambda entry: entry["rounds"][0]["rungs"][0]["cells"][0].update(training_loss=["low"]),
        lambda entry: entry.update(benchmark=[1]),
    ],
)
def test_finalists_that_are_none_are_refused(
    spoil: Callable[[dict[str, Any]], object], finished: tuple[Path, Watcher], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    result = RunFolder(folder).result()
    assert result is not None
    spoil(result["finalists"])
    rewrite(folder / "result.json", RESULT, finalists=result["finalists"])
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        RunFolder(folder).result()
