"""What the README and docs/drop-in.md show works."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch
from places import ROOT

from vpdarts_fast.search import running
from vpdarts_fast.spaces.nas_bench_201 import Genotype

README = (ROOT / "README.md").read_text()
DROP_IN = (ROOT / "docs" / "drop-in.md").read_text()

needs_examples = pytest.mark.skipif(not (ROOT / "examples").is_dir(), reason="examples/ is not there")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_api_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    _, example, _ = python_blocks(README)
    exec(compile(example, "README.md", "exec"), {})
    architecture, index = capsys.readouterr().out.split()
    assert Genotype.from_index(int(index)) == Genotype.from_string(architecture)


def test_the_search_from_python_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "draw_pictures", lambda folder: [])
    example, *_ = python_blocks(README)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "seconds to expect" in printed and "epoch 3/3 pruning" in printed
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"runs/{folder.name} [" in printed.splitlines()[-1]


@needs_examples
def test_the_drop_in_example_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    network = importlib.import_module("nas_bench_201").Network(channels=4, cells=1)
    *_, example = python_blocks(README)
    exec(compile(example, "README.md", "exec"), {"model": network})
    assert capsys.readouterr().out.startswith("5 of 5 modules fused")


@needs_examples
@pytest.mark.parametrize("number", range(len(python_blocks(DROP_IN))))
def test_the_examples_of_docs_drop_in_print_what_it_says(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = python_blocks(DROP_IN)[number]
    network = importlib.import_module("darts").Network(channels=2, layers=3)
    batch = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    exec(compile(example, "docs/drop-in.md", "exec"), {"model": network, "validation_batches": [batch]})
    for line in filter(None, capsys.readouterr().out.splitlines()):
        assert line in DROP_IN.partition(example)[2]
