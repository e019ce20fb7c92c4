"""Estimated removals: the gradient of the loss by the weights of the ops, in float64 and on the fused ops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from leave_one_out_cases import make_alpha, make_batches, make_supernet
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import NONES, leave_one_out
from vpdarts_fast.evaluation.taylor import taylor
from vpdarts_fast.search import RunFolder, running
from vpdarts_fast.search.__main__ import main
from vpdarts_fast.search.methods.criteria import Criterion, TaylorCriterion
from vpdarts_fast.spaces.nas_bench_201 import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_estimate_is_the_weight_times_the_gradient() -> None:
    """Of the mean loss over all images, each batch normalised by itself."""
    torch.manual_seed(0)
    supernet = Supernet(4, 1, 4, skip_dropout=0.0).double()
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator), torch.arange(n) % 4)
        for n in (8, 5)
    ]
    alpha = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    state = {name: value.clone() for name, value in supernet.state_dict().items()}
    found = taylor(supernet, batches, alpha, nones=NONES)

    def mean_loss(alpha: Tensor) -> Tensor:
        supernet.train()
        losses = [-supernet(x, alpha).log_softmax(1)[range(len(y)), y].sum() for x, y in batches]
        return torch.stack(losses).sum() / 13

    leaf = alpha.clone().requires_grad_()
    loss = mean_loss(leaf)
    (gradient,) = torch.autograd.grad(loss, leaf)
    expected = (alpha * gradient).abs() * ~NONES
    torch.testing.assert_close(found.loss, found.base_loss + expected, rtol=1e-9, atol=1e-12)
    assert found.base_loss == pytest.approx(float(loss.detach())) and found.images == 13
    assert (found.accuracy == found.base_accuracy).all()
    supernet.load_state_dict(state)
    supernet.eval()
    again = taylor(supernet, batches, alpha, nones=NONES)
    assert torch.equal(again.loss, found.loss), "any mode"
    assert all(torch.equal(value, state[name]) for name, value in supernet.state_dict().items())
    assert not supernet.training and all(p.requires_grad for p in supernet.parameters())
    only = torch.zeros(6, 5, dtype=torch.bool)
    only[2, 3] = True
    some = taylor(supernet, batches, alpha, nones=NONES, only=only)
    assert some.loss[2, 3] == found.loss[2, 3] and (some.loss[~only] == some.base_loss).all()
    with pytest.raises(UserError, match="taylor: no images"):
        taylor(supernet, [], alpha)


def test_small_weights_are_estimated_as_they_are_removed() -> None:
    """To the first order, so the closer the smaller the weight is; `batch` has the same statistics."""
    supernet, alpha = make_supernet().double(), make_alpha().double()
    batches = [(images.double(), labels) for images, labels in make_batches(16)]
    small = torch.zeros(6, 5, dtype=torch.bool)
    small[[0, 2, 4, 5], [3, 1, 2, 4]] = True
    alpha[small] = 1e-4
    found = leave_one_out(supernet, batches, alpha, batch_norm="batch", batched=False)
    estimate = taylor(supernet, batches, alpha, nones=NONES)
    change, estimated = found.loss - found.base_loss, estimate.loss - estimate.base_loss
    torch.testing.assert_close(estimated[small], change[small].abs(), rtol=0.05, atol=2e-8)
    assert estimated[small].max() > 1e-6


def test_a_search_by_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "draw_pictures", lambda folder: [])
    assert main(["--criterion", "taylor", "--max-images", "64", "--channels", "4", "--batch-size", "16",
                 "--warmup-epochs", "1", "--pruning-epochs", "2", "--threads", "1", "--finalists", "0",
                 "--out", str(tmp_path / "run")]) == 0  # fmt: skip
    result = RunFolder(tmp_path / "run").result()
    assert result is not None and result["criterion"] == "taylor"
    found = result["importance"]
    best = [max(range(5), key=lambda op: row[op]) for row in found["loss"]]
    chosen = [op for _, op in result["drawing"]["chosen"]]
    assert chosen == best and Criterion.named("taylor") is TaylorCriterion
