"""Runs calls in Triton's interpreter and prints as JSON what was launched; run by test_cost_model.py."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import torch
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

from vpdarts_fast import ops

Sizes = dict[str, Any]


def mixed_cell(v: int, n: int, c: int, size: int, device: str = "cpu") -> None:
    """Forward and, of one variant, backward."""
    x, w1, w3, alpha, _ = arguments(v, n, c, size, device)
    leaves = [tensor.requires_grad_(v == 1) for tensor in (x, w1, w3, alpha)]
    seeds = torch.arange(6, device=device) if v == 1 else None
    node, _, _ = ops.mixed_cell(*leaves, seeds, 0.2, backend="triton")
    if v == 1:
        torch.autograd.grad(node.sum(), leaves)


def masked_cell(v: int, n: int, c: int, size: int, device: str = "cpu") -> None:
    x, w1, w3, alpha, statistics = arguments(v, n, c, size, device)
    ops.masked_cell(x, w1, w3, statistics, statistics, alpha, backend="triton")


def arguments(v: int, n: int, c: int, size: int, device: str) -> list[torch.Tensor]:
    """x [1, N, C, H, W], weights, alphas [V, 6, 5] of leave-one-out, statistics [6, 2, C]."""
    alpha = torch.full((v, 6, 5), 0.2, device=device)
    alpha.view(v, -1).fill_diagonal_(0)
    shapes = (1, n, c, size, size), (6, c, c, 1, 1), (6, c, c, 3, 3)
    return [
        *(torch.ones(shape, device=device) for shape in shapes),
        alpha,
        torch.ones(6, 2, c, device=device),
    ]


def main(calls: list[tuple[str, list[int]]]) -> None:
    launched: Counter[str] = Counter()
    flops = 0
    run, dot = InterpretedFunction.run, InterpreterBuilder.create_dot

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        launched[self.fn.__name__] += 1
        return run(self, *args, **kwargs)

    def multiply(self: Any, a: Any, b: Any, *args: Any) -> Any:
        nonlocal flops
        flops += 2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
        return dot(self, a, b, *args)

    InterpretedFunction.run, InterpreterBuilder.create_dot = record, multiply
    results = []
    for name, sizes in calls:
        globals()[name](*sizes)
        results.append({"launches": dict(launched), "products": flops})
        launched.clear()
        flops = 0
    print(json.dumps(results))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
