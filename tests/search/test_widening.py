"""Ops that are pruned and edges that are widened while a search goes on (DrNAS, section 3.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from search_calls import outcome
from search_commands import stop_after
from torch import Tensor, nn

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.search import RunFolder, SearchConfig
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.methods.relaxations import Dirichlet
from vpdarts_fast.search.methods.schedules import Widen, Widening
from vpdarts_fast.search.methods.variations import PartialChannels, PartialEdge
from vpdarts_fast.search.methods.widening import ChannelCopies
from vpdarts_fast.search.state import SearchState
from vpdarts_fast.spaces.darts import Darts
from vpdarts_fast.spaces.edges import EdgeSite
from vpdarts_fast.spaces.nas_bench_201 import NasBench201
from vpdarts_fast.spaces.space import Space

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_stages_are_those_of_drnas() -> None:
    config = SearchConfig().replaced(recipe="drnas-progressive")
    schedule, space = config.method.schedule, config.space
    assert schedule == Widening(10, 50, 3, 2) and config.epochs == 100
    assert schedule.annealed_epochs(space) == 100, "one cosine over both halves"
    assert [epoch for epoch in range(100) if not config.stage(epoch).alpha] == [*range(10), *range(50, 60)]
    assert {epoch: event for epoch in range(101) if (event := schedule.event(epoch, space))} == {50: Widen(3)}
    assert config.method.relaxation == Dirichlet()
    assert config.method.variation == PartialChannels(channel_parts=4)
    assert schedule.widest(config.method.variation) == PartialChannels(channel_parts=2)
    for epochs in (2, 3, 8, 25, 100):
        resized = schedule.of_length(epochs, space)
        resized.check(space)
        assert abs(resized.epochs(space) - epochs) <= 1
    assert schedule.of_length(100, space) == schedule and schedule.of_length(20, space) == Widening(2, 10)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"variation": "none"}, r"--channel-parts above --wide-parts 2; got --variation none"),
        ({"channel_parts": 2}, r"above --wide-parts 2; got --variation partial-channels --channel-parts 2"),
        ({"wide_parts": 3}, r"--channels must be a multiple of --channel-parts 3"),
        (
            {"pruning": "progressive"},
            "--schedule widening decides by itself which ops stay: use --pruning hard",
        ),
        ({"half_epochs": 10}, "--half-epochs must be more than --warmup-epochs 10"),
        ({"kept_ops": 0}, "--kept-ops must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_widened_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        SearchConfig().replaced(recipe="drnas-progressive", **settings)


# Copies of channels -----------------------------------------------------------------------------------------


def edge_of(space: Space[Any], channels: int, parts: int, stride: int) -> PartialEdge:
    """An edge of a space's first cell with that stride, whose tensors are all different."""
    found: list[PartialEdge] = []

    def make(site: EdgeSite) -> nn.Module:
        edge = PartialEdge(site, parts)
        if site.channels == channels and site.stride == stride:
            found.append(edge)
        return edge

    space.varied_supernet(10, make, 0)
    for tensor in found[0].state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return found[0]


def copied(narrow: PartialEdge, wide: PartialEdge) -> dict[str, Tensor]:
    """What the wide edge begins with."""
    copies = ChannelCopies(nn.Sequential(narrow), nn.Sequential(wide), torch.Generator().manual_seed(1))
    return {name: copies.widened(f"0.{name}", tensor) for name, tensor in narrow.state_dict().items()}


def sources_of(narrow: Tensor, wide: Tensor) -> list[int]:
    """Of which values of `narrow`, all different, those of `wide` are copies."""
    return [narrow.tolist().index(value) for value in wide.tolist()]


def test_the_channels_of_convolutions_are_copied_with_their_norms() -> None:
    narrow, wide = (edge_of(NasBench201(channels=12, cells_per_stage=1), 12, parts, 1) for parts in (4, 2))
    after = copied(narrow, wide)
    before = narrow.state_dict()
    assert {name: tensor.shape for name, tensor in after.items()} == {
        name: tensor.shape for name, tensor in wide.state_dict().items()
    }
    for conv in ("mixed_op.2.op", "mixed_op.3.op"):
        source = sources_of(before[f"{conv}.2.running_mean"], after[f"{conv}.2.running_mean"])
        assert source[:3] == [0, 1, 2] and len(source) == 6
        assert source == sources_of(before[f"{conv}.2.running_var"], after[f"{conv}.2.running_var"])
        weight = before[f"{conv}.1.weight"]
        expected = torch.stack([torch.stack([weight[o, i] for i in source]) for o in source])
        assert torch.equal(after[f"{conv}.1.weight"], expected)


