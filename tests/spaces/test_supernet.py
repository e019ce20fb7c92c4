"""The supernet against an independent implementation, its fused form, its names, and built networks."""

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
from leave_one_out_cases import drop_statistics
from torch import Tensor

from vpdarts_fast.backends.pytorch.dropout import skip_scale
from vpdarts_fast.contract import reference
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.blocks import ResidualBlock, SearchCell, SkipConnect, edge_index
from vpdarts_fast.spaces.nas_bench_201 import EDGES, DiscreteCell, Genotype, Supernet, build_network

Close = Callable[[Tensor, Tensor], None]

EPS = 1e-5


def make_supernet(channels: int = 4, cells: int = 1, classes: int = 5, dropout: float = 0.0) -> Supernet:
    """In float64, its running statistics and affine parameters anything but their initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        supernet = Supernet(channels, cells, classes, skip_dropout=dropout).double()
        for name, tensor in supernet.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_()
            elif name.endswith("running_var") or ("weight" in name and tensor.dim() == 1):
                tensor.uniform_(0.5, 1.5)
    return supernet


def fuse(supernet: Supernet) -> None:
    for cell in supernet.cells:
        assert isinstance(cell, (SearchCell, ResidualBlock))
        cell.fused = True


def make_input(*size: int, n: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images [n, 3, H, W] and alpha [6, 5], float64."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, *size, generator=generator, dtype=torch.float64)
    return images, torch.randn(6, 5, generator=generator, dtype=torch.float64) / 2


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


def train_step(
    supernet: Supernet, images: Tensor, alpha: Tensor, steps: int = 2
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of the last of a few forwards, and what it left: gradients and buffers."""
    alpha = alpha.clone().requires_grad_()
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(3)
    for _ in range(steps):
        logits = supernet(images, alpha)
    F.cross_entropy(logits, torch.arange(len(images)) % supernet.num_classes).backward()  # type: ignore[no-untyped-call]
    left = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    for name, leaf in [*supernet.named_parameters(), ("alpha", alpha), ("images", images)]:
        assert leaf.grad is not None, name
        left[f"{name}.grad"] = leaf.grad
    return logits.detach(), left


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("cells", "size"), [(1, (8, 8)), (2, (7, 9))])
def test_fused_training_is_plain_training(dropout: float, cells: int, size: tuple[int, int]) -> None:
    plain = make_supernet(4, cells, dropout=dropout)
    fused = copy.deepcopy(plain)
    fuse(fused)
    images, alpha = make_input(*size, n=6)
    images = images.contiguous(memory_format=torch.channels_last)
    plain_logits, plain_left = train_step(plain, images, alpha)
    fused_logits, fused_left = train_step(fused, images, alpha)
    torch.testing.assert_close(fused_logits, plain_logits, rtol=1e-9, atol=1e-10)
    assert fused_left.keys() == plain_left.keys()
    for name, expected in plain_left.items():
        actual = fused_left[name]
        scale = float(expected.abs().max())
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9 * max(scale, 1e-3), msg=name)
    assert int(fused_left["stem.1.num_batches_tracked"]) == 2
    assert not fused_left["alpha.grad"][:, 0].any()
    assert fused_left["alpha.grad"][:, 1:].abs().min() > 0


@pytest.mark.parametrize("momentum", [None, 0.25])
def test_fused_training_honours_the_momentum(momentum: float | None) -> None:
    plain = make_supernet()
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = momentum
            module.reset_running_stats()
    fused = copy.deepcopy(plain)
    fuse(fused)
    for seed in (1, 2, 3):
        images, alpha = make_input(8, 8, seed=seed)
        plain(images, alpha)
        fused(images, alpha)
    for (name, actual), expected in zip(fused.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_fused_training_leaves_out_what_has_alpha_0(dropout: float) -> None:
    """All is as in plain training, but that batch norms keep nothing of what was not computed."""
    plain = make_supernet(dropout=dropout).train()
    fused = copy.deepcopy(plain)
    fuse(fused)
    images, alpha = make_input(9, 8, n=6)
    alpha[:, 2:4] *= torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1], [0, 1], [1, 0]])
    before = copy.deepcopy(plain.state_dict())
    for supernet in (plain, fused):
        torch.manual_seed(3)
        supernet(images, alpha).square().sum().backward()
    for (name, actual), expected in zip(fused.named_parameters(), plain.parameters(), strict=True):
        assert actual.grad is not None and expected.grad is not None
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-9, atol=1e-10, msg=name)
    left_out = {
        f"cells.{c}.edges.{edge}.{op}.op.2"
        for c in (0, 2, 4)
        for edge, row in zip(("1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2"), alpha, strict=True)
        for op in (2, 3)
        if row[op] == 0
    }
    for (name, actual), expected in zip(fused.named_buffers(), plain.buffers(), strict=True):
        kept = name.rpartition(".")[0] in left_out
        torch.testing.assert_close(
            actual.double(), (before[name] if kept else expected).double(), rtol=1e-9, atol=1e-10, msg=name
        )
    assert len(left_out) == 3 * 6


