"""Programs of two processes as `torchrun` runs them, but forked: what they import is loaded once for all.

forked_processes.py '[PROGRAM, PROGRAM, ...]'

Each program, one after the other, is a `Program` in JSON; a line says how it ended.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401  This and the next only so that the forked processes need not import it.
import torch._dynamo  # noqa: F401
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torchruns import ENDED, Program, epochs_of

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.search import running
from vpdarts_fast.train import running as train_running


def launch(function: Callable[..., object], *arguments: Any, restarts: int = 0) -> str:
    """Calls it in two processes, which are replaced so often; "done", "failed", or "stopped" by a signal."""
    config = LaunchConfig(
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost", run_id="two",
        max_restarts=restarts, start_method="fork", monitor_interval=0.5,
    )  # fmt: skip
    try:
        elastic_launch(config, function)(*arguments)
    except ChildFailedError:
        return "failed"
    except SignalException:
        return "stopped"
    return "done"


def one_of_two(program: Program) -> None:
    """One of the processes. A thread of the second one, the first time, waits for the epoch of the signal."""
    running.draw_pictures = train_running.draw_training = lambda folder: []
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        threading.Thread(target=disturb, args=(program,), daemon=True).start()
    status = importlib.import_module(f"{program.module}.__main__").main(program.arguments)
    sys.stdout.flush()
    if status:
        os._exit(status)


def disturb(program: Program) -> None:
    """Kills this process, or asks what has started it to stop."""
    for epochs, process, number in (
        (program.killed_after, os.getpid(), signal.SIGKILL),
        (program.stopped_after, os.getppid(), signal.SIGTERM),
    ):
        if epochs:
            while epochs_of(Path(program.arguments[-1])) < epochs:
                time.sleep(0.005)
            os.kill(process, number)


def main(programs: list[Program]) -> None:
    """Runs them."""
    BenchmarkTable.published()  # is kept, so that the processes need not read it
    for program in programs:
        ended = launch(one_of_two, program, restarts=1 if program.killed_after else 0)
        print(f"{ENDED}{ended}", flush=True)


if __name__ == "__main__":
    main([Program(**values) for values in json.loads(sys.argv[1])])
