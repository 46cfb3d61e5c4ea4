"""The page of `twofold explore` as text: names stay text, arrays what they were, pictures lie where they are sought."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from twofold.report import map as maps
from twofold.report.explore import Explorer, render_explorer
from twofold.report.map import project
from twofold.report.sheets import ACROSS, draw_sheets, side_for

EVIL = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "two\nlines", "caf\udce9.png", "{{ js }}",
        "a,\"b\".png", "\u2028", "-->"]  # fmt: skip


def page(**changes):
    count = len(EVIL)
    near = np.array([[(i + 1) % count, -1] for i in range(count)])
    given = {
        "title": "<b>&", "lead": "</title>", "method": "t-SNE", "xy": np.linspace(0, 1, 2 * count).reshape(-1, 2),
        "names": EVIL, "neighbours": near, "similarity": np.full((count, 2), 0.12345),
        "columns": {
            "class": np.array(["x", "y", "", "y", "y", "z", "", "x"]), "</script>": np.arange(count) * 1.5,
            "gaps": np.array([1.0, np.nan, np.inf, 4, 5, 6, 7, 8]),
        },
    } | changes  # fmt: skip
    return render_explorer(Explorer(**given))


def payload(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])


def numbers(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def test_names_are_text_and_no_markup():
    text = page()
    data = payload(text)
    assert data["names"] == [
        *EVIL[:2], "two\\nlines", "caf\\udce9.png", *EVIL[4:],
    ]  # fmt: skip
    for name in (*EVIL[:2], "<b>"):
        assert name not in text
    assert "<title>&lt;b&gt;&amp;</title>" in text
    assert text.count("<script") == 3  # the data and two scripts
    text.encode()


def test_only_the_scripts_of_the_package_may_run():
    text = page()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    allowed = dict(each.strip().split(" ", 1) for each in policy.split(";"))
    assert "unsafe-inline" not in allowed["script-src"]
    assert allowed["default-src"] == "'none'"
    assert not re.search(r"https?:", policy)


def test_numbers_and_classes_arrive_as_they_are():
    data = payload(page())
    np.testing.assert_allclose(numbers(data["x"], "<f4"), 0.94 * (2 * np.linspace(0, 1, 16)[::2] - 1), rtol=1e-6)
    assert numbers(data["near"], "<i4").reshape(-1, 2)[:, 1].tolist() == [-1] * 8
    assert set(numbers(data["like"], "<i2").tolist()) == {1234}
    kinds, evil, gaps = data["columns"]
    assert kinds["names"] == ["y", "x", "z"]  # the most frequent first, what is missing none of them
    assert numbers(kinds["codes"], "<i4").tolist() == [1, 0, -1, 0, 0, 2, -1, 1]
    assert evil["name"] == "</script>"
    assert (gaps["low"], gaps["high"]) == (1.0, 8.0)
    assert np.isnan(numbers(gaps["values"], "<f8")).tolist() == [False, True, True] + [False] * 5


def test_pictures_lie_where_the_page_looks_for_them():
    count = ACROSS * ACROSS + 5
    colours = np.random.default_rng(0).integers(0, 8, (count, 3)) * 36

    def picture(i):
        return None if i == 3 else np.full((40, 20, 3), colours[i], np.uint8)

    told = []
    sheets = draw_sheets(picture, count, 16, lambda done, total: told.append((done, total)))
    assert told == [(ACROSS * ACROSS, count), (count, count)]
    pictures = [np.asarray(Image.open(io.BytesIO(file)).convert("RGBA")) for file in sheets.files]
    assert [each.shape for each in pictures] == [(32 * 16, 32 * 16, 4), (16, 32 * 16, 4)]
    for i in (0, 1, 33, 1023, 1024, count - 1):
        row, column = divmod(i % (ACROSS * ACROSS), ACROSS)
        tile = pictures[i // (ACROSS * ACROSS)][row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
        assert np.abs(tile[8, 8, :3].astype(int) - colours[i]).max() < 40
        assert tile[8, 1, 3] == 0  # beside a picture that is higher than wide
    assert pictures[0][:16, 3 * 16 : 4 * 16, 3].max() == 0
    assert draw_sheets(lambda _: np.zeros((8, 8, 1), np.uint8), 3, 96).side == 8


def test_pictures_grow_smaller_with_their_number():
    assert [side_for(n) for n in (1, 1_000, 1_001, 10_000, 10_001, 100_000)] == [96, 96, 64, 64, 32, 32]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_examples_have_a_map(count):
    xy, words = project(np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32))
    assert xy.shape == (count, 2)
    assert np.isfinite(xy).all()
    assert words


@pytest.mark.parametrize("installed", [True, False])
def test_of_many_all_get_a_place_beside_their_like(monkeypatch, installed):
    if installed:
        pytest.importorskip("openTSNE")
    monkeypatch.setattr(maps, "LARGE", 120)
    monkeypatch.setattr(maps.importlib.util, "find_spec", lambda _: object() if installed else None)
    rng = np.random.default_rng(0)
    kinds = np.arange(300) % 3
    points = (np.eye(3, 8)[kinds] * 4 + rng.normal(size=(300, 8)) * 0.3).astype(np.float32)
    xy, words = project(points)
    assert xy.shape == (300, 2)
    assert (xy.min(), xy.max()) == (0, 1)
    far = ((xy[:, None] - xy) ** 2).sum(-1)
    np.fill_diagonal(far, np.inf)
    assert (kinds[far.argmin(1)] == kinds).mean() > 0.95
    assert ("openTSNE (" in words) == installed
    assert ("twofold[explore]" in words) != installed
