"""Whatever stands in an encoder's file, a TensorFlow bundle or a checkpoint: it is read, or refused by name.

Sums that a damaged file would break are right here, as whoever makes a file makes them: for the others see the tests of
flipped bits.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import TEXTS, VALUES, changed, encoded, spliced, tried
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))

from bundle_writer import entry, mask, message, number, varint, write_bundle

from twofold.data import open_source
from twofold.encoders import EncoderConfig, build_encoder
from twofold.encoders.audio.encoder import SpeechEncoderConfig
from twofold.encoders.load import kind_of, load
from twofold.encoders.weights import load_classifier, load_encoder, load_head, read_header, save_encoder, sealed
from twofold.heads import Classifier, HeadConfig, ProjectionHead
from twofold.interop.bundle import Bundle
from twofold.interop.crc32c import crc32c
from twofold.runs.config import build
from twofold.runs.defaults import choose
from twofold.runs.pretrain import assemble
from twofold.runs.starting import start_accelerator
from twofold.training.checkpoint import load_checkpoint
from twofold.training.loop import Training
from twofold.training.rundir import RunDirectory

SMALL = SpeechEncoderConfig(width=16, layers=1, heads=2, hidden=16, mels=8)


class Made:
    """Header and tensors of an encoder's file. (Their contents need not be told with each failure.)"""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.header: dict[str, Any] = json.loads(file.metadata()["twofold"])
            self.tensors: dict[str, torch.Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def made(folder: Path, name: str, **options: Any) -> Made:
    """A file of a small encoder with a head and a classifier."""
    encoder = build_encoder(EncoderConfig.of(name=name, **options), 16)
    head = ProjectionHead(encoder.feature_dim, HeadConfig(layers=2, out_dim=4))
    path = folder / "made.safetensors"
    save_encoder(path, encoder, head, {"run": {"seed": 1}}, Classifier(encoder.feature_dim, 3), 0)
    return Made(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what each example writes anew."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    folder = tmp_path_factory.mktemp("encoders")
    return [
        made(folder, "resnet10", width=0.125, stem="cifar"),
        made(folder, "speech:small", speech=SMALL),
    ]


def read_all(path: Path) -> None:
    """Whatever can be read of an encoder's file."""
    for read in (load_encoder, load, load_head, load_classifier):
        tried(lambda read=read: read(path), path.name)
    tried(lambda: kind_of(read_header(path)["spec"]), path.name)


@given(st.data())
def test_headers_of_encoders(encoders: list[Made], place: Path, data: st.DataObject) -> None:
    """With right sums, as whoever makes a file writes them."""
    path = place / "header.safetensors"
    base = data.draw(st.sampled_from(encoders))
    header, tensors = base.header, base.tensors
    part = data.draw(st.sampled_from(["spec", "spec", "head", "classifier", None]))
    changed_header = data.draw(changed(header)) if part is None else header | {part: data.draw(changed(header[part]))}
    text = json.dumps(changed_header)
    if data.draw(st.integers(0, 4)) == 0:
        text = data.draw(spliced(text.encode())).decode("utf-8", "replace")
    save_file(tensors, path, metadata=sealed(text, tensors))
    read_all(path)


@given(st.data())
def test_tables_of_tensors(encoders: list[Made], place: Path, data: st.DataObject) -> None:
    """The part of a safetensors file that says where its tensors lie, in a file of format 1, which has no sums."""
    path = place / "table.safetensors"
    header, tensors = encoders[0].header, encoders[0].tensors
    whole = save(tensors, metadata={"twofold": json.dumps(header | {"format": 1})})
    length = struct.unpack("<Q", whole[:8])[0]
    listed = whole[8 : 8 + length]
    if data.draw(st.booleans()):
        listed = json.dumps(data.draw(changed(json.loads(listed)))).encode()
    if data.draw(st.booleans()):
        listed = data.draw(spliced(listed))
    said = data.draw(st.one_of(st.just(len(listed)), st.just(len(listed)), st.integers(0, 2**64 - 1)))
    path.write_bytes(struct.pack("<Q", said) + listed + whole[8 + length :])
    read_all(path)


VARINTS = st.one_of(st.integers(0, 300), st.sampled_from([2**31, 2**32, 2**53, 2**62, 2**63, 2**64 - 1]))
TENSORS: dict[str, np.ndarray | bytes] = {
    "text": b"some text", "scalar": np.array(3, np.int64), "net/kernel": np.ones((3, 4), "f4"),
}  # fmt: skip


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """What an index says of a tensor, or bytes that look like it."""
    shape = draw(st.lists(VARINTS, max_size=4))
    dtype, offset, size = draw(st.integers(0, 25)), draw(VARINTS), draw(VARINTS)
    extra = draw(st.one_of(st.just(b""), st.binary(max_size=6), st.just(message(7, b""))))
    said = entry(dtype, shape, draw(st.integers(0, 2)), offset, size, draw(st.integers(0, 2**32 - 1)), extra)
    return draw(st.one_of(st.just(said), spliced(said)))


def read_bundle(prefix: Path) -> None:
    bundle = tried(lambda: Bundle(prefix), prefix.name)
    for name in bundle.entries if bundle is not None else ():
        tried(lambda name=name: bundle.read(name), prefix.name)
        tried(lambda name=name: bundle.read_text(name), prefix.name)


@given(st.data())
def test_bundles(place: Path, data: st.DataObject) -> None:
    """Entries, headers, names and data, all under right checksums."""
    prefix = place / "bundle.ckpt"
    for left in prefix.parent.glob("bundle.ckpt.data-*"):
        left.unlink()
    names = st.one_of(st.sampled_from(list(TENSORS)), TEXTS.map(lambda name: encoded(name).decode("utf-8", "replace")))
    write_bundle(
        prefix, TENSORS, shards=data.draw(st.integers(1, 2)),
        change=data.draw(st.dictionaries(names, entries(), max_size=3)),
        header=data.draw(st.one_of(st.none(), st.binary(max_size=8), spliced(number(1, 1) + message(3, number(1, 1))))),
    )  # fmt: skip
    if data.draw(st.booleans()):
        shard = data.draw(st.sampled_from(sorted(prefix.parent.glob("bundle.ckpt.data-*"))))
        shard.write_bytes(data.draw(spliced(shard.read_bytes())))
    read_bundle(prefix)


@given(st.data())
def test_indices_of_bundles(place: Path, data: st.DataObject) -> None:
    """Blocks of any bytes under right checksums, and an index of which pieces are missing."""
    prefix = place / "index.ckpt"
    write_bundle(prefix, TENSORS)
    index = Path(f"{prefix}.index")
    block = data.draw(st.lists(st.one_of(VARINTS.map(varint), st.binary(max_size=12)), max_size=12).map(b"".join))
    block += struct.pack("<I", data.draw(VARINTS) % 2**32)
    sealed_block = block + b"\0" + struct.pack("<I", mask(crc32c(block + b"\0")))
    handle = varint(0) + varint(len(block))
    over = varint(0) + varint(1) + varint(len(handle)) + b"y" + handle + struct.pack("<II", 0, 1)
    sealed_over = over + b"\0" + struct.pack("<I", mask(crc32c(over + b"\0")))
    footer = (handle + varint(len(sealed_block)) + varint(len(over))).ljust(40, b"\0")
    made_up = sealed_block + sealed_over + footer + struct.pack("<Q", 0xDB4775248B80FB57)
    index.write_bytes(data.draw(st.one_of(spliced(index.read_bytes()), st.just(made_up), spliced(made_up))))
    read_bundle(prefix)


class Halfway:
    """A run that can go on, and what its checkpoint held."""

    def __init__(self, training: Training[Any, Any], state: dict[str, Any]) -> None:
        self.training, self.state = training, state


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Halfway]:
    """A run of 4 steps that stopped after 2, and what its checkpoint holds."""
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "run")
    options = {
        "epochs": 4.0, "batch": 8, "encoder.name": "resnet10", "encoder.width": 0.125, "data.workers": 0,
        "training.device": "cpu", "training.precision": "fp32", "training.log_every": 1, "monitor.every": 0,
    }  # fmt: skip
    config = build(options)
    source = open_source(np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
    config, _ = choose(config, source.facts(), torch.device("cpu"))
    run.create(config, {})
    result: Any = assemble(config, source, run, start_accelerator(config.training, run), None)
    result.agree = lambda number: number or 15 * (result.step == 2)
    result.fit()
    newest = run.latest()
    assert newest is not None
    del result.agree
    yield Halfway(result, load_checkpoint(newest))
    result.loader.close()


@given(st.data())
def test_checkpoints(halfway: Halfway, data: st.DataObject) -> None:
    """What one holds beside the weights, and which weights: taken up to train to the end, or refused."""
    run, state = halfway.training, halfway.state
    folder = run.run.path / "checkpoints"
    for left in folder.iterdir():
        left.unlink()
    part = data.draw(st.sampled_from([None, *state, "optimizer", "sums"]))
    values = st.one_of(
        VALUES,
        st.sampled_from([torch.zeros(3), torch.zeros(0), torch.tensor(2), torch.tensor(2.0), torch.tensor(math.nan)]),
    )
    found = data.draw(changed({part: state[part]} if part is not None else state, values))
    if part is not None and isinstance(found, dict):
        found = {name: value for name, value in state.items() if name != part} | found
    torch.save(found, folder / "step-000000002.pt")
    if tried(lambda: run.resume() or True, "step-000000002.pt", "metrics.jsonl"):
        run.stopped_by = None
        tried(run.fit, "step", "metrics.jsonl")
