"""What a Markdown file names is there: files, modules, names in the code, flags, targets of make."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from torch.distributed.run import get_args_parser

from vpdarts_fast.analysis import cost_model, kendall
from vpdarts_fast.analysis.cost.roofline import Assumptions
from vpdarts_fast.paper import __main__ as paper
from vpdarts_fast.report import __main__ as report
from vpdarts_fast.search.arguments import KINDS, Command
from vpdarts_fast.search.config import SearchConfig, flag
from vpdarts_fast.search.tabular import __main__ as tabular
from vpdarts_fast.train import predict
from vpdarts_fast.train.config import TrainConfig

FOLDERS = ("benchmarks", "csrc", "docs", "examples", "tests", "vpdarts_fast")
FILES = sorted([*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))])

SUFFIXES = (".py", ".md", ".cpp", ".h", ".cu", ".sh", ".cmake", ".toml", ".in", ".txt")
MADE = (".venv", "build", "runs", "data")
"""What only comes to be on the user's machine."""
FOREIGN_FLAGS = {
    "--benchmark-only", "--help", "--build", "--cmakedir", "--no-build-isolation", "--no-index",
    "--find-links", "--system-site-packages", "--dest", "--only-binary",
    "--overlap", "--nodes", "--ntasks", "--exclude", "--array", "--wrap", "--head", "--port", "--block",
    "--address",
}  # fmt: skip
"""Flags of pytest, pip and CMake; of SLURM and Ray."""

FOREIGN_NAMES = {
    "ATEN_CPU_CAPABILITY", "DataParallel", "DistributedDataParallel", "ONEDNN_MAX_CPU_ISA", "forward_gdas",
    "sep_conv_7x7",
}  # fmt: skip
"""Of PyTorch and of DARTS code bases."""


@cache
def source_files() -> dict[Path, str]:
    """Everything that may define a name; of the tests what they share."""
    kinds = {".py", ".pyi", ".cpp", ".h", ".cu", ".cmake", ".in", ".sh", ".txt", ".toml", ""}
    paths = [path for path in ROOT.iterdir() if path.suffix in kinds and path.is_file()]
    for name in FOLDERS:
        paths += [path for path in (ROOT / name).rglob("*") if path.suffix in kinds and path.is_file()]
    paths = [path for path in paths if not path.name.startswith("test_") or "benchmarks" in path.parts]
    return {path: path.read_text() for path in paths if "__pycache__" not in path.parts}


@cache
def words() -> frozenset[str]:
    """Every identifier of the sources, and a few of other people's."""
    return frozenset(FOREIGN_NAMES).union(
        word for text in source_files().values() for word in re.findall(r"\w+", text)
    )


@cache
def flags() -> frozenset[str]:
    """Every flag of every command line here."""
    groups: list[Any] = [Command, kendall.Command, cost_model.Command, Assumptions]
    groups += [type(getattr(SearchConfig(), field.name)) for field in fields(SearchConfig)[1:]]
    for kind in KINDS.values():
        groups += [kind.named(name) for name in kind.names()]
    trained = TrainConfig()
    groups += [type(getattr(trained, name)) for name in ("network", "training", "execution", "reporting")]
    known = {flag(field.name) for group in groups for field in fields(group)} | {"--seed", "--preset"}
    known |= {f"--no-{name.removeprefix('--')}" for name in known}
    for command in (tabular, paper, report, predict):
        known |= {flag(field.name) for field in fields(command.Arguments)}
    for method in tabular.Arguments().all_methods():  # a group of flags each
        settings = [field.name.replace("_", "-") for field in fields(method)]
        known |= {f"--{method.name}.{part}{name}" for name in settings for part in ("", "no-")}
    known |= {option for action in get_args_parser()._actions for option in action.option_strings}  # torchrun
    for text in source_files().values():
        known |= set(re.findall(r"(?:add_argument|addoption)\(\s*\"(--[\w-]+)\"", text))
    known |= set(re.findall(r"addoption\(\s*\"(--[\w-]+)\"", (ROOT / "tests" / "conftest.py").read_text()))
    for script in ROOT.glob("*/*.sh"):
        known |= set(re.findall(r" = (--[\w-]+) \]", script.read_text()))
    return frozenset(known | FOREIGN_FLAGS)


