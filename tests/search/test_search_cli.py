"""The command line of the search: what it prints, what it refuses, signals, output that fails."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh_process import run_python
from places import ROOT
from search_commands import TINY, error_of, full_disk, stop_after

from vpdarts_fast import native
from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.command_line import forgiving_output
from vpdarts_fast.data import load
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import leave_one_out
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.search import PRESETS, RunFolder, Search, SearchConfig, running
from vpdarts_fast.search import __main__ as command_line
from vpdarts_fast.search.__main__ import StopRequest, main
from vpdarts_fast.search.config import flag
from vpdarts_fast.search.console import Console
from vpdarts_fast.search.methods.pruning import SoftPruning
from vpdarts_fast.search.methods.schedules import WarmUpAndPruning
from vpdarts_fast.search.settings import MethodSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_search_from_the_command_line(
    tmp_path: Path, pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main([*TINY, "--out", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "space.json", "metrics.jsonl", "checkpoint.pt", "result.json", "log.txt",
        "cell.png", "cell.svg", "alpha.png", "importance.png", "curves.png",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\r" not in printed, "plain lines where there is no terminal"
    assert printed == (folder / "log.txt").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("format") == "vpdarts_fast search settings, version 14" and config.pop("digest")
    for name, value in SearchConfig.read(folder / "config.json").flat().items():
        assert f"{name}={value}" in printed
    assert sum(line.startswith("epoch ") for line in printed.splitlines()) == 3
    result = json.loads((folder / "result.json").read_text())
    assert f"found: {result['architecture']}\nindex: {result['index']}\n" in printed
    assert result["benchmark"] == BenchmarkTable.published().accuracy(result["index"])
    assert f"NAS-Bench-201 accuracy: [C10 {result['benchmark']['cifar10_test_200ep']:.2f} " in printed
    # Asked to go on with it, it says what was found; asked for another in its place, it refuses.
    assert main(["--resume", str(folder)]) == 0
    assert "this run is finished" in (again := capsys.readouterr().out) and result["architecture"] in again
    assert "exists and is not empty" in error_of([*TINY, "--out", str(folder)], capsys)


def test_the_statistics_of_each_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluated as the plain modules are; a stop in the midst of an evaluation changes nothing."""
    flags = ["--batch-norm", "variant", "--pruning-epochs", "1"]
    flags += ["--validation-proportion", "1", "--evaluation-batch-size", "32"]
    assert main([*TINY, *flags, "--out", str(tmp_path / "whole")]) == 0
    run, config = RunFolder.open(tmp_path / "whole")
    search = Search(config, load("digits"), run, observer=None)  # type: ignore[arg-type]
    search.resume()
    batch = search.validation.batch(torch.arange(len(search.validation)))
    state, found = search.state, run.result()
    expected = leave_one_out(state.supernet, [batch], state.alpha, batch_norm="variant", batched=False)
    assert found and found["importance"]["batch_norm"] == "variant"
    torch.testing.assert_close(
        torch.tensor(found["importance"]["loss"]), expected.loss.float(), rtol=1e-4, atol=1e-4
    )
    with monkeypatch.context() as patch:
        stop_after(3, patch)  # two steps and the end of the epoch of warm-up come before
        assert main([*TINY, *flags, "--out", str(tmp_path / "stopped")]) == 130
    saved = checkpoint.load(tmp_path / "stopped" / "checkpoint.pt")
    assert saved["epoch"] == 1 and not saved["record"]["began"]
    assert main(["--resume", str(tmp_path / "stopped")]) == 0
    assert RunFolder(tmp_path / "stopped").result()["importance"] == found["importance"]  # type: ignore[index]


PARTS = frozenset(
    {"relaxation", "variation", "schedule", "alpha_rule", "regulariser", "criterion", "pruning", "stopping"}
)


