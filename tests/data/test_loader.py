"""Batches are what their address says, however many processes make them and whatever is cached or broken."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from twofold.data import Batch, DataConfig, Loader, Order, open_source
from twofold.data.batches import cache as cache_module
from twofold.data.batches.workers import SUBSTITUTES, Decoder
from twofold.data.sources import encoded as encoded_module
from twofold.errors import UserError
from twofold.randomness import Key
from twofold.views import ImageViews, ViewsConfig, crop_resize_image

SEED, SIZE = 7, 16
VIEWS = ImageViews(ViewsConfig(size=SIZE))
OFF = DataConfig(cache="off")
rng = np.random.default_rng(0)


def photos(folder: Path, count: int = 30, equal: tuple[int, int] | None = None, extension: str = "png") -> Path:
    """Smooth colour images in three classes; of many sizes, or all of one (height, width)."""
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        height, width = equal or (int(rng.integers(20, 80)), int(rng.integers(20, 80)))
        path = folder / "abc"[i % 3] / f"{i:03}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    return photos(tmp_path_factory.mktemp("mixed"))


def batches(what, config: DataConfig = OFF, *, batch=12, start=0, stop=4, views=VIEWS, **options) -> list[Batch]:
    source = open_source(what, config)
    order = Order(len(source), batch, SEED, config.last_batch)
    with Loader(source, views, order, SEED, config=config, **options) as loader:
        return list(loader.iterate(start, stop))


def assert_equal(got: Batch, wanted: Batch) -> None:
    assert got.step == wanted.step
    for name in ("rows", "index", "examples", "labels"):
        one, other = getattr(got, name), getattr(wanted, name)
        assert (one is None and other is None) or torch.equal(one, other), name
    for one, other in zip(got.draws, wanted.draws, strict=True):
        for field in dataclasses.fields(one):
            assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name


def joined(parts: list[Batch]) -> Batch:
    """The batches of all ranks, in rank order, as one."""
    first = parts[0]
    draws = tuple(type(first.draws[v]).cat([part.draws[v] for part in parts]) for v in (0, 1))
    images = torch.cat([part.examples for part in parts], dim=1 if first.cropped else 0)
    index, rows = torch.cat([p.index for p in parts]), torch.cat([p.rows for p in parts])
    labels = None if first.labels is None else torch.cat([part.labels for part in parts])
    return Batch(first.step, rows, index, images, labels, draws, [])


def test_batches_of_files_follow_the_addresses(mixed):
    """An oracle that looks at one row at a time."""
    source = open_source(mixed)
    order = Order(len(source), 12, SEED)
    for batch in batches(mixed, workers=0):
        assert batch.cropped
        assert batch.rows.tolist() == list(range(12))
        assert batch.index.tolist() == order.indices(batch.step).tolist()
        assert batch.labels.tolist() == source.labels[batch.index].tolist()
        for row, index in enumerate(batch.index.tolist()):
            image = source.read(index)
            draws = VIEWS.draw(Key(SEED, batch.step), [row], *image.shape[:2])
            for view in (0, 1):
                assert torch.equal(batch.draws[view].box[row], draws[view].box[0])
                crop = crop_resize_image(image, draws[view].box[0].tolist(), SIZE, "antialias")
                assert torch.equal(batch.examples[view, row], crop)


def test_batches_of_arrays_follow_the_addresses():
    images, labels = rng.integers(0, 256, (20, 24, 28, 3), dtype=np.uint8), np.arange(20)
    order = Order(20, 8, SEED)
    for batch in batches((images, labels), batch=8, workers=3):
        index = order.indices(batch.step)
        np.testing.assert_array_equal(batch.examples.numpy(), images[index].transpose(0, 3, 1, 2))
        assert batch.labels.tolist() == index.tolist()
        wanted = VIEWS.draw(Key(SEED, batch.step), np.arange(8), 24, 28)
        assert torch.equal(batch.draws[1].box, wanted[1].box)
        first, second = VIEWS.apply(batch.examples, batch.draws)
        assert first.shape == second.shape == (8, 3, SIZE, SIZE)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers(mixed, workers):
    for got, wanted in zip(batches(mixed, workers=workers), batches(mixed, workers=0), strict=True):
        assert_equal(got, wanted)


@pytest.mark.parametrize("kind", ["files", "equal files", "array"])
@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks(tmp_path, kind, world):
    if kind == "array":
        what = (rng.integers(0, 256, (20, 24, 28), dtype=np.uint8), np.arange(20))
    else:
        what = photos(tmp_path, 20, equal=(24, 28) if kind == "equal files" else None)
    whole = batches(what, workers=0)
    parts = [batches(what, rank=rank, world=world, workers=rank % 2) for rank in range(world)]
    for step in range(4):
        assert_equal(joined([part[step] for part in parts]), whole[step])


def test_batch_that_ranks_cannot_share(mixed):
    with pytest.raises(UserError, match="--batch 10 cannot be divided among 3 processes"):
        batches(mixed, batch=10, world=3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rule", ["straddle", "drop"])
def test_starting_at_any_step(mixed, workers, rule):
    config = DataConfig(cache="off", last_batch=rule)
    whole = batches(mixed, config, workers=workers, stop=6)
    for start in (1, 5):
        for got, wanted in zip(batches(mixed, config, start=start, stop=6, workers=0), whole[start:], strict=True):
            assert_equal(got, wanted)
    assert batches(mixed, config, start=3, stop=3, workers=workers) == []


def test_iterations_may_be_cut_short_and_started_again(mixed):
    """Workers stay; what they had made ahead is thrown away, also when the ring of pixels goes round several times."""
    source = open_source(mixed)
    wanted = batches(mixed, workers=0, stop=40)
    with Loader(source, VIEWS, Order(len(source), 12, SEED), SEED, config=OFF, workers=2) as loader:
        for start in (0, 7, 2):
            for _, got in zip(range(3), loader.iterate(start, 40), strict=False):
                assert_equal(got, wanted[got.step])
        kept = list(loader.iterate(0, 40))
        for got in kept:
            assert_equal(got, wanted[got.step])


@pytest.mark.parametrize("batch", [1, 2, 29, 30])
def test_small_and_whole_batches(mixed, batch):
    for workers in (0, 2):
        for got, wanted in zip(
            batches(mixed, batch=batch, workers=workers), batches(mixed, batch=batch, workers=0), strict=True
        ):
            assert got.examples.shape == (2, batch, 3, SIZE, SIZE)
            assert_equal(got, wanted)


def test_chunks_of_a_large_batch_join(tmp_path):
    folder = photos(tmp_path, 150)
    for workers in (0, 1):
        (batch,) = batches(folder, batch=150, stop=1, workers=workers)
        assert sorted(batch.index.tolist()) == list(range(150))
        assert torch.equal(batch.rows, torch.arange(150))


@pytest.mark.parametrize("equal", [None, (24, 28), (60, 64)])
def test_cache_changes_nothing(tmp_path, equal):
    folder = photos(tmp_path, 20, equal)
    off = batches(folder, workers=2)
    assert off[0].cropped == (equal != (24, 28)), "whole where an image is at most four times a crop"
    for config in (DataConfig(cache="auto"), DataConfig(cache="ram")):
        for workers in (0, 2):
            for got, wanted in zip(batches(folder, config, workers=workers), off, strict=True):
                assert_equal(got, wanted)


def test_cache_decodes_each_file_once(mixed, monkeypatch):
    source = open_source(mixed)
    read: list[int] = []
    decode = source.read
    monkeypatch.setattr(source, "read", lambda index: read.append(index) or decode(index))
    loader = Loader(source, VIEWS, Order(len(source), 12, SEED), SEED, config=DataConfig(), workers=0)
    for _ in loader.iterate(0, 10):
        pass
    assert sorted(read) == list(range(len(source)))


def test_cache_keeps_to_its_bounds(mixed, monkeypatch):
    source = open_source(mixed)
    needed = int(source.sizes().prod(1).sum()) * 3
    kept = lambda **options: type(cache_module.with_cache(source, DataConfig(**options))).__name__  # noqa: E731
    assert kept() == kept(cache="ram") == "CachedSource"
    assert kept(cache_gb=needed / 2**30) == "CachedSource"
    assert kept(cache_gb=(needed - 1) / 2**30) == "FileSource"
    monkeypatch.setattr(cache_module, "available_memory", lambda: 2 * needed - 1)
    assert kept() == "FileSource"
    assert kept(cache="ram") == "CachedSource"
    monkeypatch.setattr(cache_module, "available_memory", lambda: needed - 1)
    with pytest.raises(UserError, match=r"--data.cache ram: .* GiB are free; use --data.cache off"):
        kept(cache="ram")
    assert cache_module.available_memory.__name__ == "<lambda>"
    monkeypatch.undo()
    assert 2**20 < cache_module.available_memory() < 2**50


def test_cache_of_a_folder_too_large_to_scan(mixed, monkeypatch):
    monkeypatch.setattr(encoded_module, "CHECKED", 10)
    for config in (DataConfig(), DataConfig(cache="ram")):
        for got, wanted in zip(batches(mixed, config, workers=0), batches(mixed, workers=0), strict=True):
            assert_equal(got, wanted)


def truncate(folder: Path, *numbers: int) -> None:
    for path in folder.rglob("*.*"):
        if int(path.stem) in numbers:
            path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize("equal", [None, (24, 28), (60, 64)])
def test_broken_files_are_substituted_and_reported(tmp_path, equal):
    folder = photos(tmp_path, 30, equal, "jpg")
    clean = open_source(folder)
    numbers = [int(Path(clean.path(i)).stem) for i in range(30)]
    truncate(folder, numbers[4], numbers[5], numbers[29])
    stands_in = {4: 6, 5: 6, 29: 0}
    order = Order(30, 12, SEED)
    plain = batches(folder, workers=0, stop=5)
    for batch in plain:
        wanted = [stands_in.get(i, i) for i in order.indices(batch.step).tolist()]
        assert batch.index.tolist() == wanted
        assert batch.labels.tolist() == clean.labels[wanted].tolist()
        met = {clean.path(i) for i in order.indices(batch.step).tolist() if i in stands_in}
        assert met <= {path for path, _ in batch.skipped} <= {clean.path(i) for i in stands_in}
    for config, workers in ((OFF, 2), (DataConfig(cache="ram"), 0), (DataConfig(cache="ram"), 2)):
        for got, wanted in zip(batches(folder, config, workers=workers, stop=5), plain, strict=True):
            assert_equal(got, wanted)
            assert {path for path, _ in got.skipped} == {path for path, _ in wanted.skipped}


@pytest.mark.parametrize("workers", [0, 2])
def test_failures_in_training_reach_the_source_and_its_limit(tmp_path, workers):
    folder = photos(tmp_path, 30, extension="jpg")
    truncate(folder, 1, 2, 3)
    source = open_source(folder, DataConfig(max_skipped=0.1))
    assert len(source.skipped) == 0
    with Loader(source, VIEWS, Order(30, 30, SEED), SEED, config=OFF, workers=workers) as loader:
        (batch,) = loader.iterate(0, 1)
    assert {Path(path).stem for path, _ in source.skipped} == {"001", "002", "003"}
    assert len(batch.skipped) >= 3
    assert all("truncated" in reason for _, reason in source.skipped)
    strict = DataConfig(max_skipped=0.05, cache="off")
    with pytest.raises(UserError, match=r"(?s)3 of 30 images cannot be read.*truncated"):
        batches(folder, strict, batch=30, workers=workers)


def test_data_that_vanish(tmp_path):
    folder = photos(tmp_path, 40)
    source = open_source(folder, DataConfig(max_skipped=1.0))
    for path in folder.rglob("*.png"):
        path.unlink()
    for workers in (0, 1):
        with (
            Loader(source, VIEWS, Order(40, 8, SEED), SEED, config=OFF, workers=workers) as loader,
            pytest.raises(UserError, match=f"{SUBSTITUTES + 1} images in a row cannot be read"),
        ):
            next(loader.iterate(0, 1))


class Own(Dataset):
    def __init__(self) -> None:
        self.images = [rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8) for i in range(10)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        if index == 3:
            raise ValueError("no such luck")
        if index == 99:
            return "text", 0
        return Image.fromarray(self.images[index]), index


def test_pytorch_data_sets_load_too():
    own = Own()
    for workers in (0, 2):
        for config in (OFF, DataConfig(cache="ram")):
            for batch in batches(own, config, batch=5, workers=workers):
                assert batch.cropped
                assert 3 not in batch.index
                assert all(reason == "ValueError: no such luck" for _, reason in batch.skipped)


def test_user_errors_cross_processes_unharmed():
    own = Own()
    source = open_source(own)
    own.images = [None] * 10
    own.__class__.__getitem__, kept = (lambda self, index: ("text", 0)), own.__class__.__getitem__  # noqa: ARG005
    try:
        for workers in (0, 1):
            with (
                Loader(source, VIEWS, Order(10, 5, SEED), SEED, config=OFF, workers=workers) as loader,
                pytest.raises(UserError, match=r"^Own: items must be PIL images or tensors"),
            ):
                next(loader.iterate(0, 1))
    finally:
        own.__class__.__getitem__ = kept


def test_loading_leaves_the_global_generator_alone(mixed):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    batches(mixed, workers=1, stop=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_draft_keeps_close_to_exact(tmp_path, extension):
    """Smooth pictures of 160 x 200 pixels and up at 16: most crops are made from a half or a quarter of the size."""
    folder = tmp_path
    for i in range(24):
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        small.resize((200 + 9 * i, 160 + 7 * i), Image.Resampling.BICUBIC).save(folder / f"{i}.{extension}", quality=95)
    exact = batches(folder, batch=24, stop=2, workers=0)
    draft = batches(folder, DataConfig(jpeg_draft=True), batch=24, stop=2, workers=0)
    for got, wanted in zip(
        batches(folder, DataConfig(jpeg_draft=True), batch=24, stop=2, workers=2), draft, strict=True
    ):
        assert_equal(got, wanted)
    for got, wanted in zip(draft, exact, strict=True):
        assert torch.equal(got.draws[0].box, wanted.draws[0].box), "boxes stay in pixels of the file"
        difference = (got.examples.int() - wanted.examples.int()).abs().float()
        if extension == "png":
            assert difference.max() == 0
        else:
            assert 0 < difference.mean() < 0.6, "of 255"


def test_draft_where_it_cannot_be(mixed):
    draft = DataConfig(jpeg_draft=True)
    with pytest.raises(UserError, match=r"--data.jpeg_draft smooths before resampling, which --views.resample tf2"):
        batches(mixed, draft, views=ImageViews(ViewsConfig(size=SIZE, resample="tf2")))
    with pytest.raises(UserError, match="is for image files"):
        batches(np.zeros((20, 8, 8), np.uint8), draft)


def test_a_truncated_draft_is_substituted(tmp_path):
    folder = photos(tmp_path, 30, extension="jpg")
    truncate(folder, 0, 7)
    exact = batches(folder, batch=30, stop=2, workers=0)
    draft = batches(folder, DataConfig(jpeg_draft=True), batch=30, stop=2, workers=0)
    for got, wanted in zip(draft, exact, strict=True):
        assert torch.equal(got.index, wanted.index)
        assert torch.equal(got.draws[1].box, wanted.draws[1].box)


def loading(source, workers=2, **options):
    config = DataConfig(cache="off", **options)
    return Loader(source, VIEWS, Order(len(source), 12, SEED), SEED, config=config, workers=workers)


def processes(loader):
    return loader._pipe._loader._iterator._workers


def test_killed_workers_are_started_again_and_the_batches_are_the_same(mixed, capsys, monkeypatch):
    monkeypatch.setattr("twofold.data.batches.pipe.LOOK", 0.5)
    source = open_source(mixed)
    with loading(source, workers=0) as loader:
        wanted = list(loader.iterate(3, 40))
    with loading(source) as loader:
        for got, want in zip(loader.iterate(3, 40), wanted, strict=True):
            assert got.step == want.step
            assert torch.equal(got.index, want.index)
            assert torch.equal(got.examples, want.examples)
            assert torch.equal(got.draws[1].box, want.draws[1].box)
            if got.step in (5, 6, 21):
                victims = processes(loader)
                os.kill(victims[got.step % 2].pid, signal.SIGKILL)
    assert "a decoding process was killed (process " in capsys.readouterr().out


def test_workers_that_die_again_and_again_are_an_error_with_a_remedy(mixed, monkeypatch):
    monkeypatch.setattr(Decoder, "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr("twofold.data.batches.pipe.LOOK", 0.5)
    told = pytest.raises(UserError, match=r"end again and again .*SIGKILL.*--data.workers")
    with loading(open_source(mixed), workers=1) as loader, told:
        next(loader.iterate(0, 1000))


def test_an_image_that_hangs_its_decoder_counts_as_unreadable(mixed, monkeypatch):
    """It is told, and the next image by index stands in for it, as for any other that cannot be read."""
    source = open_source(mixed)
    read, slow = type(source).read, int(Order(len(source), 12, SEED).indices(1)[5])
    monkeypatch.setattr(
        type(source), "read", lambda self, i, *more: time.sleep(1000) if i == slow else read(self, i, *more)
    )
    monkeypatch.setattr("twofold.data.batches.pipe.LOOK", 0.5)
    with loading(source, patience=5.0) as loader:  # (longer than any other image takes on a busy machine)
        first, second = loader.iterate(0, 2)
    for batch in (first, second):
        asked = torch.from_numpy(Order(len(source), 12, SEED).indices(batch.step))
        wanted = torch.where(asked == slow, (asked + 1) % len(source), asked)
        assert torch.equal(batch.index, wanted)
    assert [reason for path, reason in source.skipped if path == source.path(slow)] == [
        "reading it took more than 5 s (--data.patience)"
    ]


CHILD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it runs with & deaf to Ctrl-C
from twofold.data import *
from twofold.views import ImageViews, ViewsConfig
source = open_source(sys.argv[1])
views, order = ImageViews(ViewsConfig(size=16)), Order(len(source), 12, 0)
loader = Loader(source, views, order, 0, config=DataConfig(cache="off"), workers=2)
try:
    for batch in loader.iterate(0, 10**6):
        if batch.step == 3:
            print(*(w.pid for w in loader._pipe._loader._iterator._workers), flush=True)
        time.sleep(0.01)
except KeyboardInterrupt:
    print("stopped at", batch.step, flush=True)
"""


