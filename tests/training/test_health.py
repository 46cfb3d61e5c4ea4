"""Warnings come when they should, once, with advice in the words of the data; and a line says what it does not know."""

import math
import re

import pytest
from scipy import special, stats

from twofold.training.health import Health, extrapolate, log_odds
from twofold.training.health_contrast import Contrast, ContrastHealth

WELL = {
    "loss": 3.0, "chance": 6.2, "contrastive_top1": 0.6, "contrastive_entropy": 2.0, "effective_rank": 40.0,
    "uniformity": -2.0, "retrieval_auc": 0.9,
}  # fmt: skip
IMAGES = Contrast("image", 256, 0.2)


def watch(change, contrast=IMAGES, steps=range(50, 1001, 50), total=1000, norm=None, moving=10.0):
    """Everything that is said of rows that are well but for `change`, and when."""
    health = ContrastHealth(total, contrast, norm)
    told = []
    for step in steps:
        row = WELL | {"encoder_norm": moving + step / 1000} | change
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
    temperature = 1e-6 if change.get("loss") == 4e5 else 0.2
    ((step, text),) = watch(change, Contrast(kind, 256, temperature), norm=10.0)
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
    health = ContrastHealth(1000, IMAGES)
    for step in range(50, 1001, 50):
        found = 0.9 if step <= 400 else 0.5
        row = WELL | {"retrieval_auc": found, "knn_top1": 0.3 + step / 2000, "encoder_norm": 10 + step / 1000}
        assert health.advice(step, row) == []


def test_a_resumed_run_says_what_the_whole_one_does():
    rows = [
        WELL | {"step": s, "encoder_norm": 10 + s / 1000, "retrieval_auc": 0.5 if s > 400 else 0.9}
        for s in range(50, 1001, 50)
    ]
    whole = ContrastHealth(1000, IMAGES)
    told = {row["step"]: whole.advice(row["step"], row) for row in rows}
    assert sum(map(len, told.values())) == 1
    for cut in range(1, len(rows)):
        health = ContrastHealth(1000, IMAGES)
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
    health = ContrastHealth(1000, IMAGES)
    for i, step in enumerate(range(50, 1001, 50)):
        wobble = 0.004 * (-1) ** i
        health.advice(
            step, WELL | {"step": step, "encoder_norm": 10 + step / 1000, "retrieval_auc": 0.55 + slope * i + wobble}
        )
    assert word in health.closing()
    assert bool(word) == bool(health.closing())
    assert "after 1,000" in health.outlook()
    assert health.outlook() == ""


@pytest.mark.parametrize(("gain", "said"), [(0.0, False), (-0.02, False), (0.004, False), (0.02, True)])
def test_views_that_are_found_better_while_neighbours_stay_ask_for_no_more_epochs(gain, said):
    """The demo, at 97 % by its neighbours for a quarter of the run, was told to go on."""

    def closing(looks):
        health = ContrastHealth(1000, IMAGES)
        for i, step in enumerate(range(50, 1001, 50)):
            row = WELL | {"encoder_norm": 10 + step / 1000, "retrieval_auc": 0.97 + 0.0015 * i}
            knn = {"knn_top1": 0.96 + gain * (step > 750)} if step % 100 == 0 and i < looks else {}
            health.advice(step, row | knn)
        return health.closing()

    assert ("--extend" in closing(20)) == said
    assert "--extend" in closing(12)  # a single look in the last half tells nothing


def test_the_outlook_of_four_rows_is_as_wide_as_students_t_makes_it():
    """A line through four points leaves two degrees of freedom: 4.3 standard errors, not 2."""
    health, points = ContrastHealth(1000, IMAGES), []
    for step, auc in ((100, 0.55), (120, 0.556), (140, 0.556), (160, 0.563)):
        health.advice(step, WELL | {"step": step, "encoder_norm": 10 + step / 1000, "retrieval_auc": auc})
        points.append((math.log(step), math.log(auc / (1 - auc))))
    value, error = extrapolate(points, math.log(1000))
    low, high, low2, high2 = (special.expit(value + k * error) for k in (*stats.t.interval(0.95, 2), -2, 2))
    assert f"between {low:.1%} and {high:.1%} after 1,000" in health.outlook()
    assert f"between {low2:.1%} and {high2:.1%}" != f"between {low:.1%} and {high:.1%}"


