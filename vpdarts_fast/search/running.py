"""Runs a search in its folder, for the command line and for calls: checks, new folder or resume, pictures."""

from __future__ import annotations

import shlex
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from vpdarts_fast import native
from vpdarts_fast.backends.registry import EVALUATION_OPS, TRAINING_OPS
from vpdarts_fast.backends.report import report
from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.command_line import described, warn
from vpdarts_fast.data import GIVEN, SearchImages
from vpdarts_fast.data.sources import DEFAULT_ROOT
from vpdarts_fast.errors import UserError
from vpdarts_fast.report.pictures import draw_pictures
from vpdarts_fast.report.tensorboard import require_tensorboard
from vpdarts_fast.runs.files import SPACE_FILE
from vpdarts_fast.runtime.precision import activation_dtype, check_precision
from vpdarts_fast.runtime.processes import ALONE, Processes, restarted
from vpdarts_fast.search.config import SearchConfig, contradictions
from vpdarts_fast.search.console import Console
from vpdarts_fast.search.driver import Search
from vpdarts_fast.search.images import as_set, load_images, sized
from vpdarts_fast.search.methods.alpha_rules import Loss
from vpdarts_fast.search.observer import Interrupted, Observer, OpsEvaluated, Reporting, Silent
from vpdarts_fast.search.preflight import check_search, choose_device
from vpdarts_fast.search.run_folder import RunFolder
from vpdarts_fast.spaces.nas_bench_201 import NasBench201


@dataclass(frozen=True)
class Session:
    """What all searches of a command or of a call share.

    Attributes:
        data: the images.
        table: where cells are looked up.
        resuming: whether there is a run to be continued.
        again: how people continue one that is stopped.
        stop: asked whether to, as `vpdarts_fast.search.driver.Search` does.
        loss: of logits and labels, what training minimises.
        on_epoch: hears each epoch's line of metrics.jsonl.
        on_evaluation: hears of every evaluation of the ops.
        quiet: print nothing; log.txt is written all the same.
        searching: entered while the search runs, which can then be stopped in order.
        processes: that run all of it together.
    """

    data: SearchImages
    table: BenchmarkTable | None
    resuming: bool
    again: str
    stop: Callable[[], bool]
    loss: Loss = F.cross_entropy
    on_epoch: Callable[[dict[str, Any]], object] = lambda metrics: None
    on_evaluation: Callable[[OpsEvaluated], object] = lambda evaluated: None
    quiet: bool = False
    searching: Callable[[], AbstractContextManager[object]] = nullcontext
    processes: Processes = ALONE

    def search(self, config: SearchConfig, run: RunFolder, observer: Observer) -> Search:
        """Makes a search of the session, at its beginning.

        Raises:
            UserError: it could not be finished.
        """
        watching = Reporting(observer, self.on_epoch)
        return Search(
            config,
            self.data,
            run,
            watching,
            self.table,
            self.stop,
            self.loss,
            self.on_evaluation,
            self.processes,
        )


@contextmanager
def process_settings(threads: int | None) -> Iterator[None]:
    """Sets, while it is entered, what a run needs: a cuDNN that repeats itself, and threads unless None."""
    before, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True  # a resumed search equals one that was not interrupted
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = deterministic
        torch.set_num_threads(before)


def prepared(
    config: SearchConfig, data: SearchImages | None = None, loss: Loss | None = None, *, quiet: bool = False
) -> tuple[SearchConfig, SearchImages, BenchmarkTable | None]:
    """Prepares a search, and complains of all that can be complained of before there is a folder.

    Args:
        config: the settings.
        data: the images; None loads those that the settings name.
        loss: of logits and labels, where the settings say that it is given.
        quiet: show no progress.

    Returns:
        The settings with the place where the images were found and the stem for their size, the images, and
        where cells are looked up.

    Raises:
        UserError: the search could not be finished (`vpdarts_fast.search.preflight`), or there are no images,
            or not the loss.
    """
    if config.optimisers.loss == GIVEN and loss is None:
        raise UserError(
            "the loss of this run has no name: it was given to vpdarts_fast.search_cells, which has to be "
            "given it again, as loss=, with folder= and resume=True"
        )
    device = choose_device(config.execution.device)
    check_precision(config.execution.precision, device)
    native.summary()
    if config.reporting.tensorboard:
        require_tensorboard()
    table = benchmark_table(config)
    data = load_images(config.images, quiet=quiet) if data is None else as_set(config, data)
    config = sized(config, data)
    backend_line(config, data.image_size)
    check_search(config, data, table, device)
    dataset = config.images.dataset
    if config.images.data is None and dataset not in ("digits", GIVEN) and not dataset.startswith("hf:"):
        config = config.replaced(data=DEFAULT_ROOT)  # found again from another folder
    return config, data, table


def benchmark_table(config: SearchConfig) -> BenchmarkTable | None:
    """Where cells are looked up: the table that is named, or the published one of NAS-Bench-201."""
    path = config.reporting.benchmark_table
    if not isinstance(config.space, NasBench201):
        if path is not None:
            raise UserError(
                f"--benchmark-table is of NAS-Bench-201; leave it out with --space {config.space.name}"
            )
        return None
    return BenchmarkTable.load(path) if path is not None else BenchmarkTable.published()


