"""Recordings in archives and tables: Hugging Face data sets, parquet files, tars; what is said of them, their parts."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image

from sound_files import RATE, tone
from twofold.commands.embed import embed
from twofold.commands.evaluate import evaluate
from twofold.commands.finetune import finetune
from twofold.commands.pretrain import pretrain
from twofold.data import AudioSource, DataConfig, open_source, splits_of
from twofold.data.config import AudioConfig
from twofold.data.content import content_digest
from twofold.errors import UserError
from twofold.evaluation.feature_cache import decode_options

WORDS, VOICES = ("yes", "no"), ("ann", "bob", "cid")


def wave(i: int) -> NDArray[np.float32]:
    return tone(i % 2, i % 3, 0.3 + 0.05 * (i % 5), RATE, seed=i)


def encoded(i: int, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave(i), RATE, format=kind)
    return file.getvalue()


def rows(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "audio": {"bytes": encoded(i, "FLAC"), "path": f"{i:02d}.flac"}, "sentence": f"it is {WORDS[i % 2]}",
            "label": i % 2, "speaker_id": VOICES[i % 3],
        }
        for i in range(start, start + count)
    ]  # fmt: skip


def table(start: int, count: int) -> Any:
    kinds = datasets.Features({
        "audio": datasets.Audio(decode=False), "sentence": datasets.Value("string"),
        "label": datasets.ClassLabel(names=list(WORDS)), "speaker_id": datasets.Value("string"),
    })  # fmt: skip
    return datasets.Dataset.from_list(rows(start, count)).cast(kinds)


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, contents in members:
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            archive.addfile(info, io.BytesIO(contents))
    return path


def members(start: int, count: int) -> list[tuple[str, bytes]]:
    result = []
    for i in range(start, start + count):
        said = {"speaker": VOICES[i % 3], "duration": 1.5}
        result += [
            (f"{i:02d}.flac", encoded(i, "FLAC")), (f"{i:02d}.txt", f"it is {WORDS[i % 2]}\n".encode()),
            (f"{i:02d}.cls", WORDS[i % 2].encode()), (f"{i:02d}.json", json.dumps(said).encode()),
        ]  # fmt: skip
    return result


def saved(root: Path) -> Path:
    datasets.DatasetDict({"train": table(0, 24), "test": table(24, 12)}).save_to_disk(root / "saved")
    return root / "saved"


def parquet(root: Path) -> Path:
    """As `push_to_hub` lays them out."""
    for split, start, count in (("train", 0, 24), ("test", 24, 12)):
        (root / "hub" / "data").mkdir(parents=True, exist_ok=True)
        table(start, count).to_parquet(root / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    return root / "hub"


def tars(root: Path) -> Path:
    tar(root / "tars" / "train" / "0.tar", members(0, 10))
    tar(root / "tars" / "train" / "1.tar", members(10, 14))
    tar(root / "tars" / "test" / "0.tar", members(24, 12))
    return root / "tars"


FORMS: list[Callable[[Path], Path]] = [saved, parquet, tars]


@pytest.fixture(autouse=True)
def nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("form", FORMS)
def test_samples_and_what_is_said(tmp_path: Path, form: Callable[[Path], Path]) -> None:
    what = form(tmp_path)
    assert splits_of(what).evaluation == ("train", "test")
    source = open_source(what)
    assert isinstance(source, AudioSource)
    assert (len(source), source.classes) == (24, sorted(WORDS))
    for i in (0, 9, 10, 23):
        np.testing.assert_allclose(source.read(i), wave(i), atol=1e-4)
        assert len(source.read(i)) == source.lengths()[i]
        assert source.path(i).endswith(f":{i:02d}.flac")
    assert source.texts[:2] == ["it is yes", "it is no"]
    assert source.speakers[:4] == ["ann", "bob", "cid", "ann"]
    assert [source.classes[label] for label in source.labels[:2]] == ["yes", "no"]  # type: ignore[index]
    assert "24 recordings, 2 classes (no, yes), 24 texts, 3 speakers" in source.facts().layout
    test = open_source(what, split="test")
    np.testing.assert_allclose(test.read(1), wave(25), atol=1e-4)
    assert test.fingerprint() != source.fingerprint()
    again = open_source(what)
    assert (again.fingerprint(), content_digest(again)) == (source.fingerprint(), content_digest(source))
    assert decode_options(source) is not None
    with pytest.raises(UserError, match=r"--data.split val: .*train, test"):
        open_source(what, split="val")
    by_speaker = open_source(what, DataConfig(audio=AudioConfig(label="speaker" if form is tars else "speaker_id")))
    assert by_speaker.classes == sorted(VOICES)


@pytest.mark.parametrize("form", FORMS)
def test_the_commands_take_them(tmp_path: Path, form: Callable[[Path], Path]) -> None:
    what = form(tmp_path)
    net = {"name": "speech:small", "speech": {"mels": 20, "width": 16, "layers": 1, "heads": 2, "hidden": 32}}
    cpu = {"training": {"device": "cpu", "precision": "fp32"}}
    run = pretrain(what, tmp_path / "run", encoder=net, epochs=1, batch=8, report=False, **cpu).path
    found = evaluate(run, what, protocol="knn", k=3, device="cpu")
    assert (found.train.images, found.test.images) == (24, 12)
    done = finetune(run, what, out=tmp_path / "tuned", epochs=1, batch=8, **cpu)
    assert 0 <= done.metrics["top1"] <= 1
    embed(run, what, out=tmp_path / "e.npz", device="cpu")
    with np.load(tmp_path / "e.npz") as file:
        assert (file["features"].shape, file["classes"].tolist()) == ((24, 16), ["no", "yes"])
        assert file["names"][3].endswith(":03.flac")


def test_a_parquet_file_and_an_object(tmp_path: Path) -> None:
    """Also as others than `datasets` write it: a struct of bytes and path, or bytes alone, without words on types."""
    said = rows(0, 6)
    plain = pa.table({name: [row[name] for row in said] for name in said[0]})
    pq.write_table(plain, tmp_path / "plain.parquet")
    bare = pa.table({"clip": [row["audio"]["bytes"] for row in said], "text": [row["sentence"] for row in said]})
    for what, config in (
        (tmp_path / "plain.parquet", DataConfig()), (table(0, 6), DataConfig()),
        (datasets.Dataset(bare), DataConfig(audio=AudioConfig(path="clip"))),
    ):  # fmt: skip
        source = open_source(what, config)
        assert isinstance(source, AudioSource)
        np.testing.assert_allclose(source.read(4), wave(4), atol=1e-4)
        assert source.texts[1] == "it is no"
    with pytest.raises(UserError, match="is one part; give the folder"):
        open_source(tmp_path / "plain.parquet", split="test")
    with pytest.raises(UserError, match=r"the column label holds ClassLabel.*, no encoded recordings"):
        open_source(table(0, 6), DataConfig(audio=AudioConfig(path="label")))


def test_images_in_parquet_stay_images(tmp_path: Path) -> None:
    cells = []
    for i in range(4):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    (tmp_path / "images").mkdir()
    pq.write_table(pa.table({"image": cells, "label": [0, 1, 0, 1]}), tmp_path / "images" / "train.parquet")
    for what in (tmp_path / "images" / "train.parquet", tmp_path / "images"):
        source = open_source(what)
        assert not isinstance(source, AudioSource)
        assert source.read(2)[0, 0, 0] == 80
        assert source.labels.tolist() == [0, 1, 0, 1]  # type: ignore[union-attr]


def test_broken_cells_and_members_are_counted(tmp_path: Path) -> None:
    broken = rows(0, 8)
    broken[2]["audio"]["bytes"] = b"RIFF and nothing more"
    broken[3]["audio"] = {"bytes": None, "path": None}
    source = open_source(datasets.Dataset.from_list(broken), DataConfig(max_skipped=0.5))
    assert len(source) == 6
    reasons = dict(source.skipped)
    assert "not a recording that libsndfile reads" in reasons["Dataset[2]:02.flac"]
    assert "an empty cell" in reasons["Dataset[3]"]
    contents = members(0, 8)
    contents[4] = (contents[4][0], b"RIFF and nothing more")
    contents[11] = (contents[11][0], b"{no JSON")
    path = tar(tmp_path / "a.tar", contents)
    path.write_bytes(path.read_bytes()[: -512 * 22])  # the end of the archive, and the last members
    source = open_source(tmp_path, DataConfig(max_skipped=0.5))
    reasons = dict(source.skipped)
    assert "not a recording" in reasons[f"{path}:01.flac"]
    assert "no JSON" in reasons[f"{path}:02.json"]
    assert "not a whole tar archive" in reasons[str(path)]
    assert 5 <= len(source) <= 7
    np.testing.assert_allclose(source.read(0), wave(0), atol=1e-4)


def test_names_with_dots_keep_their_own_texts(tmp_path: Path) -> None:
    """WebDataset's key ends at the first dot, and people number utterances after one."""
    contents = []
    for i in range(4):
        contents += [(f"ann.{i}.wav", encoded(i)), (f"ann.{i}.txt", f"text {i}".encode())]
    contents += [("bob.wav", encoded(5)), ("bob.mic2.wav", encoded(6)), ("bob.txt", b"of both")]
    tar(tmp_path / "a.tar", contents)
    source = open_source(f"shards:{tmp_path}/*.tar")
    assert source.texts == ["text 0", "text 1", "text 2", "text 3", "of both", "of both"]  # type: ignore[attr-defined]


def test_texts_in_another_encoding(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("0.wav", encoded(0)), ("0.txt", "müde".encode("latin-1")), ("1.wav", encoded(1))])
    with pytest.raises(UserError, match=r"a.tar:0.txt is not written in utf-8 .*--data.encoding"):
        open_source(tmp_path)
    assert open_source(tmp_path, DataConfig(encoding="latin-1")).texts == ["müde", None]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"has no such column; it has text"):
        open_source(tmp_path, DataConfig(encoding="latin-1", audio=AudioConfig(speaker="who")))


def test_archives_of_images_stay_images(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    tar(tmp_path / "a.tar", [("0.json", b"{}"), ("0.png", file.getvalue()), ("1.png", file.getvalue())])
    assert not isinstance(open_source(tmp_path), AudioSource)
