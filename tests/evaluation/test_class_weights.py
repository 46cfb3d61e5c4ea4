"""Class weights and per-class scores against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, recall_score
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

from twofold.errors import UserError
from twofold.evaluation.class_weights import weights_by_class, weights_by_example
from twofold.evaluation.logistic import choose_l2, fit_linear, fit_path
from twofold.evaluation.protocols.linear import evaluate_linear
from twofold.evaluation.protocols.weighted import Mixture
from twofold.evaluation.scores import Scores, score

Y = np.repeat([0, 1, 3], [60, 30, 6])


def features(y=Y, seed=0, d=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(len(y), d)).astype(np.float32) + 0.8 * np.eye(4, d, dtype=np.float32)[y]


def test_balanced_weights_are_scikit_learns():
    expected = compute_class_weight("balanced", classes=np.unique(Y), y=Y)
    np.testing.assert_allclose(weights_by_class("balanced", Y, 4), [*expected[:2], 0, expected[2]])
    np.testing.assert_allclose(weights_by_example("balanced", Y), compute_sample_weight("balanced", Y))
    assert weights_by_class(None, Y, 4) is None


def test_weights_that_are_given_keep_their_ratios_and_have_a_mean_of_1():
    each = weights_by_example((1.0, 2.0, 7.0, 10.0), Y)
    assert each.mean() == pytest.approx(1)
    np.testing.assert_allclose([each[60] / each[0], each[-1] / each[0]], [2, 10])
    np.testing.assert_allclose(each, weights_by_example((10.0, 20.0, 70.0, 100.0), Y))


@pytest.mark.parametrize(("wanted", "theirs"), [("balanced", "balanced"), ((1.0, 3.0, 1.0, 9.0), None)])
def test_the_logistic_regression_is_scikit_learns(wanted, theirs):
    x, l2 = features(), 0.02
    model = fit_linear(x, Y, l2, wanted)
    scaled = (x - model.mean) / model.scale
    weights = theirs or {0: 1.0, 1: 3.0, 3: 9.0}
    # (scikit-learn sums weights as they are: C makes up for those that do not have a mean of 1)
    total = compute_sample_weight(weights, Y).sum()
    known = LogisticRegression(C=1 / (l2 * total), class_weight=weights, tol=1e-9, max_iter=5000).fit(scaled, Y)
    np.testing.assert_allclose(
        torch.from_numpy(model.logits(x)).log_softmax(1), known.predict_log_proba(scaled), atol=5e-3
    )
    assert not np.allclose(fit_linear(x, Y, l2).weight, model.weight, atol=1e-2)


def test_a_penalty_is_chosen_by_balanced_accuracy():
    x, grid = features(), [1e-3, 1e-2, 0.1, 1.0, 10.0]
    places = np.random.default_rng(1).permutation(len(Y))
    fit, val = places[:64], places[64:]
    models = fit_path(x[fit], Y[fit], sorted(grid, reverse=True), class_weights="balanced")
    by_hand = [balanced_accuracy_score(Y[val], m.classes[m.logits(x[val]).argmax(1)]) for m in models]
    l2, reached = choose_l2(x, Y, [(fit, val)], grid, "balanced")
    assert reached == pytest.approx(max(by_hand))
    assert by_hand[sorted(grid, reverse=True).index(l2)] == pytest.approx(max(by_hand))


def test_rare_classes_gain():
    x, test = features(), features(seed=1)
    plain, weighted = (evaluate_linear(x, Y, test, Y, class_weights=w) for w in (None, "balanced"))
    assert weighted.scores.recall["3"] > plain.scores.recall["3"]
    assert "classes weighted inversely to their numbers" in weighted.words
    assert "validation_weighted_top1" in weighted.settings


def test_one_layer_of_a_mixture_is_the_weighted_logistic_regression():
    x, l2 = features(), 0.05
    got = torch.from_numpy(Mixture(x, Y, 1, l2, "balanced").logits(x)).log_softmax(1)
    expected = torch.from_numpy(fit_linear(x, Y, l2, "balanced").logits(x)).log_softmax(1)
    torch.testing.assert_close(got, expected.to(got), atol=3e-3, rtol=0)


def test_recalls_and_balanced_accuracy_are_scikit_learns():
    rng = np.random.default_rng(0)
    logits = rng.random((96, 4)) + 0.5 * np.eye(4)[Y]
    found, guessed = score(logits, np.arange(4), Y), logits.argmax(1)
    assert found.mean_per_class == pytest.approx(balanced_accuracy_score(Y, guessed))
    expected = recall_score(Y, guessed, labels=[0, 1, 3], average=None)
    assert list(found.recall) == ["0", "1", "3"]
    np.testing.assert_allclose(list(found.recall.values()), expected)
    assert found.support == {"0": 60, "1": 30, "3": 6}
    named = found.named(["cat", "dog", "ant", "owl"])
    assert list(named.support) == ["cat", "dog", "owl"]
    assert f"balanced accuracy (mean per class) {found.mean_per_class:.2%}" in named.words()
    line, worst = named.recalls()[0], min(named.recall, key=named.recall.get)
    assert line.startswith(f"recall of each class: {worst} {named.recall[worst]:.2%} of {named.support[worst]}, ")
    even = score(logits[::2], np.arange(4), np.tile([0, 1], 24))
    assert (even.recall, even.recalls(), even.uneven) == (None, [], False)
    assert Scores(0.5, None, 0.5, 4).named(["a"]) == Scores(0.5, None, 0.5, 4), "of before it was told"
    many = score(np.eye(30)[np.arange(30).repeat(range(1, 31))], np.arange(30), np.arange(30).repeat(range(1, 31)))
    assert many.recalls()[0].startswith("recall of the 10 worst of 30 classes: ")


@pytest.mark.parametrize("wanted", [(1.0, 0.0), (), (1.0, -2.0), (1.0, float("inf"))])
def test_weights_that_are_none(wanted):
    with pytest.raises(UserError, match=r"--class_weights \[.*\]: give balanced, or a number above 0"):
        weights_by_class(wanted, np.array([0, 1]), 2)
