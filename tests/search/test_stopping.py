"""Signs of a collapse, and searches that end early because of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from search_calls import outcome
from search_commands import error_of, stop_after
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.report.pictures import draw_pictures
from vpdarts_fast.report.run_files import read_run
from vpdarts_fast.search import RunFolder, SearchConfig
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.member import Member
from vpdarts_fast.search.methods.stopping import (
    LowEntropy,
    ManySkips,
    NoStopping,
    RisingEigenvalue,
    Watched,
)
from vpdarts_fast.search.watching import largest_eigenvalue, mean_entropy, skips_of
from vpdarts_fast.spaces.darts import Darts
from vpdarts_fast.spaces.nas_bench_201 import Genotype, NasBench201, Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

# What is watched --------------------------------------------------------------------------------------------


def test_skips_are_counted_in_any_space() -> None:
    space = NasBench201()
    assert skips_of(space, Genotype.from_choices((1, 0, 1, 3, 2, 1))) == 3
    darts = Darts()
    order = torch.zeros(darts.shape, dtype=torch.int64)
    column = darts.tables[0].ops[0].index("skip_connect")
    order[:, column] = 1 + torch.arange(len(order))
    assert skips_of(darts, darts.select(order.where(darts.present, -1))) == 16, "two edges of every node"


def test_entropy_is_that_of_an_edge_s_ops() -> None:
    strength = torch.tensor([[2.0, 2.0, 0.0], [1.0, 0.0, 9.0], [3.0, 1.0, 0.0]])
    present = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    shares = [0.75, 0.25]
    expected = (math.log(2) - sum(p * math.log(p) for p in shares)) / 2
    assert mean_entropy(strength, present) == pytest.approx(expected), "an edge of one op has no choice"


@pytest.mark.parametrize("size", [1, 2, 3, 30])
def test_the_largest_eigenvalue_is_that_of_the_hessian(size: int) -> None:
    """Of a quadratic form, whose Hessian is known, over the entries that are free."""
    generator = torch.Generator().manual_seed(size)
    matrix = torch.randn(30, 30, dtype=torch.float64, generator=generator)
    matrix = matrix + matrix.T
    free = torch.zeros(30, dtype=torch.bool)
    free[torch.randperm(30, generator=generator)[:size]] = True
    alpha = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    found = largest_eigenvalue(
        lambda alpha: alpha.flatten() @ matrix @ alpha.flatten() / 2, alpha, free.view(6, 5)
    )
    largest = np.linalg.eigvalsh(matrix[free][:, free].numpy()).max()
    assert found == pytest.approx(largest, rel=2e-2)
    nothing = torch.zeros(6, 5, dtype=torch.bool)
    assert largest_eigenvalue(lambda alpha: alpha.square().sum(), alpha, nothing) == 0.0


def test_the_eigenvalue_of_a_supernet() -> None:
    """By the double backward of the supernet, against the whole Hessian of the plain one in float64."""
    torch.manual_seed(0)
    supernet = Supernet(4, 1, 4, skip_dropout=0.0).double().train()
    images = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    labels = torch.arange(8) % 4

    def loss_of(alpha: Tensor) -> Tensor:
        logits = supernet(images, alpha.softmax(1))
        return -logits.log_softmax(1)[range(8), labels].mean()

    alpha = 0.3 * torch.randn(6, 5, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(loss_of, alpha).view(30, 30)
    found = largest_eigenvalue(loss_of, alpha, torch.ones(6, 5, dtype=torch.bool))
    assert found == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=2e-2)


# When a search ends -----------------------------------------------------------------------------------------


def test_each_sign_by_its_definition() -> None:
    calm, skipping = Watched(0, 1.6), Watched(3, 1.6)
    assert NoStopping().stops([skipping] * 9) is None
    assert ManySkips(3).stops([calm, skipping]) == 2 and ManySkips(4).stops([calm, skipping]) is None
    assert LowEntropy(0.5).stops([calm, Watched(0, 0.4)]) == 2 and LowEntropy(0.5).stops([calm]) is None
    for never in (ManySkips(), LowEntropy(), RisingEigenvalue()):
        assert never.stops([]) is None
    rising = RisingEigenvalue(eigenvalue_window=2)
    values = [1.0, 1.0, 1.1, 1.1, 1.5, 1.6]
    epochs = [Watched(0, 1.6, value) for value in values]
    assert [rising.stops(epochs[:n]) for n in range(1, 7)] == [None] * 5 + [4]
    assert rising.stops([*epochs[:4], Watched(0, 1.6)]) is None, "where it was not measured"


TINY = [
    "--method", "darts", "--max-images", "64", "--channels", "4", "--cells-per-stage", "1",
    "--batch-size", "16", "--threads", "1", "--finalists", "0", "--pruning-epochs", "5",
]  # fmt: skip


def test_a_search_that_ends_early_takes_the_cell_of_an_earlier_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole or stopped and continued, before and after its early end."""
    values = [0.5, 0.6, 0.9, 0.9, 0.9]
    monkeypatch.setattr(Member, "eigenvalue", lambda self: values[self.state.epoch])
    flags = [*TINY, "--alpha-learning-rate", "0.5", "--eigenvalue-window", "1", "--stopping", "eigenvalue"]
    whole = tmp_path / "whole"
    assert main([*flags, "--out", str(whole)]) == 0
    epochs, result = RunFolder(whole).metrics(), RunFolder(whole).result()
    assert result is not None
    assert [epoch["watched"]["eigenvalue"] for epoch in epochs] == values[:3], "0.6 < 0.75 of 0.9"
    assert result["stopped"] == {"epochs": 3, "cell": 2}
    assert result["architecture"] == epochs[2]["genotype"], "which alpha would have selected after two epochs"
    for after in (4, 8):
        stopped = tmp_path / f"stopped-{after}"
        with monkeypatch.context() as patch:
            stop_after(after, patch)
            status = main([*flags, "--out", str(stopped)])
        assert status == 130
        assert main(["--resume", str(stopped)]) == 0
        assert outcome(stopped) == outcome(whole)


