"""Every command that a message of the program names is one that runs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from places import ROOT
from search_commands import TINY, stop_after

from vpdarts_fast import native
from vpdarts_fast.errors import UserError
from vpdarts_fast.search import running
from vpdarts_fast.search.__main__ import main

pytestmark = pytest.mark.usefixtures("one_thread")

SOURCES = sorted([*(ROOT / "vpdarts_fast").rglob("*.py"), ROOT / "setup.py", ROOT / "build_backend.py"])
PROJECT = (ROOT / "pyproject.toml").read_text()


def strings(path: Path) -> Iterator[str]:
    """Every string in a file; what is filled in stands as X."""
    tree = ast.parse(path.read_text())
    inner = {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "X" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


TEXTS = [text for path in SOURCES for text in strings(path)]


def named(pattern: str) -> list[str]:
    """What a pattern finds in all strings, once each."""
    return sorted({found for text in TEXTS for found in re.findall(pattern, text)})


MODULES = [name.rstrip(".") for name in named(r"python -m (vpdarts_fast[\w.]*)")]
REQUIREMENTS = named(r"pip install (?:-\S+ )*'?([\w-]+(?:\[\w+\])?|\.)'?")
TARGETS = named(r"`(?:[A-Z_]+=\S+ )?make (\w+)`")


def test_messages_name_commands() -> None:
    assert {"vpdarts_fast.search", "vpdarts_fast.report"} <= set(MODULES)
    assert {".", "vpdarts-fast[tensorboard]", "torch"} <= set(REQUIREMENTS) and TARGETS == ["native"]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_that_is_named_runs(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    if spec.submodule_search_locations:
        module += ".__main__"
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).main(["--help"])
    assert stopped.value.code == 0 and "usage" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_every_requirement_that_is_named_exists(requirement: str) -> None:
    name, _, extra = requirement.rstrip("]").partition("[")
    if name in (".", "X"):  # the source tree, and tools: see below
        return
    if name.replace("_", "-") == "vpdarts-fast":
        assert extra in metadata.metadata("vpdarts-fast").get_all("Provides-Extra", [])
        return
    (build,) = re.findall(r"^requires = (.*)$", PROJECT, flags=re.MULTILINE)
    known = [*re.findall(r'"([^"]+)"', build), *(metadata.requires("vpdarts-fast") or [])]
    assert name in {re.split(r"[>=<; ]", requirement)[0] for requirement in known}


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_of_make_that_is_named_exists(target: str) -> None:
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_the_command_to_continue_continues(
    tmp_path: Path, no_pictures: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my runs" / "first one"
    with monkeypatch.context() as patched:
        stop_after(3, patched)
        assert main([*TINY, "--out", str(folder)]) == 130
    found = re.search(r"continue with: python -m vpdarts_fast.search (.*)", capsys.readouterr().out)
    assert found
    assert main(shlex.split(found[1])) == 0
    assert (folder / "result.json").exists()


def test_the_command_to_draw_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise UserError("the pencil broke")

    folder = tmp_path / "my run"
    with monkeypatch.context() as patched:
        patched.setattr(running, "draw_pictures", fail)
        assert main([*TINY, "--out", str(folder)]) == 0
    found = re.search(r"python -m vpdarts_fast.report (.*)", capsys.readouterr().err)
    assert found
    assert importlib.import_module("vpdarts_fast.report.__main__").main(shlex.split(found[1])) == 0
    assert (folder / "cell.svg").exists()


# `pip install .`, which builds in isolation from the packages that are installed.

ASK = """
import sys
sys.path.insert(0, {root!r})
import sysconfig
real = sysconfig.get_path
sysconfig.get_path = lambda kind: {site!r} or real(kind)
import build_backend
print(build_backend.installed_torch())
print(build_backend._torch_requirement())
"""


def ask_backend(site: Path | None, setuptools: Path, **environment: str) -> list[str]:
    """What the backend finds where no package can be imported but setuptools, as pip's isolation has it."""
    code = ASK.format(root=str(ROOT), site=str(site) if site else None)
    kept = {name: value for name, value in os.environ.items() if name != "VPDARTS_NATIVE"}
    run = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**kept, **environment, "PYTHONPATH": str(setuptools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.fixture
def setuptools_alone(tmp_path: Path) -> Path:
    """A folder of packages that holds setuptools only."""
    folder = tmp_path / "overlay"
    folder.mkdir()
    for name in ("setuptools", "_distutils_hack", "pkg_resources"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            (folder / name).symlink_to(Path(spec.origin).parent)
    return folder


def make_torch(folder: Path, version: str) -> Path:
    (folder / "torch" / "include").mkdir(parents=True)
    (folder / f"torch-{version}.dist-info").mkdir()
    (folder / f"torch-{version}.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")
    return folder


def test_an_isolated_build_finds_the_pytorch_that_is_installed(
    tmp_path: Path, setuptools_alone: Path
) -> None:
    site = make_torch(tmp_path / "site", "2.11.0+cu130")
    assert ask_backend(site, setuptools_alone) == [str(site / "torch"), "[]"]


@pytest.mark.parametrize("version", [None, "2.9.1", "1.13.0"])
def test_an_isolated_build_asks_for_pytorch_where_there_is_none_to_build_with(
    version: str | None, tmp_path: Path, setuptools_alone: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    if version is not None:
        make_torch(site, version)
    assert ask_backend(site, setuptools_alone) == ["None", "['torch>=2.10']"]
    assert ask_backend(site, setuptools_alone, VPDARTS_NATIVE="off") == ["None", "[]"]


def test_the_oldest_pytorch_is_that_of_the_package() -> None:
    assert 'dependencies = [\n    "torch>=2.10",' in PROJECT
    assert 'build-backend = "build_backend"\nbackend-path = ["."]' in PROJECT


@pytest.mark.skipif(
    os.environ.get("VPDARTS_ISOLATED_BUILD") != "1",
    reason="an isolated build takes minutes and fetches packages: VPDARTS_ISOLATED_BUILD=1 runs it",
)
def test_pip_install_in_isolation_builds_the_kernels(tmp_path: Path) -> None:
    """What `native.why_not` advises."""
    tree = tmp_path / "tree"
    names = ("csrc", "vpdarts_fast", "pyproject.toml", "setup.py", "build_backend.py", "CMakeLists.txt",
             "LICENSE", "README.md", "MANIFEST.in")  # fmt: skip
    tree.mkdir()
    for name in names:
        subprocess.run(["cp", "-r", str(ROOT / name), str(tree)], check=True)
    for built in (tree / "vpdarts_fast").glob("_C*.so"):
        built.unlink()
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(tmp_path / "site"), "."]
    subprocess.run(
        command, cwd=tree, env={**os.environ, "VPDARTS_NATIVE": "on", "PYTHONPATH": ""}, check=True
    )
    code = "from vpdarts_fast import native; print(native.why_not(), native.cpu_isa(), native.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True,
                         capture_output=True, text=True)  # fmt: skip
    assert run.stdout.startswith("None ") and str(tmp_path / "site") in run.stdout


def test_the_advice_without_the_extension_is_that_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load_error", ImportError("it is not built"))
    assert "`VPDARTS_NATIVE=on pip install .`" in str(native.why_not())
