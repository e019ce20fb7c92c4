"""A step of each phase as the search takes it, in any form, optimisers and dropout included."""

from __future__ import annotations

import torch
from contenders import CHANNELS, Form, new_alpha, new_batch
from torch import Tensor

from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.step import alpha_step, weights_step

BATCH, SKIP = 64, 1


class Step:
    """What a step of a form needs.

    For the phase of alpha the weights of the compiled form never need a gradient: `alpha_step` freezes them
    only while it runs, and every such change would be compiled for.
    """

    def __init__(
        self, form: Form, phase: str, cells: int, batch: int = BATCH, channels: int = CHANNELS
    ) -> None:
        config = SearchConfig().replaced(cells_per_stage=cells)
        self.form, self.phase, self.clip = form, phase, config.optimisers.gradient_clip
        self.supernet = form.supernet(cells, channels)
        self.supernet.requires_grad_(not (form.compiled and phase == "alpha"))
        self.network = form.forward(self.supernet)
        self.alpha = new_alpha().requires_grad_()
        self.alive = torch.ones_like(self.alpha, dtype=torch.bool)
        images, labels = new_batch(batch)
        self.batch = form.images(images), labels
        self.weights_optimizer = torch.optim.SGD(
            self.supernet.parameters(),
            lr=config.optimisers.learning_rate,
            momentum=config.optimisers.momentum,
            weight_decay=config.optimisers.weight_decay,
            nesterov=True,
        )
        self.alpha_optimizer = torch.optim.Adam(
            [self.alpha],
            lr=config.optimisers.alpha_learning_rate,
            betas=config.optimisers.alpha_betas,
            weight_decay=config.optimisers.alpha_weight_decay,
        )

    def __call__(self) -> float:
        """Takes a step; returns the mean loss."""
        return self.form.run(self._step)()

    def _step(self) -> float:
        if self.phase == "weights":
            loss, _ = weights_step(self.network, self.alpha, self.batch, self.weights_optimizer, self.clip)
        else:
            loss, _ = alpha_step(self.network, self.alpha, self.alive, self.batch, self.alpha_optimizer)
        return float(loss)

    def double(self) -> Step:
        """This step in float64; in place, before the first one."""
        self.supernet.double()
        self.alpha.data = self.alpha.data.double()
        self.batch = self.batch[0].double(), self.batch[1]
        return self

    def without_dropout(self) -> tuple[float, Tensor]:
        """Loss and gradient of a step that dropout has no influence on: the skip connections' alphas are 0.

        The gradient is a vector of all weights' gradients or of alpha's but for the skip connections'.
        """
        with torch.no_grad():
            self.alpha[:, SKIP] = 0
        loss = self()
        kept = [op for op in range(self.alpha.shape[1]) if op != SKIP]
        if self.phase == "alpha":
            gradients = [self.alpha.grad[:, kept]]
        else:
            gradients = [weight.grad for weight in self.supernet.parameters()]
        with torch.no_grad():
            self.alpha.copy_(new_alpha())
        return loss, torch.cat([gradient.flatten().double() for gradient in gradients])
