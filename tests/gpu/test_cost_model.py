"""The cost model: what it counts against direct counts, how counts scale, and the times that follow."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fresh_process import run_python
from places import ROOT
from torch.utils.flop_counter import FlopCounterMode

from vpdarts_fast import ops
from vpdarts_fast.analysis import cost_model
from vpdarts_fast.analysis.cost.counting import DEVICE, counting
from vpdarts_fast.analysis.cost.phases import Setting, evaluation, training_steps
from vpdarts_fast.analysis.cost.roofline import GPUS, Assumptions, Roofline, reported_gpu
from vpdarts_fast.analysis.cost.work import Tally, Uncountable, Work
from vpdarts_fast.backends import cuda
from vpdarts_fast.contract import reference
from vpdarts_fast.search.config import SearchConfig

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is launched"),
    pytest.mark.usefixtures("one_thread"),
]

SHARED = GPUS["h100"].shared_bytes
SMALL = SearchConfig().replaced(
    channels=4, cells_per_stage=1, batch_size=8, evaluation_batch_size=256, batch_norm="recalibrated"
)


def setting(**changes: Any) -> Setting:
    return Setting(SMALL.replaced(**changes), 2048, 8, 10, torch.float32, SHARED)


@cache
def steps(some: Setting) -> tuple[Tally, ...]:
    """Counted once for all tests, none of which changes them."""
    return tuple(training_steps(some, True))


def tally_of(run: Callable[[], object]) -> Tally:
    with counting(SHARED) as count, count:
        run()
    return count.tally


def on_device(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device=DEVICE)


def test_ops_of_pytorch() -> None:
    """Launches, bytes and products of some, by hand; views cost nothing, nor does what runs on the host."""

    def run() -> None:
        x, weight = on_device(2, 3, 8, 8), on_device(5, 3, 3, 3)
        out = F.conv2d(x, weight, padding=1)
        out.add_(1.0)
        out.view(2, -1).T.unsqueeze(0)
        torch.ones(7).add(1)
        torch.stack([out] * 129)

    work = tally_of(run).work
    n, size = 2 * 5 * 64, 4
    assert dict(work) == {
        Work("convolution", 1, size * (2 * 3 * 64 + 5 * 27 + n), 2 * n * 27, "matrix"): 1,
        Work("add", 1, size * 2 * n, n): 1,
        Work("cat", 2, size * 2 * 129 * n): 1,
    }


def test_an_unknown_op_is_an_error() -> None:
    with pytest.raises(Uncountable, match=r"does not know what aten\.sort"):
        tally_of(lambda: on_device(4).sort())


def test_a_gradient_is_counted() -> None:
    """The weights' gradient and the input's are a kernel each, and only what is wanted is computed."""

    def run(wants_x: bool) -> Tally:
        def step() -> None:
            x = on_device(2, 3, 8, 8).requires_grad_(wants_x)
            weight = on_device(5, 3, 3, 3).requires_grad_()
            F.conv2d(x, weight).sum().backward()  # type: ignore[no-untyped-call]

        return tally_of(step)

    both, one = (run(wants_x).by_kernel()["convolution_backward"] for wants_x in (True, False))
    assert (both, one) == (2, 1)


@pytest.mark.parametrize(("tensors", "launches"), [(7, 1), (448, 1), (449, 2)])
def test_an_optimiser_updates_many_tensors_in_a_launch(tensors: int, launches: int) -> None:
    def step() -> None:
        parameters = [on_device(3).requires_grad_() for _ in range(tensors)]
        for parameter in parameters:
            parameter.grad = on_device(3)
        torch.optim.SGD(parameters, lr=0.1).step()

    assert tally_of(step).by_kernel()["_foreach_add"] == launches


def test_values_that_the_host_made_can_be_read_back() -> None:
    """Also through views and changes; those of results are not known."""
    seen: list[Any] = []

    def run() -> None:
        table = torch.full((2, 2), 0.5, device=DEVICE)
        table.view(-1)[1:2].mul_(0)
        seen.extend([table.tolist(), bool((table != 0).all())])
        table[0] += on_device(2)
        seen.append(float(table[0, 0]))
        with pytest.raises(Uncountable, match="does not know"):
            bool(on_device(1) > 0)

    assert tally_of(run).reads == 4
    assert seen[:2] == [[[0.5, 0.0], [0.5, 0.5]], False] and seen[2] != seen[2]


def test_what_one_of_our_own_ops_runs_is_counted() -> None:
    """Also ops of PyTorch that are made of others, as which they come where there is no autograd."""

    def run() -> None:
        with torch._C._AutoDispatchBelowAutograd():
            x, weight = on_device(2, 3, 8, 8), on_device(3, 3, 3, 3)
            F.conv2d(x, weight, padding=1).movedim(1, -1).contiguous()

    assert dict(tally_of(run).by_kernel()) == {"convolution": 1, "clone": 1}


CALLS = [("mixed_cell", [1, 1, 3, 2]), ("mixed_cell", [2, 1, 3, 2]), ("masked_cell", [3, 1, 40, 8])]
"""Op and V, N, C, H = W; of masked_cell whole blocks of 64 pixels, so that no product is wasted."""


def test_triton_launches_are_those_of_the_interpreter() -> None:
    """The same kernels as often, and as many products, as really run."""
    import triton_launches

    command = [str(ROOT / "tests/support/triton_launches.py"), json.dumps(CALLS)]
    status, output = run_python(command, ROOT, {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})
    assert status == 0, output[-3000:]
    for (name, sizes), real in zip(CALLS, json.loads(output.splitlines()[-1]), strict=True):
        tally = tally_of(lambda name=name, sizes=sizes: getattr(triton_launches, name)(*sizes, str(DEVICE)))
        launches = tally.by_kernel()
        assert {kernel: launches[kernel] for kernel in real["launches"]} == real["launches"]
        products = sum(n * work.flops for work, n in tally.work.items() if work.kernel == "cell_node")
        assert products == real["products"]


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_products_of_a_masked_cell(backend: str) -> None:
    """As many as the reference's, which convolves for every variant and edge; variants share nothing here."""
    if backend == "cuda":
        pytest.importorskip("vpdarts_fast._C")
    v, n, c, size = 3, 2, 16, 8

    def arguments(device: torch.device) -> list[torch.Tensor]:
        shapes = (v, n, c, size, size), (6, c, c, 1, 1), (6, c, c, 3, 3), (6, 2, c), (6, 2, c), (v, 6, 5)
        return [torch.ones(shape, device=device) for shape in shapes]

    def run() -> None:
        ops.masked_cell(*arguments(DEVICE), backend=backend)

    tally = tally_of(run)
    with FlopCounterMode(display=False) as counter:
        reference.masked_cell(*arguments(torch.device("cpu")))
    direct = counter.get_total_flops() * 9 // 10  # the 1x1 convolution lies in the 3x3's centre tap
    assert sum(n * work.flops for work, n in tally.work.items() if work.unit == "matrix") == direct
    kernels = {
        "triton": {"fold_weights": 1, "cell_node": 3},
        "cuda": {"masked_cell prepare": 1, "masked_cell fold": 1, "masked_cell": 1},
    }
    others = ("ones", "to", "clone")  # the arguments made, the plan sent, x laid out
    made = {kernel: n for kernel, n in tally.by_kernel().items() if kernel not in others}
    assert made == kernels[backend]


