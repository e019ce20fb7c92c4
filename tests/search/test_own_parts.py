"""A space and parts that nothing in the package knows, in whole searches from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fresh_process import run_python
from places import ROOT, SUPPORT
from search_calls import outcome
from search_commands import error_of, stop_after

from vpdarts_fast.report.run_files import read_run
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.search import RunFolder
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.spaces.space import Space

pytestmark = pytest.mark.usefixtures("one_thread")

SPACE = str(ROOT / "examples" / "own_space.py")
PARTS = str(SUPPORT / "own_parts.py")
SEARCH = [
    "--plugin", SPACE, "--plugin", PARTS, "--space", "two-cells",
    "--relaxation", "test-sigmoid", "--sharpness", "3", "--criterion", "test-both",
    "--regulariser", "test-pull", "--force", "0.25", "--pruning", "progressive",
    "--channels", "2", "--max-images", "64", "--warmup-epochs", "1", "--pruning-epochs", "3",
    "--batch-size", "16",
    "--finalists", "2", "--finalist-steps", "2", "--finalist-budget", "8", "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that was not interrupted."""
    folder = tmp_path_factory.mktemp("own") / "whole"
    assert main([*SEARCH, "--out", str(folder)]) == 0
    return folder


def test_it_ends_with_a_choice_in_the_space(whole: Path) -> None:
    space: Any = Space.named("two-cells")()
    result = RunFolder(whole).result()
    assert result is not None and result["space"] == "two-cells" and result["index"] is None
    genotype = space.parse(result["architecture"])
    assert str(genotype) == result["architecture"]
    assert space.network(genotype, 10) is not None
    assert result["finalists"]["search"]["architecture"]
    _, config = RunFolder.open(whole)
    settings = config.flat()
    assert (settings["sharpness"], settings["force"]) == (3.0, 0.25)
    assert settings["relaxation"] == "test-sigmoid" and settings["criterion"] == "test-both"


def test_absent_ops_take_no_part(whole: Path) -> None:
    """On an edge with two operations the third column is no operation."""
    space: Any = Space.named("two-cells")()
    for epoch in RunFolder(whole).metrics():
        for row, present in zip(epoch["alpha"], space.present.tolist(), strict=True):
            assert all(there or value == 0 for value, there in zip(row, present, strict=True))
        if epoch["importance"]:
            base = epoch["importance"]["base_loss"]
            for row, present in zip(epoch["importance"]["loss"], space.present.tolist(), strict=True):
                assert all(there or value == base for value, there in zip(row, present, strict=True))


@pytest.mark.parametrize("after", [6, 13])
def test_a_stopped_search_ends_the_same(
    after: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, with random weights and what the regulariser keeps from step to step."""
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_after(after, patch)
        assert main([*SEARCH, "--out", str(folder)]) == 130
    assert main(["--plugin", SPACE, "--plugin", PARTS, "--resume", str(folder)]) == 0
    assert outcome(folder) == outcome(whole)
    kept = checkpoint.load(folder / "checkpoint.pt")["parts"]
    assert int(kept["regulariser"]["steps"]) == 3 * 2


def test_it_is_drawn_without_its_code(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    program = tmp_path / "program.py"
    program.write_text(
        "import sys; from pathlib import Path; from vpdarts_fast.report.pictures import draw_pictures; "
        f"draw_pictures(Path({str(folder)!r})); "
        "assert not [name for name in sys.modules if 'own_' in name]"
    )
    status, output = run_python([str(program)], ROOT)
    assert status == 0, output
    drawn = {path.name for path in folder.iterdir()}
    assert {"cell.png", "cell.svg", "curves.png", "finalists.png"} <= drawn
    assert {"alpha-wide.png", "alpha-deep.png", "importance-wide.png", "importance-deep.png"} <= drawn
    assert [table.name for table in read_run(folder).tables] == ["wide", "deep"]


def test_a_folder_imports_nothing_by_itself(whole: Path) -> None:
    """Resuming without --plugin says which part is not known, and what to do; no code is looked for."""
    status, output = run_python(["-m", "vpdarts_fast.search", "--resume", str(whole)], ROOT)
    assert status == 2, output
    assert "config.json: --space two-cells is not known" in output
    assert "found where --plugin names its file" in output
    assert "own_" not in (whole / "config.json").read_text()


def test_a_part_cannot_be_exchanged_on_resume(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugins = ["--plugin", SPACE, "--plugin", PARTS]
    said = error_of([*plugins, "--resume", str(whole), "--force", "0.5"], capsys)
    assert "--force: the run has 0.25, asked for 0.5" in said
    said = error_of([*plugins, "--resume", str(whole), "--criterion", "loss"], capsys)
    assert "--criterion: the run has test-both, asked for loss" in said


def test_a_plugin_that_fails_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    said = error_of(["--plugin", str(tmp_path / "broken.py")], capsys)
    assert "cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_name'" in said
    said = error_of(["--plugin", "no.such.module"], capsys)
    assert "--plugin no.such.module cannot be imported" in said


def test_settings_of_parts_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--plugin", PARTS, "--relaxation", "test-sigmoid", "--pruning", "hard", "--help"])
    shown = capsys.readouterr().out
    assert "--sharpness" in shown and "Alpha is multiplied with it" in shown


def test_the_settings_in_the_folder_are_named(whole: Path) -> None:
    settings = json.loads((whole / "config.json").read_text())
    assert settings["space"] == {"name": "two-cells", "channels": 2}
    assert settings["method"]["relaxation"] == {"name": "test-sigmoid", "sharpness": 3.0}
