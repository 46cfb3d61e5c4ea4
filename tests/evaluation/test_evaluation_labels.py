"""Label subsets: balanced, nested, fixed; and accuracy against their size."""

from collections import Counter

import numpy as np
import pytest

from twofold.errors import UserError
from twofold.evaluation.few_labels import label_efficiency
from twofold.evaluation.label_subsets import balanced_subset
from twofold.evaluation.splits import lone_in_words, match_classes, single_labels, stratified_split


@pytest.fixture
def labels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.permutation(np.repeat([0, 1, 2, 5, -1], [40, 30, 25, 12, 9]))


def test_equally_many_of_each_class(labels: np.ndarray) -> None:
    for per_class in (1, 5, 12):
        chosen = balanced_subset(labels, per_class=per_class)
        assert Counter(labels[chosen].tolist()) == dict.fromkeys([0, 1, 2, 5], per_class)
        assert (np.diff(chosen) > 0).all()
        assert np.array_equal(chosen, balanced_subset(labels, total=4 * per_class))


def test_subsets_are_nested_in_size_and_differ_as_little_as_they_can(labels: np.ndarray) -> None:
    available = {0: 40, 1: 30, 2: 25, 5: 12}
    smaller: set[int] = set()
    for total in range(4, 108):
        chosen = set(balanced_subset(labels, total=total).tolist())
        assert len(chosen) == total
        assert smaller <= chosen
        counts = Counter(labels[list(chosen)].tolist())
        open_classes = [counts[c] for c in available if counts[c] < available[c]]
        most = max(counts.values())
        assert all(count >= most - 1 for count in open_classes)
        smaller = chosen
    assert smaller == set(np.flatnonzero(labels >= 0).tolist())


def test_the_choice_depends_on_the_address_and_on_nothing_else(labels: np.ndarray) -> None:
    first = balanced_subset(labels, per_class=5, seed=3, draw=1)
    assert np.array_equal(first, balanced_subset(labels, per_class=5, seed=3, draw=1))
    others = [balanced_subset(labels, per_class=5, seed=s, draw=d) for s, d in ((3, 0), (3, 2), (4, 1))]
    assert not any(np.array_equal(first, other) for other in others)
    extended = np.concatenate([labels, np.full(50, 7)])  # another class changes nothing for those there were
    assert set(first) <= set(balanced_subset(extended, per_class=5, seed=3, draw=1))
    assert balanced_subset(np.arange(20) % 2, per_class=2).tolist() == [0, 9, 15, 18]  # the same on every machine


