"""What the files of a training have to be like, for whoever reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpdarts_fast.runs.formats import TRAINING_SETTINGS, parse_json, read_bytes
from vpdarts_fast.runs.values import mapping, number, numbers_by_name, whole

MOST_CLASSES = 10_000
"""A result with more of them is none."""

EVALUATED = ("validation", "average")
"""What an epoch may evaluate: the network, and the moving average of its weights."""


def is_training(folder: Path) -> bool:
    """Whether a folder is that of a training, by the mark of its config.json."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        content = parse_json(read_bytes(path))
    except ValueError:
        return False
    kind = f"vpdarts_fast {TRAINING_SETTINGS.kind},"
    return isinstance(content, dict) and str(content.get("format")).startswith(kind)


def parse_epoch(entry: Mapping[str, Any]) -> None:
    """Checks a line of metrics.jsonl; raises `KeyError`, `TypeError` or `ValueError` for what is none."""
    whole(entry["epoch"], "epoch")
    number(entry["learning_rate"], "learning_rate", 0)
    number(entry["drop_path"], "drop_path", 0, 1)
    for name in ("training", *EVALUATED):
        if name == "training" or entry[name] is not None:
            _check_scores(entry[name], name)
    numbers_by_name(entry["seconds"], "seconds", 0)


def parse_result(entry: Mapping[str, Any]) -> None:
    """Checks result.json; raises `KeyError`, `TypeError` or `ValueError` for what is none."""
    classes = entry["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes must be a list of names")
    if not 1 <= len(classes) <= MOST_CLASSES:
        raise ValueError(f"classes must be 1 to {MOST_CLASSES:,} names; got {len(classes)}")
    if not isinstance(entry["architecture"], str):
        raise ValueError("architecture must be text")
    for name in ("parameters", "multiply_adds", "epochs"):
        whole(entry[name], name, 1)
    _check_scores(entry["training"], "training")
    if entry["validation"] is not None:
        _check_scores(entry["validation"], "validation")
    for name in ("test", "test_without_average"):
        if name == "test" or entry[name] is not None:
            _check_evaluation(entry[name], name, len(classes))
    for name in ("benchmark", "compared"):
        if entry[name] is not None:
            mapping(entry[name], name)
    if entry["compared"] is not None:
        for name in ("ours", "benchmark"):
            number(entry["compared"][name], name, 0, 100)
    numbers_by_name(entry["seconds"], "seconds", 0)


def _check_scores(entry: Any, name: str) -> None:
    number(mapping(entry, name)["loss"], f"{name}, loss,", 0)
    number(entry["accuracy"], f"{name}, accuracy,", 0, 100)


def _check_evaluation(entry: Any, name: str, classes: int) -> None:
    _check_scores(entry, name)
    for score in ("balanced_accuracy", "macro_f1"):
        number(entry[score], f"{name}, {score},", 0, 100.0001)
    if [len(row) for row in entry["confusion"]] != [classes] * classes:
        raise ValueError(f"{name}, confusion, must be [{classes}, {classes}]")
    for row in entry["confusion"]:
        for count in row:
            whole(count, f"{name}, confusion,")
    if len(entry["per_class"]) != classes:
        raise ValueError(f"{name}, per_class, must have {classes} numbers")
