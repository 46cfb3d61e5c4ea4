"""The batches of recordings: an order that puts like lengths together, and decoding while a step trains."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from twofold.data.base import name_of
from twofold.data.batches.balanced import BalancedDraws
from twofold.data.batches.base import Batch
from twofold.data.batches.order import check_epochs
from twofold.data.batches.workers import Substitution
from twofold.data.decoding.opening import BadImage
from twofold.data.sources.audio import AudioSource
from twofold.devices import usable_cores
from twofold.distributed import local_world_size
from twofold.errors import UserError
from twofold.randomness import Key, permutation, uniforms
from twofold.text import counted
from twofold.views.audio.views import WaveDraw, WaveViews
from twofold.waves import Waves

_POOL = 16
"""Batches of a pool: it is drawn at random, and sorted by length within."""


class LengthOrder:
    """The recordings of each step's global batch, of like lengths: a pure function of the step, as `Order`.

    Each epoch: a random permutation, cut into pools of 16 batches; each pool sorted by length and cut into batches; the
    batches in random order. What is left of an epoch (less than a batch) is left out.

    Args:
        lengths: [n].
        batch: recordings a step, over all ranks.
        seed: of the run.
        groups: [n] numbers; no batch holds two of one group (a text, a label). Below 0: a group of its own. What finds
            no place in an epoch is left out, and places that stay free are filled by another recording of that epoch.
        speakers: [n] numbers; a batch holds one speaker's recordings, or what several have left over. Below 0: a
            speaker that nobody knows, the same for all of these.
        drawn: what an epoch's n recordings are drawn by in place of a permutation.

    Raises:
        UserError: the batch is larger than the data, or than the number of groups.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        batch: int,
        seed: int,
        groups: NDArray[np.int64] | None = None,
        speakers: NDArray[np.int64] | None = None,
        drawn: BalancedDraws | None = None,
    ) -> None:
        self.n, self.batch, self.seed, self._drawn = len(lengths), batch, seed, drawn
        if not 1 <= batch <= self.n:
            raise UserError(f"--batch {batch}: there are {counted(self.n, 'recording')}; give 1..{self.n}")
        self._lengths, self._groups, self._speakers = lengths, None, speakers
        if groups is not None:
            own = np.where(groups < 0, groups.max(initial=0) + 1 + np.arange(self.n), groups)
            self._groups = own
            if len(np.unique(own)) < batch:
                raise UserError(
                    f"--data.audio.distinct: the recordings have {counted(len(np.unique(own)), 'different value')}, "
                    f"fewer than --batch {batch}: choose a smaller batch"
                )
        self._batches = functools.lru_cache(maxsize=2)(self._make)

    @property
    def steps_per_epoch(self) -> float:
        """Whole batches."""
        return float(self.n // self.batch)

    def indices(self, step: int) -> NDArray[np.int64]:
        """[batch] recordings of one step."""
        epoch, place = divmod(step, self.n // self.batch)
        indices: NDArray[np.int64] = self._batches(epoch)[place]
        return indices

    def steps(self, epochs: float) -> int:
        """Whole steps in so many epochs; UserError for more than can be counted."""
        check_epochs(epochs, self.steps_per_epoch)
        return int(self.n // self.batch * epochs)

    def epoch(self, step: int) -> float:
        """Epochs seen before this step."""
        return step / self.steps_per_epoch

    def _make(self, epoch: int) -> NDArray[np.int64]:
        """[steps, batch] of one epoch."""
        if self._drawn is None:
            order = permutation(self.seed, "order", epoch, self.n)
        else:
            order = self._drawn.entries(epoch * self.n, (epoch + 1) * self.n)
        count = self.n // self.batch
        by_length = self._by_length(order[: count * self.batch] if self._speakers is None else order, epoch)
        if self._groups is None:
            batches = by_length[: count * self.batch].reshape(count, self.batch)
        else:
            batches = self._distinct(by_length, order, count, self._groups)
        return batches[permutation(self.seed, "order of batches", epoch, count)]

    def _by_length(self, order: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """The recordings of `order`, speaker by speaker if these count, sorted by length within each pool."""
        parts = [order]
        if self._speakers is not None:
            turn = permutation(self.seed, "speakers", epoch, int(self._speakers.max()) + 2)
            parts = [order[self._speakers[order] == speaker - 1] for speaker in turn]
        pool = _POOL * self.batch
        pools = [part[i : i + pool] for part in parts for i in range(0, len(part), pool)]
        return np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in pools])

    def _distinct(
        self, by_length: NDArray[np.int64], order: NDArray[np.int64], count: int, groups: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Each recording goes to the first batch that has room and none of its group."""
        batches: list[list[int]] = [[] for _ in range(count)]
        held: list[set[int]] = [set() for _ in range(count)]
        first = 0
        for i in by_length.tolist():
            while first < count and len(batches[first]) == self.batch:
                first += 1
            for b in range(first, count):
                if len(batches[b]) < self.batch and groups[i] not in held[b]:
                    batches[b].append(i)
                    held[b].add(int(groups[i]))
                    break
        for rows, present in zip(batches, held, strict=True):
            for i in order.tolist():
                if len(rows) == self.batch:
                    break
                if groups[i] not in present:
                    rows.append(i)
                    present.add(int(groups[i]))
        return np.array(batches, dtype=np.int64)


AudioBatch = Batch[Waves, WaveDraw]


class AudioLoader:
    """Makes the batches of recordings, each a pure function of (source, views, order, seed, step, row).

    Args:
        source: the recordings, at the encoder's sample rate.
        views, order, seed: as for `Loader`.
        rank, world: this process's rows are rank * n .. (rank + 1) * n - 1 with n = batch / world.
        workers: threads that decode; libsndfile and soxr leave Python's lock alone.
        pin_memory: put recordings into page-locked memory.

    Raises:
        UserError: the batch cannot be divided among the ranks.
    """

    def __init__(
        self,
        source: AudioSource,
        views: WaveViews,
        order: LengthOrder,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        if order.batch % world:
            raise UserError(
                f"--batch {order.batch} cannot be divided among {counted(world, 'process')}: give a multiple of it"
            )
        self.source, self.views, self.order, self.seed = source, views, order, seed
        share = order.batch // world
        self.rows = np.arange(rank * share, (rank + 1) * share)
        self._threads = max(
            1, min(16, usable_cores() // min(world, local_world_size())) if workers is None else workers
        )
        self._pin, self._substitution = pin_memory, Substitution(source)

    @property
    def watched(self) -> bool:
        """False: a thread that hangs cannot be ended."""
        return False

    def iterate(self, start: int, stop: int) -> Iterator[AudioBatch]:
        """The batches of the steps start <= step < stop, each made while the one before is in use.

        Raises:
            UserError: too many recordings that cannot be read.
        """
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(self._threads) as readers:
            coming = ahead.submit(self._make, start, readers) if start < stop else None
            for step in range(start, stop):
                assert coming is not None
                batch = coming.result()
                coming = ahead.submit(self._make, step + 1, readers) if step + 1 < stop else None
                yield batch

    def name(self, index: int) -> str:
        """The file of one example."""
        return name_of(self.source, index)

    def close(self) -> None:
        """Nothing stays open between iterations."""

    def __enter__(self) -> AudioLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make(self, step: int, readers: ThreadPoolExecutor) -> AudioBatch:
        key = Key(self.seed, step)
        places = uniforms(key, "place", self.rows, 1)[:, 0].tolist()
        while True:
            index, skipped = self._substitution.resolve(self.order.indices(step)[self.rows])
            result = list(readers.map(self._read, index.tolist(), places))
            bad = {i: wave for i, wave in zip(index.tolist(), result, strict=True) if isinstance(wave, BadImage)}
            if not bad:
                break
            self._substitution.bad |= bad
        for path, reason in skipped:
            self.source.skipped.add(path, reason)
        waves = _padded([wave for wave in result if isinstance(wave, np.ndarray)])
        draws = self.views.draw(key, self.rows, waves.lengths.numpy())
        labels = None if self.source.labels is None else torch.from_numpy(self.source.labels[index])
        return Batch(
            step, torch.from_numpy(self.rows), torch.from_numpy(index), waves.pin_memory() if self._pin else waves,
            labels, draws, skipped,
        )  # fmt: skip

    def _read(self, index: int, place: float) -> NDArray[np.float32] | BadImage:
        try:
            return self.source.read(index, place)
        except BadImage as error:
            return error


def _padded(waves: Sequence[NDArray[np.float32]]) -> Waves:
    """`Waves.of`, by numpy: torch would start a second set of threads, which spin while they wait beside the others.

    (Measured on two cores, the speech demo: 254 ms a step with torch here, 201 ms without.)
    """
    lengths = np.array([len(wave) for wave in waves], dtype=np.int64)
    samples = np.zeros((len(waves), lengths.max(initial=0)), dtype=np.float32)
    for row, wave in zip(samples, waves, strict=True):
        row[: len(wave)] = wave
    return Waves(torch.from_numpy(samples), torch.from_numpy(lengths))


def text_groups(values: Sequence[str | None]) -> NDArray[np.int64]:
    """[n] a number for each different text or label; -1 for None."""
    number = {value: i for i, value in enumerate(sorted({v for v in values if v is not None}))}
    return np.array([-1 if value is None else number[value] for value in values], dtype=np.int64)
