"""`python -m vpdarts_fast.train`: the command line of the training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext

from vpdarts_fast.command_line import StopRequest, stoppable
from vpdarts_fast.runs.lock import claimed
from vpdarts_fast.runtime import machine
from vpdarts_fast.runtime.processes import joined
from vpdarts_fast.search.observer import Interrupted
from vpdarts_fast.search.running import folder_of, new_folder, process_settings
from vpdarts_fast.train.arguments import Command, parse
from vpdarts_fast.train.running import Session, prepared, run_training


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, 2 after an error, 128 + signal after a signal."""
    return stoppable(lambda given, stop: run_command(parse(given), stop), arguments, Interrupted)


def run_command(command: Command, stop: StopRequest) -> None:
    """Trains what the command says.

    Raises:
        UserError: a training could not begin or be finished.
        Interrupted: a signal stopped it.
    """
    machine.reuse_memory()
    execution = command.config.execution
    with joined(execution.device) as processes, process_settings(execution.threads):
        with processes.first_before_others():
            config, data, table = prepared(command.config)
        new = command.out or new_folder(f"train-{config.preset}", config.images.dataset)
        folder, resuming = folder_of(command.resume, new, processes)
        session = Session(data, table, resuming, stop, training=stop.deferred, processes=processes)
        with claimed(folder) if processes.first else nullcontext():
            run_training(config, folder, session)


if __name__ == "__main__":
    sys.exit(main())
