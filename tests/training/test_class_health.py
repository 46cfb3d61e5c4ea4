"""Runs that learn classes: each trouble gets its word once, and what learns slowly or of uneven classes gets none."""

import math
import re

import pytest

from twofold.evaluation.scores import Scores, no_better_than_chance
from twofold.training.health_classes import ClassHealth, Lessons

WELL = {"loss": 1.0, "chance": 2.3026, "train_accuracy": 0.6, "by_chance": 0.1, "lr": 0.01}
TAUGHT = {"loss": 1.0, "chance": 2.3026, "agreement": 0.6, "by_chance": 0.1, "teacher_entropy": 0.2, "lr": 0.01}
NOTHING = {"loss": 2.31, "train_accuracy": 0.1}
LABELS = Lessons("image", 64, largest=0.1)


def watch(change, lessons=LABELS, steps=range(50, 1001, 50), norm=None, moving=10.0, total=1000):
    """Everything that is said of rows that are well but for `change`, which may depend on the step, and when."""
    health, told = ClassHealth(total, lessons, norm), []
    for step in steps:
        row = (TAUGHT if lessons.taught else WELL) | {"trained_norm": moving + step / 1000}
        row |= change(step) if callable(change) else change
        told += [(step, text) for text in health.advice(step, row)]
    return told


@pytest.mark.parametrize("kind", ["image", "audio"])
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (NOTHING, "10.0% of the training"),
        ({"trained_norm": 10.0}, "the weights that are trained have not moved in 100 steps"),
        ({"loss": 2.302, "train_accuracy": 0.45}, "the loss has hardly fallen (2.3020, 2.3026"),
        (lambda step: {"trained_norm": 40 + step / 1000, **NOTHING}, "4 times as large after 100 steps as they began"),
    ],
)
def test_each_trouble_is_told_once_within_the_first_tenth(change, word, kind):
    ((step, text),) = watch(change, Lessons(kind, 64, largest=0.1), norm=10.0)
    assert (step, word in text) == (100, True), text
    assert ("recording" in text) <= (kind == "audio")
    assert ("image" in text) <= (kind == "image")


def test_a_warning_says_what_chance_and_the_largest_class_would_get():
    ((_, text),) = watch(
        {"loss": 0.6, "chance": 0.5, "train_accuracy": 0.679, "by_chance": 0.68}, Lessons("image", 64, largest=0.8)
    )
    assert "67.9% of the training images are told right, and 68.0% would be if the answers were dealt out" in text
    assert "(the largest class has 80.0%; loss 0.600, of a constant prediction 0.500)" in text


def test_healthy_runs_are_left_in_peace():
    assert watch({}) == []
    assert watch({}, norm=1.0, moving=10.0) == []  # weights that grow, of a run that learns
    assert watch(NOTHING | {"train_accuracy": 0.16}) == []
    assert watch(lambda step: NOTHING | {"train_accuracy": 0.1 + step / 1500, "loss": 2.31 - step / 1000}) == []
    assert watch(NOTHING | {"loss": 2.2}) == []  # the loss has learned what the answers do not show yet
    assert watch({"loss": 2.2, "train_accuracy": 0.2}) == []  # most labels are wrong, and it learns the others


def test_nothing_is_said_while_the_rate_still_rises():
    told = watch(lambda step: NOTHING | {"lr": 1e-5 * min(step, 400)})
    assert [step for step, _ in told] == [450]
    assert watch(lambda step: {"trained_norm": 10.0, "lr": 1e-5 * step})[0][0] == 100


def test_nothing_is_foretold_while_the_rate_still_rises():
    """Of a warm-up of half the run, 6 to 33 % was foretold of one that came to 88 %."""
    health, told = ClassHealth(1000, LABELS), []
    for step in range(50, 1001, 50):
        health.advice(step, WELL | {"trained_norm": step, "train_accuracy": step / 2000, "lr": min(step, 500)})
        told.append((step, bool(health.outlook())))
    assert [step for step, said in told if said] == [550]


def test_uneven_classes_are_given_time():
    """A net that names the largest class first is right by chance alone, and learns the others later."""
    uneven = {"loss": 0.2, "chance": 0.2, "train_accuracy": 0.95, "by_chance": 0.95}
    ((step, text),) = watch(uneven, Lessons("image", 1024, largest=0.95))
    assert (step, "--sampling balanced" in text) == (1000, True)
    half = {"loss": 0.69, "chance": 0.69, "train_accuracy": 0.5, "by_chance": 0.5}
    assert watch(half, Lessons("image", 256, largest=0.5))[0][0] == 100
    four = {"loss": 0.5, "chance": 0.5, "train_accuracy": 0.75, "by_chance": 0.75}
    assert watch(four, Lessons("image", 256, largest=0.8))[0][0] == 200


