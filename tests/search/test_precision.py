"""--precision: the settings it changes, a step and an evaluation in bfloat16, a search from end to end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from leave_one_out_cases import every_mode
from search_calls import SHORT, outcome, run, stop_at
from search_commands import TINY, error_of, stop_after
from torch import Tensor

from vpdarts_fast import Supernet, build_network, leave_one_out
from vpdarts_fast.data import ImageData, split_halves
from vpdarts_fast.errors import UserError
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runtime.precision import Precision, computing_in
from vpdarts_fast.search import Interrupted, RunFolder
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.step import alpha_step, weights_step

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

BRIEF = SHORT.replaced(max_images=128, warmup_epochs=1, pruning_epochs=1, channels=4)


def settings() -> list[str]:
    """Of products of float32."""
    backends = torch.backends
    products = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    return [product.fp32_precision for product in products]


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU with tensor cores for it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


@pytest.fixture(params=["highest", "high", "medium"])
def older_settings(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """What a program has chosen before, through PyTorch's older interface."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield settings()
    assert torch.get_float32_matmul_precision() == request.param, "the older interface still works"
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [("fp32", CPU, "ieee"), ("fp32", CUDA, "ieee"), ("bf16", CPU, "ieee"), ("tf32", CUDA, "tf32")],
)
@pytest.mark.usefixtures("ampere")
def test_settings_are_made_and_unmade_without_a_warning(
    precision: Precision, device: torch.device, expected: str, older_settings: list[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ZeroDivisionError), computing_in(precision, device):
            assert settings() == [expected] * 4
            autocasts = torch.is_autocast_enabled("cpu")
            assert autocasts == (precision == "bf16")
            if autocasts:
                assert torch.get_autocast_dtype("cpu") == torch.bfloat16
                assert not torch.is_autocast_cache_enabled(), "a CUDA graph cannot capture it"
            raise ZeroDivisionError
    assert settings() == older_settings
    assert not torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_gpu_without_the_tensor_cores_is_refused(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    before = settings()
    with (
        pytest.raises(
            UserError, match=f"--precision {precision} needs .*8.0 or later; T4 has none: use fp32"
        ),
        computing_in(precision, CUDA),
    ):
        pass
    assert settings() == before
    with computing_in("fp32", CUDA):
        pass


def gradients(
    digits: ImageData, precision: Precision, fused: bool
) -> tuple[Supernet, float, dict[str, Tensor]]:
    """The supernet after a step of each phase that changes no parameter; loss; all gradients by name."""
    images, labels = split_halves(digits, 0)[0].batch(torch.arange(64))
    torch.manual_seed(0)
    supernet = Supernet(channels=8, cells_per_stage=1, fused=fused).train()
    alpha = supernet.new_alpha().requires_grad_()
    torch.manual_seed(1)  # the dropout's
    with computing_in(precision, CPU):
        still = torch.optim.SGD([*supernet.parameters(), alpha], lr=0.0)
        loss, _ = weights_step(supernet, alpha, (images, labels), still, gradient_clip=1e9)
        result = {name: p.grad.clone() for name, p in supernet.named_parameters() if p.grad is not None}
        alpha_step(supernet, alpha, torch.ones_like(alpha), (images, labels), still)
    assert alpha.grad is not None
    return supernet, float(loss), result | {"alpha": alpha.grad}


def relative_error(gradient: Tensor, exact: Tensor) -> float:
    return float((gradient - exact).norm() / exact.norm())


@pytest.mark.float32
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "modules"])
def test_a_step_in_bfloat16(digits: ImageData, fused: bool) -> None:
    """bfloat16 rounds away a third of a gradient at most, which is less than any wrong one is off."""
    exact, exact_loss, exact_gradients = gradients(digits, "fp32", fused=True)
    supernet, loss, rounded = gradients(digits, "bf16", fused)
    assert loss == pytest.approx(exact_loss, abs=0.002) and loss != exact_loss
    for name, wanted in exact_gradients.items():
        assert rounded[name].dtype == torch.float32, name
        assert relative_error(rounded[name], wanted) < 0.5, name
        for planted in (0 * rounded[name], -rounded[name], 2 * rounded[name]):
            assert relative_error(planted, wanted) > 0.5, name
    expected = exact.state_dict()
    for name, value in supernet.state_dict().items():
        assert value.dtype == expected[name].dtype, name
        if "running" in name:
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, expected[name], rtol=0.005, atol=0.005)


