"""What launches of our own kernels cost, from their arguments.

A kernel reads each of its tensors once from device memory: what neighbouring blocks share, such as the taps
of a pool or of a convolution, comes from the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from vpdarts_fast.analysis.cost.work import Uncountable, Unit, Work, total_size

Arguments = Mapping[str, Any]
"""Of a Triton launch, by name."""

Numbers = Callable[[Tensor], Any]
"""What a small tensor holds, as nested lists, if the host code made it."""


def triton_launch(kernel: str, arguments: Arguments, numbers: Numbers) -> Work:
    """The work of one launch.

    Raises:
        Uncountable: a kernel that is not listed here.
    """
    if kernel not in _TRITON:
        raise Uncountable(f"the cost model does not know the Triton kernel {kernel}")
    moved, flops, unit = _TRITON[kernel](arguments, numbers)
    return Work(kernel, 1, moved, flops, unit)


Cost = tuple[int, int, Unit]
"""Bytes, operations and what does them."""


def _block_statistics(a: Arguments, numbers: Numbers) -> Cost:
    """Sum, difference, its square: 4 operations an element."""
    elements = sum(raw.numel() for raw in a["raws"])
    return total_size((*a["raws"], a["parts"])), 4 * elements, "vector"


def _combine_statistics(a: Arguments, numbers: Numbers) -> Cost:
    return total_size((a["parts"], a["mean"], a["variance"])), 6 * a["parts"].numel(), "vector"


def _form_node(a: Arguments, numbers: Numbers) -> Cost:
    """An element of an edge: 9 taps of the pool and a skip of 2 operations, two raw outputs of 3."""
    small = (a["seeds"], a["alpha"], a["mean"], a["variance"])
    moved = total_size((*a["xs"], *a["raws"], *a["scales"], *small, a["node"], a["rectified"]))
    return moved, (20 * len(a["xs"]) + 3 * len(a["raws"]) + 1) * a["node"].numel(), "vector"


def _reduce_gradient(a: Arguments, numbers: Numbers) -> Cost:
    """The adjoint pool is 9 taps of 2 operations; each sum and each gradient 3 or 4."""
    wanted = [raw for raw, wants in zip(a["raws"], a["WANTS_RAWS"], strict=True) if wants]
    sources = [
        x
        for x, of_scale in zip(a["xs"], a["scale_gradients"], strict=True)
        if a["WANTS_ALPHA"] or of_scale is not None
    ]
    outputs = (*a["x_gradients"], *a["scale_gradients"])
    small = (a["seeds"], a["alpha"], a["mean"])
    moved = total_size((a["gradient"], *wanted, *sources, *a["scales"], *small, a["parts"], *outputs))
    terms = 18 + 3 * len(wanted) + 4 * len(sources) + 4 * sum(g is not None for g in outputs)
    return moved, terms * a["gradient"].numel(), "vector"


def _differentiate_node(a: Arguments, numbers: Numbers) -> Cost:
    """As `_reduce_gradient`, of each later node; the ReLU's adjoint and the sums of raw outputs besides."""
    small = (a["seeds"], a["alpha"], a["mean"], a["parts"])
    sources = (*a["rectified_gradients"], *a["later"], a["node"], *a["raws"])
    terms = 2 * len(a["rectified_gradients"]) + (22 + 4 * a["WANTS_ALPHA"]) * len(a["later"])
    moved = total_size((*sources, a["node_gradient"], *small))
    return moved, (terms + 1 + 3 * len(a["raws"])) * a["pixels"] * a["C"], "vector"


def _add_up_parts(a: Arguments, numbers: Numbers) -> Cost:
    moved = total_size((a["parts"], a["variance"], a["totals"], a["alpha_gradient"]))
    return moved, a["parts"].numel(), "vector"


