"""Peak memory of a training step beyond its parameters, of a process of its own for every form.

    python benchmarks/memory.py FORM PHASE CELLS_PER_STAGE
    python benchmarks/memory.py FORM EXAMPLE SIZE

prints bytes: how far the resident memory of two steps rises above what it was before them. That counts
native scratch memory as well as PyTorch's. What stays from a step of two images before (optimiser state,
libraries) does not count; the compiled form takes that step at full size, since it is compiled for one.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import sys
from pathlib import Path

from contenders import BY_NAME
from example_step import ExampleStep
from step import Step

PHASES = ("weights", "alpha")
"""Of our own supernet; any other name is an example's."""


class NotMeasurable(Exception):
    """This system does not tell how much memory a process has held."""


NO_RESET = 3
"""Exit status: the kernel does not reset the high-water mark."""


def resident(kind: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at most since `reset_peak`."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def reset_peak() -> None:
    """Gives freed memory back and lets the high-water mark start from what is left."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        print(f"the high-water mark cannot be reset: {error}", file=sys.stderr)
        sys.exit(NO_RESET)


def peak_of_a_step(name: str, phase: str, size: int) -> int:
    """In this process."""
    form = BY_NAME[name]
    step = Step(form, phase, size) if phase in PHASES else ExampleStep(phase, form, size)
    whole = step.batch
    if not step.form.compiled:
        step.batch = whole[0][:2].clone(), whole[1][:2]
    step()
    step()
    step.batch = whole
    step.weights_optimizer.zero_grad()
    reset_peak()
    before = resident("VmRSS")
    step()
    step()
    return resident("VmHWM") - before


def measure(name: str, phase: str, size: int) -> int:
    """In a new process; the arguments are those of the command.

    Raises:
        NotMeasurable: this system does not tell.
    """
    # Blocks of more than 256 KiB go back to the system when they are freed, whatever came before.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    command = [sys.executable, __file__, name, phase, str(size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == NO_RESET:
        raise NotMeasurable(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


if __name__ == "__main__":
    print(peak_of_a_step(sys.argv[1], sys.argv[2], int(sys.argv[3])))
