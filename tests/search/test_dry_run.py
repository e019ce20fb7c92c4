"""What a search would take: counts as they then are, times of some kind, and nothing left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from search_calls import SMALL, pixels
from search_commands import TINY

import vpdarts_fast
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.expectation import duration

pytestmark = pytest.mark.usefixtures("one_thread")


EXPECTED: dict[str, dict[str, Any]] = {
    "soft": {"images_per_epoch": 10, "pruning_epochs": 2},
    "progressive": {"pruning": "progressive", "warmup_epochs": 0, "pruning_epochs": 2, "committee": 2},
    "alpha": {"criterion": "alpha", "pruning": "hard", "alpha_every": 2},
    "perturbation": {
        "schedule": "perturbation", "training_epochs": 1, "tuning_epochs": 1, "relaxation": "softmax",
        "pruning": "hard", "pruning_epochs": None,
    },
    "finalists": {
        "warmup_epochs": 0, "finalists": 2, "finalist_steps": 1, "finalist_budget": 4, "finalist_channels": 2,
        "finalist_cells_per_stage": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", EXPECTED)
def test_a_dry_run_counts_what_a_search_does(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = dict.fromkeys(("weights_step", "alpha_step", "leave_one_out", "batches"), 0)
    member = sys.modules["vpdarts_fast.search.member"]

    def counting(name: str) -> Callable[..., Any]:
        real = getattr(member, name)

        def count(*arguments: Any, **options: Any) -> Any:
            counted[name] += 1
            if name == "leave_one_out":
                supernet, batches, *others = arguments
                batches = list(batches)
                counted["batches"] = len(batches)
                arguments = (supernet, batches, *others)
            return real(*arguments, **options)

        return count

    monkeypatch.chdir(tmp_path)
    asked = SMALL | {"validation_proportion": 1.0} | EXPECTED[case]
    settings = {name: value for name, value in asked.items() if value is not None}
    expected = vpdarts_fast.search_cells(pixels(), dry_run=True, **settings)
    assert not list(tmp_path.iterdir()), "it leaves no folder"
    with monkeypatch.context() as patch:
        for name in ("weights_step", "alpha_step", "leave_one_out"):
            patch.setattr(member, name, counting(name))
        result = vpdarts_fast.search_cells(pixels(), **settings)
    counts = expected.counts
    assert counted["weights_step"] == counts.weights_steps
    assert counted["alpha_step"] == counts.alpha_steps
    assert counted["leave_one_out"] == counts.evaluations == (0 if case == "alpha" else counts.evaluations)
    assert counted["batches"] == (counts.evaluation_batches if counts.evaluations else 0)
    finalists = result.result["finalists"]
    assert counts.finalist_steps >= (finalists["steps"] if finalists else 0)
    assert (counts.finalist_steps > 0) == ("finalists" in expected.seconds) == (finalists is not None)
    assert all(seconds >= 0 for seconds in expected.seconds.values()) and expected.memory > 1 << 20
    assert expected.total == sum(expected.seconds.values())


def test_a_dry_run_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "--dry-run", "--seeds", "0", "1", "--out", "run"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "dry run: no search, no folder" and not list(tmp_path.iterdir())
    assert [line.partition(":")[0] for line in lines] == [
        "warm-up", "pruning", "  2 steps in an epoch; 6 steps of the weights and 4 of alpha in all",
        "leave-one-out", "the whole search", "memory",
    ]  # fmt: skip
    assert lines[0].startswith("warm-up: 1 epoch, ") and "3 evaluations of 16 images in 1 batch" in lines[3]
    assert "with all 2 seeds" in lines[4]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (61, "61 s"), (3600, "60 min"), (3 * 3600 + 1200, "3 h 20 min"),
     (36 * 3600, "1.5 days")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_process_is_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic
    expected = vpdarts_fast.search_cells(pixels(), dry_run=True, **SMALL | {"threads": 2})
    assert (torch.get_num_threads(), torch.backends.cudnn.deterministic) == before
    assert expected.total > 0
