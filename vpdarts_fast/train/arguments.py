"""What the command line of the training is given: its flags, and the settings that they stand for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from vpdarts_fast.errors import UserError
from vpdarts_fast.plugins import load_plugins
from vpdarts_fast.runs.training_files import is_training
from vpdarts_fast.search.run_folder import RunFolder
from vpdarts_fast.search.seeds import SEEDS_FILE
from vpdarts_fast.train.config import (
    FIRST_CELL,
    PRESETS,
    TrainConfig,
    config_of,
    contradictions,
    found_by,
    preset_for,
    space_of,
)
from vpdarts_fast.train.folder import TrainFolder


@dataclass(frozen=True)
class Command:
    """Trains the network of a cell from scratch, tests it once, and exports it.

    Named is the cell, as text, or the folder of a search that has found one; of the search its space and data
    set are taken too.
    """

    config: TrainConfig
    what: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="CELL|RUN")] = None
    plugin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A file or module that defines a space of your own; may be given several times, with --resume again."""
    out: Path | None = None
    """Folder of the training; it must not exist or be empty. Default: a new one under ./runs."""
    resume: Path | None = None
    """Continue the training in this folder, bit for bit on the same machine; of one that is finished, draw
    its pictures and export its network again. Where things lie and what they run on may change."""


def parse(arguments: list[str]) -> Command:
    """Reads flags, which change the defaults of the preset or, with --resume, a training's own.

    Raises:
        UserError: no cell, or flags that change what the resumed training cannot change any more.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset")
    try:
        preset = early.parse_known_args(arguments)[0].preset
    except argparse.ArgumentError:  # the full parser explains it
        preset = None
    named = PRESETS.get(preset or "", PRESETS["short"])
    # Twice: what is to be trained decides on the defaults of all other flags.
    asked = _parsed(arguments, Command(named))
    load_plugins(asked.plugin)
    if asked.resume is None:
        config = _config_of(asked, preset)
        return replace(_parsed(arguments, Command(config)), what=config.cell)
    return _resumed(arguments, asked, preset)


def _parsed(arguments: list[str], default: Command) -> Command:
    return tyro.cli(
        Command,
        args=arguments,
        default=default,
        prog="python -m vpdarts_fast.train",
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _config_of(asked: Command, preset: str | None) -> TrainConfig:
    """What flags do not say: the cell, its space and data set, and the preset's settings."""
    if asked.what is None:
        raise UserError(
            "name what to train, the folder of a search or a cell, as in "
            f"python -m vpdarts_fast.train '{FIRST_CELL}'"
        )
    folder = Path(asked.what).expanduser()
    if not _exists(folder):
        space = space_of(asked.what)
        return config_of(preset or preset_for(space, asked.config.images.dataset), asked.what, space, None)
    if is_training(folder):
        raise UserError(f"{folder} is the folder of a training: go on with --resume {folder}")
    if (folder / SEEDS_FILE).exists():
        raise UserError(f"{folder} holds searches of several seeds: name the folder of one of them")
    run, search = RunFolder.open(folder)
    result = run.result()
    if result is None:
        raise UserError(
            f"the search in {folder} has found nothing yet: finish it with "
            f"python -m vpdarts_fast.search --resume {folder}"
        )
    cell, space, images = found_by(search, result["architecture"])
    config = config_of(preset or preset_for(space, images.dataset), cell, space, images)
    return config.replaced(split_seed=search.search.seed)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, as cells of the DARTS space are
        return False


def _resumed(arguments: list[str], asked: Command, preset: str | None) -> Command:
    """The command that began the training in a folder, with flags that may change."""
    assert asked.resume is not None
    _, saved = TrainFolder.open(asked.resume)
    command = _parsed(arguments, Command(saved))
    changed = contradictions(saved, command.config)
    if command.what not in (None, saved.cell):
        changed.append(f"CELL|RUN: the training is of {saved.cell}; leave it out")
    if command.out is not None:
        changed.append("--out: a resumed training stays in its folder")
    if changed:
        raise UserError(
            f"cannot change a training that has begun ({asked.resume}):\n  " + "\n  ".join(changed)
            + "\nleave these flags out to resume, or start a new training without --resume"
        )  # fmt: skip
    return command
