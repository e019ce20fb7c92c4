"""Run folders of NAS-Bench-201, made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vpdarts_fast.spaces.nas_bench_201.genotype import Genotype

PAPER = Genotype.from_string(
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
)
MIXED = Genotype(("nor_conv_1x1", "none", "avg_pool_3x3", "skip_connect", "nor_conv_3x3", "none"))
WARMUP, PRUNING = 4, 6


def make_importance(kept: Genotype, seed: int) -> dict[str, Any]:
    """An evaluation in which the kept ops matter most and ``none`` does not matter at all."""
    lost = np.random.default_rng(seed).uniform(-0.5, 3, (6, 5))
    lost[:, 0] = 0
    lost[range(6), kept.choices] = 20
    return {
        "accuracy": (60 - lost).tolist(),
        "loss": (1 + lost / 50).tolist(),
        "base_accuracy": 60.0,
        "base_loss": 1.0,
        "images": 1000,
        "batch_norm": "recalibrated",
    }


def make_epoch(number: int, *, importance: bool = True, benchmark: bool = True) -> dict[str, Any]:
    pruning = number >= WARMUP
    decay = 1 - (number - WARMUP) / PRUNING if pruning else None
    alpha = np.full((6, 5), 0.2)
    if decay is not None:
        alpha *= decay
        alpha[range(6), MIXED.choices] = 0.2 + 0.01 * number
        alpha[0, 0] = -0.01
    return {
        "epoch": number,
        "phase": "pruning" if pruning else "warm-up",
        "learning_rate": 0.025 - 0.002 * number,
        "weights_loss": 2.3 - 0.1 * number,
        "weights_accuracy": 10 + 5.0 * number,
        "alpha_loss": 2.2 - 0.1 * number if pruning else None,
        "alpha_accuracy": 12 + 5.0 * number if pruning else None,
        "alpha": alpha.tolist(),
        "importance": make_importance(MIXED, number) if pruning and importance else None,
        "genotype": str(MIXED),
        "index": MIXED.index,
        "decay": decay,
        "benchmark": {"cifar10_test_200ep": 90 + 0.1 * number} if benchmark else None,
        "seconds": {"leave_one_out": 1.5, "train": 2.5},
    }


def make_result(*, importance: bool = True, benchmark: bool = True) -> dict[str, Any]:
    return {
        "architecture": str(PAPER),
        "index": PAPER.index,
        "importance": make_importance(PAPER, 99) if importance else None,
        "alpha": [[0.2] * 5] * 6,
        "benchmark": {"cifar10_test_200ep": 94.36} if benchmark else None,
        "seconds": {"total": 40.0},
        "seed": 0,
        "warmup_epochs": WARMUP,
        "pruning_epochs": PRUNING,
        "base_accuracy": 60.0,
        "finalists": None,
    }


def write_run(
    folder: Path, epochs: list[dict[str, Any]], result: dict[str, Any] | None = None, tail: str = ""
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs) + tail)
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder
