"""Pytest in a fresh process, for what is chosen once in a process: instruction sets, libraries, interpreters.

It is forked from a server that has imported PyTorch and nothing of ours, so that a start takes milliseconds
in place of seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = ["torch", "pytest", "hypothesis.strategies"]

processor_seconds = 0.0
"""Of all that have run so far; they are no children of this process."""


def run_pytest(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, timeout: float = 900
) -> tuple[int, str]:
    """Its exit status, negative for a signal, and all that it wrote.

    Args:
        arguments: of pytest.
        folder: to run in; what is imported comes from here first, after PYTHONPATH of the environment.
        environment: variables to set. OMP_NUM_THREADS is obeyed though PyTorch is loaded already.
        timeout: seconds, after which it is killed.
    """
    global processor_seconds
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as place:
        output, seconds = Path(place, "output"), Path(place, "seconds")
        settings = os.environ | dict(environment or {})
        process = context.Process(target=_run, args=(list(arguments), folder, settings, output, seconds))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        if seconds.exists():
            processor_seconds += float(seconds.read_text())
        written = output.read_text(errors="replace") if output.exists() else ""
    assert process.exitcode is not None
    return process.exitcode, written


def _run(
    arguments: list[str], folder: Path, environment: dict[str, str], output: Path, seconds: Path
) -> None:
    import pytest
    import torch

    ours = {"vpdarts_fast", "triton"} & {name.partition(".")[0] for name in sys.modules}
    assert not ours, f"{ours}: imported already"
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    paths = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [*paths, str(folder)]
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    status = int(pytest.main(arguments))
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds.write_text(str(sum(usage.ru_utime + usage.ru_stime for usage in usages)))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