@pytest.mark.filterwarnings("error::UserWarning")
def test_more_processes_than_cores_are_no_matter_for_pytorch_to_warn_of(mixed, monkeypatch):
    """So many were asked for; where none are, there are no more than cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert [batch.step for batch in batches(mixed, stop=1, workers=2)] == [0]
    source = open_source(mixed)
    assert Loader(source, VIEWS, Order(len(source), 12, SEED), SEED).workers == 1


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_no_process_outlives_its_run(mixed, how):
    """Ctrl-C goes to the whole group: workers must leave it to the main process. After SIGKILL they must notice."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(mixed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = [int(pid) for pid in child.stdout.readline().split()]
    assert len(pids) == 2
    if how == "interrupt":
        os.killpg(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=30)
        assert "stopped at" in out
        assert err == ""
        assert child.returncode == 0
    else:
        child.kill()
        child.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_processes_can_be_spawned_as_on_macos(mixed, monkeypatch):
    monkeypatch.setattr(cache_module, "START_METHOD", "spawn")
    monkeypatch.setattr("twofold.data.batches.pipe.START_METHOD", "spawn")
    got = batches(mixed, DataConfig(cache="ram"), workers=1, stop=2)
    for one, other in zip(got, batches(mixed, workers=0, stop=2), strict=True):
        assert_equal(one, other)


def test_memory_stays_flat(mixed):
    """A hundred epochs grow neither this process nor a worker by more than a few pages."""

    def resident(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    source = open_source(mixed)
    with Loader(source, VIEWS, Order(len(source), 30, SEED), SEED, config=OFF, workers=1) as loader:
        sizes = {}
        for batch in loader.iterate(0, 120):
            if batch.step in (20, 119):
                (worker,) = loader._pipe._loader._iterator._workers
                sizes[batch.step] = (resident(os.getpid()), resident(worker.pid))
    assert all(after - before < 2**23 for before, after in zip(sizes[20], sizes[119], strict=True)), sizes
