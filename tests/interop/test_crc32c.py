"""CRC-32C against the published values and a loop over bytes."""

from __future__ import annotations

import numpy as np
import pytest
from bundle_writer import mask, slow_crc

from twofold.interop.crc32c import crc32c, masked


# RFC 3720, appendix B.4 (as the number that the register holds), and the usual check value of CRC catalogues.
@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_values(data: bytes, value: int) -> None:
    assert crc32c(data) == value


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 63, 64, 65, 1000, 4099, 4 * 65536, 4 * 65536 + 1, 700_003])
def test_equals_a_loop_over_bytes(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == slow_crc(data)


def test_takes_arrays_and_views() -> None:
    data = np.arange(1000, dtype=np.uint8)
    assert crc32c(data) == crc32c(memoryview(data.tobytes())) == crc32c(data.tobytes())


def test_sees_every_single_bit() -> None:
    data = bytearray(np.random.default_rng(0).bytes(40))
    right = crc32c(bytes(data))
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        assert crc32c(bytes(data)) != right
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("crc", [0, 1, 0xFFFFFFFF, 0x80000000, 0xE3069283])
def test_masked(crc: int) -> None:
    assert masked(crc) == mask(crc)
    assert 0 <= masked(crc) < 2**32
