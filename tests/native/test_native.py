"""The native extension: the choice of an instruction set, its build facts, and life without it."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import fresh_process
import pytest
import torch
from places import ROOT

import vpdarts_fast
from vpdarts_fast import native, ops

needs_extension = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))

# Loads the extension by its path: a new process per case is needed, the whole package is not. The
# extension finds PyTorch's libraries because torch has loaded them.
CHOOSE_ISA = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for attempt in range(2):
    try:
        print(module.cpu_isa())
    except ValueError as error:
        print("ValueError:", error)
"""


def run_python(*args: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs this Python; stdout holds stderr too. An empty value in `env` removes the variable."""
    merged = {key: value for key, value in {**os.environ, **env}.items() if value or key not in env}
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=merged,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """(program, *arguments, **environment) -> its exit status and output, in a fresh process."""
    monkeypatch.delenv("VPDARTS_CPU_ISA", raising=False)
    program = tmp_path / "program.py"

    def run(text: str, *arguments: str, **environment: str) -> tuple[int, str]:
        program.write_text(text)
        return fresh_process.run_python([str(program), *arguments], ROOT, environment)

    return run


@pytest.fixture
def chosen_isa(run_text: Run) -> Callable[[str], str]:
    """What cpu_isa() answers under this VPDARTS_CPU_ISA, if any; asked twice, the answers must agree."""
    path = str(importlib.import_module("vpdarts_fast._C").__file__)

    def choose(request: str) -> str:
        status, output = run_text(CHOOSE_ISA, path, **({"VPDARTS_CPU_ISA": request} if request else {}))
        assert status == 0, output
        first, second = output.splitlines()
        assert first == second
        return first

    return choose


@needs_extension
def test_supported_isas_are_those_of_the_cpu() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("needs /proc/cpuinfo to compare with")
    flags: set[str] = set()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.split(":")[1].split())
            break
    expected = ["baseline"]
    if {"avx2", "fma"} <= flags:
        expected.append("avx2")
        if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
            expected.append("avx512")
    assert native.supported_isas() == expected


@needs_extension
def test_the_fastest_isa_is_chosen_by_default(chosen_isa: Callable[[str], str]) -> None:
    assert chosen_isa("") == native.supported_isas()[-1]


@needs_extension
def test_every_supported_isa_can_be_requested(chosen_isa: Callable[[str], str]) -> None:
    for isa in native.supported_isas():
        assert chosen_isa(isa) == isa


@needs_extension
@pytest.mark.parametrize("request_", ["sse9", "AVX2", "baseline "])
def test_an_unknown_isa_is_refused_with_the_choices(request_: str, chosen_isa: Callable[[str], str]) -> None:
    answer = chosen_isa(request_)
    assert answer.startswith("ValueError: VPDARTS_CPU_ISA must be one of baseline")
    assert all(isa in answer for isa in native.supported_isas())
    assert repr(request_) in answer


@needs_extension
def test_an_isa_that_this_cpu_lacks_is_refused(chosen_isa: Callable[[str], str]) -> None:
    lacking = [isa for isa in native.build_info()["isas"] if isa not in native.supported_isas()]
    if not lacking:
        pytest.skip("this CPU supports every instruction set of the build")
    for isa in lacking:
        assert chosen_isa(isa).startswith("ValueError: VPDARTS_CPU_ISA must be one of baseline")


@needs_extension
def test_a_refused_isa_is_a_user_error_in_python(run_text: Run) -> None:
    code = """
from vpdarts_fast import native
from vpdarts_fast.errors import UserError
try:
    native.cpu_isa()
except UserError as error:
    print("UserError:", error)
"""
    _, output = run_text(code, VPDARTS_CPU_ISA="sse9")
    assert output.startswith("UserError: VPDARTS_CPU_ISA must be one of baseline")


@needs_extension
@pytest.mark.parametrize("channels", [1, 4, 5, 8, 9, 16, 17])
def test_channels_are_padded_to_vectors_that_they_fill_where_these_are_narrower(channels: int) -> None:
    widest = {"baseline": 4, "avx2": 8, "avx512": 16}[native.cpu_isa()]
    lanes = min(8, widest) if channels <= 8 else widest
    assert native.cpu_lanes(channels) == lanes
    x = torch.randn(1, 2, channels, 5, 5)
    weights = torch.randn(1, channels, channels, 1, 1), torch.randn(1, channels, channels, 3, 3)
    node, _, _ = ops.mixed_cell(x, *weights, torch.full((1, 1, 5), 0.2), backend="cpu")
    assert node.stride()[2:] == (1, 5 * (pixel := -(-channels // lanes) * lanes), pixel)


@needs_extension
def test_build_info() -> None:
    info = native.build_info()
    assert set(info) == set(native.BuildInfo.__annotations__)
    assert info["build_type"] == "Release"
    assert info["compiler"].split()[0] in ("GNU", "Clang")
    assert info["isas"][0] == "baseline"
    assert set(native.supported_isas()) <= set(info["isas"])
    assert isinstance(info["cuda"], bool)
    assert f'version = "{info["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert info["version"] == version("vpdarts-fast") == vpdarts_fast.__version__


def test_without_the_extension_there_is_one_message_how_to_build_it(run_text: Run) -> None:
    code = """
import sys
sys.modules["vpdarts_fast._C"] = None  # makes the import fail, as if it were not built
from vpdarts_fast import native
from vpdarts_fast.errors import UserError
assert not native.available()
for function in (native.cpu_isa, native.supported_isas, native.build_info):
    try:
        function()
    except UserError as error:
        assert str(error) == native.why_not()
    else:
        raise SystemExit(f"{function} did not raise")
print(native.why_not())
"""
    status, output = run_text(code)
    assert status == 0, output
    assert len(output.splitlines()) == 1, "importing must not print"
    assert "make native" in output
    assert "g++" in output


@needs_extension
def test_with_the_extension_there_is_nothing_to_say() -> None:
    assert native.why_not() is None


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """A copy of what an installation reads, so that the builds here do not touch the real one."""
    pytest.importorskip("pybind11", reason="building the package needs pybind11")
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("csrc", "vpdarts_fast"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "build_backend.py", "CMakeLists.txt", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tree)
    return tree


def test_without_a_compiler_the_package_installs_and_says_so(source_tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip_install = ["-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation", "--target", str(target)]
    result = run_python(*pip_install, ".", cwd=source_tree, VPDARTS_NATIVE="auto", CXX="/no/such/compiler")
    assert result.returncode == 0, result.stdout
    assert 'building extension "vpdarts_fast._C" failed: needs a C++17 compiler' in result.stdout
    installed = {path.name for path in (target / "vpdarts_fast").iterdir()}
    assert {"native.py", "py.typed", "_C.pyi"} <= installed
    assert not any(name.endswith(".so") for name in installed)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("on", "needs a C++17 compiler"),
        ("yes", "VPDARTS_NATIVE must be auto, on or off; got 'yes'"),
    ],
)
def test_native_on_without_a_compiler_and_a_wrong_mode_fail(
    source_tree: Path, mode: str, message: str
) -> None:
    result = run_python(
        "setup.py", "-q", "build_ext", cwd=source_tree, VPDARTS_NATIVE=mode, CXX="/no/such/compiler"
    )
    assert result.returncode != 0
    assert message in result.stdout


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("on", "VPDARTS_CUDA=on: no working nvcc"),
        ("yes", "VPDARTS_CUDA must be auto, on or off; got 'yes'"),
    ],
)
def test_cuda_on_without_nvcc_and_a_wrong_mode_fail(source_tree: Path, mode: str, message: str) -> None:
    result = run_python(
        "setup.py", "-q", "build_ext", cwd=source_tree, VPDARTS_CUDA=mode, CUDACXX="/no/such/nvcc"
    )
    assert result.returncode != 0
    assert message in result.stdout


def test_native_off_builds_nothing(source_tree: Path) -> None:
    result = run_python("setup.py", "build_ext", cwd=source_tree, VPDARTS_NATIVE="off")
    assert result.returncode == 0, result.stdout
    assert "VPDARTS_NATIVE=off" in result.stdout
    assert not list((source_tree / "build").rglob("*.so"))