def test_the_outlook_of_what_is_nearly_perfect_leaves_room():
    """Seven of twelve runs came to less than a line through the shares themselves told, which ended beyond 100 %."""
    health = ContrastHealth(2000, IMAGES)
    for step, auc in ((30, 0.7), (60, 0.79), (90, 0.82), (120, 0.845), (160, 0.865), (200, 0.88), (230, 0.885)):
        health.advice(step, WELL | {"step": step, "encoder_norm": 10 + step / 1000, "retrieval_auc": auc})
    low, high = (float(word.rstrip("%")) for word in re.findall(r"[\d.]+%", health.outlook())[1:])
    assert 93 < low < high < 99
    assert log_odds(1.0) == pytest.approx(math.log(499))


def test_an_outlook_of_views_that_all_are_found_waits_for_neighbours():
    """The demo was told: between 100% and 100%."""
    health = ContrastHealth(2000, IMAGES)
    for step, auc in ((30, 0.6), (60, 0.79), (90, 0.88), (120, 0.92), (160, 0.95), (200, 0.965), (240, 0.975)):
        health.advice(step, WELL | {"step": step, "encoder_norm": 10 + step / 1000, "retrieval_auc": auc})
        assert health.outlook() == ""
    for k, knn in enumerate((0.5, 0.6, 0.7, 0.75)):
        health.advice(
            300 + 60 * k, WELL | {"encoder_norm": 10 + k / 1000, "retrieval_auc": 0.98 + 0.004 * k, "knn_top1": knn}
        )
    assert "kNN accuracy 75.0%" in health.outlook()


def test_an_outlook_that_leaves_everything_open_waits_for_more_rows():
    health = ContrastHealth(1000, IMAGES)
    wild = ((100, 0.55), (120, 0.75), (140, 0.5), (160, 0.8))
    calm = [(200 + 20 * k, 0.7 + 0.001 * (-1) ** k) for k in range(25)]
    for step, auc in wild:
        health.advice(step, WELL | {"step": step, "encoder_norm": 10 + step / 1000, "retrieval_auc": auc})
    assert health.outlook() == ""
    for step, auc in calm:
        health.advice(step, WELL | {"step": step, "encoder_norm": 10 + step / 1000, "retrieval_auc": auc})
        if told := health.outlook():
            break
    assert step > 200
    assert "after 1,000" in told


def test_four_rows_a_quarter_that_scatter_are_no_rise():
    """Three standard errors of so few are no 1 % event."""

    def said(late):
        health = ContrastHealth(1000, IMAGES)
        for step, auc in zip(range(520, 1001, 60), (0.58, 0.60, 0.61, 0.63, *late), strict=False):
            health.advice(step, WELL | {"step": step, "encoder_norm": 10 + step / 1000, "retrieval_auc": auc})
        return health.closing()

    assert said((0.65, 0.655, 0.66, 0.71, 0.63)) == ""
    assert "--extend" in said((0.70, 0.71, 0.72, 0.73, 0.74))


@pytest.mark.parametrize(("rows", "healthy"), [(2, 1.6), (4, 3.0), (8, 5.8), (16, 6.5)])
def test_a_few_rows_are_no_collapse_because_they_are_few(rows, healthy):
    """A folder of eight pictures, or any batch of 2, was told that its embedding had collapsed."""
    few = Contrast("image", rows, 0.2)
    assert watch({"effective_rank": healthy}, few) == []
    for contrast in (few, Contrast("image", 64 * rows, 0.2, own=rows)):  # of many processes: the rows of one
        ((_, text),) = watch({"effective_rank": 1.04}, contrast)
        assert "collapsed" in text
    assert watch({"effective_rank": healthy}, Contrast("image", 64 * rows, 0.2, own=rows)) == []


def test_one_row_of_two_pictures_that_are_alike_is_no_collapse():
    health = ContrastHealth(1000, Contrast("image", 2, 0.2))
    alike = {"effective_rank": 1.05, "uniformity": -0.001}
    told = [health.advice(s, WELL | {"encoder_norm": 10 + s / 1000} | (alike if s == 200 else {"effective_rank": 1.7}))
            for s in range(50, 1001, 50)]  # fmt: skip
    assert told == [[]] * 20


def test_a_usual_temperature_is_not_called_too_low():
    """Two pictures at 0.2 were told to give a higher temperature, "0.1 to 0.5 is usual"."""
    row = {"loss": 5.9, "chance": 1.1, "contrastive_entropy": 0.01, "effective_rank": 1.8}
    assert watch(row, Contrast("image", 2, 0.2)) == []
    ((_, text),) = watch(row, Contrast("image", 2, 0.01))
    assert "Give a higher temperature" in text


