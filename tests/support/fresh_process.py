"""Fresh processes, for what is chosen once in one (instruction sets, libraries) and for what may crash.

They are forked from a server that has imported PyTorch and nothing of ours, so that a start takes
milliseconds in place of seconds.
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import resource
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = ["torch", "torch.distributed.tensor", "pytest", "hypothesis.strategies"]
"""The second is imported by the first call of torch.testing.assert_close, and takes a second."""

processor_seconds = 0.0
"""Of all that have run so far; they are no children of this process."""


def run_python(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, timeout: float = 900
) -> tuple[int, str]:
    """Its exit status, negative for a signal, and all that it wrote.

    Args:
        arguments: of Python: a program and its arguments, or "-m", a module and its arguments.
        folder: to run in; what is imported comes from here first, after PYTHONPATH of the environment.
        environment: variables to set. OMP_NUM_THREADS and MALLOC_PERTURB_ are obeyed, though the libraries
            that read them are loaded already.
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
    import torch

    ours = {"vpdarts_fast", "triton"} & {name.partition(".")[0] for name in sys.modules}
    assert not ours, f"{ours}: imported already"
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    faulthandler.enable(file=descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    paths = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [*paths, str(folder)]
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    if "MALLOC_PERTURB_" in environment:
        m_perturb = -6  # of glibc's malloc.h
        ctypes.CDLL(None).mallopt(m_perturb, int(environment["MALLOC_PERTURB_"]))
    status = _exit_status(arguments)
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds.write_text(str(sum(usage.ru_utime + usage.ru_stime for usage in usages)))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _exit_status(arguments: list[str]) -> int:
    """Of the program or module, run as Python would."""
    try:
        if arguments[0] == "-m":
            sys.argv = ["", *arguments[2:]]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0
