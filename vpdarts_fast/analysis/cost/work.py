"""What a call of an op or a launch of a kernel costs a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Unit = Literal["vector", "matrix"]
"""What computes: the floating-point units or, for products in a precision that they have, tensor cores."""


class Uncountable(Exception):
    """Says that host code does something whose cost the model does not know; it must be taught."""


@dataclass(frozen=True)
class Work:
    """The cost of one call.

    Attributes:
        kernel: of whom: an op of PyTorch or a kernel of ours.
        launches: kernels that it starts.
        bytes: of device memory that it reads and writes, each tensor once unless said otherwise.
        flops: floating-point operations; a multiply-add is two.
        unit: what does them.
    """

    kernel: str
    launches: int
    bytes: int
    flops: int = 0
    unit: Unit = "vector"


@dataclass
class Tally:
    """The cost of many calls, added up.

    Attributes:
        work: how often which call was made.
        replays: of CUDA graphs, each of which starts many kernels at once.
        replayed: kernels that they started.
        reads: how often the host waited for a value from the device.
    """

    work: Counter[Work] = field(default_factory=Counter)
    replays: int = 0
    replayed: int = 0
    reads: int = 0

    @property
    def kernels(self) -> int:
        """How many kernels the device ran, those of replayed graphs included."""
        return sum(times * work.launches for work, times in self.work.items())

    @property
    def launches(self) -> int:
        """How often the host started something: a kernel, or a whole graph."""
        return self.kernels - self.replayed + self.replays

    @property
    def bytes(self) -> int:
        """Bytes of device memory that all calls read and wrote."""
        return sum(times * work.bytes for work, times in self.work.items())

    @property
    def flops(self) -> int:
        """Floating-point operations of all calls."""
        return sum(times * work.flops for work, times in self.work.items())

    def by_kernel(self) -> Counter[str]:
        """How often each kernel ran, the most frequent first."""
        found: Counter[str] = Counter()
        for work, times in self.work.items():
            found[work.kernel] += times * work.launches
        return Counter(dict(found.most_common()))

    def copy(self) -> Tally:
        """An equal tally that later calls do not change."""
        return self * 1

    def add_replay(self, graph: Tally) -> None:
        """Adds what a graph recorded, once more, as started by a single launch."""
        self.work += graph.work
        self.replays += 1
        self.replayed += graph.kernels

    def __add__(self, other: Tally) -> Tally:
        return self._with(other, 1)

    def __sub__(self, earlier: Tally) -> Tally:
        """What came after `earlier`, a copy of this one."""
        return self._with(earlier, -1)

    def _with(self, other: Tally, sign: int) -> Tally:
        return Tally(
            self.work + other.work if sign > 0 else self.work - other.work,
            self.replays + sign * other.replays,
            self.replayed + sign * other.replayed,
            self.reads + sign * other.reads,
        )

    def __mul__(self, times: int) -> Tally:
        work = Counter({work: n * times for work, n in self.work.items()})
        return Tally(work, self.replays * times, self.replayed * times, self.reads * times)


def size(tensor: Tensor) -> int:
    """Bytes of the elements that lie in memory: an expanded dimension is there once."""
    elements = 1
    for count, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= count if stride or count == 0 else 1
    return elements * tensor.element_size()


def total_size(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of all tensors that are there, as `size` has them; None counts nothing."""
    return sum(size(tensor) for tensor in tensors if tensor is not None)
