"""Runs host code as it would run on a GPU, on tensors without data, and counts what it starts.

Tensors say that they lie on a GPU and are of PyTorch's `FakeTensor`; ops on them are counted as they are
dispatched, and launches of Triton kernels where Triton would compile and start them. Values that the host
code makes itself, such as tables of alphas, are computed beside, so that it can read them back.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils import clip_grad
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from vpdarts_fast import native
from vpdarts_fast.analysis.cost import aten
from vpdarts_fast.analysis.cost.kernels import cuda_masked_cell, cuda_masked_cell_fits, triton_launch
from vpdarts_fast.analysis.cost.work import Tally, Uncountable, Work
from vpdarts_fast.backends import registry
from vpdarts_fast.contract import sharing
from vpdarts_fast.errors import UserError

DEVICE = torch.device("cuda", 0)
"""Where tensors are said to be."""

SMALL = 1 << 14
"""Elements of a tensor whose values are computed beside, at most."""

T = TypeVar("T")

_CPU = torch.device("cpu")
_GROUP = "_group_tensors_by_device_and_dtype"
_DEVICE_OF = torch.ops.prim.device.default
_COPY = torch.ops.aten._to_copy.default
_MADE_OF_OTHERS = "CompositeImplicitAutograd"
_ITEM = torch.ops.aten._local_scalar_dense.default


class _Hollow(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Tensors without data. PyTorch's C++ takes them to lie on the CPU, or it would ask CUDA for streams."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE_OF:
            return _CPU
        if func is torch.ops.aten.native_dropout_backward.default:  # its stand-in would go to "the CPU"
            func, args = torch.ops.aten.mul.Tensor, args[:2]
        if func is _COPY and kwargs.get("device") == _CPU and not kwargs.get("non_blocking"):
            kwargs = {**kwargs, "device": args[0].device}  # autograd's, back to where C++ believes x to lie
        if kwargs and kwargs.get("device") == _CPU and func._schema.name.startswith("aten::new_"):
            kwargs = {**kwargs, "device": args[0].device}  # beside a tensor, where C++ believes that to lie
        return super().__torch_dispatch__(func, types, args, kwargs)


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the ops and kernels that are called under it.

    Attributes:
        tally: what they cost.
        shared_bytes: that a block may have on the GPU.
    """

    def __init__(self, shared_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shared_bytes = shared_bytes
        self.tally = Tally()
        self._values: Any = WeakIdKeyDictionary()
        self._forgotten: set[int] = set()  # memory of values that are no longer known

    def add(self, work: Work | None) -> None:
        """Counts a call; None is a call that costs nothing."""
        if work is not None:
            self.tally.work[work] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _DEVICE_OF:
            return _CPU
        if func is _ITEM:
            return tree_leaves(self.read(args[0]))[0]
        if func is torch.ops.vpdarts_fast.masked_cell_fits.default:
            return cuda_masked_cell_fits(args[0], args[1], self.shared_bytes)
        if func.namespace == "vpdarts_triton":
            with self:
                return _triton_host_code(func)(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _MADE_OF_OTHERS):
            with self:  # which is seen below autograd, where our own ops run
                return func._op_dk(getattr(torch._C.DispatchKey, _MADE_OF_OTHERS), *args, **kwargs)
        fused_optimizer = func._schema.name.startswith("aten::_fused_")  # in place; has no stand-in
        out = None if fused_optimizer else func(*args, **kwargs)
        if any(tensor.device.type == "cuda" for tensor in aten.tensors((args, kwargs, out))):
            self._count(func, args, kwargs, out)
            if func is _COPY and out is not None:
                self.tally.reads += out.device == _CPU
        self._follow(func, args, kwargs, out)
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if func.namespace == "aten":
            self.add(aten.cost(func, args, kwargs, out))
        elif func.namespace == "vpdarts_fast" and func.overloadpacket.__name__.startswith("masked_cell"):
            for work in cuda_masked_cell(args, out, self.numbers):
                self.add(work)
        elif func.namespace not in ("prim", "profiler"):
            raise Uncountable(f"the cost model does not know what {func} launches on a GPU")

    def read(self, tensor: Tensor) -> Any:
        """The values as numbers on the host, which waits for them if they come from the device.

        Results of the network are not known: NaN.

        Raises:
            Uncountable: an integer or truth value that is not known; nor is what it decides, then.
        """
        self.tally.reads += tensor.device.type == "cuda"
        numbers = self.numbers(tensor)
        if numbers is None and not tensor.is_floating_point():
            raise Uncountable("host code reads a value that the cost model does not know")
        if numbers is None:
            with _disable_current_modes():
                return torch.full(tuple(tensor.shape), torch.nan).tolist()
        return numbers

    def numbers(self, tensor: Tensor) -> Any:
        """What the tensor holds as nested lists, if that is known."""
        with _disable_current_modes():
            known = self.value(tensor)
            return None if known is None else known.tolist()

    def value(self, tensor: Tensor) -> Tensor | None:
        """What the tensor holds, on the CPU, if that is known."""
        if not isinstance(tensor, FakeTensor):
            return tensor if tensor.numel() <= SMALL else None
        known: Tensor | None = self._values.get(tensor)
        return None if known is None or _memory(known) in self._forgotten else known

    def _follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Does the same with the values, where all of them are known; else those written are forgotten."""
        results = aten.tensors(out)
        given = aten.tensors((args, kwargs))
        fresh = aten.is_factory(func)  # takes no more than shapes
        known = all(fresh or self.value(tensor) is not None for tensor in given)
        known = known and not aten.is_uninitialised(func)
        if known and results and all(tensor.numel() <= SMALL for tensor in (*given, *results)):
            with _disable_current_modes():
                values = tree_map(partial(self._beside, fresh), (args, kwargs))
                beside = func(*values[0], **{**values[1], **_on_the_cpu(kwargs)})
            for tensor, real in zip(results, aten.tensors(beside), strict=True):
                self._values[tensor] = real
        elif func._schema.is_mutable:
            for argument, schema in zip(args, func._schema.arguments, strict=False):
                if schema.alias_info is not None and schema.alias_info.is_write:
                    self._forget(aten.tensors(argument))

    def _forget(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            known = self._values.get(tensor) if isinstance(tensor, FakeTensor) else None
            if known is not None:
                self._forgotten.add(_memory(known))

    def _beside(self, fresh: bool, value: Any) -> Any:
        """What stands for an argument on the CPU."""
        if not isinstance(value, Tensor):
            return value
        return torch.empty(tuple(value.shape), dtype=value.dtype) if fresh else self.value(value)


class CountedGraphs:
    """A `vpdarts_fast.runtime.graphs.Recorder` that counts: a replay launches all that it recorded once."""

    def __init__(self, count: Count) -> None:
        self._count = count

    def warm_up(self, function: Callable[[], T]) -> T:
        """Calls the function and counts what it starts, as of any other."""
        return function()

    def record(self, function: Callable[[], T]) -> tuple[T, Callable[[], object]]:
        """The function's result, uncounted, and what counts one replay of all that it started.

        Raises:
            Uncountable: the function waits for a value from the device, which no graph can.
        """
        before = self._count.tally.copy()
        result = function()
        graph = self._count.tally - before
        if graph.reads:
            raise Uncountable("host code waits for a value while it is recorded")
        self._count.tally = before  # nothing has run yet
        return result, lambda: self._count.tally.add_replay(graph)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _on_the_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"device": _CPU} if kwargs.get("device") is not None else {}


def _triton_host_code(func: Any) -> Callable[..., Any]:
    """What the op runs on a GPU."""
    modules = [
        importlib.import_module(f"vpdarts_fast.backends.triton.{op}") for op in ("mixed_sum", "mixed_cell")
    ]
    found = [op for module in modules for op in vars(module).values() if hasattr(op, "_init_fn")]
    ops = {op._qualname: op._init_fn for op in found}
    host: Callable[..., Any] = ops[func._schema.name]
    return host


@contextmanager
def counting(shared_bytes: int, graphs: bool = True) -> Iterator[Count]:
    """Host code inside runs on tensors without data, and is counted inside `with count`.

    Args:
        shared_bytes: that a block may have on the GPU.
        graphs: what can be captured is captured as on a GPU; else it is launched kernel by kernel.

    Raises:
        UserError: Triton is not installed.
    """
    with ExitStack() as stack:
        # As where there is no GPU, also where there is one: nothing may reach it.
        stack.enter_context(mock.patch.object(torch._C, "_ensureCUDADeviceGuardSet", lambda: None))
        stack.enter_context(mock.patch.object(torch.cuda, "is_available", lambda: False))
        stack.enter_context(mock.patch.object(torch.cuda, "device_count", lambda: 0))
        count = Count(shared_bytes)
        stack.enter_context(_tensors_as_on_a_gpu(count))
        stack.enter_context(_triton_launches(count))
        recorder = CountedGraphs(count) if graphs else None
        stack.enter_context(mock.patch("vpdarts_fast.runtime.graphs.CudaGraphs", lambda device: recorder))
        stack.enter_context(_backends_of_a_gpu())
        stack.enter_context(_no_kept_tensors())
        stack.enter_context(_Hollow())
        yield count


def _to(tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    """`Tensor.to`, which C++ would take for nothing to do where the tensor lies on "the CPU" already.

    `non_blocking` tells `_Hollow` that the device was asked for.
    """
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    device = DEVICE if device is not None and device.type == "cuda" else device or tensor.device
    if (device, dtype or tensor.dtype) == (tensor.device, tensor.dtype) and not copy and layout is None:
        return tensor
    moved: Tensor = torch.ops.aten._to_copy(
        tensor, device=device, dtype=dtype or tensor.dtype, memory_format=layout, non_blocking=True
    )
    return moved


def _grouped(lists: list[list[Tensor]], with_indices: bool = False) -> dict[Any, Any]:
    """PyTorch's grouping of tensors by device and dtype, which C++ does, with the device that they lie on."""
    groups = getattr(_foreach_utils, _GROUP)(lists, with_indices)
    return {(some[0][0][0].device, dtype): some for (_, dtype), some in groups.items()}


@contextmanager
def _tensors_as_on_a_gpu(count: Count) -> Iterator[None]:
    """What Python code may ask a tensor. Optimisers take lists at once only of PyTorch's own types."""
    modules = ("torch.optim.optimizer", "torch.utils._foreach_utils")
    answers: dict[str, Any] = {
        "is_cuda": property(lambda tensor: tensor.device.type == "cuda"),
        "tolist": lambda tensor: count.read(tensor),
        "to": _to,
        "cpu": lambda tensor: _to(tensor, _CPU),
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(FakeTensor, name, answer, create=True))
        stack.enter_context(mock.patch.object(torch.cuda, "device", lambda device: nullcontext()))
        stack.enter_context(mock.patch.object(clip_grad, _GROUP, _grouped))
        for module in map(importlib.import_module, modules):
            types = [*module._foreach_supported_types, FakeTensor]
            stack.enter_context(mock.patch.object(module, "_foreach_supported_types", types))
        yield


@contextmanager
def _triton_launches(count: Count) -> Iterator[None]:
    """Launches are counted instead of compiled; of kernels that are tuned, with the first configuration."""
    try:
        from triton.runtime.autotuner import Autotuner
        from triton.runtime.jit import JITFunction
    except ImportError as error:
        raise UserError("the cost model needs Triton, whose kernels it counts") from error

    def start(kernel: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        count.add(triton_launch(kernel.fn.__name__, arguments, count.numbers))

    def tune(tuner: Any, *args: Any, **kwargs: Any) -> Any:
        return tuner.fn.run(*args, **kwargs, **tuner.configs[0].all_kwargs())

    with mock.patch.object(JITFunction, "run", start), mock.patch.object(Autotuner, "run", tune):
        yield


@contextmanager
def _no_kept_tensors() -> Iterator[None]:
    """Of an earlier count or for a later call: they are without data."""

    def clear_caches() -> None:
        sharing.kept_index.cache_clear()
        importlib.import_module("vpdarts_fast.backends.triton.masked_cell").plan.cache_clear()

    try:
        clear_caches()
        yield
    finally:
        clear_caches()


@contextmanager
def _backends_of_a_gpu() -> Iterator[None]:
    """The registry as it is on a GPU: with Triton and, if the native extension is there, our CUDA kernels."""
    ops = {"cuda": ("masked_cell",), "triton": ("masked_cell", "mixed_cell", "mixed_sum", "relu_conv")}

    def there(backend: registry.Backend) -> registry.Backend:
        if backend.name not in ops or (backend.name == "cuda" and not native.available()):
            return backend
        found = {
            op: getattr(importlib.import_module(f"vpdarts_fast.backends.{backend.name}.{op}"), op)
            for op in ops[backend.name]
        }
        return replace(backend, implementations=found, device_types=frozenset({"cuda"}), missing=None)

    with mock.patch.object(registry, "BACKENDS", tuple(map(there, registry.BACKENDS))):
        yield
