"""State dicts of public code: whether they fit a network, before anything of it is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vpdarts_fast.errors import UserError

MISFITS_SHOWN = 10
"""A checkpoint of another size has hundreds."""


def entries(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a state dict without the prefix ``module.``, which `nn.DataParallel` puts in front."""
    return {key.removeprefix("module."): value for key, value in state.items()}


def check_fits(expected: Mapping[str, Tensor], given: Mapping[str, Any], kind: str, sizes: str) -> None:
    """Holds the entries of a state dict to those that a network expects.

    `load_state_dict` copies what fits and then complains about the rest; this looks at all of it beforehand.

    Args:
        expected: tensors of the right shapes and dtypes.
        given: what is to be copied into them.
        kind: what the network is, as `supernet`.
        sizes: the network's own, as `channels=16, num_classes=10`.

    Raises:
        UserError: the first misfits, and how many more there are.
    """
    if problems := misfits(expected, given):
        shown = "".join(f"\n  {problem}" for problem in problems[:MISFITS_SHOWN])
        more = len(problems) - MISFITS_SHOWN
        raise UserError(
            f"the checkpoint does not fit this {kind} of {sizes}:{shown}"
            + (f"\n  and {more} more" if more > 0 else "")
            + f"\nbuild the {kind} with the sizes of the checkpoint's network"
        )


def misfits(expected: Mapping[str, Tensor], given: Mapping[str, Any]) -> list[str]:
    """What keeps the entries of a state dict from being copied into the expected tensors, entry by entry.

    ``num_batches_tracked`` may be missing: PyTorch before 0.4.1 did not count.
    """
    problems = [f"{key} is not part of it" for key in given if key not in expected]
    for key, tensor in expected.items():
        if key not in given:
            if not key.endswith(".num_batches_tracked"):
                problems.append(f"{key} is missing")
            continue
        value = given[key]
        if not isinstance(value, Tensor):
            problems.append(f"{key} must be a tensor; got {type(value).__name__}")
        elif value.shape != tensor.shape:
            problems.append(f"{key} must have shape {list(tensor.shape)}; got {list(value.shape)}")
        elif value.is_floating_point() != tensor.is_floating_point() or value.is_complex():
            problems.append(f"{key} must be {tensor.dtype} or alike; got {value.dtype}")
        elif value.is_meta or value.layout != tensor.layout:
            problems.append(f"{key} must be a dense tensor with data; got {value.layout} on {value.device}")
    return problems
