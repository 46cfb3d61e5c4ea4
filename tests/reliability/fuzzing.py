"""What is made up for the fuzzers, and what must come of it: it is read, or refused in words, within bounds.

How much is tried: `make test` tries the same examples each time, within a minute in all; `make test-full` and `make
test-reliability` more, and others each time (hypothesis's profile `long`, see tests/conftest.py).
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from twofold.errors import UserError

SECONDS, MEMORY = 10.0, 400 * 2**20
"""Of a processor's time, and bytes beside what the process holds, for one example; each is of some kilobytes."""

ODD_TEXTS = [
    "", " ", "\0", ".", "..", "/", "//", "~", "a/../../b", "nan", "inf", "-inf", "1e999", "-1", "0", "1.0", "0x10", "²",
    "١", "٣", "9" * 20, "9" * 5000, "null", "true", "2020-01-01", "a" * 300, "a/" * 3000, "\x1b[31m", "\u2028",
    "\ufeff", "é", "ß", "[/bold]", "<b>", "'", '"', "\t", "\n", "a,b", "%", "10 %", "4/class", "(", "(a+)+$", "[",
    "train", "speaker", "*", "&a", "!!python/object:os.system", "{", "}", "|", ">", "#", ":", "- ",
]  # fmt: skip
ODD_NUMBERS: list[Any] = [
    0, 1, -1, 2, 3, 127, 255, 2**15, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**12,
    10**30, 10**400, -(10**400), 0.0, -0.0, 0.5, 1.5, -0.5, 1e-308, 5e-324, 1e15, 1e300, 1e308, -1e308, math.inf,
    -math.inf, math.nan,
]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=12))
NUMBERS = st.one_of(st.sampled_from(ODD_NUMBERS), st.integers(-300, 300), st.integers(), st.floats())
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    PLAIN, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)), max_leaves=6
)
"""What JSON and YAML hold, and what they hold that nobody expects."""


@st.composite
def changed(draw: st.DrawFn, document: Any, values: st.SearchStrategy[Any] = VALUES) -> Any:
    """A document of mappings and lists with a few places replaced, removed or added."""
    holder = [copy.deepcopy(document)]
    for _ in range(draw(st.integers(1, 3))):
        place: Any = holder
        while True:
            keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys)) if keys else None
            if key is not None and isinstance(place[key], dict | list) and draw(st.integers(0, 3)):
                place = place[key]
                continue
            _change(draw, place, key, draw(values))
            break
        if not holder:
            return None
    return holder[0]


def _change(draw: st.DrawFn, place: Any, key: Any, value: Any) -> None:
    action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
    if action == "add" or key is None:
        if isinstance(place, dict):
            place[draw(TEXTS)] = value
        else:
            place.append(value)
    elif action == "remove":
        del place[key]
    else:
        place[key] = value


@st.composite
def spliced(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with a few pieces cut out, put in or overwritten, or an end that is missing."""
    result = data
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(result)))
        cut = draw(st.sampled_from([0, 0, 1, 1, 2, 4, 8, 100, len(result)]))
        piece = draw(st.one_of(st.binary(max_size=9), st.sampled_from([t.encode() for t in ODD_TEXTS])))
        result = result[:start] + piece + result[start + cut :]
    return result


def tried(read: Callable[[], Any], *names: str) -> Any:
    """What a reader gives, None where it refuses; fails where it does that in any way but that of the house.

    Args:
        read: to be called.
        names: of which its refusal must hold one: the file or the option at fault. An option by its two dashes will do.
    """
    with within_bounds():
        try:
            return read()
        except UserError as error:
            message = str(error)
    assert message.strip()
    assert "Traceback" not in message
    assert "--" in message or any(name in message for name in names), f"{message!r} names none of {names}"
    return None


@contextlib.contextmanager
def within_bounds() -> Iterator[None]:
    """Inside, no more memory and processor time is used than an example may take."""
    status, begun = Path("/proc/self/status"), time.process_time()
    measured = status.exists()
    before = 0
    if measured:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before = _bytes(status.read_text(), "VmRSS")
    yield
    seconds = time.process_time() - begun
    assert seconds < SECONDS, f"{seconds:.1f} s"
    if measured:
        grown = _bytes(status.read_text(), "VmHWM") - before
        assert grown < MEMORY, f"{grown / 2**20:.0f} MiB"


def _bytes(status: str, name: str) -> int:
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) * 1024


def encoded(text: str) -> bytes:
    """Text as bytes, with halves of surrogates as they are."""
    return text.encode("utf-8", "surrogatepass")
