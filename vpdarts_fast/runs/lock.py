"""One process at a time works in a run folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.files import LOCK_FILE, remove_partial


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a folder where there is none and holds its lock; no trace is left where nothing is written.

    Raises:
        UserError: as `locked`, or the folder cannot be made.
    """
    missing: list[Path] = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(missing)
        raise UserError(f"cannot make the run folder {folder}: {error.strerror or error}") from error
    try:
        with locked(folder):
            remove_partial(folder)
            yield
    finally:
        _remove_empty(missing)


def _remove_empty(folders: list[Path]) -> None:
    """Removes those of the folders, innermost first, that have nothing in them."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def locked(folder: Path, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
    """Holds the lock of a folder that exists; no other process can, whoever it is.

    The kernel holds it: it ends with the process, however that ends, so that a lock file which nobody
    holds means nothing. The file says who holds it, for people. A file system that has no locks gives none.

    Args:
        folder: whose lock it is.
        waiting: where another process holds it, is told who, and then the lock is waited for; None does not
            wait.

    Raises:
        UserError: another process holds it, or no file can be made in the folder.
    """
    path = folder / LOCK_FILE
    descriptor = _acquire(path, folder, waiting)
    try:
        yield
    finally:
        # Removed while it is still held: whoever waits for the same file sees that it has gone.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def in_use(folder: Path) -> bool:
    """Whether another process holds the lock of a folder."""
    try:
        with locked(folder):
            return False
    except UserError:
        return True


def _acquire(path: Path, folder: Path, waiting: Callable[[str], object] | None) -> int:
    """A descriptor of the lock file, held and named by `path`."""
    at_once = fcntl.LOCK_NB
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"cannot make the lock {path}: {error.strerror or error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | at_once)
            if _is_at(path, descriptor):
                holder = {"process": os.getpid(), "machine": socket.gethostname(), "since": _now()}
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)
                return descriptor
        except BlockingIOError as error:
            holder_text = _holder(descriptor)
            os.close(descriptor)
            if waiting is not None:
                waiting(holder_text)
                at_once = 0
                continue
            raise UserError(
                f"{folder} is in use by {holder_text}: wait until it ends, or stop it, then run this again"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return descriptor  # a file system without locks: as good as it gets
            os.close(descriptor)
            raise UserError(f"cannot lock {path}: {error.strerror or error}") from error
        os.close(descriptor)  # the one before us removed it between our two calls


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one that has this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """Who wrote the lock file, for people."""
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return (
            f"process {int(holder['process'])} on {str(holder['machine'])[:100]} "
            f"since {str(holder['since'])[:40]}"
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"  # which has not yet written who it is


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
