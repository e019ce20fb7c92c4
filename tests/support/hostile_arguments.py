"""What may come in place of an op's arguments, and is refused by all of them in the same words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Arguments = dict[str, Any]

TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda x: None,
    "a number": lambda x: 1.0,
    "a text": lambda x: "x",
    "a list of numbers": lambda x: x.tolist(),
    "a list of tensors": lambda x: [x],
    "an array": lambda x: x.detach().numpy(),
    "an array of objects": lambda x: np.array([None]),
    "a class": lambda x: Tensor,
    "sparse": lambda x: x.to_sparse(),
    "sparse, compressed": lambda x: x.flatten(1).to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "nested, jagged": lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "for oneDNN": lambda x: x.to_mkldnn(),
    "int64": lambda x: x.long(),
    "bool": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64),
    "of eight bits": lambda x: x.to(torch.float8_e5m2),
    "of another dtype": lambda x: x.double(),
    "without data": lambda x: x.to("meta"),
}
"""In place of a tensor of float32."""

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "a scalar": lambda x: torch.ones(()),
    "flat": lambda x: x.flatten(),
    "a dimension more": lambda x: x[None],
    "nothing": lambda x: x[:0],
    "no width": lambda x: x[..., :0],
    "twice as many": lambda x: torch.cat([x, x]),
    "twice as wide": lambda x: torch.cat([x, x], -1),
    # So many floats have no place in the address space.
    "a view of 2^44": lambda x: x[:1].expand(2**44, *x.shape[1:]),
}
"""In place of a tensor; the right shape for an op perhaps, and for some a call that is served."""

SEQUENCES: dict[str, Any] = {
    "None": None,
    "a number": 3,
    "a text": "abc",
    "a mapping": {},
    "a generator": iter(()),
    "a tensor": torch.ones(2, 3),
    "an array": np.ones((2, 3)),
}
"""In place of a list."""

NUMBERS: dict[str, Any] = {
    "None": None,
    "a text": "1e-5",
    "true": True,
    "negative": -1e-5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "minus infinity": -float("inf"),
    "too large": 1e39,
    "an integer of 5000 digits": 10**5000,
    "a negative one": -(10**5000),
    "complex": 1e-5j,
    "a list": [1e-5],
    "a tensor": torch.tensor(1e-5),
    "an array": np.array([1e-5, 1e-5]),
}
"""In place of a number that is not negative."""

INTEGERS: dict[str, Any] = NUMBERS | {"zero": 0, "three": 3, "1.0": 1.0, "2^62": 2**62}
"""In place of 1 or 2."""

BACKENDS: dict[str, Any] = {
    "None": None,
    "empty": "",
    "unknown": "nothing",
    "bytes": b"cpu",
    "a number": 1,
    "a list": ["cpu"],
    "an array": np.array(["cpu", "auto"]),
}
"""In place of a backend's name."""

RECORDS: dict[str, Any] = {
    "None": None,
    "a number": 1,
    "a text": "skip_connect",
    "a tensor": torch.ones(3),
    "a list": [],
    "a class": dict,
}
"""In place of one of the data classes of `vpdarts_fast.contract.branches`."""


def places(value: Any, name: str = "") -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
    """Everything in nested lists and data classes: its name, the value, and what puts another there."""
    yield name, value, lambda new: new
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            for inner, found, put in places(item, f"{name}[{i}]"):
                yield inner, found, _in_list(value, i, put)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            for inner, found, put in places(getattr(value, field.name), f"{name}.{field.name}"):
                yield inner, found, _in_record(value, field.name, put)


def _in_list(value: Any, i: int, put: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda new: type(value)([*value[:i], put(new), *value[i + 1 :]])


def _in_record(value: Any, name: str, put: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda new: replace(value, **{name: put(new)})


def all_places(args: Arguments) -> Iterator[tuple[str, Any, Callable[[Any], Arguments]]]:
    """The same of named arguments; what puts another value returns all of them."""
    for name, value in args.items():
        for inner, found, put in places(value, name):
            yield inner, found, _in_arguments(args, name, put)


def _in_arguments(args: Arguments, name: str, put: Callable[[Any], Any]) -> Callable[[Any], Arguments]:
    return lambda new: args | {name: put(new)}
