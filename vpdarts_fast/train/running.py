"""Runs a training in its folder: checks, new folder or resume, result, pictures, exports."""

from __future__ import annotations

import dataclasses
import shlex
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpdarts_fast import native
from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.command_line import described, warn
from vpdarts_fast.data import GIVEN
from vpdarts_fast.data.sources import DEFAULT_ROOT
from vpdarts_fast.errors import UserError
from vpdarts_fast.report.training import draw_training
from vpdarts_fast.runtime.precision import check_precision
from vpdarts_fast.runtime.processes import ALONE, Processes
from vpdarts_fast.search.images import load_images
from vpdarts_fast.search.observer import Interrupted, Silent
from vpdarts_fast.search.preflight import choose_device
from vpdarts_fast.spaces.nas_bench_201 import NasBench201
from vpdarts_fast.spaces.stems import with_stem
from vpdarts_fast.train.config import TrainConfig, contradictions
from vpdarts_fast.train.console import TrainConsole
from vpdarts_fast.train.exporting import export_network
from vpdarts_fast.train.folder import TrainFolder
from vpdarts_fast.train.images import Data
from vpdarts_fast.train.trainer import Training, TrainObserver


@dataclass(frozen=True)
class Session:
    """What a command brings along.

    Attributes:
        data: the images.
        table: where a cell of NAS-Bench-201 is looked up.
        resuming: whether there is a training to be continued.
        stop: asked whether to.
        quiet: print nothing; log.txt is written all the same.
        training: entered while the network is trained, which can then be stopped in order.
        processes: that train together.
    """

    data: Data
    table: BenchmarkTable | None
    resuming: bool = False
    stop: Callable[[], bool] = lambda: False
    quiet: bool = False
    training: Callable[[], AbstractContextManager[object]] = nullcontext
    processes: Processes = ALONE

    def begun(self, config: TrainConfig, run: TrainFolder, observer: TrainObserver) -> Training:
        """Makes a training of the session, where its folder has it."""
        made = Training(config, self.data, run, observer, self.table, self.stop, self.processes)
        if run.has_begun():
            made.resume()
        return made


def prepared(config: TrainConfig, *, quiet: bool = False) -> tuple[TrainConfig, Data, BenchmarkTable | None]:
    """Prepares a training, and complains of what can be complained of before there is a folder.

    Args:
        config: the settings.
        quiet: show no progress.

    Returns:
        The settings with the place where the images were found and the stem for their size, the images, and
        where cells are looked up.
    """
    device = choose_device(config.execution.device)
    check_precision(config.execution.precision, device)
    native.summary()
    table = None
    if isinstance(config.space, NasBench201):
        path = config.reporting.benchmark_table
        table = BenchmarkTable.load(path) if path is not None else BenchmarkTable.published()
    if config.images.dataset == GIVEN:
        raise UserError("--dataset given is for searches from Python: a training reads a data set of files")
    data = load_images(config.images, quiet=quiet)
    config = dataclasses.replace(config, space=with_stem(config.space, data.image_size))
    dataset = config.images.dataset
    if config.images.data is None and dataset != "digits" and not dataset.startswith("hf:"):
        config = config.replaced(data=DEFAULT_ROOT)  # found again from another folder
    return config, data, table


def run_training(config: TrainConfig, folder: Path, session: Session) -> dict[str, Any]:
    """Runs one training in its folder, new or continued, to its result, pictures and exports.

    What follows the result is done again on resume, since nobody knows how far it came. A training that fails
    before its first step leaves nothing that would be in the way of the next.
    """
    if not session.processes.first:
        return follow(config, folder, session)
    run, is_new = _open(config, folder, session.resuming)
    session.processes.tell(None)
    training: Training | None = None
    try:
        with TrainConsole(run, config.training.epochs, quiet=session.quiet) as console:
            result = run.result()
            if result is None:
                training = session.begun(config, run, console)
                result = _train(training, console, session)
            else:
                console.line(f"this training is finished: {folder}")
            console.result(result, folder)
            try:
                for line in export_network(run, config, session.data, result):
                    console.line(line)
            except Exception as error:  # the result is there, and so is the checkpoint
                warn(f"not all of the network was exported: {described(error)}. The result is complete; "
                     f"export again with: {again(folder)}")  # fmt: skip
    except BaseException:
        if is_new and not (training and training.begun) and not run.checkpoint.exists():
            run.discard()
        raise
    try:
        draw_training(folder)
    except Exception as error:  # the result is there, whatever happens to a picture
        warn(f"no pictures: {described(error)}. The result is complete; draw them with: "
             f"python -m vpdarts_fast.report {shlex.quote(str(folder))}")  # fmt: skip
    return result


def follow(config: TrainConfig, folder: Path, session: Session) -> dict[str, Any]:
    """Takes part in a training that the first process has opened the folder of, without writing or a word."""
    session.processes.tell(None)
    run, _ = TrainFolder.open(folder)
    if (result := run.result()) is not None:
        return result
    with session.training():
        return session.begun(config, run, Silent()).train()


def again(folder: Path, processes: Processes = ALONE) -> str:
    """The command that continues the training in a folder, with as many processes."""
    return f"{processes.started_by} -m vpdarts_fast.train --resume {shlex.quote(str(folder))}"


def _train(training: Training, console: TrainConsole, session: Session) -> dict[str, Any]:
    console.begin(training.state.epoch)
    for line in header_lines(training, session.data):
        console.line(line)
    try:
        with session.training():
            return training.train()
    except Interrupted:
        if training.begun:
            console.line(f"stopped in {training.position}; nothing is lost")
            console.line(f"continue with: {again(training.run_folder.path, session.processes)}")
        else:
            console.line("stopped before the first step, so that there is nothing to keep")
        raise


def _open(config: TrainConfig, folder: Path, resuming: bool) -> tuple[TrainFolder, bool]:
    """Opens or makes the folder of a training; also returns whether it is new."""
    if not (resuming and (folder / "config.json").exists()):
        return TrainFolder.create(folder, config), True
    run, saved = TrainFolder.open(folder)
    if changed := contradictions(saved, config):
        raise UserError(f"cannot change a training that has begun ({folder}):\n  " + "\n  ".join(changed))
    if config != saved:
        run.write_config(config)
    return run, False


def header_lines(training: Training, data: Data) -> list[str]:
    """Says what is about to run: the resolved settings, the images and the device."""
    config, images = training.config, training.images
    settings = "  ".join(f"{name}={value}" for name, value in config.flat().items())
    height, width = data.image_size
    validation = "" if images.validation is None else f", {len(images.validation)} validation"
    position = f", continued at {training.position}" if training.begun else ""
    lines = [
        f"training {config.cell}{position}",
        *textwrap.wrap(settings, 110, initial_indent="  ", subsequent_indent="  ", break_long_words=False,
                       break_on_hyphens=False),
        f"{data.name}: {len(images.training)} training{validation} and {len(images.test)} test images of "
        f"{height}x{width}, {data.num_classes} classes; {training.device}, {training.processes.of_threads}, "
        + native.summary(),
        f"run folder: {training.run_folder.path}",
    ]  # fmt: skip
    return lines if training.environment_change is None else [*lines, training.environment_change]
