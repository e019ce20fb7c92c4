"""What the report of `accelerate` says is true, and helps."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceleration_cases import CHANNELS
from supernets import Cell, MixedOp, NumberedMixedOp, Residual, Style, darts_ops
from torch import Tensor, nn

import vpdarts_fast.acceleration
from vpdarts_fast import native
from vpdarts_fast.acceleration import Entry, accelerate
from vpdarts_fast.acceleration.report import HINTS

PACKAGE = Path(vpdarts_fast.acceleration.__file__).parent

needs_kernels = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))


@needs_kernels
@pytest.mark.parametrize(
    ("module", "native_operations", "operations"),
    [
        (MixedOp(darts_ops(CHANNELS, 1, Style())), 8, 8),
        (MixedOp(darts_ops(CHANNELS, 2, Style())), 8, 8),
        (MixedOp([Style().dense(CHANNELS, 3, 1), Style().dense(CHANNELS, 1, 1), nn.Identity()]), 2, 3),
        (MixedOp([*darts_ops(CHANNELS, 1, Style()), nn.Tanh()]), 8, 9),
        (Cell(CHANNELS, Style()), 30, 30),
        (Cell(CHANNELS, Style(affine=True)), 24, 30),  # trained edge by edge
        (Cell(CHANNELS, Style()).double(), 0, 30),
        (Residual(CHANNELS), 0, 0),
    ],
)
def test_operations_that_run_natively_are_counted(
    module: nn.Module, native_operations: int, operations: int
) -> None:
    report = accelerate(module)
    (entry,) = report.fused
    assert (entry.native, entry.operations) == (native_operations, operations)
    assert (f"{native_operations} of {operations} operations run natively" in str(report)) == (operations > 0)
    part = f", {native_operations} of {operations} operations natively"
    assert (part in str(report)) == (native_operations < operations)


def test_without_kernels_nothing_runs_natively() -> None:
    report = accelerate(MixedOp(darts_ops(CHANNELS, 1, Style())), backend="pytorch")
    assert str(report).splitlines()[:2] == ["1 of 1 modules fused", "0 of 8 operations run natively"]


def test_hooks_inside_are_named() -> None:
    module = MixedOp(darts_ops(CHANNELS, 1, Style()))
    handle = module._ops[4].register_forward_hook(lambda *_: None)
    (entry,) = accelerate(module).fused
    assert entry.native == 0 and "its own code runs while there are hooks in it" in entry.remark
    handle.remove()
    module.register_forward_hook(lambda *_: None)
    assert "hooks" not in accelerate(module).fused[0].remark


class Half(MixedOp):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, weights) / 2


class HalfCell(Cell):
    def forward(self, inputs: Tensor, weights: Tensor) -> Tensor:
        return super().forward(inputs, weights) / 2

    def forward_joint(self, inputs: Tensor, weights: Tensor) -> Tensor:
        return HalfCell.forward(self, inputs, weights)


@pytest.mark.parametrize(
    ("module", "operations"),
    [
        (Half(darts_ops(CHANNELS, 1, Style())), 8),
        (HalfCell(CHANNELS, Style()), 30),
    ],
)
def test_operations_of_what_is_left_are_counted(module: nn.Module, operations: int) -> None:
    report = accelerate(module)
    assert str(report).splitlines()[:2] == [
        "0 of 1 modules fused",
        f"0 of {operations} operations run natively",
    ]
    assert report.hints[0].startswith("not the weighted sum: ")
    assert str(report).endswith("".join(f"\nhint: {hint}" for hint in report.hints))


def test_nothing_found_has_a_hint() -> None:
    report = accelerate(nn.Sequential(nn.Conv2d(3, 4, 1)))
    first, *others = str(report).splitlines()
    assert first == "0 of 0 modules fused"
    assert (
        others == [f"hint: {report.hints[0]}"] and "its candidate operations in one ModuleList" in others[0]
    )


def test_every_hint_is_given_once() -> None:
    ops = [*darts_ops(CHANNELS, 1, Style()), nn.Tanh(), nn.Tanh()]
    model = nn.ModuleList([MixedOp(ops), NumberedMixedOp(ops), Half(ops)])
    report = accelerate(model, backend="pytorch")
    assert [hint.partition(":")[0] for hint in report.hints] == ["unknown layers", "not the weighted sum"]


def reasons() -> Iterator[str]:
    """What the code says of modules that are left and of operations that run as they are."""
    for path in PACKAGE.glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args
            if called and node.func.id in ("Unrecognised", "OpaquePlan", "OwnMethod"):  # type: ignore[union-attr]
                yield from texts(node.args[0])  # type: ignore[union-attr]
            elif isinstance(node, ast.FunctionDef) and node.name in ("_why_not", "_unserved"):
                for returned in ast.walk(node):
                    if isinstance(returned, ast.Return) and returned.value is not None:
                        yield from texts(returned.value)


def texts(node: ast.expr) -> Iterator[str]:
    """The literal parts of an expression, joined."""
    parts = [
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    text = " ".join(parts)
    if len(text.split()) > 1:
        yield text


@pytest.mark.parametrize("reason", sorted(set(reasons())))
def test_every_reason_has_a_hint(reason: str) -> None:
    assert Entry("", "", False, reason).hints, reason


def test_there_are_no_other_hints() -> None:
    everything = " ".join(path.read_text() for path in PACKAGE.glob("*.py") if path.stem != "report")
    for reason, _ in HINTS:
        assert reason in everything, reason
