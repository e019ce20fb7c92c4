"""Searches of several processes: what they compute together, and what happens when they stop or one ends."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from fresh_process import run_python
from places import SUPPORT
from search_calls import outcome
from torchruns import Program, finished, forked, torchrun, wait_for_epochs

from vpdarts_fast.errors import UserError
from vpdarts_fast.runtime.processes import ALONE, Processes
from vpdarts_fast.search import RunFolder, SearchConfig
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.preflight import check_processes

SEARCH = [
    "--max-images", "96", "--channels", "4", "--warmup-epochs", "1", "--pruning-epochs", "4",
    "--batch-size", "8", "--threads", "1", "--finalists", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes saw."""
    folder = tmp_path_factory.mktemp("seen")
    status, said = run_python([str(SUPPORT / "several_processes.py"), str(folder)], folder)
    assert status == 0, said
    return [json.loads((folder / f"{number}.json").read_text()) for number in (0, 1)]


def test_what_they_say_to_each_other(seen: list[dict[str, Any]]) -> None:
    first, second = (each["words"] for each in seen)
    assert (first["part"], second["part"]) == ([[0, 1, 2, 3]], [[4, 5, 6]])
    assert first["share"] + second["share"] == 1 and first["share"] == 4 / 7
    assert first["whole"] == second["whole"] == [[0, 1, 2]] and first["equal"] == second["equal"] == 0.5
    for each in (first, second):
        assert each["sums"] == [[[0.5, 0.5], [0.5, 0.5]], [1.0]] and each["copied"] == [0]
        assert each["any"] == [False, True] and each["told"] == {"ü": [1, None]}
    assert first["turns"] == [[True, False], [False, True]]
    assert second["turns"] == [[False, False], [True, False]]


def test_leave_one_out_is_that_of_one_process_to_the_last_bit(seen: list[dict[str, Any]]) -> None:
    """Each op is left out by one of them, as many by each, on all images."""
    first, second = seen
    for name, alone in first["alone"].items():
        (values, mine), (others, theirs) = first["evaluated"][name], second["evaluated"][name]
        assert values == others == alone, name
        pairs = list(zip(chain.from_iterable(mine), chain.from_iterable(theirs), strict=True))
        assert [sum(pair) for pair in pairs] == [0, 1, 1, 1, 1] * 6, name
        assert [sum(own) for own in zip(*pairs, strict=True)] == [12, 12]


def test_steps_are_those_of_the_mean_gradient(seen: list[dict[str, Any]]) -> None:
    """Each on its part of the batch, with batch statistics of its own; all end with the same weights."""
    first, second = seen
    assert first["trained"] == second["trained"]
    assert max(first["apart"] + second["apart"]) < 1e-6
    _, _, (loss, correct, alpha_loss, _) = first["trained"]
    assert 12 < loss < 60 and 12 < alpha_loss < 60 and correct == int(correct)
    assert first["network"] == second["network"] and max(first["network"][:1]) < 1e-6
    assert 1 < first["network"][1] < 5


def test_with_synchronised_batch_norms_they_are_one_process(seen: list[dict[str, Any]]) -> None:
    """On parts of different sizes: weights, the gradient of alpha and running statistics."""
    for each in seen:
        others = each["as_one"].pop("not synchronised")
        assert min(others) > 1e-2
        for name, found in each["as_one"].items():
            assert max(found) < 1e-9, name
        assert each["network_as_one"] < 1e-9


def test_accelerated_models_of_other_code_train_under_ddp(seen: list[dict[str, Any]]) -> None:
    assert max(each["of_other_code"] for each in seen) < 1e-7


def test_one_that_is_killed_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    searches = [["vpdarts_fast.search", [*SEARCH, "--out", str(folder)]] for folder in (whole, killed)]
    (ended, said), (again, of_killed) = forked(
        tmp_path, Program(*searches[0]), Program(*searches[1], killed_after=2)
    )
    assert ended == "done" and "2 processes of 1 threads" in said and said.count("\nfound: ") == 1, said
    assert again == "done" and "continued at epoch" in of_killed, of_killed
    assert "error: another process of this run has ended or cannot be reached" in of_killed
    assert outcome(killed) == outcome(whole)


def test_they_stop_together_and_go_on_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    process = torchrun("-m", "vpdarts_fast.search", *SEARCH, "--out", str(folder))
    wait_for_epochs(folder, 1, process)
    process.terminate()
    code, said = finished(process)
    assert code != 0 and "nothing is lost" in said, said
    assert f"continue with: torchrun --nproc-per-node 2 -m vpdarts_fast.search --resume {folder}" in said
    assert RunFolder(folder).result() is None
    assert main(["--resume", str(folder)]) == 0
    assert len(RunFolder(folder).metrics()) == 5 and RunFolder(folder).result() is not None


def test_what_parts_of_batches_do_not_tell_is_refused() -> None:
    for recipe in ("darts-second-order", "idarts"):
        config = SearchConfig().replaced(recipe=recipe)
        with pytest.raises(UserError, match="looks ahead on a training batch, of which each of"):
            check_processes(config, Processes(0, 2))
        check_processes(config, ALONE)
    check_processes(SearchConfig().replaced(recipe="snas-joint"), Processes(0, 2))
