"""Files of a run that were damaged or made up: refused in a sentence, never read as other numbers."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from places import VERSION_1
from search_calls import bits
from search_commands import TINY, edited, rewrite, stop_after

from vpdarts_fast.analysis.evaluation import evaluate_run, known_evaluations
from vpdarts_fast.data import load
from vpdarts_fast.errors import UserError
from vpdarts_fast.report.run_files import read_run, read_tables
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.formats import EPOCH, KENDALL, RESULT, SEEDS, SETTINGS, SNAPSHOT
from vpdarts_fast.search import RunFolder, Search
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.seeds import read_seeds

pytestmark = pytest.mark.usefixtures("one_thread")

FLIPS = 150
"""Bits flipped in each file of JSON, and in an archive whose bytes have a digest."""


@pytest.fixture(scope="module")
def runs_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of two seeds, stopped in the second."""
    folder = tmp_path_factory.mktemp("searched") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(17, patch)
        patch.setattr("vpdarts_fast.search.running.draw_pictures", lambda folder: [])
        assert main([*TINY, "--seeds", "3", "4", "--jobs", "1", "--snapshots", "--out", str(folder)]) == 130
    (folder / "seed-4" / "kendall.json").write_text(KENDALL.to_json({"removal": "zero", "snapshots": []}))
    return folder


