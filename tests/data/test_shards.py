"""Tar archives as a source: the same images, order and skips as the folder they were packed from."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from test_sources import make_tree

from twofold import cli
from twofold.commands.shard import shard
from twofold.data import BadImage, DataConfig, Loader, Order, ShardSource, open_source, splits_of
from twofold.data.sources.pack import items, write_shards
from twofold.data.sources.tars import PLACE
from twofold.errors import UserError
from twofold.views import ImageViews, ViewsConfig


def png(value: int = 0, size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def folder(tmp_path):
    names = [f"{kind}/{i}.png" for i in range(10) for kind in ("bird", "cat")]
    return make_tree(tmp_path / "photos", names, size=(20, 16))


def test_packed_and_read_again(folder, tmp_path):
    told = shard(folder, tmp_path / "a", shard_mb=0.012)
    files = open_source(folder)
    packed = open_source(tmp_path / "a")
    assert isinstance(packed, ShardSource)
    assert len(list((tmp_path / "a").glob("*.tar"))) > 2
    assert "archives" in told.text()
    assert packed.labels.tolist() == files.labels.tolist()
    assert packed.classes == files.classes == ["bird", "cat"]
    for i in range(len(files)):
        np.testing.assert_array_equal(packed.read(i), files.read(i))
        assert packed.locate(i)[1] == Path(files.path(i)).read_bytes()
    facts = packed.facts()
    assert (facts.count, facts.median_height, facts.equal_sized, facts.classes) == (20, 16, True, 2)
    # the same bytes again, and by pattern the same source
    shard(folder, tmp_path / "b", shard_mb=0.012)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    last = len(list((tmp_path / "a").glob("*.tar"))) - 1
    for pattern in ("a/*.tar", f"a/{{000000..{last:06d}}}.tar"):
        walked = open_source(f"shards:{tmp_path}/{pattern}")
        assert walked.fingerprint() == packed.fingerprint()
        assert walked.classes == packed.classes
    assert pickle.loads(pickle.dumps(packed)).read(3).tolist() == packed.read(3).tolist()


def test_training_sees_the_same_batches(folder, tmp_path):
    shard(folder, tmp_path / "a", shard_mb=0.012)
    views, batches = ImageViews(ViewsConfig(size=8)), []
    for data in (folder, tmp_path / "a"):
        source = open_source(data)
        for rank, world, workers, start in ((0, 1, 0, 0), (0, 2, 2, 3), (1, 2, 1, 3)):
            with Loader(source, views, Order(20, 8, 1), 1, rank, world, workers, DataConfig(cache="off")) as loader:
                batches.append([(b.index, b.examples, b.labels) for b in loader.iterate(start, 6)])
    for files, shards in zip(batches[:3], batches[3:], strict=True):
        for one, other in zip(files, shards, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    # a run that starts at step 3, on two ranks, goes on where the one from step 0 is
    for step in range(3):
        joined = torch.cat([batches[4][step][0], batches[5][step][0]])
        assert torch.equal(joined, batches[3][step + 3][0])


def test_webdataset_reads_what_we_write_and_we_what_it_writes(folder, tmp_path):
    shard(folder, tmp_path / "a")
    samples = list(webdataset.WebDataset(str(tmp_path / "a" / "000000.tar"), shardshuffle=False).decode("rgb8"))
    source = open_source(tmp_path / "a")
    assert [sample["cls"] for sample in samples] == source.labels.tolist()
    for i, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["png"], source.read(i))
    (tmp_path / "theirs").mkdir()
    with webdataset.TarWriter(str(tmp_path / "theirs" / "x.tar")) as sink:
        for i in range(6):
            sink.write(
                {"__key__": f"sub/x{i}", "png": np.full((5, 4, 3), i / 10, np.float32), "json": {"label": i % 2}}
            )
    theirs = open_source(tmp_path / "theirs")
    assert theirs.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert theirs.read(2).shape == (5, 4, 3)


def test_splits_become_subfolders(tmp_path):
    make_tree(
        tmp_path / "in", [f"{part}/{kind}/{i}.png" for part in ("train", "val") for kind in "ab" for i in range(3)]
    )
    shard(tmp_path / "in", tmp_path / "out")
    assert splits_of(tmp_path / "out").names == ("train", "val")
    assert splits_of(tmp_path / "out").evaluation == ("train", "val")
    assert len(open_source(tmp_path / "out", split="val")) == 6
    with pytest.raises(UserError, match=r"--data.split test: .*it has train, val"):
        open_source(tmp_path / "out", split="test")
    shard(tmp_path / "in", tmp_path / "one", **{"data.split": "val"})
    assert (tmp_path / "one" / "000000.tar").exists()


def test_arrays_are_packed_without_loss(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 7, 5, 3), dtype=np.uint8)
    shard((images, np.arange(6)), tmp_path / "out")
    source = open_source(tmp_path / "out")
    assert source.labels.tolist() == list(range(6))
    np.testing.assert_array_equal(source.read(4), images[4])


def test_bad_members_are_skipped_counted_and_listed(tmp_path):
    good = [(f"{i}.png", png(i)) for i in range(8)]
    write(tmp_path / "x.tar", [*good, ("bad.png", b"not an image"), ("empty.jpg", b""), ("about.txt", b"text")])
    source = open_source(tmp_path)
    assert len(source) == 8
    reasons = dict(source.skipped)
    assert reasons == {
        f"{tmp_path}/x.tar:bad.png": "not an image of a format that Pillow reads",
        f"{tmp_path}/x.tar:empty.jpg": "empty file",
    }
    with pytest.raises(UserError, match=r"--data\.max_skipped allows 0"):
        open_source(tmp_path, DataConfig(max_skipped=0))
    told = shard(tmp_path, tmp_path / "out", **{"data.max_skipped": 0.5})
    assert len(open_source(tmp_path / "out")) == 8
    assert "2 image(s) skipped" in told.text()


@pytest.mark.parametrize("cut", ["in a member", "in a header", "before the end"])
def test_a_truncated_archive_gives_what_is_whole(tmp_path, cut):
    for name in "abcde":
        write(tmp_path / f"{name}.tar", [(f"{name}{i}.png", png(i)) for i in range(4)])
    with tarfile.open(tmp_path / "c.tar") as archive:
        second, last = archive.getmembers()[1], archive.getmembers()[3]
    end = last.offset_data + -(-last.size // 512) * 512
    length = {"in a member": second.offset_data + 10, "in a header": second.offset + 100, "before the end": end}[cut]
    (tmp_path / "c.tar").write_bytes((tmp_path / "c.tar").read_bytes()[:length])
    source = open_source(tmp_path)
    left = 4 if cut == "before the end" else 1
    assert len(source) == 16 + left
    ((path, reason),) = source.skipped
    assert path == str(tmp_path / "c.tar")
    assert "not a whole tar archive" in reason
    assert f"; {left} image{'s' if left > 1 else ''} before that can be used" in reason
    with pytest.raises(UserError, match=r"1 of 5 archives.*\n.*c\.tar"):
        open_source(tmp_path, DataConfig(max_skipped=0))
    with pytest.raises(UserError, match="an index would hide"):
        shard(tmp_path, index=True)


def test_images_without_a_label_stay_and_those_with_a_strange_one_do_not(tmp_path):
    rows = [(f"{i}.png", png(i)) for i in range(10)] + [(f"{i}.cls", str(i % 2).encode()) for i in range(5)]
    write(
        tmp_path / "x.tar", [*rows, ("5.cls", b"1.5"), ("6.cls", b"-1"), ("7.cls", b""), ("8.json", b'{"label": null}')]
    )
    source = open_source(tmp_path)
    assert source.labels.tolist() == [0, 1, 0, 1, 0, -1, -1, -1, -1]
    assert source.read(6)[0, 0, 0] == 7
    assert dict(source.skipped) == {
        f"{tmp_path / 'x.tar'}:5.png": "its label is neither a whole number from 0 nor a name (a member .cls, or label "
        "in .json)"
    }
    with pytest.raises(UserError, match=r"--data.max_skipped allows 0.*\n.*5.png"):
        open_source(tmp_path, DataConfig(max_skipped=0.0))


def test_names_as_labels_are_numbered_over_all_archives(tmp_path):
    write(tmp_path / "a.tar", [("0.png", png(0)), ("0.cls", b"owl"), ("1.png", png(1))])
    write(
        tmp_path / "b.tar", [("2.png", png(2)), ("2.json", b'{"label": "cat"}'), ("3.png", png(3)), ("3.cls", b'"owl"')]
    )
    for _ in range(2):
        source = open_source(tmp_path)
        assert (source.labels.tolist(), source.classes) == ([1, -1, 0, 1], ["cat", "owl"])
        shard(tmp_path, index=True)
    gaps = tmp_path / "gaps"
    gaps.mkdir()
    write(
        gaps / "a.tar",
        [m for i in range(4) for m in ((f"{i}.png", png(i)), (f"{i}.cls", str(10**6 * (i % 2)).encode()))],
    )
    assert open_source(gaps).facts().classes == 2


def test_packing_keeps_what_has_no_label(tmp_path):
    make_tree(tmp_path / "photos", [f"{kind}/{i}.png" for i in range(4) for kind in ("bird", "cat")], size=(20, 16))
    make_tree(tmp_path / "photos", [f"{i}.png" for i in range(3)], size=(20, 16))
    files = open_source(tmp_path / "photos")
    assert (files.labels == -1).sum() == 3
    shard(tmp_path / "photos", tmp_path / "packed")
    packed = open_source(tmp_path / "packed")
    assert (packed.labels.tolist(), packed.classes) == (files.labels.tolist(), ["bird", "cat"])
    assert not packed.skipped
    for i in range(len(files)):
        np.testing.assert_array_equal(packed.read(i), files.read(i))


def test_an_index_of_other_archives_is_refused(tmp_path):
    write(tmp_path / "x.tar", [(f"{i}.png", png(i)) for i in range(4)])
    assert cli.main(["shard", str(tmp_path), "--index"]) == 0
    assert len(open_source(tmp_path)) == 4
    write(tmp_path / "x.tar", [(f"{i}.png", png(i)) for i in range(40)])
    with pytest.raises(UserError, match=r"index.json is not of these archives \(x.tar differs\).*--index true"):
        open_source(tmp_path)
    assert cli.main(["shard", str(tmp_path), "--index"]) == 0
    assert len(open_source(tmp_path)) == 40
    document = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(document | {"images": 3}))
    with pytest.raises(UserError, match=r"damaged \(the digest in it differs"):
        open_source(tmp_path)
    del document["sha256"]  # as indices had none
    (tmp_path / "index.json").write_text(json.dumps(document | {"images": 3}))
    with pytest.raises(UserError, match=r"damaged \(index.npy does not belong"):
        open_source(tmp_path)


def test_what_cannot_be_read_by_position(tmp_path):
    for what, why in (
        (f"shards:{tmp_path}/*.tar", "no file matches"),
        ("shards:https://example.org/{000..009}.tar", "copy or mount"),
        (f"shards:{tmp_path}/{{000..001}}.tar", "2 of 2 are not there"),
    ):
        with pytest.raises(UserError, match=why):
            open_source(what)
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="unpack compressed"):
        open_source(f"shards:{tmp_path}/*.tar*")
    write(tmp_path / "x.tar", [("readme.txt", b"nothing here")])
    with pytest.raises(UserError, match="no images in 1 tar"):
        open_source(f"shards:{tmp_path}/x.tar")


def test_the_command_refuses_what_it_would_overwrite(folder, tmp_path, capsys):
    assert cli.main(["shard", str(folder), "--out", str(tmp_path / "a")]) == 0
    assert cli.main(["shard", str(folder), "--out", str(tmp_path / "a")]) == 2
    assert "is no empty folder" in capsys.readouterr().err
    assert cli.main(["shard", str(folder)]) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_archives_that_vanish_while_training(tmp_path):
    write(tmp_path / "x.tar", [(f"{i}.png", png(i)) for i in range(4)])
    source = open_source(tmp_path)
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:600])
    with pytest.raises(BadImage, match="cut short here"):
        source.read(3)


def test_a_flipped_bit_in_a_packed_image_is_noticed(tmp_path):
    """A JPEG with another bit still decodes, to other pixels: the checksum of each member tells."""
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(make(tmp_path / "a") / f"{i}.jpg")
    write_shards(items(open_source(tmp_path / "a")), tmp_path / "out", 10**6, None)
    archive = tmp_path / "out" / "000000.tar"
    whole, source = archive.read_bytes(), open_source(tmp_path / "out")
    fingerprint, pixels, noticed = source.fingerprint(), source.read(1), 0
    records = np.load(tmp_path / "out" / "index.npy")
    for bit in rng.integers(0, 8 * int(records["size"][1]), 40):
        damaged = bytearray(whole)
        damaged[int(records["offset"][1]) + bit // 8] ^= 1 << (bit % 8)
        archive.write_bytes(damaged)
        (skipped,) = open_source(tmp_path / "out", DataConfig(max_skipped=0.5)).skipped
        assert "000000001.jpg" in skipped[0]
        noticed += "the checksum differs" in skipped[1]
    assert noticed == 40
    archive.write_bytes(whole)
    # an index of the first format, without checksums, is read as before and has the same fingerprint
    old = records[list(PLACE.names)].astype(PLACE)
    np.save(tmp_path / "out" / "index.npy", old)
    document = json.loads((tmp_path / "out" / "index.json").read_text())
    del document["sha256"]  # which that format did not have either
    (tmp_path / "out" / "index.json").write_text(json.dumps(document | {"format": "twofold-shards-1"}))
    assert open_source(tmp_path / "out").fingerprint() == fingerprint
    np.testing.assert_array_equal(open_source(tmp_path / "out").read(1), pixels)


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder
