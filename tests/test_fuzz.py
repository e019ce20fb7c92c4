"""Random calls of the native ops: each target in a process of its own, which may crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fuzz_cells
import fuzz_mixed_op
import fuzz_nodes
import fuzz_residual
import pytest

from vpdarts_fast import native

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native extension: {native.why_not()}")


MODULES = (fuzz_cells, fuzz_nodes, fuzz_residual, fuzz_mixed_op)
PROGRAMS = {target: module for module in MODULES for target in module.TARGETS}


@pytest.mark.parametrize("target", PROGRAMS)
def test_random_calls_are_served_or_refused(target: str, tmp_path: Path) -> None:
    last = tmp_path / "last_call"
    environment = os.environ | {
        "FUZZ_LOG": str(last),
        "MALLOC_PERTURB_": "165",  # of glibc: memory is full of garbage where nothing has been written
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [sys.executable, "-X", "faulthandler", str(PROGRAMS[target].__file__), target]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    call = last.read_text() if last.exists() else "none"
    assert run.returncode == 0, f"{run.stdout[-1000:]}{run.stderr[-4000:]}\nThe last call:\n{call}"