@pytest.fixture
def runs(runs_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(runs_once, tmp_path / "runs")
    return tmp_path / "runs"


READERS: dict[str, Callable[[Path], Any]] = {
    "seeds.json": lambda path: read_seeds(path.parent),
    "seed-4/config.json": lambda path: RunFolder.open(path.parent)[1],
    "seed-4/metrics.jsonl": lambda path: RunFolder(path.parent).metrics(),
    "seed-3/result.json": lambda path: RunFolder(path.parent).result(),
    "seed-3/space.json": lambda path: read_tables(path.parent),
    "seed-4/kendall.json": lambda path: known_evaluations(path, 8),
    "seed-4/checkpoint.pt": checkpoint.load,
    "seed-4/snapshots/epoch-01.pt": lambda path: checkpoint.load(path, SNAPSHOT),
}
"""How the programs read each file."""


def flipped(content: bytes, flips: int, seed: int = 0) -> Iterator[bytes]:
    """The content with one bit wrong, at so many random places."""
    numbers = random.Random(seed)
    for _ in range(flips):
        damaged = bytearray(content)
        damaged[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
        yield bytes(damaged)


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_never_changes_what_is_read(name: str, runs: Path) -> None:
    """Nearly every one is refused; a space more or less between two numbers may pass."""
    path, read = runs / name, READERS[name]
    content, expected = path.read_bytes(), read(path)
    refused = 0
    for damaged in flipped(content, FLIPS):
        path.write_bytes(damaged)
        try:
            assert bits(read(path)) == bits(expected)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused == FLIPS if path.suffix == ".pt" else refused > 0.8 * FLIPS


@pytest.mark.parametrize("name", ["checkpoint.pt", "snapshots/epoch-01.pt"])
def test_a_flipped_bit_in_an_archive_without_digest(name: str, tmp_path: Path) -> None:
    """Of version 1: the archive's checksums cover all that matters."""
    form = SNAPSHOT if "snapshots" in name else checkpoint.CHECKPOINT
    path = tmp_path / "file.pt"
    shutil.copy(VERSION_1 / "seed-4" / name, path)
    content, expected = path.read_bytes(), checkpoint.load(path, form)
    refused = 0
    for damaged in flipped(content, 40, seed=1):
        path.write_bytes(damaged)
        try:
            assert bits(checkpoint.load(path, form)) == bits(expected)
        except UserError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("name", READERS)
def test_a_file_cut_short_is_refused(name: str, runs: Path) -> None:
    path = runs / name
    content = path.read_bytes()
    for length in (1, len(content) // 3, len(content) // 2, len(content) - 3):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=path.name):
            READERS[name](path)


def test_an_entry_that_is_missing_or_added_is_seen(runs: Path) -> None:
    """Somebody edits a file by hand and does not know of its digest."""
    for name in ("seeds.json", "seed-4/config.json", "seed-3/result.json"):
        path = runs / name
        content = json.loads(path.read_text())
        for changed in (
            {**content, "seed": 9},
            {key: value for key, value in content.items() if key != "digest"},
            {key: value for key, value in content.items() if key != "format"},
            {key: value for key, value in content.items() if key not in ("config", "space", "index")},
        ):
            path.write_text(json.dumps(changed))
            with pytest.raises(UserError, match="is damaged: its digest does not fit"):
                READERS[name](path)


DEEP = "[" * 200_000 + "]" * 200_000

HOSTILE_TEXTS = {
    "deep": DEEP,
    "deep entry": '{"epoch": ' + DEEP + "}",
    "deep enough to be read": '{"epoch": ' + "[" * 500 + "]" * 500 + "}",
    "long number": '{"epoch": 1' + "0" * 5000 + "}",
    "long fraction": '{"epoch": 0.1' + "0" * 5000 + "e9999}",
    "infinity": '{"epoch": Infinity}',
    "not a number": '{"epoch": NaN}',
    "overflow": '{"epoch": 1e999}',
    "not UTF-8": b"\xff\xfe{}",
    "zeros": b"\0" * 1000,
    "lone surrogate": '{"format": "\\ud800", "epoch": 0}',
    "format of another type": '{"format": [[{}]], "epoch": 0}',
    "nothing": "",
    "null": "null",
}


@pytest.mark.parametrize("text", HOSTILE_TEXTS.values(), ids=HOSTILE_TEXTS)
def test_hostile_json_is_refused(text: str | bytes, runs: Path) -> None:
    for name, read in READERS.items():
        path = runs / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        if name.endswith("metrics.jsonl") and not text:
            assert read(path) == []
            continue
        with pytest.raises(UserError, match=path.name) as caught:
            read(path)
        assert len(str(caught.value)) < 1000
    with pytest.raises(UserError):
        read_run(runs / "seed-4")


SETTINGS_OUT_OF_RANGE: list[dict[str, Any]] = [
    {"channels": -1}, {"channels": "2"}, {"channels": [2]}, {"channels": None},
    {"learning_rate": "0.1"}, {"learning_rate": [0.1]}, {"seed": -1}, {"threads": 0}, {"threads": 1.5},
    {"data": "a path"}, {"data": []}, {"data": [""]}, {"data": ["a\0b"]}, {"data": [1]}, {"data": {"a": 1}},
    {"alpha_betas": [0.5, "x"]}, {"alpha_betas": [0.5, 0.9, 0.9]}, {"fused": None}, {"preset": 7},
]  # fmt: skip


@pytest.mark.parametrize("changes", SETTINGS_OUT_OF_RANGE, ids=str)
def test_settings_out_of_range(changes: dict[str, Any], runs: Path) -> None:
    path = runs / "seed-4" / "config.json"
    rewrite(path, SETTINGS, **edited(SETTINGS.read_json(path), **changes))
    with pytest.raises(UserError, match=r"config\.json: "):
        RunFolder.open(runs / "seed-4")


METRICS_OUT_OF_RANGE: list[dict[str, Any]] = [
    {"epoch": -1}, {"epoch": "0"}, {"epoch": 0.0}, {"epoch": True}, {"epoch": None}, {"phase": "x y"},
    {"phase": []}, {"alpha": [[0.2] * 5] * 5}, {"alpha": [["0.2"] * 5] * 6}, {"alpha": 3},
    {"weights_loss": "1"}, {"weights_loss": [1]}, {"seconds": []}, {"seconds": {"train": "1"}},
    {"seconds": {"train": -1}}, {"benchmark": []}, {"benchmark": {"a": "1"}}, {"importance": 3},
    {"importance": {}}, {"genotype": 3}, {"drawing": {"cells": []}}, {"index": 3}, {"learning_rate": "x"},
    {"decay": "x"},
]  # fmt: skip


@pytest.mark.parametrize("changes", METRICS_OUT_OF_RANGE, ids=str)
def test_metrics_out_of_range(changes: dict[str, Any], runs: Path) -> None:
    """Search and report refuse them alike."""
    path = runs / "seed-4" / "metrics.jsonl"
    path.write_text(EPOCH.to_json({**RunFolder(path.parent).metrics()[0], **changes}) + "\n")
    for read in (lambda: RunFolder(path.parent).metrics(), lambda: read_run(path.parent)):
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 1, is damaged: "):
            read()


def test_epochs_that_do_not_follow_each_other(runs: Path) -> None:
    path = runs / "seed-3" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    for order in ([0, 0], [1, 0], [0, 2, 1]):
        path.write_text("".join(lines[number] + "\n" for number in order))
        with pytest.raises(UserError, match=r"is damaged: epoch \d follows epoch \d"):
            RunFolder(path.parent).metrics()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("seed-3/result.json", {"index": -1}),
        ("seed-3/result.json", {"drawing": None}),
        ("seed-3/result.json", {"drawing": {"cells": [], "chosen": [[0, 1]]}}),
        ("seed-3/result.json", {"index": "3"}),
        ("seed-3/result.json", {"architecture": 5}),
        ("seed-3/result.json", {"base_accuracy": "high"}),
        ("seed-3/result.json", {"benchmark": {"x": "y"}}),
        ("seed-3/result.json", {"seconds": 3}),
        ("seeds.json", {"seeds": [1]}),
        ("seeds.json", {"seeds": [1, 1]}),
        ("seeds.json", {"seeds": [1, -1]}),
        ("seeds.json", {"seeds": [1, "2"]}),
        ("seeds.json", {"seeds": [1, 2.0]}),
        ("seeds.json", {"seeds": {"1": 2}}),
        ("seeds.json", {"config": []}),
    ],
    ids=str,
)
def test_results_and_seeds_out_of_range(name: str, changes: dict[str, Any], runs: Path) -> None:
    path = runs / name
    rewrite(path, SEEDS if name == "seeds.json" else RESULT, **changes)
    with pytest.raises(UserError, match=rf"{path.name} is damaged: "):
        READERS[name](path)


@pytest.fixture(scope="module")
def search(runs_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Search:
    """The search of a copy of seed 4, whose checkpoint tests may spoil."""
    folder = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(runs_once / "seed-4", folder)
    shutil.copy(folder / "checkpoint.pt", folder / "intact.pt")
    run, config = RunFolder.open(folder)
    return Search(config, load("digits"), run, observer=None)  # type: ignore[arg-type]


Change = Callable[[dict[str, Any]], Any]


def put(*keys: Any, value: Any) -> Change:
    """Sets content[key][key]... to a value."""

    def change(content: dict[str, Any]) -> None:
        place: Any = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def first_weights(content: dict[str, Any]) -> torch.Tensor:
    weights: torch.Tensor = next(iter(content["supernet"].values()))
    return weights


VALUES_OUT_OF_RANGE: dict[str, Change] = {
    "epoch -1": put("epoch", value=-1),
    "epoch 10^6": put("epoch", value=10**6),
    "epoch text": put("epoch", value="1"),
    "epoch fraction": put("epoch", value=1.0),
    "epoch true": put("epoch", value=True),
    "epoch of another": put("epoch", value=0),
    "step -1": put("step", value=-1),
    "step 10^6": put("step", value=10**6),
    "step text": put("step", value="0"),
    "alpha nan": put("alpha", value=torch.full((6, 5), math.nan)),
    "alpha list": put("alpha", value=[[0.2] * 5] * 6),
    "alpha float64": put("alpha", value=torch.full((6, 5), 0.2, dtype=torch.float64)),
    "alpha sparse": put("alpha", value=torch.eye(6, 5).to_sparse()),
    "alive numbers": put("alive", value=torch.ones(6, 5)),
    "no alive": lambda content: content.pop("alive"),
    "weights nan": lambda content: first_weights(content).fill_(math.nan),
    "weights infinite": lambda content: first_weights(content).fill_(math.inf),
    "supernet of another shape": lambda content: content["supernet"].update(
        dict.fromkeys(list(content["supernet"])[:1], torch.ones(2, 2))
    ),
    "supernet with more": put("supernet", "more", value=torch.ones(2)),
    "supernet a list": put("supernet", value=[]),
    "momentum of another shape": put(
        "weights_optimizer", "state", 0, "momentum_buffer", value=torch.ones(1, 1)
    ),
    "momentum of no parameter": put("weights_optimizer", "state", 10**6, value={"momentum_buffer": None}),
    "momentum text": put("weights_optimizer", "state", 0, "momentum_buffer", value="x"),
    "momentum nan": lambda content: content["weights_optimizer"]["state"][0]["momentum_buffer"].fill_(
        math.nan
    ),
    "optimiser without groups": put("weights_optimizer", "param_groups", value=[]),
    "optimiser a text": put("weights_optimizer", value="sgd"),
    "state a list": put("alpha_optimizer", "state", value=[1]),
    "Adam of another shape": put("alpha_optimizer", "state", 0, "exp_avg", value=torch.ones(5)),
    "Adam without": lambda content: content["alpha_optimizer"]["state"][0].pop("exp_avg_sq"),
    "Adam's step": put("alpha_optimizer", "state", 0, "step", value=torch.tensor(-1.0)),
    "learning rate text": put("weights_optimizer", "param_groups", 0, "lr", value="0.1"),
    "learning rate nan": put("weights_optimizer", "param_groups", 0, "lr", value=math.nan),
    "schedule elsewhere": put("schedule", "last_epoch", value=0),
    "schedule text": put("schedule", value="cosine"),
    "schedule rates": put("schedule", "_last_lr", value=[0.1, 0.1]),
    "record empty": put("record", value={}),
    "record began": put("record", "began", value="yes"),
    "record more": put("record", "more", value=1),
    "record choices": put("record", "choices", value=[9] * 6),
    "record choices short": put("record", "choices", value=[1] * 5),
    "record evaluation": put("record", "evaluation", value={"accuracy": 3}),
    "record images": put("record", "weights", "images", value=-1),
    "record correct": put("record", "weights", "correct", value=10**9),
    "record loss": put("record", "weights", "loss", value=math.nan),
    "record seconds": put("record", "seconds", value={}),
    "seconds text": put("seconds", value={"train": "1"}),
    "seconds list": put("seconds", value=[1]),
    "environment text": put("environment", value="here"),
    "environment without": put("environment", value={"threads": 1}),
    "environment threads": put("environment", "threads", value="1"),
    "images of another": put("images", value="blake2b 0123"),
    "config list": put("config", value=[]),
    "config text": put("config", "channels", value="2"),
    "config newer": put("config", "format", value="vpdarts_fast search settings, version 77"),
}


@pytest.mark.parametrize("change", VALUES_OUT_OF_RANGE.values(), ids=VALUES_OUT_OF_RANGE)
def test_values_of_a_checkpoint_out_of_range(change: Change, search: Search) -> None:
    path = search.run_folder.checkpoint
    content = checkpoint.load(path.with_name("intact.pt"))
    assert content["epoch"] == 1 and content["record"]["began"]
    change(content)
    checkpoint.save(path, content)
    with pytest.raises(UserError, match=r"checkpoint\.pt") as caught:
        search.resume()
    assert len(str(caught.value)) < 1000
    shutil.copy(path.with_name("intact.pt"), path)
    search.resume()


@pytest.mark.parametrize(
    "change",
    [
        put("epoch", value=-1), put("epoch", value=10**6), put("epoch", value="1"),
        put("alpha", value=torch.full((6, 5), math.nan)), put("alive", value=None), put("supernet", value=3),
        lambda content: first_weights(content).fill_(math.inf), lambda content: content.pop("epoch"),
    ],
)  # fmt: skip
def test_values_of_a_snapshot_out_of_range(change: Change, runs: Path) -> None:
    folder = runs / "seed-4"
    path = folder / "snapshots" / "epoch-01.pt"
    content = checkpoint.load(path, SNAPSHOT)
    change(content)
    checkpoint.save(path, content, SNAPSHOT)
    _, config = RunFolder.open(folder)
    with pytest.raises(UserError, match=r"epoch-01\.pt does not fit the settings of its run"):
        evaluate_run(folder, config, data=None, images=8, every=1, reuse=False)


def test_an_archive_that_would_grow_is_refused(tmp_path: Path) -> None:
    """Compressed entries could be larger than memory; `torch.save` makes none."""
    import zipfile

    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"format": "vpdarts_fast search checkpoint, version 1", "alpha": torch.zeros(10**6)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(UserError, match="damaged or not a search checkpoint: it is compressed"):
        checkpoint.load(packed)
