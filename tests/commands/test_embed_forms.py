"""`twofold embed` to parquet and to a faiss index, with a table's columns, over time, and after a stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import encoder_file, images

import twofold
from sound_files import RATE, speech_folder, tone, write
from twofold import cli
from twofold.commands import embed as command
from twofold.commands.embed import embed
from twofold.data import open_source
from twofold.encoders import SpeechEncoder, Waves, save_encoder
from twofold.errors import UserError
from twofold.evaluation.embeddings import Embeddings, as_column
from twofold.evaluation.neighbours import centred


@pytest.fixture(scope="module")
def of_images(tmp_path_factory):
    return encoder_file(tmp_path_factory.mktemp("images") / "encoder.safetensors")


@pytest.fixture(scope="module")
def of_speech(tmp_path_factory):
    torch.manual_seed(0)
    net = SpeechEncoder(RATE, 20, 60.0, width=16, layers=2, heads=2, hidden=16, cmvn="none", dropout=0.0, stack=2)
    path = tmp_path_factory.mktemp("speech") / "encoder.safetensors"
    save_encoder(path, net.eval())
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of 20 images in which every third row is of another split, one names nothing, and one is broken."""
    root = tmp_path_factory.mktemp("table")
    lines = ["path,label,split,camera,score"]
    for i, (image, label) in enumerate(zip(*images(20), strict=True)):
        Image.fromarray(image).save(root / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,{('bar', 'disc')[label]},{'test' if i % 3 == 0 else 'train'},cam{i % 4},{i / 2}")
    lines.insert(4, ",bar,train,none,9")
    (root / "02.png").write_bytes(b"broken")
    (root / "list.csv").write_text("\n".join(lines))
    return root / "list.csv"


def test_numbers_with_gaps_stay_numbers():
    assert as_column([1, None, 2.5]).tolist()[::2] == [1.0, 2.5]
    assert np.isnan(as_column([1, None, 2.5])[1])
    assert as_column([1, 2]).dtype.kind == "i"
    assert as_column(["a", None, 3]).tolist() == ["a", "", "3"]
    assert as_column([None, None]).tolist() == ["", ""]
    assert as_column([True, None]).tolist() == ["True", ""]


def test_columns_stay_with_their_rows(of_images, table, tmp_path):
    done = embed(of_images, table, tmp_path / "f.npz", columns=("camera", "score"), **{"data.split": "train"})
    found = Embeddings.read(done.file)
    numbers = [int(name[:2]) for name in found.names]
    assert numbers == [i for i in range(20) if i % 3 and i != 2]
    assert found.columns["camera"].tolist() == [f"cam{i % 4}" for i in numbers]
    assert found.columns["score"].tolist() == [str(i / 2) for i in numbers]
    with pytest.raises(UserError, match=r"--columns cam: .* has no such column; it has path, label"):
        embed(of_images, table, tmp_path / "g.npz", columns=("cam",))
    with pytest.raises(UserError, match="no table or manifest"):
        embed(of_images, table.parent, tmp_path / "g.npz", columns=("camera",))


def test_parquet_has_a_row_an_image(of_images, table, tmp_path):
    import pyarrow.parquet

    words = ["embed", str(of_images), str(table), "--columns", "[camera]", "--data.split", "train", "--device", "cpu"]
    assert cli.main([*words, "--out", str(tmp_path / "f.parquet")]) == 0
    assert cli.main([*words, "--out", str(tmp_path / "f.npz")]) == 0
    rows = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    plain = Embeddings.read(tmp_path / "f.npz")
    assert rows["name"].to_pylist() == plain.names.tolist()
    assert rows["class"].to_pylist() == [plain.classes[label] for label in plain.labels]
    assert rows["camera"].to_pylist() == plain.columns["camera"].tolist()
    np.testing.assert_array_equal(np.array(rows["features"].to_pylist(), np.float32), plain.features)
    back = Embeddings.read(tmp_path / "f.parquet")
    np.testing.assert_array_equal(back.features, plain.features)
    assert back.classes == plain.classes
    assert back.facts == plain.facts
    assert back.columns.keys() == {"camera"}


@pytest.mark.parametrize("kind", ["auto", "flat", "hnsw", "ivf"])
def test_an_index_finds_what_comparing_all_finds(of_images, tmp_path, kind):
    faiss = pytest.importorskip("faiss")
    x, y = images(120)
    embed(of_images, (x, y), tmp_path / "f.faiss", index=kind)
    embed(of_images, (x, y), tmp_path / "f.npz")
    index = faiss.read_index(str(tmp_path / "f.faiss"))  # a plain file of faiss
    expected, mean = centred(np.load(tmp_path / "f.npz")["features"])
    beside = np.load(tmp_path / "f.faiss.npz")
    np.testing.assert_allclose(beside["mean"], mean)
    assert beside["labels"].tolist() == y.tolist()
    assert index.ntotal == 120
    _, rows = index.search(expected, 3)
    right = np.argsort(-(expected @ expected.T), axis=1)[:, :3]
    assert (rows == right).mean() > (0.95 if kind != "ivf" else 0.6)
    plain = np.load(tmp_path / "f.npz")["features"]
    np.testing.assert_allclose(Embeddings.read(tmp_path / "f.faiss").features, plain, atol=1e-5)
    assert {"hnsw": faiss.IndexHNSWFlat, "ivf": faiss.IndexIVFFlat}.get(kind, faiss.IndexFlatIP) is type(index)


def test_what_was_done_before_a_stop_is_not_done_again(of_images, table, tmp_path, monkeypatch):
    real, asked = command.Extractor.extract, []

    def stops(self, encoder, source, progress=None):
        asked.append(len(source))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(self, encoder, source, progress)

    monkeypatch.setattr(command.Extractor, "extract", stops)
    options = {"save_every": 4, "data.split": "train"}
    with pytest.raises(KeyboardInterrupt):
        embed(of_images, table, tmp_path / "f.npz", **options)
    assert not (tmp_path / "f.npz").exists()
    with pytest.raises(UserError, match="go on with --resume"):
        embed(of_images, table, tmp_path / "f.npz", **options)
    with pytest.raises(UserError, match="other options"):
        embed(of_images, table, tmp_path / "f.npz", resume=True, **options | {"preprocessing": "crop"})
    embed(of_images, table, tmp_path / "f.npz", resume=True, **options)
    assert asked == [4, 4, 4, 4]  # of 12 images: two parts, the stop, and the third part alone
    monkeypatch.undo()
    embed(of_images, table, tmp_path / "whole.npz", **{"data.split": "train"})
    pieces, whole = Embeddings.read(tmp_path / "f.npz"), Embeddings.read(tmp_path / "whole.npz")
    assert pieces.names.tolist() == whole.names.tolist()
    assert pieces.labels.tolist() == whole.labels.tolist()
    np.testing.assert_allclose(pieces.features, whole.features, rtol=1e-5, atol=1e-6)
    assert pieces.facts == whole.facts
    assert not (tmp_path / "f.npz.parts").exists()


def test_a_damaged_part_is_made_anew(of_images, tmp_path, monkeypatch):
    def fails(*_):
        raise UserError("the disk is full")

    data = images(20)
    monkeypatch.setattr(Embeddings, "write", fails)
    with pytest.raises(UserError, match="disk"):
        embed(of_images, data, tmp_path / "f.npz", save_every=8)
    monkeypatch.undo()
    parts = sorted((tmp_path / "f.npz.parts").glob("*.npz"))
    assert len(parts) == 3
    parts[1].write_bytes(parts[1].read_bytes()[:-200])
    embed(of_images, data, tmp_path / "f.npz", save_every=8, resume=True)
    embed(of_images, data, tmp_path / "whole.npz")
    pieces, whole = np.load(tmp_path / "f.npz"), np.load(tmp_path / "whole.npz")
    np.testing.assert_allclose(pieces["features"], whole["features"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [None, 0])
def test_frames_of_recordings(of_speech, tmp_path, layer):
    import pyarrow.parquet

    folder = speech_folder(tmp_path / "clips", 2, 3)
    write(folder / "word0" / "silent.wav", np.zeros(RATE, np.float32))
    given = {"level": "frame", "layer": layer, "save_every": 4, "data.max_skipped": 0.5}
    found = Embeddings.read(embed(of_speech, folder, tmp_path / "f.npz", **given).file)
    assert found.names.tolist() == [f"word{w}/{i}.wav" for w in range(2) for i in range(3)]
    assert found.step == pytest.approx(0.02)
    source, net = open_source(folder, None).at_rate(RATE), twofold.load(of_speech)
    place = [source.path(i).endswith("word1/0.wav") for i in range(len(source))].index(True)
    with torch.no_grad():
        states, frames = net.hidden_states(Waves.of([torch.from_numpy(source.read(place))]))
    alone = states[-1 if layer is None else layer][0, : frames[0]].numpy()
    np.testing.assert_allclose(found.features[found.starts[3] : found.starts[4]], alone, rtol=1e-3, atol=1e-4)
    rows = pyarrow.parquet.read_table(embed(of_speech, folder, tmp_path / "f.parquet", **given).file)
    assert len(rows) == len(found.features)
    back = Embeddings.read(tmp_path / "f.parquet")
    assert back.starts.tolist() == found.starts.tolist()
    assert back.names.tolist() == found.names.tolist()
    assert rows["seconds"].to_pylist()[1] == pytest.approx(0.02)


def test_columns_of_a_manifest_of_segments(of_speech, tmp_path):
    write(tmp_path / "long.wav", np.concatenate([tone(0), tone(1), tone(2)]))
    write(tmp_path / "other.wav", tone(1))
    rows = ["path,start,end,split,who", "long.wav,0,0.5,test,a", "long.wav,0.5,1,train,b", "other.wav,,,train,c",
            "long.wav,1,1.5,train,d"]  # fmt: skip
    (tmp_path / "list.csv").write_text("\n".join(rows))
    found = Embeddings.read(embed(of_speech, tmp_path / "list.csv", tmp_path / "f.npz", columns=("who",)).file)
    assert found.columns["who"].tolist() == ["b", "c", "d"]
    assert found.names.tolist() == ["long.wav", "other.wav", "long.wav"]


def test_what_cannot_be_done_is_told(of_images, of_speech, table, tmp_path):
    clips = speech_folder(tmp_path / "clips", 2, 2)
    for run, data, out, options, told in (
        (of_images, table, "f.csv", {}, "ends in .npz, .parquet or .faiss"),
        (of_images, table, "f.npz", {"index": "hnsw"}, "--index hnsw is for a file that ends in .faiss"),
        (of_images, table, "f.npz", {"level": "frame"}, "--level frame is for recordings"),
        (of_speech, clips, "f.npz", {"layer": 1}, "--layer 1"),
        (of_speech, clips, "f.npz", {"level": "frame", "layer": 7}, "--layer 7: the encoder has layers 0 to 2"),
        (of_speech, clips, "f.faiss", {"level": "frame"}, "--level frame has a row a step"),
        (of_images, table, "f.npz", {"save_every": 0}, "--save_every 0"),
    ):
        with pytest.raises(UserError, match=told):
            embed(run, data, tmp_path / out, **options)
    assert not list(tmp_path.glob("f.*"))
    (tmp_path / "facts.npz").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(UserError, match="no features of twofold embed"):
        Embeddings.read(tmp_path / "facts.npz")
