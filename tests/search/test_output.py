"""What is printed can fail in many ways; no command line fails with it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from search_commands import TINY, full_disk

from vpdarts_fast.analysis import cost_model, kendall
from vpdarts_fast.backends import __main__ as backends
from vpdarts_fast.benchmark_table import __main__ as benchmark_table
from vpdarts_fast.command_line import command, forgiving_output, warn
from vpdarts_fast.errors import UserError
from vpdarts_fast.report import __main__ as report
from vpdarts_fast.search import RunFolder, running
from vpdarts_fast.search import __main__ as search

pytestmark = pytest.mark.usefixtures("one_thread")

MAINS: dict[str, Callable[..., int]] = {
    "search": search.main,
    "report": report.main,
    "kendall": kendall.main,
    "cost model": cost_model.main,
    "backends": backends.main,
    "benchmark table": benchmark_table.main,
}


def closed() -> io.TextIOWrapper:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    stream.close()
    return stream


def broken_pipe() -> io.TextIOWrapper:
    """Its reader has gone; what is written waits in a buffer first."""
    reader, writer = os.pipe()
    os.close(reader)
    return io.TextIOWrapper(io.FileIO(writer, "w"), encoding="utf-8", write_through=False)


def full() -> io.TextIOWrapper:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    return Path("/dev/full").open("w")


def ascii_only() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


FAILING: dict[str, Callable[[], Any]] = {
    "closed": closed,
    "broken pipe": broken_pipe,
    "full": full,
    "none": lambda: None,
}


@pytest.mark.parametrize("make", FAILING.values(), ids=FAILING)
def test_a_failing_output_is_worth_one_warning(
    make: Callable[[], Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = make()
    monkeypatch.setattr(sys, "stdout", stream)
    with forgiving_output():
        for number in range(2000):
            print("line", number)
        print("last", flush=True)
        assert not sys.stdout.isatty()
    if stream is not None and not stream.closed:
        stream.close()  # as the interpreter does on its way out: nothing is left that could fail
    said = capsys.readouterr().err
    assert said.count("warning: cannot write the standard output: ") == said.count("\n") == 1


@pytest.mark.parametrize("make", FAILING.values(), ids=FAILING)
def test_a_failing_error_output_is_worth_nothing(
    make: Callable[[], Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", make())
    with forgiving_output():
        warn("nobody hears this")
        print("but this")
    assert capsys.readouterr().out == "but this\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_cannot_be_encoded_is_escaped(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with forgiving_output():
        print("a\udcffb → ± ok")
    printed = stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert printed.startswith(b"a\\udcffb ") and printed.endswith(b" ok\n")
    assert ("→".encode() in printed) == (encoding == "utf-8")


@pytest.mark.parametrize("name", MAINS)
@pytest.mark.parametrize("make", [*FAILING.values(), ascii_only], ids=[*FAILING, "ascii"])
def test_help_ends_in_order(
    name: str, make: Callable[[], Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", make())
    with pytest.raises(SystemExit) as exit_status:
        MAINS[name](["--help"])
    assert exit_status.value.code == 0
    said = capsys.readouterr().err
    assert said.count("warning: ") == said.count("\n") == (make is not ascii_only)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("so not"), 2, "error: so not\n"),
        (PermissionError(13, "Permission denied", "/a/file"), 2, "error: /a/file: Permission denied\n"),
        (OSError("odd"), 2, "error: odd\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_errors_of_command_lines(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(arguments: Any) -> int:
        raise error

    assert command(main)() == status
    assert capsys.readouterr().err == said


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("search", ["--resume", LONG]),
        ("search", ["--out", LONG]),
        ("search", ["--benchmark-table", LONG]),
        ("search", ["--dataset", "npz", "--data", LONG]),
        ("report", [LONG]),
        ("kendall", [LONG, "--benchmark-table", "x"]),
        ("benchmark table", ["show", "0", "--table", LONG]),
    ],
)
def test_names_that_no_file_can_have(
    name: str, arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert MAINS[name](arguments) == 2
    assert capsys.readouterr().err.startswith("error: ") and not list(tmp_path.iterdir())


def test_a_search_in_a_folder_whose_name_is_no_text(
    tmp_path: Path, pictures: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an output that knows ASCII only: it runs, is logged, drawn and continued."""
    folder = tmp_path / os.fsdecode(b"run \xff \xe2\x86\x92")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert search.main([*TINY, "--snapshots", "--tensorboard", "--out", str(folder)]) == 0
    monkeypatch.setattr(running, "draw_pictures", lambda run: [])  # they are drawn already
    monkeypatch.setattr(running, "draw_pictures", lambda run: [])  # they are drawn already
    assert search.main(["--resume", str(folder)]) == 0
    said = capsys.readouterr().err
    assert "Traceback" not in said and "log.txt" not in said and "pictures" not in said
    printed = stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert b"run \\udcff \\u2192" in printed and printed.isascii()
    assert b"run \xff \xe2\x86\x92" in (folder / "log.txt").read_bytes()
    assert {"result.json", "cell.png"} <= {path.name for path in folder.iterdir()}


def test_reporting_that_fails_in_any_way_ends_no_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("out of ink")

    monkeypatch.setattr(RunFolder, "write_log", fail)
    monkeypatch.setattr(running, "draw_pictures", fail)
    monkeypatch.setattr("vpdarts_fast.search.console.TensorBoardLog", full_disk)
    assert search.main([*TINY, "--tensorboard", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all(line.startswith("warning: ") for line in said)
    assert said[0].startswith("warning: cannot write TensorBoard events: No space left on device")
    assert "log.txt: out of ink; the search goes on without" in said[1]
    assert "no pictures: out of ink" in said[2]


def test_bars_that_fail_end_no_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal that has gone, a library draws them, in a thread of its own."""

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", Terminal(io.FileIO(writer, "w"), encoding="utf-8"))
    monkeypatch.setenv("TERM", "xterm")
    assert search.main([*TINY, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert said == "warning: cannot write the standard output: Broken pipe; going on without it\n"


COMMANDS = {
    "help": "{python} -m vpdarts_fast.search --help | head -1; exit ${{PIPESTATUS[0]}}",
    "closed": "{python} -m vpdarts_fast.search {tiny} --out run >&-",
}
WARNING = "warning: cannot write the standard output: {}; going on without it\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_real_processes(name: str, tmp_path: Path) -> None:
    line = COMMANDS[name].format(python=sys.executable, tiny=" ".join(TINY))
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    if name == "closed":
        assert done.stderr == WARNING.format("it is closed")
        assert (tmp_path / "run" / "result.json").exists() and (tmp_path / "run" / "cell.png").exists()
    else:  # all may be in the pipe before its reader goes
        assert done.stderr in ("", WARNING.format("Broken pipe"))
