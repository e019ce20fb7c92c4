"""Files written whole or not at all, and what counts as an empty folder."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from vpdarts_fast.errors import UserError

PARTIAL = ".partial"
"""Ends the name of a file that is being written, or was when its process was killed."""

SNAPSHOTS = "snapshots"
"""The folder of snapshots in that of a run."""

SPACE_FILE = "space.json"
"""Says what the run searches; see `vpdarts_fast.runs.space_file`."""

LOCK_FILE = "lock"
"""Says who works in a folder; see `vpdarts_fast.runs.lock`."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` by a file with this content; whatever happens, the old or the new one is there, whole.

    Raises:
        UserError: the disk is full or not writable; the old file is intact.
    """
    # Its name is its own: two processes that write one file do not write into each other's.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        run = path.parent.parent if path.parent.name == SNAPSHOTS else path.parent
        raise UserError(
            f"cannot write {path} ({len(content):,} bytes): {error.strerror or error}. What was there before "
            "is intact: make room or the folder writable, then run the same again (a search that had begun: "
            f"with --resume {run})"
        ) from error
    finally:  # there is one only if this failed or was interrupted
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a file's new name last through a loss of power, where the file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_empty(folder: Path) -> bool:
    """Whether nothing is in the folder but what a process leaves that is killed in its first write.

    This is the one rule for where a run, or a group of runs, may begin.
    """
    return all(entry.name == LOCK_FILE or entry.suffix == PARTIAL for entry in folder.iterdir())


def make_empty(folder: Path) -> None:
    """Makes the folder of a run, or of a group of runs, that is to begin.

    Raises:
        UserError: there is something in it already, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        empty = is_empty(folder)
    except OSError as error:
        raise UserError(f"cannot make the run folder {folder}: {error.strerror or error}") from error
    if not empty:
        raise UserError(
            f"{folder} exists and is not empty: continue what is in it with --resume {folder}, or name "
            "another folder with --out"
        )


def remove_partial(folder: Path) -> None:
    """Removes what killed processes left half written; only for who holds the folder's lock."""
    for entry in (*folder.glob(f"*{PARTIAL}"), *folder.glob(f"{SNAPSHOTS}/*{PARTIAL}")):
        with contextlib.suppress(OSError):
            entry.unlink()
