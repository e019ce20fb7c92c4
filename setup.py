"""Lets setuptools build the native extension through CMake; everything else is in pyproject.toml.

VPDARTS_NATIVE=auto (default): where nothing can be compiled the package installs without the extension
and says so. on: that is an error. off: the extension is not built. VPDARTS_CUDA says the same of the CUDA
kernels in it, TORCH_CUDA_ARCH_LIST which GPUs they are for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # for whoever runs this file without the backend
from build_backend import installed_torch  # noqa: E402

MODE = os.environ.get("VPDARTS_NATIVE") or "auto"
CUDA = os.environ.get("VPDARTS_CUDA") or "auto"
for name, mode in (("VPDARTS_NATIVE", MODE), ("VPDARTS_CUDA", CUDA)):
    if mode not in ("auto", "on", "off"):
        raise SystemExit(f"error: {name} must be auto, on or off; got {mode!r}")

NEEDS = "needs a C++17 compiler, the Python headers (Debian, Ubuntu: g++, python3-dev), CMake and Ninja"


def find_tool(name: str) -> str:
    """Looks beside this Python first: there pip puts CMake and Ninja."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    tool = shutil.which(name, path=path)
    if tool is None:
        raise CompileError(f"{name} not found; `pip install {name}`")
    return tool


def find_torch() -> str:
    """The folder of the package torch."""
    folder = installed_torch()
    if folder is None:
        raise CompileError("no PyTorch to build with; `pip install torch` first, or build without "
                           "--no-build-isolation")  # fmt: skip
    return str(folder)


class CMakeBuild(build_ext):
    """Configures, builds and copies one CMake target per extension."""

    def build_extension(self, ext: Extension) -> None:
        """Raises `CompileError` if nothing can be compiled here, which setuptools forgives if optional."""
        if self.editable_mode:  # an older build in the source tree must not pass for this one
            (ROOT / self.get_ext_filename(ext.name)).unlink(missing_ok=True)
        if MODE == "off":
            raise CompileError("VPDARTS_NATIVE=off")
        build_base = Path(self.get_finalized_command("build").build_base).resolve()
        build_dir = build_base / f"cmake-{sys.implementation.cache_tag}"
        configure = [find_tool("cmake"), "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"]
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "VPDARTS_WERROR": os.environ.get("VPDARTS_WERROR") or "OFF",
            "VPDARTS_CUDA": CUDA,
            "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST") or "",
            "VPDARTS_TORCH_DIR": find_torch(),
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        configure += [f"-D{name}={value}" for name, value in options.items()]
        if subprocess.run(configure).returncode != 0:
            if CUDA == "on":  # asked for, so not to be skipped silently
                raise SystemExit("error: VPDARTS_CUDA=on, and the configuration fails; see above")
            raise CompileError(NEEDS)
        # From here on a failure is a fault of the sources, never one to skip silently.
        if subprocess.run([configure[0], "--build", str(build_dir)]).returncode != 0:
            raise SystemExit("error: the sources do not compile; VPDARTS_NATIVE=off installs without them")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build_dir / target.name, target)


setup(
    ext_modules=[Extension("vpdarts_fast._C", sources=[], optional=MODE != "on")],
    cmdclass={"build_ext": CMakeBuild},
)
