"""benchmarks/gpu.sh and its parts, on a machine that need not have a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT

from vpdarts_fast import ops
from vpdarts_fast.search.config import SearchConfig

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
    config = SearchConfig().replaced(channels=4, cells_per_stage=1, batch_size=8)
    return gpu.Scale(config, images=25, size=8, stages=((4, 8),), rounds=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_measures_nothing_without_a_gpu(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "finds no CUDA device" in capsys.readouterr().err


def test_ops(gpu: Any, tiny: Any) -> None:
    """Every op of the searches is right, timed and, where the model knows its launches, predicted."""
    rows = list(gpu.STAGES["ops-fp32"](CPU, tiny, "NVIDIA H200"))
    assert json.loads(json.dumps(rows)) == rows
    assert {row["op"] for row in rows} == set(gpu.registry.FUSED_OPS) - {"mixed_op", "relu_pointwise"}
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
    monkeypatch.setattr(gpu.registry, "FUSED_OPS", ("relu_conv",))
    rows = list(gpu.STAGES["ops-fp32"](CPU, tiny, ""))
    assert rows and not any(row["correct"] or "median_s" in row for row in rows)
    assert gpu.verdict({"passed": True, "seconds": 1.0, "rows": rows}) == f"{len(rows)} WRONG, 1 s"


def test_training_and_leave_one_out(gpu: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain and fused agree; counts and predictions stand beside the times."""
    monkeypatch.setattr(gpu, "training_steps", lambda setting, fused: (gpu.Tally(), gpu.Tally()))
    monkeypatch.setattr(gpu, "evaluation", lambda setting, fused: gpu.Tally())
    training, evaluated = (
        list(gpu.STAGES[stage](CPU, tiny, "NVIDIA A100-SXM4-80GB")) for stage in ("training", "leave-one-out")
    )
    assert [(row["phase"], row["fused"]) for row in training] == [
        ("weights", False), ("alpha", False), ("weights", True), ("alpha", True),
    ]  # fmt: skip
    assert [row["fused"] for row in evaluated] == [False, True]
    for row in (*training, *evaluated):
        assert row["correct"] and row["median_s"] > 0 and "predicted_s" in row, row


def test_a_process_that_fails_or_hangs_is_reported(gpu: Any) -> None:
    python = gpu.sys.executable
    passed = gpu.finished([python, "-c", "print(6 * 7)"], 60)
    assert passed["passed"] and passed["output"] == "42\n"
    assert gpu.verdict(passed | {"rows": []}).startswith("right")
    failed = gpu.finished([python, "-c", "raise ValueError('oh')"], 60)
    assert not failed["passed"] and "oh" in failed["output"]
    assert gpu.verdict(failed | {"rows": []}).startswith("FAILED")
    assert gpu.finished([python, "-c", "import time; time.sleep(60)"], 1)["output"] == "more than 1 seconds"


