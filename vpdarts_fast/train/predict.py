"""`python -m vpdarts_fast.train.predict`: what a trained network takes pictures for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vpdarts_fast.command_line import command
from vpdarts_fast.errors import UserError
from vpdarts_fast.plugins import load_plugins
from vpdarts_fast.train.loading import load


@dataclass(frozen=True)
class Arguments:
    """Says what a trained network takes pictures for, and how surely."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a finished training."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
    """JPEG, PNG or whatever Pillow reads, of any size."""
    top: int = 1
    """So many of the most probable classes are printed."""
    plugin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A file or module that defines the space, if it is one of your own."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    asked = tyro.cli(Arguments, args=arguments, prog="python -m vpdarts_fast.train.predict")
    if not asked.pictures:
        raise UserError("name at least one IMAGE, as a JPEG or PNG file")
    if asked.top < 1:
        raise UserError(f"--top must be at least 1; got {asked.top}")
    load_plugins(asked.plugin)
    network = load(asked.run)
    for path in asked.pictures:
        (found,) = network.predict(path)
        shares = list(found.probabilities.items())[: asked.top]
        print(f"{path}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares))
    return 0


if __name__ == "__main__":
    sys.exit(main())
