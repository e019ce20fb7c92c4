"""Where CI is set, a test may only be skipped for a reason that is known and allowed.

Else a column of tests vanishes silently, as all tests of the CPU kernels did where the extension was built
and did not load.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from typing import Any

import pytest

ALLOWED = (
    # Data that is not in the repository
    r"needs the real images of ",
    # Hardware
    r"PyTorch finds no CUDA device",
    r"the native extension is built without CUDA kernels",
    r"there is no CUDA device",
    r"there is a GPU here",
    r"there may be a GPU here",
    r"this CPU has no AVX2",
    r"this CPU supports every instruction set of the build",
    # Tools that are not required
    r"no nvcc",
    r"no nvdisasm",
    r"no valgrind, or no C\+\+ compiler",
    r"this Python has no pip",
    r"an isolated build takes minutes",
    # What is recorded is of one compiler and one PyTorch
    r"other compilers emit other instructions",
    r"another PyTorch has other operations",
    # Systems other than Linux
    r"there is no /dev/full here",
    r"needs /proc/cpuinfo",
    r"the C library is not glibc",
    # TRITON_INTERPRET=1 was asked for
    r"the interpreter compiles nothing",
    r"nothing is launched",
)
"""What a reason begins with."""


def enforced() -> bool:
    """Whether this is a run of CI."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def is_allowed(reason: str) -> bool:
    return any(re.match(pattern, reason) for pattern in ALLOWED)


def forbid(report: Any) -> None:
    """Makes a report of a skip for another reason one of a failure."""
    if not (enforced() and report.skipped and not hasattr(report, "wasxfail")):
        return
    reason = str(report.longrepr[2]).removeprefix("Skipped: ")
    if not is_allowed(reason):
        report.outcome = "failed"
        report.longrepr = (
            f"CI skips nothing for this reason (tests/support/skip_policy.py lists what it does): {reason}"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    forbid(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    forbid(report)
    return report
