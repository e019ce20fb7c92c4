"""What people see of many searches."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress

from vpdarts_fast.search.jobs.job import Job
from vpdarts_fast.search.jobs.queue import Workers, run_all

NAMED = 4
"""So many searches that run are named beside the bar; of more there is only the number."""


def run_and_show(jobs: Sequence[Job], workers: Workers, console: Console) -> dict[str, str]:
    """Runs them as `run_all` does, under a bar of all epochs, with a line for each that is done or lost."""
    console.print(f"{len(jobs)} searches; {workers.where}")
    told = {job.name for job in jobs if job.finished}
    with Progress(console=console) as progress:
        task = progress.add_task("", total=sum(job.config.epochs for job in jobs))

        def on_change(running: list[Job], done: list[Job]) -> None:
            steps = sum(job.config.epochs for job in done) + sum(job.epochs_done for job in running)
            names = [job.name for job in running] if len(running) <= NAMED else [f"{len(running)} more"]
            description = "; ".join([f"{len(done)} of {len(jobs)} done", *names])
            progress.update(task, completed=steps, description=description)
            for job in done:
                if job.name not in told:
                    told.add(job.name)
                    progress.console.print(f"{job.name} is done: {job.folder}", soft_wrap=True)

        def on_loss(job: Job, reason: str) -> None:
            progress.console.print(f"{job.name}: {reason}; another process goes on with it", soft_wrap=True)

        return run_all(jobs, workers, on_change=on_change, on_loss=on_loss)
