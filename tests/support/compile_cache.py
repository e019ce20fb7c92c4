"""What the tests compile, kept between runs for as long as nothing that it is made of changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from places import ROOT

CACHE = ROOT / "build" / "tests"
KEPT = 14 * 24 * 3600
"""Seconds since its last use."""


def digest_of(folders: Iterable[Path]) -> str:
    """Of the names and contents of all files in them but Python's; not of where the folders lie."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            if file.suffix in (".py", ".pyc"):
                continue
            content = file.read_bytes()
            digest.update(f"{file.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def version_of(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


def compiled(made_of: Iterable[str], build: Callable[[Path], None]) -> Path:
    """The folder that `build` has filled, now or in an earlier run.

    Args:
        made_of: all that the outcome depends on: flags, the compiler's version, digests of sources.
        build: fills an empty folder, or raises; what it writes must not depend on the folder's place.
    """
    key = hashlib.sha256("\n".join([torch.__version__, *made_of]).encode()).hexdigest()
    folder = CACHE / key
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        drop_old()
        place = Path(tempfile.mkdtemp(prefix="new-", dir=CACHE))
        try:
            build(place)
            place.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
        finally:
            shutil.rmtree(place, ignore_errors=True)
    os.utime(folder)
    return folder


def drop_old() -> None:
    """Folders that no run has used for long."""
    for folder in CACHE.iterdir():
        if time.time() - folder.stat().st_mtime > KEPT:
            shutil.rmtree(folder, ignore_errors=True)
