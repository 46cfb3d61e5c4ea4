"""Warnings come when they should, once, with advice in the words of the data; and a line says what it does not know."""

import math
import re

import pytest
from scipy import special, stats

from twofold.training.health import Contrast, Health, extrapolate, log_odds

WELL = {
    "loss": 3.0, "chance": 6.2, "contrastive_top1": 0.6, "contrastive_entropy": 2.0, "effective_rank": 40.0,
    "uniformity": -2.0, "retrieval_auc": 0.9,
}  # fmt: skip
IMAGES = Contrast("image", 256, 0.2)


def watch(change, contrast=IMAGES, steps=range(50, 1001, 50), total=1000):
    """Everything that is said of rows that are well but for `change`, and when."""
    health = Health(total, contrast)
    told = []
    for step in steps:
        row = WELL | {"encoder_norm": 10 + step / 1000} | change
        told += [(step, text) for text in health.advice(step, row)]
    return told


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"retrieval_auc": 0.5}, "50.0% of cases"),
        ({"effective_rank": 1.2}, "collapsed"),
        ({"uniformity": -0.001}, "collapsed"),
        ({"contrastive_top1": 1.0, "loss": 0.01}, "without effort"),
        ({"encoder_norm": 10.0}, "have not moved"),
        ({"loss": 4e5, "contrastive_entropy": 0.01, "retrieval_auc": 0.5}, "Give a higher temperature"),
    ],
)
@pytest.mark.parametrize("kind", ["image", "audio"])
def test_each_trouble_is_told_once_within_the_first_tenth(change, word, kind):
    ((step, text),) = watch(change, Contrast(kind, 256, 0.2))
    assert step == 100
    assert word in text
    assert ("recording" in text) <= (kind == "audio")
    assert ("image" in text or "--views" in text) <= (kind == "image")


def test_a_healthy_run_is_left_in_peace():
    assert watch({}) == []
    # The loss begins above its chance level and stays there while much is learned.
    assert watch({"loss": 7.5, "contrastive_top1": 0.004, "retrieval_auc": 0.56}) == []


def test_a_temperature_that_is_too_high_is_named_whatever_the_rows_say():
    ((_, text),) = watch({}, Contrast("audio", 64, 10.0))
    assert "--method.temperature 10" in text
    assert "1.22 times" in text
    assert watch({}, Contrast("audio", 64, 1.0)) == []  # Table 5 of the paper: worse, and it learns
    assert watch({}, Contrast("image", 64, 10.0, normalize=False)) == []  # inner products have no bound


def test_the_contrast_is_compared_with_its_own_chance_level():
    # a weighted sum below its own 'chance', and a contrast that is far above its
    row = {"loss": 2.0, "chance": 9.0, "contrastive": 4e5, "contrastive_chance": 6.2, "contrastive_entropy": 0.01}
    ((_, text),) = watch(row, Contrast("audio", 256, 1e-6))
    assert "(4e+05)" in text
    assert "(6.2)" in text
    assert watch(row | {"retrieval_auc": 0.5}, Contrast("audio", 256, 0.2, weighs=False)) == []


def test_gathering_classes_are_evidence_against_chance():
    health = Health(1000, IMAGES)
    for step in range(50, 1001, 50):
        found = 0.9 if step <= 400 else 0.5
        row = WELL | {"retrieval_auc": found, "knn_top1": 0.3 + step / 2000, "encoder_norm": step}
        assert health.advice(step, row) == []


def test_a_resumed_run_says_what_the_whole_one_does():
    rows = [
        WELL | {"step": s, "encoder_norm": s, "retrieval_auc": 0.5 if s > 400 else 0.9} for s in range(50, 1001, 50)
    ]
    whole = Health(1000, IMAGES)
    told = {row["step"]: whole.advice(row["step"], row) for row in rows}
    assert sum(map(len, told.values())) == 1
    for cut in range(1, len(rows)):
        health = Health(1000, IMAGES)
        health.replay(rows[:cut])
        assert {row["step"]: health.advice(row["step"], row) for row in rows[cut:]} == {
            row["step"]: told[row["step"]] for row in rows[cut:]
        }


def test_a_line_and_its_error():
    value, error = extrapolate([(0, 0.1), (1, 0.2), (2, 0.3)], 5)
    assert value == pytest.approx(0.6)
    assert error == pytest.approx(0, abs=1e-9)
    # residuals -1/6, 1/3, -1/6: s^2 = 1/6; 1 + 1/3 + (4 - 1)^2 / 2
    value, error = extrapolate([(0, 0), (1, 1), (2, 1)], 4)
    assert value == pytest.approx(2 / 3 + 0.5 * 3)
    assert error == pytest.approx(math.sqrt(1 / 6 * (1 + 1 / 3 + 9 / 2)))
    with pytest.raises(ValueError, match="three points"):
        extrapolate([(0, 0), (1, 1)], 2)


