"""The seeds of one search side by side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vpdarts_fast.command_line import table_console
from vpdarts_fast.errors import UserError
from vpdarts_fast.runtime import machine
from vpdarts_fast.search.arguments import Command
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.jobs.cluster import RayWorkers
from vpdarts_fast.search.jobs.job import Job
from vpdarts_fast.search.jobs.local import LocalWorkers
from vpdarts_fast.search.jobs.queue import Workers
from vpdarts_fast.search.jobs.showing import run_and_show
from vpdarts_fast.search.observer import Interrupted
from vpdarts_fast.search.preflight import choose_device, least_memory
from vpdarts_fast.search.run_folder import RunFolder
from vpdarts_fast.search.running import Session
from vpdarts_fast.search.seeds import seed_folder


def workers_of(command: Command, config: SearchConfig, session: Session) -> Workers | None:
    """Who runs the seeds of a command; None if this process does, one after the other.

    Raises:
        UserError: --jobs or --ray cannot be done.
    """
    threads = config.execution.threads
    arguments = [text for plugin in command.plugin for text in ("--plugin", plugin)]
    if session.processes.count > 1:
        if command.ray is not None or command.jobs is not None:
            raise UserError("--jobs and --ray start processes of their own: use them without torchrun")
        return None
    if command.ray is not None:
        return RayWorkers(command.ray, threads or 1, command.jobs, arguments)
    cores = len(os.sched_getaffinity(0))
    most = max(1, machine.memory() // max(1, sum(least_memory(config, session.data))))
    on_cpu = choose_device(config.execution.device).type == "cpu"
    jobs = command.jobs or (min(len(command.seeds), max(1, cores // (threads or 1)), most) if on_cpu else 1)
    if on_cpu and jobs > most:
        raise UserError(
            f"--jobs {jobs} searches at a time need more memory than this machine has: at most {most}"
        )
    return None if jobs == 1 else LocalWorkers(jobs, threads or max(1, cores // jobs), arguments)


def side_by_side(
    config: SearchConfig, seeds: tuple[int, ...], root: Path, session: Session, workers: Workers
) -> dict[int, dict[str, Any]]:
    """Runs a search for each seed in a process of its own; returns their results.

    Raises:
        UserError: some cannot be finished; all others are.
        Interrupted: a signal stopped them; all can be continued.
    """
    jobs = [Job(f"seed {seed}", root / seed_folder(seed), config.replaced(seed=seed)) for seed in seeds]
    console = table_console()
    try:
        with workers:
            for job in jobs:
                job.prepare()
            failed = run_and_show(jobs, workers, console)
    except KeyboardInterrupt:
        console.print(
            f"all searches are stopped, and nothing is lost; continue with: {session.again}", soft_wrap=True
        )
        raise Interrupted from None
    if failed:
        reasons = "; ".join(f"{name}: {reason.removeprefix('error: ')}" for name, reason in failed.items())
        raise UserError(
            f"{len(failed)} of {len(jobs)} searches failed: {reasons}. Try again with: {session.again}"
        )
    results = [RunFolder(job.folder, job.config.space.tables).result() for job in jobs]
    return {seed: result for seed, result in zip(seeds, results, strict=True) if result is not None}
