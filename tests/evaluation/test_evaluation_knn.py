"""kNN against loops that follow the formula."""

import math

import numpy as np
import pytest
import torch

from twofold.errors import UserError
from twofold.evaluation.protocols.knn import default_k, evaluate_knn, knn_accuracy, knn_votes, nearest


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a), 1e-12) / max(np.linalg.norm(b), 1e-12))


def slow_votes(bank, labels, queries, k, temperature, classes):
    """One query and one neighbour at a time, in float64."""
    out = np.zeros((len(queries), classes))
    for m, query in enumerate(queries):
        similarity = [cosine(query, row) for row in bank]
        for n in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
            out[m, labels[n]] += 1 if temperature is None else math.exp(similarity[n] / temperature)
    return out


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((60, 7)), rng.integers(0, 8, 60), rng.standard_normal((25, 7))


@pytest.mark.parametrize("k", [1, 5, 20, 60])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_weighted_votes_are_the_formulas_up_to_a_factor_for_each_query(data, k: int, temperature: float) -> None:
    bank, labels, queries = data
    slow = slow_votes(bank, labels, queries, k, temperature, 8)
    fast = knn_votes(*(torch.from_numpy(a) for a in (bank, labels, queries)), k, temperature, 8).double().numpy()
    # float32 similarities are off by 1e-7, divided by the temperature inside the exponential
    np.testing.assert_allclose(fast / fast.sum(1, keepdims=True), slow / slow.sum(1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("k", [1, 5, 20, 60])
def test_plain_votes_count_and_break_ties_by_similarity(data, k: int) -> None:
    bank, labels, queries = data
    fast = knn_votes(*(torch.from_numpy(a) for a in (bank, labels, queries)), k, None, 8).double().numpy()
    slow = slow_votes(bank, labels, queries, k, None, 8)
    assert np.abs(fast - slow).max() < 0.5
    for m, query in enumerate(queries):
        order = sorted(range(60), key=lambda i: -cosine(query, bank[i]))[:k]
        total = [sum(cosine(query, bank[i]) for i in order if labels[i] == c) for c in range(8)]
        best = max(range(8), key=lambda c: (slow[m, c], total[c]))
        assert fast[m].argmax() == best


def test_blocks_do_not_change_the_neighbours(data) -> None:
    bank, _, queries = (torch.from_numpy(a) for a in data)
    whole = nearest(bank, queries, 9)
    for block in (1, 4, 25, 1000):
        part = nearest(bank, queries, 9, block)
        assert torch.equal(whole[1], part[1])
        torch.testing.assert_close(whole[0], part[0], atol=1e-6, rtol=0)  # another order of summation


def test_a_tiny_temperature_does_not_overflow() -> None:
    bank = torch.eye(3)
    votes = knn_votes(bank, torch.arange(3), bank, k=3, temperature=1e-3)
    assert votes.isfinite().all()
    assert votes.argmax(1).tolist() == [0, 1, 2]


def test_rows_of_zeros_are_neither_near_nor_an_error() -> None:
    similarity, index = nearest(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 1.0]]), 2)
    assert index.tolist() == [[1, 0]]
    assert similarity[0, 1] == 0


def test_evaluation_scores_clips_k_and_says_so() -> None:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((6, 16)).astype(np.float32) * 3
    y = np.arange(90) % 6 + 10  # labels need not start at 0
    x = centres[y - 10] + rng.standard_normal((90, 16)).astype(np.float32)
    result = evaluate_knn(x[:60], y[:60], x[60:], y[60:], k=200)
    assert result.settings["k"] == 60
    assert "k 200 was asked for, the bank has only 60 images" in result.words
    assert result.scores.top1 == result.scores.mean_per_class > 0.9
    assert result.scores.top5 is not None
    assert result.scores.top1 <= result.scores.top5 <= 1
    assert result.scores.top1 == knn_accuracy(x[:60], y[:60], x[60:], y[60:], k=200)
    exact = evaluate_knn(x[:60], y[:60], x[60:], y[60:], k=5, temperature=None)
    assert "one vote each" in exact.words
    assert "asked for" not in exact.words


@pytest.mark.parametrize(
    ("k", "temperature", "message"), [(0, 0.1, "k must"), (5, 0.0, "temperature must be positive")]
)
def test_impossible_settings_are_user_errors(k: int, temperature: float, message: str) -> None:
    x, y = np.eye(4, dtype=np.float32), np.arange(4)
    with pytest.raises(UserError, match=message):
        evaluate_knn(x, y, x, y, k, temperature)


def test_a_class_without_a_vote_is_no_answer():
    """All votes wrong: neither first nor among five is right, though fewer than five classes got a vote."""
    train = np.eye(8, dtype=np.float32)
    outcome = evaluate_knn(train, np.arange(8), train[[0, 1]], np.array([5, 6]), k=2)
    assert (outcome.scores.top1, outcome.scores.top5) == (0.0, 0.0)
    right = evaluate_knn(train, np.arange(8), train[[0, 1]], np.array([0, 1]), k=2)
    assert (right.scores.top1, right.scores.top5) == (1.0, 1.0)


def test_as_many_neighbours_as_a_class_has():
    assert default_k(np.repeat(np.arange(6), 10)) == 10
    assert default_k(np.repeat(np.arange(10), 5000)) == 200
    assert default_k(np.array([0, 1, 1, 1])) == 2
    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((6, 16))
    y = np.repeat(np.arange(6), [20, 8, 8, 8, 8, 8])  # 60 images, as a folder of photographs has them
    x, test = ((centres[labels] + 2.5 * rng.standard_normal((len(labels), 16))).astype(np.float32) for labels in (y, y))
    chosen, whole = (evaluate_knn(x, y, test, y, k, temperature=None) for k in (None, 200))
    assert chosen.settings["k"] == 8
    assert "as many as a class has there" in chosen.words
    assert whole.scores.mean_per_class == pytest.approx(1 / 6), "the whole bank always says its largest class"
    assert chosen.scores.mean_per_class > 0.8
