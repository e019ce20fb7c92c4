"""Draws the pictures of a run again: ``python -m vpdarts_fast.report RUN``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vpdarts_fast.command_line import command
from vpdarts_fast.report.pictures import draw_pictures


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vpdarts_fast.report",
        description="Draw the pictures of a search again, from the files in its folder.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder that a search has written")
    for path in draw_pictures(parser.parse_args(arguments).run):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
