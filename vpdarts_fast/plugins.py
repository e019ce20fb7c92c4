"""Loads the user's own parts: files or modules that are named, and what installed packages announce."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

from vpdarts_fast.errors import UserError

ENTRY_POINTS = "vpdarts_fast.plugins"
"""The group in which an installed package names the modules that define its parts."""


def load_plugins(names: Sequence[str]) -> None:
    """Imports what entry points announce, then each named file (`parts.py`) or module (`package.parts`).

    Only what the caller names is imported, never what a run folder does.

    Raises:
        UserError: one cannot be imported, with the reason.
    """
    loads: list[tuple[str, Callable[[], object]]] = [
        (point.name, point.load) for point in entry_points(group=ENTRY_POINTS)
    ]
    for name in names:
        load = _load_file if name.endswith(".py") else importlib.import_module
        loads.append((name, partial(load, name)))
    for name, load_one in loads:
        _import(name, load_one)


def _import(name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"--plugin {name} cannot be imported: {type(error).__name__}: {error}") from error


def _load_file(name: str) -> None:
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"--plugin {name}: there is no such file")
    module_name = f"vpdarts_fast_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