def test_a_search_ends_at_many_skips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for skips in (1, 7):
        folder = tmp_path / str(skips)
        flags = ["--stopping", "skips", "--skips-to-stop", str(skips), "--alpha-learning-rate", "0.3"]
        assert main([*TINY, *flags, "--out", str(folder)]) == 0
        epochs, result = RunFolder(folder).metrics(), RunFolder(folder).result()
        assert result is not None
        counts = [epoch["watched"]["skips"] for epoch in epochs]
        assert (result["stopped"] is not None) == (counts[-1] >= skips)
        assert all(count < skips for count in counts[:-1])
        assert all(epoch["watched"]["eigenvalue"] is None for epoch in epochs)
        if result["stopped"]:
            assert result["architecture"].count("skip_connect") == counts[-1]
        found.append(len(epochs))
    assert found[1] == 5, "more skips than edges never stop it"


def test_what_cannot_end_early(capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of([*TINY, "--stopping", "skips", "--finalists", "4"], capsys)
    assert "--stopping skips takes the cell of an epoch" in error and "use --finalists 0; got 4" in error
    error = error_of(["--method", "sgas", "--stopping", "entropy"], capsys)
    assert "would end a search before --schedule greedy has decided its edges" in error
    with pytest.raises(UserError, match=r"--eigenvalue-ratio must be in \(0, 1\); got 1.5"):
        SearchConfig().replaced(stopping=RisingEigenvalue(eigenvalue_ratio=1.5))


def test_what_is_watched_is_in_the_files_and_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main([*TINY, "--pruning-epochs", "1", "--eigenvalue", "--out", str(folder)]) == 0
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    watched = json.loads(line)["watched"]
    (epoch,) = read_run(folder).epochs
    assert dict(epoch.watched) == watched and math.isfinite(watched["eigenvalue"])
    assert 0 < watched["entropy"] < math.log(5) + 1e-9
    assert folder / "curves.png" in draw_pictures(folder)
