"""The benchmark command: which rows it measures, and that a row that has been measured is never lost."""

from __future__ import annotations

import csv
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from contenders import FORMS, OURS, TIME_TO_COMPILE, compared
from places import ROOT
from rows import COLUMNS, MIB, NoTable, Row, Table

STORY = {
    "test_step[weights-N=1]",
    "test_step[alpha-N=1]",
    "test_leave_one_out[recalibrated-N=1]",
    "test_leave_one_out[running-N=1]",
    "test_leave_one_out[batch-N=1]",
    "test_nas_bench_201_step",
    "test_search_epochs[128]",
    "test_multiply_adds",
    "test_bandwidth",
}
"""The README's table, a supernet of other code, a search, and what the machine can do."""

ROWS = """
import time

def test_first(compare):
    compare({"eager": lambda: time.sleep(0.02), "ours": lambda: time.sleep(0.01)}, rounds=2)

def test_second(compare):
    compare({"eager": lambda: time.sleep(60), "ours": lambda: time.sleep(60)})
"""


def benchmarks(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """The command, with the benchmarks of the folder in place of the project's where there are any."""
    paths = os.pathsep.join(filter(None, [str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "--benchmark-only", "-p", "no:cacheprovider", *arguments]
    # Beside other processes of pytest-xdist nothing would be measured.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = outside | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "pytest_benchmark.plugin"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Where the tests run in the background Ctrl-C is ignored, and that would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_the_default_is_the_story_of_the_readme(tmp_path: Path) -> None:
    process = benchmarks(str(ROOT / "benchmarks"), "--collect-only", "-q", folder=tmp_path)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert {line.partition("::")[2] for line in printed.splitlines() if "::" in line} == STORY
    assert not (tmp_path / "benchmarks.csv").exists(), "nothing is measured, so nothing is kept"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT], ids=lambda end: end.name)
def test_a_row_is_printed_and_kept_when_it_is_measured(end: signal.Signals, tmp_path: Path) -> None:
    """Whatever ends the command while the next one is measured."""
    (tmp_path / "test_rows.py").write_text(ROWS)
    table = tmp_path / "benchmarks.csv"
    process = benchmarks(
        "-p", "conftest", "-c", os.devnull, "--rootdir", ".", "test_rows.py", folder=tmp_path
    )
    printed = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            printed += line
            if line.startswith("    ours"):
                break
        lines_then = table.read_text()
        process.send_signal(end)
        printed += process.stdout.read()
        process.wait(timeout=60)
    finally:
        process.kill()
    assert table.read_text() == lines_then
    assert process.returncode != 0
    assert "test_first\n    eager " in printed and "test_second\n    " not in printed
    header, *lines = csv.reader(table.read_text().splitlines())
    assert header == list(COLUMNS)
    assert [line[1:3] for line in lines] == [["test_first", "eager"], ["test_first", "ours"]]
    assert float(lines[0][3]) > 0.02 and float(lines[1][3]) > 0.01 and float(lines[0][4]) > 0


ROW = Row(
    "test_one",
    {
        "medians": {"eager": 2.0, OURS.name: 1.0},
        "ratios": {"eager": 2.0, "plain": 3.0},
        "peaks": {"plain": 3 * MIB},
        "notes": {"eager": "twice"},
        "remark": "on one thread",
    },
)


def test_lines_of_a_row() -> None:
    assert list(ROW.lines()) == [
        "test_one (on one thread)",
        "    eager                            2.00000 s    2.00 x  twice",
        "    ours                             1.00000 s",
        "    plain                              3.0 MiB    3.00 x",
    ]
    assert ROW.summary() == "test_one: 2.0 x eager, 3.0 x plain"
    assert Row("test_rate", {"rate": "9 GB/s"}).summary() == "test_rate: 9 GB/s"


def test_a_table_grows_over_runs_and_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    Table(path, "first").add(ROW)
    whole = path.read_text()
    assert whole.splitlines()[1:] == [
        "first,test_one,eager,2.0,2.0,,twice",
        "first,test_one,ours,1.0,1.0,,",
        "first,test_one,plain,,3.0,3.0,",
    ]
    path.write_text(whole[:-4])  # killed while it wrote
    Table(path, "second").add(ROW)
    assert path.read_text().startswith(whole[:-4] + "\nsecond,test_one,eager,2.0,")


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "notes\n", "\n"])
def test_another_file_is_not_written_to(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text(content)
    with pytest.raises(NoTable, match=r"other\.csv holds something else"):
        Table(path, "now")
    assert path.read_text() == content


def test_what_is_compiled() -> None:
    """Of the README's rows as long as there is time, so that all of them end in ten minutes."""
    assert compared(True, 9999) == (FORMS, "")
    names = [form.name for form in compared(False, TIME_TO_COMPILE - 1)[0]]
    assert names == ["eager", "eager, channels last", "torch.compile", "ours"]
    forms, remark = compared(False, TIME_TO_COMPILE)
    assert [form.name for form in forms] == ["eager", "eager, channels last", "ours"]
    assert "no time left to compile" in remark


def test_a_search_of_forms_is_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row that no other test takes: its search is put together from parts of the real one."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("search_rows", ROOT / "benchmarks" / "test_search.py")
    assert spec is not None and spec.loader is not None
    rows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rows)
    config = rows.CONFIG.replaced(channels=2, batch_size=8, pruning_epochs=0)
    search = rows.FormSearch(OURS, config, rows.random_data(32), tmp_path)
    for _ in range(2):  # each time from the beginning
        search.epochs()
        assert len(search.observed.losses) == 1
