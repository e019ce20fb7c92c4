"""The networks of the DARTS space as formulas, from the entries of a state dict by their public names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OPS = (
    *("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"),
    *("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"),
)
AUTODL_OPS = ("none", "skip_connect", *OPS[4:], "avg_pool_3x3", "max_pool_3x3")

DARTS_V1 = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], "
    "normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
    "('max_pool_3x3', 0), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), "
    "('avg_pool_3x3', 0)], reduce_concat=range(2, 6))"
)
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
    "normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
    "('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), "
    "('max_pool_3x3', 1)], reduce_concat=range(2, 6))"
)


@dataclass
class Textbook:
    """Networks of a state dict.

    Attributes:
        state: float64.
        training: batch norms take the batch's own statistics.
    """

    state: Mapping[str, Tensor]
    training: bool

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1] // weight.shape[1])

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        if not self.training:
            mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        if f"{name}.weight" in self.state:
            x = x * self.state[f"{name}.weight"][:, None, None] + self.state[f"{name}.bias"][:, None, None]
        return x

    def relu_conv_norm(self, x: Tensor, name: str) -> Tensor:
        return self.norm(self.conv(x.relu(), f"{name}.op.1"), f"{name}.op.2")

    def halved(self, x: Tensor, name: str) -> Tensor:
        first, second = (
            ("convs.0", "convs.1") if f"{name}.convs.0.weight" in self.state else ("conv_1", "conv_2")
        )
        even, odd = x.relu()[:, :, ::2, ::2], x.relu()[:, :, 1::2, 1::2]
        parts = [self.conv(even, f"{name}.{first}"), self.conv(odd, f"{name}.{second}")]
        return self.norm(torch.cat(parts, 1), f"{name}.bn")

    def stage(self, x: Tensor, name: str, first: int, kernel: int, stride: int, dilation: int) -> Tensor:
        """The layers of one stage of a separable convolution; the first of them has a number."""
        padding = dilation * (kernel - 1) // 2
        x = self.conv(x.relu(), f"{name}.{first + 1}", stride, padding, dilation)
        return self.norm(self.conv(x, f"{name}.{first + 2}"), f"{name}.{first + 3}")

    def op(self, op: str, x: Tensor, name: str, stride: int) -> Tensor:
        if op == "none":
            return 0 * x[:, :, ::stride, ::stride]
        if op == "skip_connect":
            return x if stride == 1 else self.halved(x, name)
        if "pool" in op:
            if op == "max_pool_3x3":
                x = F.max_pool2d(x, 3, stride, 1)
            else:
                x = F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
            return self.norm(x, f"{name}.1") if f"{name}.1.running_mean" in self.state else x
        kernel = int(op[-1])
        if op.startswith("dil"):
            return self.stage(x, f"{name}.op", 0, kernel, stride, 2)
        if f"{name}.op_a.op.1.weight" in self.state:
            return self.stage(
                self.stage(x, f"{name}.op_a.op", 0, kernel, stride, 1), f"{name}.op_b.op", 0, kernel, 1, 1
            )
        return self.stage(self.stage(x, f"{name}.op", 0, kernel, stride, 1), f"{name}.op", 4, kernel, 1, 1)

    def network(
        self, images: Tensor, layers: int, nodes: Callable[[list[Tensor], str, bool], None]
    ) -> Tensor:
        """`nodes` adds the four nodes of a cell to its two inputs."""
        reductions = (layers // 3, 2 * layers // 3)
        s0 = s1 = self.norm(self.conv(images, "stem.0", padding=1), "stem.1")
        for layer in range(layers):
            name = f"cells.{layer}"
            first = self.halved if layer - 1 in reductions else self.relu_conv_norm
            states = [first(s0, f"{name}.preprocess0"), self.relu_conv_norm(s1, f"{name}.preprocess1")]
            nodes(states, name, layer in reductions)
            s0, s1 = s1, torch.cat(states[2:], 1)
        if "lastact.0.weight" in self.state:
            s1 = self.norm(s1, "lastact.0").relu()
        return F.linear(s1.mean((2, 3)), self.state["classifier.weight"], self.state["classifier.bias"])

    def supernet(
        self, images: Tensor, weights: Tensor, layers: int, ops: Sequence[str] = OPS, autodl: bool = False
    ) -> Tensor:
        """weights [28, O], with the columns in the order of `ops`."""

        def nodes(states: list[Tensor], name: str, reduction: bool) -> None:
            row = 0
            for node in range(2, 6):
                total = torch.zeros(())
                for source in range(node):
                    edge = f"{name}.edges.{node - 2}<-{source}" if autodl else f"{name}._ops.{row}"
                    for o, op in enumerate(ops):
                        stride = 2 if reduction and source < 2 else 1
                        out = self.op(op, states[source], f"{edge}._ops.{o}", stride)
                        total = total + weights[14 * reduction + row, o] * out
                    row += 1
                states.append(total)

        return self.network(images, layers, nodes)

    def found(
        self,
        images: Tensor,
        normal: Sequence[tuple[str, int]],
        reduce: Sequence[tuple[str, int]],
        layers: int,
    ) -> Tensor:
        """The network of a genotype."""

        def nodes(states: list[Tensor], name: str, reduction: bool) -> None:
            for node in range(4):
                both = list(enumerate(reduce if reduction else normal))[2 * node : 2 * node + 2]
                terms = [
                    self.op(op, states[source], f"{name}._ops.{i}", 2 if reduction and source < 2 else 1)
                    for i, (op, source) in both
                ]
                states.append(terms[0] + terms[1])

        return self.network(images, layers, nodes)


def random_state(names: Iterable[tuple[str, Any]], seed: int = 0) -> dict[str, Tensor]:
    """Entries of given names and shapes, or of a state dict; all between a half and one and a half."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, like in names:
        shape = like.shape if isinstance(like, Tensor) else like
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        else:
            state[name] = 0.5 + torch.rand(shape, dtype=torch.float64, generator=generator)
    return state