def test_every_setting_is_a_flag_with_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    with pytest.raises(SystemExit) as exit_status:
        main(["--help"])
    assert exit_status.value.code == 0
    shown = capsys.readouterr().out
    groups = [type(getattr(PRESETS["quick"], field.name)) for field in dataclasses.fields(SearchConfig)][1:]
    for kind in (*groups, SoftPruning, WarmUpAndPruning, command_line.Command):
        (definition,) = ast.parse(inspect.getsource(kind)).body
        assert isinstance(definition, ast.ClassDef)
        for field, following in itertools.pairwise(definition.body):
            if not isinstance(field, ast.AnnAssign) or "ClassVar" in ast.unparse(field.annotation):
                continue
            assert isinstance(field.target, ast.Name)
            if field.target.id == "config" or (kind is MethodSettings and field.target.id in PARTS):
                continue  # their own settings are flags, and their names flags of the command
            text = following.value if isinstance(following, ast.Expr) else None
            assert isinstance(text, ast.Constant) and len(str(text.value)) > 10, (
                f"{field.target.id} has no help"
            )
            if field.target.id not in ("seed", "recipe"):
                assert f"{flag(field.target.id)} " in shown or f"{flag(field.target.id)}," in shown
                assert str(text.value).split()[0] in shown


def test_the_help_says_where_defaults_come_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    with pytest.raises(SystemExit):
        main(["--preset", "cpu", "--method", "darts", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Defaults are those of VP-DARTS' paper; those of --preset cpu for --channels" in shown
    assert "those of --method darts for --relaxation --criterion --pruning" in shown


def test_presets() -> None:
    assert {name: preset.preset for name, preset in PRESETS.items()} == {name: name for name in PRESETS}
    assert command_line.parse([]).config == PRESETS["quick"]
    assert command_line.parse(["--preset=cpu", "--channels", "4"]).config.space.channels == 4
    paper, cpu = PRESETS["paper"].flat(), PRESETS["cpu"].flat()
    assert (paper["channels"], paper["cells_per_stage"], paper["warmup_epochs"], paper["pruning_epochs"]) == (
        16,
        5,
        20,
        30,
    )
    assert (cpu["committee"], cpu["batch_norm"], cpu["criterion"]) == (16, "variant", "loss")
    assert (cpu["channels"], cpu["cells_per_stage"], cpu["warmup_epochs"], cpu["pruning_epochs"]) == (
        8,
        5,
        4,
        0,
    )
    assert (cpu["images_per_epoch"], cpu["finalists"], paper["images_per_epoch"], paper["finalists"]) == (
        5_000,
        12,
        None,
        0,
    )
    assert PRESETS["quick"].images.dataset == "digits" and cpu["dataset"] == paper["dataset"] == "cifar10"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--bogus", "1"], "--bogus"),
        (["--channels", "x"], "--channels"),
        (["--channels", "0"], "--channels must be at least 1; got 0"),
        (["--preset", "foo"], "foo"),
        (["--validation-proportion", "0"], "--validation-proportion must be in (0, 1]; got 0.0"),
        (["--validation-proportion", "1.5"], "--validation-proportion must be in (0, 1]; got 1.5"),
        (["--skip-dropout", "1"], "--skip-dropout must be in [0, 1); got 1.0"),
        (["--gradient-clip", "0"], "--gradient-clip must be above 0; got 0.0"),
        (["--learning-rate", "nan"], "--learning-rate must be at least 0; got nan"),
        (["--warmup-epochs", "0", "--pruning-epochs", "0"], "nothing to train"),
        (["--resume"], "--resume"),
    ],
)
def test_bad_flags(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(arguments)
    assert exit_status.value.code == 2
    shown = capsys.readouterr()
    assert complaint in " ".join((shown.out + shown.err).replace("│", " ").split())
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--dataset", "npz", "--data", "nowhere.npz"], "data set npz not found"),
        (["--dataset", "cifar10", "--data", "nowhere"], "data set cifar10 not found"),
        (["--benchmark-table", "nowhere.csv"], "nowhere.csv"),
        (["--pruning", "medium"], "--pruning medium is not known; there are soft, hard, progressive"),
        (["--method", "guess"], "--method guess is not known; there are vp-darts, "),
        (["--plugin", "nowhere.py"], "--plugin nowhere.py: there is no such file"),
        (["--device", "abacus"], "--device must be auto, cpu or cuda; got 'abacus'"),
        (["--seeds", "1", "1"], "--seeds must be different whole numbers from 0; got (1, 1)"),
        (["--seeds", "-1"], "--seeds must be different whole numbers from 0; got (-1,)"),
        (["--resume", "nowhere"], "nowhere is not the folder of a run: it holds no config.json"),
    ],
)
def test_bad_surroundings(
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint in error_of([*TINY, *arguments], capsys)
    assert not (tmp_path / "runs").exists(), "no folder is left of a search that cannot begin"


@pytest.mark.usefixtures("no_tensorboard")
@pytest.mark.parametrize("seeds", [["0"], ["0", "1"]])
def test_missing_tensorboard_is_an_error_before_anything_is_read_or_made(
    seeds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(running, "load_images")
    said = error_of([*TINY, "--tensorboard", "--out", "run", "--seeds", *seeds], capsys)
    assert "needs the package tensorboard" in said
    assert "pip install 'vpdarts-fast[tensorboard]', or search with --no-tensorboard" in said
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert "cannot make the run folder" in error_of([*TINY, "--out", str(tmp_path / "file")], capsys)


def test_log_and_pictures_are_worth_a_warning_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise UserError("the pencil broke")

    monkeypatch.setattr(RunFolder, "write_log", full_disk)
    monkeypatch.setattr(running, "draw_pictures", fail)
    assert main([*TINY, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert said.count("log.txt: No space left on device; the search goes on without") == 1
    assert "no pictures: the pencil broke" in said and "python -m vpdarts_fast.report" in said
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_standard_output_that_fails_is_worth_a_warning_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PRESETS["quick"]
    run = RunFolder.create(tmp_path / "run", config)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with forgiving_output(), Console(run, config) as console:
            console.line("one")
            console.line("two")
    assert capsys.readouterr().err.count("cannot write the standard output: No space left on device") == 1
    assert run.log.read_text() == "one\ntwo\n"


def test_a_search_that_diverges_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    said = error_of([*TINY, "--learning-rate", "1e30", "--out", str(folder)], capsys)
    assert "loss is nan in epoch" in said and "smaller --learning-rate" in said
    if (folder / "checkpoint.pt").exists():
        checkpoint.load(folder / "checkpoint.pt")


SIGNALLED = """
import os, sys, threading, time
from pathlib import Path
from vpdarts_fast.search.__main__ import main

def send(number, metrics):
    while not metrics.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), number)

number, folder, *arguments = sys.argv[1:]
threading.Thread(target=send, args=(int(number), Path(folder, "metrics.jsonl")), daemon=True).start()
sys.exit(main([*arguments, "--out", folder]))
"""
"""A search that gets a signal some time after its first epoch."""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_a_search_in_order(number: signal.Signals, status: int, tmp_path: Path) -> None:
    program, folder = tmp_path / "program.py", tmp_path / "run"
    program.write_text(SIGNALLED)
    arguments = [str(int(number)), str(folder), *TINY, "--warmup-epochs", "1000"]
    environment = {"PYTHONPATH": str(ROOT)}
    ended, said = run_python([str(program), *arguments], tmp_path, environment, timeout=60)
    assert ended == status, said
    assert f"continue with: python -m vpdarts_fast.search --resume {folder}" in said
    assert "stopping after this step" in said and "Traceback" not in said
    assert checkpoint.load(folder / "checkpoint.pt")["epoch"] >= 1


def test_the_second_signal_stops_at_once() -> None:
    previous = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        while not stop():
            time.sleep(0.01)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is previous


@pytest.mark.parametrize("busy", ["load_images", "draw_pictures"])
def test_signals_outside_the_search_stop_at_once(
    busy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While images are loaded or pictures drawn there is nothing to save."""

    def wait(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(running, busy, wait)
    assert main([*TINY, "--out", str(tmp_path / "run")]) == 143
    captured = capsys.readouterr()
    assert captured.err == "stopped at once\n"
    assert ("found: " in captured.out) == (tmp_path / "run").exists() == (busy == "draw_pictures")


def test_an_unsupported_instruction_set_is_an_error_before_there_is_a_folder(tmp_path: Path) -> None:
    """In a process of its own, since an instruction set is chosen once."""
    if not native.available():
        pytest.skip(str(native.why_not()))
    environment = {"VPDARTS_CPU_ISA": "sse9", "PYTHONPATH": str(ROOT)}
    command = ["-m", "vpdarts_fast.search", "--out", str(tmp_path / "run")]
    status, said = run_python(command, tmp_path, environment)
    assert status == 2
    assert said.startswith("error: VPDARTS_CPU_ISA must be one of baseline")
    assert not (tmp_path / "run").exists()
