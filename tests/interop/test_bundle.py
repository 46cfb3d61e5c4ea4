"""Tensor bundles: what TensorFlow wrote, what a writer of our own wrote, and every kind of damage to them."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bundle_writer import entry, mask, message, number, slow_crc, table, write_bundle

from golden_data import SLICES, whole_set
from twofold.errors import UserError
from twofold.interop.bundle import Bundle

WRITTEN = SLICES / "checkpoints" / "tensorflow_written"


def check(bundle: Bundle, values: dict[str, np.ndarray]) -> None:
    for name, value in values.items():
        found = bundle.read(name)
        assert found.shape == value.shape, name
        assert found.dtype == value.dtype, name
        assert np.array_equal(found, value), name


@pytest.mark.parametrize(("name", "prefix"), [("one", "model.ckpt-2"), ("three", "all")])
def test_reads_what_tensorflow_wrote(name: str, prefix: str) -> None:
    """Exactly: nothing is computed. All types, several data files, empty tensors, scalars."""
    with np.load(WRITTEN / "values.npz") as file:
        values = {key.removeprefix(f"{name}/"): file[key] for key in file if key.startswith(f"{name}/")}
    bundle = Bundle(WRITTEN / name / prefix)
    check(bundle, values)
    assert len(values) > 6
    assert set(values) <= set(bundle.entries)


def test_reads_strings_that_tensorflow_wrote() -> None:
    assert Bundle(WRITTEN / "three" / "all").read_text("text") == b"\x00text\xff" * 40


def test_refuses_partitioned_variables() -> None:
    with pytest.raises(UserError, match=r"kernel.*partitioned"):
        Bundle(WRITTEN / "parts" / "model.ckpt").read("kernel")


@pytest.mark.skipif(whole_set() is None, reason="the whole golden set, which holds the 46 MB checkpoints, is not here")
def test_reads_the_golden_checkpoints() -> None:
    folder = whole_set()
    assert folder is not None
    bundle = Bundle(folder / "checkpoints" / "tf1_r18_1x_cifar_finetune" / "model.ckpt-1234")
    lines = (folder / "checkpoints" / "tf1_r18_1x_cifar_finetune" / "variables.txt").read_text().splitlines()
    listed = dict(line.split("\t") for line in lines if not line.startswith("#"))
    assert {name: str(list(e.shape)) for name, e in bundle.entries.items()} == listed
    assert bundle.read("global_step") == 1234
    assert all(np.isfinite(bundle.read(name)).all() for name in bundle.entries)


TENSORS: dict[str, np.ndarray | bytes] = {
    "text": b"some text" * 100,
    "scalar": np.array(3, np.int64),
    **{f"net/layer_{i}/kernel": np.random.default_rng(i).standard_normal((i, 3)).astype("f4") for i in range(100)},
}


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A bundle of several blocks and three data files."""
    return write_bundle(tmp_path / "net.ckpt", TENSORS, shards=3)


def test_many_blocks_and_files(prefix: Path) -> None:
    bundle = Bundle(prefix)
    assert list(bundle.entries) == sorted(TENSORS)
    assert bundle.read_text("text") == TENSORS["text"]
    check(bundle, {name: value for name, value in TENSORS.items() if isinstance(value, np.ndarray)})


def data_file(prefix: Path, shard: int = 1) -> Path:
    return Path(f"{prefix}.data-{shard:05d}-of-00003")


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def test_a_flipped_bit_in_the_data_is_found(prefix: Path) -> None:
    """Wherever it is; and only what is stored there cannot be read."""
    names = [name for name, value in TENSORS.items() if isinstance(value, np.ndarray)]
    data = data_file(prefix)
    for position in np.linspace(0, data.stat().st_size - 1, 20).astype(int):
        flip(data, position)
        bundle, failed = Bundle(prefix), []
        for name in names:
            try:
                bundle.read(name)
            except UserError as error:
                failed.append(str(error))
        entry = bundle.entries["text"]
        in_text = entry.shard == 1 and entry.offset <= position < entry.offset + entry.size
        assert len(failed) == (0 if in_text else 1)
        assert all("checksum" in message and data.name in message for message in failed)
        flip(data, position)


@pytest.mark.parametrize("position", [0, 1, 2, 5, 6, 400])
def test_a_flipped_bit_in_a_string_is_found(prefix: Path, position: int) -> None:
    entry = Bundle(prefix).entries["text"]
    flip(data_file(prefix, entry.shard), entry.offset + position)
    with pytest.raises(UserError, match=r"checksum of text"):
        Bundle(prefix).read_text("text")


