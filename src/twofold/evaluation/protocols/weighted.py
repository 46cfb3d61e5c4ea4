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
from twofold.evaluation.class_weights import ClassWeights, class_weights_in_words, weights_by_example
from twofold.evaluation.kept import KeepOptions, Reads
from twofold.evaluation.logistic import Affine, Array, accuracy
from twofold.evaluation.protocols.base import ClassWeightOptions
from twofold.evaluation.protocols.classifier import ClassifierProtocol, FitInputs, LayersConfig, Outcome
from twofold.evaluation.scores import score
from twofold.evaluation.splits import Labels, stratified_split
from twofold.text import counted

GRID = tuple(float(v) for v in np.logspace(-4, 1, 6))


class Weighted(ClassifierProtocol):
    """A mixture of layers."""

    kinds = ("audio",)
    needs_frames = True

    @dataclass(frozen=True)
    class Config(KeepOptions, ClassWeightOptions, LayersConfig, variant="weighted"):
        """a linear classifier on a learned mixture of all layers of a speech encoder."""

    def reads(self, encoder: Encoder) -> Encoder:
        """All layers, side by side."""
        return all_layers(encoder)

    @property
    def read(self) -> Reads:
        """All layers."""
        return "layers"

    def fit(self, inputs: FitInputs) -> Outcome:
        """See `evaluate_weighted`."""
        layers = inputs.x.shape[1] // inputs.encoder.feature_dim
        return evaluate_weighted(
            inputs.x,
            inputs.y,
            inputs.x_test,
            inputs.y_test,
            layers,
            self.config.seed,
            groups=inputs.groups,
            class_weights=self.config.class_weights,
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
        class_weights: how much the examples of each class count in the mean.
    """

    def __init__(self, x: Array, y: Labels, layers: int, l2: float, class_weights: ClassWeights = None) -> None:
        self.classes, targets = np.unique(y, return_inverse=True)
        h = torch.from_numpy(np.asarray(x, np.float32)).unflatten(1, (layers, -1))
        self.mean = h.mean(0)
        self.scale = (h - self.mean).square().mean((0, 2), keepdim=True)[0].sqrt().clamp(min=1e-8)
        h, right = (h - self.mean) / self.scale, torch.from_numpy(targets)
        each = weights_by_example(class_weights, y)
        weights = None if each is None else torch.from_numpy(each).float()
        self.mixture = torch.zeros(layers, requires_grad=True)
        self.weight = torch.zeros(len(self.classes), h.shape[2], requires_grad=True)
        self.bias = torch.zeros(len(self.classes), requires_grad=True)
        solver = torch.optim.LBFGS(
            [self.mixture, self.weight, self.bias], max_iter=300, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            solver.zero_grad()
            if weights is None:
                loss = F.cross_entropy(self._logits(h), right)
            else:
                loss = (F.cross_entropy(self._logits(h), right, reduction="none") * weights).mean()
            loss = loss + l2 / 2 * self.weight.square().sum()
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

    def affine(self) -> Affine:
        """The same as one linear layer of x [N, L * d], in double precision: the mixture does not depend on x."""
        shares, weight = self.mixture.detach().double().softmax(0), self.weight.detach().double()
        whole = torch.einsum("l,kd,ld->kld", shares, weight, 1 / self.scale.double().expand_as(self.mean))
        bias = self.bias.detach().double() - torch.einsum("kld,ld->k", whole, self.mean.double())
        return whole.flatten(1).numpy(), bias.numpy()

    def weights(self) -> list[float]:
        """Of the layers, first to last; they sum to 1."""
        shares: list[float] = self.mixture.detach().softmax(0).tolist()
        return shares


def evaluate_weighted(
    train: Array, train_labels: Labels, test: Array, test_labels: Labels, layers: int, seed: int = 0,
    validation: float = 0.2, grid: Sequence[float] = GRID, groups: Labels | None = None,
    class_weights: ClassWeights = None,
) -> Outcome:  # fmt: skip
    """Choose l2 on a share `validation` of each class of train [N, L * d], fit on all, score test [M, L * d] once.

    Of `groups` [N] each stays whole in the division; `class_weights` count in the fits and in the choice.

    Raises:
        UserError: no class has two training utterances.
    """
    fit, val = stratified_split(train_labels, validation, seed, "validation split", groups=groups, lone=True)
    accuracies = []
    for l2 in grid:
        model = Mixture(train[fit], train_labels[fit], layers, l2, class_weights)
        accuracies.append(accuracy(model.logits(train[val]), model.classes, train_labels[val], class_weights))
    best = len(grid) - 1 - int(np.argmax(accuracies[::-1]))  # of equals the strongest penalty
    model = Mixture(train, train_labels, layers, grid[best], class_weights)
    message = ", ".join(f"{weight:.2f}" for weight in model.weights())
    weighted = class_weights_in_words(class_weights)
    text = (
        f"learned mixture of {counted(layers, 'layer')} (weights {message}) and a linear classifier, by L-BFGS"
        f"{weighted and f', {weighted}'}; l2 {grid[best]:.3g} "
        f"chosen among {counted(len(grid), 'value')} from {min(grid):.3g} to {max(grid):.3g} on "
        f"{counted(len(val), 'validation recording')} (seed {seed}), then fitted on all "
        f"{counted(len(train), 'training recording')}; "
        f"{counted(len(test), 'test recording')}, scored once"
    )
    scores = score(model.logits(test), model.classes, test_labels)
    criterion = "validation_top1" if class_weights is None else "validation_weighted_top1"
    settings = {"l2": grid[best], criterion: accuracies[best], "train": len(train)}

    def anew(x: Array, y: Labels) -> tuple[Affine, Labels]:
        other = Mixture(x, y, layers, grid[best], class_weights)
        return other.affine(), other.classes

    return Outcome(scores, settings, text, model.affine(), model.classes, anew)
