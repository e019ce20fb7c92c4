"""Searches as tasks of a Ray cluster, each in a worker process of its own.

All nodes have this version of the package, and see the folders of the runs and the images in the same place.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vpdarts_fast
from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.lock import in_use
from vpdarts_fast.search.jobs.job import Job
from vpdarts_fast.search.jobs.queue import Ended

LOCAL = "local"
"""In place of an address: a cluster of this machine alone, for as long as it is needed."""

CONNECT_SECONDS = 10.0
"""How long the head of a cluster has to answer."""

PATIENCE = 120.0
"""Seconds to wait for the lock of a run whose worker is gone: file servers keep locks for up to 90."""


def require_ray() -> Any:
    """The module; `UserError` unless the package `ray` is installed."""
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"--ray needs the package ray ({error}); install it with: pip install 'vpdarts-fast[cluster]'"
        ) from error
    return ray


def check_address(address: str) -> None:
    """Raises `UserError` where nobody listens: Ray itself would try for many minutes."""
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if not port.isdecimal():
            raise ValueError("that is no address with a port")
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise no_cluster(address, error) from error


def no_cluster(address: str, reason: Exception) -> UserError:
    """What people are told who named a cluster that does not answer."""
    why = str(reason).rstrip(".")
    return UserError(
        f"cannot join the Ray cluster at {address}: {why}. Start one with `ray start --head`, name it as "
        f"HOST:PORT or auto, or use --ray {LOCAL}"
    )


@dataclass
class RayWorkers:
    """The workers of a Ray cluster, entered while it is connected.

    Attributes:
        address: of its head, as `ray.init` takes it, or `LOCAL`.
        threads: CPUs of each search.
        limit: searches at a time; None gives all of them to Ray, which runs what there is room for.
        arguments: that every search is given besides, as on a command line.
    """

    address: str
    threads: int
    limit: int | None = None
    arguments: Sequence[str] = ()
    _ray: Any = field(default=None, init=False)

    @property
    def at_once(self) -> int:
        """As `vpdarts_fast.search.jobs.queue.Workers` has it."""
        return self.limit or 1_000_000

    @property
    def where(self) -> str:
        """As `vpdarts_fast.search.jobs.queue.Workers` has it."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        cpus = sum(node["Resources"].get("CPU", 0) for node in nodes)
        return f"Ray, {len(nodes)} nodes, {cpus:g} CPUs, {self.threads} for each search"

    def __enter__(self) -> RayWorkers:
        """Connects; raises `UserError` where nobody answers."""
        check_address(self.address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray = require_ray()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        own = {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
        try:
            self._ray.init(
                address=self.address,
                logging_level="WARNING",
                log_to_driver=False,
                **(own if self.address == LOCAL else {}),
            )
        except Exception as error:  # of connections, versions and addresses: each another type
            raise no_cluster(self.address, error) from error
        for number, handler in handlers.items():  # Ray put its own in their place
            signal.signal(number, handler)
        return self

    def __exit__(self, *_: Any) -> None:
        self._ray.shutdown()

    def start(self, job: Job) -> RayWork:
        """Gives a job to Ray, which starts it where there is room.

        A search that may run on a GPU gets one where the cluster has some. Ray itself does not repeat it: the
        queue knows better whether it comes any further.
        """
        on_gpu = job.config.execution.device != "cpu" and self._ray.cluster_resources().get("GPU", 0) >= 1
        task = self._ray.remote(
            num_cpus=self.threads,
            num_gpus=int(on_gpu),
            max_retries=0,
            max_calls=1,
            runtime_env={"env_vars": {"OMP_WAIT_POLICY": "passive"}},
        )(search_in_worker).options(name=job.name)
        arguments = ["--threads", str(self.threads), *self.arguments]
        return RayWork(
            self._ray, job, task.remote(str(job.folder.absolute()), arguments, vpdarts_fast.__version__)
        )


@dataclass(frozen=True)
class RayWork:
    """A task of Ray that runs a job."""

    ray: Any
    job: Job
    task: Any

    def ended(self) -> Ended | None:
        """How it has ended; None while it runs or waits for room."""
        ready, _ = self.ray.wait([self.task], timeout=0)
        if not ready:
            return None
        errors = self.ray.exceptions
        try:
            status, said = self.ray.get(self.task)
        except (errors.RayTaskError, errors.TaskCancelledError, errors.RuntimeEnvSetupError) as error:
            return Ended(str(error), lost=False)
        except errors.RayError as error:  # the worker or its node is gone
            return Ended(str(error).splitlines()[0], lost=True)
        return Ended(said.strip() or f"it ended with status {status}", lost=False)

    def stop(self) -> None:
        """Asks it to stop in order; what waits for room does not begin."""
        self.ray.cancel(self.task)

    def wait(self) -> None:
        """Returns when nobody works in its folder any more, or has not stopped for very long."""
        wait_while_used(self.job.folder)


def search_in_worker(folder: str, arguments: list[str], version: str) -> tuple[int, str]:
    """Continues the search in a folder; runs in a worker of the cluster.

    Args:
        folder: with the settings of a run.
        arguments: that the command line of the search gets besides.
        version: of the package that asks for it.

    Returns:
        The exit status of the search, and its error message.
    """
    from vpdarts_fast.search.__main__ import main

    here = socket.gethostname()
    if vpdarts_fast.__version__ != version:
        return 2, (
            f"error: {here} has vpdarts-fast {vpdarts_fast.__version__}, and {version} asked for the search: "
            "install one version on all nodes"
        )
    if not (Path(folder) / "config.json").exists():
        return 2, f"error: there is no {folder} on {here}: --out has to be where all nodes see it"
    wait_while_used(Path(folder))
    said = io.StringIO()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(said):
        status = main(["--resume", folder, *arguments])
    return status, said.getvalue()


def wait_while_used(folder: Path) -> None:
    """Returns when no process works in the folder of a run, or after `PATIENCE` seconds."""
    end = time.monotonic() + PATIENCE
    while in_use(folder) and time.monotonic() < end:
        time.sleep(0.5)
