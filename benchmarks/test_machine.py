"""What the machine can do, to hold the other rows against: multiply-adds and memory bandwidth."""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture


def test_multiply_adds(benchmark: BenchmarkFixture) -> None:
    """A large matrix product, float32: near the peak."""
    n = 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    out = torch.empty(n, n)
    benchmark.pedantic(lambda: torch.mm(a, b, out=out), rounds=7, warmup_rounds=2)
    benchmark.extra_info["rate"] = f"{n**3 / benchmark.stats.stats.median / 1e9:.0f} GMAC/s"


def test_bandwidth(benchmark: BenchmarkFixture) -> None:
    """c = a + b of 256 MiB each: two streams read, one written."""
    n = 2**26
    a, b, c = torch.ones(n), torch.ones(n), torch.ones(n)
    benchmark.pedantic(lambda: torch.add(a, b, out=c), rounds=7, warmup_rounds=2)
    benchmark.extra_info["rate"] = f"{3 * 4 * n / benchmark.stats.stats.median / 1e9:.1f} GB/s"