def _differentiate_raws(a: Arguments, numbers: Numbers) -> Cost:
    """Of each raw output its difference from the mean, scaled twice: 5 operations."""
    pairs = zip(a["raws"], a["raw_gradients"], strict=True)
    used = [tensor for raw, out in pairs if out is not None for tensor in (raw, out)]
    small = (a["alpha"], a["mean"], a["variance"], a["totals"])
    return total_size((a["gradient"], *used, *small)), 5 * sum(t.numel() for t in used) // 2, "vector"


def _fold_weights(a: Arguments, numbers: Numbers) -> Cost:
    tensors = (value for value in a.values() if isinstance(value, Tensor))
    return total_size(tensors), 2 * a["weight"].numel(), "vector"


def _cell_node(a: Arguments, numbers: Numbers) -> Cost:
    """2 * 9 * C_in * C_out operations a pixel and edge, channels as padded; the weights of its own pairs."""
    folds = numbers(a["folds"]) or range(a["folds"].numel())
    pairs = len(set(tree_leaves(folds)))
    weights = pairs * (total_size((a["weight"][:1],)) + 4 * a["PADDED"])
    moved = total_size((*a["values"], a["numbers"], a["folds"], a["node"])) + weights
    flops = 2 * 9 * a["PADDED"] ** 2 * a["pixels"] * a["folds"].numel()
    return moved, flops, "matrix"


_TRITON: dict[str, Callable[[Arguments, Numbers], Cost]] = {
    "block_statistics": _block_statistics,
    "combine_statistics": _combine_statistics,
    "form_node": _form_node,
    "reduce_gradient": _reduce_gradient,
    "differentiate_node": _differentiate_node,
    "add_up_parts": _add_up_parts,
    "differentiate_raws": _differentiate_raws,
    "fold_weights": _fold_weights,
    "cell_node": _cell_node,
}


def cuda_masked_cell(args: Sequence[Any], out: Tensor, numbers: Numbers) -> list[Work]:
    """`masked_cell` in CUDA C++, whose three kernels csrc/cuda/kernels/masked_cell.cu starts.

    Edges whose alphas of the convolutions are those of an earlier variant use its weights, unless each
    variant has its own statistics.
    """
    x, weight_1x1, weight_3x3, mean, variance, alpha, _ = args
    if out.numel() == 0:
        return []
    variants, edges, _ = alpha.shape
    channels = -(-x.shape[2] // 16) * 16
    tables = numbers(alpha)
    rows = variants * edges
    if tables is not None and mean.dim() == 3:
        rows = len({(e, *row[2:4]) for table in tables for e, row in enumerate(table)})
    folded = rows * 9 * channels**2 * x.element_size()
    bias = variants * channels * 4  # of each node but the first; the nodes are few
    pixels = out.numel() // x.shape[2]
    flops = 2 * 9 * channels**2 * pixels * edges
    small = total_size((mean, variance, alpha))
    return [
        Work("masked_cell prepare", 1, small + bias),
        Work("masked_cell fold", 1, small + total_size((weight_1x1, weight_3x3)) + folded),
        Work("masked_cell", 1, total_size((x, out, alpha)) + folded + bias, flops, "matrix"),
    ]


def cuda_masked_cell_fits(x: Tensor, alpha: Tensor, shared_bytes: int) -> bool:
    """Whether a block has room for its maps: those of all nodes but the last, and a tile for each of 8 warps.

    As `Maps` in csrc/cuda/kernels/masked_cell.cu lays them out.
    """
    height, width = x.shape[3:]
    padded = -(-x.shape[2] // 16) * 16
    nodes = next(n for n in range(2, 7) if n * (n - 1) // 2 == alpha.shape[1])
    row = width + 1
    tiles = -(-((height - 1) * row + width) // 16)
    stride = padded + (16 if padded // 16 % 2 == 0 else 0)
    lead = row + 1
    elements = (nodes - 1) * (lead + tiles * 16) * stride + lead * stride
    return elements * x.element_size() + 8 * 16 * 16 * 4 <= shared_bytes
