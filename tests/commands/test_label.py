"""`twofold label`: rounds of proposals, the filled table taken back by this and other commands, and slips in it."""

from __future__ import annotations

import csv
import json
import re

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
from twofold.evaluation.given_labels import likely_slips


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return encoder_file(tmp_path_factory.mktemp("images") / "encoder.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Thirty pictures in one folder, whose names tell nobody what they are."""
    root = tmp_path_factory.mktemp("data") / "photos"
    root.mkdir()
    for i, image in enumerate(images(30)[0]):
        Image.fromarray(image).save(root / f"{i:02d}.png")
    return root


def rows_of(path):
    return list(csv.DictReader(path.open(newline="")))


def fill(table, answer, out=None):
    """The table as a person gives it back; images of odd number are discs."""
    rows = rows_of(table)
    for row in rows:
        row["label"] = row["label"] or answer(int(re.search(r"(\d+)\.png", row["path"])[1]))
    out = out or table
    with out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return out


def kind(i):
    return "disc" if i % 2 else "bar"


def test_rounds_grow_one_table_that_other_commands_read(encoder, photos, tmp_path, capsys):
    first = tmp_path / "first"
    assert cli.main(["label", str(encoder), str(photos), "--out", str(first), "--count", "8"]) == 0
    told = capsys.readouterr().out
    assert "8 of 30 without a label are proposed" in told.replace("\n", " ")
    assert {path.name for path in first.iterdir()} == {"label.csv", "label.json", "label.png", "label.html"}
    rows = rows_of(first / "label.csv")
    assert list(rows[0]) == ["path", "label", "proposed", "probability", "why"]
    assert all((first / row["path"]).resolve().is_relative_to(photos.resolve()) for row in rows)
    assert {row["label"] + row["proposed"] for row in rows} == {""}
    assert len({row["path"] for row in rows}) == 8
    assert np.asarray(Image.open(first / "label.png")).std() > 20
    fill(first / "label.csv", kind)
    second = twofold.label(encoder, photos, tmp_path / "second", labels=first / "label.csv", count=6, device="cpu")
    again = rows_of(second.table)
    assert [(row["path"], row["label"]) for row in again[:8]] == sorted(
        (row["path"], row["label"]) for row in rows_of(first / "label.csv")
    )  # fmt: skip
    assert [row["why"] for row in again[:8]] == ["labelled"] * 8
    assert not {row["path"] for row in again[8:]} & {row["path"] for row in again[:8]}
    assert {row["proposed"] for row in again[8:]} <= {"bar", "disc"}
    assert all(0.5 <= float(row["probability"]) <= 1 for row in again[8:])
    assert second.known == 8
    assert sum(second.classes.values()) == 8
    assert json.loads((tmp_path / "second" / "label.json").read_text())["proposals"][0]["why"].startswith("typical")
    fill(second.table, kind)
    outside = {"data": {"outside": True}}
    scored = twofold.evaluate(encoder, str(second.table), protocol="knn", k=1, device="cpu", **outside)
    assert scored.metrics["top1"] >= 0
    predicted = twofold.embed(encoder, second.table, tmp_path / "f.npz", device="cpu", **outside)
    held = np.load(predicted.file)
    assert len(held["names"]) == 14
    assert held["classes"].tolist() == ["bar", "disc"]


def test_doubt_is_asked_for_and_needs_labels(encoder, photos, tmp_path):
    with pytest.raises(UserError, match="--by uncertain needs labels of two classes, and none is known"):
        twofold.label(encoder, photos, tmp_path / "a", by="uncertain", device="cpu")
    first = twofold.label(encoder, photos, tmp_path / "first", count=8, page=False, device="cpu")
    assert not (tmp_path / "first" / "label.html").exists()
    fill(first.table, kind)
    found = twofold.label(
        encoder, photos, tmp_path / "b", labels=first.table, by="uncertain", count=5, page=False, device="cpu"
    )
    assert all(each.why.startswith("uncertain: ") for each in found.proposals)
    assert "most in doubt" in found.text()


def test_own_labels_count_unless_told_otherwise(encoder, photos, tmp_path):
    table = photos / "partly.csv"
    lines = [f"{i:02d}.png,{kind(i) if i < 10 else ''}" for i in range(30)]
    table.write_text("\n".join(["path,label", *lines]) + "\n")
    found = twofold.label(encoder, table, tmp_path / "a", page=False, device="cpu")
    assert found.known == 10
    assert len(found.proposals) == 20
    apart = twofold.label(encoder, table, tmp_path / "b", own_labels=False, page=False, device="cpu")
    assert (apart.known, len(apart.proposals)) == (0, 30)
    better = tmp_path / "better.csv"
    better.write_text("name,class\n00.png,other\n")
    above = twofold.label(encoder, table, tmp_path / "c", labels=[better], page=False, device="cpu")
    assert above.classes == {"disc": 5, "bar": 4, "other": 1}
    table.write_text("\n".join(["path,label", *(f"{i:02d}.png,{kind(i)}" for i in range(30))]) + "\n")
    with pytest.raises(UserError, match=r"all 30 examples have a label already.*--own_labels false"):
        twofold.label(encoder, table, tmp_path / "d", page=False, device="cpu")
    table.unlink()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,label\n00.png,disc\nnone.png,disc\n", r"row 3: none.png is none of the examples"),
        ("path,label\n01.pgn,disc\n", r"row 2: 01.pgn is none of the examples; did you mean '0"),
        ("path,label\n00.png,disc\n01.png,bar\n00.png,bar\n", r"row 4: 00.png is labelled bar, and disc in .*row 2"),
        ("path,label\n00.png,\n", "no row has a label"),
        ("path,label\n", "no row|no column"),
        ("path;label\n00.png;disc\n", "separated by commas"),
        ("path,what\n00.png,disc\n", "no column of labels"),
        ("file_of_mine,label\n00.png,disc\n", "no column of paths"),
        ("path,label\n,disc\n", "an empty path is none"),
    ],
)
def test_slips_in_a_table_are_told_with_their_row(encoder, photos, tmp_path, text, told):
    table = tmp_path / "filled.csv"
    table.write_text(text)
    with pytest.raises(UserError, match=told):
        twofold.label(encoder, photos, tmp_path / "out", labels=table, page=False, device="cpu")
    assert not (tmp_path / "out").exists()