def test_a_lone_tensor_is_no_cell_to_refuse() -> None:
    """Leave-one-out asks for the backend before it has the input of a cell."""
    assert cuda.refusal("masked_cell", [torch.empty(2, 3, 4, 4)]) is None


def test_training_steps_scale() -> None:
    """Launches with the cells alone, bytes with the batch, products with the square of C."""
    changes = ({}, {"cells_per_stage": 2}, {"channels": 8, "batch_size": 16})
    for one, two, large in zip(*(steps(setting(**some)) for some in changes), strict=True):
        for kernel, nodes in (("form_node", 9), ("differentiate_node", 12), ("block_statistics", 9)):
            assert (one.by_kernel()[kernel], two.by_kernel()[kernel]) == (nodes, 2 * nodes)
        assert large.kernels == one.kernels < two.kernels
        assert one.launches == two.launches == 3, "two arguments copied, and a graph"
        assert 3 < large.bytes / one.bytes < 4 and 7 < large.flops / one.flops < 8
        assert one.reads == 0, "nothing is read back in a step"


@pytest.fixture(scope="module")
def counted() -> cost_model.Counted:
    return cost_model.count(replace(setting(), images=512))


def test_plain_and_fused_steps(counted: cost_model.Counted) -> None:
    """Both convolve as much; what surrounds the convolutions is launched less and moves less."""
    for phase in ("weights step", "alpha step"):
        eager, ours = counted.eager[phase], counted.ours[phase]
        convolutions = (
            sum(n * w.flops for w, n in tally.work.items() if w.kernel.startswith("convolution"))
            for tally in (eager, ours)
        )
        assert len(set(convolutions)) == 1
        assert ours.kernels < eager.kernels and ours.bytes < eager.bytes


