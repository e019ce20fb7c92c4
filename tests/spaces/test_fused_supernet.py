"""The fused form of a supernet computes what its modules do: trained, in eval mode, where an alpha is 0."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from leave_one_out_cases import drop_statistics
from supernet_cases import fuse, make_input, make_supernet
from torch import Tensor

from vpdarts_fast.spaces.nas_bench_201 import Supernet


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
