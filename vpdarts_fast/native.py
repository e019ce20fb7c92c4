"""The native extension, if it is there: what it can run on, how it was built, or why it is missing.

Importing this module never compiles, never prints and never fails for want of the extension.
"""

from __future__ import annotations

import sys
from typing import TypedDict

import torch  # noqa: F401  before the extension, which links to the libraries that this loads

from vpdarts_fast.errors import UserError

_load_error: ImportError | None = None
try:
    import vpdarts_fast._C as _C
except ImportError as error:
    _load_error = error


class BuildInfo(TypedDict):
    """How the extension was built.

    Attributes:
        version: of the package.
        compiler: name and version.
        build_type: as CMake calls it.
        isas: instruction sets that the build contains, slowest first.
        cuda: whether CUDA kernels are in it.
    """

    version: str
    compiler: str
    build_type: str
    isas: list[str]
    cuda: bool


def available() -> bool:
    """Whether the extension is built for this Python and loads."""
    return _load_error is None


def why_not() -> str | None:
    """One message that says why the extension is missing and how to build it; None if it is available."""
    if _load_error is None:
        return None
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"the native extension does not load in {python} ({_load_error}). To build it, install a C++17 "
        "compiler and the Python headers (Debian, Ubuntu: g++, python3-dev), then run `make native` in the "
        "source tree, or `VPDARTS_NATIVE=on pip install .`; either shows what fails."
    )


def cpu_lanes(channels: int) -> int:
    """How many floats the vectors hold that so many channels are cut into; they are padded to a multiple.

    As many as those of the instruction set in use, or fewer where these hold all channels.

    Raises:
        UserError: as `cpu_isa`.
    """
    cpu_isa()
    return _C.cpu_lanes(channels)


def mixed_op_lanes(channels: int) -> int:
    """How many floats the vectors of `mixed_op` hold: as `cpu_lanes`, or even fewer for few channels.

    Raises:
        UserError: as `cpu_isa`.
    """
    cpu_isa()
    return _C.mixed_op_lanes(channels)


def cpu_isa() -> str:
    """The instruction set that CPU kernels use: "baseline", "avx2" or "avx512".

    The fastest supported one, unless the environment variable VPDARTS_CPU_ISA names another. Decided
    once per process.

    Raises:
        UserError: the extension is missing, or VPDARTS_CPU_ISA names an unsupported instruction set.
    """
    _require()
    try:
        return _C.cpu_isa()
    except ValueError as error:
        raise UserError(str(error)) from None


def summary() -> str:
    """Says in a few words what CPU tensors run on.

    Raises:
        UserError: VPDARTS_CPU_ISA names an unsupported instruction set.
    """
    return f"native kernels ({cpu_isa()})" if available() else "PyTorch only, no native kernels"


def supported_isas() -> list[str]:
    """What `VPDARTS_CPU_ISA` may name on this machine, slowest first.

    Raises:
        UserError: the extension is missing.
    """
    _require()
    return _C.supported_isas()


def build_info() -> BuildInfo:
    """How the extension was built.

    Raises:
        UserError: the extension is missing.
    """
    _require()
    return _C.build_info()


def _require() -> None:
    reason = why_not()
    if reason is not None:
        raise UserError(reason)
