"""Multinomial logistic regression by scikit-learn's L-BFGS, along a path of l2 penalties, and the choice among them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from twofold.evaluation.class_weights import ClassWeights, weights_by_example
from twofold.evaluation.splits import Labels

Array = NDArray[np.floating]
Affine = tuple[Array, Array]
"""Weights [K, d] and biases [K] of logits = x @ weights.T + biases."""
GRID = tuple(float(v) for v in np.logspace(-4, 2, 13))
PAPER_GRID = tuple(float(v) for v in np.logspace(-6, 5, 45))
ITERATIONS = 1000
"""Most iterations of one fit."""
ONE_THREAD_BELOW = 1e9
"""Multiplications of one pass over the data below which BLAS gets one thread (see `_few_threads`)."""


@dataclass(frozen=True)
class LinearModel:
    """logits = (x - mean) / scale @ weight.T + bias, with weight [K, d]; column j stands for the label classes[j].

    `converged` is false where the solver was stopped at its last iteration before it had come to rest.
    """

    mean: Array
    scale: float
    weight: Array
    bias: Array
    classes: Labels
    converged: bool = True

    def logits(self, x: Array) -> Array:
        return (x - self.mean) / self.scale @ self.weight.T + self.bias

    def affine(self) -> Affine:
        """The same as one linear layer of x, in double precision."""
        weight = np.asarray(self.weight, np.float64) / self.scale
        return weight, np.asarray(self.bias, np.float64) - weight @ np.asarray(self.mean, np.float64)

    def notice(self) -> str:
        """What a reader of its scores should know of the solver; empty where there is nothing."""
        stopped = f"; the solver was stopped after {ITERATIONS:,} iterations, before it had converged"
        return "" if self.converged else stopped


def fit_path(
    x: Array, y: Labels, grid: Iterable[float], max_iter: int = ITERATIONS, class_weights: ClassWeights = None
) -> list[LinearModel]:
    """Minimise mean cross-entropy + l2 / 2 * |W|^2 for each l2 of `grid`, each fit starting from the one before.

    With `class_weights` the mean is a weighted one.

    Features x [N, d] are centred and divided by one number, the root mean square of what remains: neither changes what
    a linear classifier can say; they let the solver converge and one grid serve encoders of any scale. One scale a
    feature (standardisation) would bend the penalty and blow up features that are nearly constant.
    """

    mean = x.mean(axis=0)
    scale = float(np.sqrt(np.mean((x - mean) ** 2, dtype=np.float64))) or 1.0
    scaled = (x - mean) / scale
    solver = LogisticRegression(max_iter=max_iter, warm_start=True)
    weights = weights_by_example(class_weights, y)
    models, multiplications = [], x.size * len(np.unique(y))
    for l2 in grid:
        with _few_threads(multiplications), warnings.catch_warnings():
            # A weak penalty need not have converged to be compared on validation images; `converged` says so.
            warnings.simplefilter("ignore", ConvergenceWarning)
            solver.set_params(C=1 / (l2 * len(x))).fit(
                scaled, y, weights
            )  # scikit-learn sums the loss and weighs it by C
        weight, bias = solver.coef_.copy(), solver.intercept_.copy()
        if len(weight) == 1:  # of two classes scikit-learn keeps the difference
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        models.append(LinearModel(mean, scale, weight, bias, solver.classes_, bool(solver.n_iter_.max() < max_iter)))
    return models


def _few_threads(multiplications: int) -> AbstractContextManager[object]:
    """One BLAS thread for small problems, where the threads of NumPy's and SciPy's BLAS only wait for each other."""
    if multiplications < ONE_THREAD_BELOW:
        limits: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
        return limits
    return nullcontext()


def fit_linear(x: Array, y: Labels, l2: float, class_weights: ClassWeights = None) -> LinearModel:
    """One classifier with a given penalty (see `fit_path`)."""
    return fit_path(x, y, [l2], class_weights=class_weights)[0]


def accuracy(logits: Array, classes: Labels, y: Labels, class_weights: ClassWeights = None) -> float:
    """Share of rows of logits [N, K] whose highest column is the one of y [N], or its mean weighted by class."""
    right = classes[logits.argmax(axis=1)] == y
    return float(np.average(right, weights=weights_by_example(class_weights, y)))


def choose_l2(
    x: Array,
    y: Labels,
    splits: Sequence[tuple[Labels, Labels]],
    grid: Sequence[float] = GRID,
    class_weights: ClassWeights = None,
) -> tuple[float, float]:
    """The penalty with the best mean validation accuracy, and that accuracy; ties go to the lowest cross-entropy.

    With `class_weights` fits and validation are weighted alike.

    `splits` holds pairs of positions in x [N, d] and y [N]: to fit on, to validate on.
    """
    path = sorted(grid, reverse=True)  # strongest first: short fits, each a good start for the next
    share, entropy = np.zeros((2, len(path)))
    for fit, val in splits:
        weights = weights_by_example(class_weights, y[val])
        for i, model in enumerate(fit_path(x[fit], y[fit], path, class_weights=class_weights)):
            logits = model.logits(x[val]).astype(np.float64)
            right = logits[np.arange(len(val)), np.searchsorted(model.classes, y[val])]
            share[i] += accuracy(logits, model.classes, y[val], class_weights) / len(splits)
            entropy[i] += np.average(np.logaddexp.reduce(logits, axis=1) - right, weights=weights) / len(splits)
    best = int(np.lexsort((entropy, -share.round(12)))[0])
    return path[best], float(share[best])
