"""benchmarks/gpu.sh and its parts, on a machine that need not have a GPU."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from vpdarts_fast import ops
from vpdarts_fast.search.config import SearchConfig

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the cost model needs Triton"),
    pytest.mark.usefixtures("one_thread", "calibrate_on_few"),
]


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The benchmark as a module."""
    return importlib.import_module("gpu")


@pytest.fixture
def tiny(gpu: Any) -> Any:
    config = SearchConfig(channels=4, cells_per_stage=1, batch_size=8)
    return gpu.Scale(config, images=25, size=8, stages=((4, 8),), rounds=2)


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU here")
def test_says_that_there_is_no_gpu() -> None:
    run = subprocess.run([str(ROOT / "benchmarks/gpu.sh")], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr == "error: no nvidia-smi: this needs an NVIDIA GPU and its driver\n" and not run.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_measures_nothing_without_a_gpu(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "finds no CUDA device" in capsys.readouterr().err


def test_ops(gpu: Any, tiny: Any) -> None:
    """Every op of the searches is right, timed and, where the model knows its launches, predicted."""
    rows = list(gpu.ops_part(CPU, tiny, "NVIDIA H100 80GB HBM3"))
    assert json.loads(json.dumps(rows)) == rows
    assert {row["op"] for row in rows} == set(gpu.backends.OPS) - {"mixed_op"}
    for row in rows:
        assert row["correct"] and row["median_s"] > 0, row
        assert ("predicted_s" in row) == (row["backend"] == "pytorch")
        if "predicted_s" in row:
            assert 0 < row["predicted_s"]["busy"] <= row["predicted_s"]["one_by_one"]
            assert row["gb_per_s"] > 0 and row["tflop_per_s"] > 0 and row["kernels"] > 0


def test_a_wrong_result_is_not_timed(gpu: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    relu_conv = ops.relu_conv

    def wrong(*args: Any, **kwargs: Any) -> Any:
        return [[out * 1.1 for out in some] for some in relu_conv(*args, **kwargs)]

    monkeypatch.setattr(ops, "relu_conv", wrong)
    monkeypatch.setattr(gpu.backends, "OPS", ("relu_conv",))
    rows = list(gpu.ops_part(CPU, tiny, ""))
    assert rows and not any(row["correct"] or "median_s" in row for row in rows)
    assert gpu.verdict({"passed": True, "seconds": 1.0, "rows": rows}) == f"{len(rows)} WRONG, 1 s"


def test_training_and_leave_one_out(gpu: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain and fused agree; counts and predictions stand beside the times."""
    monkeypatch.setattr(gpu, "training_steps", lambda setting, fused: (gpu.Tally(), gpu.Tally()))
    monkeypatch.setattr(gpu, "evaluation", lambda setting, fused: gpu.Tally())
    training, evaluated = (
        list(part(CPU, tiny, "NVIDIA A100-SXM4-80GB")) for part in (gpu.training_part, gpu.leave_one_out_part)
    )
    assert [(row["phase"], row["fused"]) for row in training] == [
        ("weights", False), ("alpha", False), ("weights", True), ("alpha", True),
    ]  # fmt: skip
    assert [row["fused"] for row in evaluated] == [False, True]
    for row in (*training, *evaluated):
        assert row["correct"] and row["median_s"] > 0 and "predicted_s" in row, row


def test_a_part_that_fails_or_hangs_is_reported(gpu: Any) -> None:
    python = gpu.sys.executable
    passed = gpu.finished([python, "-c", "print(6 * 7)"], 60)
    assert passed["passed"] and passed["output"] == "42\n" and gpu.verdict(passed).startswith("right")
    failed = gpu.finished([python, "-c", "raise ValueError('oh')"], 60)
    assert not failed["passed"] and "oh" in failed["output"] and gpu.verdict(failed).startswith("FAILED")
    assert gpu.finished([python, "-c", "import time; time.sleep(60)"], 1)["output"] == "more than 1 seconds"


def test_the_report(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part writes its rows as it goes; the report has facts, correctness and every part."""

    def rows(device: torch.device, scale: Any, name: str) -> Any:
        yield {"op": "one", "correct": True}
        assert json.loads(file.read_text()) == [{"op": "one", "correct": True}]
        raise ValueError("oh")

    file = tmp_path / "rows.json"
    monkeypatch.setitem(gpu.PARTS, "ops", rows)
    with pytest.raises(ValueError, match="oh"):
        gpu.run_part("ops", CPU, None, file)

    def finished(command: list[str], limit: int) -> dict[str, Any]:
        if "--part" in command:
            Path(command[-1]).write_text(file.read_text())
        return {"passed": True, "seconds": 2.0, "output": ""}

    monkeypatch.setattr(gpu, "finished", finished)
    out = tmp_path / "gpu.json"
    assert gpu.run_all(CPU, out)
    report = json.loads(out.read_text())
    assert set(report) == {"facts", *gpu.LIMITS} == {"facts", "contract", *gpu.PARTS}
    assert report["facts"]["versions"]["torch"] == torch.__version__
    assert report["training"]["rows"] == [{"op": "one", "correct": True}]
    assert sum(gpu.LIMITS.values()) < 500, "the limit in gpu.sh"
