"""What the networks of cells cost: parameters and multiply-adds, which are counted, and latency, measured.

Each is a sum: of what is the same in all networks of a space, and of the operations of the cell.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vpdarts_fast.spaces.space import Space

Cost = Literal["parameters", "macs", "latency_ms"]
COSTS: tuple[Cost, ...] = get_args(Cost)
"""Parameters; multiply-adds of an image; milliseconds for an image."""

AUXILIARY = "auxiliary_head."
"""What the names of an auxiliary head's parameters begin with; it only helps to train."""

RUNS = 15
"""Forward passes of which a latency is the fastest, behind a third as many that are not counted."""

Genotype = Any


@dataclass(frozen=True)
class CostTable:
    """What the network of any cell costs.

    Attributes:
        base: of all but the operations of cells.
        ops: [E, O] float64, of an operation on an edge, in all cells of the network together; NaN where no
            cell has one.
    """

    base: float
    ops: Tensor

    def of(self, chosen: Tensor) -> float:
        """Adds up the cost of a cell by which ops it consists of, [E, O] bool."""
        return self.base + float(self.ops[chosen].sum())


class CellCosts:
    """What the networks of a space's cells cost, as large as their papers train them (`Space.network`).

    Auxiliary heads, which only training has, do not count.

    Args:
        space: of the cells; it has `op_modules`.
        num_classes: of the classifier.
        image_size: height and width.
    """

    def __init__(self, space: Space[Genotype], num_classes: int, image_size: tuple[int, int]) -> None:
        self.space, self._num_classes, self._image_size = space, num_classes, image_size
        self._tables: dict[Cost, CostTable] = {}
        self._found: dict[tuple[Cost, Genotype], float] = {}

    def of(self, genotype: Genotype, cost: Cost) -> float:
        """Counts or measures the network of a cell, once for each."""
        if (cost, genotype) not in self._found:
            self._found[cost, genotype], _ = self._of_modules(genotype, cost)
        return self._found[cost, genotype]

    def table(self, cost: Cost) -> CostTable:
        """Finds what each op on each edge costs, of as few networks as have them all.

        Of a latency the sum is an estimate.
        """
        if cost not in self._tables:
            ops = torch.full(self.space.shape, torch.nan, dtype=torch.float64, device="cpu")
            bases = []
            for genotype in covering(self.space):
                whole, of_modules = self._of_modules(genotype, cost)
                found = torch.zeros_like(ops)
                for row, op, value in of_modules:
                    found[row, op] += value
                chosen = self.space.chosen(genotype)
                ops[chosen] = found[chosen]
                bases.append(whole - float(found.sum()))
            self._tables[cost] = CostTable(statistics.median(bases), ops)
        return self._tables[cost]

    def _of_modules(self, genotype: Genotype, cost: Cost) -> tuple[float, list[tuple[int, int, float]]]:
        """The cost of a whole network, and of each operation in it: its row of alpha, its op, its cost."""
        device = "cpu" if cost == "latency_ms" else "meta"
        with torch.device(device), torch.random.fork_rng(devices=[]):
            network = self.space.network(genotype, self._num_classes).eval()
            image = torch.zeros(1, 3, *self._image_size)
        of_network = _WAYS[cost](network, image)
        names = {module: name for name, module in network.named_modules()}
        modules = self.space.op_modules(network, genotype)
        return of_network[""], [(row, op, of_network[names[module]]) for row, op, module in modules]


def covering(space: Space[Genotype]) -> Iterator[Genotype]:
    """Yields cells that together have every op that any cell has on an edge, few of them."""
    missing = space.present.clone()
    numbers = torch.arange(missing.numel(), device="cpu").view(missing.shape)
    while missing.any():
        genotype = space.select((numbers + missing.numel() * missing).masked_fill(~space.present, -1))
        chosen = space.chosen(genotype)
        if not (chosen & missing).any():
            return  # what is left no cell has, as `none` in the DARTS space
        missing &= ~chosen
        yield genotype


def parameters_of(network: nn.Module) -> int:
    """Counts the parameters of a network, those of an auxiliary head aside, as papers do."""
    return int(count_parameters(network)[""])


def multiply_adds(network: nn.Module, image_size: tuple[int, int]) -> int:
    """Counts the multiply-adds of a network's convolutions and products for an image of a height and width.

    Batch norms, pools and sums are left out, as is usual in papers on architecture search. The network is of
    plain modules, in evaluation mode; it is evaluated once, where its parameters are.
    """
    parameter = next(network.parameters())
    image = torch.zeros(1, 3, *image_size, device=parameter.device, dtype=parameter.dtype)
    return int(count_macs(network, image)[""])


def count_parameters(network: nn.Module, image: Tensor | None = None) -> dict[str, float]:
    """Counts the parameters of each module by its name, "" for all; auxiliary heads left out."""
    return {
        name: sum(
            parameter.numel()
            for inside, parameter in module.named_parameters()
            if not f"{name}.{inside}".lstrip(".").startswith(AUXILIARY)
        )
        for name, module in network.named_modules(remove_duplicate=False)
    }


def count_macs(network: nn.Module, image: Tensor) -> dict[str, float]:
    """Counts the multiply-adds of convolutions and products in each module by its name, "" for all."""
    from torch.utils.flop_counter import FlopCounterMode  # imports much

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    of_modules = counter.get_flop_counts()
    root = type(network).__name__
    names = {name: f"{root}.{name}" if name else root for name, _ in network.named_modules()}
    return {name: sum(of_modules.get(key, {}).values()) / 2 for name, key in names.items()}


def measure_latency(network: nn.Module, image: Tensor) -> dict[str, float]:
    """Measures milliseconds in each module by its name, "" for all: the fastest of `RUNS` forward passes.

    The network is in evaluation mode, a plain module of PyTorch with as many threads as PyTorch has. The
    fastest, because what else the machine does makes passes longer and none shorter.
    """
    seconds: dict[str, list[float]] = {name: [] for name, _ in network.named_modules()}
    network = network.to(memory_format=torch.channels_last)
    image = image.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(RUNS // 3):
            network(image)
        whole = []
        for _ in range(RUNS):
            started = time.perf_counter()
            network(image)
            whole.append(time.perf_counter() - started)
        with _timing(network, seconds):
            for _ in range(RUNS):
                network(image)
    fastest = {name: min(times, default=0.0) for name, times in seconds.items()}
    return {name: 1e3 * value for name, value in {**fastest, "": min(whole)}.items()}


@contextmanager
def _timing(network: nn.Module, seconds: Mapping[str, list[float]]) -> Iterator[None]:
    """Within, notes how long each call of each module takes."""
    begun: dict[str, float] = {}
    handles = []
    for name, module in network.named_modules():

        def begin(*_: Any, name: str = name) -> None:
            begun[name] = time.perf_counter()

        def end(*_: Any, name: str = name) -> None:
            seconds[name].append(time.perf_counter() - begun[name])

        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_WAYS: dict[Cost, Callable[[nn.Module, Tensor], dict[str, float]]] = {
    "parameters": count_parameters,
    "macs": count_macs,
    "latency_ms": measure_latency,
}
