"""The example searches run, and `--accelerate` changes nothing but their speed."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from fresh_process import run_python
from places import ROOT

import vpdarts_fast

EXAMPLES = ROOT / "examples"

pytestmark = [
    pytest.mark.skipif(not EXAMPLES.is_dir(), reason="examples/ is not there"),
    pytest.mark.usefixtures("one_thread"),
]

MODULES = {"nas_bench_201": 5, "darts": 48}
"""How many are fused: cells and residual blocks, or mixed operations and what is in front of cells."""


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.dtype]:
    """The examples' own; in float64, what has no kernel is served by the operations of PyTorch."""
    if request.param == torch.float64:
        accelerate = partial(vpdarts_fast.accelerate, backend="pytorch")
        monkeypatch.setattr(vpdarts_fast, "accelerate", accelerate)
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", MODULES)
def test_the_one_line_changes_no_loss(
    name: str, dtype: torch.dtype, capsys: pytest.CaptureFixture[str], calls: list[str]
) -> None:
    """Those of whole searches in float64; in float32, where rounding grows, that of the first step."""
    module = example(name)
    exact = dtype == torch.float64
    flags = ["--images", "32", *([] if exact else ["--epochs", "1"])]
    expected = module.main(flags)
    before = capsys.readouterr().out
    assert not calls
    found = module.main([*flags, "--accelerate"])
    report, *after = capsys.readouterr().out.splitlines()
    assert calls and report == f"{MODULES[name]} of {MODULES[name]} modules fused"
    assert all(map(math.isfinite, expected))
    assert found == pytest.approx(expected, rel=1e-9 if exact else 1e-4)
    if exact:
        assert len(expected) > 1 and after[-1] == before.splitlines()[-1]  # the genotype


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("flags", [[], ["--accelerate"]], ids=["before", "after"])
def test_they_run_as_scripts(name: str, flags: list[str], tmp_path: Path) -> None:
    command = [str(EXAMPLES / f"{name}.py"), "--epochs", "1", "--images", "32", *flags]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    status, output = run_python(command, tmp_path, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    assert status == 0, output
    assert re.search(r"^\d+\.\d{3} s per step$", output, flags=re.MULTILINE)
    assert ("modules fused" in output) == bool(flags)


@pytest.mark.parametrize("name", MODULES)
def test_their_seed_decides_what_they_find(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = example(name)
    flags = ["--epochs", "1", "--images", "32"]
    torch.rand(1)  # whatever came before
    assert module.main(flags) == module.main(flags)
    assert module.main(flags) != module.main([*flags, "--seed", "1"])
