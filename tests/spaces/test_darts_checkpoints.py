"""State dicts of public networks of the DARTS space: they load, or are refused as a whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from darts_textbook import AUTODL_OPS, DARTS_V2, OPS, Textbook, random_state
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.darts import AutodlSupernet, DartsNetwork, DartsS1, DartsSupernet, Genotype

V2 = Genotype.from_string(DARTS_V2)
LAST = "classifier.bias"
"""The last entry of a state dict: who comes to it entry by entry has copied all others."""


def numbers(*shape: int, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def autodl_names() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a search network of AutoDL-Projects with C=2, N=1 and 5 classes."""
    found: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int, affine: bool = False) -> None:
        for what in ("running_mean", "running_var", *(("weight", "bias") if affine else ())):
            found[f"{name}.{what}"] = (channels,)
        found[f"{name}.num_batches_tracked"] = ()

    def conv(name: str, c_in: int, c_out: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (c_out, c_in, 1, 1), (c_out,)

    def relu_conv_norm(name: str, c_in: int, c_out: int) -> None:
        conv(f"{name}.op.1", c_in, c_out)
        norm(f"{name}.op.2", c_out)

    def halving(name: str, c_in: int, c_out: int) -> None:
        for i in range(2):
            conv(f"{name}.convs.{i}", c_in, c_out // 2)
        norm(f"{name}.bn", c_out)

    def stage(name: str, channels: int, kernel: int) -> None:
        found[f"{name}.op.1.weight"] = (channels, 1, kernel, kernel)
        conv(f"{name}.op.2", channels, channels)
        norm(f"{name}.op.3", channels)

    found["stem.0.weight"] = (6, 3, 3, 3)
    norm("stem.1", 6, affine=True)
    for cell, (before, last, channels) in enumerate([(6, 6, 2), (6, 8, 4), (8, 16, 8)]):
        (halving if cell == 2 else relu_conv_norm)(f"cells.{cell}.preprocess0", before, channels)
        relu_conv_norm(f"cells.{cell}.preprocess1", last, channels)
        for node in range(4):
            for source in range(2 + node):
                ops = f"cells.{cell}.edges.{node}<-{source}._ops"
                if cell > 0 and source < 2:
                    halving(f"{ops}.1", channels, channels)
                for o, kernel in ((2, 3), (3, 5)):
                    stage(f"{ops}.{o}.op_a", channels, kernel)
                    stage(f"{ops}.{o}.op_b", channels, kernel)
                stage(f"{ops}.4", channels, 3)
                stage(f"{ops}.5", channels, 5)
    norm("lastact.0", 32, affine=True)
    found |= {"classifier.weight": (5, 32), "classifier.bias": (5,)}
    return found


@pytest.mark.parametrize("training", [True, False])
def test_a_checkpoint_of_autodl_computes_the_same(training: bool) -> None:
    state = random_state(autodl_names().items())
    alphas = numbers(28, 8)
    parameters = {"arch_normal_parameters": alphas[:14], "arch_reduce_parameters": alphas[14:]}
    supernet = AutodlSupernet(2, 3, 5).double().train(training)
    alpha = supernet.load_public_checkpoint(state | parameters)
    assert alpha is not None
    for o, op in enumerate(OPS):
        assert torch.equal(alpha[:, o], alphas[:, AUTODL_OPS.index(op)])
    images = numbers(3, 3, 8, 8, seed=3)
    truth = Textbook(state, training).supernet(images, alphas, 3, AUTODL_OPS, autodl=True)
    assert (supernet(images, alpha) - truth).abs().max() <= 1e-9 * truth.abs().max()


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("", ()),
        ("", ("alphas_normal", "alphas_reduce")),
        ("module.", ("_arch_parameters.0", "_arch_parameters.1")),
        ("module.", ("arch_normal_parameters", "arch_reduce_parameters")),
    ],
)
def test_a_public_supernet_loads(prefix: str, names: tuple[str, ...]) -> None:
    supernet = DartsS1(channels=2, layers=3).supernet(5)
    assert isinstance(supernet, DartsSupernet)
    state = random_state(supernet.state_dict().items())
    alphas = numbers(28, 2)
    tables = dict(zip(names, (alphas[:14], alphas[14:]), strict=False))
    alpha = supernet.load_public_checkpoint({prefix + key: value for key, value in (state | tables).items()})
    for name, tensor in supernet.state_dict().items():
        torch.testing.assert_close(tensor, state[name], check_dtype=False)
    if names:
        assert alpha is not None and torch.equal(alpha, alphas)
        assert alpha.data_ptr() != alphas.data_ptr() and not alpha.requires_grad
    else:
        assert alpha is None


