"""Randomness as a function of seed, purpose and position, so that a resumed search needs no replay."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_for(seed: int, purpose: str, *position: int) -> int:
    """A 63-bit seed for one purpose at one position (epoch, step) of a search."""
    entropy = (seed, zlib.crc32(purpose.encode()), *position)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1


def stream(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A fresh CPU generator for one purpose at one position."""
    return torch.Generator().manual_seed(seed_for(seed, purpose, *position))


@contextmanager
def drawing(draws: bool, seed: int, device: torch.device) -> Iterator[None]:
    """Within, PyTorch draws from this seed, and goes on behind as if it had not; nothing happens without."""
    if not draws:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
