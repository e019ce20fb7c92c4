"""Random arguments of the native ops for the fuzz tests: right ones and hostile ones."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from op_contract import channels_last, sliced, transposed
from torch import Tensor

Arguments = dict[str, Any]
"""In the order of the op's schema."""

HUGE = 2**44  # that many floats have no place in the address space


def expanded(x: Tensor) -> Tensor:
    """The first row along the last dimension, over and over."""
    return x[..., :1].expand_as(x)


def negative_view(x: Tensor) -> Tensor:
    """-x with the minus sign not yet carried out."""
    return torch._neg_view(x)


def permuted(x: Tensor) -> Tensor:
    """The same values, all dimensions the other way round in memory."""
    order = list(range(x.dim()))[::-1]
    return x.permute(order).contiguous().permute(order)


LAYOUTS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.Tensor.contiguous,
    sliced,
    transposed,
    expanded,
    permuted,
    negative_view,
)


SIZES = [(1, 1), (1, 6), (2, 2), (4, 4), (5, 7), (9, 3), (3, 9), (8, 8)]
CHANNELS = [1, 2, 3, 5, 8, 12, 16, 17]


def draw_sizes(rng: Random, tiny: bool) -> tuple[int, tuple[int, int], int]:
    """Channels, height and width, and the most images."""
    if tiny:
        return rng.choice([1, 1, 2, 3, 5, 9, 17]), rng.choice(SIZES[:4]), 3
    return rng.choice(CHANNELS), rng.choice(SIZES), 9


