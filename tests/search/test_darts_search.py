"""A whole search in a DARTS space, from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from ragged_supernet import RaggedSupernet, a_batch
from search_calls import outcome
from search_commands import stop_after

from vpdarts_fast.acceleration import accelerate
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation import racing
from vpdarts_fast.evaluation.leave_one_out import leave_one_out
from vpdarts_fast.report.run_files import read_run
from vpdarts_fast.search import RunFolder
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.spaces.darts import DartsS2, DartsS3, DartsS4, Genotype

pytestmark = pytest.mark.usefixtures("one_thread")

SEARCH = [
    "--space", "darts-s2", "--channels", "2", "--layers", "3", "--max-images", "16", "--batch-size", "4",
    "--batch-norm", "running", "--validation-proportion", "0.5", "--warmup-epochs", "0",
    "--pruning-epochs", "1", "--pruning", "hard", "--finalists", "0", "--threads", "1",
]  # fmt: skip


RACING = ["--evaluation", "racing", "--criterion", "loss", "--race-confidence", "0.6"]


@pytest.mark.parametrize(
    "evaluation", [[], [*RACING, "--evaluation-batch-size", "2"]], ids=["full", "racing"]
)
def test_a_search_ends_with_a_genotype_and_resumes_bit_for_bit(
    evaluation: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    monkeypatch.setattr(racing, "FIRST_LOOK", 4)
    command = [*SEARCH, *evaluation]
    assert main([*command, "--out", str(whole)]) == 0
    result = RunFolder(whole).result()
    assert result is not None and result["space"] == "darts-s2" and result["benchmark"] is None
    genotype = Genotype.from_string(result["architecture"])
    assert f"found: {genotype}" in capsys.readouterr().out
    assert DartsS2(found_layers=3, found_channels=4).network(genotype, 10) is not None
    assert [len(row) for row in result["importance"]["loss"]] == [2] * 28
    if evaluation:
        spent = result["importance"]["op_images"]
        assert all(max(row) == result["importance"]["images"] for row in spent)
        assert min(map(min, spent)) == 4
    assert [cell.name for cell in read_run(whole).result.genotype.cells] == ["normal", "reduction"]  # type: ignore[union-attr]
    with monkeypatch.context() as patch:
        stop_after(3 if evaluation else 1, patch)  # in the race, or in the epoch
        assert main([*command, "--out", str(stopped)]) == 130
    assert main(["--resume", str(stopped)]) == 0
    assert outcome(stopped) == outcome(whole)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--evaluation", "racing", "--pruning", "progressive"],
            "--pruning progressive needs the order of all: use --evaluation full",
        ),
        (
            ["--benchmark-table", "table.csv"],
            "--benchmark-table is of NAS-Bench-201; leave it out with --space darts",
        ),
        (["--layers", "2"], "--layers must be at least 3; got 2"),
        (["--drop-path", "1.5"], "--drop-path must be"),
    ],
)
def test_what_the_space_cannot_is_refused(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as status:
        sys.exit(
            main(["--space", "darts", "--criterion", "loss", *arguments, "--out", str(tmp_path / "run")])
        )
    assert status.value.code == 2
    shown = capsys.readouterr()
    assert complaint in " ".join((shown.out + shown.err).replace("│", " ").split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("removal", ["zero", "renormalised"])
def test_evaluated_together_and_one_by_one(removal: str) -> None:
    """Every variant of a supernet in float64; weights that are 0, of both signs and of `none`."""
    space = DartsS3(channels=2, layers=3)
    torch.manual_seed(0)
    supernet = space.supernet(4).double()
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(28, 3, dtype=torch.float64, generator=generator)
    weights[5] = 0
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=generator)
    batches = [(images, torch.randint(4, (6,), generator=generator))]
    options = {"batch_norm": "batch", "removal": removal, "nones": space.nones}
    one_by_one = leave_one_out(supernet, batches, weights, batched=False, **options)  # type: ignore[call-overload]
    accelerate(supernet, backend="pytorch")
    together = leave_one_out(supernet, batches, weights, **options)  # type: ignore[call-overload]
    torch.testing.assert_close(together.loss, one_by_one.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(together.accuracy, one_by_one.accuracy, rtol=1e-9, atol=0)
    assert (together.loss[5] == together.base_loss).all()
    if removal == "zero":
        assert (together.loss[weights != 0] != together.base_loss).float().mean() > 0.5


def test_every_variant_meets_the_same_noise() -> None:
    """Of the operation `noise`; PyTorch's generator is then where it was."""
    space = DartsS4(channels=2, layers=3)
    torch.manual_seed(0)
    supernet = space.supernet(4).double()
    weights = torch.full((28, 2), 0.5, dtype=torch.float64)
    weights[1:, 1] = 0  # all edges but the first are noise alone
    state = torch.get_rng_state()
    found = leave_one_out(supernet, a_batch(), weights, batch_norm="batch", batched=False)
    again = leave_one_out(supernet, a_batch(), weights, batch_norm="batch", batched=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found.loss, again.loss)
    removed = weights.clone()
    removed[3, 0] = 0
    alone = leave_one_out(supernet, a_batch(), removed, batch_norm="batch", batched=False)
    assert float(found.loss[3, 0]) == alone.base_loss


def test_rows_longer_than_what_an_edge_has_are_evaluated_all_the_same() -> None:
    torch.manual_seed(0)
    supernet = RaggedSupernet().double()
    rows = [[0.3, 0.4, 0], [0.5, 0.2, 0], [0.3, 0.6, 0.1], [0.2, 0.5, 0.7]]
    weights = torch.tensor(rows, dtype=torch.float64)
    plain = leave_one_out(supernet, a_batch(), weights, batch_norm="batch", batched=False)
    accelerate(supernet, backend="pytorch")
    found = leave_one_out(supernet, a_batch(), weights, batch_norm="batch")
    torch.testing.assert_close(found.loss, plain.loss, rtol=1e-9, atol=0)
    assert len(found.loss.unique()) == 1 + 10


def test_a_supernet_that_has_diverged_is_said() -> None:
    supernet = RaggedSupernet().double()
    supernet.classifier.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="outputs are not finite; it has diverged"):
        leave_one_out(supernet, a_batch(), torch.ones(4, 3).double(), batch_norm="batch", batched=False)
