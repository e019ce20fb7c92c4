"""Searches of varied supernets from the command line, stopped and continued; what cannot be varied."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from places import ROOT, SUPPORT
from search_calls import outcome
from search_commands import stop_after

from vpdarts_fast.runs import checkpoint
from vpdarts_fast.search import RunFolder, SearchConfig
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.methods.schedules import WarmUpAndPruning
from vpdarts_fast.search.methods.variations import AuxiliarySkip, PartialChannels

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = [
    "--max-images", "32", "--channels", "4", "--batch-size", "8", "--threads", "1", "--finalists", "0",
    "--warmup-epochs", "0", "--pruning-epochs", "2", "--relaxation", "softmax", "--pruning", "progressive",
]  # fmt: skip
PLUGIN = ["--plugin", str(SUPPORT / "own_parts.py")]
DARTS = ["--space", "darts-s3", "--layers", "3", "--criterion", "alpha"]
SEARCHES = {
    "pc-darts": (
        6,
        ["--variation", "partial-channels", "--edge-normalisation", "--committee", "2", "--no-fused"],
    ),
    "pc-darts in DARTS": (
        3,
        [*DARTS, "--channels", "8", "--variation", "partial-channels", "--channel-parts", "2",
         "--edge-normalisation"],
    ),
    "skip": (
        1,
        ["--no-fused", "--variation", "auxiliary-skip", "--skip-decay", "cosine", "--relaxation", "gumbel"],
    ),
    "plugin": (4, [*PLUGIN, "--no-fused", "--variation", "test-gated", "--openness", "0.4"]),
}  # fmt: skip
"""After how many questions whether to stop it is stopped: in an epoch, at its end, where the next one begins
with an evaluation, or in that; and what is searched."""


@pytest.mark.parametrize("name", SEARCHES)
def test_a_stopped_search_ends_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, with what is trained beside alpha and what falls over the epochs."""
    after, flags = SEARCHES[name]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*TINY, *flags, "--out", str(whole)]) == 0
    with monkeypatch.context() as patch:
        stop_after(after, patch)
        assert main([*TINY, *flags, "--out", str(stopped)]) == 130
    assert main([*(PLUGIN if name == "plugin" else []), "--resume", str(stopped)]) == 0
    assert outcome(stopped) == outcome(whole)
    saved, (first, *_, last) = checkpoint.load(whole / "checkpoint.pt"), RunFolder(whole).metrics()
    result = RunFolder(whole).result()
    assert result is not None and result["tables"] == last["tables"]
    if "--edge-normalisation" in flags:
        assert saved["tables"]["edges"].shape == (len(first["alpha"]),)
        assert first["tables"]["edges"] != last["tables"]["edges"], "it is trained with alpha"
    if name == "plugin":
        assert saved["tables"]["gates"].shape == (6, 1) and int(saved["parts"]["variation"]["asked"]) > 0


def test_what_falls_is_where_it_was_when_a_search_goes_on_with_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the end of an epoch; the next one begins with an evaluation by weights at a temperature."""
    search = [
        *TINY,
        "--warmup-epochs",
        "1",
        "--channels",
        "2",
        "--relaxation",
        "gumbel",
        "--temperature-end",
        "0.1",
    ]
    whole = tmp_path / "whole"
    assert main([*search, "--out", str(whole)]) == 0
    for after in (2, 5):
        stopped = tmp_path / f"stopped-{after}"
        with monkeypatch.context() as patch:
            stop_after(after, patch)
            assert main([*search, "--out", str(stopped)]) == 130
        assert checkpoint.load(stopped / "checkpoint.pt")["step"] == 0
        assert main(["--resume", str(stopped)]) == 0
        assert outcome(stopped) == outcome(whole)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--variation", "partial-channels", "--channels", "6"],
            "--channels must be a multiple of --channel-parts 4",
        ),
        (["--variation", "partial-channels", "--channel-parts", "0"], "--channel-parts must be at least 1"),
        (
            ["--plugin", str(ROOT / "examples" / "own_space.py"), "--space", "two-cells",
             "--variation", "auxiliary-skip"],
            "--space two-cells has no supernet whose edges can be made in another way",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_varied_is_refused(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as status:
        sys.exit(main([*arguments, "--out", str(tmp_path / "run")]))
    assert status.value.code == 2
    shown = capsys.readouterr()
    assert complaint in " ".join((shown.out + shown.err).replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_recipes() -> None:
    pc = SearchConfig().replaced(recipe="pc-darts")
    assert pc.method.variation == PartialChannels(4, edge_normalisation=True)
    assert pc.method.schedule == WarmUpAndPruning(15, 35) and pc.optimisers.batch_size == 256
    minus = SearchConfig().replaced(recipe="darts-minus", space="darts")
    assert minus.method.variation == AuxiliarySkip("linear") and minus.epochs == 50


def test_variations_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--method", "pc-darts", "--help"])
    shown = capsys.readouterr().out
    assert "--channel-parts" in shown and "--edge-normalisation" in shown
