"""Very many random calls of the native ops alone, right ones and hostile ones: none crashes, none hangs.

    python tests/support/fuzz_native.py [--calls N] [--seed S] [--first I]

Arguments are drawn in groups: right ones of an op, then a call with them and nine in which some of them are
replaced; group I of a seed is always the same. A call is served or refused with a Python error; results are
not looked at, which is what the other fuzz files are for. So it is fast enough for millions of calls, and for
an extension that is built with sanitizers: tests/sanitized.sh.
"""

from __future__ import annotations

import argparse
import faulthandler
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random

import fuzz_cells
import fuzz_checks
import fuzz_mixed_op
import fuzz_nodes
import fuzz_residual
from fuzz_calls import (
    Arguments,
    hostile_calls,
    right_calls,
    right_mixed_op_calls,
    right_node_calls,
    right_residual_calls,
)

from vpdarts_fast import native

ARGUMENTS: dict[str, Callable[..., Arguments]] = {
    **{op: partial(right_calls, op=op) for op in ("masked_cell", "mixed_cell", "mixed_cell_variants")},
    **{op: partial(right_node_calls, op=op) for op in ("relu_conv", "relu_pointwise", "mixed_sum")},
    **{op: partial(right_residual_calls, op=op) for op in ("residual_block", "trained_residual_block")},
    "mixed_op": right_mixed_op_calls,
    "mixed_op_fixed": partial(right_mixed_op_calls, fixed=True),
    "mixed_cell_backward": fuzz_cells.backward_arguments,
    "relu_conv_backward": fuzz_nodes.relu_conv_backward_arguments,
    "relu_pointwise_backward": fuzz_nodes.relu_pointwise_backward_arguments,
    "mixed_sum_backward": fuzz_nodes.mixed_sum_backward_arguments,
    "trained_residual_block_backward": fuzz_residual.backward_arguments,
    "mixed_op_backward": fuzz_mixed_op.backward_arguments,
}
"""Native op -> right arguments of it."""

GROUP = 10
"""Calls that are made from one set of right arguments."""

LONGEST = 300
"""Seconds after which a group of calls hangs: the process ends with the place where it does."""


def group(rng: Random, outcomes: Counter[str]) -> None:
    """One right call and nine hostile ones."""
    op = rng.choice(list(ARGUMENTS))
    args = ARGUMENTS[op](rng, tiny=rng.random() < 0.9)
    fuzz_checks.call(op, args)
    outcomes["right"] += 1
    for _ in range(GROUP - 1):
        outputs = fuzz_checks.served(op, hostile_calls(rng, dict(args)))
        outcomes["refused" if outputs is None else "served"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--first", type=int, default=0, help="number of the first group")
    options = parser.parse_args()
    if not native.available():
        parser.error(str(native.why_not()))
    outcomes: Counter[str] = Counter()
    number, began = options.first, time.process_time()
    while outcomes.total() < options.calls:
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        group(Random(f"{options.seed} {number}"), outcomes)
        number += 1
        if number % 1000 == 0 or outcomes.total() >= options.calls:
            counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
            seconds = time.process_time() - began
            print(f"{outcomes.total()} calls ({counts}), next --first {number}, {seconds:.0f} s", flush=True)
    print(f"{native.cpu_isa()}: {outcomes.total()} calls, all served or refused")


if __name__ == "__main__":
    main()
