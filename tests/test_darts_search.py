"""A whole search in a DARTS space, from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from search_commands import stop_after
from test_own_parts import outcome

from vpdarts_fast.acceleration import accelerate
from vpdarts_fast.evaluation.leave_one_out import leave_one_out
from vpdarts_fast.report.run_files import read_run
from vpdarts_fast.search import RunFolder, running
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.spaces.darts import DartsS2, DartsS3, Genotype

pytestmark = pytest.mark.usefixtures("one_thread")

SEARCH = [
    "--space", "darts-s2", "--channels", "2", "--layers", "3", "--max-images", "32", "--batch-size", "8",
    "--batch-norm", "running", "--validation-proportion", "0.5", "--warmup-epochs", "0",
    "--pruning-epochs", "1", "--pruning", "hard", "--finalists", "0", "--threads", "1",
]  # fmt: skip


def test_a_search_ends_with_a_genotype_and_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    monkeypatch.setattr(running, "draw_pictures", lambda folder: [])
    assert main([*SEARCH, "--out", str(whole)]) == 0
    result = RunFolder(whole).result()
    assert result is not None and result["space"] == "darts-s2" and result["benchmark"] is None
    genotype = Genotype.from_string(result["architecture"])
    assert f"found: {genotype}" in capsys.readouterr().out
    assert DartsS2(found_layers=3, found_channels=4).network(genotype, 10) is not None
    assert [len(row) for row in result["importance"]["loss"]] == [2] * 28
    assert [cell.name for cell in read_run(whole).result.genotype.cells] == ["normal", "reduction"]  # type: ignore[union-attr]
    with monkeypatch.context() as patch:
        stop_after(3, patch)  # in the epoch
        assert main([*SEARCH, "--out", str(stopped)]) == 130
    assert main(["--resume", str(stopped)]) == 0
    assert outcome(stopped) == outcome(whole)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--evaluation", "racing"], "with --space darts use --evaluation full"),
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
