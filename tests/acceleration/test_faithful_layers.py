"""`accelerate` never computes anything else, whatever instances and shapes layers have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from acceleration_cases import CHANNELS, images
from faithful_cases import (
    assert_faithful,
    assert_same_outcome,
    assert_values,
    conv,
    randomised,
)
from supernets import (
    MixedOp,
    Residual,
    Style,
    darts_ops,
)
from torch import nn

from vpdarts_fast.acceleration import accelerate, restore
from vpdarts_fast.acceleration.copies import differing_state

pytestmark = pytest.mark.usefixtures("one_thread")


# Instances that differ from their class --------------------------------------------------------------------


def doubled(layer: Any) -> None:
    """Its forward holds on to what it was."""
    own = layer.forward
    layer.forward = lambda *args: 2 * own(*args)


def bound(layer: Any) -> None:
    layer.forward = MethodType(lambda self, *args: 2 * type(self).forward(self, *args), layer)


def deeper(layer: Any) -> None:
    """Not its forward, but what this calls."""
    if isinstance(layer, nn.Conv2d):
        layer._conv_forward = lambda x, weight, bias: 2 * F.conv2d(x, weight, bias, padding=layer.padding)
    else:
        doubled(layer)


LAYERS: dict[str, Callable[[Any], Any]] = {
    "operation": lambda module: module._ops[4],
    "batch norm": lambda module: module._ops[4].layers[3],
    "convolution": lambda module: module._ops[8].layers[1],
    "pool": lambda module: module._ops[1][0],
    "norm of a pool": lambda module: module._ops[2][1],
    "identity": lambda module: module._ops[3],
    "mixed operation": lambda module: module,
}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("change", [doubled, bound, deeper])
@pytest.mark.parametrize("where", LAYERS)
def test_methods_that_are_set_on_instances_count(
    where: str, change: Callable[[Any], None], later: bool, calls: list[str]
) -> None:
    ops = [*darts_ops(CHANNELS, 1, Style()), Style().dense(CHANNELS, 3, 1)]
    plain = randomised(MixedOp(ops))
    fused = copy.deepcopy(plain)
    if later:
        accelerate(fused, backend="pytorch")
        assert_same_outcome(fused, plain, (9,))
        assert calls
    for module in (plain, fused):
        change(LAYERS[where](module))
    calls.clear()
    if not later:
        before = [value.clone() for value in fused.state_dict().values()]
        report = accelerate(fused, backend="pytorch")
        assert not report.fused
        (entry,) = report.left
        assert " of its own, not that of its class" in entry.remark, entry.remark
        assert all(map(torch.equal, before, fused.state_dict().values()))
    assert_values(fused, plain, (9,))
    assert not calls


def test_methods_that_are_set_in_a_residual_block_count(calls: list[str]) -> None:
    block = Residual(CHANNELS)
    doubled(block.conv_a[2])
    assert not accelerate(block).fused
    block = Residual(CHANNELS).double()
    accelerate(block, backend="pytorch")
    plain = copy.deepcopy(block)
    restore(plain)
    for module in (block, plain):
        doubled(module.conv_a[2])
    torch.testing.assert_close(block(images(torch.float64)), plain(images(torch.float64)))
    assert not calls


# Numbers of channels and sizes that change -----------------------------------------------------------------


SHAPES: dict[str, Callable[[], list[nn.Module]]] = {
    "wider": lambda: [conv(12, 3, 1), conv(12, 1, 0)],
    "narrower": lambda: [conv(4, 3, 1), conv(4, 1, 0), nn.Conv2d(CHANNELS, 4, 1)],
    "to one channel": lambda: [conv(1, 3, 1), conv(1, 1, 0), nn.Identity()],
    "no padding": lambda: [conv(CHANNELS, 3, 0), conv(CHANNELS, 3, 0)],
    "no padding, and unknown": lambda: [conv(CHANNELS, 3, 0), nn.AvgPool2d(3, 1)],
    "more padding": lambda: [conv(CHANNELS, 1, 1), conv(CHANNELS, 3, 2)],
    "other strides": lambda: [conv(CHANNELS, 3, 0, 2), conv(CHANNELS, 3, 0, 2)],
    "one pixel": lambda: [nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (6, 6)))],
    "some to one channel": lambda: [conv(CHANNELS, 3, 1), conv(1, 3, 1), nn.Identity()],
    "all fit": lambda: [
        conv(CHANNELS, 5, 4, 1, 2),
        conv(CHANNELS, 1, 0),
        nn.AdaptiveAvgPool2d(1),
        nn.Identity(),
    ],
}


@pytest.mark.parametrize("name", SHAPES)
def test_operations_that_change_channels_or_size(name: str) -> None:
    ops = SHAPES[name]()
    report = assert_faithful(MixedOp(ops), (len(ops),))
    assert bool(report.fused) == (name == "all fit")


@pytest.mark.parametrize("size", [5, 6, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_what_fits_is_seen_in_every_call(padded: bool, stride: int, size: int) -> None:
    """An image of odd size may be an error, as it was, or not."""
    ops = darts_ops(CHANNELS, stride, Style(padded_reduce=padded))
    plain = randomised(MixedOp([*ops, nn.AvgPool2d(stride, stride)]))
    fused = copy.deepcopy(plain)
    assert accelerate(fused, backend="pytorch").fused
    x, weights = images(torch.float64, CHANNELS, size), torch.rand(9, dtype=torch.float64)
    try:
        expected = plain(x, weights)
    except RuntimeError as error:
        with pytest.raises(RuntimeError) as raised:
            fused(x, weights)
        assert str(raised.value) == str(error)
    else:
        torch.testing.assert_close(fused(x, weights), expected, rtol=1e-9, atol=1e-9)
    assert differing_state(plain, fused) is None


@pytest.mark.parametrize("channels", [4, 12])
def test_other_channels_than_the_operations_have_are_an_error_as_before(channels: int) -> None:
    plain = randomised(MixedOp(darts_ops(CHANNELS, 1, Style())))
    fused = copy.deepcopy(plain)
    accelerate(fused, backend="pytorch")
    x, weights = images(torch.float64, channels), torch.rand(8, dtype=torch.float64)
    errors = []
    for module in (plain, fused):
        with pytest.raises(RuntimeError) as raised:
            module(x, weights)
        errors.append(str(raised.value))
    assert errors[0] == errors[1]


def test_shapes_that_change_after_a_call_run_the_modules_own_code(calls: list[str]) -> None:
    """Parameters are replaced and padding is set: all operations have the new shape."""
    plain = randomised(MixedOp([conv(CHANNELS, 3, 1), conv(CHANNELS, 3, 1)]))
    fused = copy.deepcopy(plain)
    assert accelerate(fused, backend="pytorch").fused
    assert_same_outcome(fused, plain, (2,))
    assert calls
    for module in (plain, fused):
        for op in module._ops:  # type: ignore[union-attr]
            op[1].weight = nn.Parameter(torch.ones(12, CHANNELS, 3, 3, dtype=torch.float64))
            op[1].bias = None
            op[2] = nn.BatchNorm2d(12).double()
    calls.clear()
    assert_values(fused, plain, (2,))
    for module in (plain, fused):
        for op in module._ops:  # type: ignore[union-attr]
            op[1].padding = (0, 0)
    assert_values(fused, plain, (2,))
    assert not calls
