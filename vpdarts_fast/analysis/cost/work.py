"""What a call of an op or a launch of a kernel costs a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Unit = Literal["vector", "matrix"]
"""What computes: the floating-point units or, for products in a precision that they have, tensor cores."""


@dataclass(frozen=True)
class Work:
    """One call.

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
    """Work added up.

    Attributes:
        work: how often which call was made.
        reads: how often the host waited for a value from the device.
    """

    work: Counter[Work] = field(default_factory=Counter)
    reads: int = 0

    @property
    def launches(self) -> int:
        return sum(times * work.launches for work, times in self.work.items())

    @property
    def bytes(self) -> int:
        return sum(times * work.bytes for work, times in self.work.items())

    @property
    def flops(self) -> int:
        return sum(times * work.flops for work, times in self.work.items())

    def launches_by_kernel(self) -> Counter[str]:
        """The most frequent first."""
        found: Counter[str] = Counter()
        for work, times in self.work.items():
            found[work.kernel] += times * work.launches
        return Counter(dict(found.most_common()))

    def copy(self) -> Tally:
        return Tally(Counter(self.work), self.reads)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.work + other.work, self.reads + other.reads)

    def __sub__(self, earlier: Tally) -> Tally:
        """What came after `earlier`, a copy of this one."""
        return Tally(self.work - earlier.work, self.reads - earlier.reads)

    def __mul__(self, times: int) -> Tally:
        return Tally(Counter({work: n * times for work, n in self.work.items()}), self.reads * times)


def size(tensor: Tensor) -> int:
    """Bytes of the elements that lie in memory: an expanded dimension is there once."""
    elements = 1
    for count, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= count if stride or count == 0 else 1
    return elements * tensor.element_size()


def total_size(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of those that are there."""
    return sum(size(tensor) for tensor in tensors if tensor is not None)
