"""What `pip install .` builds with: setuptools, and PyTorch where the extension finds none to build with.

The extension is compiled against PyTorch's headers. An isolated build, pip's default, hides the packages of
the environment that it installs into; a PyTorch there is found all the same (`installed_torch`). Where there
is none yet, it becomes a requirement of the build: one build of the extension serves every PyTorch from
`OLDEST` on, so it need not be the one that is then installed. Nothing is required with VPDARTS_NATIVE=off.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sysconfig
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

OLDEST = (2, 10)
"""The PyTorch whose stable ABI the extension is written for."""


def installed_torch() -> Path | None:
    """The folder of a PyTorch to build with, found without importing it; None if there is none.

    First what this Python imports; in an isolated build, then, what is installed beside it.
    """
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    for folder in dict.fromkeys(sysconfig.get_path(kind) for kind in ("platlib", "purelib")):
        for distribution in Distribution.discover(name="torch", path=[folder]):
            version = tuple(map(int, re.findall(r"\d+", distribution.version)[:2]))
            if version >= OLDEST and (Path(folder) / "torch" / "include").is_dir():
                return Path(folder) / "torch"
    return None


def _torch_requirement() -> list[str]:
    if os.environ.get("VPDARTS_NATIVE") == "off" or installed_torch() is not None:
        return []
    return ["torch>=" + ".".join(map(str, OLDEST))]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What pip installs into the isolated environment before it builds."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The same for `pip install -e .`."""
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()
