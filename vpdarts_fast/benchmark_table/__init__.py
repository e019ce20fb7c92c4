"""NAS-Bench-201 accuracies by look-up: `BenchmarkTable`, and converters of the official files."""

from __future__ import annotations

from vpdarts_fast.benchmark_table.table import COLUMNS, BenchmarkTable, official_architectures

__all__ = ["COLUMNS", "BenchmarkTable", "official_architectures"]
