"""The choice of a backend: automatic, explicit, and what is said when none can serve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_contract import ON_THE_CPU

from vpdarts_fast import backends, ops, reference
from vpdarts_fast.backends import BACKENDS, Backend, select
from vpdarts_fast.errors import UserError

FLOATS = (torch.float32, torch.float64)


def backend(name: str, **changes: Any) -> Backend:
    fields: dict[str, Any] = {
        "implementations": {"relu_conv": reference.relu_conv},
        "device_types": frozenset({"cpu"}),
        "dtypes": frozenset({torch.float32}),
        "node_values": {},
    }
    return Backend(name, **(fields | changes))


@pytest.mark.parametrize("op", backends.OPS)
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
    monkeypatch.setattr(backends, "BACKENDS", (first, *BACKENDS))
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
        ops.relu_conv(x.double(), w1, w3)
