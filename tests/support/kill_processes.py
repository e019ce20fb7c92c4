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
from torchruns import finished, torchrun, workers

SEARCH = [
    "--max-images", "96", "--channels", "4", "--warmup-epochs", "2", "--pruning-epochs", "68",
    "--batch-size", "8", "--threads", "1", "--finalists", "0",
]  # fmt: skip


def kill_some(process: subprocess.Popen[str], kills: int, longest: float, draw: random.Random) -> list[float]:
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
        search = ["-m", "vpdarts_fast.search", *SEARCH, "--out"]
        code, said = finished(torchrun(*search, str(whole)))
        assert code == 0, said
        process = torchrun("--max-restarts", str(arguments.kills + 1), *search, str(killed))
        lived = kill_some(process, arguments.kills, arguments.longest, random.Random(arguments.seed))
        code, said = finished(process)
        assert code == 0, said
        same = outcome(killed) == outcome(whole)
    print(
        f"{len(lived)} kills after {lived} seconds; ended with status {code}; "
        + ("the same" if same else "NOT the same")
    )
    return not (same and len(lived) == arguments.kills)


if __name__ == "__main__":
    sys.exit(main())
