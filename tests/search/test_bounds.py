"""Every number that a user may set has bounds, in all command lines and in the API."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from search_commands import error_of

import vpdarts_fast
from vpdarts_fast.analysis import cost_model, kendall
from vpdarts_fast.analysis.cost.roofline import Assumptions
from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.benchmark_table.__main__ import main as benchmark_table
from vpdarts_fast.bounds import BOUNDS, FLOAT32_MAX, check_bound
from vpdarts_fast.data import Augmentation, epoch_order
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.validation import check_options
from vpdarts_fast.search import PRESETS, SearchConfig
from vpdarts_fast.search import __main__ as command_line
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.config import flag
from vpdarts_fast.search.settings import (
    ExecutionSettings,
    ImageSettings,
    MethodSettings,
    OptimiserSettings,
    SearchSettings,
)
from vpdarts_fast.spaces.nas_bench_201 import NasBench201, Supernet
from vpdarts_fast.spaces.nas_bench_201.genotype import NUM_ARCHITECTURES, Genotype

pytestmark = pytest.mark.usefixtures("one_thread")

DIGITS_23 = "9" * 23


def numeric_settings(kind: Any) -> list[str]:
    hints = get_type_hints(kind)
    numeric = (int, float, int | None, float | None, tuple[float, float])
    return [field.name for field in dataclasses.fields(kind) if hints[field.name] in numeric]


GROUPS = (
    ImageSettings, NasBench201, SearchSettings, MethodSettings, OptimiserSettings, ExecutionSettings,
)  # fmt: skip
SETTINGS = [name for group in GROUPS for name in numeric_settings(group)]
ONE_OF_EACH_KIND = {
    (get_type_hints(group)[name], group): name
    for group in GROUPS
    for name in numeric_settings(group)
    if name != "seed"
}.values()
"""A setting of each type in each group of settings."""


# Bounds.


@pytest.mark.parametrize("kind", [*GROUPS, kendall.Command, Assumptions], ids=lambda kind: kind.__name__)
def test_every_numeric_setting_has_a_bound_on_both_sides(kind: Any) -> None:
    settings = numeric_settings(kind)
    assert settings
    for name in settings:
        assert -FLOAT32_MAX <= BOUNDS[name].least < BOUNDS[name].most <= FLOAT32_MAX


def test_every_preset_is_within_the_bounds() -> None:
    for preset in PRESETS.values():
        for name in SETTINGS:
            check_bound(name, preset.flat()[name])


def test_bounds_are_exactly_where_they_say() -> None:
    for name, bound in BOUNDS.items():
        step = 1 if bound.whole else 0
        kind: Callable[[Any], Any] = int if bound.whole else float
        assert (bound.complaint(kind(bound.least)) is None) == (not bound.above), name
        assert (bound.complaint(kind(bound.most)) is None) == (not bound.below), name
        above = kind(bound.most) + 1 if step else float(np.nextafter(bound.most, np.inf))
        below = kind(bound.least) - 1 if step else float(np.nextafter(bound.least, -np.inf))
        assert bound.complaint(above) and bound.complaint(below), name
        for bad in (float("nan"), float("inf"), -float("inf"), 10**400, -(10**400), "1", None, True, 1j):
            assert bound.complaint(bad), f"{name} takes {bad!r}"


def test_whole_numbers_of_any_kind_are_whole_and_fractions_are_not() -> None:
    check_bound("channels", np.int64(4))
    check_bound("learning_rate", 1)
    with pytest.raises(UserError, match=r"channels must be a whole number; got 2.5"):
        check_bound("channels", 2.5)


def test_numbers_too_long_to_print_are_described() -> None:
    for call in (
        lambda: SearchConfig().replaced(channels=10**5000),
        lambda: Genotype.from_index(10**5000),
        lambda: Genotype.from_choices([10**5000] * 6),
        lambda: BenchmarkTable(("cifar10_test_200ep",), np.zeros((NUM_ARCHITECTURES, 1))).accuracy(10**5000),
    ):
        with pytest.raises(UserError, match=r"got a number of about 5,00[01] digits"):
            call()


NUMBERS = {"23": DIGITS_23, "-23": "-" + DIGITS_23, "5000": "9" * 5000}


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, "23") for name in SETTINGS if name != "seed"]
    + [(name, other) for name in ONE_OF_EACH_KIND for other in ("-23", "5000")],
)
def test_no_flag_of_the_search_takes_numbers_of_so_many_digits(
    name: str,
    number: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "run_command", lambda command, stop: 0)
    takes = number == "23" and BOUNDS[name].most == FLOAT32_MAX
    takes |= name == "alpha_start" and number != "5000"
    values = [NUMBERS[number]] * (2 if name == "alpha_betas" else 1)
    try:
        status = main([flag(name), *values])
    except SystemExit as stopped:  # how the parser of the command line refuses
        status = int(stopped.code or 0)
    assert status == (0 if takes else 2)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    assert takes or flag(name) in shown.err + shown.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seeds", [[DIGITS_23], ["0", DIGITS_23], [str(2**63)]])
def test_seeds_have_a_bound(seeds: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--seeds must be at most 9,223,372,036,854,775,807" in error_of(["--seeds", *seeds], capsys)


def test_the_largest_seed_seeds() -> None:
    assert command_line.parse(["--seeds", str(2**63 - 1)]).seeds == (2**63 - 1,)
    preflight_order = epoch_order(4, 2, torch.Generator().manual_seed(2**63 - 1), drop_last=False)
    assert torch.cat(preflight_order).sort().values.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (kendall.main, ["RUN", "--images", DIGITS_23]),
        (kendall.main, ["RUN", "--every", DIGITS_23]),
        (kendall.main, ["RUN", "--threads", DIGITS_23]),
        (cost_model.main, ["--kernel-us", DIGITS_23]),
        (cost_model.main, ["--launch-us", "inf"]),
        (cost_model.main, ["--gap-us", "1e300"]),
        (cost_model.main, ["--bandwidth-share", DIGITS_23]),
        (cost_model.main, ["--json", "nowhere/report.json"]),
        (benchmark_table, ["show", DIGITS_23]),
        (benchmark_table, ["show", "9" * 5000]),
        (benchmark_table, ["show", "-" + DIGITS_23]),
    ],
)
def test_other_programs_take_no_such_numbers_either(
    program: Callable[[list[str]], int],
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = program(arguments)
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    shown = capsys.readouterr()
    assert status == 2 and "Traceback" not in shown.err
    assert "must be" in shown.err or "no folder nowhere" in " ".join(shown.err.split())


@pytest.mark.parametrize(
    "call",
    [
        lambda: Supernet(channels=10**23),
        lambda: Supernet(cells_per_stage=10**23),
        lambda: Supernet(num_classes=10**23),
        lambda: vpdarts_fast.build_network(0, channels=10**23),
        lambda: vpdarts_fast.build_network(10**23),
        lambda: Augmentation(padding=10**23, flip=False),
        lambda: check_options("running", 10**23),
    ],
)
def test_the_api_has_the_same_bounds(call: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match="must be"):
        call()
