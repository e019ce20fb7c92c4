"""Fused supernets and ops in every transform of PyTorch: float32 against the plain modules in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytest
import torch
from closeness import CLEARANCE, Jumps, clear_of_jumps
from op_contract import flat, normal, with_tensors
from supernets import Cell, MixedOp, Residual, Style, darts_ops
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jvp, linearize
from transforms import (
    BACKWARD,
    BATCHES,
    FORWARD,
    FUNC,
    MODES,
    TRACES,
    UNTRACED,
    Transform,
    direction,
    loss,
    several,
    with_tangents,
)

from vpdarts_fast import ops
from vpdarts_fast.acceleration import accelerate
from vpdarts_fast.contract import sharing
from vpdarts_fast.contract.branches import Norm, Pool, SepConv, Skip, Stage
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.blocks import ResidualBlock, SearchCell
from vpdarts_fast.spaces.nas_bench_201 import OPS, Supernet

pytestmark = pytest.mark.usefixtures("one_thread")


class Scaled(nn.Module):
    """A residual block whose output alpha multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual(4)

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        out: Tensor = self.block(x) * alpha[0]
        return out


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "supernet": (lambda: Supernet(3, 1, 3, skip_dropout=0.0), (6, 5), 3),
    "search cell": (lambda: SearchCell(4, OPS, 4, 0.0), (6, 5), 4),
    "mixed op": (lambda: MixedOp(darts_ops(4, 2, Style(affine=True))), (8,), 4),
    "cell": (lambda: Cell(4, Style()), (6, 5), 4),
    "cell, affine": (lambda: Cell(4, Style(affine=True, bias=True)), (6, 5), 4),
    "residual block": (Scaled, (2,), 4),
}
"""How a module is made, the shape of its alpha, and its channels."""

SLOW = {"make_fx of grad", "make_fx of a backward pass", "make_fx", "export", "export without gradients"}
"""Transforms in which each operation of PyTorch takes a millisecond: for one module of either family."""


TRANSFORMS: dict[str, Transform] = FUNC | FORWARD | BACKWARD | BATCHES | TRACES | MODES


def with_families(transforms: Iterable[str]) -> list[tuple[str, str]]:
    """Every transform with every family."""
    return [(t, f) for t in transforms for f in FAMILIES if t not in SLOW or f in ("search cell", "mixed op")]


def every_family(transforms: Iterable[str]) -> pytest.MarkDecorator:
    pairs = with_families(transforms)
    return pytest.mark.parametrize(("name", "family"), pairs, ids=map(" of ".join, pairs))


def drawn_module(family: str, statistics: bool) -> nn.Module:
    """With or without running statistics; the same at each call."""
    make, _, _ = FAMILIES[family]
    torch.manual_seed(0)
    module = make()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    if not statistics:
        torch.func.replace_all_batch_norm_modules_(module)
    return module


def fused_module(family: str, statistics: bool) -> nn.Module:
    fused = drawn_module(family, statistics)
    if isinstance(fused, (Supernet, SearchCell)):
        for cell in fused.modules():
            if isinstance(cell, (SearchCell, ResidualBlock)):
                cell.fused = True
    else:
        report = accelerate(fused)
        assert report.fused and not report.left
    return fused


Points = Callable[[Tensor, Tensor], list[tuple[Tensor, Tensor]]]


def as_given(x: Tensor, alpha: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x, alpha)]


def at_twice_alpha(x: Tensor, alpha: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x, 2 * alpha)]


def at_several_images(x: Tensor, alpha: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(images, alpha) for images in several(x)]


DIFFERENTIATED: dict[str, Points] = {
    "make_fx of grad": at_twice_alpha,
    "make_fx of a backward pass": at_twice_alpha,
    "gradients of a batch": at_several_images,
}
"""Where a transform computes derivatives, if not at x and alpha."""


@cache
def inputs(family: str, points: Points) -> tuple[Tensor, Tensor]:
    """x [3, C, 6, 6] and alpha, where no derivative jumps."""
    _, shape, channels = FAMILIES[family]

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        return normal(3, channels, 6, 6, seed=2 * seed), normal(*shape, seed=2 * seed + 1)

    def compute(drawn: tuple[Tensor, Tensor]) -> list[Tensor]:
        plain = drawn_module(family, statistics=True).double()
        return [plain.train(mode)(*point) for mode in (False, True) for point in points(*drawn)]

    return clear_of_jumps(draw, compute)[0]


