"""Where files lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""

TESTS = ROOT / "tests"
SUPPORT = TESTS / "support"

SHARED = ROOT.parent / "shared"
"""Data that the repository does not have: beside it, where there is any."""

VERSION_1 = SUPPORT / "run_folder_version_1"
"""Written before files had versions: a search of two seeds, killed in the second. The checkpoint and the
snapshots of the first seed, and all pictures, are left out."""