def test_every_image_of_a_class_is_equally_likely() -> None:
    counts = np.zeros(20)
    for draw in range(600):
        counts[balanced_subset(np.arange(20) % 2, per_class=2, draw=draw)] += 1
    assert np.abs(counts / 600 - 0.2).max() < 0.07  # 4 standard deviations of a share of 0.2 in 600 draws


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_class": 13}, r"classes with fewer images: 5 \(12\)"),
        ({"per_class": 0}, "at least 1"),
        ({"total": 3}, "at least one for each of the 4 classes"),
        ({"total": 108}, "at most the 107 labelled images"),
        ({}, "either"),
        ({"per_class": 1, "total": 4}, "either"),
    ],
)
def test_impossible_subsets_are_user_errors(labels: np.ndarray, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        balanced_subset(labels, **arguments)


def test_efficiency_rises_with_labels_and_features_and_reports_each_draw() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(400) % 4
    signal = np.eye(4, dtype=np.float32)[y]
    good = signal * 3 + rng.standard_normal((400, 4)).astype(np.float32)
    poor = np.concatenate([signal * 0.8, np.zeros((400, 16), np.float32)], 1) + rng.standard_normal((400, 20))
    poor = poor.astype(np.float32)
    sets = {"poor": (poor[:300], poor[300:]), "good": (good[:300], good[300:])}
    arguments = {"counts": (4, 40, 300), "draws": 3, "grid": (1.0, 0.1, 0.01)}
    cells = label_efficiency(sets, y[:300], y[300:], **arguments)
    assert [(c.labels, c.features) for c in cells] == [(n, f) for n in (4, 40, 300) for f in ("poor", "good")]
    by = {(c.features, c.labels): c for c in cells}
    assert all(by["good", n].mean > by["poor", n].mean for n in (4, 40, 300))
    assert by["poor", 4].mean < by["poor", 300].mean
    assert [len(by["good", n].top1) for n in (4, 40, 300)] == [3, 3, 1]  # with all labels every draw is the same
    assert by["good", 300].std is None
    assert by["poor", 4].std == pytest.approx(np.std(by["poor", 4].top1, ddof=1))
    assert cells == label_efficiency(sets, y[:300], y[300:], **arguments)


def test_labels_outside_the_subset_and_of_the_test_set_change_no_choice() -> None:
    rng = np.random.default_rng(1)
    y = np.arange(120) % 3
    x = (np.eye(3)[y] * 2 + rng.standard_normal((120, 3))).astype(np.float32)
    chosen = balanced_subset(y[:90], total=30)
    other = x.copy()
    other[np.setdiff1d(np.arange(120), chosen)] = rng.standard_normal((120 - 30, 3)) * 50
    for features, y_test in ((x, y[90:]), (other, rng.permutation(y[90:]))):
        cell = label_efficiency({"x": (features[:90], features[90:])}, y[:90], y_test, counts=(30,), draws=1)[0]
        assert cell.l2 == label_efficiency({"x": (x[:90], x[90:])}, y[:90], y[90:], counts=(30,), draws=1)[0].l2


def test_a_split_keeps_proportions_and_is_fixed_by_its_seed(labels: np.ndarray) -> None:
    known = labels[labels >= 0]
    first, second = stratified_split(known, 0.2, seed=1)
    assert sorted([*first, *second]) == list(range(107))
    assert Counter(known[second].tolist()) == {0: 8, 1: 6, 2: 5, 5: 2}
    again, other = stratified_split(known, 0.2, seed=1), stratified_split(known, 0.2, seed=2)
    assert np.array_equal(second, again[1])
    assert not np.array_equal(second, other[1])
    assert not np.array_equal(second, stratified_split(known, 0.2, seed=1, stream="validation split")[1])


def test_a_split_leaves_an_image_of_each_class_on_either_side() -> None:
    for share in (0.01, 0.5, 0.99):
        first, second = stratified_split(np.array([0, 0, 1, 1, 1]), share)
        assert len(set(np.array([0, 0, 1, 1, 1])[first])) == len(set(np.array([0, 0, 1, 1, 1])[second])) == 2


def test_splits_that_cannot_be_made_are_user_errors() -> None:
    with pytest.raises(UserError, match="class 4 has 1 labelled image"):
        stratified_split(np.array([0, 0, 4]))
    with pytest.raises(UserError, match=r"between 0 and 1, got 1.0"):
        stratified_split(np.array([0, 0, 1, 1]), 1.0)


def test_a_class_of_one_stays_where_it_is_trained_on() -> None:
    y = np.array([0, 0, 0, 4, 1, 1])
    first, second = stratified_split(y, 0.3, lone=True)
    assert 4 in y[first]
    assert set(y[second].tolist()) == {0, 1}
    with pytest.raises(UserError, match="no class has 2 labelled images"):
        stratified_split(np.array([0, 1, 2]), lone=True)
    names = ["ant", "bee", "cat", "dog", "eel"]
    assert lone_in_words(y, names) == "class eel has 1 labelled image, which is trained on and leaves none to score"
    assert lone_in_words(np.array([0, 1, 1, 2]), names, "recording").startswith("classes ant, cat have 1 labelled rec")
    assert lone_in_words(np.arange(9), None).startswith("classes 0, 1, 2, 3, 4 and 4 more have 1 labelled image each,")
    assert lone_in_words(np.array([0, 0]), names) == ""


def test_classes_are_matched_by_name_and_strangers_named() -> None:
    train = np.array([0, 1, 2])
    matched = match_classes(train, ["cat", "dog", "owl"], np.array([1, 0, 1]), ["cat", "owl"])
    assert matched.tolist() == [2, 0, 2]
    assert match_classes(train, None, np.array([2, 1]), ["a", "b", "c"]).tolist() == [2, 1]
    with pytest.raises(UserError, match="without a training image: yak"):
        match_classes(train, ["cat", "dog", "owl"], np.array([0, 1]), ["cat", "yak"])
    with pytest.raises(UserError, match="without a training image: owl"):  # named, but no image of it
        match_classes(train[:2], ["cat", "dog", "owl"], np.array([0]), ["owl"])
    with pytest.raises(UserError, match="without a training image: 7"):
        match_classes(train, None, np.array([7]), None)


def test_labels_that_no_accuracy_can_be_counted_on_are_user_errors() -> None:
    with pytest.raises(UserError, match="photos has no labels"):
        single_labels(None, "photos")
    with pytest.raises(UserError, match="several labels an image"):
        single_labels(np.ones((3, 2), np.int64), "photos")
    with pytest.raises(UserError, match="1 class"):
        single_labels(np.array([4, 4, -1]), "photos")
    assert single_labels(np.array([4, 4]), "photos", least=1).tolist() == [4, 4]


def test_one_draw_where_every_labelled_image_is_taken():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 3)).astype(np.float32)
    y = np.where(np.arange(24) < 16, np.arange(24) % 2, -1)  # eight images without a label
    cells = label_efficiency({"h": (x, x[:16])}, y, y[:16], counts=(8, 16), draws=3)
    assert [len(cell.top1) for cell in cells] == [3, 1]
