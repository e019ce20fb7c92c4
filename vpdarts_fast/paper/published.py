"""What the tables of VP-DARTS' paper say: test accuracies in NAS-Bench-201, and hours of the search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

COLUMNS: Mapping[str, str] = {
    "CIFAR-10": "cifar10_test_200ep",
    "CIFAR-100": "cifar100_test_200ep",
    "ImageNet16-120": "imagenet16_120_test_200ep",
}
"""The data sets, and where a benchmark table has the test accuracy of networks trained for 200 epochs."""


@dataclass(frozen=True)
class Published:
    """A row of a table of the paper.

    Attributes:
        accuracies: test accuracies in per cent on the data sets of `COLUMNS`, with what stands behind the
            sign: a variance for rows of the paper's own searches, a standard deviation for the others.
        hours: GPU-hours of the search; None where the paper has none.
    """

    accuracies: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    hours: float | None = None


BEST = ((94.36, 0.0), (73.51, 0.0), (46.34, 0.0))
"""One cell, the same from every seed."""

COLLAPSED = ((54.30, 0.0), (15.61, 0.0), (16.32, 0.0))
"""The cell of six skip connections."""

SOFT_FIXED = ((94.15, 0.07), (72.77, 0.57), (45.91, 0.43))

TABLE_1: Mapping[str, Published] = {
    "random": Published(((93.70, 0.36), (71.04, 1.07), (44.57, 1.25))),
    "reinforce": Published(((93.85, 0.37), (71.71, 1.09), (45.24, 1.18))),
    "evolution": Published(((93.92, 0.30), (71.84, 0.99), (45.54, 1.03))),
    "renas": Published(((93.99, 0.25), (72.12, 0.79), (45.97, 0.49))),
    "darts": Published(COLLAPSED, 2.0),
    "darts-second-order": Published(COLLAPSED),
    "snas": Published(((92.77, 0.83), (69.34, 1.98), (43.16, 2.64))),
    "pc-darts": Published(((93.41, 0.30), (67.48, 0.89), (41.31, 0.22))),
    "sgas": Published(((88.33, 0.03), (70.76, 1.29), (43.04, 2.76))),
    "idarts": Published(((93.58, 0.32), (70.83, 0.48), (40.89, 0.68))),
    "darts-minus": Published(((93.80, 0.40), (71.53, 1.51), (45.12, 0.82))),
    "drnas": Published(BEST, 3.9),
    "beta-darts": Published(BEST, 3.2),
    "vp-darts-fixed": Published(SOFT_FIXED, 2.8),
    "vp-darts": Published(BEST, 2.8),
}
"""Table 1 by method; multi-trial methods first. In the paper evolution is called genetic."""

TABLE_2: Mapping[str, Published] = {
    "vp-darts-hard": Published(((91.41, 2.24), (67.97, 5.23), (37.99, 53.90))),
    "vp-darts-progressive": Published(((93.11, 0.10), (70.29, 1.66), (43.55, 4.93))),
    "vp-darts-fixed": Published(SOFT_FIXED),
}
"""Hard, progressive hard and soft pruning with fixed K."""

TABLE_3: Mapping[str, Published] = {
    "vp-darts-alpha": Published(((88.86, 1.49), (62.99, 9.45), (35.11, 12.37))),
    "vp-darts-fixed": Published(SOFT_FIXED),
}
"""Importance by alpha's magnitude and by the accuracy without the op, both with fixed K."""

FIGURE_5: Mapping[str, float] = {"alpha": -0.2, "accuracy": 0.6}
"""Kendall's tau with the true ranking: of alpha's magnitude, and of the accuracy without the op."""
