"""How much memory this process may take, and how it deals with what it has freed."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where Linux says what a container may take; "max" or a huge number without a limit."""


def memory() -> int:
    """Bytes of the machine's memory, or what this container or process may take of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        total = min(total, limit)
    for path in CGROUP_LIMITS:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):  # there is no such file, or no limit
            continue
    return total


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MOST = 2**31 - 1  # of what mallopt takes, an int


def reuse_memory() -> bool:
    """Lets this process keep up to 2 GiB of memory that it has freed, instead of giving it back every time.

    Leave-one-out evaluation allocates hundreds of MiB again and again, and the system clears every page of
    them first, which is a fifth of the time with batch statistics. It holds for all of the process: a program
    decides it, no library.

    Returns:
        Whether the C library, glibc, does so.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(M_MMAP_THRESHOLD, MOST), mallopt(M_TRIM_THRESHOLD, MOST)])


def readable(size: float) -> str:
    """A number of bytes for people, as in `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} PiB"