@pytest.mark.parametrize(("parts", "wide_parts"), [(4, 2), (6, 4)])
def test_a_wide_edge_does_to_old_channels_what_the_narrow_one_did(parts: int, wide_parts: int) -> None:
    """Of ops with one stage, where the new channels of the input are 0; of these, factorised reduce."""
    space = Darts(channels=12, layers=3)
    narrow, wide = (edge_of(space, 24, count, 2) for count in (parts, wide_parts))
    wide.load_state_dict(copied(narrow, wide))
    x = torch.randn(2, wide.through, 6, 6)
    x[:, narrow.through :] = 0
    reduce = [name for name, module in wide.named_modules() if type(module).__name__ == "FactorizedReduce"]
    old, new = (edge.get_submodule(reduce[0]).eval() for edge in (narrow, wide))
    before, after = old(x[:, : narrow.through]), new(x)
    half, wide_half = narrow.through // 2, wide.through // 2
    torch.testing.assert_close(after[:, :half], before[:, :half])
    torch.testing.assert_close(after[:, wide_half : wide_half + narrow.through - half], before[:, half:])
    flat = before.transpose(0, 1).flatten(1)
    for number, channel in enumerate(after.transpose(0, 1).flatten(1)):
        source = int((flat - channel).abs().sum(1).argmin())
        torch.testing.assert_close(channel, flat[source])
        assert (source < half) == (number < wide_half), "a copy is of a channel of its half"


# Whole searches ---------------------------------------------------------------------------------------------

WIDENED = [
    "--method", "drnas-progressive", "--warmup-epochs", "1", "--half-epochs", "2", "--dataset", "digits",
    "--max-images", "48", "--channels", "16", "--cells-per-stage", "1", "--batch-size", "8",
    "--alpha-learning-rate", "0.05", "--threads", "1", "--finalists", "0",
]  # fmt: skip


@pytest.mark.parametrize(("fused", "stops"), [("--fused", (2, 8)), ("--no-fused", (7, 11))])
def test_a_widened_search_stops_and_goes_on(
    fused: str, stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the ops are pruned, at that moment and behind it; alpha rests at the beginning of each half."""
    whole = tmp_path / "whole"
    assert main([*WIDENED, fused, "--out", str(whole)]) == 0
    epochs = RunFolder(whole).metrics()
    assert [epoch["phase"] for epoch in epochs] == ["narrow-warm-up", "narrow", "wide-warm-up", "wide"]
    alphas = [torch.tensor(epoch["alpha"]) for epoch in epochs]
    strongest = alphas[1].argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros(6, 5, dtype=torch.bool).scatter_(1, strongest[:, :3], True)
    assert torch.equal(alphas[2], alphas[1] * kept), "alpha of what is kept stays as it was"
    assert torch.equal(alphas[3] != 0, kept) and not torch.equal(alphas[3], alphas[2])
    result = RunFolder(whole).result()
    assert result is not None
    chosen = NasBench201().parse(result["architecture"]).choices
    assert all(kept[edge, op] for edge, op in enumerate(chosen))
    for after in stops:  # of three steps an epoch, asked before each and behind the epoch
        stopped = tmp_path / str(after)
        with monkeypatch.context() as patch:
            stop_after(after, patch)
            assert main([*WIDENED, fused, "--out", str(stopped)]) == 130
        assert main(["--resume", str(stopped)]) == 0
        assert outcome(stopped) == outcome(whole)


def test_a_committee_keeps_the_same_ops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*WIDENED, "--committee", "2", "--half-epochs", "2", "--out", str(tmp_path / "run")]) == 0
    last = RunFolder(tmp_path / "run").metrics()[-1]
    first, second = (torch.tensor(member["alpha"]) for member in last["members"])
    assert (
        torch.equal(first != 0, second != 0) and (first != 0).sum() == 18 and not torch.equal(first, second)
    )


def test_momentum_and_learning_rate_follow(tmp_path: Path) -> None:
    settings = {"channels": 16, "cells_per_stage": 1, "half_epochs": 2, "warmup_epochs": 1, "fused": False}
    config = SearchConfig().replaced(recipe="drnas-progressive", **settings)
    state = SearchState(config, 10, torch.device("cpu"))
    images = torch.randn(8, 3, 16, 16)
    state.supernet(images, state.weights_of(state.alpha.detach())).square().mean().backward()
    state.weights_optimizer.step()
    state.schedule.step()
    narrow, optimizer = state.supernet, state.weights_optimizer
    state.widen(torch.arange(5).repeat(6, 1), 3)
    assert state.wide and state.alive.sum() == 18 and state.supernet is not narrow
    assert state.weights_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] < 0.025
    wider = 0
    for old, new in zip(narrow.parameters(), state.supernet.parameters(), strict=True):
        momentum = state.weights_optimizer.state[new]["momentum_buffer"]
        before = optimizer.state[old]["momentum_buffer"]
        assert momentum.shape == new.shape
        if old.shape == new.shape:
            assert torch.equal(old, new) and torch.equal(before, momentum)
            continue
        wider += 1
        assert torch.equal(old, new[: len(old), : old.shape[1]])
        places = {tuple(row.tolist()): number for number, row in enumerate(old.detach().flatten(1))}
        shown = new.detach()[:, : old.shape[1]].flatten(1)
        source = [places[tuple(row.tolist())] for row in shown]
        assert torch.equal(momentum[:, : old.shape[1]], before[source])
    assert wider == 3 * 6 * 2, "a 1x1 and a 3x3 convolution on each edge of three cells"


def test_a_checkpoint_that_does_not_say_how_wide_it_is_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert main([*WIDENED, "--no-fused", "--out", str(folder)]) == 130
    content = checkpoint.load(folder / "checkpoint.pt")
    for wide, complaint in ((1, "wide must be true or false; got 1"), (True, "does not fit the settings")):
        checkpoint.save(folder / "checkpoint.pt", {**content, "wide": wide})
        assert main(["--resume", str(folder)]) == 2
        assert complaint in capsys.readouterr().err