def right_calls(rng: Random, op: str, layouts: bool = True, tiny: bool = False) -> Arguments:
    """The arguments of masked_cell, mixed_cell or mixed_cell_variants, in the order of the schema."""
    nodes = rng.randint(2, 3 if tiny else 6)
    edges = nodes * (nodes - 1) // 2
    variants = 1 if op == "mixed_cell" else rng.randint(1, 4)
    inputs = rng.choice([1, variants])
    c, size, most = draw_sizes(rng, tiny)
    images = rng.randint(2 if size == (1, 1) else 1, most)
    generator = torch.Generator().manual_seed(rng.randint(0, 2**32))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def coin(share: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    alpha = torch.where(coin(0.7, variants, edges, 1), normal(1, edges, 5), normal(variants, edges, 5))
    alpha *= ~coin(rng.choice([0.0, 0.2, 1.0]), variants, edges, 5)
    args: Arguments = {
        "x": normal(inputs, images, c, *size),
        "weight_1x1": normal(edges, c, c, 1, 1) * c**-0.5,
        "weight_3x3": normal(edges, c, c, 3, 3) * (c**-0.5 / 3),
    }
    if op == "masked_cell":
        statistics = (*rng.choice([(), (variants,)]), edges, 2, c)
        args |= {"mean": normal(*statistics), "variance": normal(*statistics).abs() + 0.5}
    args["alpha"] = alpha / 2
    if op == "mixed_cell":
        args["x"], args["alpha"] = args["x"][0], args["alpha"][0]
    if op != "masked_cell":
        seeds = torch.randint(-(2**63), 2**63 - 1, (edges,), generator=generator)
        args["skip_seed"] = rng.choice([None, seeds])
        args["skip_dropout"] = rng.choice([0.0, 1e-12, 0.25, 0.9])
    args["eps"] = rng.choice([1e-3, 0.1, 1e30])
    if op != "masked_cell":
        args["skip_zeros"] = rng.choice([False, True])
    for name, value in args.items():
        if layouts and isinstance(value, Tensor) and value.is_floating_point() and name != "variance":
            args[name] = rng.choice(LAYOUTS)(value)
    if layouts and rng.random() < 0.5:
        args["x"] = channels_last(args["x"])
    return args


def right_node_calls(rng: Random, op: str, layouts: bool = True, tiny: bool = False) -> Arguments:
    """The arguments of relu_conv, relu_pointwise or mixed_sum, in the order of the schema."""
    c, size, most = draw_sizes(rng, tiny)
    generator = torch.Generator().manual_seed(rng.randint(0, 2**32))

    def normal(*shape: int) -> Tensor:
        tensor = torch.randn(shape, generator=generator)
        return rng.choice([*LAYOUTS, channels_last])(tensor) if layouts else tensor

    if op == "relu_conv":
        k, images = rng.randint(0, 2 if tiny else 6), rng.randint(0, most)
        weights = normal(k, c, c, 1, 1) * c**-0.5, normal(k, c, c, 3, 3) * (c**-0.5 / 3)
        return {"x": normal(images, c, *size), "weight_1x1": weights[0], "weight_3x3": weights[1]}
    if op == "relu_pointwise":
        stride = rng.randint(1, 2)
        outs = [
            rng.choice([1, 2, 3, 5, 9] if tiny else [*CHANNELS, 33]) for _ in range(rng.randint(1, stride))
        ]
        weights = [normal(out, c, 1, 1) * c**-0.5 for out in outs]
        return {"x": normal(rng.randint(0, most), c, *size), "weights": weights, "stride": stride}
    v, k = rng.randint(1, 3), rng.randint(1, 2 if tiny else 6)
    images = rng.randint(2 if size == (1, 1) else 1, most)
    args: Arguments = {
        name: [normal(v, images, c, *size) for _ in range(k)]
        for name in ("xs", "raw_1x1", "raw_3x3", "skip_scale")
    }
    scale = args.pop("skip_scale") if rng.random() < 0.5 else []
    alpha = torch.randn(v, k, 5, generator=generator)
    alpha *= torch.rand(v, k, 5, generator=generator) < rng.choice([0.0, 0.7, 1.0])
    eps = rng.choice([1e-3, 0.1, 1e30])
    args.pop("skip_scale", None)
    return args | {"alpha": alpha, "skip_scale": scale, "eps": eps}


def right_residual_calls(rng: Random, op: str, layouts: bool = True, tiny: bool = False) -> Arguments:
    """The arguments of residual_block or trained_residual_block, in the order of the schema."""
    c, size, most = draw_sizes(rng, tiny)
    c_out = rng.choice([1, 2, 3, 5, 9] if tiny else [*CHANNELS, 33])
    lone = size in ((1, 1), (2, 2)) and op == "trained_residual_block"  # one value per channel and image
    images = rng.randint(2 if lone else 1, most)
    generator = torch.Generator().manual_seed(rng.randint(0, 2**32))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    args: Arguments = {
        "x": normal(images, c, *size),
        "weight_a": normal(c_out, c, 3, 3) * (c**-0.5 / 3),
        "weight_b": normal(c_out, c_out, 3, 3) * (c_out**-0.5 / 3),
        "weight_shortcut": normal(c_out, c, 1, 1) * c**-0.5,
    }
    args |= dict.fromkeys(("scale", "shift") if op == "residual_block" else ("gamma", "beta"))
    for name in list(args)[4:]:
        args[name] = normal(2, c_out)
    for name, value in args.items():
        if layouts:
            more = [channels_last] if value.dim() == 4 else []
            args[name] = rng.choice([*LAYOUTS, *more])(value)
    if op == "trained_residual_block":
        args["eps"] = rng.choice([1e-3, 0.1, 1e30])
    return args


def right_mixed_op_calls(
    rng: Random, layouts: bool = True, tiny: bool = False, fixed: bool | None = None
) -> Arguments:
    """The arguments of mixed_op, in the order of the schema, with given statistics or without."""
    c, (height, width), most = draw_sizes(rng, tiny)
    stride, v, images = rng.randint(1, 2), rng.randint(1, 3), rng.randint(4, max(4, most))
    fixed = rng.random() < 0.5 if fixed is None else fixed
    generator = torch.Generator().manual_seed(rng.randint(0, 2**32))

    def normal(*shape: int) -> Tensor:
        tensor = torch.randn(shape, generator=generator)
        more = [channels_last] if tensor.dim() > 3 else []
        return rng.choice([*LAYOUTS, *more])(tensor) if layouts else tensor

    kinds = rng.choices(
        [0, 1, 2, 3, 4, 5] if stride == 1 else [0, 2, 3, 4, 5], k=rng.randint(0, 3 if tiny else 5)
    )
    most = {0: (0, 0), 1: (0, 0), 4: (1, 2)}
    norms = [rng.randint(*most.get(kind, (0, 1))) for kind in kinds]
    stages, m = sum(count for kind, count in zip(kinds, norms, strict=True) if kind == 4), sum(norms)
    kernels = [rng.choice([3, 5, 7]) for _ in range(stages)]
    size = -(-height // stride), -(-width // stride)
    of_each = rng.choice([(), (v,)])
    statistics = torch.stack([torch.randn(*of_each, m, c, generator=generator)] * 2, dim=-2)
    statistics[..., 1, :] = statistics[..., 1, :].abs() + 0.5
    return {
        "x": normal(v if fixed and of_each else rng.choice([1, v]), images, c, height, width),
        "alpha": normal(v, len(kinds)),
        "kinds": kinds,
        "norms": norms,
        "depthwise": [normal(c, 1, k, k) / k for k in kernels],
        "pointwise": [normal(c, c, 1, 1) * c**-0.5 for _ in kernels],
        "dilation": [rng.randint(1, 2) for _ in kernels],
        "given": [normal(rng.choice([1, v]), images, c, *size) for _ in range(kinds.count(5))],
        "gamma": normal(m, c),
        "beta": normal(m, c),
        "eps": [rng.choice([1e-3, 0.1, 1e30]) for _ in range(m)],
        "statistics": statistics if fixed else None,
        "stride": stride,
    }


def resized(x: Tensor, shape: list[int]) -> Tensor:
    return torch.zeros((), dtype=x.dtype).expand(shape)


def hostile(rng: Random, x: Tensor) -> Tensor:
    """Something in place of x."""
    kind = rng.choice(["dtype", "rank", "size", "place", "values", "huge"])
    if kind == "dtype":
        types = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
        return x.to(rng.choice([*types, torch.float32, torch.int32]))
    if kind == "rank":
        changes: list[Callable[[], Tensor]] = [
            lambda: x.flatten(),
            lambda: x[None],
            lambda: x[..., None],
            lambda: torch.tensor(1.0),
            lambda: x.sum(),
            lambda: torch.empty(0),
            lambda: torch.empty(0, 5),
            lambda: x.squeeze(),
        ]
        return rng.choice(changes)()
    if kind == "size" or kind == "huge":
        shape = list(x.shape)
        dimension = rng.randint(0, len(shape) - 1)
        sizes = [0, 1, 2, 3, 5, 7, 21, 2 * shape[dimension], shape[dimension] + 1]
        shape[dimension] = HUGE if kind == "huge" else rng.choice(sizes)
        return resized(x, shape)
    if kind == "place":
        places: list[Callable[[], Tensor]] = [
            lambda: x.to("meta"),
            lambda: x.to_sparse(),
            lambda: torch.nn.Parameter(x, requires_grad=x.is_floating_point()),
        ]
        return rng.choice(places)()
    if x.numel() == 0 or not x.is_floating_point():
        return x.clone().fill_(rng.choice([0, -1, 2**63 - 1, -(2**63)]))
    bad = x.contiguous().clone()
    everywhere = rng.random() < 0.5
    place = slice(None) if everywhere else rng.randint(0, x.numel() - 1)
    bad.view(-1)[place] = rng.choice([0.0, torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e-42])
    return bad


def hostile_list(rng: Random, some: list[Tensor]) -> list[Tensor]:
    """Something in place of a list of tensors."""
    kind = rng.choice(["one", "all", "fewer", "more", "none"])
    if kind == "none" or not some:
        return [] if some else [torch.ones(())]
    i = rng.randint(0, len(some) - 1)
    if kind == "one":
        return [*some[:i], hostile(rng, some[i]), *some[i + 1 :]]
    if kind == "all":
        return [hostile(rng, some[i])] * len(some)
    return some[:-1] if kind == "fewer" else [*some, some[i]]


WANTS = [[True], [False], [True, False], [True] * 3, [False] * 4, []]
SETTINGS: dict[str, list[Any]] = {
    "eps": [0.0, -1.0, 1e-45, 1e300, torch.inf, -torch.inf, torch.nan],
    "skip_dropout": [
        0.0,
        1.0,
        -1e-300,
        2.0,
        1 - 2**-32,
        1 - 2**-33,
        1 - 2**-53,
        torch.inf,
        -torch.inf,
        torch.nan,
    ],
    "skip_zeros": [True, False],
    "wants_x": [True, False],
    "wants_weights": [True, False],
    "wants_alpha": [True, False],
    "wants_1x1": [True, False],
    "wants_3x3": [True, False],
    "wants_norms": [True, False],
    "stride": [1, 2, -1, 3, 2**62],
}
INTEGERS = [[], [0], [4], [6], [-1], [1] * 3, [2] * 3, [2**62]]
LISTS: dict[str, list[Any]] = {
    **dict.fromkeys(("wants_xs", "wants_1x1", "wants_3x3", "wants_scale", "wants_given"), WANTS),
    **dict.fromkeys(("kinds", "norms", "dilation"), INTEGERS),
    "eps": [[], [0.0], [-1.0] * 2, [torch.nan], [1e300] * 3],
}


def hostile_calls(rng: Random, args: Arguments) -> Arguments:
    """One to three of the arguments replaced."""
    # Before anything is replaced, alpha by a huge one perhaps. Of ops without edges, nothing is None.
    edges = args["weight_1x1"].shape[0] if "weight_1x1" in args else 0
    for name in rng.sample(list(args), rng.randint(1, min(3, len(args)))):
        if name in LISTS and isinstance(args[name], list):
            args[name] = rng.choice(LISTS[name])
        elif name in SETTINGS:
            args[name] = rng.choice(SETTINGS[name])
        elif args[name] is None:
            args[name] = hostile(rng, torch.zeros(edges, dtype=torch.int64))
        elif isinstance(args[name], list):
            args[name] = hostile_list(rng, args[name])
        else:
            args[name] = hostile(rng, args[name])
    return args