def test_a_flipped_bit_in_the_index_is_found(prefix: Path) -> None:
    index = Path(f"{prefix}.index")
    size = index.stat().st_size
    for position in [*range(0, size - 48, 97), size - 1, size - 8]:
        flip(index, position)
        with pytest.raises(UserError, match="damaged"):
            Bundle(prefix)
        flip(index, position)
    Bundle(prefix)


@pytest.mark.parametrize("keep", [0, 1, 47, 48, 1000, -1, -48])
def test_a_short_index_is_found(prefix: Path, keep: int) -> None:
    index = Path(f"{prefix}.index")
    index.write_bytes(index.read_bytes()[:keep])
    with pytest.raises(UserError, match="no TensorFlow checkpoint or is damaged"):
        Bundle(prefix)


def test_short_and_missing_data_files_are_found(prefix: Path) -> None:
    data = data_file(prefix, 2)
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"00002-of-00003 is cut short"):
        Bundle(prefix)
    data.unlink()
    with pytest.raises(UserError, match=r"00002-of-00003 is missing"):
        Bundle(prefix)


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read: No such file"):
        Bundle(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"not a table at all" * 10, bytes(100), b"PK\x03\x04" * 30])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.index").write_bytes(content)
    with pytest.raises(UserError, match="no TensorFlow checkpoint"):
        Bundle(tmp_path / "x")


def test_every_cut_and_random_bytes_are_user_errors(tmp_path: Path) -> None:
    """Nothing but UserError comes out, whatever the bytes."""
    rng = np.random.default_rng(0)
    footer = struct.pack("<Q", 0xDB4775248B80FB57)
    for size in range(0, 200, 3):
        (tmp_path / "x.index").write_bytes(rng.bytes(size) + footer)
        with pytest.raises(UserError):
            Bundle(tmp_path / "x")


def malformed(pairs: list[tuple[bytes, bytes]], **options: int) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(table(pairs, **options)), None)[1]


HEADER = number(1, 1) + message(3, number(1, 1))


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (malformed([(b"", HEADER)], compression=1), "compressed"),
        (malformed([(b"a", entry(1, (1,), 0, 0, 4, 0))]), "no header"),
        (malformed([(b"", number(1, 1) + number(2, 1))]), "big-endian"),
        (malformed([(b"", HEADER), (b"a", b"\xff\xff\xff")]), "damaged"),
        (malformed([(b"", HEADER), (b"a", message(1, b"text"))]), "damaged"),
        (malformed([(b"", HEADER), (b"a\xff\xfe", entry(1, (1,), 0, 0, 4, 0))]), "damaged"),
        (malformed([(b"", HEADER), (b"a", entry(1, (1,), 7, 0, 4, 0))]), "00007-of-00001 is missing"),
    ],
)
def test_malformed_but_with_right_checksums(tmp_path: Path, write: Callable[[Path], None], match: str) -> None:
    write(tmp_path / "x.index")
    with pytest.raises(UserError, match=match):
        Bundle(tmp_path / "x")


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (entry(1, (5,), 0, 0, 4, 0), "cannot have 4 bytes"),
        (entry(8, (1,), 0, 0, 4, 0), "type 8"),
        (entry(7, (), 0, 0, 4, 0), "type 7"),
        (entry(1, (1,), 0, 0, 4, mask(slow_crc(b"xyz"))), "checksum of a "),
    ],
)
def test_entries_that_cannot_be_read(tmp_path: Path, changed: bytes, match: str) -> None:
    bundle = Bundle(write_bundle(tmp_path / "x", {"a": np.ones(5, "f4")}, change={"a": changed}))
    with pytest.raises(UserError, match=match):
        bundle.read("a")


def test_text_that_is_a_number(prefix: Path) -> None:
    with pytest.raises(UserError, match=r"scalar .* is no single string"):
        Bundle(prefix).read_text("scalar")


def test_data_of_another_checkpoint(prefix: Path) -> None:
    shutil.copyfile(data_file(prefix, 0), data_file(prefix, 1))
    data_file(prefix, 1).open("ab").write(bytes(10_000))
    bundle = Bundle(prefix)
    moved = [name for name, entry in bundle.entries.items() if entry.shard == 1 and entry.size]
    for name in moved:
        with pytest.raises(UserError, match="checksum"):
            bundle.read(name)
