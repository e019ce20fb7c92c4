"""`python -m vpdarts_fast.search`: the command line of the search."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import torch
import tyro

from vpdarts_fast import native
from vpdarts_fast.backends.registry import EVALUATION_OPS, TRAINING_OPS
from vpdarts_fast.backends.report import report
from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.bounds import check_bound
from vpdarts_fast.command_line import described, forgiving_output, warn
from vpdarts_fast.data import ImageData, load
from vpdarts_fast.data.sources import DEFAULT_ROOT
from vpdarts_fast.errors import UserError
from vpdarts_fast.parts import Part
from vpdarts_fast.plugins import load_plugins
from vpdarts_fast.report.pictures import draw_pictures
from vpdarts_fast.report.tensorboard import require_tensorboard
from vpdarts_fast.runs.files import SPACE_FILE, write_atomically
from vpdarts_fast.runs.lock import claimed
from vpdarts_fast.runtime import machine
from vpdarts_fast.runtime.precision import activation_dtype, check_precision
from vpdarts_fast.search.config import PRESETS, SearchConfig, contradictions, flag
from vpdarts_fast.search.console import Console
from vpdarts_fast.search.driver import Interrupted, Search, choose_device
from vpdarts_fast.search.methods.alpha_rules import AlphaRule
from vpdarts_fast.search.methods.criteria import Criterion
from vpdarts_fast.search.methods.pruning import Pruning
from vpdarts_fast.search.methods.recipes import RECIPES
from vpdarts_fast.search.methods.regularisers import Regulariser
from vpdarts_fast.search.methods.relaxations import Relaxation
from vpdarts_fast.search.preflight import check_search
from vpdarts_fast.search.run_folder import RunFolder
from vpdarts_fast.search.seeds import (
    SEEDS_FILE,
    SUMMARY_FILE,
    create_seeds,
    discard_seeds,
    read_seeds,
    seed_folder,
    summarise,
    summary_lines,
    write_seeds,
)
from vpdarts_fast.spaces.nas_bench_201 import NasBench201
from vpdarts_fast.spaces.space import Space


def choice(kind: type[Part]) -> Any:
    """How a flag that takes the name of a part looks in the help."""
    return tyro.conf.arg(metavar="{" + ",".join(kind.names()) + "}")


@dataclass(frozen=True)
class Command:
    """Searches a cell. Without any flag: VP-DARTS on NAS-Bench-201, the quick preset on embedded data."""

    config: SearchConfig
    space: Annotated[str, choice(Space)] = NasBench201.name
    """What is searched."""
    method: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(RECIPES) + "}")] = "vp-darts"
    """Which parts the search is composed of, with the settings of the method's paper: vp-darts, its
    ablations, or darts (of the first order). The flags below change single parts."""
    relaxation: Annotated[str, choice(Relaxation)] = "raw"
    """What alpha becomes before it multiplies the ops."""
    alpha_rule: Annotated[str, choice(AlphaRule)] = "first-order"
    """How a step of alpha finds its gradient."""
    regulariser: Annotated[str, choice(Regulariser)] = "none"
    """What an alpha step minimises besides the loss."""
    criterion: Annotated[str, choice(Criterion)] = "accuracy"
    """What makes an op important: the accuracy or loss without it, or its alpha."""
    pruning: Annotated[str, choice(Pruning)] = "soft"
    """soft (VP-DARTS), hard (once, at the end) or progressive (5, 3, 2, 1 ops in stages; hard)."""
    plugin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A file or module that defines parts of your own; may be given several times, with --resume again."""
    out: Path | None = None
    """Folder of the run; it must not exist or be empty. Default: a new one under ./runs."""
    resume: Path | None = None
    """Continue the run in this folder, bit for bit on the same machine. Where things lie, what they run on
    and what is reported may change: --data, --benchmark-table, --device, --backend, --threads and so on."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--seed"])] = (0,)
    """One search per seed; several seeds are summed up by mean, standard deviation and variance."""


class StopRequest:
    """Makes SIGINT and SIGTERM end the program in order, while it is entered.

    Inside `deferred` the first one is a request to stop after the step, and a second one ends it at
    once; outside, where nothing needs to be saved, the first one does. A third one kills.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._deferred = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self.signal is not None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, number
        if again or not self._deferred:
            signal.signal(number, signal.SIG_DFL)
            raise KeyboardInterrupt
        with contextlib.suppress(RuntimeError):  # the signal came while something was being printed
            print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, 2 after an error, 128 + signal after a signal."""
    with forgiving_output():
        return _main(sys.argv[1:] if arguments is None else list(arguments))


def _main(arguments: list[str]) -> int:
    stop = StopRequest()
    try:
        with stop:
            return run_command(parse(arguments), stop)
    except (UserError, OSError) as error:
        print(f"error: {described(error)}", file=sys.stderr)
        return 2
    except Interrupted:
        return 128 + (stop.signal or signal.SIGINT)
    except KeyboardInterrupt:
        print("stopped at once", file=sys.stderr)
        return 128 + (stop.signal or signal.SIGINT)


def parse(arguments: list[str]) -> Command:
    """Flags over the defaults of --preset, --method and parts or, with --resume, the run's own settings."""
    default = default_command(arguments)
    command = tyro.cli(
        Command,
        args=arguments,
        default=default,
        prog="python -m vpdarts_fast.search",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if not command.seeds or len(set(command.seeds)) != len(command.seeds) or min(command.seeds) < 0:
        raise UserError(f"--seeds must be different whole numbers from 0; got {command.seeds}")
    check_bound("seed", command.seeds, "--seeds")
    if command.resume is not None:
        changed = contradictions(default.config, command.config)
        changed += [
            f"{flag(name)}: the run has {getattr(default, name)}, asked for {getattr(command, name)}"
            for name in (*KINDS, "method")
            if getattr(command, name) != getattr(default, name)
        ]
        if command.seeds != default.seeds:
            changed.append(f"--seeds: the run has {default.seeds}, asked for {command.seeds}")
        if command.out is not None:
            changed.append("--out: a resumed run stays in its folder")
        if changed:
            raise UserError(
                f"cannot change a run that has begun ({command.resume}):\n  " + "\n  ".join(changed)
                + "\nleave these flags out to resume, or start a new run without --resume"
            )  # fmt: skip
    return command


KINDS: dict[str, type[Part]] = {
    "space": Space,
    "relaxation": Relaxation,
    "alpha_rule": AlphaRule,
    "regulariser": Regulariser,
    "criterion": Criterion,
    "pruning": Pruning,
}
"""Parts that are chosen by flags of their names; which other flags there are follows from them."""


def default_command(arguments: list[str]) -> Command:
    """What is not said by flags: of --resume the run's command, else of --preset, --method and the parts."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset", default="quick")
    early.add_argument("--resume", type=Path)
    early.add_argument("--method", default="vp-darts")
    early.add_argument("--plugin", action="append", default=[])
    for name in KINDS:
        early.add_argument(flag(name))
    try:
        known, _ = early.parse_known_args(arguments)
    except argparse.ArgumentError:  # the full parser explains it
        return command_of(PRESETS["quick"])
    load_plugins(known.plugin)
    if known.resume is not None:
        return resumed(known.resume)
    parts = {name: getattr(known, name) for name in KINDS if getattr(known, name) is not None}
    config = PRESETS.get(known.preset, PRESETS["quick"])
    return command_of(config.replaced(recipe=known.method, **parts))


def command_of(config: SearchConfig, seeds: tuple[int, ...] = (0,)) -> Command:
    """A command with these settings."""
    flat = config.flat()
    return Command(config, **{name: flat[name] for name in KINDS}, method=config.method.recipe, seeds=seeds)


def resumed(folder: Path) -> Command:
    """The command that began the run in `folder`."""
    several = read_seeds(folder)
    if several is not None:
        seeds, values = several
        return command_of(SearchConfig.from_json(values, str(folder / SEEDS_FILE), folder), seeds)
    _, config = RunFolder.open(folder)
    return command_of(config, (config.search.seed,))


def run_command(command: Command, stop: StopRequest) -> int:
    """One search per seed."""
    config = command.config
    torch.backends.cudnn.deterministic = True  # a resumed search equals one that was not interrupted
    machine.reuse_memory()
    if config.execution.threads is not None:
        torch.set_num_threads(config.execution.threads)
    # These complain before there is a folder.
    check_precision(config.execution.precision, choose_device(config.execution.device))
    native.summary()
    if config.reporting.tensorboard:
        require_tensorboard()
    table = benchmark_table(config)
    data = load(config.images.dataset, config.images.data, download=config.images.download)
    backend_line(config, data.image_size)
    check_search(config, data, table, choose_device(config.execution.device))
    if config.images.data is None and config.images.dataset != "digits":
        config = config.replaced(data=DEFAULT_ROOT)  # found again from another folder
    root = command.resume or command.out or new_folder(config)
    session = Session(data, table, root, command.resume is not None, stop)
    with claimed(root):
        if len(command.seeds) > 1:
            run_seeds(config, command.seeds, session)
        else:
            run_seed(config.replaced(seed=command.seeds[0]), root, session)
    return 0


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


@dataclass(frozen=True)
class Session:
    """What all searches of a command share.

    Attributes:
        root: the folder that --resume would name.
        resuming: whether it does.
    """

    data: ImageData
    table: BenchmarkTable | None
    root: Path
    resuming: bool
    stop: StopRequest


def run_seeds(config: SearchConfig, seeds: tuple[int, ...], session: Session) -> None:
    """One search after the other, in folders of their own, and their summary."""
    root = session.root
    save = write_seeds if session.resuming else create_seeds  # where things lie may have changed
    save(root, seeds, config.to_json(root))
    results = {}
    try:
        for seed in seeds:
            folder = root / seed_folder(seed)
            with claimed(folder):
                results[seed] = run_seed(config.replaced(seed=seed), folder, session)
    except BaseException:
        if not session.resuming:
            discard_seeds(root, seeds)
        raise
    summary = summarise(results)
    write_atomically(root / SUMMARY_FILE, (json.dumps(summary, indent=2) + "\n").encode())
    print("\n".join(["", *summary_lines(summary), f"summary: {root / SUMMARY_FILE}"]))


def new_folder(config: SearchConfig) -> Path:
    """A folder under ./runs that does not exist yet."""
    name = time.strftime("%Y%m%d-%H%M%S") + f"-{config.preset}-{config.images.dataset}"
    folder = Path("runs") / name
    suffix = 1
    while folder.exists():
        suffix += 1
        folder = Path("runs") / f"{name}-{suffix}"
    return folder


def run_seed(config: SearchConfig, folder: Path, session: Session) -> dict[str, Any]:
    """One search in its folder, new or continued, to its result and pictures.

    What follows the result is done again on resume, since nobody knows how far it came. A run that fails
    before its first step leaves nothing that would be in the way of the next.
    """
    run, is_new = open_run(config, folder, session.resuming)
    search: Search | None = None
    try:
        with Console(run, config) as console:
            result = run.result()
            if result is None:
                search = Search(config, session.data, run, console, session.table, session.stop)
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


def run_search(search: Search, console: Console, session: Session) -> dict[str, Any]:
    """The search from where its folder has it; returns the result."""
    if search.run_folder.has_begun():
        search.resume()
    console.begin(search.state.epoch)
    for line in header_lines(search, session.data):
        console.line(line)
    try:
        with session.stop.deferred():
            return search.search()
    except Interrupted:
        console.line(f"stopped in {search.position}; nothing is lost")
        root = shlex.quote(str(session.root))
        console.line(f"continue with: python -m vpdarts_fast.search --resume {root}")
        raise


def open_run(config: SearchConfig, folder: Path, resuming: bool) -> tuple[RunFolder, bool]:
    """The folder of a run, and whether the run is new; of a stopped group, a seed may have none yet."""
    if not (resuming and (folder / "config.json").exists()):
        return RunFolder.create(folder, config), True
    run, saved = RunFolder.open(folder)
    if changed := contradictions(saved, config):
        raise UserError(f"cannot change a run that has begun ({folder}):\n  " + "\n  ".join(changed))
    if config != saved or not (folder / SPACE_FILE).exists():
        run.write_config(config)
    return run, False


def header_lines(search: Search, data: ImageData) -> list[str]:
    """What is about to run: the resolved settings, the images and the device."""
    config = search.config
    settings = "  ".join(f"{name}={value}" for name, value in config.flat().items())
    position = f", continued at {search.position}" if search.begun else ""
    height, width = data.image_size
    lines = [
        f"{config.method.recipe} search in {config.space.name}{position}",
        *textwrap.wrap(settings, 110, initial_indent="  ", subsequent_indent="  ", break_long_words=False),
        f"{data.name}: {len(search.training)} training and {len(search.validation)} validation images of "
        f"{height}x{width}, {data.num_classes} classes; {search.device}, {torch.get_num_threads()} threads, "
        + native.summary(),
        backend_line(config, data.image_size),
        f"run folder: {search.run_folder.path}",
    ]
    if config.optimisers.alpha_rate_scaling:
        rate = search.members[0].config.optimisers.alpha_learning_rate
        lines.insert(-1, f"alpha's learning rate, scaled: {rate:.3g}")
    return lines if search.environment_change is None else [*lines, search.environment_change]


def backend_line(config: SearchConfig, image_size: tuple[int, int]) -> str:
    """What serves training and leave-one-out on this device, and why nothing better does.

    Raises:
        UserError: --backend names one that cannot.
    """
    if not config.execution.fused:
        return "backends: none, the plain PyTorch modules"
    if not config.space.fused:
        return "backends: mixed operations accelerated where they are recognised"
    phases = {"training": TRAINING_OPS}
    if config.method.criterion.needs_evaluation:
        phases["leave-one-out"] = TRAINING_OPS if config.search.batch_norm == "batch" else EVALUATION_OPS
    execution = config.execution
    dtype, device = activation_dtype(execution.precision), choose_device(execution.device)
    return "backends: " + report(phases, config.space.stages(image_size), dtype, device, execution.backend)


if __name__ == "__main__":
    sys.exit(main())
