"""The choice of a backend: automatic, explicit, and what is said when none can serve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_contract import ON_THE_CPU

from vpdarts_fast import Supernet, leave_one_out, ops
from vpdarts_fast.backends import __main__ as command
from vpdarts_fast.backends import registry
from vpdarts_fast.backends.__main__ import main as show_table
from vpdarts_fast.backends.registry import BACKENDS, Backend, preferred, select
from vpdarts_fast.backends.report import report
from vpdarts_fast.contract import reference
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation import memory_budget

FLOATS = (torch.float32, torch.float64)


def backend(name: str, **changes: Any) -> Backend:
    fields: dict[str, Any] = {
        "implementations": {"relu_conv": reference.relu_conv},
        "device_types": frozenset({"cpu"}),
        "dtypes": frozenset({torch.float32}),
        "node_values": {},
    }
    return Backend(name, **(fields | changes))


@pytest.mark.parametrize("op", registry.FUSED_OPS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_auto_takes_the_first_that_can_serve(op: str, dtype: torch.dtype) -> None:
    tensors = [torch.zeros(1, dtype=dtype)]
    able = [b for b in BACKENDS if not b.unsupported(op, tensors)]
    assert select(op, tensors) is able[0].implementations[op]
    assert select(op, tensors, "auto") is able[0].implementations[op]


@pytest.mark.parametrize(("op", "name"), [(op, b.name) for b in ON_THE_CPU for op in b.implementations])
def test_an_explicit_choice_is_obeyed(op: str, name: str) -> None:
    chosen = next(b for b in BACKENDS if b.name == name)
    assert select(op, [torch.zeros(1)], name) is chosen.implementations[op]


def test_the_reference_serves_what_it_is_asked_for() -> None:
    assert select("relu_conv", [torch.zeros(1)], "reference") is reference.relu_conv


def test_auto_passes_over_a_backend_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def fast(*_: object) -> None:
        """Only float32."""

    first = backend("fast", implementations={"relu_conv": fast})
    monkeypatch.setattr(registry, "BACKENDS", (first, *BACKENDS))
    assert select("relu_conv", [torch.zeros(1)]) is fast
    assert select("relu_conv", [torch.zeros(1, dtype=torch.float64)]) is not fast
    assert select("mixed_sum", [torch.zeros(1)]) is not fast


def test_an_unknown_backend_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UserError, match="unknown backend 'cudnn'; expected auto, ") as error:
        select("relu_conv", [torch.zeros(1)], "cudnn")
    assert all(b.name in str(error.value) for b in BACKENDS)


def test_a_call_nobody_can_serve_lists_every_reason() -> None:
    mixed = [torch.zeros(1), torch.zeros(1, dtype=torch.float64)]
    with pytest.raises(UserError) as error:
        select("relu_conv", mixed)
    first, *complaints = str(error.value).splitlines()
    assert first == "no backend can serve relu_conv"
    assert [line.split(":")[0].strip() for line in complaints] == [b.name for b in BACKENDS]
    one_dtype = "all tensors must have one dtype; got torch.float32, torch.float64"
    assert all((b.missing or one_dtype) in line for b, line in zip(BACKENDS, complaints, strict=True))


def test_an_explicit_choice_that_cannot_serve_says_why_and_does_not_fall_through() -> None:
    with pytest.raises(UserError, match=r"reference: computes in .*; got torch\.int64") as error:
        select("relu_conv", [torch.zeros(1, dtype=torch.int64)], "reference")
    assert "pytorch" not in str(error.value)


@pytest.mark.parametrize(
    ("op", "tensors", "reason"),
    [
        ("relu_conv", [torch.zeros(1)], None),
        ("mixed_sum", [torch.zeros(1)], "has no mixed_sum"),
        ("relu_conv", [torch.zeros(1, device="meta")], "runs on cpu; got meta"),
        (
            "relu_conv",
            [torch.zeros(1), torch.zeros(1, device="meta")],
            "must be on one device; got cpu, meta",
        ),
        ("relu_conv", [torch.zeros(1, dtype=torch.int8)], "computes in torch.float32; got torch.int8"),
        (
            "relu_conv",
            [torch.zeros(1), torch.zeros(1).double()],
            "one dtype; got torch.float32, torch.float64",
        ),
    ],
)
def test_reasons(op: str, tensors: list[torch.Tensor], reason: str | None) -> None:
    reasons = backend("some").unsupported(op, tensors)
    assert (not reasons) if reason is None else any(reason in given for given in reasons)


@pytest.mark.parametrize("wide", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_alphas_of_a_wider_dtype(wide: torch.dtype, dtype: torch.dtype) -> None:
    some = backend("some", dtypes=frozenset({torch.float32, torch.bfloat16}))
    reasons = some.unsupported("relu_conv", [torch.zeros(1, dtype=dtype)], [torch.zeros(1, dtype=wide)])
    assert (not reasons) == (dtype == wide or (dtype == torch.bfloat16 and wide == torch.float32))
    elsewhere = some.unsupported("relu_conv", [torch.zeros(1)], [torch.zeros(1, device="meta")])
    assert any("must be on one device" in reason for reason in elsewhere)


def test_an_op_may_have_dtypes_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = backend(
        "some",
        implementations=implemented("relu_conv", "mixed_sum"),
        dtypes_of={"mixed_sum": frozenset({torch.bfloat16})},
    )
    assert some.unsupported("relu_conv", [torch.zeros(1)]) == []
    reason = "computes mixed_sum in torch.bfloat16; got torch.float32"
    assert some.unsupported("mixed_sum", [torch.zeros(1)]) == [reason]
    monkeypatch.setattr(command, "BACKENDS", (some,))
    show_table([])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["relu_conv", "fp32*"] in rows and ["mixed_sum", "bf16*"] in rows


def test_a_refusal_is_asked_for_last() -> None:
    refusing = backend("some", refusal=lambda op, tensors: f"{op} of {len(tensors)} has no room")
    assert refusing.unsupported("relu_conv", [torch.zeros(1)]) == ["relu_conv of 1 has no room"]
    assert "has no room" not in str(refusing.unsupported("mixed_sum", [torch.zeros(1)]))


def test_a_backend_without_device_types_runs_anywhere() -> None:
    anywhere = backend("some", device_types=frozenset())
    assert anywhere.unsupported("relu_conv", [torch.zeros(1, device="meta")]) == []


def test_ops_pass_the_choice_on() -> None:
    x, w1, w3 = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 2, 1, 1), torch.zeros(1, 2, 2, 3, 3)
    with pytest.raises(UserError, match="unknown backend 'cudnn'"):
        ops.relu_conv(x, w1, w3, backend="cudnn")
    with pytest.raises(UserError, match="no backend can serve relu_conv"):
        ops.relu_conv(x.double(), w1.double(), w3.double(), backend="cpu")


# A whole search -------------------------------------------------------------------------------------------

PHASES = {"training": registry.TRAINING_OPS, "leave-one-out": registry.EVALUATION_OPS}
STAGES = [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
CPU = torch.device("cpu")


def implemented(*ops: str) -> dict[str, Any]:
    """Functions for these ops that are not called."""
    return dict.fromkeys(ops, reference.relu_conv)


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is missing, one is for GPUs, one has two of the ops, one has all."""
    no_room = "a block's shared memory has no room. Try a smaller cell"
    unbuilt = backend("unbuilt", missing="it is not built. Build it")
    elsewhere = backend(
        "elsewhere", device_types=frozenset({"cuda"}), implementations=implemented(*registry.FUSED_OPS)
    )
    small = backend(
        "small",
        implementations=implemented("masked_cell", "mixed_cell"),
        refusal=lambda op, tensors: no_room if op == "masked_cell" and tensors[0].shape[2] > 32 else None,
    )
    whole = backend(
        "whole",
        implementations=implemented(*registry.FUSED_OPS),
        dtypes=frozenset({torch.float32, torch.bfloat16}),
        device_types=frozenset(),
    )
    monkeypatch.setattr(registry, "BACKENDS", (unbuilt, elsewhere, small, whole))


