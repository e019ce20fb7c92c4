"""What the command line of the search is given: its flags, and the settings that they stand for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from vpdarts_fast.bounds import check_bound
from vpdarts_fast.errors import UserError
from vpdarts_fast.parts import Part
from vpdarts_fast.plugins import load_plugins
from vpdarts_fast.search.config import PRESETS, SearchConfig, contradictions, flag
from vpdarts_fast.search.methods.alpha_rules import AlphaRule
from vpdarts_fast.search.methods.criteria import Criterion
from vpdarts_fast.search.methods.pruning import Pruning
from vpdarts_fast.search.methods.recipes import LINEAGES, RECIPES
from vpdarts_fast.search.methods.regularisers import Regulariser
from vpdarts_fast.search.methods.relaxations import Relaxation
from vpdarts_fast.search.methods.schedules import Schedule
from vpdarts_fast.search.methods.stopping import Stopping
from vpdarts_fast.search.methods.variations import Variation
from vpdarts_fast.search.run_folder import RunFolder
from vpdarts_fast.search.seeds import SEEDS_FILE, read_seeds
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
    ablations, darts (of the first order) or what derives from it. The flags below change single parts."""
    relaxation: Annotated[str, choice(Relaxation)] = "raw"
    """What alpha becomes before it multiplies the ops."""
    variation: Annotated[str, choice(Variation)] = "none"
    """What is done to the supernet of the space before it trains."""
    schedule: Annotated[str, choice(Schedule)] = "pruning"
    """Which stages the search has: warm-up, then epochs that begin by pruning, or greedy decisions."""
    alpha_rule: Annotated[str, choice(AlphaRule)] = "first-order"
    """How a step of alpha finds its gradient."""
    regulariser: Annotated[str, choice(Regulariser)] = "none"
    """What an alpha step minimises besides the loss."""
    criterion: Annotated[str, choice(Criterion)] = "accuracy"
    """What makes an op important: the accuracy or loss without it, or its alpha."""
    pruning: Annotated[str, choice(Pruning)] = "soft"
    """soft (VP-DARTS), hard (once, at the end) or progressive (5, 3, 2, 1 ops in stages; hard)."""
    stopping: Annotated[str, choice(Stopping)] = "none"
    """Whether the search ends early: when there are many skips, little entropy, or a rising eigenvalue."""
    plugin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A file or module that defines parts of your own; may be given several times, with --resume again."""
    out: Path | None = None
    """Folder of the run; it must not exist or be empty. Default: a new one under ./runs."""
    resume: Path | None = None
    """Continue the run in this folder, bit for bit on the same machine. Where things lie, what they run on
    and what is reported may change: --data, --benchmark-table, --device, --backend, --threads and so on."""
    dry_run: bool = False
    """Build everything, time a few steps of each phase, print what the search would take in time and memory,
    and leave it at that; no folder is made."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--seed"])] = (0,)
    """One search per seed; several seeds are summed up by mean, standard deviation and variance."""
    jobs: int | None = None
    """Seeds at a time, each a process with --threads. Default: on a CPU as many as it has cores for, on a GPU
    1; at 1 they run one after the other in this process, with a line for every epoch."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="{local,auto,HOST:PORT}")] = None
    """Run the seeds on a Ray cluster, each on as many CPUs as --threads (1 by default), on a GPU where there
    are some: one of this machine (local), one that runs here (auto), or that of an address."""


KINDS: dict[str, type[Part]] = {
    "space": Space,
    "relaxation": Relaxation,
    "variation": Variation,
    "schedule": Schedule,
    "alpha_rule": AlphaRule,
    "regulariser": Regulariser,
    "criterion": Criterion,
    "pruning": Pruning,
    "stopping": Stopping,
}
"""Parts that are chosen by flags of their names; which other flags there are follows from them."""


def parse(arguments: list[str]) -> Command:
    """Reads flags, which change the defaults of --preset, --method and parts or, with --resume, a run's own.

    Raises:
        UserError: no seeds that will do, or flags that change what the resumed run cannot change any more.
    """
    default = default_command(arguments)
    command = tyro.cli(
        Command,
        args=arguments,
        default=default,
        prog="python -m vpdarts_fast.search",
        description=f"{Command.__doc__}\n\n{origins(default.config)}",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if not command.seeds or len(set(command.seeds)) != len(command.seeds) or min(command.seeds) < 0:
        raise UserError(f"--seeds must be different whole numbers from 0; got {command.seeds}")
    check_bound("seed", command.seeds, "--seeds")
    check_bound("threads", command.jobs, "--jobs")
    if len(command.seeds) == 1 and (command.jobs not in (None, 1) or command.ray is not None):
        raise UserError(
            "--jobs and --ray are about several searches: give several --seeds, or leave them out"
        )
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


def default_command(arguments: list[str]) -> Command:
    """What flags do not say: with --resume the run's command, else what --preset, --method and parts give."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset", default="quick")
    early.add_argument("--resume", type=Path)
    early.add_argument("--method", default="vp-darts")
    early.add_argument("--lineage", default="recipe")
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
    lineage = known.lineage if known.lineage in LINEAGES else "recipe"  # the full parser explains it
    return command_of(config.replaced(recipe=known.method, lineage=lineage, **parts))


def origins(config: SearchConfig) -> str:
    """Where the defaults of these settings come from, for the help."""
    method = config.method
    paper, preset = SearchConfig().flat(), PRESETS[config.preset].flat()
    of_lineage = LINEAGES[method.lineage]
    of_recipe = {name: value for name, value in RECIPES[method.recipe].items() if name not in of_lineage}
    of_preset = [
        name
        for name in preset
        if preset[name] != paper.get(name) and name not in ("preset", *of_recipe, *of_lineage)
    ]
    sources = {
        f"--preset {config.preset}": of_preset,
        f"--method {method.recipe}": list(of_recipe),
        f"--lineage {method.lineage}": list(of_lineage),
    }
    said = [
        f"those of {source} for {' '.join(map(flag, names))}" for source, names in sources.items() if names
    ]
    return "; ".join(["Defaults are those of VP-DARTS' paper", *said]) + "."


def command_of(config: SearchConfig, seeds: tuple[int, ...] = (0,)) -> Command:
    """Makes a command with these settings."""
    flat = config.flat()
    return Command(config, **{name: flat[name] for name in KINDS}, method=config.method.recipe, seeds=seeds)


def resumed(folder: Path) -> Command:
    """Reads the command that began the run in `folder`.

    Raises:
        UserError: there is no run in it, or its settings cannot be read.
    """
    several = read_seeds(folder)
    if several is not None:
        seeds, values = several
        return command_of(SearchConfig.from_json(values, str(folder / SEEDS_FILE), folder), seeds)
    _, config = RunFolder.open(folder)
    return command_of(config, (config.search.seed,))
