"""The test of processes that are forked with PyTorch loaded: they behave as started ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fresh_process import run_python

PROGRAM = """
import os, sys
import torch
assert "vpdarts_fast" not in sys.modules
print(os.environ["SOME"], torch.get_num_threads(), sys.argv[1:], os.getcwd(), flush=True)
print("an error", file=sys.stderr, flush=True)
"""


def test_a_program_runs_where_and_with_what_it_is_told(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {"SOME": "thing", "OMP_NUM_THREADS": "3"}
    status, output = run_python([str(program), "a", "b c"], tmp_path, environment)
    assert status == 0 and output.split("\n") == [f"thing 3 ['a', 'b c'] {tmp_path}", "an error", ""]


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("raise ValueError('wrong')", 1, "ValueError: wrong"),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('words')", 1, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -11, "Segmentation fault"),
        ("import time; time.sleep(60)", -9, ""),
    ],
    ids=["error", "status", "words", "crash", "hang"],
)
def test_the_end_of_a_program_is_seen(code: str, expected: int, said: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(code)
    status, output = run_python([str(program)], tmp_path, timeout=3 if "sleep" in code else 60)
    assert status == expected and said in output


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_memory_that_nothing_has_written_is_garbage(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import torch; print(set(torch.empty(3000, dtype=torch.uint8).tolist()))")
    status, output = run_python([str(program)], tmp_path, {"MALLOC_PERTURB_": "165"})
    assert status == 0 and output == f"{{{165 ^ 0xFF}}}\n"


def test_a_module_is_imported_from_the_folder_first(tmp_path: Path) -> None:
    (tmp_path / "pytest_of_ours.py").write_text("import sys; print('here', sys.argv[1:])")
    status, output = run_python(["-m", "pytest_of_ours", "-q"], tmp_path)
    assert status == 0 and output == "here ['-q']\n"