def test_a_temperature_is_judged_by_the_negatives_that_there_are():
    """At 1.5 a perfect embedding of 2 images gives a partner 2.0 of 3 candidates' weight, of a queue's 3.8 times."""
    few, queue = Contrast("image", 2, 1.5), {"negatives": 65536}
    assert "--method.temperature 1.5" in watch({}, few)[0][1]
    assert watch(queue, few) == []


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_weights_that_leave_their_start_behind_are_told_once(kind):
    """Digits at a hundred times the rate, without labels, got no word: views were found all the while."""
    ((step, text),) = watch({}, Contrast(kind, 256, 0.2), norm=1.0)
    assert step == 100
    assert "10 times as large after 100 steps as they began" in text
    assert "--optim.lr" in text
    assert watch({}, Contrast(kind, 256, 0.2), norm=4.0) == []
    for looks, said in (((0.4, 0.4, 0.4), 1), ((0.4, 0.3), 0), ((0.4, 0.45, 0.4), 0)):  # neighbours can tell otherwise
        health, told = ContrastHealth(1000, Contrast(kind, 256, 0.2, queries=100), 1.0), []
        for k in range(20):
            look = {"knn_top1": looks[k]} if k < len(looks) else {}
            told += health.advice(50 * k + 50, WELL | {"encoder_norm": 10 + k / 1000} | look)
        assert [("10 times as large" in text) for text in told] == [True] * said


@pytest.mark.parametrize(("batch", "steps"), [(2, 119), (4, 33), (16, 6), (256, 1)])
def test_as_few_views_as_a_guess_may_find_are_no_verdict(batch, steps):
    """Eight pictures in pairs and twenty in fours were told that nothing was learned: three of eight partners found.

    Two standard errors of the mean of n ranks among N are below 0.065 from n = 78.9 * (N + 1) / (N - 1) on.
    """
    row = {"retrieval_auc": 0.4, "effective_rank": 1.9 if batch < 16 else 9.0}
    ((step, text),) = watch(row, Contrast("image", batch, 0.2), steps=range(1, 401), total=400)
    assert step == 39 + steps  # judged from step 40 on
    assert "nothing is being learned" in text


def test_how_far_weights_may_go_depends_on_the_steps():
    """Squares of norms grow by 0.002 a step in healthy runs: a factor of 4.6 of norms after 10,000 steps."""
    late = range(5000, 100001, 5000)
    assert watch({}, steps=late, total=100_000, norm=10.0, moving=46.0) == []
    ((step, text),) = watch({}, steps=late, total=100_000, norm=10.0, moving=380.0)
    assert (step, "39 times" in text) == (10_000, True)


def falling(values, queries):
    """What is said of a run whose neighbours go that way."""
    health = ContrastHealth(1000, Contrast("image", 256, 0.2, queries=queries))
    return [
        text
        for step, knn in zip(range(100, 1001, 100), values, strict=False)
        for text in health.advice(step, WELL | {"encoder_norm": 10 + step / 1000, "knn_top1": knn})
    ]


def test_neighbours_that_are_lost_are_told():
    """At a hundred times the rate digits went from 43 % to 25 %, and were found as views all the while."""
    (text,) = falling((0.43, 0.22, 0.29, 0.28, 0.25), 180)
    assert "from 43.0% at the first look to 25.5%" in text
    assert "--optim.lr" in text
    assert falling((0.43, 0.22, 0.29, 0.28, 0.25), 38) == []  # of so few it may be chance
    assert falling((0.43, 0.40, 0.36, 0.38, 0.41), 2000) == []
    assert falling((0.43, 0.22), 2000) == []  # one look says nothing


def test_nothing_is_told_of_a_contrast_that_is_not_trained():
    """A run that reconstructs alone was told how often partners are near by a head that nobody teaches."""
    alone = Contrast("audio", 64, 0.1, weighs=False)
    health = ContrastHealth(1000, alone)
    for i, step in enumerate(range(50, 1001, 50)):
        row = WELL | {
            "step": step,
            "encoder_norm": 10 + step / 1000,
            "retrieval_auc": 0.55 + 0.02 * i,
            "uniformity": -0.001,
        }
        assert health.advice(step, row) == []
        assert health.outlook() == ""
    assert health.closing() == ""
    ((_, text),) = watch({"effective_rank": 1.0}, alone)
    assert "collapsed" in text
    assert "temperature" not in text


