"""Just enough of the protocol-buffer wire format to read TensorFlow's messages without TensorFlow.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Value = int | bytes


class Malformed(ValueError):
    """Bytes that are no message, or end in the middle of one."""


def varint(data: bytes, start: int) -> tuple[int, int]:
    """(value, position after it) of the variable-length integer at `start`."""
    value = shift = 0
    for position in range(start, min(start + 10, len(data))):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
    raise Malformed(f"no integer at byte {start} of {len(data)}")


def fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """(field number, value) of each field: bytes for strings and nested messages, an unsigned integer for the rest."""
    position = 0
    while position < len(message):
        tag, position = varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = varint(message, position)
            yield number, value
            continue
        if wire == BYTES:
            size, position = varint(message, position)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise Malformed(f"wire type {wire} in field {number}")
        end = position + size
        if number == 0 or end > len(message):
            raise Malformed(f"field {number} ends at byte {end} of {len(message)}")
        piece = message[position:end]
        yield number, piece if wire == BYTES else int.from_bytes(piece, "little")
        position = end


def integer(message: bytes, number: int) -> int:
    """The last integer in field `number`; 0 where there is none."""
    value = 0
    for result, content in fields(message):
        if result == number:
            if not isinstance(content, int):
                raise Malformed(f"field {number} holds no integer")
            value = content
    return value


def texts(message: bytes, number: int) -> list[str]:
    """Every string in field `number`."""
    return [content.decode("utf-8", errors="replace") for content in messages(message, number)]


def text(message: bytes, number: int) -> str:
    """The last string in field `number`; empty where there is none."""
    return (texts(message, number) or [""])[-1]


def messages(message: bytes, number: int) -> list[bytes]:
    """Every nested message in field `number`."""
    result = [content for at, content in fields(message) if at == number]
    nested = [content for content in result if isinstance(content, bytes)]
    if len(nested) < len(result):
        raise Malformed(f"field {number} holds no message")
    return nested
