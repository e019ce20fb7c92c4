"""Several seeds of one search: mean, standard deviation and variance of what they found."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from vpdarts_fast.runs.files import make_empty, write_atomically
from vpdarts_fast.runs.formats import SEEDS, shown
from vpdarts_fast.runs.values import whole

SEEDS_FILE = "seeds.json"
SUMMARY_FILE = "summary.json"


def create_seeds(folder: Path, seeds: tuple[int, ...], config: dict[str, Any]) -> None:
    """Makes the folder of several runs; each seed's run is in `folder / seed_folder(seed)`.

    Raises:
        UserError: there is something in it already, or it cannot be written.
    """
    make_empty(folder)
    write_seeds(folder, seeds, config)


def write_seeds(folder: Path, seeds: tuple[int, ...], config: dict[str, Any]) -> None:
    """Writes seeds.json; `config` is what `SearchConfig.to_json` gives for this folder."""
    text = SEEDS.to_json({"seeds": seeds, "config": config}, indent=2)
    write_atomically(folder / SEEDS_FILE, (text + "\n").encode())


def read_seeds(folder: Path) -> tuple[tuple[int, ...], dict[str, Any]] | None:
    """Reads the seeds and the settings of a folder of several runs; None if it is not one.

    Raises:
        UserError: seeds.json is damaged or of a newer version.
    """
    path = folder / SEEDS_FILE
    if not path.exists():
        return None
    content = SEEDS.read_json(path)
    with SEEDS.reading(str(path)):
        seeds, config = content["seeds"], content["config"]
        if not isinstance(seeds, list) or len(seeds) < 2:
            raise ValueError(f"seeds must be a list of several numbers; got {shown(seeds)}")
        if not isinstance(config, dict):
            raise ValueError(f"config must hold the settings; got {shown(config)}")
        numbers = tuple(whole(seed, "a seed") for seed in seeds)
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"a seed stands there twice: {shown(seeds)}")
    return numbers, config


def discard_seeds(folder: Path, seeds: tuple[int, ...]) -> None:
    """Removes seeds.json where the run of no seed has begun."""
    if not any((folder / seed_folder(seed)).exists() for seed in seeds):
        (folder / SEEDS_FILE).unlink(missing_ok=True)


def seed_folder(seed: int) -> str:
    """Names the folder of a seed's run, within the folder of several runs."""
    return f"seed-{seed}"


def summarise(results: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Sums up what each seed found, and mean, standard deviation and variance of the accuracies.

    Standard deviation and variance are of the sample (n - 1), None for a single seed.
    """
    measured: dict[str, list[float]] = {}
    for result in results.values():
        values = {"base_accuracy": result["base_accuracy"], **(result["benchmark"] or {})}
        if result["finalists"] is not None:
            alone = result["finalists"]["search"]["benchmark"] or {}
            values |= {f"{column}, the search alone": value for column, value in alone.items()}
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
    """Says for people what each seed found, and how the accuracies spread."""
    lines = [
        f"seed {seed}: {result['architecture']} (index {result['index']})"
        for seed, result in summary["seeds"].items()
    ]
    for name, values in summary["accuracies"].items():
        spread = ""
        if values["variance"] is not None:
            spread = (
                f", standard deviation {values['standard_deviation']:.2f}, variance {values['variance']:.3f}"
            )
        lines.append(f"{name}: mean {values['mean']:.2f} %{spread}")
    return lines