@pytest.mark.usefixtures("four")
def test_the_report_says_who_serves_what_and_why_nothing_better_does() -> None:
    assert report(PHASES, STAGES, torch.float32, CPU) == (
        "training mixed_cell small, trained_residual_block whole, "
        "leave-one-out masked_cell small (C=16, 32) whole (C=64), residual_block whole "
        "(not unbuilt: it is not built; not small: a block's shared memory has no room)"
    )
    assert report(PHASES, STAGES, torch.bfloat16, CPU) == (
        "training whole, leave-one-out whole "
        "(not unbuilt: it is not built; not small: computes in torch.float32; got torch.bfloat16)"
    )


@pytest.mark.usefixtures("four")
def test_an_explicit_choice_serves_the_ops_that_it_has() -> None:
    assert report(PHASES, STAGES, torch.float32, CPU, "whole") == "training whole, leave-one-out whole"
    said = report(PHASES, STAGES[:2], torch.float32, CPU, "small")
    assert said.startswith("training mixed_cell small, trained_residual_block whole, leave-one-out ")
    assert [preferred(op, "small") for op in ("mixed_cell", "residual_block")] == ["small", "auto"]
    assert preferred("mixed_cell", "unbuilt") == "unbuilt", "to be refused with the reason"


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("phases", "dtype", "name", "reason"),
    [
        (PHASES, torch.float32, "small", "masked_cell (C=64): a block's shared memory has no room"),
        (PHASES, torch.bfloat16, "small", "  mixed_cell, masked_cell: computes in torch.float32; got"),
        (PHASES, torch.float32, "unbuilt", "trained_residual_block, masked_cell, residual_block: it is not"),
        (PHASES, torch.float32, "elsewhere", ", residual_block: runs on cuda; got cpu"),
        ({"some": ("residual_block",)}, torch.float32, "small", "none of the operations of this search: res"),
        (PHASES, torch.float32, "cudnn", "unknown backend 'cudnn'; expected auto, unbuilt, "),
    ],
)
def test_an_explicit_choice_that_cannot_serve_a_search(
    phases: dict[str, tuple[str, ...]], dtype: torch.dtype, name: str, reason: str
) -> None:
    with pytest.raises(UserError) as error:
        report(phases, STAGES, dtype, CPU, name)
    assert reason in str(error.value)


