"""The supernet against an independent implementation, its names, its dropout, copies, and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, count, product

import pytest
import torch
import torch.nn.functional as F
from supernet_cases import make_input, make_supernet
from torch import Tensor

from vpdarts_fast.backends.pytorch.dropout import skip_scale
from vpdarts_fast.contract import reference
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.blocks import SkipConnect, edge_index
from vpdarts_fast.spaces.nas_bench_201 import EDGES, Supernet, build_network

Close = Callable[[Tensor, Tensor], None]

EPS = 1e-5


def specified_forward(
    state: Mapping[str, Tensor], images: Tensor, alpha: Tensor, cells_per_stage: int, training: bool
) -> Tensor:
    """The network as NAS-Bench-201 describes it, written out from the state dict, without dropout."""

    def norm(x: Tensor, name: str) -> Tensor:
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        else:
            mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        out = (x - mean[:, None, None]) / (variance[:, None, None] + EPS).sqrt()
        if f"{name}.weight" in state:
            out = out * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]
        return out

    def relu_conv_bn(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.op.1.weight"]
        return norm(F.conv2d(x.clamp(min=0), weight, None, stride, weight.shape[2] // 2), f"{name}.op.2")

    def average(x: Tensor) -> Tensor:
        ones = torch.ones_like(x)
        return F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(ones, 3, 1, 1)  # the padding is not counted

    def cell(x: Tensor, name: str) -> Tensor:
        nodes = [x]
        for i in (1, 2, 3):
            node = torch.zeros_like(x)
            for j in range(i):
                a, edge = alpha[EDGES.index((j, i))], f"{name}.edges.{i}<-{j}"
                node = node + a[1] * nodes[j] + a[4] * average(nodes[j])
                node = node + a[2] * relu_conv_bn(nodes[j], f"{edge}.2")
                node = node + a[3] * relu_conv_bn(nodes[j], f"{edge}.3")
            nodes.append(node)
        return nodes[3]

    def reduce(x: Tensor, name: str) -> Tensor:
        residual = relu_conv_bn(relu_conv_bn(x, f"{name}.conv_a", stride=2), f"{name}.conv_b")
        pooled = F.avg_pool2d(x, 2, 2, ceil_mode=True)
        return residual + F.conv2d(pooled, state[f"{name}.downsample.1.weight"])

    x = norm(F.conv2d(images, state["stem.0.weight"], padding=1), "stem.1")
    numbers = (f"cells.{k}" for k in count())
    for stage in range(3):
        if stage:
            x = reduce(x, next(numbers))
        for _ in range(cells_per_stage):
            x = cell(x, next(numbers))
    features = norm(x, "lastact.0").clamp(min=0).mean((2, 3))
    return features @ state["classifier.weight"].T + state["classifier.bias"]


def public_names(cells_per_stage: int) -> set[str]:
    """State dict of a public NAS-Bench-201 search network (class TinyNetworkDarts), but for alpha."""
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    affine = statistics | {"weight", "bias"}
    names = {"stem.0.weight", "classifier.weight", "classifier.bias"}
    names |= {f"{norm}.{name}" for norm in ("stem.1", "lastact.0") for name in affine}
    blocks = (cells_per_stage, 2 * cells_per_stage + 1)
    for k in range(3 * cells_per_stage + 2):
        if k in blocks:
            names.add(f"cells.{k}.downsample.1.weight")
            for conv in ("conv_a", "conv_b"):
                names.add(f"cells.{k}.{conv}.op.1.weight")
                names |= {f"cells.{k}.{conv}.op.2.{name}" for name in affine}
        else:
            for edge, op in product(("1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2"), (2, 3)):
                names.add(f"cells.{k}.edges.{edge}.{op}.op.1.weight")
                names |= {f"cells.{k}.edges.{edge}.{op}.op.2.{name}" for name in statistics}
    return names


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("channels", "cells", "classes", "size"),
    [(4, 1, 5, (8, 8)), (1, 1, 2, (15, 17)), (3, 2, 7, (5, 6)), (2, 3, 3, (1, 1)), (8, 1, 120, (16, 16))],
)
def test_forward_is_the_specified_function(
    channels: int, cells: int, classes: int, size: tuple[int, int], training: bool, assert_close: Close
) -> None:
    supernet = make_supernet(channels, cells, classes).train(training)
    images, alpha = make_input(*size)
    state = copy.deepcopy(supernet.state_dict())
    logits = supernet(images, alpha)
    assert logits.shape == (3, classes)
    expected = specified_forward(state, images, alpha, cells, training)
    if training:  # normalising by small variances, layer after layer, makes errors grow
        torch.testing.assert_close(logits, expected, rtol=1e-8, atol=1e-8)
    else:
        assert_close(logits, expected)


def test_edges_are_numbered_as_alpha_is() -> None:
    assert [edge_index(j, i) for j, i in EDGES] == list(range(6))
    names = list(make_supernet().search_cells()[0].edges)
    assert names == [f"{i}<-{j}" for j, i in EDGES]


def test_names_are_those_of_the_public_search_networks() -> None:
    supernet = Supernet(4, 2)
    assert set(supernet.state_dict()) == public_names(2)
    assert supernet.state_dict()["cells.5.conv_a.op.1.weight"].shape == (16, 8, 3, 3)
    assert not [name for name, _ in supernet.named_parameters() if "edges" in name and ".op.2." in name]


def test_skip_dropout() -> None:
    x = torch.ones(100, 8, 10, 10)
    skip = SkipConnect(0.2)
    torch.manual_seed(0)
    out = skip(x)
    assert out.unique().tolist() == pytest.approx([0.0, 1.25], abs=1e-4)
    assert abs(float(out.mean()) - 1) < 0.01
    assert not torch.equal(out, skip(x)), "a fresh draw each time"
    assert skip.eval()(x) is x
    for kept in (0.2, 0.5, 0.999):
        share = (SkipConnect(1 - kept)(x) > 0).double().mean()
        assert abs(float(share) - kept) < 0.01


@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.5, 1 - 2**-20])
def test_skip_dropout_draws_as_the_reference(dropout: float) -> None:
    x = torch.ones(3, 5, 4, 6)
    for seed in (0, 1, -1, 2**62 + 12345, -(2**63)):
        assert torch.equal(skip_scale(torch.tensor(seed), dropout, x), reference.skip_scale(seed, dropout, x))


def test_skip_dropout_draws_independently() -> None:
    """Neighbours in every direction, and the same places under seeds that differ by one."""
    x = torch.ones(64, 16, 16, 16)
    seeds = torch.tensor([5, 6, 5 + 2**32, 7 + 2**40])
    draws = [(skip_scale(seed, 0.5, x) > 0).double() - 0.5 for seed in seeds]
    pairs = [(draws[0].roll(1, dim), draws[0]) for dim in range(4)] + list(combinations(draws, 2))
    for a, b in pairs:
        assert abs(float((a * b).mean())) < 0.25 * 5 / 512, "five standard deviations"


def test_no_dropout_is_the_identity() -> None:
    x = torch.ones(2, 3)
    assert SkipConnect(0.0)(x) is x


def test_every_skip_has_the_dropout_asked_for() -> None:
    skips = [module for module in Supernet(1, 2).modules() if isinstance(module, SkipConnect)]
    assert len(skips) == 36
    assert {skip.dropout for skip in skips} == {0.2}


def test_new_alpha_is_uniform() -> None:
    alpha = Supernet(1, 1).double().new_alpha()
    assert torch.equal(alpha, torch.full((6, 5), 0.2, dtype=torch.float64))
    assert not alpha.requires_grad


def test_copies_compute_the_same() -> None:
    supernet = make_supernet().eval()
    images, alpha = make_input(8, 8)
    expected = supernet(images, alpha)
    pickled = pickle.loads(pickle.dumps(supernet))
    loaded = Supernet(4, 1, 5).double().eval()
    file = io.BytesIO()
    torch.save(supernet.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(supernet), pickled, loaded):
        assert other is not supernet
        assert torch.equal(other(images, alpha), expected)


def test_two_threads_may_evaluate_at_once() -> None:
    supernet = make_supernet().eval()
    inputs = [make_input(8, 8, seed=seed) for seed in range(8)]
    with torch.no_grad():
        expected = [supernet(*both) for both in inputs]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda both: supernet(*both).detach(), inputs))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels must be at least 1; got 0"),
        ({"cells_per_stage": 0}, "cells_per_stage must be at least 1; got 0"),
        ({"num_classes": 1}, "num_classes must be at least 2; got 1"),
        ({"skip_dropout": 1.0}, r"skip_dropout must be in \[0, 1\); got 1.0"),
        ({"skip_dropout": -0.1}, "skip_dropout must be"),
        ({"skip_dropout": float("nan")}, "skip_dropout must be"),
    ],
)
def test_sizes_are_checked(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Supernet(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 3, 0, 8), (2, 8, 8, 3)])
def test_images_are_checked(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"images must have shape \[N, 3, H, W\]"):
        make_supernet()(torch.zeros(shape, dtype=torch.float64), make_input(1)[1])
    with pytest.raises(UserError, match=r"images must have shape \[N, 3, H, W\]"):
        build_network(0, 1, 1)(torch.zeros(shape))


@pytest.mark.parametrize("alpha", [torch.zeros(5, 6), torch.zeros(6), torch.zeros(6, 5, dtype=torch.int64)])
def test_alpha_is_checked(alpha: Tensor) -> None:
    with pytest.raises(UserError, match=r"alpha must be a floating-point table \[edges, ops\] = \[6, 5\]"):
        make_supernet()(make_input(8, 8)[0], alpha)