def test_what_is_said_twice_alike_is_no_slip_and_what_is_left_empty_is_told(encoder, photos, tmp_path):
    table = tmp_path / "filled.csv"
    lines = [f"{i:02d}.png,{kind(i)}" for i in range(12)]
    table.write_text("\n".join(["path,label", *lines, lines[0], "20.png,", "13.png,Disc", "15.png,bra"]) + "\n")
    found = twofold.label(encoder, photos, tmp_path / "out", labels=table, page=False, count=3, device="cpu")
    assert found.known == 14
    assert found.notes == (
        "1 row(s) have no label yet", "Disc (1) and disc (6) are two classes: mend the table if one is meant",
    )  # fmt: skip
    assert "look at this: Disc (1)" in found.text()


def test_what_was_left_empty_is_not_proposed_again(encoder, photos, tmp_path):
    first = twofold.label(encoder, photos, tmp_path / "first", count=10, page=False, device="cpu")
    asked = [each.path.split("/")[-1] for each in first.proposals]
    fill(first.table, lambda i: kind(i) if f"{i:02d}.png" in asked[:6] else "")
    second = twofold.label(encoder, photos, tmp_path / "second", labels=first.table, count=12, device="cpu")
    assert "4 row(s) were left empty and are not proposed again" in second.text()
    assert (second.known, second.left_empty, second.unlabelled) == (6, 4, 24)
    assert not {each.path.split("/")[-1] for each in second.proposals} & set(asked)
    assert len(second.proposals) == 12
    last = rows_of(second.table)[-4:]
    assert {row["path"].split("/")[-1] for row in last} == set(asked[6:])
    assert {(row["label"], row["why"]) for row in last} == {("", "left empty before")}
    assert "left empty before" in (tmp_path / "second" / "label.html").read_text()
    fill(second.table, lambda i: "disc" if f"{i:02d}.png" == asked[9] else "")  # the last one after all
    third = twofold.label(
        encoder, photos, tmp_path / "third", labels=[first.table, second.table], by="uncertain", count=99,
        page=False, device="cpu",
    )  # fmt: skip
    assert (third.known, third.left_empty, len(third.proposals)) == (7, 15, 8)
    with pytest.raises(UserError, match="7 examples have a label, the other 23 were proposed before and left empty"):
        twofold.label(encoder, photos, tmp_path / "fourth", labels=third.table, page=False, device="cpu")


