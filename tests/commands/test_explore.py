"""`twofold explore`: the page of folders, tables, arrays, recordings and features; few, unlabelled, oddly named."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
from urllib.parse import quote, unquote_to_bytes

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import encoder_file, images

import twofold
from sound_files import RATE, speech_folder
from twofold import cli
from twofold.encoders import SpeechEncoder, save_encoder
from twofold.errors import UserError
from twofold.evaluation.neighbours import centred


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return encoder_file(tmp_path_factory.mktemp("images") / "encoder.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "photos"
    for i, (image, label) in enumerate(zip(*images(12), strict=True)):
        place = root / ("bar", "disc")[label] / f"{i:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    return root


def page(file):
    return json.loads(re.search(r'id="data">(.*?)</script>', file.read_text(), re.S)[1])


def codes(column):
    places = np.frombuffer(base64.b64decode(column["codes"]), "<i4")
    return ["" if place < 0 else column["names"][place] for place in places.tolist()]


def columns(data):
    return {column["name"]: column for column in data["columns"]}


def places_of(data, folder):
    """The file that each example's link leads to, as a browser finds it."""
    links = [data["odd"].get(str(i), quote(f"{data['links']}/{name}")) for i, name in enumerate(data["names"])]
    return [os.path.join(os.fsencode(folder), unquote_to_bytes(link)) for link in links]  # noqa: PTH118


def test_a_folder_has_names_classes_neighbours_pictures_and_links(encoder, photos, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert cli.main(["explore", str(encoder), str(photos), "--out", str(out), "--neighbours", "3"]) == 0
    assert "a map of 12 examples" in capsys.readouterr().out
    data = page(out)
    assert data["names"] == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    assert codes(columns(data)["class"]) == [name.split("/")[0] for name in data["names"]]
    assert data["label"] == "class"
    twofold.embed(encoder, photos, tmp_path / "f.npz", device="cpu")
    cosine = (lambda x: x @ x.T)(centred(np.load(tmp_path / "f.npz")["features"])[0])
    np.fill_diagonal(cosine, -2)
    near = np.frombuffer(base64.b64decode(data["near"]), "<i4").reshape(12, 3)
    like = np.frombuffer(base64.b64decode(data["like"]), "<i2").reshape(12, 3) / 1e4
    np.testing.assert_allclose(like, np.sort(cosine, axis=1)[:, ::-1][:, :3], atol=1e-3)
    np.testing.assert_allclose(np.take_along_axis(cosine, near.astype(int), 1), like, atol=1e-3)
    assert (tmp_path / data["links"] / data["names"][0]).samefile(photos / data["names"][0])
    assert data["odd"] == {}
    assert data["sheets"]["side"] == 16
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "f.npz"}


def test_every_column_of_a_table_is_there_and_what_is_missing_is_told_as_such(encoder, photos, tmp_path):
    files = sorted(photos.rglob("*.png"))
    table = photos / "table.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "camera", "depth"])
        for i, file in enumerate(files):
            writer.writerow([file.relative_to(photos), "disc" if i == 1 else "bar" if i < 4 else "", "=x</script>", i])
    found = twofold.explore(encoder, table, tmp_path / "page.html", device="cpu")
    assert found.columns == ("class", "camera", "depth", "nearest similarity")
    data = page(found.file)
    assert codes(columns(data)["class"]) == ["bar", "disc", "bar", "bar"] + [""] * 8
    assert columns(data)["camera"]["names"] == ["=x</script>"]
    assert columns(data)["depth"]["kind"] == "number"
    few = twofold.explore(encoder, table, tmp_path / "few.html", columns=["depth"], most=5, pictures=0, device="cpu")
    assert few.columns == ("class", "depth", "nearest similarity")
    assert few.count == 5
    kept = page(few.file)
    assert kept["sheets"] is None
    places = [data["names"].index(name) for name in kept["names"]]
    depth = np.frombuffer(base64.b64decode(columns(kept)["depth"]["values"]), "<f8")
    assert depth.tolist() == places
    table.unlink()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_examples_without_labels(encoder, photos, tmp_path, count):
    files = sorted(photos.rglob("*.png"))[:count]
    found = twofold.explore(encoder, files, tmp_path / "page.html", device="cpu")
    assert found.count == count
    data = page(found.file)
    assert data["label"] is None
    assert data["k"] == count - 1
    assert len(np.frombuffer(base64.b64decode(data["x"]), "<f4")) == count
    assert all(os.path.isfile(place) for place in places_of(data, tmp_path))  # noqa: PTH113 - names of bytes


