"""ReNAS (Xu et al., CVPR 2021): a predictor that learns to rank cells from a few evaluations."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast.errors import UserError
from vpdarts_fast.search.tabular.learner import Cell, Learner, TabularMethod, random_cell
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, NUM_ARCHITECTURES, NUM_NODES, OPS

STAGES = ((16, 32), (32, 16), (64, 8))
"""Channels and side of the images in the three stages of the network that the benchmark trains."""
CELLS_PER_STAGE = 5
KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
SCALES = 1e-7, 1e-5
"""What multiply-adds and parameters are multiplied with, to be as large as the operations' numbers."""

Encoding = Literal["numbers", "one-hot"]


@functools.cache
def encoded_cells(encoding: Encoding) -> tuple[tuple[Cell, ...], Tensor]:
    """All cells and their encodings, float32 [15625, 31, 4, 4], or [15625, 35, 4, 4] with one-hot operations.

    At (source, target) an encoding has the edge's operation, as a number or as five channels of which one is
    1, then for each of the fifteen cells of the network its multiply-adds and its parameters: of a k x k
    convolution with its batch norm k^2 C^2 HW + 2 C HW and k^2 C^2 + 2 C, of anything else 0, scaled (section
    3.1 of the paper, which numbers the operations).
    """
    cells = tuple(product(range(len(OPS)), repeat=len(EDGES)))
    of_op = torch.tensor([_type(o, encoding) + _costs(op) for o, op in enumerate(OPS)])
    encodings = torch.zeros(NUM_ARCHITECTURES, of_op.shape[1], NUM_NODES, NUM_NODES)
    choices = torch.tensor(cells)
    for e, (source, target) in enumerate(EDGES):
        encodings[:, :, source, target] = of_op[choices[:, e]]
    return cells, encodings


def _type(number: int, encoding: Encoding) -> list[float]:
    return [float(number)] if encoding == "numbers" else [float(o == number) for o in range(len(OPS))]


def _costs(op: str) -> list[float]:
    """Of an operation in all cells of the network."""
    costs: list[float] = []
    for channels, side in STAGES:
        kernel = KERNELS.get(op)
        parameters = 0 if kernel is None else (kernel * channels) ** 2 + 2 * channels
        costs += [SCALES[0] * parameters * side**2, SCALES[1] * parameters] * CELLS_PER_STAGE
    return costs


def predictor(channels: int) -> nn.Module:
    """A network after LeNet-5: an encoding [N, channels, 4, 4] to a score [N, 1]."""
    return nn.Sequential(
        nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.Conv2d(2 * channels, 128, 3, padding=1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128 * NUM_NODES**2, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 1),
    )


def ranking_loss(scores: Tensor, accuracies: Tensor) -> Tensor:
    """The mean over ordered pairs i != j of log(1 + exp(-(s_i - s_j) sign(a_i - a_j))), of N scores [N].

    It is the pairwise ranking loss of the paper (section 3.2). Cells of the same accuracy add a constant.
    """
    count = len(scores)
    differences = (scores[:, None] - scores) * torch.sign(accuracies[:, None] - accuracies)
    pairs = ~torch.eye(count, dtype=torch.bool)
    return F.softplus(-differences[pairs]).mean()


def agreement(scores: Tensor, accuracies: Tensor) -> float:
    """Kendall's tau (a) of N scores and accuracies, [N] each."""
    signs = torch.sign(scores[:, None] - scores) * torch.sign(accuracies[:, None] - accuracies)
    return float(signs.sum()) / max(len(scores) * (len(scores) - 1), 1)


class _Renas(Learner):
    def __init__(self, settings: Renas, generator: np.random.Generator) -> None:
        self._settings, self._generator = settings, generator
        self._known: dict[Cell, float] = {}
        self._waiting: list[Cell] = []

    def ask(self) -> Cell:
        if len(self._known) < self._settings.samples:
            while (cell := random_cell(self._generator)) in self._known:
                pass
            return cell
        if not self._waiting:
            self._waiting = self._best_predicted()
        return self._waiting[0]

    def tell(self, cell: Cell, accuracy: float) -> None:
        self._known[cell] = accuracy
        self._waiting = self._waiting[1:]

    def _best_predicted(self) -> list[Cell]:
        """Those with the highest scores among all that were not evaluated, the best first."""
        cells, _ = encoded_cells(self._settings.encoding)
        order = self._scores().argsort(descending=True).tolist()
        unknown = (cells[i] for i in order if cells[i] not in self._known)
        return [cell for cell, _ in zip(unknown, range(self._settings.top), strict=False)]

    def _scores(self) -> Tensor:
        """Of all cells [15625], by a predictor that is trained on what is known."""
        cells, encodings = encoded_cells(self._settings.encoding)
        number = {cell: i for i, cell in enumerate(cells)}
        known = torch.tensor([number[cell] for cell in self._known])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self._generator.integers(2**62)))
            model = predictor(encodings.shape[1])
        _train(model, encodings[known], torch.tensor(list(self._known.values())), self._settings)
        with torch.no_grad():
            scores: Tensor = model.eval()(encodings).flatten()
        return scores


def _train(model: nn.Module, inputs: Tensor, accuracies: Tensor, settings: Renas) -> None:
    """Keeps the parameters of the epoch that ranks the inputs best."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    best, kept = -2.0, model.state_dict()
    for _ in range(settings.epochs):
        model.train()
        optimizer.zero_grad()
        scores = model(inputs).flatten()
        ranking_loss(scores, accuracies).backward()  # type: ignore[no-untyped-call]
        found = agreement(scores.detach(), accuracies)
        if found > best:
            best, kept = found, {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer.step()
    model.load_state_dict(kept)


@dataclass(frozen=True)
class Renas(TabularMethod):
    """Evaluates random cells, learns to rank from them, and evaluates those that are predicted best.

    All cells are scored, so that nothing is lost to an approximate search. Labels and the final choice are
    the signal of the search; what is predicted best is paid like all else. With evaluations left it learns
    again.

    Raises:
        UserError: less than two samples, or less than one of anything else.
    """

    name: ClassVar[str] = "renas"
    samples: int = 90
    """Random cells, all different, that the predictor learns from."""
    top: int = 10
    """How many that are predicted best are evaluated, then."""
    epochs: int = 200
    """Epochs of the predictor's training, each one step on all that is known."""
    learning_rate: float = 1e-3
    """Of its Adam."""
    encoding: Encoding = "one-hot"
    """How a cell tells its operations: by their numbers, as in the paper, or one-hot, which ranks better."""

    def __post_init__(self) -> None:
        least = {"samples": (self.samples, 2), "top": (self.top, 1), "epochs": (self.epochs, 1)}
        for field, (value, lower) in least.items():
            if value < lower:
                raise UserError(f"{field} of ReNAS must be at least {lower}; got {value}")
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate of ReNAS must be positive; got {self.learning_rate}")

    def learner(self, generator: np.random.Generator) -> Learner:
        """Begins a run, all draws of which come from the generator."""
        return _Renas(self, generator)