@pytest.mark.parametrize(("slope", "word"), [(0.02, "go on with --extend"), (0.0, "")])
def test_the_last_word_of_a_run_that_is_still_rising(slope, word):
    health = Health(1000, IMAGES)
    for i, step in enumerate(range(50, 1001, 50)):
        wobble = 0.004 * (-1) ** i
        health.advice(step, WELL | {"step": step, "encoder_norm": step, "retrieval_auc": 0.55 + slope * i + wobble})
    assert word in health.closing()
    assert bool(word) == bool(health.closing())
    assert "after 1,000" in health.outlook()
    assert health.outlook() == ""


@pytest.mark.parametrize(("gain", "said"), [(0.0, False), (-0.02, False), (0.004, False), (0.02, True)])
def test_views_that_are_found_better_while_neighbours_stay_ask_for_no_more_epochs(gain, said):
    """The demo, at 97 % by its neighbours for a quarter of the run, was told to go on."""

    def closing(looks):
        health = Health(1000, IMAGES)
        for i, step in enumerate(range(50, 1001, 50)):
            row = WELL | {"encoder_norm": step, "retrieval_auc": 0.97 + 0.0015 * i}
            knn = {"knn_top1": 0.96 + gain * (step > 750)} if step % 100 == 0 and i < looks else {}
            health.advice(step, row | knn)
        return health.closing()

    assert ("--extend" in closing(20)) == said
    assert "--extend" in closing(12)  # a single look in the last half tells nothing


def test_the_outlook_of_four_rows_is_as_wide_as_students_t_makes_it():
    """A line through four points leaves two degrees of freedom: 4.3 standard errors, not 2."""
    health, points = Health(1000, IMAGES), []
    for step, auc in ((100, 0.55), (120, 0.556), (140, 0.556), (160, 0.563)):
        health.advice(step, WELL | {"step": step, "encoder_norm": step, "retrieval_auc": auc})
        points.append((math.log(step), math.log(auc / (1 - auc))))
    value, error = extrapolate(points, math.log(1000))
    low, high, low2, high2 = (special.expit(value + k * error) for k in (*stats.t.interval(0.95, 2), -2, 2))
    assert f"between {low:.1%} and {high:.1%} after 1,000" in health.outlook()
    assert f"between {low2:.1%} and {high2:.1%}" != f"between {low:.1%} and {high:.1%}"


def test_the_outlook_of_what_is_nearly_perfect_leaves_room():
    """Seven of twelve runs came to less than a line through the shares themselves told, which ended beyond 100 %."""
    health = Health(2000, IMAGES)
    for step, auc in ((30, 0.7), (60, 0.79), (90, 0.82), (120, 0.845), (160, 0.865), (200, 0.88), (230, 0.885)):
        health.advice(step, WELL | {"step": step, "encoder_norm": step, "retrieval_auc": auc})
    low, high = (float(word.rstrip("%")) for word in re.findall(r"[\d.]+%", health.outlook())[1:])
    assert 93 < low < high < 99
    assert log_odds(1.0) == pytest.approx(math.log(499))


def test_an_outlook_of_views_that_all_are_found_waits_for_neighbours():
    """The demo was told: between 100% and 100%."""
    health = Health(2000, IMAGES)
    for step, auc in ((30, 0.6), (60, 0.79), (90, 0.88), (120, 0.92), (160, 0.95), (200, 0.965), (240, 0.975)):
        health.advice(step, WELL | {"step": step, "encoder_norm": step, "retrieval_auc": auc})
        assert health.outlook() == ""
    for k, knn in enumerate((0.5, 0.6, 0.7, 0.75)):
        health.advice(
            300 + 60 * k, WELL | {"encoder_norm": 300 + k, "retrieval_auc": 0.98 + 0.004 * k, "knn_top1": knn}
        )
    assert "kNN accuracy 75.0%" in health.outlook()


def test_an_outlook_that_leaves_everything_open_waits_for_more_rows():
    health = Health(1000, IMAGES)
    wild = ((100, 0.55), (120, 0.75), (140, 0.5), (160, 0.8))
    calm = [(200 + 20 * k, 0.7 + 0.001 * (-1) ** k) for k in range(25)]
    for step, auc in wild:
        health.advice(step, WELL | {"step": step, "encoder_norm": step, "retrieval_auc": auc})
    assert health.outlook() == ""
    for step, auc in calm:
        health.advice(step, WELL | {"step": step, "encoder_norm": step, "retrieval_auc": auc})
        if told := health.outlook():
            break
    assert step > 200
    assert "after 1,000" in told


def test_four_rows_a_quarter_that_scatter_are_no_rise():
    """Three standard errors of so few are no 1 % event."""

    def said(late):
        health = Health(1000, IMAGES)
        for step, auc in zip(range(520, 1001, 60), (0.58, 0.60, 0.61, 0.63, *late), strict=False):
            health.advice(step, WELL | {"step": step, "encoder_norm": step, "retrieval_auc": auc})
        return health.closing()

    assert said((0.65, 0.655, 0.66, 0.71, 0.63)) == ""
    assert "--extend" in said((0.70, 0.71, 0.72, 0.73, 0.74))
