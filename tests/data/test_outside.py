"""What a table, a manifest or a cell names lies in its own folder, unless `data.outside` allows more."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hub_files import saved_with_paths
from sound_files import RATE, tone, write
from twofold.data import DataConfig, open_source
from twofold.errors import UserError

REFUSED = "lies outside .*--data.outside true"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """data/ with two images and two recordings, beside which lie secret ones."""
    for place, names in ((tmp_path / "data" / "sub", "ab"), (tmp_path, ("secret", "hidden"))):
        place.mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(names):
            Image.fromarray(np.full((8, 8, 3), 90 * i, np.uint8)).save(place / f"{name}.png")
            write(place / f"{name}.wav", tone(i))
    return tmp_path / "data"


def without_images(folder: Path) -> None:
    """Leave recordings alone: a folder with images on top is one of images."""
    for image in (folder / "sub").glob("*.png"):
        image.unlink()


ESCAPES = ("../secret", "{root}/secret", "sub/../../secret", "link/../secret", "./../data/../secret")


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("kind", ["table.csv", "table.jsonl", "list.txt", "sounds.csv", "sounds.jsonl", "wav.scp"])
def test_a_row_that_leads_out_is_refused_by_its_place(folder: Path, kind: str, escape: str) -> None:
    (folder / "link").symlink_to(folder.parent / "data")  # behind a link `..` leads elsewhere
    extension = "png" if kind in ("table.csv", "table.jsonl", "list.txt") else "wav"
    rows = [f"sub/a.{extension}", f"{escape.format(root=folder.parent)}.{extension}"]
    text = {
        "csv": "path\n" + "\n".join(rows) + "\n",
        "jsonl": "".join(json.dumps({"path": row}) + "\n" for row in rows),
        "txt": "\n".join(rows),
        "scp": "".join(f"u{i} {row}\n" for i, row in enumerate(rows)),
    }[kind.rpartition(".")[2]]
    (folder / kind).write_text(text)
    what = folder if kind == "wav.scp" else folder / kind
    if kind == "wav.scp":
        without_images(folder)
    with pytest.raises(UserError, match=REFUSED) as error:
        open_source(what)
    assert f"{folder / kind}, {'u1' if kind == 'wav.scp' else 'row 2'} names" in str(error.value)
    assert len(open_source(what, DataConfig(outside=True))) == 2


def test_fairseqs_root_leads_out_only_where_it_is_allowed(folder: Path) -> None:
    manifest = folder / "train.tsv"
    manifest.write_text(f"{folder.parent}\nsecret.wav\t{RATE}\nhidden.wav\t{RATE}\n")
    with pytest.raises(UserError, match=REFUSED):
        open_source(manifest)
    assert len(open_source(manifest, DataConfig(outside=True))) == 2


def test_names_of_librispeechs_texts_lead_nowhere(folder: Path) -> None:
    chapter = folder / "train-x" / "1" / "2"
    write(chapter / "1-2-0.flac", tone(0))
    write(folder.parent / "stolen.flac", tone(1))
    without_images(folder)
    (chapter / "1-2.trans.txt").write_text("1-2-0 WORDS\n../../../../stolen MORE\n")
    with pytest.raises(UserError, match=REFUSED):
        open_source(folder)


def test_what_lies_inside_is_read_however_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "link").symlink_to(folder / "sub")
    (folder / "made_here.png").symlink_to(folder.parent / "secret.png")  # who made the link may read what it leads to
    (folder.parent / "other_name").symlink_to(folder)
    rows = ["sub/a.png", f"{folder}/sub/b.png", "sub/../sub/a.png", "link/b.png", "made_here.png", "sub/a..png.png"]
    Image.new("RGB", (8, 8)).save(folder / "sub" / "a..png.png")
    (folder / "table.csv").write_text("path\n" + "\n".join(rows) + "\n")
    assert len(open_source(folder / "table.csv")) == 6
    assert len(open_source(folder.parent / "other_name" / "table.csv")) == 6
    monkeypatch.chdir(folder)
    assert len(open_source("table.csv")) == 6
    assert len(open_source("../data/table.csv")) == 6


def test_a_cell_names_files_of_its_own_folder_alone(folder: Path) -> None:
    pytest.importorskip("datasets")
    secret = [str(folder.parent / f"{name}.png") for name in ("secret", "hidden")]
    what = saved_with_paths(folder / "saved", secret)
    with pytest.raises(UserError, match=r"saved\[\d\] names .*" + REFUSED):
        open_source(what)
    assert len(open_source(what, DataConfig(outside=True))) == 2
    with pytest.raises(UserError, match=REFUSED):
        open_source(saved_with_paths(folder / "relative", ["../../secret.png", "../../hidden.png"]))
    own = saved_with_paths(folder / "own", ["a.png", str(folder / "own" / "b.png")])
    for name in "ab":
        Image.new("RGB", (8, 8)).save(own / f"{name}.png")
    assert len(open_source(own)) == 2
    assert open_source(own).read(1).shape == (8, 8, 3)