def test_a_run_too_short_to_be_judged_says_so():
    """Three steps in all ended without a word."""
    for total, word in ((1, "1 step in all is too few"), (3, "3 steps in all"), (19, "19 steps in all")):
        health = ContrastHealth(total, IMAGES)
        assert health.advice(total, WELL | {"encoder_norm": 1.0, "retrieval_auc": 0.5}) == []
        assert word in health.closing()
        assert "--extend" in health.closing()
    assert ContrastHealth(20, IMAGES).closing() == ""
    assert Health(3).closing() == ""


def test_an_extended_run_is_told_of_its_new_end():
    rows = [
        WELL | {"step": step, "encoder_norm": 10 + step / 1000, "retrieval_auc": 0.6 + 0.1 * math.log(step / 100)}
        for step in range(100, 1001, 50)
    ]
    resumed, extended = ContrastHealth(2000, IMAGES), ContrastHealth(2000, IMAGES)
    resumed.replay(rows)
    extended.replay(rows, since=1000)
    assert resumed.outlook() == ""
    assert "after 2,000" in extended.outlook()


def test_what_was_foretold_before_a_stop_is_not_foretold_again():
    """Rows that scatter later make the line too wide, and a resumed run foretold once more."""
    calm = [(100, 0.70), (120, 0.705), (140, 0.71), (160, 0.716)]
    health, rows = ContrastHealth(1000, IMAGES), []
    for step, auc in calm:
        rows.append(WELL | {"step": step, "encoder_norm": 10 + step / 1000, "retrieval_auc": auc})
        health.advice(step, rows[-1])
    assert health.outlook() != ""
    rows += [
        WELL | {"step": s, "encoder_norm": 10 + s / 1000, "retrieval_auc": a} for s, a in ((180, 0.99), (200, 0.1))
    ]
    again = ContrastHealth(1000, IMAGES)
    again.replay(rows)
    for step in range(220, 1001, 20):
        again.advice(step, WELL | {"encoder_norm": 10 + step / 1000, "retrieval_auc": 0.72})
        assert again.outlook() == ""


def test_rows_that_scatter_leave_more_doubt():
    """Twenty pictures in fours: 45 % in one stretch of 33 steps, between others of 60 %."""
    few, said = Contrast("image", 4, 0.2), []
    for spread in (0.0, 0.15):
        health, told = ContrastHealth(400, few), []
        for i, step in enumerate(range(5, 401, 5)):
            auc = 0.45 + spread * (-1) ** i if 60 <= step < 110 else 0.6
            told += health.advice(step, WELL | {"encoder_norm": 10 + i / 1000, "retrieval_auc": auc})
        said.append(len(told))
    assert said == [1, 0]


def below(looks, before, total=1000, queries=500):
    """What is said, and when, of a run whose neighbours are looked at every hundred steps."""
    health = ContrastHealth(total, Contrast("image", 256, 0.2, queries=queries))
    health.begun_at, told = before, []
    for number, look in enumerate(looks, 1):
        row = WELL | {"encoder_norm": 10 + number / 10, "knn_top1": look}
        told += [(100 * number, text) for text in health.advice(100 * number, row)]
    return told


def test_neighbours_worse_than_those_of_random_weights_are_told_in_the_second_half():
    """A short MoCo on digits fell from 17 to 12 %, less than what is told by its first look, and had no word."""
    ((step, text),) = below([0.15, 0.14, 0.13, 0.13, 0.12, 0.12, 0.12, 0.12, 0.12, 0.12], 0.17)
    assert step == 600  # by two looks, none of them in the first half
    assert "kNN accuracy is 12.0% after 600 steps, and was 17.0% before the first" in text
    assert "--views.color_strength" in text
    # a run that is at its end after one look has nothing else to go by
    ((step, _),) = below([0.12], 0.17, total=100)
    assert step == 100


@pytest.mark.parametrize(
    ("looks", "before", "queries"),
    [
        ([0.6, 0.5, 0.55, 0.7, 0.8, 0.85, 0.9, 0.9, 0.9, 0.9], 0.75, 500),  # undone first, then learned
        ([0.31] * 10, 0.336, 216),  # no lower than chance may have it
        ([0.12] * 10, None, 500),  # nobody looked
        ([0.12] * 10, 0.17, 0),
        ([0.12] * 4, 0.17, 500),  # in the first half
    ],
)
def test_neighbours_no_worse_than_before_beyond_doubt_are_left_in_peace(looks, before, queries):
    assert below(looks, before, queries=queries) == []