@pytest.mark.parametrize("name", ["pytorch", "reference"])
def test_a_supernet_runs_on_the_backend_it_is_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set()
    serve = registry.serving

    def spy(op: str, tensors: Any, backend: str = "auto", small: Any = ()) -> Backend:
        asked.add((op, backend))
        return serve(op, tensors, backend, small)

    for module in (registry, memory_budget):
        monkeypatch.setattr(module, "serving", spy)
    supernet = Supernet(2, 1, fused=True, backend=name)
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    supernet(images, supernet.new_alpha())
    leave_one_out(supernet, [(images, labels)], supernet.new_alpha(), batch_norm="running")
    leave_one_out(supernet, [(images, labels)], supernet.new_alpha(), batch_norm="batch")
    assert asked == {(op, name) for op in (*registry.TRAINING_OPS, *registry.EVALUATION_OPS)}


def test_the_table_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    show_table([])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["on", "cpu", *(b.name for b in BACKENDS)]
    for op, line in zip(registry.FUSED_OPS, lines, strict=False):
        assert line.split()[0] == op
        for precision, dtype in (("fp32*", torch.float32), ("bf16*", torch.bfloat16)):
            first = next(b for b in BACKENDS if not b.unsupported(op, [torch.zeros(1, dtype=dtype)]))
            column = head.index(f"  {first.name}") + 2
            assert precision in line[column:].partition("  ")[0] and line.count(precision) == 1
    for b in BACKENDS:
        assert b.missing is None or f"{b.name}: {b.missing}" in lines
