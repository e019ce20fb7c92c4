"""Several seeds of one search: mean, standard deviation and variance of what they found."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs.checkpoint import write_atomically

SEEDS_FILE = "seeds.json"
SUMMARY_FILE = "summary.json"


def write_seeds(folder: Path, seeds: tuple[int, ...], config: dict[str, Any]) -> None:
    """Makes the folder of several runs; each seed's run is in `folder / seed_folder(seed)`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(
                f"{folder} exists and is not empty: continue those runs with --resume {folder}, or name "
                "another folder with --out"
            )
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    text = json.dumps({"seeds": seeds, "config": config}, indent=2) + "\n"
    write_atomically(folder / SEEDS_FILE, text.encode())


def read_seeds(folder: Path) -> tuple[tuple[int, ...], dict[str, Any]] | None:
    """Seeds and settings of a folder of several runs; None if it is not one."""
    path = folder / SEEDS_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        return tuple(int(seed) for seed in content["seeds"]), dict(content["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def seed_folder(seed: int) -> str:
    return f"seed-{seed}"


def summarise(results: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Per seed what was found; over the seeds mean, standard deviation and variance of the accuracies.

    Standard deviation and variance are of the sample (n - 1), None for a single seed.
    """
    measured: dict[str, list[float]] = {}
    for result in results.values():
        values = {"base_accuracy": result["base_accuracy"], **(result["benchmark"] or {})}
        for name, value in values.items():
            if value is not None:
                measured.setdefault(name, []).append(value)
    several = len(results) > 1
    return {
        "seeds": {
            str(seed): {key: result[key] for key in ("architecture", "index", "base_accuracy", "benchmark")}
            for seed, result in results.items()
        },
        "accuracies": {
            name: {
                "mean": statistics.fmean(values),
                "standard_deviation": statistics.stdev(values) if several else None,
                "variance": statistics.variance(values) if several else None,
            }
            for name, values in measured.items()
            if len(values) == len(results)
        },
    }


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary for people."""
    lines = [
        f"seed {seed}: {found['architecture']} (index {found['index']})"
        for seed, found in summary["seeds"].items()
    ]
    for name, values in summary["accuracies"].items():
        spread = ""
        if values["variance"] is not None:
            spread = (
                f", standard deviation {values['standard_deviation']:.2f}, variance {values['variance']:.3f}"
            )
        lines.append(f"{name}: mean {values['mean']:.2f} %{spread}")
    return lines
