"""Logits of many variants of a supernet at once, through the fused ops.

The variants are stacked in front of the batch. The stem runs once for all of them, the first cell
shares what they share (`vpdarts_fast.sharing`), and the stack is cut into pieces that fit a memory
budget: by images where the statistics are fixed (all variants stay together and share most), by
variants where each batch is normalised with its own statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.nn import SearchCell, edge_index
from vpdarts_fast.sharing import alpha_rows, combinations, pick
from vpdarts_fast.spaces.nas_bench_201 import Supernet

NODE_VALUES_ALIVE = {"fixed": 6, "batch": 15}
"""Tensors of a node's size that the first cell holds at once, at the peak, measured with the PyTorch backend.

With batch statistics these are also raw outputs, and copies where variants share them.
"""

DEFAULT_BUDGET = {"fixed": 160 << 20, "batch": 3 << 27}
"""Bytes; where the CPU path was fastest (benchmarks/test_leave_one_out.py)."""


def variant_logits(
    supernet: Supernet, images: Tensor, alpha: Tensor, batch_statistics: bool, memory_budget: int | None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Logits of every variant for every image, piece by piece.

    Args:
        supernet: in eval mode.
        images: [N, 3, H, W].
        alpha: [V, E, O], similar variants next to each other.
        batch_statistics: batch norms use the statistics of `images`, per variant; else the stored ones.
        memory_budget: bytes for the activations of a piece; None is the default.

    Yields:
        Which variants, which images, and their logits [variants, images, classes].
    """
    kind = "batch" if batch_statistics else "fixed"
    budget = memory_budget or DEFAULT_BUDGET[kind]
    count, _, height, width = images.shape
    per_image = NODE_VALUES_ALIVE[kind] * supernet.channels * height * width * images.element_size()
    evaluate = _batch_statistics_logits if batch_statistics else _fixed_statistics_logits
    if batch_statistics:
        variants_together, images_together = max(1, budget // (per_image * max(count, 1))), count
    else:
        variants_together = max(1, min(len(alpha), budget // per_image))
        images_together = max(1, budget // (per_image * variants_together))
    for i in range(0, count, max(images_together, 1)):
        some = slice(i, min(count, i + images_together))
        stem = supernet.stem(images[some].contiguous(memory_format=torch.channels_last))[None]
        for v in range(0, len(alpha), variants_together):
            variants = slice(v, min(len(alpha), v + variants_together))
            yield variants, some, evaluate(supernet, stem, alpha[variants])


def _fixed_statistics_logits(supernet: Supernet, x: Tensor, alpha: Tensor) -> Tensor:
    """x, the stem's output [1, N, C, H, W], and alpha [V, E, O] -> logits [V, N, classes]."""
    for cell in supernet.cells:
        if isinstance(cell, SearchCell):
            x = _fixed_statistics_cell(cell, x, alpha)
        else:
            reduced: Tensor = cell(x.flatten(0, 1))
            x = reduced.view(*x.shape[:2], *reduced.shape[1:])
    return supernet.classify(x.flatten(0, 1)).view(*x.shape[:2], -1)


def _fixed_statistics_cell(cell: SearchCell, x: Tensor, alpha: Tensor) -> Tensor:
    convolutions = cell.convolutions()
    norms = [(conv_1x1.norm, conv_3x3.norm) for conv_1x1, conv_3x3 in convolutions]
    return ops.masked_cell(
        x,
        torch.stack([conv_1x1.conv.weight for conv_1x1, _ in convolutions]),
        torch.stack([conv_3x3.conv.weight for _, conv_3x3 in convolutions]),
        torch.stack([torch.stack([_buffer(norm.running_mean) for norm in pair]) for pair in norms]),
        torch.stack([torch.stack([_buffer(norm.running_var) for norm in pair]) for pair in norms]),
        alpha,
        norms[0][0].eps,
    )


def _buffer(statistics: Tensor | None) -> Tensor:
    assert statistics is not None, "fixed statistics were asked for: the caller has checked"
    return statistics


def _batch_statistics_logits(supernet: Supernet, x: Tensor, alpha: Tensor) -> Tensor:
    """As `_fixed_statistics_logits`; what is not a cell normalises variant by variant."""
    for cell in supernet.cells:
        if isinstance(cell, SearchCell):
            x = _batch_statistics_cell(cell, x, alpha)
        else:
            x = torch.stack([cell(images) for images in x])
    return torch.stack([supernet.classify(images) for images in x])


def _batch_statistics_cell(cell: SearchCell, x: Tensor, alpha: Tensor) -> Tensor:
    """x [1 or V, N, C, H, W], alpha [V, E, O] -> [V, N, C, H, W]."""
    convolutions = cell.convolutions()
    tables = alpha_rows(alpha)
    nodes = [x]
    of = [list(range(len(alpha))) if len(x) > 1 else [0] * len(alpha)]
    raw: dict[int, tuple[Tensor, Tensor]] = {}
    for i in range(1, cell.num_nodes):
        outgoing = [edge_index(i - 1, target) for target in range(i, cell.num_nodes)]
        outputs = ops.relu_conv(
            nodes[i - 1].flatten(0, 1),
            torch.stack([convolutions[e][0].conv.weight for e in outgoing]),
            torch.stack([convolutions[e][1].conv.weight for e in outgoing]),
        )
        for e, raw_1x1, raw_3x3 in zip(outgoing, *outputs, strict=True):
            raw[e] = raw_1x1.view_as(nodes[i - 1]), raw_3x3.view_as(nodes[i - 1])
        incoming = range(edge_index(0, i), edge_index(0, i) + i)
        distinct, numbers = combinations(of, tables, incoming)
        sources = [[c.sources[j] for c in distinct] for j in range(i)]
        pairs = [raw.pop(e) for e in incoming]
        node, _, _ = ops.mixed_sum(
            [pick(node, sources[j]) for j, node in enumerate(nodes)],
            [pick(pair[0], sources[j]) for j, pair in enumerate(pairs)],
            [pick(pair[1], sources[j]) for j, pair in enumerate(pairs)],
            alpha.new_tensor([c.rows for c in distinct]),
            eps=convolutions[0][0].norm.eps,
        )
        nodes.append(node)
        of.append(numbers)
    return pick(nodes[-1], of[-1])