def found(transform: Transform, module: nn.Module, x: Tensor, alpha: Tensor) -> list[Tensor]:
    """What comes out, and what the module's buffers have become."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about what is slow or on its way out
        out = transform(module, x, alpha)
    return [tensor.detach().clone() for tensor in flat([out, list(module.buffers())])]


def check(
    name: str, family: str, *, statistics: bool, training: bool = True, truth: Transform | None = None
) -> None:
    """The fused module in float32 against the plain one in float64, by the same transform or by `truth`."""
    transform = TRANSFORMS[name]
    x, alpha = inputs(family, DIFFERENTIATED.get(name, as_given))
    plain, fused = drawn_module(family, statistics).double(), fused_module(family, statistics)
    expected = found(truth or transform, plain.train(training), x.clone(), alpha.clone())
    actual = found(transform, fused.train(training), x.float(), alpha.float())
    largest = [float(truth.abs().max()) if truth.numel() else 0.0 for truth in expected]
    assert max(largest) > 0
    for value, truth, scale in zip(actual, expected, largest, strict=True):
        assert value.shape == truth.shape
        tolerance = 1e-4 * (scale + max(largest) / 10)  # a gradient may be zero but for rounding
        torch.testing.assert_close(value.double(), truth.double(), rtol=0, atol=tolerance)


@every_family(FUNC)
def test_functions_of_torch_func(name: str, family: str) -> None:
    check(name, family, statistics=False)


@every_family(FORWARD)
def test_forward_mode(name: str, family: str) -> None:
    check(name, family, statistics=True)


@pytest.mark.float32
@every_family(BACKWARD)
def test_backward_passes_of_any_kind(name: str, family: str) -> None:
    check(name, family, statistics=True)


@every_family(BATCHES)
@pytest.mark.parametrize(("training", "gradients"), [(True, True), (True, False), (False, False)])
def test_batches_of_calls(name: str, training: bool, gradients: bool, family: str) -> None:
    """With running statistics in evaluation and in ensembles; elsewhere PyTorch refuses to update them."""
    with torch.set_grad_enabled(gradients):
        check(name, family, statistics=not training or name == "ensemble", training=training)


@pytest.mark.parametrize(
    ("training", "name", "family"),
    [
        (training, name, family)
        for i, (name, family) in enumerate(with_families(TRACES))
        for training in (False, True)
        if name not in SLOW or training == (i + [*TRACES].index(name)) % 2
    ],
)
def test_traces(training: bool, name: str, family: str) -> None:
    """The slow ones of one family in training and of the other in evaluation, in turn."""
    check(name, family, statistics=True, training=training, truth=UNTRACED[name])


@pytest.mark.float32
@every_family(MODES)
def test_modes_around_a_step(name: str, family: str) -> None:
    check(name, family, statistics=True)


def test_linearised_functions() -> None:
    check("linearize", "cell", statistics=False, truth=lambda m, x, a: FUNC["jvp"](m, x, a)[1])


Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(function, backend="aot_eager")


def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def within_compile(how: Compile, m: nn.Module, x: Tensor, a: Tensor) -> Any:
    a = a.requires_grad_()
    return torch.autograd.grad(loss(how(m), x, a), [a, *m.parameters()])


def compiled_by(how: Compile) -> dict[str, Transform]:
    return {
        "compile": lambda m, x, a: within_compile(how, m, x, a),
        "compile of jvp": lambda m, x, a: how(lambda a: jvp(lambda a: m(x, a), (a,), (direction(a),)))(a),
        "compile of grad": lambda m, x, a: how(grad(lambda a: loss(m, x, a)))(a),
        "compile of vmap": lambda m, x, a: how(torch.vmap(lambda a: m(x, a)))(several(a)),
    }


COMPILED, UNCOMPILED = compiled_by(compiled), compiled_by(as_it_is)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_functions(name: str) -> None:
    """Against plain modules that are not compiled."""
    family = "search cell" if name == "compile of jvp" else "mixed op"
    check(name, family, statistics=False, truth=UNCOMPILED[name])


TRANSFORMS |= COMPILED | {"linearize": lambda m, x, a: linearize(lambda a: m(x, a), a)[1](direction(a))}

STAGE = Stage(normal(4, 1, 3, 3, seed=3), normal(4, 4, 1, 1, seed=4), 1, Norm(gamma=normal(4, seed=5)))
X, CELL_X = normal(2, 4, 5, 5), normal(1, 2, 4, 5, 5)
CONVOLUTIONS = [normal(3, 4, 4, 1, 1, seed=1), normal(3, 4, 4, 3, 3, seed=2)]
MEAN, VARIANCE = normal(3, 2, 4, seed=3), normal(3, 2, 4, seed=4).square() + 0.5
RESIDUAL = [
    normal(2, 4, 6, 6),
    *(normal(6, c, k, k, seed=c + k) for c, k in ((4, 3), (6, 3), (4, 1))),
    normal(2, 6, seed=1),
    normal(2, 6, seed=2),
]
CALLS: dict[str, tuple[str, list[Any], Iterable[int]]] = {
    "relu_conv": ("relu_conv", [X, *CONVOLUTIONS], range(3)),
    "relu_pointwise": ("relu_pointwise", [X, [normal(6, 4, 1, 1, seed=1)]], [0]),
    "relu_pointwise of stride 2": ("relu_pointwise", [X, list(normal(2, 3, 4, 1, 1, seed=1)), 2], [0]),
    "mixed_sum": ("mixed_sum", [*([x] for x in normal(3, 1, 2, 4, 5, 5)), normal(1, 1, 5, seed=4)], [3]),
    "mixed_op": (
        "mixed_op",
        [CELL_X, normal(1, 3, seed=1), [Skip(), Pool("max", Norm()), SepConv((STAGE,))]],
        range(2),
    ),
    "mixed_op of variants": (
        "mixed_op",
        [CELL_X, normal(2, 2, seed=1), [Pool("avg"), SepConv((STAGE, STAGE))], 2],
        range(2),
    ),
    "mixed_cell": ("mixed_cell", [CELL_X, *CONVOLUTIONS, normal(1, 3, 5)], range(4)),
    "mixed_cell of variants": ("mixed_cell", [CELL_X, *CONVOLUTIONS, normal(3, 3, 5)], range(4)),
    "masked_cell": (
        "masked_cell",
        [CELL_X, *CONVOLUTIONS, MEAN, VARIANCE, normal(2, 3, 5, seed=5)],
        (0, 1, 2, 5),  # statistics are constants
    ),
    "residual_block": ("residual_block", RESIDUAL, range(6)),
    "trained_residual_block": ("trained_residual_block", RESIDUAL, range(6)),
}
"""Op, arguments, and which of these are transformed."""


def output(op: str, args: list[Any]) -> Tensor:
    """All that can be differentiated, as one vector."""
    out = getattr(ops, op)(*args)
    outputs = flat(out) if op == "relu_conv" else [out] if isinstance(out, Tensor) else [out[0]]
    return torch.cat([tensor.flatten() for tensor in outputs])


def of_place(op: str, args: list[Any], place: int) -> Callable[[Tensor], Tensor]:
    return lambda value: output(op, [*args[:place], value, *args[place + 1 :]])


OF_AN_ARGUMENT: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, v: grad(lambda v: f(v).square().sum())(v),
    "jvp": lambda f, v: jvp(f, (v,), (direction(v),)),
    "jvp without gradients": lambda f, v: torch.no_grad()(jvp)(f, (v,), (direction(v),)),
    "vmap": lambda f, v: torch.vmap(f)(several(v)),
    "dual numbers": lambda f, v: with_tangents(f, v),
    "jit.trace": lambda f, v: torch.jit.trace(f, (v,), check_trace=False)(v.flip(0) + 0.25),
}


@pytest.mark.parametrize("transform", OF_AN_ARGUMENT)
@pytest.mark.parametrize("call", CALLS)
def test_ops_by_each_argument(call: str, transform: str) -> None:
    op, args, places = CALLS[call]
    warnings.simplefilter("ignore", torch.jit.TracerWarning)  # shapes are taken for constants
    for place in places:
        truth = OF_AN_ARGUMENT[transform](of_place(op, args, place), args[place])
        single = with_tensors(args, lambda tensor: tensor.float())
        value = OF_AN_ARGUMENT[transform](of_place(op, single, place), single[place])
        for own, expected in zip(flat([value]), flat([truth]), strict=True):
            tolerance = 1e-4 * float(expected.abs().max())
            torch.testing.assert_close(own.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("call", CALLS)
def test_the_arguments_are_clear_of_jumps(call: str) -> None:
    """Or derivatives in float32 would be others than those in float64, on some machine."""
    op, args, _ = CALLS[call]
    with Jumps() as jumps:
        output(op, args)
    assert jumps.clearance > CLEARANCE


def test_a_kernel_that_is_asked_for_by_name_refuses_a_transform() -> None:
    args = CALLS["mixed_cell"][1]
    with pytest.raises(UserError, match="cpu: has no mixed_cell for transforms"):
        torch.vmap(lambda x: ops.mixed_cell(x, *args[1:], backend="cpu")[0])(several(args[0]))


def test_what_is_made_within_a_transform_or_mode_does_not_leave_it() -> None:
    """Tensors that are kept for later calls are real ones."""
    args = CALLS["mixed_cell of variants"][1]
    expected = ops.mixed_cell(*args, backend="pytorch")[0]
    sharing.kept_index.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        sharing.pick(torch.ones(3, 1, 1, 1, 1), [0, 2])
        sharing.index((0, 1, 2), torch.device("cpu"))
    torch.func.grad(lambda x: ops.mixed_cell(x, *args[1:], backend="pytorch")[0].sum())(args[0])
    assert torch.equal(ops.mixed_cell(*args, backend="pytorch")[0], expected)
    assert type(sharing.index((0, 1, 2), torch.device("cpu"))) is Tensor
