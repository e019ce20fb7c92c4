"""Run folders of spaces with several cell types, made up here: of DARTS, and of a space without any code."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from darts_textbook import DARTS_V1, DARTS_V2

from vpdarts_fast.runs.formats import EPOCH, RESULT, SPACE, Content
from vpdarts_fast.runs.space_file import drawing_to_json, space_to_json
from vpdarts_fast.spaces.darts import Darts

WARMUP, PRUNING = 2, 4
BASE = 60.0

Change = Callable[[dict[str, Content]], Any]
"""Of the contents of a run's files: `space`, `result`, and `epoch` for the last one."""


def drawn(space: Darts, text: str) -> tuple[str, Content]:
    """A choice's text and drawing."""
    return text, drawing_to_json(space, space.parse(text))


DARTS = Darts()
DARTS_CHOICES = [drawn(DARTS, DARTS_V1), drawn(DARTS, DARTS_V2)]

RAGGED_SPACE: Content = {
    "name": "somebody-else's",
    "tables": [
        {"name": "down", "edges": ["0->1", "left"], "ops": [["pool", "conv", "none"], ["conv"]]},
        {"name": "up", "edges": ["0->1", "0->2", "1->2"], "ops": [["skip"], ["skip", "big_conv"], ["conv"]]},
    ],
}
"""Five edges, three of them with a single op; the largest edge has three."""

DOWN = {"name": "down", "nodes": ["in", "left", "right", "out"]}
UP = {"name": "up", "nodes": ["a long name", "1", "2"]}
RAGGED_CHOICES: list[tuple[str, Content]] = [
    (
        "the first $choice",
        {
            "cells": [
                {**DOWN, "edges": [[0, 1, "conv"], [0, 2, "pool"], [1, 3, "concat"], [2, 3, "concat"]]},
                {**UP, "edges": [[0, 1, "skip"], [0, 2, "skip"], [1, 2, "conv"]]},
            ],
            "chosen": [[0, 0], [1, 0], [2, 0], [3, 0], [4, 0]],
        },
    ),
    (
        "the second $choice",
        {
            "cells": [
                {**DOWN, "edges": [[0, 1, "conv"], [0, 2, "conv"], [1, 3, "concat"], [2, 3, "concat"]]},
                {**UP, "edges": [[0, 1, "skip"], [0, 2, "big_conv"], [1, 2, "conv"]]},
            ],
            "chosen": [[0, 1], [1, 0], [2, 0], [3, 1], [4, 0]],
        },
    ),
]


def shape_of(space: Content) -> tuple[int, int]:
    """(E, O) of a space's tables."""
    ops = [len(names) for table in space["tables"] for names in table["ops"]]
    return len(ops), max(ops)


def is_there(space: Content) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[E, O] of a space's tables."""
    ops = [len(names) for table in space["tables"] for names in table["ops"]]
    return np.arange(max(ops)) < np.array(ops)[:, None]


def lost(space: Content, drawing: Content, number: int) -> Any:
    """[E, O] percentage points lost without each op, 20 without a chosen one; 0 where there is none."""
    values = np.random.default_rng(number).uniform(-0.5, 3, shape_of(space))
    values[tuple(zip(*drawing["chosen"], strict=True))] = 20
    return np.where(is_there(space), values, 0)


def alphas(space: Content, number: int) -> Any:
    """[E, O] after an epoch; 0 where an edge has no such op."""
    values = np.random.default_rng(1000 + number).uniform(0.1, 0.3, shape_of(space))
    return np.where(is_there(space), values, 0)


def importance(space: Content, drawing: Content, number: int) -> Content:
    """An evaluation."""
    accuracy = BASE - lost(space, drawing, number)
    return {"accuracy": accuracy.tolist(), "base_accuracy": BASE, "op_images": None}


def epochs_of(space: Content, choices: Sequence[tuple[str, Content]]) -> list[Content]:
    """A search whose epochs take the first of the choices."""
    text, drawing = choices[0]
    epochs = []
    for number in range(WARMUP + PRUNING):
        pruning = number >= WARMUP
        epochs.append(
            {
                "epoch": number,
                "phase": "pruning" if pruning else "warm-up",
                "learning_rate": 0.025,
                "weights_loss": 2.3 - 0.1 * number,
                "weights_accuracy": 10 + 5.0 * number,
                "alpha_loss": 2.2 - 0.1 * number if pruning else None,
                "alpha_accuracy": 12 + 5.0 * number if pruning else None,
                "alpha": alphas(space, number).tolist(),
                "importance": importance(space, drawing, number) if pruning else None,
                "genotype": text if pruning else None,
                "index": None,
                "drawing": drawing if pruning else None,
                "decay": 1 - (number - WARMUP) / PRUNING if pruning else None,
                "benchmark": None,
                "members": [],
                "tables": {},
                "decided": None,
                "tau": 0.25,
                "watched": {"skips": 1, "entropy": 1.5, "eigenvalue": None},
                "seconds": {"leave_one_out": 1.5, "train": 2.5},
                "environment": None,
            }
        )
    return epochs


def finalists_of(texts: Sequence[str]) -> Content:
    """All of them in one rung, the last one better than the one before and so on."""
    cells = [
        {"architecture": text, "close": True, "accuracy": [70.0 + number], "training_loss": [0.5]}
        for number, text in enumerate(texts)
    ]
    answer = {"architecture": texts[0], "index": None, "benchmark": None}
    rungs = [{"steps": 100, "images": 1000, "cells": cells}]
    played = {"incumbent": texts[0], "winner": texts[-1], "tied": [], "rungs": rungs}
    return {"search": answer, "steps": 100, "rounds": [played], "benchmark": dict.fromkeys(texts)}


def result_of(space: Content, choices: Sequence[tuple[str, Content]]) -> Content:
    """The last of the choices, by finalists."""
    text, drawing = choices[-1]
    return {
        "architecture": text,
        "index": None,
        "space": space["name"],
        "drawing": drawing,
        "base_accuracy": BASE,
        "benchmark": None,
        "importance": importance(space, drawing, 99),
        "alpha": alphas(space, 99).tolist(),
        "members": [],
        "tables": {},
        "finalists": finalists_of([text for text, _ in choices]),
        "limits": None,
        "seconds": {"total": 40.0},
        "stopped": None,
        "tau": 0.5,
    }


def write_space_run(
    folder: Path, space: Content, choices: Sequence[tuple[str, Content]], change: Change | None = None
) -> Path:
    """A finished run, after a change of what is in its files."""
    epochs, result = epochs_of(space, choices), result_of(space, choices)
    contents = json.loads(json.dumps({"space": space, "epoch": epochs[-1], "result": result}))
    if change is not None:
        change(contents)
    folder.mkdir()
    (folder / "space.json").write_text(SPACE.to_json(contents["space"]) + "\n")
    lines = [EPOCH.to_json(epoch) for epoch in (*epochs[:-1], contents["epoch"])]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "result.json").write_text(RESULT.to_json(contents["result"], indent=2) + "\n")
    return folder


DARTS_SPACE = space_to_json(DARTS)
SPACES = {"darts": (DARTS_SPACE, DARTS_CHOICES), "ragged": (RAGGED_SPACE, RAGGED_CHOICES)}
"""What is in space.json, and the choices of a run."""
