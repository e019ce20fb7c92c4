"""How often decayed ops come back, in runs made up here and in a search."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from nas_bench_201_runs import make_epoch
from places import VERSION_1

from vpdarts_fast.analysis.returns import main, returns
from vpdarts_fast.report.run import Choice, Finalists, Result, Run
from vpdarts_fast.report.run_files import parse_epoch
from vpdarts_fast.runs.formats import EPOCH
from vpdarts_fast.spaces.nas_bench_201 import Genotype, NasBench201

SPACE = NasBench201()


def cell(first: int, last: int = 3) -> Genotype:
    """With these ops on the first and on the last edge."""
    return Genotype.from_choices([first, 3, 3, 3, 3, last])


def make_run(cells: Sequence[Genotype | None], decays: Sequence[float | None], end: Genotype | None) -> Run:
    """One whose evaluations chose these cells and decayed all else."""
    epochs = []
    for number, (genotype, decay) in enumerate(zip(cells, decays, strict=True)):
        values = {"genotype": genotype and str(genotype), "index": genotype and genotype.index}
        epoch = {**make_epoch(number, importance=False), **values, "decay": decay}
        epochs.append(parse_epoch(EPOCH.upgraded(epoch, "epoch"), SPACE.tables))
    return Run(
        SPACE.tables, tuple(epochs), Result(choice(end), None, {}, None, None, 0.5, 1.0) if end else None
    )


def choice(genotype: Genotype) -> Choice:
    """As files have it."""
    return Choice(str(genotype), SPACE.drawings(genotype), tuple(enumerate(genotype.choices)))


@pytest.mark.parametrize(
    ("cells", "decays", "end", "expected"),
    [
        # Nothing is decayed in the warm-up, or by a factor of 1: the third epoch is the first to decay.
        ([None, cell(1), cell(2), cell(2)], [None, 1.0, 0.8, 0.6], cell(2), (24, [])),
        ([None, cell(1), cell(2), cell(1)], [None, 1.0, 0.8, 0.6], cell(1), (24, [1])),
        # One that never was important, after three decays; at the end another, after one.
        ([cell(1), cell(1), cell(1), cell(4)], [0.9, 0.8, 0.7, 0.6], cell(1), (30, [3, 1])),
        # Back and forth on one edge, and on another one once; a run that is not finished.
        ([cell(1), cell(2), cell(1, 4), cell(2, 4)], [0.0] * 4, None, (24, [1, 1, 2, 1])),
        # Where an epoch decays nothing, nobody has waited.
        ([cell(1), cell(2), cell(1)], [None, None, None], cell(2), (24, [])),
        ([None, None], [None, None], cell(2), (6, [])),
        ([None], [None], None, (0, [])),
    ],
)
def test_returns(
    cells: list[Genotype | None],
    decays: list[float | None],
    end: Genotype | None,
    expected: tuple[int, list[int]],
) -> None:
    assert returns(make_run(cells, decays, end), SPACE) == expected


def test_the_last_decision_is_the_search_s_own_whatever_finalists_came_to() -> None:
    run = make_run([cell(1), cell(1)], [0.9, 0.8], cell(1))
    assert run.result is not None
    finalists = Finalists(str(cell(2)), (str(cell(1)),), {}, {})
    run = dataclasses.replace(run, result=dataclasses.replace(run.result, finalists=finalists))
    assert returns(run, SPACE) == (18, [2])


def test_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of several seeds stands for all of them; one is not finished, and in its warm-up."""
    folder = VERSION_1
    assert main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second, end = (
        json.loads(line)
        for line in [
            *(folder / "seed-3" / "metrics.jsonl").read_text().splitlines()[1:],
            (folder / "seed-3" / "result.json").read_text(),
        ]
    )
    chosen = [
        Genotype.from_string(entry) for entry in (first["genotype"], second["genotype"], end["architecture"])
    ]
    assert (first["decay"], second["decay"]) == (1.0, 0.5)
    count = sum(one != other for one, other in zip(chosen[1].ops, chosen[2].ops, strict=True))
    assert lines[0].startswith(f"{folder / 'seed-3'}: 18 decisions, {count} of them for an op that had been")
    assert lines[1] == f"{folder / 'seed-4'}: 0 decisions, 0 of them for an op that had been decayed"


def test_a_folder_of_no_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_status:
        main([])
    assert exit_status.value.code == 2 and "name at least one RUN" in capsys.readouterr().err
