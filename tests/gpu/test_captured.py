"""`vpdarts_fast.runtime.graphs.Captured` itself, and that what watches a recording finds what waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture import META, WAITS, Tape, Watch
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.runtime import graphs
from vpdarts_fast.runtime.graphs import Captured


def test_a_function_is_recorded_once_a_shape() -> None:
    total, tape, calls = torch.zeros(1), Tape(), []

    def add(x: Tensor, y: Tensor) -> Tensor:
        calls.append(len(x))
        total.add_((x * y).sum())
        return x + total

    captured, expected = Captured(add, tape), 0.0
    for n in (3, 2, 3, 3, 2, 3, 2, 2, 3):
        x, y = torch.randn(n), torch.randn(n)
        expected += float((x * y).sum())
        assert torch.equal(captured(x, y), x + total)
        assert float(total) == pytest.approx(expected, abs=1e-5)
    assert calls == [3, 2, 3, 3, 2, 2], "twice as it is, then recorded"
    assert (tape.recorded, tape.replayed) == (2, 5)


def test_what_cannot_be_recorded_is_an_error_that_says_why() -> None:
    class Failing(Tape):
        def record(self, function: Callable[[], Any]) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    captured = Captured(lambda x: x + 1, Failing())
    for _ in range(graphs.WARM_UP):
        captured(torch.zeros(1))
    with pytest.raises(UserError, match=r"operation not permitted .*; --no-cuda-graphs"):
        captured(torch.zeros(1))


def test_on_the_cpu_nothing_is_recorded() -> None:
    assert graphs.recorder_for(torch.device("cpu")) is None
    seen = []
    captured = Captured(seen.append, None)
    for _ in range(5):
        captured(torch.zeros(1))
    assert len(seen) == 5


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: int(x[0]),
        lambda x: x.tolist(),
        lambda x: x if x[0] > 0 else -x,
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x + torch.tensor([1, 2, 3], device=x.device),
        lambda x: x * torch.tensor(2, device=x.device),
        lambda x: torch.equal(x, x),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x.new_tensor([1]),
    ],
)
def test_what_waits_is_found(waits: Callable[[Tensor], Any]) -> None:
    """Test the test."""
    with pytest.raises(WAITS), Watch():
        waits(torch.ones(3, dtype=torch.int64, device=META))