def test_a_stage_that_is_cut_off_loses_no_row(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row is in the stage's file before the next is measured, also where the process is killed."""
    file = tmp_path / "training.json"

    def rows(device: torch.device, scale: Any, name: str) -> Any:
        yield {"op": "one", "correct": True}
        assert json.loads(file.read_text())["rows"] == [{"op": "one", "correct": True}]
        yield {"op": "two", "correct": True}
        os._exit(9)

    monkeypatch.setitem(gpu.STAGES, "training", rows)

    def finished(command: list[str], limit: int) -> dict[str, Any]:
        if (child := os.fork()) == 0:
            gpu.write_rows("training", CPU, None, file)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        return {"passed": not killed, "seconds": 2.0, "output": "killed"}

    monkeypatch.setattr(gpu, "finished", finished)
    assert not gpu.run_stage("training", CPU, tmp_path, 60)
    report = json.loads(file.read_text())
    assert [row["op"] for row in report["rows"]] == ["one", "two"]
    assert report["stage"] == "training" and not report["passed"] and report["output"] == "killed"
    assert report["facts"]["versions"]["torch"] == torch.__version__


def test_the_reports(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file a stage, of all or those asked for; one alone has more time; errors decide the status."""
    ran: dict[str, int] = {}

    def finished(command: list[str], limit: int) -> dict[str, Any]:
        stage = command[command.index("--rows-of") + 1] if "--rows-of" in command else "contract"
        ran[stage] = limit
        return {"passed": stage != failing, "seconds": 2.0, "output": ""}

    failing = ""
    monkeypatch.setattr(gpu, "finished", finished)
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path / "all")]) == 0
    assert ran == gpu.LIMITS and set(ran) == {"contract", *gpu.STAGES}
    assert {path.stem for path in (tmp_path / "all").iterdir()} == set(ran)
    ran.clear()
    failing = "ops-tf32"
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path), "--stage", "ops-tf32"]) == 1
    assert ran == {"ops-tf32": 120} and "ops-tf32: FAILED, 2 s" in capsys.readouterr().out
    assert not json.loads((tmp_path / "ops-tf32.json").read_text())["passed"]


def test_limits(gpu: Any) -> None:
    """Each stage takes two minutes at most; the build and all of them take ten."""
    script = (ROOT / "benchmarks/gpu.sh").read_text()
    build, stages = (int(text.split()[0]) for text in script.split("timeout ")[1:])
    assert max(build, gpu.LIMIT_ALONE, *gpu.LIMITS.values()) <= 120
    assert sum(gpu.LIMITS.values()) < stages and build + stages < 600


ABSENT = ("tyro.extras", "torchvision", "sklearn", "matplotlib", "scipy.stats", "tensorboard", "nats_bench")


def test_needs_few_packages() -> None:
    """What the measurements import is there, or a wheel of Python alone; see benchmarks/gpu.sh."""
    code = "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split()))\nimport gpu, test_cuda"
    paths = os.pathsep.join(
        str(ROOT / folder) for folder in ("benchmarks", "tests/support", "tests/gpu", ".")
    )
    command = [sys.executable, "-c", code, " ".join(ABSENT)]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


SCRIPTS = {
    "benchmarks/gpu.py": "import sys, tyro; print('measures', *sys.argv[1:], tyro.__file__)",
    "setup.py": "import os, sys; print('builds', *sys.argv[1:], *(f'{n}={os.environ[n]}' for n in"
    " ('VPDARTS_NATIVE', 'VPDARTS_CUDA', 'TORCH_CUDA_ARCH_LIST') if n in os.environ))",
}
"""In place of the build and of the measurements: what they are called with."""

THERE = ("setuptools", "pybind11", "cmake", "ninja", "numpy", "pytest", "hypothesis")
"""Of what is needed, what the imitated machine's Python has."""


class Machine:
    """A copy of what gpu.sh needs, on a machine with a GPU and no network; its PyTorch is in a venv.

    Args:
        folder: for all of it.
        tools: names and standard output of programs that are on PATH beside the system's.
    """

    def __init__(self, folder: Path, tools: Mapping[str, str]) -> None:
        self.project, self.wheels = folder / "project", folder / "wheels"
        programs = folder / "programs"
        for path in (self.project / "benchmarks", self.wheels, programs):
            path.mkdir(parents=True)
        python = getattr(sys, "_base_executable", sys.executable)
        subprocess.run([python, "-m", "venv", "--without-pip", str(folder / "python")], check=True)
        (self.packages,) = (folder / "python").glob("lib/python*/site-packages")
        for name in ("benchmarks/gpu.sh", "pyproject.toml"):
            shutil.copy(ROOT / name, self.project / name)
        for name, code in SCRIPTS.items():
            (self.project / name).write_text(code)
        (self.project / "Makefile").write_text("setup:\n\t@echo make setup; exit 1\n")
        (self.packages / "torch.py").write_text("class cuda:\n    is_available = lambda: True\n")
        for name in THERE:
            (self.packages / f"{name}-99.dist-info").mkdir()
            (self.packages / f"{name}-99.dist-info/METADATA").write_text(metadata(name, "99"))
        for path in Path(importlib.util.find_spec("pip").origin).parents[1].glob("pip*"):  # type: ignore
            (self.packages / path.name).symlink_to(path)
        for name, output in tools.items():
            (programs / name).write_text(f"#!/bin/sh\necho '{output}'\n")
            (programs / name).chmod(0o755)
        wheel(self.wheels, "tyro", requires="shtab")
        wheel(self.wheels, "shtab")
        self.environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "PYTHON": str(folder / "python/bin/python"),
            "PIP_INDEX_URL": "http://127.0.0.1:9/",  # nobody listens
            "PIP_RETRIES": "0",
            "HOME": str(folder),
        }

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(self.project / "benchmarks/gpu.sh"), *arguments]
        merged = self.environment | environment
        return subprocess.run(command, env=merged, capture_output=True, text=True, timeout=120, check=False)


