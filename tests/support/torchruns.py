"""Programs of two processes, started by `torchrun` or forked: what several tests share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fresh_process import run_python
from places import ROOT, SUPPORT

ENDED = "=== ended: "
"""Begins the line that says how a forked program has ended."""


@dataclass(frozen=True)
class Program:
    """A program of two processes that `forked_processes.py` starts.

    Attributes:
        module: of ours.
        arguments: the last is the folder of the run.
        killed_after: after so many epochs the second process is killed, once, and both are started anew.
        stopped_after: after so many epochs what has started them is asked to stop.
    """

    module: str
    arguments: list[str]
    killed_after: int = 0
    stopped_after: int = 0


def forked(folder: Path, *programs: Program) -> list[tuple[str, str]]:
    """Runs programs of two processes, one after the other: how each ended, and what both have said.

    It is what `torchrun` does, but that nobody waits for PyTorch to be loaded, and without pictures.
    """
    arguments = [str(SUPPORT / "forked_processes.py"), json.dumps([asdict(program) for program in programs])]
    status, said = run_python(arguments, folder, {"OMP_NUM_THREADS": "1"})
    assert status == 0, said
    ends = []
    for _ in programs:
        of_one, _, said = said.partition(ENDED)
        ended, _, said = said.partition("\n")
        ends.append((ended, of_one))
    return ends


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    """Starts two processes of a program or a module."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(SUPPORT), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Waits for the end; the exit status, and what both have said."""
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def epochs_of(folder: Path) -> int:
    """How many epochs a run has written."""
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def wait_for_epochs(folder: Path, epochs: int, process: subprocess.Popen[str]) -> None:
    """Waits until a run has written so many epochs."""
    while process.poll() is None and epochs_of(folder) < epochs:
        time.sleep(0.02)
    assert process.poll() is None, finished(process)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started, in their order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(map(int, children))
