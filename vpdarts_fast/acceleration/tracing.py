"""The graph of an operation's layers, recorded without a change to anything that others use.

`torch.fx.Tracer.trace` exchanges `nn.Module.__call__` while it runs, for every module of the process: other
threads, which train or trace themselves, call the wrong function, and two traces that overlap leave it there.
Here the layers record their calls, and they are those of a copy.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import fx, nn


def trace(op: nn.Module) -> fx.Graph:
    """What an operation does with its one argument, as `torch.fx` has it: layers of PyTorch are called.

    The names of the layers begin with "0.": those of `nn.Sequential(op)`, as `op` may be a layer itself. A
    layer that has a `forward` of its own beside that of its class is no layer of PyTorch.

    Args:
        op: an `isolated_copy`, whose layers have another `forward` meanwhile.

    Raises:
        Exception: whatever the operation's own code raises when it is called with a `torch.fx.Proxy`.
    """
    root, tracer = nn.Sequential(op), fx.Tracer()
    tracer.root, tracer.graph, tracer.tensor_attrs = root, fx.Graph(tracer_cls=fx.Tracer), {}
    layers = {
        name: layer
        for name, layer in root.named_modules()
        if tracer.is_leaf_module(layer, name) and "forward" not in layer.__dict__
    }
    for name, layer in layers.items():
        layer.__dict__["forward"] = partial(_record, tracer, name)
    try:
        out = root(tracer.create_proxy("placeholder", "input", (), {}))
    finally:
        for layer in layers.values():
            del layer.__dict__["forward"]
    tracer.create_node("output", "output", (tracer.create_arg(out),), {})
    return tracer.graph


def _record(tracer: fx.Tracer, name: str, *args: Any, **kwargs: Any) -> fx.Proxy:
    return tracer.create_proxy("call_module", name, args, kwargs)
