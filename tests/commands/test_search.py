"""`twofold search`: planted copies and leaks are found, and neighbours are those of comparing all."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import encoder_file, images

import twofold
from sound_files import RATE, speech_folder
from twofold import cli
from twofold.encoders import ResNet, SpeechEncoder, save_encoder
from twofold.errors import UserError
from twofold.evaluation.neighbours import ExactIndex, FaissIndex, build_index, centred
from twofold.evaluation.searching import duplicates, leaks, neighbours, outliers


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return encoder_file(tmp_path_factory.mktemp("images") / "encoder.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """train/ with three copies of 05 and one of 10 under another class; test/ with one of 20."""
    root = tmp_path_factory.mktemp("photos")
    x, labels = images(60, seed=4)
    for i, (image, label) in enumerate(zip(x, labels, strict=True)):
        place = root / ("train" if i < 40 else "test") / ("bar", "disc")[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:02d}.png")
    for copy in ("a", "b"):
        Image.fromarray(x[5]).save(root / "train" / "disc" / f"05{copy}.png")
    Image.fromarray(x[10]).save(root / "train" / "disc" / "10.png")
    Image.fromarray(x[20]).save(root / "test" / "bar" / "twenty.bmp")
    return root


def table(path):
    return list(csv.DictReader(path.open()))


def test_copies_leaks_and_outliers(encoder, photos, tmp_path, capsys):
    words = ["search", str(encoder), str(photos / "train"), "--test", str(photos / "test"), "--duplicates", "true"]
    words += ["--outliers", "3", "--similarity", "0.9999", "--out", str(tmp_path / "found"), "--device", "cpu"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "found" / "search.json").read_text())
    groups = {tuple(group["names"]): group["classes"] for group in found["duplicates"]}
    assert groups == {
        ("disc/05.png", "disc/05a.png", "disc/05b.png"): ["disc"],
        ("bar/10.png", "disc/10.png"): ["bar", "disc"],
    }
    assert [(leak["names"], leak["test"]) for leak in found["leaks"]] == [(["bar/20.png"], ["bar/twenty.bmp"])]
    twofold.embed(encoder, photos / "train", tmp_path / "f.npz", device="cpu")
    arrays = np.load(tmp_path / "f.npz")
    plain = arrays["features"] / np.linalg.norm(arrays["features"], axis=1, keepdims=True)
    tenth = np.sort(plain @ plain.T, axis=1)[:, ::-1][:, 10]  # itself stands first
    assert [hit["name"] for hit in found["outliers"]] == arrays["names"][np.argsort(tenth)[:3]].tolist()
    assert "5 examples in 2 groups" in told.replace("\n", " ")
    rows = table(tmp_path / "found" / "duplicates.csv")
    assert [row["group"] for row in rows] == ["1", "1", "1", "2", "2"]
    assert {row["part"] for row in table(tmp_path / "found" / "leaks.csv")} == {"data", "test"}
    for sheet in ("duplicates", "leaks", "outliers"):
        picture = np.asarray(Image.open(tmp_path / "found" / f"{sheet}.png"))
        assert picture.std() > 20  # something is drawn on the paper
    assert not (tmp_path / "found" / "neighbours.csv").exists()


def test_neighbours_of_files_and_names_are_those_of_comparing_all(encoder, photos, tmp_path):
    twofold.embed(encoder, photos / "train", tmp_path / "f.npz")
    arrays = np.load(tmp_path / "f.npz")
    around, mean = centred(arrays["features"])
    query = photos / "test" / "disc" / "41.png"
    found = twofold.search(encoder, photos / "train", tmp_path / "found", query=query, names=["bar/10.png"], k=4)
    twofold.embed(encoder, query, tmp_path / "q.npz")
    own = list(arrays["names"]).index("bar/10.png")
    by_name, by_file = found.neighbours
    asked = {
        by_name["query"]: around[own],
        by_file["query"]: centred(np.load(tmp_path / "q.npz")["features"], mean)[0][0],
    }
    for result in (by_name, by_file):
        cosines = around @ asked[result["query"]]
        order = [i for i in np.argsort(-cosines, kind="stable") if not (result is by_name and i == own)][:4]
        assert {hit["name"] for hit in result["found"]} == {str(arrays["names"][i]) for i in order}
        assert [hit["similarity"] for hit in result["found"]] == pytest.approx(cosines[order].tolist(), abs=1e-5)
    assert by_name["found"][0]["name"] == "disc/10.png"
    assert not found.duplicates
    assert not found.outliers
    assert {p.name for p in found.path.iterdir()} == {
        "search.json", "neighbours.csv", "neighbours.png", "neighbours-of-names.csv", "neighbours-of-names.png",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["npz", "parquet", "faiss"])
def test_what_embed_wrote_is_searched(encoder, photos, tmp_path, form):
    if form == "faiss":
        pytest.importorskip("faiss")
    file = twofold.embed(encoder, photos / "train", tmp_path / f"f.{form}").file
    found = twofold.search(encoder, file, tmp_path / "found", similarity=0.9999)
    direct = twofold.search(encoder, photos / "train", tmp_path / "direct", similarity=0.9999)
    assert [group["names"] for group in found.duplicates] == [group["names"] for group in direct.duplicates]
    assert [hit["name"] for hit in found.outliers] == [hit["name"] for hit in direct.outliers]
    assert len(found.outliers) == 20
    sheets = [np.asarray(Image.open(each.path / "duplicates.png")) for each in (found, direct)]
    np.testing.assert_array_equal(*sheets)


def test_what_was_looked_for_and_is_not_there_is_told(encoder, tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (24, 16, 16, 3), dtype=np.uint8)  # equal to nothing
    found = twofold.search(encoder, x[:16], tmp_path / "a", test=x[16:], similarity=0.9999, outliers=2, device="cpu")
    assert "in both: nothing from a similarity of 0.9999 on" in found.text()
    assert "nearly the same" not in found.text()  # nobody asked
    found = twofold.search(encoder, x[:16], tmp_path / "b", similarity=0.9999, device="cpu")
    assert "nearly the same: nothing from a similarity of 0.9999 on" in found.text()
    assert "in both" not in found.text()
    one = np.concatenate([x[:16], x[:1]])
    found = twofold.search(encoder, one, tmp_path / "c", similarity=0.9999, duplicates=True, device="cpu")
    assert "nearly the same: 2 examples in 1 group:\n  0, 16 (1.000)" in found.text()


def test_a_query_that_cannot_be_read_is_told(encoder, photos, tmp_path):
    good, gone = photos / "test" / "disc" / "41.png", photos / "gone.png"
    found = twofold.search(encoder, photos / "train", tmp_path / "found", query=[good, gone], k=1)
    assert [each["query"] for each in found.neighbours] == [str(good)]
    assert [path for path, _ in found.skipped] == [str(gone)]
    assert f"{gone}: " in found.text()


def test_recordings_are_searched(tmp_path):
    torch.manual_seed(0)
    net = SpeechEncoder(RATE, 20, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="none", dropout=0.0)
    save_encoder(tmp_path / "encoder.safetensors", net.eval())
    folder = speech_folder(tmp_path / "clips", 2, 6)
    (folder / "word0" / "copy.wav").write_bytes((folder / "word1" / "2.wav").read_bytes())
    found = twofold.search(tmp_path / "encoder.safetensors", folder, tmp_path / "found", similarity=0.99999)
    assert [group["names"] for group in found.duplicates] == [["word0/copy.wav", "word1/2.wav"]]
    assert found.duplicates[0]["classes"] == ["word0", "word1"]


def test_groups_hang_together_through_each_other():
    angles = np.deg2rad([0, 8, 16, 90, 180, 186])
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = duplicates(ExactIndex(bank), bank, float(np.cos(np.deg2rad(9))))
    assert [group.rows for group in found] == [(0, 1, 2), (4, 5)]
    assert found[0].similarity == pytest.approx(np.cos(np.deg2rad(8)), abs=1e-5)  # the links, not 0 to 16
    other = bank[[2, 3]] * 1.0
    crossed = leaks(ExactIndex(bank), other, 0.999, len(bank))
    assert [(group.rows, group.others) for group in crossed] == [((2,), (0,)), ((3,), (1,))]
    hits = neighbours(ExactIndex(bank), bank[[1]], 2, np.array([1]))
    assert {hit.row for hit in hits[0]} == {0, 2}
    assert outliers(ExactIndex(bank[:1]), bank[:1], 3)[0].similarity == -1


def test_outliers_are_ranked_by_their_tenth_neighbour():
    rng = np.random.default_rng(0)
    bank = rng.normal([3, 0, 0], 0.3, (40, 3))
    bank[7] = [-3, 1, 0]
    bank[8:12] = [0, 0, 3]  # four together are alone as well
    bank = (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float32)
    cosines = bank @ bank.T
    np.fill_diagonal(cosines, np.inf)
    tenth = np.sort(cosines, axis=1)[:, ::-1][:, 10]
    found = outliers(ExactIndex(bank), bank, 5)
    assert {hit.row for hit in found} == {7, 8, 9, 10, 11}
    assert [hit.similarity for hit in found] == pytest.approx(sorted(tenth)[:5], abs=1e-5)


def test_auto_is_exact_for_few_and_where_faiss_is_missing(monkeypatch):
    bank = np.eye(4, dtype=np.float32)
    assert isinstance(build_index(bank, "auto"), ExactIndex)
    monkeypatch.setattr("twofold.evaluation.neighbours.GRAPH_FROM", 2)
    if pytest.importorskip("faiss"):
        assert isinstance(build_index(bank, "auto"), FaissIndex)
        assert "HNSW" in build_index(bank, "auto").words
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert isinstance(build_index(bank, "auto"), ExactIndex)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install \"twofold\[search\]\""):
        build_index(bank, "flat")


def test_mistakes_are_told(encoder, photos, tmp_path):
    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    save_encoder(other, ResNet(10, 0.125, stem="cifar").eval(), extra={"options": {"views": {"size": 16}}})
    file = twofold.embed(other, photos / "train", tmp_path / "f.npz").file
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    for data, out, options, told in (
        (file, "a", {}, "made by another encoder"),
        (photos / "train", "full", {}, "is no empty folder"),
        (photos / "train", "a", {"names": ["bar/1.png"]}, r"--names bar/1.png: no example .* did you mean 'bar/1"),
        (photos / "train", "a", {"k": 0}, "--k 0"),
        (photos / "train", "a", {"similarity": 1.5}, "--similarity 1.5"),
        (photos / "train", "a", {"outliers": -1}, "--outliers -1"),
        (photos / "train", "a", {"query": photos / "none.png"}, "no such file or folder"),
    ):
        with pytest.raises(UserError, match=told):
            twofold.search(encoder, data, tmp_path / out, **options)
        assert not (tmp_path / "a").exists()
