"""The command line of the search: what it prints, what it refuses, signals, full disks, several seeds."""

from __future__ import annotations

import ast
import errno
import inspect
import itertools
import json
import os
import pickle
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vpdarts_fast import native
from vpdarts_fast.errors import UserError
from vpdarts_fast.search import PRESETS, RunFolder, SearchConfig, checkpoint
from vpdarts_fast.search import __main__ as command_line
from vpdarts_fast.search.__main__ import StopRequest, main
from vpdarts_fast.search.config import flag
from vpdarts_fast.search.console import Console

TINY = [
    "--max-images", "64", "--channels", "2", "--warmup-epochs", "1", "--pruning-epochs", "2",
    "--batch-size", "16", "--threads", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # --threads has changed it


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the search."""
    monkeypatch.setattr(command_line, "draw_pictures", lambda folder: [])


def stop_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the next search stop when it has asked so often whether it should."""
    counter = itertools.count()
    monkeypatch.setattr(StopRequest, "__call__", lambda self: next(counter) == calls)


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(5, monkeypatch)
        assert main([*TINY, "--out", str(folder)]) == 130
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(stopped_once, tmp_path / "run")
    return tmp_path / "run"


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says on its way out with status 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    return captured.err


def test_a_search_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main([*TINY, "--out", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "metrics.jsonl", "checkpoint.pt", "result.json", "log.txt",
        "cell.png", "cell.svg", "alpha.png", "importance.png", "curves.png",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\r" not in printed, "plain lines where there is no terminal"
    assert printed == (folder / "log.txt").read_text()
    config = json.loads((folder / "config.json").read_text())
    for name, value in config.items():
        assert f"{name}={tuple(value) if isinstance(value, list) else value}" in printed
    assert sum(line.startswith("epoch ") for line in printed.splitlines()) == 3
    result = json.loads((folder / "result.json").read_text())
    assert f"found: {result['architecture']}\nindex: {result['index']}\n" in printed
    # Asked to go on with it, it says what was found; asked for another in its place, it refuses.
    assert main(["--resume", str(folder)]) == 0
    assert "this run is finished" in (again := capsys.readouterr().out) and result["architecture"] in again
    assert "exists and is not empty" in error_of([*TINY, "--out", str(folder)], capsys)


def test_every_setting_is_a_flag_with_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    with pytest.raises(SystemExit) as exit_status:
        main(["--help"])
    assert exit_status.value.code == 0
    shown = capsys.readouterr().out
    for kind in (SearchConfig, command_line.Command):
        (definition,) = ast.parse(inspect.getsource(kind)).body
        assert isinstance(definition, ast.ClassDef)
        for field, following in itertools.pairwise(definition.body):
            if not isinstance(field, ast.AnnAssign):
                continue
            assert isinstance(field.target, ast.Name)
            if field.target.id == "config":
                continue
            text = following.value if isinstance(following, ast.Expr) else None
            assert isinstance(text, ast.Constant) and len(str(text.value)) > 10, (
                f"{field.target.id} has no help"
            )
            if field.target.id != "seed":
                assert f"{flag(field.target.id)} " in shown or f"{flag(field.target.id)}," in shown
                assert str(text.value).split()[0] in shown


def test_presets() -> None:
    assert {name: preset.preset for name, preset in PRESETS.items()} == {name: name for name in PRESETS}
    assert command_line.parse([]).config == PRESETS["quick"]
    assert command_line.parse(["--preset=cpu", "--channels", "4"]).config.channels == 4
    paper, cpu = PRESETS["paper"], PRESETS["cpu"]
    assert (paper.channels, paper.cells_per_stage, paper.warmup_epochs, paper.pruning_epochs) == (
        16,
        5,
        20,
        30,
    )
    assert (cpu.channels, cpu.cells_per_stage, cpu.warmup_epochs, cpu.pruning_epochs) == (16, 1, 20, 30)
    assert PRESETS["quick"].dataset == "digits" and cpu.dataset == paper.dataset == "cifar10"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--bogus", "1"], "--bogus"),
        (["--channels", "x"], "--channels"),
        (["--channels", "0"], "--channels must be at least 1; got 0"),
        (["--preset", "foo"], "foo"),
        (["--pruning", "medium"], "medium"),
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
    monkeypatch.delattr(command_line, "load")
    said = error_of([*TINY, "--tensorboard", "--out", "run", "--seeds", *seeds], capsys)
    assert "needs the package tensorboard" in said
    assert "pip install 'vpdarts-fast[tensorboard]', or search with --no-tensorboard" in said
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert "cannot make the run folder" in error_of([*TINY, "--out", str(tmp_path / "file")], capsys)


def test_resume_goes_on_and_refuses_other_settings(
    stopped: Path, no_pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of(["--resume", str(stopped), "--channels", "3", "--seed", "4"], capsys)
    assert "--channels: the run has 2, asked for 3" in said and "--seeds" in said
    assert "stays in its folder" in error_of(["--resume", str(stopped), "--out", "elsewhere"], capsys)
    assert main(["--resume", str(stopped)]) == 0
    assert "VP-DARTS search, continued at epoch 2, step " in capsys.readouterr().out
    assert [line["epoch"] for line in RunFolder(stopped).metrics()] == [0, 1, 2]


class Hostile:
    """Runs a command when it is unpickled by a reader that trusts it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def change_checkpoint(**entries: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        checkpoint.save(path, {**checkpoint.load(path), **entries})

    return change


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (truncate, "checkpoint.pt is damaged or not a checkpoint"),
        (lambda path: path.write_bytes(b""), "checkpoint.pt is damaged or not a checkpoint"),
        (lambda path: path.write_bytes(os.urandom(1000)), "checkpoint.pt is damaged or not a checkpoint"),
        (lambda path: torch.save({"weights": torch.ones(3)}, path), "is not a checkpoint of a search"),
        (lambda path: torch.save(torch.ones(3), path), "is not a checkpoint of a search"),
        (lambda path: torch.save(Hostile(path.with_name("trace")), path), "damaged or not a checkpoint"),
        (lambda path: path.write_bytes(pickle.dumps(Hostile(path.with_name("trace")), 2)), "damaged or not"),
        (change_checkpoint(format="another"), None),
        (change_checkpoint(alpha=torch.ones(3, 5)), "does not fit the settings of this run: alpha is [3, 5]"),
        (change_checkpoint(supernet={}), "does not fit the settings of this run"),
        (change_checkpoint(config=None), "does not hold the settings of a search"),
        (change_checkpoint(config={"channels": 2}), "missing or unknown settings"),
    ],
)
def test_bad_checkpoints(
    spoil: Callable[[Path], None], complaint: str | None, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(stopped / "checkpoint.pt")
    said = error_of(["--resume", str(stopped)], capsys)
    assert "checkpoint.pt" in said and (complaint or "is not a checkpoint of a search") in said
    assert not (stopped / "trace").exists(), "what is in a checkpoint is not run"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"channels": "x"}, "config.json: channels must be int; got 'x'"),
        ({"channels": 2.5}, "config.json: channels must be int; got 2.5"),
        ({"channels": True}, "config.json: channels must be int; got True"),
        ({"fused": 1}, "config.json: fused must be bool; got 1"),
        ({"alpha_betas": [0.5]}, "config.json: alpha_betas must be"),
        ({"pruning": "medium"}, "config.json: pruning must be one of soft, hard, progressive; got 'medium'"),
        ({"dataset": ["digits"]}, "config.json: dataset must be one of digits, "),
        ({"channels": 0}, "config.json: --channels must be at least 1; got 0"),
        ({"colour": "red"}, "missing or unknown settings: colour"),
        (
            {"learning_rate": 0.5},
            "checkpoint.pt contradicts config.json:\n  --learning-rate: the run has 0.025",
        ),
        ({"channels": 4}, "checkpoint.pt contradicts config.json:\n  --channels: the run has 2, asked for 4"),
    ],
)
def test_edited_settings(
    changes: dict[str, Any], complaint: str, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stopped / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert complaint in error_of(["--resume", str(stopped)], capsys)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", "[]", "does not hold the settings of a search"),
        ("metrics.jsonl", '{"epoch": 0', "metrics.jsonl is damaged"),
        ("metrics.jsonl", "{}\n", "metrics.jsonl is damaged: a line is not of an epoch"),
        ("result.json", "{}", "result.json is damaged"),
        ("seeds.json", "{}", "seeds.json is damaged"),
    ],
)
def test_damaged_files(
    name: str, content: str, complaint: str, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped / name).write_text(content)
    assert complaint in error_of(["--resume", str(stopped)], capsys)


def test_a_full_disk_keeps_the_last_checkpoint(
    stopped: Path, no_pictures: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (stopped / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", refuse)
        said = error_of(["--resume", str(stopped)], capsys)
    assert "No space left on device" in said and f"--resume {stopped}" in said
    assert (stopped / "checkpoint.pt").read_bytes() == before
    assert not list(stopped.glob("*.partial"))
    assert main(["--resume", str(stopped)]) == 0


def refuse(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_log_and_pictures_are_worth_a_warning_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise UserError("the pencil broke")

    monkeypatch.setattr(RunFolder, "write_log", refuse)
    monkeypatch.setattr(command_line, "draw_pictures", fail)
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
    with Path("/dev/full").open("w") as full, Console(run, config) as console:
        monkeypatch.setattr(sys, "stdout", full)
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


def test_several_seeds(
    tmp_path: Path, no_pictures: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second seed's search and continued, they come to the same."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*TINY, "--seeds", "3", "7", "--out", str(whole)]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((whole / "summary.json").read_text())
    results = [json.loads((whole / f"seed-{seed}" / "result.json").read_text()) for seed in (3, 7)]
    low, high = sorted(result["base_accuracy"] for result in results)
    measured = summary["accuracies"]["base_accuracy"]
    assert measured["mean"] == pytest.approx((low + high) / 2)
    assert measured["variance"] == pytest.approx((high - low) ** 2 / 2)
    assert measured["standard_deviation"] == pytest.approx(statistics.stdev([low, high]))
    assert [summary["seeds"][seed]["architecture"] for seed in ("3", "7")] == [
        result["architecture"] for result in results
    ]
    assert f"base_accuracy: mean {(low + high) / 2:.2f} %, standard deviation" in printed
    assert [json.loads((whole / f"seed-{s}" / "config.json").read_text())["seed"] for s in (3, 7)] == [3, 7]

    with monkeypatch.context() as patch:
        stop_after(15, patch)
        assert main([*TINY, "--seeds", "3", "7", "--out", str(parts)]) == 130
    assert f"--resume {parts}\n" in capsys.readouterr().out
    assert RunFolder(parts / "seed-3").result() and not RunFolder(parts / "seed-7").result()
    assert "exists and is not empty" in error_of([*TINY, "--seeds", "3", "7", "--out", str(parts)], capsys)
    assert "--seeds: the run has (3, 7)" in error_of(["--resume", str(parts), "--seeds", "3"], capsys)
    assert main(["--resume", str(parts)]) == 0
    assert json.loads((parts / "summary.json").read_text()) == summary


def test_tensorboard_has_each_epoch_once(
    tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        assert main([*TINY, "--tensorboard", "--out", str(folder)]) == 130
    assert main(["--resume", str(folder)]) == 0
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/weights")] == [0, 1, 2]
    assert [event.step for event in events.Scalars("accuracy/leave_one_out_base")] == [1, 2, 3]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_a_search_in_order(number: signal.Signals, status: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "vpdarts_fast.search", *TINY[:-4], "--threads", "1"]
    with subprocess.Popen(
        [*command, "--warmup-epochs", "1000", "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stderr
        for line in process.stdout:
            if line.startswith("epoch "):
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert f"continue with: python -m vpdarts_fast.search --resume {folder}" in out
    assert "stopping after this step" in err and "Traceback" not in err
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


@pytest.mark.parametrize("busy", ["load", "draw_pictures"])
def test_signals_outside_the_search_stop_at_once(
    busy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While images are loaded or pictures drawn there is nothing to save."""

    def wait(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(command_line, busy, wait)
    assert main([*TINY, "--out", str(tmp_path / "run")]) == 143
    captured = capsys.readouterr()
    assert captured.err == "stopped at once\n"
    assert ("found: " in captured.out) == (tmp_path / "run").exists() == (busy == "draw_pictures")


def test_an_unsupported_instruction_set_is_an_error_before_there_is_a_folder(tmp_path: Path) -> None:
    """In a process of its own, since an instruction set is chosen once."""
    if not native.available():
        pytest.skip(str(native.why_not()))
    run = subprocess.run(
        [sys.executable, "-m", "vpdarts_fast.search", "--out", str(tmp_path / "run")],
        env=os.environ | {"VPDARTS_CPU_ISA": "sse9"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: VPDARTS_CPU_ISA must be one of baseline")
    assert not (tmp_path / "run").exists()
