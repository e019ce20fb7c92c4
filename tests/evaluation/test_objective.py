"""Losses and metrics by name, and leave-one-out by them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import leave_one_out
from vpdarts_fast.evaluation.objective import (
    ImageLoss,
    Metric,
    Objective,
    class_weights,
    metric_of,
    share_of_images,
)
from vpdarts_fast.evaluation.racing import Racing
from vpdarts_fast.spaces.darts import Darts
from vpdarts_fast.spaces.nas_bench_201 import Supernet

pytestmark = pytest.mark.usefixtures("one_thread", "calibrate_on_few")


@pytest.fixture
def predictions() -> tuple[Tensor, Tensor]:
    """Logits and labels of unbalanced classes, of which the last two have no images."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 60 + [1] * 25 + [2] * 10 + [3] * 5)
    logits = torch.randn(100, 6, generator=generator, dtype=torch.float64) + 2 * F.one_hot(labels, 6)
    return logits, labels


def test_label_smoothing_is_pytorchs(predictions: tuple[Tensor, Tensor]) -> None:
    loss = ImageLoss(smoothing=0.3)
    torch.testing.assert_close(loss(*predictions), F.cross_entropy(*predictions, label_smoothing=0.3))
    assert loss.of_images(*predictions).shape == (100,)


def test_weighted_classes_count_alike(predictions: tuple[Tensor, Tensor]) -> None:
    logits, labels = predictions
    weights = class_weights(labels, 6)
    torch.testing.assert_close(weights[:4] * labels.bincount(), torch.full((4,), 25.0).double())
    torch.testing.assert_close(weights[labels].mean(), torch.tensor(1.0).double())
    loss = ImageLoss(weights=weights)
    losses = F.cross_entropy(logits, labels, reduction="none")
    expected = torch.stack([losses[labels == label].mean() for label in range(4)]).mean()
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(logits, labels), F.cross_entropy(logits, labels, weights))
    torch.testing.assert_close(loss.of_images(logits, labels).mean(), expected)


def test_the_power_of_class_weights(predictions: tuple[Tensor, Tensor]) -> None:
    _, labels = predictions
    assert torch.allclose(class_weights(labels, 6, 0), torch.ones(6).double())
    halfway = class_weights(labels, 6, 0.5)
    assert halfway[1] / halfway[0] == pytest.approx((60 / 25) ** 0.5)
    assert halfway[labels].mean() == pytest.approx(1)


def test_focal_loss(predictions: tuple[Tensor, Tensor]) -> None:
    logits, labels = predictions
    right = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(ImageLoss(gamma=2)(logits, labels), (-((1 - right) ** 2) * right.log()).mean())
    torch.testing.assert_close(ImageLoss()(logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_gradient_of_the_focal_loss_is_finite_where_nothing_is_left_to_learn(gamma: float) -> None:
    logits = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    ImageLoss(gamma=gamma)(logits, torch.tensor([0])).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("metric", ["balanced-accuracy", "macro-f1"])
def test_metrics_are_scikit_learns(metric: Metric, predictions: tuple[Tensor, Tensor]) -> None:
    logits, labels = predictions
    predicted = logits.argmax(1)
    counts = [some.bincount(minlength=6) for some in (labels[predicted == labels], predicted, labels)]
    found = float(metric_of(metric, *counts))
    if metric == "macro-f1":
        expected = f1_score(labels, predicted, labels=[0, 1, 2, 3], average="macro")
    else:
        expected = recall_score(labels, predicted, labels=[0, 1, 2, 3], average="macro")
        share = share_of_images(labels)
        assert float(share.sum()) == pytest.approx(1)
        assert 100 * float(share[predicted == labels].sum()) == pytest.approx(found)
    assert found == pytest.approx(100 * expected)


# Leave-one-out --------------------------------------------------------------------------------------------


def batches(classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    labels = [torch.tensor([0] * 14 + [1] * 5 + [2]), torch.tensor([0] * 8 + [1] * 7)]
    return [(torch.randn(len(some), 3, 8, 8, generator=generator), some % classes) for some in labels]


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(channels=4, cells_per_stage=1, num_classes=3, fused=True)


@pytest.mark.parametrize("metric", ["balanced-accuracy", "macro-f1"])
@pytest.mark.parametrize("batched", [True, False])
def test_leave_one_out_by_classes(supernet: Supernet, metric: Metric, batched: bool) -> None:
    """The counts are of all batches together; accuracies by themselves stay what they were."""
    alpha = torch.rand(6, 5, generator=torch.Generator().manual_seed(2))
    losses = ImageLoss(weights=class_weights(torch.cat([labels for _, labels in batches()]), 3))
    found, plain = (
        leave_one_out(supernet, batches(), alpha, batch_norm="running", batched=batched, objective=objective)
        for objective in (Objective(losses.of_images, metric), None)
    )
    supernet.eval()
    labels = torch.cat([labels for _, labels in batches()])
    for edge, op in ((0, 3), (4, 2), (5, 1)):
        table = alpha.clone()
        table[edge, op] = 0
        with torch.no_grad(), supernet.plain():
            logits = torch.cat([supernet(images, table) for images, _ in batches()])
        predicted = logits.argmax(1)
        if metric == "macro-f1":
            expected = f1_score(labels, predicted, labels=[0, 1, 2], average="macro", zero_division=0)
        else:
            expected = balanced_accuracy_score(labels, predicted)
        assert float(found.accuracy[edge, op]) == pytest.approx(100 * expected, abs=1e-9)
        right = (predicted == labels).double().mean()
        assert float(plain.accuracy[edge, op]) == pytest.approx(100 * float(right))
        assert float(found.loss[edge, op]) == pytest.approx(float(losses(logits.double(), labels)), rel=1e-4)
    assert found.accuracy[0, 0] == found.base_accuracy, "without none nothing changes"


def test_of_another_space_and_in_a_race() -> None:
    torch.manual_seed(0)
    space = Darts(channels=4, layers=3)
    weights = torch.full(space.shape, 1 / 8)
    only = torch.zeros(space.shape, dtype=torch.bool)
    only[3, 2:5] = True
    net = space.supernet(3)
    by_classes = Objective(metric="macro-f1")
    found = leave_one_out(
        net, batches(), weights, batch_norm="running", batched=False, only=only, objective=by_classes
    )
    assert found.accuracy.shape == space.shape and 0 <= float(found.accuracy[3, 2]) <= 100
    with pytest.raises(UserError, match="ops race by the scores of images; macro-f1 has none"):
        leave_one_out(
            net, batches(), weights, batch_norm="running", racing=Racing(35, "accuracy"),
            batched=False, objective=by_classes,
        )  # fmt: skip
