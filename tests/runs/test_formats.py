"""Formats of run folders: what an older version wrote is read, what a newer one wrote is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from places import VERSION_1
from search_calls import bits, outcome
from search_commands import TINY, error_of, stop_after
from small_tables import additive_table

from vpdarts_fast.analysis.evaluation import evaluate_run
from vpdarts_fast.analysis.kendall import main as analyse
from vpdarts_fast.data import load
from vpdarts_fast.errors import UserError
from vpdarts_fast.report.pictures import draw_pictures
from vpdarts_fast.report.run_files import read_run
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.formats import (
    CHECKPOINT,
    EPOCH,
    FINALISTS,
    IMAGE_CACHE,
    KENDALL,
    RESULT,
    SEEDS,
    SETTINGS,
    SNAPSHOT,
    SPACE,
    TRAINING_SETTINGS,
    Format,
)
from vpdarts_fast.runs.space_file import drawing_to_json
from vpdarts_fast.runs.upgrades import Content
from vpdarts_fast.search import RunFolder, Search, SearchConfig, running
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.seeds import read_seeds
from vpdarts_fast.spaces.nas_bench_201 import Genotype, NasBench201
from vpdarts_fast.train.config import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = (SETTINGS, EPOCH, RESULT, SPACE, SEEDS, CHECKPOINT, FINALISTS, SNAPSHOT, KENDALL, IMAGE_CACHE)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(VERSION_1, tmp_path / "runs")
    return tmp_path / "runs"


def test_runs_of_version_1_go_on_to_their_end(
    old: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured before stays, the rest is added, and from then on all is of the present version."""
    drawn: list[Path] = []
    monkeypatch.setattr(running, "draw_pictures", drawn.append)
    before = [(old / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines() for seed in (3, 4)]
    assert main(["--resume", str(old), "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert f"this run is finished: {old / 'seed-3'}" in said
    assert "vp-darts search in nas-bench-201, continued at epoch 2, step 1" in said
    assert "what this run was computed on before is not recorded" in said
    for seed, lines in zip((3, 4), before, strict=True):
        folder = old / f"seed-{seed}"
        metrics = RunFolder(folder).metrics()
        assert [line["epoch"] for line in metrics] == [0, 1, 2]
        for line, text in zip(metrics, lines, strict=False):
            epoch = json.loads(text)
            new = {"environment": None, "members": [], "importance": on_all_images(epoch["importance"])}
            new |= {
                "drawing": drawing_of(epoch["genotype"]),
                "tables": {},
                "decided": None,
                "watched": None,
                "tau": None,
            }
            assert line == {**epoch, **new}
        assert read_run(folder).result
    assert drawn == [old / "seed-3", old / "seed-4"]
    assert set(json.loads((old / "summary.json").read_text())["seeds"]) == {"3", "4"}
    assert checkpoint.load(old / "seed-4" / "checkpoint.pt")["environment"]["threads"] == 1
    for line in (old / "seed-4" / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["format"] == EPOCH.mark
    for name, form in (("seeds.json", SEEDS), ("seed-4/result.json", RESULT)):
        assert json.loads((old / name).read_text())["format"] == form.mark
    for name, form in (("checkpoint.pt", CHECKPOINT), ("snapshots/epoch-03.pt", SNAPSHOT)):
        assert torch.load(old / "seed-4" / name, weights_only=True)["format"] == form.mark


def test_a_search_of_version_1_is_restored_bit_for_bit(old: Path) -> None:
    folder = old / "seed-4"
    run, config = RunFolder.open(folder)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert saved["format"] == "vpdarts_fast search checkpoint, version 1"
    search = Search(config, load("digits"), run, observer=None)  # type: ignore[arg-type]
    search.resume()
    restored = search.state.state_dict()
    saved["record"]["evaluation"] = on_all_images(saved["record"]["evaluation"])
    saved["record"]["genotype"] = str(Genotype.from_choices(saved["record"].pop("choices")))
    saved["record"]["tau"] = None
    for part in ("supernet", "weights_optimizer", "alpha_optimizer", "schedule", "alpha", "alive", "record"):
        assert bits(restored[part]) == bits(saved[part]), part
    assert (restored["epoch"], restored["step"]) == (saved["epoch"], saved["step"]) == (1, 1)


def on_all_images(evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a race would have told of it."""
    return evaluation and {**evaluation, "op_images": None}


def drawing_of(architecture: str | None) -> dict[str, Any] | None:
    """What the present version has of a cell of NAS-Bench-201 beside its text."""
    space = NasBench201()
    return architecture and drawing_to_json(space, space.parse(architecture))


def test_runs_of_version_1_are_drawn_and_analysed(old: Path, tmp_path: Path) -> None:
    assert [epoch.number for epoch in read_run(old / "seed-3").epochs] == [0, 1, 2]
    assert "cell.png" not in [path.name for path in draw_pictures(old / "seed-4")], "its one epoch is warm-up"
    assert (old / "seed-4" / "alpha.png").exists()
    table = tmp_path / "table.csv.gz"
    additive_table().save(table)
    arguments = [str(old / "seed-4"), "--benchmark-table", str(table), "--images", "8", "--threads", "1"]
    assert analyse(arguments) == 0
    (snapshot,) = json.loads((old / "seed-4" / "kendall.json").read_text())["snapshots"]
    assert snapshot["epoch"] == 1 and snapshot["signals"]


def test_a_run_of_version_1_means_the_settings_that_it_ran_with(old: Path) -> None:
    """Fields that are not in it take what runs of its time did; see docs/formats.md."""
    values = json.loads((old / "seed-4" / "config.json").read_text())
    _, config = RunFolder.open(old / "seed-4")
    flat = config.flat()
    for name, value in values.items():
        assert flat[name] == (tuple(value) if isinstance(value, list) else value)
    several = read_seeds(old)
    assert several and several[0] == (3, 4)
    assert SearchConfig.from_json(several[1], "seeds.json").space.channels == 1
    path = SearchConfig.from_json({**values, "data": "somewhere"}, "config.json").images.data
    assert path == Path("somewhere").absolute(), "relative to where the command runs, as it was then"


def test_the_settings_of_the_present_version() -> None:
    """Whoever adds, removes or renames a setting adds a version and an upgrade; see docs/formats.md."""
    first = set(json.loads((VERSION_1 / "seed-4" / "config.json").read_text()))
    finalists = {"finalists"} | {
        f"finalist_{name}" for name in ("channels", "cells_per_stage", "steps", "budget", "margin")
    }
    choices = {"alpha_noise", "removal", "nesterov", "alpha_rate_scaling", "step_order"}
    flat = first | finalists | {"committee", "evaluation", "race_confidence"} | choices | {"images_per_epoch"}
    parts = {"space", "recipe", "relaxation", "alpha_rule", "regulariser"}
    names = {
        14: flat
        | parts
        | {"variation", "schedule"}
        | {"loss"}
        | {"alpha_every", "lineage", "split", "stopping", "eigenvalue"}
        | {"max_parameters", "max_macs", "max_latency_ms"}
        | {"image_size", "cache", "skip_corrupt", "augment", "cutout", "stem", "metric"}
        | {"label_smoothing", "class_weight_power", "focal_gamma"}
        | {"sync_batch_norm"}
    }
    assert set(SearchConfig().flat()) == names[SETTINGS.version]


def test_a_search_of_version_5_of_the_settings_goes_on_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the settings that it did not have; to the last bit of what it would have come to."""
    monkeypatch.setattr(running, "draw_pictures", lambda folder: [])
    whole, older = tmp_path / "whole", tmp_path / "older"
    assert main([*TINY, "--alpha-start", "0.2", "--out", str(whole)]) == 0
    with monkeypatch.context() as patch:
        stop_after(7, patch)  # in a pruning epoch
        assert main([*TINY, "--alpha-start", "0.2", "--out", str(older)]) == 130
    version_5 = Format(SETTINGS.kind, SETTINGS.remedy, SETTINGS.upgrades[:4])
    later = ("alpha_noise", "removal", "nesterov", "alpha_rate_scaling", "step_order", "images_per_epoch",
             "max_parameters", "max_macs", "max_latency_ms", "alpha_every", "lineage", "split",
             "stopping", "eigenvalue", "loss", "space", "recipe",
             "relaxation", "alpha_rule", "regulariser", "variation", "schedule",
             "image_size", "cache", "skip_corrupt", "augment", "cutout", "stem", "metric",
             "label_smoothing", "class_weight_power", "focal_gamma", "sync_batch_norm")  # fmt: skip
    flat = {**SearchConfig.read(older / "config.json").flat(), "alpha_start": 0.2}
    settings = {name: value for name, value in flat.items() if name not in later}
    (older / "config.json").write_text(version_5.to_json(settings) + "\n")
    saved = checkpoint.load(older / "checkpoint.pt")
    assert saved["epoch"] > 0 and saved["config"]["format"] == SETTINGS.mark
    checkpoint.save(older / "checkpoint.pt", {**saved, "config": version_5.marked(settings)})
    assert json.loads((older / "config.json").read_text())["format"].endswith("search settings, version 5")
    assert main(["--resume", str(older)]) == 0
    assert outcome(older) == outcome(whole)


NEWER: list[tuple[str, Format]] = [
    ("seeds.json", SEEDS), ("seed-3/config.json", SETTINGS), ("seed-4/metrics.jsonl", EPOCH),
    ("seed-3/result.json", RESULT), ("seed-4/checkpoint.pt", CHECKPOINT),
    ("seed-4/snapshots/epoch-01.pt", SNAPSHOT), ("seed-4/kendall.json", KENDALL),
]  # fmt: skip


def newer(form: Format) -> Format:
    """The same kind of file one version later."""
    return Format(form.kind, form.remedy, (*form.upgrades, lambda content: content), form.first_has_mark)


def write_newer(path: Path, form: Format) -> None:
    if path.suffix == ".pt":
        checkpoint.save(path, {**checkpoint.load(path, form), "what": "is new"}, newer(form))
    else:
        text = path.read_text() if path.exists() else '{"snapshots": []}'
        first, *others = text.splitlines() if form is EPOCH else [text]
        path.write_text("\n".join([newer(form).to_json(form.from_json(first, "test")), *others]) + "\n")


@pytest.mark.parametrize(("name", "form"), NEWER, ids=[name for name, _ in NEWER])
def test_files_of_a_newer_version_are_refused(
    name: str, form: Format, old: Path, no_pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {form for _, form in NEWER} == set(ALL) - {FINALISTS, SPACE, IMAGE_CACHE}
    # These: tests/search/test_finalist_training.py, tests/runs/test_space_files.py, and a cache of another
    # version has another name
    write_newer(old / name, form)
    complaint = (
        f"was written by a newer vpdarts_fast: {form.kind}, version {form.version + 1}; this one reads "
        f"versions up to {form.version}. Update vpdarts_fast"
    )
    if form in (SNAPSHOT, KENDALL):
        _, config = RunFolder.open(old / "seed-4")
        with pytest.raises(UserError) as caught:
            evaluate_run(old / "seed-4", config, data=None, images=8, every=1, reuse=True)
        said = str(caught.value)
    else:
        said = error_of(["--resume", str(old), "--jobs", "1"], capsys)
    assert name in said and complaint in said
    if form in (EPOCH, RESULT):
        with pytest.raises(UserError, match="newer vpdarts_fast"):
            read_run((old / name).parent)


def add(**entries: Any) -> Callable[[Content], Content]:
    return lambda content: {**entries, **content}


def test_every_kind_of_file_has_a_name_of_its_own() -> None:
    assert len({form.kind for form in ALL}) == len(ALL)


def test_upgrades_run_one_after_the_other() -> None:
    """A setting is added, then all are nested in groups; each upgrade knows the version before it alone."""
    first = Format("thing", "throw it away")
    second = Format("thing", "throw it away", (add(depth=1),))
    third = Format(
        "thing",
        "throw it away",
        (add(depth=1), lambda content: {"size": {"width": content["width"], "depth": content["depth"]}}),
    )
    expected = {"size": {"width": 3, "depth": 1}}
    assert third.from_json('{"width": 3}', "a file") == expected, "version 1 has no mark"
    with pytest.raises(UserError, match="a file is damaged: its digest does not fit"):
        third.from_json(json.dumps({"format": first.mark, "width": 3}), "a file")
    assert third.from_json(second.to_json({"width": 3, "depth": 1}), "a file") == expected
    assert third.from_json(second.to_json({"width": 3, "depth": 2}), "a file")["size"]["depth"] == 2
    assert third.from_json(third.to_json(expected), "a file") == expected
    with pytest.raises(UserError, match="a file is damaged: the entry 'width' is missing; throw it away"):
        third.from_json(second.to_json({"depth": 2}), "a file")


def test_settings_of_a_training_of_version_1_are_read(tmp_path: Path) -> None:
    settings = TrainConfig().replaced(epochs=3)
    values = TRAINING_SETTINGS.upgraded(settings.to_json(), "test")
    del values["training"]["sync_batch_norm"]
    version_1 = Format(TRAINING_SETTINGS.kind, TRAINING_SETTINGS.remedy, (), True)
    (tmp_path / "config.json").write_text(version_1.to_json(values) + "\n")
    assert TrainConfig.read(tmp_path / "config.json") == settings
