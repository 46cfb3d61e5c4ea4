"""Addressed random numbers: every draw is a pure function of where it is used.

A stream of random numbers has to be replayed to be reproduced; an address does not. Each number here is the value of
a counter-based generator (Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) at
(seed, stream name, step, row, position). So a rerun, a resume, a worker process, a recomputed chunk and any number of
ranks see the same draws, each making only its own rows.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox4x32-10 of each counter.

    Args:
        counter: [n, 4] words of 32 bits, held in uint64.
        key: two words of 32 bits.

    Returns:
        [n, 4] words of 32 bits, held in uint64.
    """
    c0, c1, c2, c3 = (counter[:, i] for i in range(4))
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2  # exact: 32 x 32 bits fit in 64
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1)


@dataclass(frozen=True)
class Key:
    """The address of one step's draws: a run's seed (0 <= seed < 2**64) and the step (0 <= step < 2**32)."""

    seed: int
    step: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64 or not 0 <= self.step < 2**32:
            raise ValueError(f"seed must lie in [0, 2**64) and step in [0, 2**32); got {self.seed} and {self.step}")


def uniforms(key: Key, stream: str, rows: ArrayLike, count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), `count` for each row.

    Args:
        key: seed and step.
        stream: what the numbers are for, e.g. ``"a/crop"``; other names give independent numbers.
        rows: [n] positions in the global batch (integers in [0, 2**32)).
        count: how many numbers a row needs. The first k of them do not depend on `count`.

    Returns:
        [n, count] float64; 32 random bits each.
    """
    rows = np.asarray(rows, dtype=np.uint64).reshape(-1)
    blocks = -(-count // 4)
    counter = np.empty((len(rows), blocks, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(blocks, dtype=np.uint64)
    counter[..., 1] = rows[:, None]
    counter[..., 2] = np.uint64(key.step)
    counter[..., 3] = np.uint64(zlib.crc32(stream.encode()))
    words = philox(counter.reshape(-1, 4), (key.seed & 0xFFFFFFFF, key.seed >> 32))
    return words.reshape(len(rows), blocks * 4)[:, :count].astype(np.float64) * 2.0**-32


def permutation(seed: int, stream: str, epoch: int, n: int) -> NDArray[np.int64]:
    """A uniformly random order of 0..n-1, the same for the same (seed, stream, epoch, n) everywhere."""
    draws = uniforms(Key(seed, epoch), stream, [0], 2 * n)[0]
    # Two words a position make 64-bit sort keys: ties, which a stable sort would break by position, do not occur.
    return np.argsort(draws[:n] + draws[n:] * 2.0**-32, kind="stable").astype(np.int64)


def derive_seed(seed: int, *address: int | str) -> int:
    """A 63-bit seed for a library's own generator, a pure function of `seed` and `address`."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) & 0xFFFFFFFF for part in address]
    counter = np.array([[*words, *[0] * (4 - len(words))]], dtype=np.uint64)
    if len(words) > 4:
        raise ValueError(f"an address has at most 4 parts, got {len(words)}")
    out = philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))[0]
    return int(out[0]) << 31 | int(out[1]) >> 1


_ROUNDS = 8


def permuted(seed: int, stream: str, epoch: int, n: int, positions: ArrayLike) -> NDArray[np.int64]:
    """The entries at `positions` of a random order of 0..n-1, without making the order.

    A Feistel network over the smallest even number of bits that holds n, with Philox as round function, walked until it
    lands below n (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): time and memory grow with the
    positions asked for, not with n. The order is another one than `permutation` gives.

    Args:
        seed, stream, epoch: the address, as for `permutation`.
        n: in [1, 2**62].
        positions: [m] in [0, n).

    Returns:
        [m].
    """
    half = max(1, (int(n - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    key, name = (seed & 0xFFFFFFFF, seed >> 32), np.uint64(zlib.crc32(stream.encode()))
    values = np.array(positions, dtype=np.uint64).reshape(-1)
    open_ = np.arange(len(values))
    while len(open_):
        left, right = values[open_] >> shift, values[open_] & mask
        for number in range(_ROUNDS):
            counter = np.empty((len(open_), 4), dtype=np.uint64)
            counter[:, 0], counter[:, 1], counter[:, 2], counter[:, 3] = (
                right,
                np.uint64(number),
                np.uint64(epoch),
                name,
            )
            left, right = right, left ^ (philox(counter, key)[:, 0] & mask)
        values[open_] = left << shift | right
        open_ = open_[values[open_] >= n]
    return values.astype(np.int64)