@pytest.mark.float32
@every_mode
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "modules"])
@pytest.mark.usefixtures("calibrate_on_few")
def test_leave_one_out_in_bfloat16(digits: ImageData, mode: str, fused: bool) -> None:
    batches = [split_halves(digits, 0)[1].batch(torch.arange(start, start + 30)) for start in (0, 30)]
    supernet, *_ = gradients(digits, "fp32", fused=True)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    expected = leave_one_out(supernet, batches, supernet.new_alpha(), batch_norm=mode)  # type: ignore[arg-type]
    with computing_in("bf16", CPU):
        found = leave_one_out(supernet, batches, supernet.new_alpha(), batch_norm=mode, batched=fused)  # type: ignore[arg-type]
    changed = float(expected.loss.max() - expected.loss.min())  # of which a fiftieth is rounded away
    assert float((found.loss - expected.loss).abs().max()) < 0.1 * changed
    assert not torch.equal(found.loss, expected.loss)
    for name, value in supernet.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_logits_stay_float32(digits: ImageData) -> None:
    """Rounded to bfloat16, too many of a supernet's would be equal."""
    images, _ = split_halves(digits, 0)[0].batch(torch.arange(8))
    for network, rest in ((Supernet(4, 1), [Supernet(4, 1).new_alpha()]), (build_network(0, 4, 1), [])):
        with computing_in("bf16", CPU):
            logits = network(images, *rest)
        assert logits.dtype == torch.float32
        assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.float32
def test_a_search_in_bfloat16(digits: ImageData, tmp_path: Path) -> None:
    """Near that in float32, with a checkpoint in float32; stopped and continued, the same bits."""
    fp32 = BRIEF.replaced(batch_norm="running")
    bf16 = fp32.replaced(precision="bf16")
    run(fp32, digits, tmp_path / "fp32")
    run(bf16, digits, tmp_path / "bf16")
    for exact, found in zip(*(RunFolder(tmp_path / p).metrics() for p in ("fp32", "bf16")), strict=True):
        assert found["weights_loss"] == pytest.approx(exact["weights_loss"], rel=0.02)
        assert found["weights_loss"] != exact["weights_loss"]
        if exact["alpha_loss"] is not None:
            assert found["alpha_loss"] == pytest.approx(exact["alpha_loss"], rel=0.02)
            losses = [metrics["importance"]["base_loss"] for metrics in (found, exact)]
            assert losses[0] == pytest.approx(losses[1], rel=0.02)
    content = checkpoint.load(RunFolder(tmp_path / "bf16").checkpoint)
    tensors = [*content["supernet"].values(), content["alpha"]]
    tensors += [
        value
        for part in ("weights_optimizer", "alpha_optimizer")
        for entry in content[part]["state"].values()
        for value in entry.values()
        if isinstance(value, Tensor)
    ]
    assert {t.dtype for t in tensors} == {torch.float32, torch.int64}
    with pytest.raises(Interrupted):
        run(bf16, digits, tmp_path / "parts", stop_at(3))
    run(bf16, digits, tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "bf16")


def test_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert main([*TINY, "--precision", "bf16", "--device", "cpu", "--out", str(folder)]) == 130
    printed = capsys.readouterr().out
    assert "\nbackends: training pytorch, leave-one-out pytorch (not cpu: " in printed
    said = error_of(["--resume", str(folder), "--precision", "fp32", "--backend", "pytorch"], capsys)
    assert "--precision: the run has bf16, asked for fp32" in said
    assert "--backend" not in said, "what a search runs on may change"
    said = error_of([*TINY, "--precision", "tf32", "--device", "cpu"], capsys)
    assert "--precision tf32 is for CUDA devices; on cpu use fp32 or bf16" in said
    said = error_of([*TINY, "--precision", "bf16", "--device", "cpu", "--backend", "cpu"], capsys)
    assert "backend cpu cannot serve this search\n  mixed_cell, trained_residual_block, masked_cell" in said
    assert not (tmp_path / "runs").exists(), "no folder is left of a search that cannot begin"
