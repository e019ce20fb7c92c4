"""State dicts of public NAS-Bench-201 search networks: they load, or are refused as a whole."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.nas_bench_201 import Supernet


def public_checkpoint(prefix: str = "", alpha: str | None = None) -> dict[str, Tensor]:
    """Of C=4, N=1 and 5 classes, unlike every new supernet."""
    state = {
        name: torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 1
        for name, tensor in Supernet(4, 1, 5).state_dict().items()
    }
    if alpha:
        state[alpha] = torch.nn.Parameter(torch.randn(6, 5))
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", [None, "arch_parameters", "_arch_parameters", "alphas"])
def test_a_public_checkpoint_loads(prefix: str, name: str | None) -> None:
    state = public_checkpoint(prefix, name)
    supernet = Supernet(4, 1, 5)
    alpha = supernet.load_public_checkpoint(state)
    for key, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, state[prefix + key])
    if name is None:
        assert alpha is None
    else:
        assert alpha is not None and not alpha.requires_grad
        assert torch.equal(alpha, state[prefix + name])
        assert alpha.data_ptr() != state[prefix + name].data_ptr()
        supernet(torch.randn(2, 3, 8, 8), alpha)


LAST = "classifier.bias"
"""The last entry of a state dict: who comes to it entry by entry has copied all others."""
NUMBER = "lastact.0.num_batches_tracked"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({LAST: None}, "classifier.bias is missing"),
        ({LAST: torch.zeros(6)}, "classifier.bias must have shape [5]; got [6]"),
        ({LAST: torch.zeros(5).long()}, "classifier.bias must be torch.float32 or alike; got torch.int64"),
        ({LAST: torch.zeros(5) * 1j}, "classifier.bias must be torch.float32 or alike; got torch.complex64"),
        ({LAST: [0.0] * 5}, "classifier.bias must be a tensor; got list"),
        ({LAST: torch.zeros(5, device="meta")}, "classifier.bias must be a dense tensor with data; got"),
        ({LAST: torch.zeros(5).to_sparse()}, "classifier.bias must be a dense tensor with data; got"),
        ({"surplus": torch.zeros(1)}, "surplus is not part of it"),
        ({NUMBER: torch.tensor(1.5)}, f"{NUMBER} must be torch.int64 or alike; got torch.float32"),
        ({"arch_parameters": torch.zeros(6, 4)}, "arch_parameters must have shape [6, 5]; got [6, 4]"),
        ({"alphas": torch.zeros(6, 5).long()}, "alphas must be torch.float32 or alike; got torch.int64"),
        ({"alphas": [0.2] * 30}, "alphas must be a tensor; got list"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_as_a_whole(
    changes: dict[str, Any], complaint: str
) -> None:
    supernet = Supernet(4, 1, 5)
    before = copy.deepcopy(supernet.state_dict())
    assert list(before)[-1] == LAST
    entries = {**public_checkpoint(), **changes}
    state = {key: value for key, value in entries.items() if value is not None}
    assert not torch.equal(before["stem.1.weight"], state["stem.1.weight"])
    with pytest.raises(UserError, match="the checkpoint does not fit this supernet of channels=4, ") as error:
        supernet.load_public_checkpoint(state)
    assert f"\n  {complaint}" in str(error.value)
    for key, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_a_checkpoint_of_another_network_is_refused_in_a_few_lines() -> None:
    for state, complaint in (
        (public_checkpoint("model."), "model.stem.0.weight is not part of it"),
        (Supernet(8, 1, 5).state_dict(), "stem.0.weight must have shape [4, 3, 3, 3]; got [8, 3, 3, 3]"),
        (Supernet(4, 2, 5).state_dict(), "cells.1.edges.1<-0.2.op.1.weight is not part of it"),
    ):
        with pytest.raises(UserError, match="the checkpoint does not fit") as error:
            Supernet(4, 1, 5).load_public_checkpoint(state)
        lines = str(error.value).splitlines()
        assert complaint in str(error.value) and len(lines) == 13
        assert re.fullmatch(r"  and \d+ more", lines[11])


def test_a_checkpoint_without_counts_of_batches_or_in_float64_loads() -> None:
    state = {key: tensor for key, tensor in public_checkpoint().items() if "num_batches" not in key}
    supernet = Supernet(4, 1, 5)
    supernet.load_public_checkpoint({key: tensor.double() for key, tensor in state.items()})
    for key, tensor in state.items():
        assert torch.equal(supernet.state_dict()[key], tensor)
