"""Kills processes of a search of two: `python tests/support/kill_processes.py --kills 20`.

One of the two, drawn at random, gets SIGKILL at a random moment, again and again; `torchrun` starts both
anew.
The search has to end as one that was left alone, bit for bit but for the times taken.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from search_calls import outcome

SEARCH = [
    "--max-images", "96", "--channels", "4", "--warmup-epochs", "2", "--pruning-epochs", "18",
    "--batch-size", "8", "--threads", "1", "--finalists", "0",
]  # fmt: skip


def started(folder: Path, restarts: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["--max-restarts", str(restarts), "-m", "vpdarts_fast.search", *SEARCH, "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )


def workers(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that torchrun has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def kill_some(
    process: subprocess.Popen[bytes], kills: int, longest: float, draw: random.Random
) -> list[float]:
    """Kills so many, and returns how many seconds each had run."""
    lived = []
    while len(lived) < kills and process.poll() is None:
        while len(both := workers(process)) < 2 and process.poll() is None:
            time.sleep(0.02)
        seconds = draw.uniform(0, longest)
        time.sleep(seconds)
        if process.poll() is None and set(both) <= set(workers(process)):
            os.kill(draw.choice(both), signal.SIGKILL)
            lived.append(round(seconds, 1))
            while set(both) & set(workers(process)) and process.poll() is None:
                time.sleep(0.02)
    return lived


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=12.0, help="seconds that the two may run, at most")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = Path(temporary) / "whole", Path(temporary) / "killed"
        if started(whole, 0).wait():
            print("the search that was left alone has failed")
            return 1
        process = started(killed, arguments.kills + 1)
        lived = kill_some(process, arguments.kills, arguments.longest, random.Random(arguments.seed))
        code = process.wait()
        same = code == 0 and outcome(killed) == outcome(whole)
    print(
        f"{len(lived)} kills after {lived} seconds; ended with status {code}; "
        + ("the same" if same else "NOT the same")
    )
    return not (same and len(lived) == arguments.kills)


if __name__ == "__main__":
    sys.exit(main())
