"""What the README shows works."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from vpdarts_fast.search.__main__ import Command
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.spaces.nas_bench_201 import Genotype

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_api_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    architecture, index = capsys.readouterr().out.split()
    assert Genotype.from_index(int(index)) == Genotype.from_string(architecture)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_every_flag_it_names_exists() -> None:
    known = {field.name.replace("_", "-") for field in (*fields(Command), *fields(SearchConfig))}
    known |= {"no-fused", "help", "seed", "benchmark-only", "quick", "csv"}
    assert set(re.findall(r"--([a-z][a-z-]+)", README)) <= known
