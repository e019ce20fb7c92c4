"""The work of a few calls is what was recorded: a gate for speed that no noise moves.

Who changes how much work there is records it anew, so that the change is seen:
`python tests/support/work_counts.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import work_counts
from cpu_features import needs_avx2
from places import ROOT
from work_counts import ROADS, NativeProgram, Road, changes, record

from vpdarts_fast import native, ops

HINT = "if that is meant, python tests/support/work_counts.py records it"

pytestmark = pytest.mark.usefixtures("one_thread")

needs_extension = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> NativeProgram:
    if work_counts.COMPILER is None or work_counts.VALGRIND is None:
        pytest.skip("no valgrind, or no C++ compiler")
    if work_counts.compiler_version() != record()["compiler"]:
        pytest.skip(
            f"other compilers emit other instructions: counts were recorded with {record()['compiler']}"
        )
    return NativeProgram(tmp_path_factory.mktemp("kernel_work"))


@needs_avx2
def test_native_code(program: NativeProgram) -> None:
    changed = list(map(str, changes(record()["native"], program.counts())))
    assert not changed, HINT


@needs_avx2
def test_native_code_that_copies_once_more_is_seen(program: NativeProgram) -> None:
    name = "csrc/cpu/ops/mixed_cell_passes.cpp"
    head = "void MixedCellPasses::forward(const ValuePlan& plan, MixedCellState& state) const {\n"
    text = (ROOT / name).read_text()
    assert head in text
    added = "  std::vector<float> copy(state.node[0][0], state.node[0][0] + sizes_.node_floats());\n"
    added += '  asm volatile("" : : "r"(copy.data()) : "memory");\n'
    planted = program.with_source(name, text.replace(head, head + added)).counts()
    found = list(changes(record()["native"], planted))
    assert [change.name for change in found] == ["mixed_cell_forward, memory calls"]


def python_changes(name: str, part: str) -> list[str]:
    """Of "calls" or "operations" of a road."""
    counted = Road().count(ROADS[name]())
    return list(map(str, changes(record()["python"][name][part], counted[part], part)))


@needs_extension
@pytest.mark.parametrize("name", ROADS)
def test_calls_in_python(name: str) -> None:
    changed = python_changes(name, "calls")
    assert not changed, HINT


@needs_extension
@pytest.mark.parametrize("name", ROADS)
def test_operations(name: str) -> None:
    if work_counts.torch_version() != record()["torch"]:
        pytest.skip(f"another PyTorch has other operations: counts were recorded with {record()['torch']}")
    changed = python_changes(name, "operations")
    assert not changed, HINT


@needs_extension
def test_a_copy_and_a_call_more_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every call of an op, of which a training step has six."""
    mixed_cell = ops.mixed_cell

    def slower(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if native.available() and native.available():
            x = x.clone()
        return mixed_cell(x, *args, **kwargs)

    monkeypatch.setattr(ops, "mixed_cell", slower)
    assert python_changes("training step", "calls")
    changed = python_changes("training step", "operations")
    assert any(change.startswith("operations, aten::clone: 0 recorded, ") for change in changed), changed


def test_what_counts_as_a_change() -> None:
    recorded = {"one": {"instructions": 1000, "memory calls": 3}, "two": {"calls": {"all": 100}}}
    same = {"one": {"instructions": 1009, "memory calls": 3}, "two": {"calls": {"all": 99}}}
    assert not list(changes(recorded, same))
    other = {"one": {"instructions": 1011, "memory calls": 4}, "three": {"operations": {"aten::clone": 1}}}
    assert [str(change) for change in changes(recorded, other)] == [
        "one, instructions: 1,000 recorded, 1,011 counted",
        "one, memory calls: 3 recorded, 4 counted",
        "three, operations, aten::clone: 0 recorded, 1 counted",
        "two, calls, all: 100 recorded, 0 counted",
    ]


def test_a_dump_of_another_tool_version_is_read(tmp_path: Path) -> None:
    """Costs of other objects and of calls are not the program's own."""
    text = """
ob=/program
fl=a.cpp
fn=work_one
10 5
cob=/libc.so
cfn=__memset_avx2_unaligned
calls=3 0
11 400
cfn=inner
calls=1 0
12 7
fn=inner
20 7
ob=/libc.so
fn=__memset_avx2_unaligned
0 400
"""
    assert work_counts.counts_of_dump(text, "/program") == ("one", {"instructions": 12, "memory calls": 3})
