"""Presets, and how a cell or a search becomes the settings of a training."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from search_commands import TINY as SEARCH
from train_cases import CELL, DARTS_CELL

from vpdarts_fast.search import __main__ as search
from vpdarts_fast.search import running as search_running
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.spaces.darts import Darts
from vpdarts_fast.spaces.nas_bench_201 import NasBench201
from vpdarts_fast.train.arguments import parse
from vpdarts_fast.train.config import PRESETS, TrainConfig, space_of

BENCHMARK = {
    "learning_rate": 0.1,
    "learning_rate_end": 0.0,
    "anneal": "epochs",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "batch_size": 256,
    "gradient_clip": None,
    "cutout": 0,
    "drop_path": 0.0,
    "auxiliary_weight": 0.0,
    "channels": None,
    "depth": None,
}


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("nas-bench-201-12", {**BENCHMARK, "epochs": 12, "images": "half"}),
        ("nas-bench-201-200", {**BENCHMARK, "epochs": 200, "images": "all"}),
        (
            "darts",
            {
                "epochs": 600,
                "images": "all",
                "batch_size": 96,
                "learning_rate": 0.025,
                "learning_rate_end": 0.0,
                "anneal": "epochs",
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 3e-4,
                "gradient_clip": 5.0,
                "cutout": 16,
                "drop_path": 0.2,
                "auxiliary_weight": 0.4,
                "channels": None,
                "depth": None,
            },
        ),
    ],
)
def test_presets_are_the_published_protocols(preset: str, values: dict[str, object]) -> None:
    flat = PRESETS[preset].flat()
    assert {name: flat[name] for name in values} == values


def test_networks_of_the_presets_are_as_large_as_those_of_the_papers() -> None:
    benchmark, darts = NasBench201(), Darts()
    network = benchmark.trained_network(benchmark.parse(CELL), 10)
    assert (network.channels, network.cells_per_stage) == (16, 5)
    found = darts.trained_network(darts.parse(DARTS_CELL), 10, auxiliary=True)
    assert (found.channels, found.layers) == (36, 20) and found.auxiliary_head is not None


@pytest.mark.parametrize(
    ("arguments", "preset", "sizes"),
    [
        ([CELL], "short", (16, 1)),
        ([DARTS_CELL], "short", (8, 5)),
        ([CELL, "--dataset", "cifar10"], "nas-bench-201-200", (None, None)),
        ([DARTS_CELL, "--dataset", "cifar10"], "darts", (None, None)),
        ([CELL, "--preset", "nas-bench-201-12"], "nas-bench-201-12", (None, None)),
    ],
)
def test_data_set_and_space_decide_on_the_preset(
    arguments: list[str], preset: str, sizes: tuple[int | None, int | None]
) -> None:
    config = parse(arguments).config
    assert config.preset == preset
    assert (config.network.channels, config.network.depth) == sizes
    assert config.training.epochs == PRESETS[preset].training.epochs
    if "--dataset" not in arguments:
        assert config.images.dataset == PRESETS[preset].images.dataset


def test_every_setting_of_a_preset_has_a_flag() -> None:
    flags = ["--preset", "darts", "--epochs", "3", "--batch-size", "8", "--learning-rate", "0.5",
             "--nesterov", "--weight-decay", "0", "--gradient-clip", "None", "--cutout", "2",
             "--auxiliary-weight", "0",
             "--drop-path", "0.1", "--channels", "4", "--depth", "6", "--images", "half", "--anneal", "steps",
             "--ema", "0.99", "--momentum", "0.8", "--learning-rate-end", "0.1"]  # fmt: skip
    config = parse([DARTS_CELL, *flags]).config
    assert config == PRESETS["darts"].replaced(
        cell=DARTS_CELL, space=Darts(), epochs=3, batch_size=8, learning_rate=0.5, nesterov=True,
        weight_decay=0.0, gradient_clip=None, cutout=2, auxiliary_weight=0.0, drop_path=0.1, channels=4,
        depth=6, images="half", anneal="steps", ema=0.99, momentum=0.8, learning_rate_end=0.1,
    )  # fmt: skip
    assert TrainConfig.from_json(config.to_json(), "it") == config


def test_a_cell_is_of_the_first_space_that_reads_it() -> None:
    assert isinstance(space_of(CELL), NasBench201)
    assert type(space_of(DARTS_CELL)) is Darts


def test_a_search_names_the_command_that_trains_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    monkeypatch.setattr(search_running, "draw_pictures", lambda folder: [])
    folder = tmp_path / "my search"
    assert search.main([*SEARCH, "--channels", "4", "--out", str(folder), "--seed", "5"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    said = re.fullmatch(r"train what was found: python -m vpdarts_fast.train (.*)", last)
    assert said
    config = parse(shlex.split(said[1])).config
    saved = SearchConfig.read(folder / "config.json")
    found = re.search(r"found: (.*)", (folder / "log.txt").read_text())
    assert found and config.cell == found[1]
    assert config.space == saved.space and config.images.dataset == "digits"
    assert config.images.max_images is None and config.training.split_seed == 5
    assert config.preset == "short" and config.training.epochs == 10