def test_fused_trains_an_alpha_of_0() -> None:
    plain = make_supernet().train()
    fused = copy.deepcopy(plain)
    fuse(fused)
    images, alpha = make_input(9, 8, n=6)
    alpha[:, 2:4] = 0
    gradients = [
        torch.autograd.grad(supernet(images, table).square().sum(), table)[0]
        for supernet, table in ((plain, alpha.clone().requires_grad_()), (fused, alpha.requires_grad_()))
    ]
    assert gradients[0][:, 2:4].abs().min() > 0
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)
    for (name, actual), expected in zip(fused.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("keeps_statistics", [True, False])
def test_fused_inference_is_plain_inference(keeps_statistics: bool, calls: list[str]) -> None:
    """Through the ops, in eval mode, where no gradient is wanted."""
    plain = make_supernet(cells=2, dropout=0.3).eval()
    if not keeps_statistics:
        drop_statistics(plain)
    fused = copy.deepcopy(plain)
    fuse(fused)
    images, alpha = make_input(9, 8, n=6)
    alpha[0, 3] = 0
    before = copy.deepcopy(fused.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fused(images, alpha), plain(images, alpha), rtol=1e-9, atol=1e-10)
    assert calls.count("masked_cell" if keeps_statistics else "mixed_cell") == 6
    assert calls.count("residual_block" if keeps_statistics else "trained_residual_block") == 2
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())


def test_plain_is_module_by_module_for_a_while(calls: list[str]) -> None:
    supernet = make_supernet().eval()
    fuse(supernet)
    images, alpha = make_input(8, 8)
    with torch.no_grad():
        with pytest.raises(KeyError), supernet.plain():
            supernet(images, alpha)
            assert not calls
            raise KeyError
        supernet(images, alpha)
    assert calls


def test_fused_changes_nothing_in_eval_mode() -> None:
    plain = make_supernet(dropout=0.3).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    images, alpha = make_input(8, 8)
    assert torch.equal(plain(images, alpha), fused(images, alpha))


def test_the_fused_argument_reaches_every_cell() -> None:
    for fused in (True, False):
        cells = Supernet(1, 2, fused=fused).cells
        assert [getattr(cell, "fused") for cell in cells] == [fused] * 8  # noqa: B009


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


# Networks of one architecture ------------------------------------------------------------------------------

PAPER = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


@pytest.mark.parametrize(
    ("op", "parameters"),
    # per edge and cell of width C: 9 C C (or C C) weights and 2 C of the batch norm
    [("none", 73_306), ("skip_connect", 73_306), ("avg_pool_3x3", 73_306)]
    + [(f"nor_conv_{k}x{k}", 73_306 + 30 * sum(k * k * c * c + 2 * c for c in (16, 32, 64))) for k in (1, 3)],
)
def test_parameter_counts_are_those_of_the_benchmark(op: str, parameters: int) -> None:
    network = build_network(Genotype((op,) * 6))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_a_network_takes_string_index_or_genotype() -> None:
    genotype = Genotype.from_string(PAPER)
    for architecture in (PAPER, genotype.index, genotype):
        network = build_network(architecture, 2, 1, 7)
        assert network.genotype == genotype
        assert str(network.genotype) == PAPER
        assert network(torch.randn(2, 3, 9, 8)).shape == (2, 7)
    with pytest.raises(UserError, match="architecture index must be in"):
        build_network(-1)
    with pytest.raises(UserError, match="is not of the form"):
        build_network("nor_conv_3x3")


def test_a_discrete_cell_is_the_supernets_cell_with_one_hot_alpha(assert_close: Close) -> None:
    genotype = Genotype.from_choices((3, 1, 2, 4, 0, 3))
    search = make_supernet(4).search_cells()[0].eval()
    cell = DiscreteCell(genotype, 4).double().eval()
    for layer, edge, choice in zip(cell.layers, search.mixed_ops(), genotype.choices, strict=True):
        layer.load_state_dict(edge[choice].state_dict(), strict=False)  # affine: one and zero
    alpha = F.one_hot(torch.tensor(genotype.choices), 5).double()
    x = make_input(5, 7)[0].repeat(1, 2, 1, 1)[:, :4]
    assert_close(cell(x), search(x, alpha))


def test_names_of_a_network_are_the_public_ones() -> None:
    names = set(build_network(PAPER, 4, 1).state_dict())
    assert "cells.0.layers.5.op.1.weight" in names
    assert "cells.0.layers.5.op.2.bias" in names
    assert not [name for name in names if name.startswith("cells.0.layers.3.")], "skip has no parameters"
    assert "cells.1.downsample.1.weight" in names
