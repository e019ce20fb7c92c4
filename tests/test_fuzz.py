"""Random calls of the native ops: each target in a process of its own, which may crash."""

from __future__ import annotations

from pathlib import Path

import fuzz_cells
import fuzz_mixed_op
import fuzz_nodes
import fuzz_residual
import pytest
from fresh_process import run_python

from vpdarts_fast import native

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native extension: {native.why_not()}")


MODULES = (fuzz_cells, fuzz_nodes, fuzz_residual, fuzz_mixed_op)
PROGRAMS = {target: module for module in MODULES for target in module.TARGETS}


@pytest.mark.parametrize("target", PROGRAMS)
def test_random_calls_are_served_or_refused(target: str, tmp_path: Path) -> None:
    last = tmp_path / "last_call"
    environment = {
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "FUZZ_LOG": str(last),
        "MALLOC_PERTURB_": "165",  # of glibc: memory is full of garbage where nothing has been written
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [str(PROGRAMS[target].__file__), target]
    status, output = run_python(command, tmp_path, environment, timeout=300)
    call = last.read_text() if last.exists() else "none"
    assert status == 0, f"{output[-5000:]}\nThe last call:\n{call}"
