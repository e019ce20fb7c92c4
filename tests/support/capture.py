"""CUDA graphs without a GPU: what may not be captured is found, and what is captured can be replayed.

`Watched` records nothing but raises where a capture would. It is for tensors of the device `meta`, which have
no values, so that nothing can look at one unnoticed. (Fake tensors that claim to be on a GPU will not do:
autograd asks for the GPU's streams.) `Tape` is a graph on the CPU: it has every operation with the very
tensors that it took and gave, and replays them without running any Python of what was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")


class NotCapturable(AssertionError):
    """An operation that waits for the device, or copies between it and the host."""


META = torch.device("meta")
WAITS = (NotCapturable, RuntimeError)
"""What is raised there where a step waits: by `Watch`, or by PyTorch, as `meta` has no values."""


READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Of operations whose result, or its shape, the host learns from values on the device."""


def tensors_in(*values: Any) -> list[Tensor]:
    """In sequences and dicts too; `tree_leaves` takes many times as long."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(*value)
        elif isinstance(value, dict):
            found += tensors_in(*value.values())
    return found


def check_capturable(func: Any, arguments: Sequence[Tensor], results: Sequence[Tensor]) -> None:
    indexes = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_)
    masked = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in arguments[1:])
    if (
        READS & set(func.tags) if not indexes else masked
    ):  # of indexing, PyTorch tells of masks and numbers alike
        raise NotCapturable(f"{func} reads from the device")
    copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
    operands = [tensor for tensor in arguments if copies or tensor.dim()]  # a lone number is passed by value
    devices = {tensor.device.type for tensor in (*operands, *results)}
    if len(devices) > 1:
        raise NotCapturable(f"{func} copies between {' and '.join(sorted(devices))}")


FROM_THE_HOST = (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor)


class WatchMakers(TorchFunctionMode):
    """Raises where a tensor on the device is made of Python's numbers; for `meta` no operation tells."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in FROM_THE_HOST and result.device.type != "cpu":
            raise NotCapturable(f"{func.__name__} copies from the host")
        return result


class Watch(TorchDispatchMode):
    """Raises where an operation cannot be captured."""

    def __enter__(self) -> Watch:
        self._makers = WatchMakers()
        self._makers.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._makers.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        check_capturable(func, tensors_in(args, kwargs), tensors_in(results))
        return results


class Watched:
    """A recorder that only looks."""

    def __init__(self) -> None:
        self.recorded = 0

    def warm_up(self, function: Callable[[], T]) -> T:
        return function()

    def record(self, function: Callable[[], T]) -> tuple[T, Callable[[], object]]:
        with Watch():
            result = function()
        self.recorded += 1
        return result, lambda: None


class Tape:
    """A recorder on the CPU. As with a CUDA graph, recording changes nothing and computes nothing."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def warm_up(self, function: Callable[[], T]) -> T:
        return function()

    def record(self, function: Callable[[], T]) -> tuple[T, Callable[[], object]]:
        generator = torch.get_rng_state()
        recording = Recording()
        with recording:
            result = function()
        recording.undo()
        torch.set_rng_state(generator)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            recording.replay()

        return result, replay


class Recording(TorchDispatchMode):
    """Every operation below autograd, with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, dict[int, Tensor]]] = []
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._made: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = tensors_in(args, kwargs)
        for tensor in arguments:
            if not self._knows(tensor):
                storage = tensor.untyped_storage()
                self._before[storage._cdata] = storage, storage.clone()
        results = func(*args, **(kwargs or {}))
        check_capturable(func, arguments, tensors_in(results))
        made = {i: tensor for i, tensor in enumerate(tensors_in(results)) if not self._knows(tensor)}
        self._made |= {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in made.values()}
        self._operations.append((func, args, kwargs or {}, made))
        return results

    def _knows(self, tensor: Tensor) -> bool:
        key = tensor.untyped_storage()._cdata
        return key in self._before or key in self._made

    def undo(self) -> None:
        """What was there before is as before; what was made is NaN."""
        for storage, saved in self._before.values():
            storage.copy_(saved)
        for storage in self._made.values():
            storage.fill_(255)

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)  # what was recorded is what autocast made of it
    def replay(self) -> None:
        for func, args, kwargs, made in self._operations:
            results = tensors_in(func(*args, **kwargs))
            for i, own in made.items():
                memory, again = own.untyped_storage(), results[i].untyped_storage()
                assert own.shape == results[i].shape and len(memory) == len(again), func
                memory.copy_(again)
