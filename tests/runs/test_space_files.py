"""What files say of a space: read where its code is not there, and refused where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from places import VERSION_1
from report_cases import (
    DARTS,
    DARTS_CHOICES,
    DARTS_SPACE,
    PRUNING,
    RAGGED_CHOICES,
    RAGGED_SPACE,
    SPACES,
    WARMUP,
    Change,
    write_space_run,
)

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.pictures import draw_pictures
from vpdarts_fast.report.run_files import read_run
from vpdarts_fast.runs.formats import SPACE
from vpdarts_fast.runs.space_file import space_to_json
from vpdarts_fast.search import RunFolder, SearchConfig
from vpdarts_fast.spaces.space import AlphaTable


@pytest.fixture
def ragged(tmp_path: Path) -> Path:
    return write_space_run(tmp_path / "run", RAGGED_SPACE, RAGGED_CHOICES)


@pytest.mark.parametrize("name", SPACES)
def test_a_run_folder_is_read_without_the_code_of_its_space(name: str, tmp_path: Path) -> None:
    space, choices = SPACES[name]
    folder = write_space_run(tmp_path / "run", space, choices)
    assert len(RunFolder(folder).metrics()) == WARMUP + PRUNING
    result = RunFolder(folder).result()
    assert result is not None and result["architecture"] == choices[-1][0]


def test_old_runs_without_space_json_are_of_nas_bench_201() -> None:
    run = read_run(VERSION_1 / "seed-3")
    (table,) = run.tables
    assert table.edges == ("0->1", "0->2", "1->2", "0->3", "1->3", "2->3")
    assert run.genotype is not None and len(run.genotype.cells) == 1
    written = json.loads((VERSION_1 / "seed-3" / "result.json").read_text())
    assert str(run.genotype) == written["architecture"]
    assert [op for _, _, op in run.genotype.cells[0].edges] == [
        table.ops[row][op] for row, op in run.genotype.chosen
    ]


def test_a_search_reads_its_files_by_its_settings(tmp_path: Path) -> None:
    """Whatever became of space.json, which only the others need."""
    config = SearchConfig().replaced(space="darts")
    RunFolder.create(tmp_path / "made", config)
    folder = write_space_run(tmp_path / "run", DARTS_SPACE, DARTS_CHOICES)
    (folder / "config.json").write_bytes((tmp_path / "made" / "config.json").read_bytes())
    assert (folder / "space.json").read_text() == (tmp_path / "made" / "space.json").read_text()
    (folder / "space.json").unlink()
    run, found = RunFolder.open(folder)
    assert found.space == config.space
    assert len(run.metrics()) == WARMUP + PRUNING and run.result() is not None
    with pytest.raises(
        UserError, match=r"line 1, .*shape \[6, 5\], by space.json \(without one, that of NAS"
    ):
        read_run(folder)


def put(*keys: Any, value: Any) -> Change:
    """Sets an entry of what is in the files."""

    def change(contents: dict[str, Any]) -> None:
        place: Any = contents
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def without(*keys: Any) -> Change:
    """Removes an entry of what is in the files."""

    def change(contents: dict[str, Any]) -> None:
        place: Any = contents
        for key in keys[:-1]:
            place = place[key]
        place.pop(keys[-1])

    return change


TABLE = ("space", "tables", 0)

DAMAGED: dict[str, tuple[Change, str]] = {
    "no tables": (without("space", "tables"), r"space\.json is damaged: the entry 'tables' is missing"),
    "tables of another type": (put("space", "tables", value=3), "tables must be a list"),
    "empty tables": (put("space", "tables", value=[]), "tables must be a list with something in it"),
    "a table of another type": (put(*TABLE, value=["down"]), "a table must be a mapping"),
    "a path for a name": (put(*TABLE, "name", value="../../down"), "the name of a table must be a word"),
    "an op that is no word": (put(*TABLE, "ops", 0, 0, value="a/b"), "an operation, must be a word"),
    "a number for an op": (put(*TABLE, "ops", 0, 0, value=3), "an operation, must be a word"),
    "an edge without ops": (put(*TABLE, "ops", 1, value=[]), "table down, ops, must be a list with"),
    "an edge too many": (put(*TABLE, "edges", value=["a", "b", "c"]), "table down has 3 edges, and .* of 2"),
    "an edge of control characters": (put(*TABLE, "edges", 0, value="\x07"), "an edge, must be a name"),
    "an op twice": (put(*TABLE, "ops", 0, value=["conv", "conv"]), "table down: a name is there twice"),
    "a table twice": (put("space", "tables", 1, "name", value="down"), "tables: a name is there twice"),
    "an op less": (put(*TABLE, "ops", 0, value=["conv"]), r"line 1, .*must have shape \[5, 2\]"),
    "no drawing": (without("epoch", "drawing"), r"metrics\.jsonl, line 6, .*the entry 'drawing' is missing"),
    "drawing null": (put("epoch", "drawing", value=None), "drawing must be a mapping"),
    "genotype null": (put("epoch", "genotype", value=None), "index and drawing must be null where"),
    "genotype of a surrogate": (put("epoch", "genotype", value="\ud800"), "genotype must be text"),
    "an index of text": (put("result", "index", value="7"), r"result\.json is damaged: index must"),
    "no cells": (put("result", "drawing", "cells", value=[]), "cells must be a list with something in it"),
    "a cell without nodes": (put("result", "drawing", "cells", 0, "nodes", value=[]), "nodes must be a list"),
    "an edge from behind": (
        put("result", "drawing", "cells", 0, "edges", 0, value=[2, 1, "conv"]),
        "cell down, the source of an edge, must be a whole number in 0..0; got 2",
    ),
    "an edge to nowhere": (
        put("result", "drawing", "cells", 0, "edges", 0, value=[0, 4, "conv"]),
        "cell down, the target of an edge, must be a whole number in 1..3; got 4",
    ),
    "an edge of two": (put("result", "drawing", "cells", 0, "edges", 0, value=[0, 1]), "not enough values"),
    "an edge of an empty op": (
        put("result", "drawing", "cells", 0, "edges", 0, value=[0, 1, ""]), "an operation, must be a name"
    ),
    "an edge of no list": (put("result", "drawing", "cells", 0, "edges", 0, value=3), "cannot unpack"),
    "nothing chosen": (put("result", "drawing", "chosen", value=[]), "chosen must be different operations"),
    "chosen twice": (
        put("result", "drawing", "chosen", value=[[0, 1], [0, 1]]), "chosen must be different operations"
    ),
    "a row too many": (put("result", "drawing", "chosen", 4, value=[5, 0]), "a row, must be .*; got 5"),
    "an op that an edge has not": (
        put("result", "drawing", "chosen", 1, value=[1, 1]), "operation of row 1, must be .* in 0..0; got 1"
    ),
    "a finalist of no text": (put("result", "finalists", "rounds", 0, "winner", value=1), "must be text"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_entries_are_refused(name: str, tmp_path: Path) -> None:
    change, complaint = DAMAGED[name]
    folder = write_space_run(tmp_path / "run", RAGGED_SPACE, RAGGED_CHOICES, change)
    with pytest.raises(UserError, match=complaint) as caught:
        draw_pictures(folder)
    assert str(folder) in str(caught.value) and " is damaged: " in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not list(folder.glob("*.png"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "vpdarts_fast search space, version 1"}', "\0"])
def test_a_space_json_that_is_none_is_refused(text: str, ragged: Path) -> None:
    (ragged / "space.json").write_text(text)
    with pytest.raises(UserError, match=r"space\.json is damaged: .*remove it, and --resume the run"):
        read_run(ragged)


def test_a_space_json_of_a_newer_version_is_refused(ragged: Path) -> None:
    newer = SPACE.mark.replace("version 1", "version 2")
    (ragged / "space.json").write_text(json.dumps({"format": newer, **RAGGED_SPACE}))
    with pytest.raises(UserError, match=r"space\.json was written by a newer vpdarts_fast"):
        read_run(ragged)


def test_a_space_whose_names_files_cannot_have_is_refused() -> None:
    class Odd(type(DARTS)):  # type: ignore[misc]
        name = "odd-for-a-test"

        @property
        def tables(self) -> tuple[AlphaTable, ...]:
            return (AlphaTable.uniform("up/down", ["0->1"], ["conv"]),)

    with pytest.raises(
        UserError, match="the space odd-for-a-test has tables that cannot be searched: the name"
    ):
        space_to_json(Odd())
