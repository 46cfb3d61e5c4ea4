"""Who is lost, told by beats alone; with real processes: tests/commands/test_lost_ranks.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

from twofold.errors import RankLost, UserError
from twofold.training.vigil import LONG, Beat, Heard, Pulse, judge

LIMIT, GRACE = 40.0, 6.0


def beat(marks: int, doing: str = "encoder", long: bool = False, **more: object) -> Beat:
    return Beat(Pulse(marks, marks // 8, doing, long), "node", **more)  # type: ignore[arg-type]


def heard(beat: Beat, silent: float = 0.0) -> Heard:
    return Heard(beat, 5, silent)


def verdict(mine: Beat, *others: Heard) -> str | None:
    result = judge(mine, dict(enumerate(others, 1)), 0, LIMIT, GRACE)
    return None if result is None else result.text


def test_silence() -> None:
    assert verdict(beat(80), heard(beat(80), silent=LIMIT - 1)) is None
    text = verdict(beat(80), heard(beat(80)), heard(beat(72, "data"), silent=LIMIT))
    assert text == (
        "rank 2 on node, last seen after step 9, in data: it has died or was suspended, there is no sign of life for "
        "40 s"
    )


def test_a_rank_that_has_not_begun_may_be_opening_its_data() -> None:
    assert judge(beat(0), {1: Heard(beat(0, "starting", True), 0, LIMIT)}, 0, LIMIT, GRACE) is None
    assert judge(beat(0), {1: Heard(beat(0, "starting", True), 0, LONG * LIMIT)}, 0, LIMIT, GRACE) is not None


def test_a_checkpoint_in_hand_is_finished_first() -> None:
    lost = heard(beat(80), silent=LIMIT)
    assert verdict(beat(80, "saving", True), lost) is None
    assert verdict(beat(80, "saving", True, still=LONG * LIMIT, unmarked=LONG * LIMIT), lost) is not None


def test_the_one_behind_hangs_and_not_those_that_wait() -> None:
    stuck = beat(80, "data", still=LIMIT, unmarked=LIMIT, place="source.py:3, read")
    waits = beat(83, still=LIMIT, unmarked=LIMIT, waiting=True)
    text = verdict(waits, heard(waits), heard(stuck))
    assert text is not None
    assert text.startswith("rank 2 on node, after step 10, in data (source.py:3, read): hangs")
    also = beat(80, "data", still=LIMIT, unmarked=LIMIT, waiting=True)  # as many marks, but in a collective
    told = verdict(also, heard(stuck))
    assert told is not None
    assert told.startswith("rank 1 ")


@pytest.mark.parametrize(
    "behind",
    [
        beat(80, unmarked=3 * LIMIT),  # slow, and computes
        beat(80, "monitors", True, still=3 * LIMIT, unmarked=3 * LIMIT),
        beat(80, "saving", True, still=3 * LIMIT, unmarked=3 * LIMIT),
        beat(80, still=LIMIT - 1, unmarked=LIMIT - 1),
    ],
)
def test_who_waits_for_one_at_work_waits(behind: Beat) -> None:
    assert verdict(beat(83, still=3 * LIMIT, unmarked=3 * LIMIT, waiting=True), heard(behind)) is None


@pytest.mark.parametrize(
    "behind",
    [
        beat(80, unmarked=LONG * LIMIT),  # computes for ever
        beat(80, "saving", True, still=LONG * LIMIT, unmarked=LONG * LIMIT),  # a file system that answers no more
    ],
)
def test_nothing_is_waited_for_without_end(behind: Beat) -> None:
    assert verdict(beat(83, still=3 * LIMIT, unmarked=3 * LIMIT, waiting=True), heard(behind)) is not None


def test_two_that_wait_for_each_other() -> None:
    waits = beat(80, still=LIMIT, unmarked=LIMIT, waiting=True)
    text = verdict(waits, heard(waits))
    assert text is not None
    assert "rank 0 on node" in text
    assert "rank 1 on node" in text
    assert "wait for each other" in text


def test_errors_of_another_rank() -> None:
    bad = beat(80, "data", status=2, error="data/7.png cannot be read")
    assert verdict(beat(80), heard(bad, silent=GRACE - 1)) is None  # our own collective tells it first
    told = judge(beat(80), {1: heard(bad, silent=GRACE)}, 0, LIMIT, GRACE)
    assert told is not None
    assert isinstance(told.error(), UserError)
    assert str(told.error()) == "data/7.png cannot be read"
    told = judge(beat(80), {1: heard(beat(80, "data", status=1, error="KeyError: 'x'"), silent=GRACE)}, 0, LIMIT, GRACE)
    assert told is not None
    assert (told.status, str(told.error())) == (1, "rank 1 on node ended after step 10, in data: KeyError: 'x'")
    done = beat(99, status=0)
    assert verdict(beat(98), heard(done, silent=9 * LIMIT)) is None


def test_how_the_run_goes_on_is_said_once() -> None:
    once = str(RankLost("rank 1 has died"))
    assert once == "rank 1 has died; the same command with --resume goes on from the newest checkpoint"
    assert str(RankLost(once)) == once
    assert "--resume" not in str(RankLost("rank 1 ended", 1))


def test_one_process_has_no_vigil() -> None:
    code = (
        "import threading\n"
        "from twofold.training.vigil import Pulse, Vigil\n"
        "with Vigil(60, lambda: Pulse(0, 0, 'data', False)):\n    print(threading.active_count())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"