def test_a_table_of_all_files_with_some_labels_leaves_the_others_to_propose(encoder, photos, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("\n".join(["path,label", *(f"{i:02d}.png,{kind(i) if i < 6 else ''}" for i in range(30))]))
    found = twofold.label(encoder, photos, tmp_path / "out", labels=table, count=5, page=False, device="cpu")
    assert (len(found.proposals), found.left_empty) == (5, 0)
    assert "24 row(s) have no label yet" in found.notes


def test_files_of_any_name_are_found_again(encoder, tmp_path):
    folder = tmp_path / "Bilder ü"
    names = ["a#1.png", "b,c.png", 'd"e".png', "#.png", "f%20g.png", "-h.png", "i;j.png", "k 'l'.png"]
    folder.mkdir()
    for name, image in zip(names, images(8)[0], strict=True):
        Image.fromarray(image).save(folder / name)
    first = twofold.label(encoder, folder, tmp_path / "first", count=8, page=False, device="cpu")
    rows = rows_of(first.table)
    assert {(tmp_path / "first" / row["path"]).resolve() for row in rows} == {folder / name for name in names}
    table = tmp_path / "first" / "label.csv"
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"label": "one" if i % 2 else "two"} for i, row in enumerate(rows[:7]))
    second = twofold.label(encoder, folder, tmp_path / "second", labels=table, count=8, page=False, device="cpu")
    assert (second.known, len(second.proposals)) == (7, 1)
    held = twofold.embed(encoder, second.table, tmp_path / "f.npz", device="cpu", data={"outside": True})
    assert held.shape[0] == 8  # each row leads to its file


def test_mistakes_in_tables_are_told_before_features_are_made(encoder, photos, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("00.png\n")
    (tmp_path / "empty.csv").write_text("path,label\n00.png,\n")
    for name in ("notes.txt", "empty.csv"):
        with pytest.raises(UserError, match=f"--labels .*{name}"):
            twofold.label(encoder, photos, tmp_path / "out", labels=tmp_path / name, device="cpu")
    assert "features" not in capsys.readouterr().out


def test_names_that_may_be_one_class():
    def pairs(**counts):
        return [note.split(" are ")[0] for note in likely_slips(counts)]

    assert pairs(elephant=20, elefant=2, tiger=9) == ["elefant (2) and elephant (20)"]
    assert pairs(traffic_light=5, **{"Traffic light": 5}) in (
        ["Traffic light (5) and traffic_light (5)"], ["traffic_light (5) and Traffic light (5)"],
    )  # fmt: skip
    assert pairs(horse=10, house=9) == []  # both are common
    assert pairs(cat=10, car=1) == []  # too short to tell
    assert pairs(class10=40, class11=1) == []


def test_too_many_at_once_are_told(encoder, tmp_path):
    x = images(130)[0]
    many = twofold.label(encoder, x, tmp_path / "many", count=30, page=False, device="cpu")
    assert "30 labels for 130 examples leave groups of fewer than 10" in many.text()
    assert twofold.label(encoder, x, tmp_path / "few", count=13, page=False, device="cpu").notes == ()


def test_recordings_and_files_of_features_and_mistakes(encoder, photos, tmp_path):
    torch.manual_seed(0)
    net = SpeechEncoder(RATE, 20, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="none", dropout=0.0)
    save_encoder(tmp_path / "encoder.safetensors", net.eval())
    folder = speech_folder(tmp_path / "clips", 2, 3)
    heard = twofold.label(
        tmp_path / "encoder.safetensors", folder, tmp_path / "speech", own_labels=False, count=2, device="cpu"
    )
    assert len(heard.proposals) == 2
    assert "audio/mpeg" in (tmp_path / "speech" / "label.html").read_text()
    file = twofold.embed(encoder, photos, tmp_path / "f.npz", device="cpu").file
    found = twofold.label(encoder, file, tmp_path / "out", count=8, page=False, device="cpu")
    direct = twofold.label(encoder, photos, tmp_path / "direct", count=8, page=False, device="cpu")
    assert [each.path for each in found.proposals] == [each.path for each in direct.proposals]
    for options, told in (({"count": 0}, "--count 0"), ({}, "is no empty folder")):
        with pytest.raises(UserError, match=told):
            twofold.label(encoder, photos, tmp_path / "out", device="cpu", **options)
