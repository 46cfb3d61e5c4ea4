"""Images in the forms that a notebook has them in: pictures, iterators, columns of a table, one alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import twofold
from commands.tiny import OPTIONS, encoder_file, images
from twofold.errors import UserError


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(images(6, seed=1)[0]):
        Image.fromarray(image).save(root / f"{i}.png")
    return sorted(str(path) for path in root.iterdir())


def forms(paths):
    table = pd.DataFrame({"path": paths})
    return {
        "list": paths, "generator": (path for path in paths), "map": map(Image.open, paths), "column": table["path"],
        "table": table, "array": np.array(paths), "column of an array": np.array(paths, dtype=object)[:, None],
        "pictures": [Image.open(path) for path in paths], "mixed": [*paths[:1], *map(Image.open, paths[1:])],
    }  # fmt: skip


@pytest.mark.parametrize("form", list(forms([])))
def test_every_form_gives_the_same_features(file, paths, form):
    embedder = twofold.Embedder.from_run(file)
    expected = embedder.transform(paths)
    np.testing.assert_allclose(embedder.transform(forms(paths)[form]), expected, atol=1e-5)
    encoder = twofold.load(file)
    np.testing.assert_array_equal(encoder.preprocess(forms(paths)[form]), encoder.preprocess(paths))


def test_one_picture_alone(file, paths):
    embedder = twofold.Embedder.from_run(file)
    assert embedder.transform(Image.open(paths[0])).shape == (1, embedder.encoder_.feature_dim)
    pixels = np.asarray(Image.open(paths[0]))
    with pytest.raises(UserError, match=r"one image \[H, W, C\].*give image\[None\] for the one"):
        embedder.transform(pixels)
    assert embedder.transform(pixels[None]).shape[0] == 1
    assert embedder.transform(images(5)[0][:, :, :3, 0][..., None]).shape[0] == 5  # grey, 3 wide


@pytest.mark.parametrize("form", ["generator", "map", "column", "table", "array", "pictures", "mixed"])
def test_prediction_of_every_form(file, paths, form):
    kept = twofold.evaluate(file, images(30, seed=3), keep_classifier=True, baselines=False).kept_in
    expected = twofold.predict(kept, paths).rows
    found = twofold.predict(kept, forms(paths)[form]).rows
    assert [row.label for row in found] == [row.label for row in expected]
    assert [row.probability for row in found] == pytest.approx([row.probability for row in expected], abs=1e-4)
    assert all(row.problem is None for row in found)


def test_pretraining_on_pictures(paths, tmp_path):
    pictures = [Image.open(path) for path in paths] * 3
    run = twofold.pretrain(pictures, tmp_path / "run", report=False, **OPTIONS | {"epochs": 1})
    assert run.encoder_file.exists()
    with pytest.raises(UserError, match=r"a list of 6 paths: write them to a \.txt file"):
        twofold.pretrain(paths, tmp_path / "other")


def test_what_is_refused_says_what_to_give(file, paths):
    embedder = twofold.Embedder.from_run(file)
    table = pd.DataFrame({"path": paths, "label": list("ababab")})
    for use in (embedder.transform, lambda x: twofold.pretrain(x, "nowhere")):
        with pytest.raises(UserError, match=r"columns path, label: give the column of the paths alone"):
            use(table)
    with pytest.raises(UserError, match="there is no image: the list is empty"):
        embedder.transform([])
    with pytest.raises(UserError, match=r"image 1 given as bytes"):
        embedder.transform([Image.open(paths[0]), b"x"])
    with pytest.raises(UserError, match=r"preprocessing 'letterbx': choose one of auto, none, resize, crop, letterbox"):
        twofold.Embedder(file, preprocessing="letterbx").transform(paths)
    with pytest.raises(UserError, match="a run given as NoneType: give its folder"):
        twofold.load(None)


def test_one_name_is_one_name(file, paths, tmp_path):
    place = str(paths[0]).rpartition("/")[0]
    found = twofold.search(file, place, tmp_path / "found", names="0.png", k=50)
    assert [query["query"] for query in found.neighbours] == ["0.png"]
    assert len(found.neighbours[0]["found"]) == 5  # all others, however many were asked for


@pytest.mark.parametrize("text", ["file;class\na.png;c0\n", "", "a,b\n1,2\n"])
def test_a_table_that_names_no_images_is_told_what_one_has(file, tmp_path, text):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(UserError, match="a table of images has commas between its columns, and paths in one called"):
        twofold.embed(file, tmp_path / "table.csv", tmp_path / "e.npz")


def test_a_map_tells_of_pictures_that_are_gone(file, paths, tmp_path):
    place = tmp_path / "photos"
    place.mkdir()
    for path in paths:
        (place / path.rpartition("/")[2]).write_bytes(Path(path).read_bytes())
    twofold.embed(file, place, tmp_path / "e.npz")
    assert "left out" not in twofold.explore(file, tmp_path / "e.npz", tmp_path / "whole.html").text()
    (place / "0.png").unlink()
    told = twofold.explore(file, tmp_path / "e.npz", tmp_path / "part.html").text()
    assert "1 of 6 pictures left out, whose files are not where the data were" in told
