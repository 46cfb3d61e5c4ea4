"""The wire format: round trips and every kind of malformed message."""

from __future__ import annotations

import pytest
from bundle_writer import message, number, varint
from hypothesis import given
from hypothesis import strategies as st

from twofold.interop import protobuf


@given(st.integers(0, 2**64 - 1))
def test_varint(value: int) -> None:
    encoded = varint(value)
    assert protobuf.varint(b"\x01" + encoded + b"\x02", 1) == (value, 1 + len(encoded))


def test_fields_of_every_kind() -> None:
    data = number(1, 300) + message(2, b"abc") + bytes([3 << 3 | 5, 1, 0, 0, 0, 4 << 3 | 1, 2, 0, 0, 0, 0, 0, 0, 1])
    assert list(protobuf.fields(data)) == [(1, 300), (2, b"abc"), (3, 1), (4, 2 + 2**56)]
    assert protobuf.integer(data, 1) == 300
    assert protobuf.integer(data, 9) == 0
    assert protobuf.text(data, 2) == "abc"
    assert protobuf.text(data, 9) == ""
    assert protobuf.messages(message(1, b"x") + message(1, b"y"), 1) == [b"x", b"y"]


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_malformed(data: bytes) -> None:
    try:
        list(protobuf.fields(data))
    except protobuf.Malformed:
        return


@pytest.mark.parametrize("data", [b"\x80", b"\x0a\x05abc", b"\x0b", b"\x0d\x01", b"\x02\x01a", b"\xff" * 11])
def test_malformed(data: bytes) -> None:
    with pytest.raises(protobuf.Malformed):
        list(protobuf.fields(data))


def test_kinds_are_not_confused() -> None:
    with pytest.raises(protobuf.Malformed):
        protobuf.integer(message(1, b"x"), 1)
    with pytest.raises(protobuf.Malformed):
        protobuf.messages(number(1, 2), 1)
