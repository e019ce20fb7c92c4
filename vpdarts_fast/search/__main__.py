"""`python -m vpdarts_fast.search`: the command line of the search."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vpdarts_fast.command_line import StopRequest, stoppable
from vpdarts_fast.runs.files import write_atomically
from vpdarts_fast.runs.lock import claimed
from vpdarts_fast.runtime import machine
from vpdarts_fast.runtime.processes import joined
from vpdarts_fast.search.arguments import Command, parse
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.expectation import expect
from vpdarts_fast.search.jobs.seeds import side_by_side, workers_of
from vpdarts_fast.search.observer import Interrupted
from vpdarts_fast.search.running import Session, folder_of, new_folder, prepared, process_settings, run_one
from vpdarts_fast.search.seeds import (
    SUMMARY_FILE,
    create_seeds,
    discard_seeds,
    seed_folder,
    summarise,
    summary_lines,
    write_seeds,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, 2 after an error, 128 + signal after a signal."""
    return stoppable(lambda given, stop: run_command(parse(given), stop), arguments, Interrupted)


def run_command(command: Command, stop: StopRequest) -> int:
    """Runs one search per seed or, with --dry-run, prints what one would take.

    Raises:
        UserError: a search could not begin or be finished.
        Interrupted: a signal stopped it.
    """
    machine.reuse_memory()
    execution = command.config.execution
    with joined(execution.device) as processes, process_settings(execution.threads):
        with processes.first_before_others():
            config, data, table = prepared(command.config)
        if command.dry_run:
            print("\n".join(expect(config, data, table).lines(len(command.seeds))))
            return 0
        new = command.out or new_folder(config.preset, config.images.dataset)
        root, resuming = folder_of(command.resume, new, processes)
        again = f"{processes.started_by} -m vpdarts_fast.search --resume {shlex.quote(str(root))}"
        session = Session(data, table, resuming, again, stop, searching=stop.deferred, processes=processes)
        with claimed(root) if processes.first else nullcontext():
            if len(command.seeds) > 1:
                run_seeds(command, config, root, session)
            else:
                run_one(config.replaced(seed=command.seeds[0]), root, session)
    return 0


def run_seeds(command: Command, config: SearchConfig, root: Path, session: Session) -> None:
    """Runs one search for each seed, in a folder of its own, and writes and prints their summary."""
    first, seeds = session.processes.first, command.seeds
    workers = workers_of(command, config, session)
    if first:
        save = write_seeds if session.resuming else create_seeds  # where things lie may have changed
        save(root, seeds, config.to_json(root))
    try:
        if workers is None:
            results = one_after_the_other(config, seeds, root, session)
        else:
            results = side_by_side(config, seeds, root, session, workers)
    except BaseException:
        if first and not session.resuming:
            discard_seeds(root, seeds)
        raise
    if not first:
        return
    summary = summarise(results)
    write_atomically(root / SUMMARY_FILE, (json.dumps(summary, indent=2) + "\n").encode())
    print("\n".join(["", *summary_lines(summary), f"summary: {root / SUMMARY_FILE}"]))


def one_after_the_other(
    config: SearchConfig, seeds: tuple[int, ...], root: Path, session: Session
) -> dict[int, dict[str, Any]]:
    """Runs a search for each seed in this process; returns their results."""
    results = {}
    for seed in seeds:
        folder = root / seed_folder(seed)
        with claimed(folder) if session.processes.first else nullcontext():
            results[seed] = run_one(config.replaced(seed=seed), folder, session)
    return results


if __name__ == "__main__":
    sys.exit(main())
