"""How close a float32 result must be to the truth, on whatever machine: what all tests of float32 share.

Two float32 computations of the same thing round differently: by the order of their sums, which depends on
the instruction set, the memory layout and the number of threads. Training then makes the difference grow,
and where a ReLU's input or the two largest values of a pooling window lie within rounding of each other, a
gradient jumps. So:

- results are held against the truth, which is the plain computation in float64 of the same float32 values;
- every step of training starts from the state that the truth has reached, whatever the steps before made of
  it: `assert_trains_alike`;
- the truth's inputs are drawn again where it comes near such a jump: `clear_of_jumps`.

What is left is the rounding of one step, far less than `BOUNDS`; test_closeness.py holds that the plain
modules stay within them however they are run, and that an error of 1e-3 in any one gradient does not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4}
"""The greatest error of a tensor, relative to the largest element of its truth."""

ZERO = 1e-10
"""A truth that is this much smaller than the largest tensor beside it is rounding: the sum is zero."""

CLEARANCE = 3e-6
"""How far the truth keeps from jumps, relative to the largest element of the tensor they are in: three times
the greatest error of float32 in a whole supernet."""

STEPS = {torch.float64: 3, torch.float32: 2}
"""Of training: from the start, with momentum and, in float64, from where both models have come to."""

Drawn = TypeVar("Drawn")
Truth = TypeVar("Truth")
Results = dict[str, Tensor]


def assert_close_to_truth(results: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> None:
    """Every tensor is within the bound of its own dtype; numbers that are counts are equal."""
    assert results.keys() == truth.keys(), "not the same tensors"
    largest = max((_largest(tensor) for tensor in truth.values()), default=0.0)
    for name, wanted in truth.items():
        result = results[name]
        assert result.shape == wanted.shape, f"{name}: {list(result.shape)}, not {list(wanted.shape)}"
        if not result.is_floating_point():
            assert torch.equal(result, wanted), name
            continue
        scale = _largest(wanted)
        bound = BOUNDS[result.dtype] * (scale if scale > ZERO * largest else largest)
        error = _largest(result.detach().double() - wanted.detach().double())
        assert error <= bound, f"{name}: off by {error:.1e}, {error / max(scale, 1e-300):.1e} of the largest"


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() and tensor.is_floating_point() else 0.0


class Jumps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, `clearance` is how near its ReLUs and maxima have come to a jump of a gradient.

    Relative to the largest element of their input. Exact zeros and exact ties stay what they are in any
    order of summation, and so does a leaf, which nothing has rounded: they do not count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.clearance = torch.inf

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if args and isinstance(args[0], Tensor) and args[0].is_leaf:
            pass
        elif name in ("relu", "relu_"):
            self._note(args[0], args[0])
        elif name == "max_pool2d_with_indices":
            self._note(args[0], _gaps(*args))
        return func(*args, **(kwargs or {}))

    def _note(self, x: Tensor, distances: Tensor) -> None:
        distances = distances[distances != 0].abs()
        if distances.numel():
            self.clearance = min(self.clearance, float(distances.min() / x.abs().max()))


def _gaps(x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, *_: Any) -> Tensor:
    """Between the two largest values of every window that has two."""
    border = [padding] * 2 if isinstance(padding, int) else padding
    padded = F.pad(x, (border[-1], border[-1], border[0], border[0]), value=-torch.finfo(x.dtype).max)
    windows = F.unfold(padded.flatten(0, 1)[:, None], kernel, stride=stride or kernel)
    first, second = windows.topk(2, dim=1).values.unbind(1)
    return (first - second)[second > -torch.finfo(x.dtype).max]


def clear_of_jumps(draw: Callable[[int], Drawn], compute: Callable[[Drawn], Truth]) -> tuple[Drawn, Truth]:
    """The first draw, by a seed, whose truth keeps its clearance; and that truth, `compute` of the draw."""
    for seed in range(1, 100):
        drawn = draw(seed)
        with Jumps() as jumps:
            truth = compute(drawn)
        if jumps.clearance > CLEARANCE:
            return drawn, truth
    raise AssertionError("every draw came near a jump: take smaller tensors")


class Training:
    """A module and what trains it; copied as one.

    Args:
        module: its parameters and buffers are the state.
        step: trains the module by the optimiser on images, once; returns further tensors to compare.
        weights: the parameters that the optimiser trains, all by default.
    """

    def __init__(
        self,
        module: nn.Module,
        step: Callable[[Any, torch.optim.Optimizer, Tensor], Results],
        weights: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self.module: Any = module
        self.step = step
        trained = [parameter for name, parameter in module.named_parameters() if weights(name)]
        self.optimiser = torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=1e-3)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Sets all parameters and buffers in place, each in its own dtype; the momentum starts anew."""
        self.optimiser.state.clear()
        with torch.no_grad():
            for name, tensor in self.module.state_dict().items():
                tensor.copy_(state[name])

    def results(self, images: Tensor) -> Results:
        """What a step returns, all gradients, and the state after it."""
        found = self.step(self.module, self.optimiser, images)
        gradients = {f"gradient of {name}": p.grad for name, p in self.module.named_parameters()}
        found |= {name: gradient for name, gradient in gradients.items() if gradient is not None}
        return {name: tensor.detach().clone() for name, tensor in (found | self.module.state_dict()).items()}


def assert_trains_alike(
    plain: Training, other: Training, draw: Callable[[int], Tensor], steps: int | None = None
) -> None:
    """`other` computes in every step of training what `plain` does, which is left to PyTorch's operations.

    In float64 both train on; in float32 every step starts from the state that the truth has reached.

    Args:
        draw: images [N, C, H, W] by a seed, in the dtype of the modules.
        steps: how many; `STEPS` by default.
    """
    dtype = draw(1).dtype
    steps = STEPS[dtype] if steps is None else steps
    if dtype == torch.float64:
        for seed in range(1, steps + 1):
            assert_close_to_truth(other.results(draw(seed)), plain.results(draw(seed)))
        return
    truth = copy.deepcopy(plain)
    truth.module.double()
    for k in range(steps):
        start = {name: tensor.float() for name, tensor in truth.module.state_dict().items()}

        def true_results(images: Tensor, start: Results = start) -> Results:
            truth.load(start)
            return truth.results(images.double())

        images, expected = clear_of_jumps(lambda seed, k=k: draw(100 * k + seed), true_results)
        for training in (plain, other):
            training.load(start)
            assert_close_to_truth(training.results(images), expected)