def new_folder(preset: str, dataset: str) -> Path:
    """Names a folder under ./runs that does not exist yet, by what runs in it."""
    label = "".join(letter if letter.isalnum() or letter == "-" else "-" for letter in dataset)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{preset}-{label}"
    folder, suffix = Path("runs") / name, 1
    while folder.exists():
        suffix += 1
        folder = Path("runs") / f"{name}-{suffix}"
    return folder


def folder_of(resume: Path | None, new: Path, processes: Processes) -> tuple[Path, bool]:
    """The folder that all processes work in, and whether there is something in it to be continued.

    Args:
        resume: what a command line was given to continue.
        new: where it begins otherwise, as the first process says.
        processes: that work in it, which may have been started anew.
    """
    folder = Path(processes.tell(str(resume or new)))
    return folder, resume is not None or (restarted() and folder.exists())


def run_one(config: SearchConfig, folder: Path, session: Session) -> dict[str, Any]:
    """Runs one search in its folder, new or continued, to its result and pictures.

    What follows the result is done again on resume, since nobody knows how far it came. A run that fails
    before its first step leaves nothing that would be in the way of the next.
    """
    if not session.processes.first:
        return follow(config, folder, session)
    run, is_new = open_run(config, folder, session.resuming)
    session.processes.tell(str(folder))
    search: Search | None = None
    try:
        with Console(run, config, quiet=session.quiet) as console:
            result = run.result()
            if result is None:
                search = session.search(config, run, console)
                result = run_search(search, console, session)
            else:
                console.begin(config.epochs)
                console.line(f"this run is finished: {folder}")
            console.result(result)
    except BaseException:
        if is_new and not (search and search.begun) and not run.checkpoint.exists():
            run.discard()
        raise
    try:
        draw_pictures(folder)
    except Exception as error:  # the result is there, whatever happens to a picture
        warn(f"no pictures: {described(error)}. The result is complete; draw them with: "
             f"python -m vpdarts_fast.report {shlex.quote(str(folder))}")  # fmt: skip
    return result


def follow(config: SearchConfig, folder: Path, session: Session) -> dict[str, Any]:
    """Takes part in a search that the first process has opened the folder of, without writing or a word."""
    session.processes.tell(None)
    run = RunFolder(folder, config.space.tables)
    result = run.result()
    if result is not None:
        return result
    search = session.search(config, run, Silent())
    if run.has_begun():
        search.resume()
    with session.searching():
        return search.search()


def run_search(search: Search, console: Console, session: Session) -> dict[str, Any]:
    """Runs the search from where its folder has it, and returns what result.json holds."""
    if search.run_folder.has_begun():
        search.resume()
    console.begin(search.state.epoch)
    for line in header_lines(search, session.data):
        console.line(line)
    try:
        with session.searching():
            return search.search()
    except Interrupted:
        console.line(f"stopped in {search.position}; nothing is lost")
        console.line(f"continue with: {session.again}")
        raise


def open_run(config: SearchConfig, folder: Path, resuming: bool) -> tuple[RunFolder, bool]:
    """Opens or makes the folder of a run; also returns whether the run is new.

    Of a group of seeds that was stopped, a seed may have none yet.

    Raises:
        UserError: the run has begun with other settings.
    """
    if not (resuming and (folder / "config.json").exists()):
        return RunFolder.create(folder, config), True
    run, saved = RunFolder.open(folder)
    if changed := contradictions(saved, config):
        raise UserError(f"cannot change a run that has begun ({folder}):\n  " + "\n  ".join(changed))
    if config != saved or not (folder / SPACE_FILE).exists():
        run.write_config(config)
    return run, False


def header_lines(search: Search, data: SearchImages) -> list[str]:
    """Says what is about to run: the resolved settings, the images and the device."""
    config = search.config
    settings = "  ".join(f"{name}={value}" for name, value in config.flat().items())
    position = f", continued at {search.position}" if search.begun else ""
    height, width = data.image_size
    lines = [
        f"{config.method.recipe} search in {config.space.name}{position}",
        *textwrap.wrap(
            settings,
            110,
            initial_indent="  ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        ),
        f"{data.name}: {len(search.training)} training and {len(search.validation)} validation images of "
        f"{height}x{width}, {data.num_classes} classes; {search.device}, {search.processes.of_threads}, "
        + native.summary(),
        backend_line(config, data.image_size),
        f"run folder: {search.run_folder.path}",
    ]
    if config.optimisers.alpha_rate_scaling:
        rate = search.members[0].config.optimisers.alpha_learning_rate
        lines.insert(-1, f"alpha's learning rate, scaled: {rate:.3g}")
    return lines if search.environment_change is None else [*lines, search.environment_change]


def backend_line(config: SearchConfig, image_size: tuple[int, int]) -> str:
    """Says what serves training and leave-one-out on this device, and why nothing better does.

    Raises:
        UserError: --backend names one that cannot.
    """
    if not config.execution.fused:
        return "backends: none, the plain PyTorch modules"
    if not config.fused_by_itself:
        return "backends: mixed operations accelerated where they are recognised"
    phases = {"training": TRAINING_OPS}
    if config.method.criterion.needs_evaluation:
        phases["leave-one-out"] = TRAINING_OPS if config.search.batch_norm == "batch" else EVALUATION_OPS
    execution = config.execution
    dtype, device = activation_dtype(execution.precision), choose_device(execution.device)
    return "backends: " + report(phases, config.space.stages(image_size), dtype, device, execution.backend)
