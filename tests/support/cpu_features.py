"""What a test needs of the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest


def cpu_has_avx2() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and {"avx2", "fma"} <= set(cpuinfo.read_text().split())


needs_avx2 = pytest.mark.skipif(not cpu_has_avx2(), reason="this CPU has no AVX2")
