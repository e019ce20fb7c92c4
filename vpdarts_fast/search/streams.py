"""Randomness as a function of seed, purpose and position, so that a resumed search needs no replay."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def seed_for(seed: int, purpose: str, *position: int) -> int:
    """A 63-bit seed for one purpose at one position (epoch, step) of a search."""
    entropy = (seed, zlib.crc32(purpose.encode()), *position)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1


def stream(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A fresh CPU generator for one purpose at one position."""
    return torch.Generator().manual_seed(seed_for(seed, purpose, *position))