def spans(text: str) -> Iterator[str]:
    """What stands in backticks, fenced blocks aside."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for span in re.findall(r"`([^`]+)`", text):
        yield span.replace("\\|", "|").replace("\n", " ")


def finds(folder: Path, name: str) -> bool:
    """Whether a path exists below one of the folders that a file may speak from; <op> and * stand for any."""
    pattern = re.sub(r"<\w+>", "*", name).rstrip("/")
    if pattern.partition("/")[0] in MADE:
        return True
    for base in (ROOT, folder):
        if next(base.glob(pattern), None) is not None:
            return True
    if "/" in pattern:
        return False
    return any(path.match(pattern) or path.match(f"{pattern}.in") for path in tracked())


@cache
def tracked() -> tuple[Path, ...]:
    return (
        *ROOT.iterdir(),
        *(path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()),
    )


def resolves(dotted: str) -> bool:
    """Whether a dotted name can be imported, the last parts as attributes."""
    parts = dotted.split(".")
    for split in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        try:
            for part in parts[split:]:
                value = getattr(value, part)
        except AttributeError:
            return False
        return True
    return dotted == "vpdarts_fast._C"  # which may not be built


def missing(path: Path, text: str) -> list[str]:
    """Everything that a Markdown file names and that is not there."""
    complaints = []
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        if not (path.parent / link).exists():
            complaints.append(f"link {link}")
    for name in set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", text)) - flags():
        complaints.append(f"flag {name}")
    for module in re.findall(r"python -m (vpdarts_fast[\w.]*)", text):
        if not resolves(module.rstrip(".")):
            complaints.append(f"module {module}")
    for target in re.findall(r"(?m)(?:`|^ *)(?:[A-Z_]+=\S+ )?make ([a-z]+)", text):
        if not re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE):
            complaints.append(f"make {target}")
    for span in spans(text):
        complaints += missing_in_span(path.parent, span)
    for name, file in re.findall(r"`([A-Za-z_]\w*)` in `([\w./]+\.\w+)`", text):
        if (ROOT / file).is_file() and not re.search(rf"\b{name}\b", (ROOT / file).read_text()):
            complaints.append(f"{name} in {file}")
    return complaints


def missing_in_span(folder: Path, span: str) -> list[str]:
    if re.fullmatch(r"[\w./*<>-]+", span) and not span.startswith(("<", "-", ".")):
        if span.endswith((".json", ".jsonl", ".pt", ".npz", ".csv", ".gz")):
            parts = re.split(r"NN|<\w+>|\*", span.rpartition("/")[2])  # written by the program, numbers aside
            known = any(all(part in text for part in parts) for text in source_files().values())
            return [] if known or span.endswith((".npz", ".gz")) else [f"file {span}"]
        if "/" in span or span.endswith(SUFFIXES) or span.endswith(".*"):
            return [] if finds(folder, span) else [f"file {span}"]
    for file in re.findall(r"(?<![\w.])[\w/]+/[\w/]+\.(?:py|sh|cpp|cu|h)\b", span):
        if not finds(folder, file):
            return [f"file {file}"]
    name = re.match(r"[A-Za-z_][\w.]*", span)
    if name is None or not re.fullmatch(r"[\w.]+(?:[(\[=].*)?", span):
        return []  # a sentence, a formula, something printed
    dotted = name[0].rstrip(".")
    if dotted.startswith(("vpdarts_fast.", "torch.")):
        return [] if resolves(dotted) else [f"name {dotted}"]
    return [] if dotted.rpartition(".")[2] in words() else [f"name {dotted}"]


def test_there_are_markdown_files() -> None:
    assert {"README.md", "docs/decisions.md", "csrc/README.md"} <= {str(p.relative_to(ROOT)) for p in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_that_a_markdown_file_names_is_there(path: Path) -> None:
    assert not missing(path, path.read_text())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("Add it to `OPS` in `vpdarts_fast/native.py`.", "OPS in vpdarts_fast/native.py"),
        ("See `csrc/cpu/nowhere.h`.", "file csrc/cpu/nowhere.h"),
        ("See `nowhere.cpp`.", "file nowhere.cpp"),
        ("See `cpu/nothing/<op>.cpp`.", "file cpu/nothing/<op>.cpp"),
        ("Run `pytest benchmarks/test_nothing.py --benchmark-only`.", "file benchmarks/test_nothing.py"),
        ("See `nothing.json`.", "file nothing.json"),
        ("Call `vpdarts_fast.native.cpu_isas()`.", "name vpdarts_fast.native.cpu_isas"),
        ("Call `vpdarts_fast.nowhere.thing`.", "name vpdarts_fast.nowhere.thing"),
        ("Call `torch.compyle`.", "name torch.compyle"),
        ("It is `masked_cell_refuses_all`.", "name masked_cell_refuses_all"),
        ("With `memory_bugdet=5`.", "name memory_bugdet"),
        ("Give `--bactch-size 5`.", "flag --bactch-size"),
        ("Run `python -m vpdarts_fast.analyse RUN`.", "module vpdarts_fast.analyse"),
        ("Run `make everything`.", "make everything"),
        ("```sh\nmake nonsense\n```", "make nonsense"),
        ("See [there](nowhere.md).", "link nowhere.md"),
    ],
)
def test_what_is_not_there_is_found(text: str, complaint: str) -> None:
    assert complaint in missing(ROOT / "csrc" / "README.md", text)