@pytest.mark.parametrize("batch", [2000, 32, 16])
def test_as_few_answers_as_chance_may_give_are_no_verdict(batch):
    """Two standard errors of n answers right by chance in a tenth are below 0.018 from n = 1,112 on.

    Every row tells of one step, so that as many rows are needed as bring so many answers.
    """
    told = watch(NOTHING | {"train_accuracy": 0.09}, Lessons("image", batch), range(1, 101), total=100)
    assert [step for step, _ in told] == [max(20, math.ceil(1112 / batch))]


def test_answers_that_are_far_too_sure_are_told():
    """A linear classifier at a hundred times the rate: right in 60 % of cases, at a loss of 80."""
    ((step, text),) = watch({"loss": 80.0}, Lessons("image", 64, deep=False), norm=0.001)
    assert step == 200  # three rows that are judged
    assert "(80) is far above that of a constant prediction (2.3)" in text


def test_a_classifier_alone_may_grow():
    grown = {"trained_norm": 40.0, **NOTHING, "loss": 2.31}
    ((_, text),) = watch(lambda step: grown | {"trained_norm": 40 + step / 1000}, Lessons("image", 64, deep=False),
                         norm=1.0)  # fmt: skip
    assert "dealt out at random" in text


def test_a_net_that_begins_at_random_is_given_time():
    """From scratch in batches of 8, digits were at chance until step 112 of 326 and came to 61 %."""
    fresh = Lessons("image", 64, fresh=True)
    for total, step in ((320, 160), (1000, 200), (10_000, 1000)):
        assert watch(NOTHING, fresh, range(20, total + 1, 20), total=total)[0][0] == step
    assert watch(NOTHING, steps=range(20, 321, 20), total=320)[0][0] == 40


def test_a_student_that_agrees_by_chance_is_told_and_one_whose_teacher_has_one_answer():
    student = Lessons("image", 64, "agreement")
    ((step, text),) = watch({"agreement": 0.1}, student)
    assert (step, "agree in 10.0%" in text) == (100, True), text
    ((step, text),) = watch(lambda step: {"agreement": 1.0, "by_chance": 1.0 if step > 100 else 0.7}, student)
    assert (step, "the teacher names one class" in text) == (250, True), text
    assert watch({"loss": 2.29, "teacher_entropy": 2.28}, student) == []  # a soft teacher leaves no more to learn
    assert "hardly fallen" in watch({"loss": 2.302, "teacher_entropy": 2.2}, student)[0][1]


def test_the_outlook_is_of_training_accuracy_and_waits_where_all_is_right():
    health = ClassHealth(1000, LABELS)
    for step, right in ((100, 0.3), (120, 0.33), (140, 0.36), (160, 0.375)):
        health.advice(step, WELL | {"trained_norm": step, "train_accuracy": right})
    told = health.outlook()
    low, high = (float(word.rstrip("%")) for word in re.findall(r"[\d.]+%", told)[1:])
    assert told.startswith("training accuracy 37.5% after 160 steps")
    assert 55 < low < high < 90
    health = ClassHealth(1000, Lessons("image", 64, "agreement"))
    for step in (100, 120, 140, 160):
        health.advice(step, TAUGHT | {"trained_norm": step, "agreement": 0.99})
    assert health.outlook() == ""
    broken = ClassHealth(1000, LABELS)
    for step in (100, 120, 140, 160):
        broken.advice(step, WELL | NOTHING | {"trained_norm": step})
        assert broken.outlook() == ""
    assert "14 steps in all" in ClassHealth(14, LABELS).closing()
    assert "--extend" not in ClassHealth(14, LABELS).closing()
    assert ClassHealth(20, LABELS).closing() == ""


def test_rows_of_an_earlier_version_are_not_judged():
    health = ClassHealth(1000, LABELS)
    old = {"loss": 2.31, "train_accuracy": 0.1, "lr": 0.01}
    assert [health.advice(step, old) for step in range(50, 1001, 50)] == [[]] * 20


@pytest.mark.parametrize(
    ("top1", "mean", "count", "largest", "classes", "said"),
    [
        (0.1, 0.1, 500, 0.1, 10, True),
        (0.04, 0.04, 500, 0.1, 10, True),  # shuffled labels, learned by heart
        (0.1, 0.1, 30, 0.1, 10, False),  # of so few it may be chance
        (0.25, 0.25, 500, 0.1, 10, False),
        (0.9, 0.85, 1000, 0.95, 2, False),  # uneven, and the small class is told
        (0.95, 0.5, 20_000, 0.95, 2, True),
    ],
)
def test_what_does_not_hold_for_unseen_examples_is_told_at_the_end(top1, mean, count, largest, classes, said):
    text = no_better_than_chance(Scores(top1, None, mean, count), largest, classes, None, "audio")
    assert bool(text) == said
    assert ("test recordings" in text) == said
    heart = no_better_than_chance(Scores(top1, None, mean, count), largest, classes, 1.3 * largest + 0.3, "image")
    assert ("by heart" in heart) == said