def metadata(name: str, version: str, requires: str = "") -> str:
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"


def wheel(folder: Path, name: str, requires: str = "") -> None:
    """A wheel of an empty module."""
    info = f"{name}-1.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", metadata(name, "1", requires))
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


machine = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
GPU = {"nvidia-smi": "9.0", "nvcc": ""}


@machine
def test_uses_the_python_that_is_there_without_a_network(tmp_path: Path) -> None:
    """Built in place for this GPU; of what is missing, all comes from the folder of wheels."""
    there = Machine(tmp_path, GPU)
    run = there.run("--stage", "training", "--stage", "contract", "results", VPDARTS_WHEELS=str(there.wheels))
    assert run.returncode == 0, run.stderr
    built, measured = run.stdout.splitlines()
    flags = "VPDARTS_NATIVE=on VPDARTS_CUDA=on TORCH_CUDA_ARCH_LIST=9.0"
    assert built == f"builds -q build_ext --inplace {flags}"
    *called, tyro = measured.split()
    assert " ".join(called) == "measures --out results --stage training --stage contract"
    assert Path(tyro).is_relative_to(there.project / "build/gpu-venv")
    assert not list(there.packages.glob("tyro*")), "the Python that was there stays as it was"


@machine
def test_says_what_is_missing_and_how_to_bring_it(tmp_path: Path) -> None:
    there = Machine(tmp_path, GPU)
    run = there.run()
    assert run.returncode == 2 and "tyro" in run.stderr and "VPDARTS_WHEELS" in run.stderr and not run.stdout


@machine
def test_without_nvcc_there_are_no_cuda_kernels(tmp_path: Path) -> None:
    there = Machine(tmp_path, {"nvidia-smi": "8.0"})
    run = there.run(VPDARTS_WHEELS=str(there.wheels))
    assert run.stdout.startswith("no nvcc: ") and "VPDARTS_CUDA=off\nmeasures --out gpu " in run.stdout


@machine
def test_a_python_without_a_gpu_is_an_error_or_is_set_up(tmp_path: Path) -> None:
    """One that was named is an error; else `make setup` makes one."""
    there = Machine(tmp_path, GPU)
    (there.packages / "torch.py").unlink()
    named = there.run()
    assert named.returncode == 2 and "finds no CUDA device" in named.stderr and not named.stdout
    assert there.run(PYTHON="").stdout == "make setup\n"


@machine
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi", path="/usr/bin:/bin"):
        pytest.skip("there may be a GPU here")
    run = Machine(tmp_path, {}).run()
    assert run.returncode == 2 and not run.stdout
    assert run.stderr == "error: no nvidia-smi: this needs an NVIDIA GPU and its driver\n"


@pytest.mark.parametrize("arguments", [["--stage"], ["--fast"]])
def test_flags_that_it_does_not_know(arguments: list[str]) -> None:
    run = subprocess.run([str(ROOT / "benchmarks/gpu.sh"), *arguments], capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.startswith("error: ")


def test_wheels_that_are_not_there() -> None:
    environment = os.environ | {"VPDARTS_WHEELS": "no/such/folder"}
    run = subprocess.run([str(ROOT / "benchmarks/gpu.sh")], env=environment, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == "error: VPDARTS_WHEELS names no folder; got no/such/folder\n"