def test_checkpoints_of_before_batches_were_counted_load() -> None:
    supernet = DartsSupernet(2, 3, 5)
    state = random_state(supernet.state_dict().items())
    supernet.load_public_checkpoint({name: t for name, t in state.items() if "num_batches" not in name})
    torch.testing.assert_close(supernet.stem[1].running_var, state["stem.1.running_var"].float())
    autodl = AutodlSupernet(2, 3, 5)
    names = {name: shape for name, shape in autodl_names().items() if "num_batches" not in name}
    autodl.load_public_checkpoint(random_state(names.items()))


@pytest.mark.parametrize("auxiliary", [True, False])
def test_a_public_found_network_loads_with_and_without_its_auxiliary_head(auxiliary: bool) -> None:
    public = random_state(DartsNetwork(V2, 2, 3, 5).state_dict().items())
    network = DartsNetwork(V2, 2, 3, 5, auxiliary=auxiliary)
    network.load_public_checkpoint({f"module.{name}": tensor for name, tensor in public.items()})
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, public[name], check_dtype=False)
    without = {name: tensor for name, tensor in public.items() if not name.startswith("auxiliary_head")}
    if auxiliary:
        with pytest.raises(UserError, match=r"auxiliary_head\.classifier\.bias is missing"):
            network.load_public_checkpoint(
                {name: t for name, t in public.items() if name != "auxiliary_head.classifier.bias"}
            )
    else:
        network.load_public_checkpoint(without)


def supernet() -> DartsSupernet:
    return DartsSupernet(2, 3, 5)


def autodl_supernet() -> DartsSupernet:
    return AutodlSupernet(2, 3, 5)


def found_network() -> DartsNetwork:
    return DartsNetwork(V2, 2, 3, 5)


@pytest.mark.parametrize(
    ("build", "changes", "complaint"),
    [
        (supernet, {LAST: torch.zeros(6)}, f"{LAST} must have shape [5]; got [6]"),
        (supernet, {"alphas_normal": torch.zeros(14, 8)}, "alphas_reduce is missing"),
        (
            supernet,
            {"alphas_normal": torch.zeros(14, 8), "alphas_reduce": torch.zeros(14, 7)},
            "alphas_reduce must have shape [14, 8]; got [14, 7]",
        ),
        (supernet, {"betas_normal": torch.zeros(14)}, "betas_normal is not part of it"),
        (autodl_supernet, {LAST: None}, f"{LAST} is missing"),
        (
            autodl_supernet,
            {"cells.2.edges.3<-4._ops.2.op_b.op.2.bias": None},
            "cells.2.edges.3<-4._ops.2.op_b.op.2.bias is missing",
        ),
        (found_network, {LAST: torch.zeros(6)}, f"{LAST} must have shape [5]; got [6]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_as_a_whole(
    build: Callable[[], DartsSupernet | DartsNetwork], changes: dict[str, Any], complaint: str
) -> None:
    network = build()
    names = autodl_names() if isinstance(network, AutodlSupernet) else network.state_dict()
    state = {k: v for k, v in {**random_state(names.items()), **changes}.items() if v is not None}
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(
        UserError, match=r"the checkpoint does not fit this (supernet|network) of channels=2, "
    ) as error:
        network.load_public_checkpoint(state)
    assert f"\n  {complaint}" in str(error.value)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_checkpoint_of_the_other_code_says_where_it_belongs() -> None:
    with pytest.raises(UserError, match=r"load it into .*AutodlSupernet"):
        DartsSupernet(2, 3, 5).load_public_checkpoint(random_state(autodl_names().items()))
    autodl = AutodlSupernet(2, 3, 5)
    with pytest.raises(UserError, match=r"load it into .*DartsSupernet"):
        autodl.load_public_checkpoint(autodl.state_dict())
