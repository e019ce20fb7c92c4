"""Random calls of the native ops: those of each file in a process of its own, which may crash."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import fuzz_cells
import fuzz_mixed_op
import fuzz_nodes
import fuzz_residual
import pytest
from fresh_process import run_python
from places import ROOT

from vpdarts_fast import native

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native extension: {native.why_not()}")


PROGRAMS = (fuzz_cells, fuzz_nodes, fuzz_residual, fuzz_mixed_op)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_random_calls_are_served_or_refused(program: ModuleType, tmp_path: Path) -> None:
    last = tmp_path / "last_call"
    environment = {
        "PYTHONPATH": str(ROOT),
        "FUZZ_LOG": str(last),
        "MALLOC_PERTURB_": "165",  # of glibc: memory is full of garbage where nothing has been written
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    status, output = run_python([str(program.__file__), "--calls", "150"], tmp_path, environment, timeout=600)
    call = last.read_text() if last.exists() else "none"
    assert status == 0, f"{output[-5000:]}\nThe last call:\n{call}"
    assert re.findall(r"^(\w+): 150 checks", output, re.MULTILINE) == list(program.TARGETS), output[-5000:]
