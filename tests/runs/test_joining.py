"""Processes that start together agree on a name for this start, whatever an earlier one has left in the store."""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from twofold.runs.joining import _TOKEN, _answer, _meet, _missing


@pytest.fixture
def store() -> Any:
    return dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=20), wait_for_workers=False)  # type: ignore[attr-defined]


def test_a_start_after_one_that_died(store: Any) -> None:
    """Its name, all answers and its word to go are still there."""
    store.set(_TOKEN, "earlier")
    for rank in (1, 2):
        store.set(_answer("earlier", rank), f"earlier{rank}")
    store.set("earlier/go", json.dumps(["earlier1", "earlier2"]))
    names: dict[int, str] = {}

    def meet(rank: int) -> None:
        names[rank] = _meet(store.clone(), rank, 3, time.monotonic() + 20)

    others = [threading.Thread(target=meet, args=(rank,)) for rank in (1, 2)]
    for thread in others:
        thread.start()
    time.sleep(0.3)
    assert names == {}  # they have answered the earlier name, and do not go by it
    meet(0)
    for thread in others:
        thread.join()
    assert names[0] == names[1] == names[2] != "earlier"


def test_who_is_missing_is_told(store: Any) -> None:
    with pytest.raises(TimeoutError):
        _meet(store, 2, 3, time.monotonic() + 0.2)
    assert "rank 0 of 3 processes has not come within 5 s" in str(_missing(store, 3, 5, TimeoutError("over")))
    store.set(_TOKEN, "now")
    store.set(_answer("now", 2), "me")
    assert "2 of 3 processes have come within 5 s (--training.join_patience); missing: rank 1." in str(
        _missing(store, 3, 5, TimeoutError("over"))
    )
    with pytest.raises(RuntimeError):  # the first waits for answers, in the store
        _meet(store, 0, 3, time.monotonic() + 0.2)
