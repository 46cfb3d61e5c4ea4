"""Orders and loaders by their formulas: the seed, epoch, step and rank of each draw, and what a run tells them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asked import Asked
from sound_files import RATE, speech_folder, tone, write
from twofold.data import (
    ArraySource,
    AudioLoader,
    AudioSource,
    BadImage,
    DataConfig,
    LengthOrder,
    Loader,
    Order,
    open_source,
)
from twofold.data.batches import audio as audio_batches
from twofold.data.batches import cache as caches
from twofold.data.batches import loader as image_batches
from twofold.data.batches import order as orders
from twofold.data.batches import pipe as pipes
from twofold.data.batches.balanced import BalancedDraws
from twofold.data.batches.workers import Decoder, Substitution
from twofold.errors import UserError
from twofold.randomness import Key, permutation, permuted, uniforms
from twofold.runs import inputs
from twofold.views import ImageViews, ViewsConfig, crop_resize_image
from twofold.views.audio.views import NOISE_SAMPLES, WavesConfig, WaveViews

SEED, N, BATCH = 7, 10, 4
LABELS = np.array([0, 1, 1, 2, 0, 1, 2, 2, 2, -1])


def test_an_order_of_images_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    straddle, drop = Order(N, BATCH, SEED), Order(N, BATCH, SEED, "drop")
    drawn = Order(N, BATCH, SEED, drawn=BalancedDraws(LABELS, SEED))
    for step in range(6):
        places = np.arange(step * BATCH, (step + 1) * BATCH)
        expected = [permutation(SEED, "order", p // N, N)[p % N] for p in places.tolist()]
        assert straddle.indices(step).tolist() == expected
        epoch, place = divmod(step, 2)
        expected = permutation(SEED, "order", epoch, N)[place * BATCH : (place + 1) * BATCH].tolist()
        assert drop.indices(step).tolist() == expected
        assert (drawn.indices(step) == BalancedDraws(LABELS, SEED).entries(step * BATCH, (step + 1) * BATCH)).all()
    monkeypatch.setattr(orders, "LONG", N - 1)
    assert (drop.indices(3) == permuted(SEED, "order", 1, N, np.arange(4, 8))).all()
    with pytest.raises(UserError, match=r"--epochs 1e\+16 of 2\.5 steps"):
        straddle.steps(1e16)


def test_a_balanced_order_is_its_formula() -> None:
    draws = BalancedDraws(LABELS, SEED).entries(0, 18)  # six rounds of three classes, of two, three and four examples
    for number in range(6):
        for slot, kind in enumerate(permutation(SEED, "order/classes", number, 3).tolist()):
            members = np.flatnonzero(kind == LABELS)
            lap, turn = divmod(number, len(members))
            expected = members[permutation(SEED, f"order/class {kind}", lap, len(members))[turn]]
            assert draws[3 * number + slot] == expected


def test_an_order_of_recordings_is_its_formula() -> None:
    """Of recordings of one length, where sorting by it changes nothing."""
    none, count = np.zeros(N, dtype=np.int64), N // BATCH
    speakers, drawn = np.arange(N) % 3 - 1, BalancedDraws(LABELS, SEED)
    plain, spoken = LengthOrder(none, BATCH, SEED), LengthOrder(none, BATCH, SEED, speakers=speakers)
    balanced = LengthOrder(none, BATCH, SEED, drawn=drawn)
    for epoch in range(3):
        order = permutation(SEED, "order", epoch, N)
        turn = permutation(SEED, "order of batches", epoch, count)
        by_speaker = [order[speakers[order] == s - 1] for s in permutation(SEED, "speakers", epoch, 3).tolist()]
        parts = order, np.concatenate(by_speaker), drawn.entries(epoch * N, (epoch + 1) * N)
        for kind, rows in zip((plain, spoken, balanced), parts, strict=True):
            expected = rows[: count * BATCH].reshape(count, BATCH)[turn]
            assert np.array_equal([kind.indices(epoch * count + place) for place in range(count)], expected)
    with pytest.raises(UserError, match=r"--epochs 1e\+16 of 2 steps"):
        plain.steps(1e16)


def test_recordings_of_one_group_are_kept_apart_from_the_shortest_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = list[Any](), LengthOrder._distinct
    monkeypatch.setattr(LengthOrder, "_distinct", lambda self, *given: asked.append(given) or real(self, *given))
    lengths, groups = np.arange(N)[::-1].copy(), np.array([0, 0, 1, 1, 2, 2, 3, -1, -1, -1])
    order = LengthOrder(lengths, BATCH, SEED, groups)
    for step in range(4):
        alike = [group for group in groups[order.indices(step)].tolist() if group >= 0]
        assert len(alike) == len(set(alike))
    by_length, drawn, count, own = asked[1]  # of the second epoch
    whole = permutation(SEED, "order", 1, N)
    assert by_length.tolist() == sorted(whole[: 2 * BATCH].tolist(), key=lambda i: lengths[i])
    assert (drawn.tolist(), count, own.tolist()) == (whole.tolist(), 2, [0, 0, 1, 1, 2, 2, 3, 11, 12, 13])
    with pytest.raises(UserError, match="have 2 different values, fewer than --batch 4"):
        LengthOrder(lengths, BATCH, SEED, np.arange(N) % 2)


IMAGES = np.random.default_rng(0).integers(0, 256, (N, 12, 10, 3), dtype=np.uint8)
VIEWS = ImageViews(ViewsConfig(size=8))


def test_a_batch_of_images_in_memory_is_its_formula() -> None:
    source, order = ArraySource(IMAGES, np.maximum(LABELS, 0)), Order(N, BATCH, SEED)
    with Loader(source, VIEWS, order, SEED, 1, 2) as loader:
        (batch,) = loader.iterate(3, 4)
    index = order.indices(3)[2:]
    assert (batch.step, batch.rows.tolist(), batch.index.tolist()) == (3, [2, 3], index.tolist())
    assert torch.equal(batch.examples, source.images[torch.from_numpy(index)])
    for drawn, expected in zip(batch.draws, VIEWS.draw(Key(SEED, 3), np.array([2, 3]), 12, 10), strict=True):
        assert torch.equal(drawn.box, expected.box)


@pytest.mark.parametrize(("world", "expected"), [(1, 8), (2, 4), (4, 4)])
def test_workers_are_shared_by_the_processes_of_a_machine(
    world: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (image_batches, audio_batches):
        monkeypatch.setattr(module, "usable_cores", lambda: 8)
        monkeypatch.setattr(module, "local_world_size", lambda: 2)
    source, order = ArraySource(IMAGES), Order(N, BATCH, SEED)
    loader = Loader(source, VIEWS, order, SEED, 0, world)
    assert (loader.workers, loader._pin) == (expected, False)
    told = Loader(source, VIEWS, order, SEED, world - 1, world, config=DataConfig(workers=3), pin_memory=True)
    assert (told.workers, told._pin) == (3, True)
    assert told.rows.tolist() == [*range(BATCH - BATCH // world, BATCH)]
    assert Loader(source, VIEWS, order, SEED, workers=5, config=DataConfig(workers=3)).workers == 5
    views, lengths = SimpleNamespace(), LengthOrder(np.ones(N, dtype=np.int64), BATCH, SEED)
    sounds: Any = ArraySource(IMAGES)
    threads = AudioLoader(sounds, views, lengths, SEED, world - 1, world)  # type: ignore[arg-type]
    assert (threads._threads, threads._pin, threads.rows.tolist()) == (expected, False, told.rows.tolist())
    threads = AudioLoader(sounds, views, lengths, SEED, workers=3, pin_memory=True)  # type: ignore[arg-type]
    assert (threads._threads, threads._pin) == (3, True)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Files of different sizes, one of which cannot be read."""
    rng = np.random.default_rng(0)
    for i in range(N):
        pixels = rng.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    whole = (tmp_path / "4.png").read_bytes()
    (tmp_path / "4.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def test_crops_of_files_are_their_formula(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, data = Asked(monkeypatch), DataConfig(workers=0, cache="off", patience=7.0, max_skipped=0.5)
    asked.of(image_batches, "Pipe")
    source, order = open_source(photos, data), Order(N, N, SEED)
    views = ImageViews(ViewsConfig(size=8, resample="tf1"))
    with Loader(source, views, order, SEED, config=data) as loader:
        (batch,) = loader.iterate(3, 4)
    assert asked["Pipe"] == [(source, views, SEED, None, False, N, 0, 7.0)]
    index = [5 if i == 4 else i for i in order.indices(3).tolist()]
    assert (batch.step, batch.rows.tolist(), batch.index.tolist()) == (3, [*range(N)], index)
    heights, widths = (np.array(sides) for sides in zip(*(source.read(i).shape[:2] for i in index), strict=True))
    for view, draw in enumerate(views.draw(Key(SEED, 3), np.arange(N), heights, widths)):
        assert torch.equal(draw.box, batch.draws[view].box)
        for row, i in enumerate(index):
            crop = crop_resize_image(source.read(i), draw.box[row].tolist(), 8, "tf1")
            assert torch.equal(batch.examples[view, row], crop)
    ((path, reason),) = {*batch.skipped}
    assert path.endswith("4.png")
    assert reason
    assert [entry[0] for entry in source.skipped] == [path]


def test_a_decoder_is_what_its_processes_were_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, source = Asked(monkeypatch), ArraySource(IMAGES)
    asked.of(pipes, "Decoder")
    pipe = pipes.Pipe(source, VIEWS, SEED, (12, 10), False, 40, 3, 7.0)
    assert (pipe.chunk, pipe._slots, pipe._patience, pipe._workers) == (14, 7, 7.0, 3)
    assert asked["Decoder"] == [(source, VIEWS, SEED, (12, 10), False, 14, 7, 3)]
    decoder = pipe._decoder
    assert decoder._ring.shape == (7, 1, 14, 3, 12, 10)
    assert decoder._reading.shape == (3, 2)
    assert Decoder(source, VIEWS, SEED, None, False, 14, 7)._ring.shape == (7, 2, 14, 3, 8, 8)
    decoder.pass_over(1, "it hung")
    bad = decoder._substitution.bad
    assert (bad[1].path, bad[1].reason) == (decoder.name(1), "it hung")
    resolved, skipped = Substitution(source, bad).resolve(np.array([0, 1]))
    assert (resolved.tolist(), skipped) == ([0, 2], [(decoder.name(1), "it hung")])
    assert pipes.Pipe(source, VIEWS, SEED, None, False, 40, 0)._patience == 60.0


def test_images_are_kept_decoded_as_the_options_allow(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(photos, DataConfig(max_skipped=0.5))
    kept = {
        name: isinstance(caches.with_cache(source, DataConfig(**options)), caches.CachedSource)
        for name, options in OPTIONS_OF_CACHES.items()
    }
    assert kept == {"auto": True, "small": False, "ram": True, "off": False, "draft": False}
    monkeypatch.setattr(type(source), "sizes", lambda _: None)
    assert caches.with_cache(source, DataConfig()) is source  # measuring all files would take long
    measured = caches.with_cache(source, DataConfig(cache="ram"))
    assert isinstance(measured, caches.CachedSource)
    measured.fill()
    assert np.array_equal(measured.read(0), source.read(0))
    assert [Path(path).name for path, _ in source.skipped] == ["4.png"]


def test_small_files_of_one_size_are_given_whole(tmp_path: Path) -> None:
    for i, pixels in enumerate(IMAGES):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    data, order = DataConfig(workers=0, cache="off"), Order(N, BATCH, SEED)
    for side, shape in ((8, (BATCH, 3, 12, 10)), (5, (2, BATCH, 3, 5, 5))):  # 120 pixels, of at most 4 times side^2
        views = ImageViews(ViewsConfig(size=side))
        with Loader(open_source(tmp_path, data), views, order, SEED, config=data) as loader:
            (batch,) = loader.iterate(0, 1)
        assert batch.examples.shape == shape
    with pytest.raises(UserError, match=r"--data\.jpeg_draft is for image files"):
        Loader(ArraySource(IMAGES), VIEWS, order, SEED, config=DataConfig(jpeg_draft=True))


@pytest.mark.parametrize(
    ("rule", "expected"), [("bilinear", Image.Resampling.BILINEAR), ("antialias", Image.Resampling.BICUBIC)]
)
def test_drafts_are_resized_by_the_rule_that_was_asked_for(
    rule: Any, expected: Image.Resampling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, asked = np.random.default_rng(0), list[Any]()
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(tmp_path / f"{i}.jpg")
    real = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, rule, box=None: asked.append(rule) or real(self, size, rule, box=box)
    )
    data = DataConfig(workers=0, cache="off", jpeg_draft=True)
    views = ImageViews(ViewsConfig(size=8, resample=rule, crop_area=(0.9, 1.0)))
    with Loader(open_source(tmp_path, data), views, Order(2, 2, SEED), SEED, config=data) as loader:
        next(loader.iterate(0, 1))
    assert set(asked) == {expected}


OPTIONS_OF_CACHES: dict[str, dict[str, Any]] = {
    "auto": {}, "small": {"cache_gb": 1e-6}, "ram": {"cache": "ram", "cache_gb": 1e-6}, "off": {"cache": "off"},
    "draft": {"jpeg_draft": True},
}  # fmt: skip


def test_recordings_that_cannot_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = open_source(speech_folder(tmp_path / "clips", 2, 4), DataConfig(max_skipped=0.5))
    source, real = clips.at_rate(RATE), AudioSource.read

    def read(self: AudioSource, index: int, place: float = 0.0) -> Any:
        if index == 2:
            raise BadImage("two.wav", "cut short")
        return real(self, index, place)

    monkeypatch.setattr(AudioSource, "read", read)
    order = LengthOrder(source.lengths(), 8, SEED)
    with AudioLoader(source, WaveViews(WavesConfig(), RATE), order, SEED, workers=1) as loader:
        (batch,) = loader.iterate(0, 1)
    assert 2 not in batch.index
    assert batch.skipped == [("two.wav", "cut short")]
    assert list(source.skipped) == [("two.wav", "cut short")]


def test_a_batch_of_recordings_is_its_formula(tmp_path: Path) -> None:
    source = open_source(speech_folder(tmp_path / "clips", 2, 4), DataConfig()).at_rate(RATE)
    views, order = WaveViews(WavesConfig(), RATE), LengthOrder(source.lengths(), BATCH, SEED)
    read = source.read
    places = dict[int, float]()
    source.read = lambda index, place=0.0: places.update({index: place}) or read(index, place)
    with AudioLoader(source, views, order, SEED, 1, 2, workers=1) as loader:
        batches = list(loader.iterate(2, 4))
    assert [batch.step for batch in batches] == [2, 3]
    batch = batches[1]
    assert (batch.rows.tolist(), batch.index.tolist()) == ([2, 3], order.indices(3)[2:].tolist())
    expected = uniforms(Key(SEED, 3), "place", [2, 3], 1)[:, 0].tolist()
    assert [places[index] for index in batch.index.tolist()] == expected
    drawn = views.draw(Key(SEED, 3), [2, 3], batch.examples.lengths.numpy())
    assert torch.equal(batch.draws[1].later, drawn[1].later)


def options(**more: Any) -> Any:
    """Of a run, as `read_images` and `read_audio` ask for them."""
    waves = dataclasses.replace(WavesConfig(), **more.pop("waves", {}))
    base = {"batch": BATCH, "seed": SEED, "data": DataConfig(workers=3), "views": ViewsConfig(size=8), "waves": waves}
    return SimpleNamespace(**base | more)


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "rank", lambda: 1)
    monkeypatch.setattr(inputs, "world_size", lambda: 2)


@pytest.mark.usefixtures("second_of_two")
def test_images_are_read_as_a_run_was_told() -> None:
    source, drawn = ArraySource(IMAGES), BalancedDraws(LABELS, SEED)
    data = DataConfig(workers=3, last_batch="drop", cache="off")
    reading = inputs.read_images(options(data=data), source, True, drawn)
    loader: Any = reading.loader
    order: Any = reading.order
    assert (order.n, order.batch, order.seed, order.rule, order._drawn) == (N, BATCH, SEED, "drop", drawn)
    assert (loader.seed, loader.rows.tolist(), loader._pin, loader._config) == (SEED, [2, 3], True, data)
    assert (loader.order, loader.views, loader.source) == (order, reading.views, source)
    plain: Any = inputs.read_images(options(), source)
    assert (plain.order.rule, plain.order._drawn, plain.loader._pin) == ("straddle", None, False)


@pytest.mark.usefixtures("second_of_two")
def test_recordings_are_read_as_a_run_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    asked.of(inputs, "read_folder", "rate", "option", "most")
    source = open_source(speech_folder(tmp_path / "clips", 5, 2), DataConfig()).at_rate(RATE)
    for name, seconds in (("noises", 0.4), ("responses", 0.1)):
        write(tmp_path / name / "0.wav", tone(seconds=seconds))
    waves = {"noises": str(tmp_path / "noises"), "responses": str(tmp_path / "responses")}
    drawn = BalancedDraws(np.asarray(source.labels), SEED)
    audio = dataclasses.replace(DataConfig().audio, distinct="label")
    data = DataConfig(workers=3, audio=audio)
    reading = inputs.read_audio(options(waves=waves, data=data), source, 4, True, drawn)
    loader: Any = reading.loader
    order: Any = reading.order
    views: Any = reading.views
    assert (order.n, order.batch, order.seed, order._drawn, order._speakers) == (10, BATCH, SEED, drawn, None)
    assert (order._groups == source.labels).all()
    assert (loader.seed, loader.rows.tolist(), loader._threads, loader._pin) == (SEED, [2, 3], 3, True)
    assert (views.span, views.sample_rate, len(views.noises), len(views.responses)) == (4, RATE, 1, 1)
    assert asked["read_folder"] == [(RATE, "--waves.noises", NOISE_SAMPLES), (RATE, "--waves.responses", None)]
    for option in ("noises", "responses"):
        (tmp_path / "none").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"--waves.{option}: no recordings found"):
            inputs.read_audio(options(waves={option: str(tmp_path / "none")}), source)
    source.recordings = [dataclasses.replace(r, speaker=f"{i % 3}") for i, r in enumerate(source.recordings)]
    told = dataclasses.replace(DataConfig().audio, one_speaker=True)
    spoken: Any = inputs.read_audio(options(data=DataConfig(audio=told)), source).order
    assert spoken._speakers.tolist() == [i % 3 for i in range(10)]
    assert spoken._groups is None
