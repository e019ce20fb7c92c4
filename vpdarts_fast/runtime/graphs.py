"""CUDA graphs: what a function starts on the device is recorded once, and from then on started as a whole.

A graph repeats kernels on the addresses that they were recorded with. So a function can be captured if all
that changes between its calls lies in tensors that stay where they are, if it waits for nothing on the
device, and if no value on the device decides what it does.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from vpdarts_fast.errors import UserError

T = TypeVar("T")
"""What a function that is recorded returns."""

WARM_UP = 2
"""Calls with arguments of a shape before one is captured: the first makes the state of optimisers, chooses
among the configurations of kernels and loads them; the second finds all that in place."""


class Recorder(Protocol):
    """What records what functions start on a device, to start it again as a whole."""

    def warm_up(self, function: Callable[[], T]) -> T:
        """Calls the function as it will be recorded, but for good, and returns its result."""

    def record(self, function: Callable[[], T]) -> tuple[T, Callable[[], object]]:
        """Records the function without running it.

        Returns:
            The tensors of its result, which hold nothing yet, and a function that computes them anew.
        """


class CudaGraphs:
    """Records on a CUDA device, all functions with one stream and one pool of memory.

    They may share it as long as no result is needed any more when another of them is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], T]) -> T:
        """Calls the function on the stream that captures, as libraries keep a state for each stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = function()
        current.wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], T]) -> tuple[T, Callable[[], object]]:
        """Records the function into a CUDA graph; see `vpdarts_fast.runtime.graphs.Recorder.record`.

        Raises:
            RuntimeError: of PyTorch, where the function does what no graph can hold.
        """
        graph = torch.cuda.CUDAGraph()
        with _no_garbage_collection(), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            result = function()
        return result, graph.replay


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """What another search has left may hold graphs and memory, which must not be given back meanwhile."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def captures(device: torch.device) -> bool:
    """Whether functions are recorded there; elsewhere there is nothing to gain."""
    return device.type == "cuda"


def recorder_for(device: torch.device) -> Recorder | None:
    """The recorder for functions on this device; None where nothing is recorded."""
    return CudaGraphs(device) if captures(device) else None


@dataclass(frozen=True)
class _Recording(Generic[T]):
    inputs: tuple[Tensor, ...]
    result: T
    replay: Callable[[], object]


class Captured(Generic[T]):
    """A function of tensors, recorded once for each shape of its arguments; without a recorder, as it is.

    A result is good until the next call of anything with the same recorder.
    """

    def __init__(self, function: Callable[..., T], recorder: Recorder | None) -> None:
        self._function, self._recorder = function, recorder
        self._calls: Counter[object] = Counter()
        self._recordings: dict[object, _Recording[T]] = {}

    def __call__(self, *inputs: Tensor) -> T:
        """Calls, records or replays.

        Raises:
            UserError: the function cannot be recorded. PyTorch's generator of the device is then of no use
                any more, so there is no going on without.
        """
        if self._recorder is None:
            return self._function(*inputs)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if shapes not in self._recordings:
            self._calls[shapes] += 1
            if self._calls[shapes] <= WARM_UP:
                return self._recorder.warm_up(lambda: self._function(*inputs))
            try:
                self._recordings[shapes] = self._record(self._recorder, inputs)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise UserError(
                    f"a CUDA graph cannot be captured: {reason}; "
                    "--no-cuda-graphs (cuda_graphs=False) does without"
                ) from error
        recording = self._recordings[shapes]
        for own, given in zip(recording.inputs, inputs, strict=True):
            own.copy_(given)
        recording.replay()
        return recording.result

    def _record(self, recorder: Recorder, inputs: tuple[Tensor, ...]) -> _Recording[T]:
        own = tuple(tensor.clone() for tensor in inputs)
        return _Recording(own, *recorder.record(lambda: self._function(*own)))
