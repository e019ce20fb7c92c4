"""Two epochs of a search, C=16, N=1, 32x32: a warm-up epoch and a pruning epoch with its leave-one-out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch
from contenders import CLASSES, OURS, SIZE, Contender, Form
from torch import Tensor

from vpdarts_fast.data import Augmentation, ImageData
from vpdarts_fast.evaluation.leave_one_out import Batch
from vpdarts_fast.search import RunFolder, Search, SearchConfig
from vpdarts_fast.search.state import SearchState

CONFIG = SearchConfig().replaced(cells_per_stage=1, warmup_epochs=1, pruning_epochs=1, device="cpu")


class Losses:
    """An observer that keeps the losses of the epochs."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def phase(self, description: str, total: int, done: int = 0) -> None: ...
    def advance(self, done: int, epochs: float) -> None: ...
    def epoch(self, metrics: dict[str, Any]) -> None:
        self.losses += [metrics[name] for name in ("weights_loss", "alpha_loss") if metrics[name] is not None]


def random_data(count: int) -> ImageData:
    """Random images of 32x32, uint8 [count, 32, 32, 3]."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    classes = tuple(map(str, range(CLASSES)))
    return ImageData("random", images, labels, images[:1], labels[:1], classes, Augmentation(4, flip=True))


class FormSearch(Search):
    """A search whose supernet and batches are in a form."""

    def __init__(self, form: Form, config: SearchConfig, data: ImageData, folder: Path) -> None:
        config = config.replaced(fused=form.fused)
        self.observed = Losses()
        super().__init__(config, data, RunFolder(folder), self.observed)
        self.form, self.classes = form, data.num_classes
        for images in (self.training, self.validation):
            images.take = partial(self._take, images.take)  # type: ignore[method-assign]
        self.restart()

    def _take(self, take: Callable[[Tensor], Batch], draw: Tensor) -> Batch:
        images, labels = take(draw)
        return self.form.images(images), labels

    def restart(self) -> None:
        """Everything as before the first epoch."""
        (member,) = self.members
        member.state = SearchState(self.config, self.classes, self.device)
        member.state.supernet = self.form.forward(self.form.module(member.state.supernet))
        self.observed.losses.clear()

    def epochs(self) -> None:
        """Trains for all epochs, without the final evaluation."""
        self.restart()
        self.form.run(self._epochs)()

    def _epochs(self) -> None:
        while self.state.epoch < self.config.epochs:
            self._begin_epoch()
            self._train_epoch()
            self._end_epoch()


def verify(forms: Iterable[Form], folder: Path) -> None:
    """Without dropout, which the forms draw in different ways, every form finds the same losses.

    Alpha would say less: Adam's first steps are of one size, and where a gradient is nearly zero rounding
    decides their direction, in two eager forms as well.
    """
    config = CONFIG.replaced(skip_dropout=0.0, batch_size=32)
    expected = None
    for form in forms:
        if not form.compiled:
            search = FormSearch(form, config, random_data(128), folder)
            search.epochs()
            found = search.observed.losses
            expected = found if expected is None else expected
            assert len(found) == 3 and found == pytest.approx(expected, rel=1e-3), form.name


@pytest.mark.parametrize("images", [128, pytest.param(1024, marks=pytest.mark.full)])
def test_search_epochs(
    images: int, forms: Sequence[Form], tmp_path: Path, compare: Callable[..., None]
) -> None:
    """It takes minutes to compile, for training and evaluation: that is done for the long row only."""
    verify(forms, tmp_path)
    contenders, losses = {}, {}
    for form in forms:
        if form.compiled and images == 128:
            continue
        search = FormSearch(form, CONFIG, random_data(images), tmp_path)
        started = perf_counter()
        search.epochs()
        first, losses[form.name] = perf_counter() - started, list(search.observed.losses)
        note = f"the first time, with compiling, {first:.0f} s" if form.compiled else ""
        contenders[form.name] = Contender(search.epochs, note=note)
        if form.compiled:  # PyTorch's random numbers: the dropout of eager modules in the same layout
            assert losses[form.name] == pytest.approx(losses["eager, channels last"], rel=1e-2)
    assert list(contenders)[-1] == OURS.name
    compare(contenders, rounds=3)
