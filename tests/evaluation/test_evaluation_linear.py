"""Logistic regression: against its definition, on separable data, and without a look at the test set."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from twofold.errors import UserError
from twofold.evaluation.logistic import GRID, PAPER_GRID, choose_l2, fit_linear, fit_path
from twofold.evaluation.protocols import linear
from twofold.evaluation.protocols.linear import evaluate_linear
from twofold.evaluation.scores import score
from twofold.evaluation.splits import stratified_split


def blobs(n: int, classes: int = 4, spread: float = 1.0, d: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, d)) * 2
    y = np.arange(n) % classes
    return (centres[y] + spread * rng.standard_normal((n, d))).astype(np.float32), y


def objective(weight, bias, x, y, l2):
    return F.cross_entropy(x @ weight.T + bias, y) + l2 / 2 * (weight**2).sum()


@pytest.mark.parametrize("l2", [1e-3, 0.1, 1.0])
def test_the_fit_is_the_minimum_of_the_stated_objective(l2: float) -> None:
    x, y = blobs(80, spread=2.0)
    model = fit_linear(x, y, l2)
    z = torch.from_numpy((x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).mean())).double()
    weight, bias = torch.zeros(4, 12, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    weight.requires_grad_(), bias.requires_grad_()
    solver = torch.optim.LBFGS([weight, bias], max_iter=2000, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = objective(weight, bias, z, torch.from_numpy(y), l2)
        loss.backward()
        return loss

    solver.step(closure)
    ours = objective(torch.from_numpy(model.weight).double(), torch.from_numpy(model.bias).double(), z,
                     torch.from_numpy(y), l2)  # fmt: skip
    # scikit-learn stops at a gradient of 1e-4; with curvature l2 the value is then within 1e-8 / l2 of the minimum
    assert float((ours - objective(weight, bias, z, torch.from_numpy(y), l2)).detach()) < 1e-5
    if l2 >= 0.1:  # a weaker penalty leaves directions almost flat: same value, other weights
        np.testing.assert_allclose(model.logits(x), (z @ weight.T + bias).detach().numpy(), atol=0.01)


def test_a_solver_that_was_stopped_says_so(monkeypatch) -> None:
    (x, y), (x_test, y_test) = blobs(100, spread=2.0), blobs(40, spread=2.0, seed=1)
    assert "converged" not in evaluate_linear(x, y, x_test, y_test).words
    monkeypatch.setattr(linear, "fit_linear", lambda x, y, l2, *_: fit_path(x, y, [l2], max_iter=2)[0])
    assert "the solver was stopped after 1,000 iterations, before" in evaluate_linear(x, y, x_test, y_test).words


def test_shift_and_scale_of_the_features_do_not_matter() -> None:
    x, y = blobs(100, spread=3.0)
    plain, moved = fit_linear(x, y, 0.1), fit_linear(x * 1000 + 5000, y, 0.1)
    np.testing.assert_allclose(plain.logits(x), moved.logits(x * 1000 + 5000), atol=2e-2)  # float32 near 5000


def test_warm_starts_end_where_cold_starts_do() -> None:
    x, y = blobs(100, spread=2.0)
    grid = [1.0, 0.3, 0.1, 0.03]
    for warm, l2 in zip(fit_path(x, y, grid), grid, strict=True):
        np.testing.assert_allclose(warm.logits(x), fit_linear(x, y, l2).logits(x), atol=0.05)  # both stop at 1e-4


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_separable_data_is_separated(classes: int) -> None:
    x, y = blobs(40 * classes, classes, spread=0.3)
    split = stratified_split(y)
    result = evaluate_linear(x[split[0]], y[split[0]], x[split[1]], y[split[1]])
    assert result.scores.top1 == result.scores.mean_per_class == result.settings["validation_top1"] == 1.0
    assert (result.scores.top5 == 1.0) if classes > 5 else result.scores.top5 is None


def test_constant_and_zero_features_are_no_trouble() -> None:
    x, y = blobs(40)
    x = np.concatenate([x, np.full((40, 1), 7, np.float32), np.zeros((40, 1), np.float32)], axis=1)
    assert np.isfinite(fit_linear(x, y, 0.1).logits(x)).all()
    assert np.isfinite(fit_linear(np.zeros((8, 3), np.float32), np.arange(8) % 2, 0.1).logits(np.zeros((1, 3)))).all()


def test_labels_need_not_start_at_zero_or_be_contiguous() -> None:
    x, y = blobs(80, spread=0.3)
    odd = np.array([3, 10, 11, 40])[y]
    assert evaluate_linear(x[:60], odd[:60], x[60:], odd[60:]).scores.top1 == 1.0


def test_test_labels_never_influence_the_chosen_penalty() -> None:
    x, y = blobs(200, spread=3.0)
    rng = np.random.default_rng(5)
    honest = evaluate_linear(x[:150], y[:150], x[150:], y[150:])
    for _ in range(3):
        other = evaluate_linear(x[:150], y[:150], rng.permutation(x[150:]), rng.permutation(y[150:]))
        assert other.settings == honest.settings
    assert other.scores != honest.scores


def test_the_penalty_is_the_best_on_the_validation_images_by_a_plain_search() -> None:
    x, y = blobs(120, spread=4.0)
    fit, val = stratified_split(y, 0.25)
    found = []
    for l2 in GRID:
        logits = fit_linear(x[fit], y[fit], l2).logits(x[val])
        found.append(((logits.argmax(1) == y[val]).mean(), l2))
    l2, accuracy = choose_l2(x, y, [(fit, val)])
    assert accuracy == pytest.approx(
        max(found)[0], abs=1 / len(val) + 1e-9
    )  # warm and cold fits may differ in one image
    assert {b: a for a, b in found}[l2] == pytest.approx(max(found)[0], abs=1 / len(val) + 1e-9)


def test_the_text_tells_protocol_and_edge() -> None:
    x, y = blobs(60, spread=0.3)
    text = evaluate_linear(x[:40], y[:40], x[40:], y[40:], grid=(0.5, 0.1)).words
    assert "(the edge of what was tried)" in text
    assert "8 validation images (seed 0), then fitted on all 40 training images; 20 test images, scored once" in text
    assert len(PAPER_GRID) == 45
    assert (PAPER_GRID[0], PAPER_GRID[-1]) == (pytest.approx(1e-6), pytest.approx(1e5))


@pytest.mark.parametrize("grid", [(), (0.0, 1.0), (-1.0,)])
def test_impossible_penalties_are_user_errors(grid: tuple[float, ...]) -> None:
    x, y = blobs(40)
    with pytest.raises(UserError, match="l2"):
        evaluate_linear(x, y, x, y, grid=grid)


def test_scores_against_loops() -> None:
    rng = np.random.default_rng(2)
    logits, classes, labels = rng.standard_normal((50, 9)), np.arange(9) * 2, rng.integers(0, 7, 50) * 2
    top1 = top5 = 0
    right: dict[int, list[bool]] = {}
    for row, label in zip(logits, labels, strict=True):
        ranked = [classes[j] for j in sorted(range(9), key=lambda j: -row[j])]
        top1 += ranked[0] == label
        top5 += label in ranked[:5]
        right.setdefault(int(label), []).append(ranked[0] == label)
    got = score(logits, classes, labels)
    assert (got.top1, got.top5, got.count) == (top1 / 50, top5 / 50, 50)
    assert got.mean_per_class == pytest.approx(np.mean([np.mean(r) for r in right.values()]))
