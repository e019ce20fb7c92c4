"""Programs of two processes, started by `torchrun`: what several tests share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from places import ROOT, SUPPORT


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


def wait_for_epochs(folder: Path, epochs: int, process: subprocess.Popen[str]) -> None:
    """Waits until a run has written so many epochs."""
    metrics = folder / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= epochs:
            break
        time.sleep(0.02)
    assert process.poll() is None, finished(process)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started, in their order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(map(int, children))