def test_arrays_are_no_files_and_packed_files_lie_nowhere(encoder, tmp_path):
    x, y = images(9)
    np.savez(tmp_path / "a.npz", images=x, labels=y)
    found = twofold.explore(encoder, tmp_path / "a.npz", tmp_path / "page.html", device="cpu")
    data = page(found.file)
    assert data["names"] == [str(i) for i in range(9)]
    assert data["links"] is None
    assert codes(columns(data)["class"]) == [str(each) for each in y]
    twofold.shard(tmp_path / "a.npz", tmp_path / "packed")
    again = page(twofold.explore(encoder, tmp_path / "packed", tmp_path / "again.html", device="cpu").file)
    assert len(again["names"]) == 9
    assert again["sheets"] is not None
    assert again["links"] is None or all(link is None for link in again["odd"].values())


def test_odd_names_are_shown_in_escapes_and_lead_to_their_files(encoder, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    names = [b"caf\xe9.png", b"a<b>&'\".png", b"two\nlines.png", b"100%#1?.png"]
    for name, image in zip(names, images(4)[0], strict=True):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:  # noqa: PTH118, PTH123 - names of bytes
            Image.fromarray(image).save(file, "PNG")
    data = page(twofold.explore(encoder, folder, tmp_path / "page.html", device="cpu").file)
    assert set(data["names"]) == {"caf\\udce9.png", "a<b>&'\".png", "two\\nlines.png", "100%#1?.png"}
    for place, name in zip(places_of(data, tmp_path), data["names"], strict=True):
        assert os.path.isfile(place), name  # noqa: PTH113


def test_what_embed_wrote_is_shown_with_its_columns(encoder, photos, tmp_path):
    file = twofold.embed(encoder, photos, tmp_path / "f.npz", device="cpu").file
    found = twofold.explore(encoder, file, tmp_path / "page.html", device="cpu")
    direct = twofold.explore(encoder, photos, tmp_path / "direct.html", device="cpu")
    a, b = page(found.file), page(direct.file)
    assert a["names"] == b["names"]
    assert codes(columns(a)["class"]) == codes(columns(b)["class"])
    held = [re.search(r'id="sheet0">(.*?)<', each.file.read_text())[1] for each in (found, direct)]
    assert held[0] == held[1]
    assert (tmp_path / a["links"] / a["names"][0]).is_file()


def test_recordings_are_in_the_page_or_linked_to(tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = SpeechEncoder(RATE, 20, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="none", dropout=0.0)
    save_encoder(tmp_path / "encoder.safetensors", net.eval())
    folder = speech_folder(tmp_path / "clips", 2, 3)
    found = twofold.explore(tmp_path / "encoder.safetensors", folder, tmp_path / "page.html", device="cpu")
    text, data = found.file.read_text(), page(found.file)
    assert data["sounds"] == "audio/mpeg"
    sound = base64.b64decode(re.search(r'id="sound2">(.*?)<', text)[1])
    import io

    import soundfile

    wave, rate = soundfile.read(io.BytesIO(sound))
    whole, own = soundfile.read(folder / data["names"][2])
    assert len(wave) / rate == pytest.approx(len(whole) / own, abs=0.1)
    assert np.abs(wave).max() > 0.05
    monkeypatch.setattr("twofold.commands.explore._MOST_SOUND", 100)
    linked = page(twofold.explore(tmp_path / "encoder.safetensors", folder, tmp_path / "b.html", device="cpu").file)
    assert linked["sounds"] is None
    assert linked["audio"]
    assert (tmp_path / linked["links"] / linked["names"][0]).is_file()


def test_mistakes_are_told_before_any_work(encoder, photos, tmp_path):
    (tmp_path / "full.html").write_text("mine")
    for out, options, told in (
        ("full.html", {}, "exists already"),
        ("page.txt", {}, "ends in .html"),
        ("a.html", {"most": 0}, "--most 0"),
        ("a.html", {"most": 100_001}, "--most 100001"),
        ("a.html", {"neighbours": -1}, "--neighbours -1"),
        ("a.html", {"pictures": 3}, "--pictures 3"),
        ("a.html", {"seconds": 2.0}, "seconds"),
        ("a.html", {"columns": ["camera"]}, "--columns camera"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            twofold.explore(encoder, photos, tmp_path / out, device="cpu", **options)
    assert (tmp_path / "full.html").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["full.html"]
