"""First layers that halve images: networks, evaluations and settings with them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vpdarts_fast import build_network
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import leave_one_out
from vpdarts_fast.spaces.darts import Darts, DartsNetwork
from vpdarts_fast.spaces.nas_bench_201 import Genotype, NasBench201, Supernet
from vpdarts_fast.spaces.stems import Stem, behind_stem, make_stem, stem_of, with_stem

pytestmark = pytest.mark.usefixtures("one_thread", "calibrate_on_few")


@pytest.mark.parametrize("stem", ["plain", "halving", "quartering"])
def test_what_is_behind_a_stem_is_as_large_as_is_said(stem: Stem) -> None:
    for size in ((16, 16), (37, 62), (65, 224)):
        assert make_stem(8, stem)(torch.randn(2, 3, *size)).shape == (2, 8, *behind_stem(size, stem))


def test_the_stem_for_a_size() -> None:
    found = {size: stem_of((size, size)) for size in (16, 63, 64, 127, 128, 224)}
    assert list(found.values()) == ["plain", "plain", "halving", "halving", "quartering", "quartering"]
    assert with_stem(NasBench201(), (64, 80)) == NasBench201(stem="halving")
    assert with_stem(NasBench201(stem="plain"), (64, 80)) == NasBench201(stem="plain")
    assert with_stem("no space", (64, 64)) == "no space"
    with pytest.raises(UserError, match="stem must be one of auto, plain, halving, quartering; got 'small'"):
        make_stem(8, "small")  # type: ignore[arg-type]


def test_a_plain_stem_is_the_one_there_always_was() -> None:
    for stem in ("plain", "auto"):
        torch.manual_seed(0)
        made = make_stem(8, stem)
        torch.manual_seed(0)
        assert torch.equal(made[0].weight, torch.nn.Conv2d(3, 8, 3, padding=1, bias=False).weight)
        assert set(make_stem(8, stem).state_dict()) >= {"0.weight", "1.weight"}


@pytest.mark.parametrize("stem", ["halving", "quartering"])
@pytest.mark.parametrize("batch_norm", ["recalibrated", "batch", "variant"])
def test_variants_are_evaluated_together_as_one_by_one(stem: Stem, batch_norm: str) -> None:
    torch.manual_seed(0)
    supernet = Supernet(channels=4, cells_per_stage=1, num_classes=3, fused=True, stem=stem)
    images, labels = torch.randn(30, 3, 32, 32), torch.arange(30) % 3
    alpha = torch.rand(6, 5)
    together, alone = (
        leave_one_out(supernet, [(images, labels)], alpha, batch_norm=batch_norm, batched=batched)
        for batched in (True, False)
    )
    torch.testing.assert_close(together.loss, alone.loss, rtol=1e-4, atol=1e-4)
    assert together.base_loss == pytest.approx(alone.base_loss, rel=1e-4)


def test_it_trains_fused_as_plain() -> None:
    torch.manual_seed(0)
    supernet = Supernet(4, 1, 3, skip_dropout=0, fused=True, stem="quartering")
    images, alpha = torch.randn(8, 3, 32, 32), torch.rand(6, 5)
    gradients = []
    for plain in (False, True):
        supernet.zero_grad()
        if plain:
            with supernet.plain():
                supernet(images, alpha).square().sum().backward()
        else:
            supernet(images, alpha).square().sum().backward()
        gradients.append(supernet.stem[0][0].weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_every_network_of_a_space_has_its_stem() -> None:
    images = torch.randn(2, 3, 64, 64)
    cell = Genotype.from_index(4244)
    space = NasBench201(channels=4, cells_per_stage=1, finalist_cells_per_stage=1, stem="halving")
    assert space.supernet(3).eval()(images, torch.rand(6, 5)).shape == (2, 3)
    found = space.network(cell, 3), space.finalist_network(cell, 3), build_network(cell, stem="halving")
    for network in found:
        assert network.stem(images).shape[2:] == (32, 32)
    assert space.stages((64, 64))[0] == (4, 32, 32) and space.smallest((64, 64)) == 64
    assert space.kept_values((64, 64)) == dataclasses.replace(space, stem="plain").kept_values((32, 32))


def test_the_darts_space_has_stems_too() -> None:
    space = Darts(channels=4, layers=3, found_channels=4, found_layers=3, finalist_layers=3, stem="halving")
    genotype = space.select(torch.arange(28 * 8).view(28, 8))
    images = torch.randn(2, 3, 64, 64)
    assert space.supernet(3).eval()(images, torch.rand(28, 8)).shape == (2, 3)
    assert space.finalist_network(genotype, 3).stem(images).shape[2:] == (32, 32)
    assert space.smallest((64, 64)) == 64
    network = space.network(genotype, 3)
    assert isinstance(network, DartsNetwork)
    assert [logits.shape for logits in network.forward_with_auxiliary(images)] == [(2, 3)] * 2
    with pytest.raises(UserError, match="auxiliary head needs images of at least 57 x 57"):
        network.forward_with_auxiliary(images[..., :56, :56])
