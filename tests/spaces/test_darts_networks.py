"""Networks of the DARTS space: what they compute, and the names of their parameters."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from closeness import BOUNDS
from darts_textbook import DARTS_V2, Textbook, random_state
from torch import Tensor, nn

import vpdarts_fast
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.darts import DartsNetwork, DartsS4, DartsSupernet, Genotype
from vpdarts_fast.spaces.darts.network import drop_path

V2 = Genotype.from_string(DARTS_V2)
IMAGES = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def weights(columns: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(28, columns, dtype=torch.float64, generator=generator)


def assert_close(result: Tensor, truth: Tensor, bound: float = 1e-9) -> None:
    assert (result - truth).abs().max() <= bound * truth.abs().max()


# What they compute.


@pytest.mark.parametrize("training", [True, False])
def test_the_supernet_is_the_formula(training: bool) -> None:
    supernet = DartsSupernet(2, 3, 5).double().train(training)
    state = random_state(supernet.state_dict().items())
    supernet.load_state_dict(state)
    truth = Textbook(state, training).supernet(IMAGES, weights(), 3)
    assert_close(supernet(IMAGES, weights()), truth)


@pytest.mark.parametrize("training", [True, False])
def test_a_found_network_is_the_formula(training: bool) -> None:
    network = DartsNetwork(V2, 2, 4, 5, auxiliary=False).double().train(training)
    state = random_state(network.state_dict().items())
    network.load_state_dict(state)
    assert_close(network(IMAGES), Textbook(state, training).found(IMAGES, V2.normal, V2.reduce, 4))


def test_the_supernet_is_accelerated() -> None:
    supernet = DartsSupernet(2, 3, 5)
    state = {name: tensor.double() for name, tensor in supernet.state_dict().items()}
    report = vpdarts_fast.accelerate(supernet)
    assert len(report.fused) == 3 * (14 + 2) and not report.left
    truth = Textbook(state, True).supernet(IMAGES, weights(), 3)
    assert_close(supernet(IMAGES.float(), weights().float()), truth, BOUNDS[torch.float32])


def test_images_of_odd_sizes_are_halved_upwards() -> None:
    supernet = DartsSupernet(2, 3, 5)
    outputs = []
    for cell in supernet.cells:
        cell.register_forward_hook(lambda module, inputs, output: outputs.append(output.shape[2:]))
    assert supernet(torch.randn(2, 3, 7, 5), weights().float()).shape == (2, 5)
    assert outputs == [(7, 5), (4, 3), (2, 2)]
    with pytest.raises(UserError, match=r"images must have shape \[N, 3, H, W\]; got \[2, 1, 8, 8\]"):
        supernet(torch.randn(2, 1, 8, 8), weights())
    for bad in (weights(7), weights()[:14], weights().long()):
        with pytest.raises(
            UserError, match=r"weights must be a floating-point table \[edges, ops\] = \[28, 8\]"
        ):
            supernet(IMAGES.float(), bad)


def test_noise_is_standard_normal_and_not_of_its_input() -> None:
    supernet = DartsS4(channels=4, layers=3).supernet(5)
    noise = supernet.get_submodule("cells.1._ops.0._ops.0")
    x = torch.full((8, 4, 32, 31), 1e6, requires_grad=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in (noise.train(), noise.eval()):
            out = module(x)
            assert out.shape == (8, 4, 16, 16) and not out.requires_grad
            assert abs(out.mean()) < 0.06 and abs(out.std() - 1) < 0.04


def test_the_auxiliary_head_sees_the_second_reduction() -> None:
    network = DartsNetwork(V2, 2, 5, 5)
    images = torch.randn(2, 3, 32, 32)
    seen: list[Tensor] = []
    assert network.auxiliary_head is not None
    network.auxiliary_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network.cells[3].register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits, auxiliary = network.forward_with_auxiliary(images)
    assert seen[0] is seen[1] and seen[0].shape == (2, 32, 8, 8)
    assert logits.shape == auxiliary.shape == (2, 5)
    torch.testing.assert_close(network(images), logits)
    with pytest.raises(UserError, match="needs images of at least 29 x 29; got"):
        network.forward_with_auxiliary(images[:, :, 4:])
    with pytest.raises(UserError, match="built without an auxiliary head"):
        DartsNetwork(V2, 2, 3, 5, auxiliary=False).forward_with_auxiliary(images)


def test_drop_path_drops_operations_of_images_while_training() -> None:
    x = torch.ones(2000, 2, 1, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        factors = drop_path(x, 0.25)
        assert torch.equal(factors, factors[:, :1, :, :1].expand_as(x))
        assert sorted(set(factors.flatten().tolist())) == pytest.approx([0, 1 / 0.75])
        assert 0.2 < (factors[:, 0, 0, 0] == 0).float().mean() < 0.3

        network = DartsNetwork(V2, 2, 3, 5, auxiliary=False, drop_path_prob=0.5)
        images = torch.randn(4, 3, 8, 8)
        cell = network.cells[0]
        inputs = [torch.randn(4, 6, 8, 8)] * 2
        identities = [isinstance(op, nn.Identity) for op in cell._ops]  # type: ignore[union-attr]
        assert identities == [op == "skip_connect" for op, _ in V2.normal]
        network.drop_path_prob = 0.0
        assert torch.equal(cell(*inputs, 0.0), cell(*inputs, 0.0))
        dropped = cell(*inputs, 1 - 1e-9)
        # What is left is the identities of input 0, in nodes 4 and 5.
        states = [torch.zeros(4, 2, 8, 8)] * 2 + [cell.preprocess0(inputs[0])] * 2  # type: ignore[operator]
        torch.testing.assert_close(dropped, torch.cat(states, 1))
        network.drop_path_prob = 0.5
        assert not torch.equal(network(images), network(images))
        network.eval()
        assert torch.equal(network(images), network(images))


def test_the_parameters_of_a_published_network() -> None:
    """The paper says 3.3 million; the public code without its auxiliary head has 3,349,342."""
    network = DartsNetwork(V2, auxiliary=False, num_classes=10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_349_342


# Names.

NUMBERS = r"(running_mean|running_var|num_batches_tracked)"
SUPERNET_NAMES = [
    rf"stem\.(0\.weight|1\.(weight|bias|{NUMBERS}))",
    rf"cells\.\d+\.preprocess[01]\.op\.(1\.weight|2\.{NUMBERS})",
    rf"cells\.\d+\.preprocess0\.(conv_[12]\.weight|bn\.{NUMBERS})",
    rf"cells\.\d+\._ops\.\d+\._ops\.[12]\.1\.{NUMBERS}",
    rf"cells\.\d+\._ops\.\d+\._ops\.3\.(conv_[12]\.weight|bn\.{NUMBERS})",
    rf"cells\.\d+\._ops\.\d+\._ops\.[45]\.op\.([1256]\.weight|[37]\.{NUMBERS})",
    rf"cells\.\d+\._ops\.\d+\._ops\.[67]\.op\.([12]\.weight|3\.{NUMBERS})",
    r"classifier\.(weight|bias)",
]
AFFINE = rf"(weight|bias|{NUMBERS})"
NETWORK_NAMES = [
    rf"stem\.(0\.weight|1\.{AFFINE})",
    rf"cells\.\d+\.preprocess[01]\.op\.(1\.weight|2\.{AFFINE})",
    rf"cells\.\d+\.preprocess0\.(conv_[12]\.weight|bn\.{AFFINE})",
    rf"cells\.\d+\._ops\.[0-4]\.op\.([1256]\.weight|[37]\.{AFFINE})",
    rf"cells\.\d+\._ops\.7\.op\.([12]\.weight|3\.{AFFINE})",
    rf"auxiliary_head\.features\.([25]\.weight|[36]\.{AFFINE})",
    r"auxiliary_head\.classifier\.(weight|bias)",
    r"classifier\.(weight|bias)",
]


@pytest.mark.parametrize(
    ("build", "patterns", "count", "shapes"),
    [
        (
            lambda: DartsSupernet(4, 4, 10),
            SUPERNET_NAMES,
            (6 + 2) + (4 * 8 + 2) + 4 * 14 * (6 + 20 + 10) + 2 * 8 * 5,
            {
                "stem.0.weight": (12, 3, 3, 3),
                "cells.0.preprocess0.op.1.weight": (4, 12, 1, 1),
                "cells.0._ops.3._ops.4.op.1.weight": (4, 1, 3, 3),
                "cells.0._ops.13._ops.7.op.2.weight": (4, 4, 1, 1),
                "cells.1.preprocess1.op.1.weight": (8, 16, 1, 1),
                "cells.1._ops.0._ops.3.conv_1.weight": (4, 8, 1, 1),
                "cells.2.preprocess0.conv_2.weight": (8, 16, 1, 1),
                "cells.3._ops.2._ops.5.op.5.weight": (16, 1, 5, 5),
                "classifier.weight": (10, 64),
            },
        ),
        (
            lambda: DartsNetwork(V2, 4, 4, 10),
            NETWORK_NAMES,
            (6 + 2) + (4 * 12 + 2) + 2 * (5 * 14 + 7) + 14,
            {
                "cells.0._ops.0.op.1.weight": (4, 1, 3, 3),
                "cells.0._ops.7.op.3.running_var": (4,),
                "cells.3.preprocess0.conv_1.weight": (8, 32, 1, 1),
                "auxiliary_head.features.2.weight": (128, 64, 1, 1),
                "auxiliary_head.features.5.weight": (768, 128, 2, 2),
                "auxiliary_head.classifier.weight": (10, 768),
            },
        ),
    ],
    ids=["supernet", "network"],
)
def test_names_and_shapes_are_those_of_public_code(
    build: Callable[[], nn.Module], patterns: list[str], count: int, shapes: dict[str, tuple[int, ...]]
) -> None:
    network = build()
    names = list(network.state_dict())
    matched = [sum(re.fullmatch(pattern, name) is not None for pattern in patterns) for name in names]
    assert matched == [1] * len(names), [name for name, m in zip(names, matched, strict=True) if m != 1]
    assert all(any(re.fullmatch(pattern, name) for name in names) for pattern in patterns)
    assert {name: tuple(network.state_dict()[name].shape) for name in shapes} == shapes
    assert len(names) == count
