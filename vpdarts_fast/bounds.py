"""What every number that a user may set has to be: one table for the command lines and the API."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

from vpdarts_fast.errors import UserError

FLOAT32_MAX = 3.4028234663852886e38
"""A setting beyond it cannot be multiplied with a tensor."""


@dataclass(frozen=True)
class Bound:
    """A range of numbers.

    Attributes:
        least: the smallest that is allowed; itself left out if `above`.
        most: the largest that is allowed; itself left out if `below`.
        whole: only whole numbers.
    """

    least: float
    most: float
    above: bool = False
    below: bool = False
    whole: bool = True

    def complaint(self, value: Any) -> str | None:
        """What a value must be and is not, and what it is; None for one that is allowed."""
        kind = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return f"must be a {'whole ' if self.whole else ''}number; got {shown(value)}"
        number = int(value) if isinstance(value, numbers.Integral) else float(value)
        low = number > self.least if self.above else number >= self.least
        high = number < self.most if self.below else number <= self.most
        if low and high:
            return None
        if not self.whole and self.most <= 1:
            interval = f"{'(' if self.above else '['}{self.least}, {self.most}{')' if self.below else ']'}"
            return f"must be in {interval}; got {shown(value)}"
        if low:
            return f"must be {'below' if self.below else 'at most'} {self.most:,}; got {shown(value)}"
        return f"must be {'above' if self.above else 'at least'} {self.least:,}; got {shown(value)}"


_COUNT = Bound(1, 1_000_000_000)
_EPOCHS = Bound(0, 1_000_000)
_BATCH = Bound(1, 1_000_000)
_POSITIVE = Bound(0, FLOAT32_MAX, above=True, whole=False)
_NOT_NEGATIVE = Bound(0, FLOAT32_MAX, whole=False)
_BELOW_ONE = Bound(0, 1, below=True, whole=False)
_SHARE = Bound(0, 1, above=True, whole=False)
_LAYERS = Bound(3, 1_000)
"""With fewer cells there is no normal one: two of them halve the image."""

LEAST_IMAGES = 4
"""Two halves of two."""

BOUNDS = {
    # The supernet
    "channels": Bound(1, 65_536),
    "cells_per_stage": Bound(1, 1_000),
    "num_classes": Bound(2, 1_000_000),
    "skip_dropout": _BELOW_ONE,
    "layers": _LAYERS,
    "channel_parts": Bound(1, 65_536),
    "alpha_start": Bound(-FLOAT32_MAX, FLOAT32_MAX, whole=False),
    "alpha_noise": _NOT_NEGATIVE,
    # Found networks
    "found_channels": Bound(1, 65_536),
    "found_layers": _LAYERS,
    "drop_path": _BELOW_ONE,
    # The search
    "warmup_epochs": _EPOCHS,
    "pruning_epochs": _EPOCHS,
    "commit_after": Bound(1, 1_000_000),
    "commit_every": Bound(1, 1_000_000),
    "batch_growth": Bound(0, 1_000_000),
    "training_epochs": _EPOCHS,
    "tuning_epochs": Bound(1, 1_000_000),
    "max_parameters": Bound(1, 10**18),
    "max_macs": Bound(1, 10**18),
    "max_latency_ms": _POSITIVE,
    "half_epochs": Bound(1, 1_000_000),
    "kept_ops": Bound(1, 64),
    "wide_parts": Bound(1, 65_536),
    "tuning_rate": _NOT_NEGATIVE,
    "zero_one": _NOT_NEGATIVE,
    "alpha_every": Bound(1, 1_000_000),
    "skips_to_stop": Bound(1, 1_000),
    "entropy_to_stop": _NOT_NEGATIVE,
    "eigenvalue_window": Bound(1, 1_000_000),
    "eigenvalue_ratio": Bound(0, 1, above=True, below=True, whole=False),
    "neumann_terms": Bound(0, 1_000),
    "batch_size": _BATCH,
    "evaluation_batch_size": _BATCH,
    "max_images": Bound(LEAST_IMAGES, 1_000_000_000),
    "images_per_epoch": Bound(2, 1_000_000_000),
    "validation_proportion": _SHARE,
    "race_confidence": Bound(0.5, 1, above=True, below=True, whole=False),
    "race_images": _COUNT,
    "seed": Bound(0, 2**63 - 1),
    "committee": Bound(1, 1_000),
    "finalists": Bound(0, 1_000),
    "finalist_channels": Bound(1, 65_536),
    "finalist_cells_per_stage": Bound(1, 1_000),
    "finalist_layers": _LAYERS,
    "finalist_steps": _COUNT,
    "finalist_budget": Bound(1, 2**50),
    "finalist_margin": Bound(0, 1_000, whole=False),
    "learning_rate": _NOT_NEGATIVE,
    "learning_rate_end": _NOT_NEGATIVE,
    "momentum": _BELOW_ONE,
    "weight_decay": _NOT_NEGATIVE,
    "gradient_clip": _POSITIVE,
    "alpha_learning_rate": _NOT_NEGATIVE,
    "alpha_betas": _BELOW_ONE,
    "alpha_weight_decay": _NOT_NEGATIVE,
    "padding": Bound(0, 1_000),
    "cutout": Bound(0, 1_000),
    "label_smoothing": _BELOW_ONE,
    "class_weight_power": Bound(0, 10, whole=False),
    "focal_gamma": Bound(0, 100, whole=False),
    "image_size": Bound(16, 224),
    # Training what was found
    "depth": Bound(1, 1_000),
    "epochs": Bound(1, 1_000_000),
    "auxiliary_weight": _NOT_NEGATIVE,
    "ema": _BELOW_ONE,
    # The machine
    "threads": Bound(1, 1_024),
    "memory_budget_mib": Bound(1, 2**30),
    "memory_budget": Bound(1, 2**50),
    # Analysis
    "images": _COUNT,
    "every": _COUNT,
    "bandwidth_share": _SHARE,
    "vector_share": _SHARE,
    "matrix_share": _SHARE,
    "kernel_us": Bound(0, 1_000_000, above=True, whole=False),
    "launch_us": Bound(0, 1_000_000, above=True, whole=False),
    "gap_us": Bound(0, 1_000_000, above=True, whole=False),
}
"""By the name of the setting. An upper bound is what no machine and no search comes near; what this machine
has memory for is checked beside it (`vpdarts_fast.search.preflight`)."""


def check_bound(name: str, value: Any, called: str | None = None) -> None:
    """Holds a setting, or each number of a tuple, to its bound.

    Args:
        name: of the setting, a key of `BOUNDS`.
        value: None is allowed; the setting is then at its default.
        called: what the user calls it, as in ``--batch-size``; `name` if not given.

    Raises:
        UserError: it is out of bounds, or no number.
    """
    values = value if isinstance(value, tuple) else (value,)
    for number in values:
        complaint = None if number is None else BOUNDS[name].complaint(number)
        if complaint is not None:
            raise UserError(f"{called or name} {complaint}")


def shown(value: Any) -> str:
    """A value for an error message; a number of many digits by their count."""
    if isinstance(value, int) and value.bit_length() > 100:
        digits = math.ceil(value.bit_length() * math.log10(2))
        return f"a number of about {digits:,} digits"
    return str(value) if isinstance(value, numbers.Number) else repr(value)[:80]
