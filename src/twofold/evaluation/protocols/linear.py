"""Linear evaluation: multinomial logistic regression on frozen features, fitted by L-BFGS.

The strength of the l2 penalty is chosen on a validation part of the training set, the classifier is fitted anew on the
whole training set, and the test set is scored once (as SimCLR's transfer protocol: arXiv 2002.05709, appendix B.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from twofold.errors import UserError
from twofold.evaluation.class_weights import ClassWeights, class_weights_in_words
from twofold.evaluation.few_labels import ONE_LABEL_L2
from twofold.evaluation.kept import KeepOptions
from twofold.evaluation.logistic import GRID, PAPER_GRID, Affine, Array, choose_l2, fit_linear
from twofold.evaluation.protocols.base import ClassWeightOptions, ValidationOptions
from twofold.evaluation.protocols.classifier import ClassifierConfig, ClassifierProtocol, FitInputs, Outcome
from twofold.evaluation.scores import score
from twofold.evaluation.splits import Labels, stratified_split
from twofold.text import counted


class Linear(ClassifierProtocol):
    """Linear evaluation."""

    @dataclass(frozen=True)
    class Config(KeepOptions, ClassWeightOptions, ValidationOptions, ClassifierConfig, variant="linear"):
        """logistic regression on frozen features, its penalty chosen on held-out training examples."""

        grid: Literal["short", "paper"] = "short"
        """l2 penalties to choose from: 13 values from 1e-4 to 1e2, or the paper's 45 from 1e-6 to 1e5."""

    def fit(self, inputs: FitInputs) -> Outcome:
        """See `evaluate_linear`."""
        grid = PAPER_GRID if self.config.grid == "paper" else GRID
        return evaluate_linear(
            inputs.x, inputs.y, inputs.x_test, inputs.y_test, self.config.seed, grid=grid, split=inputs.split,
            example=inputs.example, groups=inputs.groups, class_weights=self.config.class_weights,
        )  # fmt: skip


def evaluate_linear(
    train: Array, train_labels: Labels, test: Array, test_labels: Labels, seed: int = 0, validation: float = 0.2,
    grid: Sequence[float] = GRID, split: tuple[Labels, Labels] | None = None, example: str = "image",
    groups: Labels | None = None, class_weights: ClassWeights = None,
) -> Outcome:  # fmt: skip
    """Choose l2 on a share `validation` of each class of train [N, d], fit on all of it, score test [M, d] once.

    `split` has positions in train to fit on and to choose on, where the data come with a validation part; `example` is
    what one is called; of `groups` [N] each stays whole in the division; `class_weights` count in the fits and in the
    choice.
    A class with a single training image takes no part in the choice; without any of two the penalty is 1.
    Raises UserError for a penalty that is not positive.
    """
    if not grid or min(grid) <= 0:
        raise UserError(f"the l2 penalties to try must be positive numbers, got {list(grid)}")
    criterion = "validation_top1" if class_weights is None else "validation_weighted_top1"
    if split is None and np.unique(train_labels, return_counts=True)[1].max() < 2:
        l2, validated, edge = ONE_LABEL_L2, {}, ""
        chosen = f"given, as no class has 2 training {example}s to choose it by"
    else:
        where = f"on {counted(len(split[1]), example)} of the validation part" if split is not None else ""
        if split is None:
            split = stratified_split(train_labels, validation, seed, "validation split", groups=groups, lone=True)
            whole = ", whole groups" if groups is not None else ""
            where = f"on {counted(len(split[1]), f'validation {example}')} (seed {seed}{whole})"
        l2, accuracy = choose_l2(train, train_labels, [split], grid, class_weights)
        validated = {criterion: accuracy}
        edge = " (the edge of what was tried)" if l2 in (min(grid), max(grid)) and len(grid) > 1 else ""
        chosen = f"chosen among {counted(len(grid), 'value')} from {min(grid):.3g} to {max(grid):.3g} {where}"
    model = fit_linear(train, train_labels, l2, class_weights)
    weighted = class_weights_in_words(class_weights)
    text = (
        "multinomial logistic regression by L-BFGS on features centred and divided by one global scalar"
        f"{weighted and f', {weighted}'}; "
        f"l2 {l2:.3g}{edge} {chosen}, then fitted on all {counted(len(train), f'training {example}')}; "
        f"{counted(len(test), f'test {example}')}, scored once{model.notice()}"
    )
    scores = score(model.logits(test), model.classes, test_labels)
    settings = {"l2": l2, **validated, "train": len(train)}

    def anew(x: Array, y: Labels) -> tuple[Affine, Labels]:
        other = fit_linear(x, y, l2, class_weights)
        return other.affine(), other.classes

    return Outcome(scores, settings, text, model.affine(), model.classes, anew)
