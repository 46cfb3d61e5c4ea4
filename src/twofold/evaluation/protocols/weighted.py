"""Utterance classification on a learned mixture of all layers, as SUPERB's utterance tasks read a frozen encoder.

The mixture's weights (a softmax that starts even) and a linear classifier are fitted together. SUPERB's head is two
linear layers around a mean over time, which is one linear layer on the mean: so the layers' means are all that is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.encoders import Encoder
from twofold.encoders.composed import all_layers
from twofold.evaluation.logistic import Array
from twofold.evaluation.protocols.classifier import ClassifierProtocol, FitInputs, LayersConfig, Outcome
from twofold.evaluation.scores import score
from twofold.evaluation.splits import Labels, stratified_split

GRID = tuple(float(v) for v in np.logspace(-4, 1, 6))


class Weighted(ClassifierProtocol):
    """A mixture of layers."""

    kinds = ("audio",)
    needs_frames = True

    @dataclass(frozen=True)
    class Config(LayersConfig, variant="weighted"):
        """a linear classifier on a learned mixture of all layers of a speech encoder."""

    def reads(self, encoder: Encoder) -> Encoder:
        """All layers, side by side."""
        return all_layers(encoder)

    def fit(self, inputs: FitInputs) -> Outcome:
        """See `evaluate_weighted`."""
        layers = inputs.x.shape[1] // inputs.encoder.feature_dim
        return evaluate_weighted(
            inputs.x, inputs.y, inputs.x_test, inputs.y_test, layers, self.config.seed, groups=inputs.groups
        )


class Mixture:
    """Softmax-weighted sum of standardised layers and a linear classifier, by L-BFGS on the whole set.

    Minimises mean cross-entropy + l2 / 2 * |W|^2. Each layer is centred and divided by the root mean square of what
    remains, so that weights compare layers and not their scales.

    Args:
        x: [N, L * d].
        y: [N].
        layers: L.
        l2: above 0.
    """

    def __init__(self, x: Array, y: Labels, layers: int, l2: float) -> None:
        self.classes, targets = np.unique(y, return_inverse=True)
        h = torch.from_numpy(np.asarray(x, np.float32)).unflatten(1, (layers, -1))
        self.mean = h.mean(0)
        self.scale = (h - self.mean).square().mean((0, 2), keepdim=True)[0].sqrt().clamp(min=1e-8)
        h, right = (h - self.mean) / self.scale, torch.from_numpy(targets)
        self.mixture = torch.zeros(layers, requires_grad=True)
        self.weight = torch.zeros(len(self.classes), h.shape[2], requires_grad=True)
        self.bias = torch.zeros(len(self.classes), requires_grad=True)
        solver = torch.optim.LBFGS(
            [self.mixture, self.weight, self.bias], max_iter=300, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            solver.zero_grad()
            loss = F.cross_entropy(self._logits(h), right) + l2 / 2 * self.weight.square().sum()
            loss.backward()
            return loss

        solver.step(closure)

    def _logits(self, h: Tensor) -> Tensor:
        return torch.einsum("nld,l->nd", h, self.mixture.softmax(0)) @ self.weight.T + self.bias

    @torch.no_grad()
    def logits(self, x: Array) -> Array:
        """[N, L * d] -> [N, K]."""
        h = torch.from_numpy(np.asarray(x, np.float32)).unflatten(1, (len(self.mixture), -1))
        result: Array = self._logits((h - self.mean) / self.scale).numpy()
        return result

    def weights(self) -> list[float]:
        """Of the layers, first to last; they sum to 1."""
        shares: list[float] = self.mixture.detach().softmax(0).tolist()
        return shares


def evaluate_weighted(
    train: Array, train_labels: Labels, test: Array, test_labels: Labels, layers: int, seed: int = 0,
    validation: float = 0.2, grid: Sequence[float] = GRID, groups: Labels | None = None,
) -> Outcome:  # fmt: skip
    """Choose l2 on a share `validation` of each class of train [N, L * d], fit on all, score test [M, L * d] once.

    Of `groups` [N] each stays whole in the division.

    Raises:
        UserError: a class with a single training utterance.
    """
    fit, val = stratified_split(train_labels, validation, seed, "validation split", groups=groups, lone=True)
    accuracies = []
    for l2 in grid:
        model = Mixture(train[fit], train_labels[fit], layers, l2)
        accuracies.append(score(model.logits(train[val]), model.classes, train_labels[val]).top1)
    best = len(grid) - 1 - int(np.argmax(accuracies[::-1]))  # of equals the strongest penalty
    model = Mixture(train, train_labels, layers, grid[best])
    message = ", ".join(f"{weight:.2f}" for weight in model.weights())
    text = (
        f"learned mixture of {layers} layers (weights {message}) and a linear classifier, by L-BFGS; l2 "
        f"{grid[best]:.3g} "
        f"chosen among {len(grid)} values from {min(grid):.3g} to {max(grid):.3g} on {len(val)} validation recordings "
        f"(seed {seed}), then fitted on all {len(train)} training recordings; {len(test)} test recordings, scored once"
    )
    scores = score(model.logits(test), model.classes, test_labels)
    settings = {"l2": grid[best], "validation_top1": accuracies[best], "train": len(train)}
    return Outcome(scores, settings, text)