def test_leave_one_out(counted: cost_model.Counted) -> None:
    """Every network of the plain loop is counted, and each batch costs the same."""
    eager, ours = (side["leave-one-out"] for side in (counted.eager, counted.ours))
    assert eager.by_kernel()["relu"] == (31 + 1) * (3 * 6 * 2 + 2 * 2 + 1), "one more calibrates"
    assert ours.kernels * 10 < eager.kernels and ours.bytes * 10 < eager.bytes
    some = [evaluation(replace(counted.setting, images=n * 512), fused=True) for n in (5, 6, 7)]
    for quantity in ("kernels", "bytes", "flops"):
        five, six, seven = (getattr(tally, quantity) for tally in some)
        assert seven - six == six - five > 0
    assert some[2].launches - some[1].launches == 3, "two arguments copied, and a graph"


def test_half_precision_moves_half_the_bytes() -> None:
    """Of activations and weights; batch norms, alphas and the classifier stay as they are."""
    floats, own = setting(), setting(batch_norm="variant")
    halves, own_halves = (replace(some, dtype=torch.bfloat16) for some in (floats, own))
    for wide, half in zip(
        (*steps(floats), evaluation(floats, True), evaluation(own, True)),
        (*steps(halves), evaluation(halves, True), evaluation(own_halves, True)),
        strict=True,
    ):
        assert 0.5 < half.bytes / wide.bytes < 0.6 and half.flops == pytest.approx(wide.flops, rel=0.02)


def test_roofline() -> None:
    """Whatever takes longest; a product in a precision with tensor cores is theirs."""
    some = Assumptions(1.0, 1.0, 0.5, 2.0, 5.0, 1.0)
    fp32, tf32 = (Roofline(GPUS["h100"], precision, some) for precision in ("fp32", "tf32"))
    assert fp32.seconds(Work("tiny", 3, 8)) == 6e-6
    assert fp32.seconds(Work("copy", 1, 3_350_000_000)) == pytest.approx(1e-3)
    product = Work("product", 1, 8, 66_900_000_000, "matrix")
    assert fp32.seconds(product) == pytest.approx(1e-3)
    assert tf32.seconds(product) == pytest.approx(1e-3 * 66.9 / (494.7 / 2))
    tally = Tally()
    tally.work[Work("tiny", 1, 8)] = 10
    assert fp32.busy(tally) == pytest.approx(20e-6)
    assert fp32.seconds_of(tally) == pytest.approx(50e-6)
    graph = Tally()
    graph.add_replay(tally)
    assert (graph.launches, graph.kernels) == (1, 10)
    assert fp32.seconds_of(graph) == pytest.approx(30e-6) and fp32.one_by_one(graph) == pytest.approx(50e-6)


def test_a_gpu_is_known_by_what_its_driver_calls_it() -> None:
    """An H200 is an H100 with other memory; other forms of a product are not known."""
    h100, h200 = GPUS["h100"], GPUS["h200"]
    assert reported_gpu("NVIDIA H200") is h200 and reported_gpu("NVIDIA H100 80GB HBM3") is h100
    assert h200.peak == h100.peak and h200.shared_bytes == h100.shared_bytes
    copy = Work("copy", 1, 10**9)
    slow, fast = (Roofline(gpu, "bf16", Assumptions()).seconds(copy) for gpu in (h100, h200))
    assert slow / fast == pytest.approx(4.8 / 3.35)
    for other in ("NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA GH200 480GB", "NVIDIA A100-SXM4-40GB", ""):
        assert reported_gpu(other) is None


def test_command(
    counted: cost_model.Counted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prints every assumption and target; the file holds the same."""
    monkeypatch.setattr(cost_model, "count", lambda setting: counted)
    path = tmp_path / "costs.json"
    assert cost_model.main(["--gpu", "a100", "--launch-us", "7", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(path.read_text())
    assert "A100 SXM 80 GB" in printed and "launch_us 7.0" in printed
    assert content["assumptions"]["launch_us"] == 7
    joined = " ".join(printed.split())
    assert all(" ".join(line.split()) in joined for line in content["assumptions"]["counting"])
    assert all(target in printed for target in content["targets"])
    weights = content["phases"]["weights step"]
    assert weights["fewer"]["kernels"] == weights["eager"]["kernels"] / weights["ours"]["kernels"]
    phases = content["phases"].values()
    total = sum(phase["ours"]["seconds"] * phase["times_in_a_search"] for phase in phases)
    assert content["search"]["ours"]["seconds"] == pytest.approx(total)
    with pytest.raises(SystemExit, match="2"):
        cost_model.main(["--bandwidth-share", "2"])
    assert "--bandwidth-share must be in (0, 1]" in capsys.readouterr().err
