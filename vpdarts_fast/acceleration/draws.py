"""Random numbers while a module is looked at: whether its code draws any, and that nobody notices.

PyTorch's own generators are watched where this thread would draw from them, and are not touched: other
threads draw on. Those of Python and NumPy can only be compared with what they were before. What others draw
from these meanwhile counts too, and is drawn again: such code must not overlap with `accelerate`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

from vpdarts_fast.acceleration.plans import Unrecognised


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what this thread would draw from the generators that belong to the process.

    Attributes:
        drawn: something would have been: code may catch the exception.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            self.drawn = True
            raise Unrecognised(DRAWS)
        return func(*args, **kwargs)


DRAWS = "draws random numbers"


@contextmanager
def _active(mode: TorchDispatchMode) -> Iterator[None]:
    """The mode is active in this thread; entered as usual it would set flags of the process as well."""
    _push_mode(mode)
    try:
        yield
    finally:
        _pop_mode()


@contextmanager
def drawing_nothing() -> Iterator[None]:
    """Watches for random numbers while entered; the generators are afterwards as they were.

    Raises:
        Unrecognised: something was drawn.
    """
    watch = _Watch()
    with _as_before() as drew, _active(watch):
        yield
        if watch.drawn or drew():
            raise Unrecognised(DRAWS)


@contextmanager
def same_draws() -> Iterator[None]:
    """Lets what is run in two of these, one after the other, draw the same random numbers.

    The generators are afterwards as they were.
    """
    with _as_before(), _active(_Drawing()):
        yield


class _Drawing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Draws from a generator of its own in place of those that belong to the process."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = torch.Generator(device="cpu").manual_seed(1)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if any(argument.name == "generator" for argument in func._schema.arguments):
            return func(*args, **kwargs, generator=self.generator)
        with torch.random.fork_rng(devices=[]):  # few ops take none
            torch.default_generator.manual_seed(self.generator.initial_seed())
            return func(*args, **kwargs)


@contextmanager
def _as_before() -> Iterator[Any]:
    """Leaves the generators of Python and NumPy as they were; gives what tells whether they are."""
    python, numpy = random.getstate(), _numpy_state()

    def drew() -> bool:
        return random.getstate() != python or _numpy_state() != numpy

    try:
        yield drew
    finally:
        if drew():
            random.setstate(python)
            np.random.set_state(_numpy_array_state(numpy))


def _numpy_state() -> tuple[Any, ...]:
    """Name, key, position, and what is left of a normal pair; as can be compared."""
    name, key, *rest = cast(tuple[Any, ...], np.random.get_state())
    return name, key.tobytes(), *rest


def _numpy_array_state(state: tuple[Any, ...]) -> tuple[Any, ...]:
    name, key, *rest = state
    return name, np.frombuffer(key, np.uint32), *rest
