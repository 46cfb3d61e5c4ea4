"""Linear evaluation: multinomial logistic regression on frozen features, fitted by L-BFGS.

The strength of the l2 penalty is chosen on a validation part of the training set, the classifier is fitted anew on the
whole training set, and the test set is scored once (as SimCLR's transfer protocol: arXiv 2002.05709, appendix B.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twofold.errors import UserError
from twofold.evaluation.logistic import GRID, Array, choose_l2, fit_linear
from twofold.evaluation.scores import Scores, score
from twofold.evaluation.splits import Labels, stratified_split


@dataclass(frozen=True)
class LinearResult:
    """Test scores, the chosen l2 with its validation accuracy, training images used, and the protocol in words."""

    scores: Scores
    l2: float
    validation_top1: float
    train: int
    text: str


def evaluate_linear(
    train: Array, train_labels: Labels, test: Array, test_labels: Labels, seed: int = 0, validation: float = 0.2,
    grid: Sequence[float] = GRID, split: tuple[Labels, Labels] | None = None,
) -> LinearResult:  # fmt: skip
    """Choose l2 on a share `validation` of each class of train [N, d], fit on all of it, score test [M, d] once.

    `split` has positions in train to fit on and to choose on, where the data come with a validation part.
    Raises UserError for a penalty that is not positive or a class with a single training image.
    """
    if not grid or min(grid) <= 0:
        raise UserError(f"the l2 penalties to try must be positive numbers, got {list(grid)}")
    where = f"on {len(split[1])} images of the validation part" if split is not None else ""
    if split is None:
        split = stratified_split(train_labels, validation, seed, stream="validation split")
        where = f"on {len(split[1])} validation images (seed {seed})"
    l2, validation_top1 = choose_l2(train, train_labels, [split], grid)
    model = fit_linear(train, train_labels, l2)
    edge = " (the edge of what was tried)" if l2 in (min(grid), max(grid)) and len(grid) > 1 else ""
    text = (
        "multinomial logistic regression by L-BFGS on features centred and divided by one global scalar; "
        f"l2 {l2:.3g}{edge} chosen among {len(grid)} values from {min(grid):.3g} to {max(grid):.3g} "
        f"{where}, then fitted on all {len(train)} training images; "
        f"{len(test)} test images, scored once{model.notice()}"
    )
    return LinearResult(score(model.logits(test), model.classes, test_labels), l2, validation_top1, len(train), text)
