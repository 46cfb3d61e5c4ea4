"""The page of `twofold explore` in a real browser: drawing, pointer, search, lasso, export, keys, themes, a phone."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import shutil
import wave

import numpy as np
import pytest

from twofold.report.explore import Explorer, render_explorer
from twofold.report.sheets import draw_sheets

sync = pytest.importorskip("playwright.sync_api")
BROWSER = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium (Debian: apt-get install chromium)")
EVIL = "<img src=x onerror=document.title='bad'>.png"
SIDE = 8  # examples stand on a grid of 8 x 8, the left half of one class, the right half of another


def tone():
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((np.sin(np.arange(2000) / 4) * 9000).astype("<i2").tobytes())
    return buffer.getvalue()


def page():
    x, y = (each.ravel() for each in np.meshgrid(np.arange(SIDE), np.arange(SIDE)))
    count, shades = len(x), np.random.default_rng(0).integers(60, 250, (SIDE * SIDE, 3))
    names = [f"{'left' if a < SIDE // 2 else 'right'}/{a}-{b}.wav" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    names[9] = EVIL
    classes = np.array(["left" if a < SIDE // 2 else "right" for a in x])
    classes[10] = ""
    near = np.array([[(i + 1) % count, (i + SIDE) % count] for i in range(count)])
    sheets = draw_sheets(lambda i: np.full((12, 12, 3), shades[i], np.uint8), count, 12)
    return render_explorer(Explorer(
        "Grid", "64 examples", "a ruler", np.stack([x, y], 1) / (SIDE - 1), names, near, np.full((count, 2), 0.5),
        {"class": classes, "height": np.where(y == 7, np.nan, y)}, "class", sheets, {0: tone()}, "audio/wav", True,
        "../data", {1: None}, "Save it there.",
    ))  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explore.html"
    path.write_text(page())
    return path


class Seen:
    """The page, opened from disk, with all that went wrong in it, or was fetched."""

    def __init__(self, browser, file, **options):
        settings = {"viewport": {"width": 1200, "height": 800}, "color_scheme": "light"} | options
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.wrong, self.fetched = [], []
        self.page.on("console", self._told)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready=true]", timeout=30_000)
        self.text = self.page.inner_text

    def _told(self, message):
        """What the console says, but for the remarks of the software that stands in for a graphics card."""
        if message.type in ("error", "warning") and "GL Driver Message" not in message.text:
            self.wrong.append(message.text)

    def at(self, column, row):
        """Where a point of the grid lies in the window."""
        box = self.page.locator("#stage").bounding_box()
        half = min(box["width"], box["height"]) / 2
        unit = [0.94 * (2 * each / (SIDE - 1) - 1) for each in (column, row)]
        return box["x"] + box["width"] / 2 + half * unit[0], box["y"] + box["height"] / 2 - half * unit[1]

    def click(self, column, row):
        """A click as of a hand, which is at its place before it presses."""
        self.page.mouse.move(*self.at(column, row))
        self.page.wait_for_timeout(100)
        self.page.mouse.click(*self.at(column, row))

    def around(self, *corners):
        """A lasso through points of the grid, slow enough for the library to see every corner."""
        self.page.mouse.move(*self.at(*corners[0]))
        self.page.wait_for_timeout(100)
        self.page.mouse.down()
        for corner in (*corners[1:], corners[0]):
            self.page.mouse.move(*self.at(*corner), steps=6)
            self.page.wait_for_timeout(40)
        self.page.mouse.up()
        self.page.wait_for_function("document.getElementById('count').textContent !== '0'")

    def finger(self, kind, x, y, number=1):
        """A touch, or its move or end."""
        self.page.evaluate(
            """([kind, x, y, id]) => document.getElementById('canvas').dispatchEvent(new PointerEvent(kind,
            {bubbles: true, clientX: x, clientY: y, pointerType: 'touch', pointerId: id}))""",
            [kind, x, y, number],
        )

    def colour(self, column, row):
        """The pixel there."""
        from PIL import Image

        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        return picture.getpixel(tuple(round(each) for each in self.at(column, row)))


@pytest.fixture
def seen(browser, file):
    made = Seen(browser, file)
    yield made
    assert made.wrong == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in made.fetched)
    assert [url for url in made.fetched if url.startswith("file:")] == [file.as_uri()]
    assert made.page.title() == "Grid"
    made.context.close()


def test_points_are_drawn_in_the_colours_of_their_classes(seen):
    left, right = seen.colour(1, 4), seen.colour(6, 4)
    key = seen.page.evaluate("""[...document.querySelectorAll('#legend .key')].map((k) => [k.children[1].textContent,
        k.children[2].textContent, getComputedStyle(k.children[0]).backgroundColor])""")
    assert [(name, size) for name, size, _ in key] == [("right", "32"), ("left", "31"), ("(none)", "1")]
    for pixel, (_, _, wanted) in ((right, key[0]), (left, key[1])):
        told = [int(each) for each in wanted[4:-1].split(",")]
        assert np.abs(np.array(pixel) - told).max() < 60, (pixel, wanted)
    before = seen.colour(6, 4)
    seen.page.click("#legend .key >> nth=0")  # hides the class on the right
    seen.page.wait_for_timeout(300)
    paper = seen.colour(6, 4)
    assert np.abs(np.array(paper) - before).max() > 60
    assert np.abs(np.array(seen.colour(1, 4)) - left).max() < 60
    seen.page.click("text=Hide all")
    seen.page.wait_for_timeout(300)
    assert seen.colour(1, 4) == paper
    seen.page.click("text=Show all")
    seen.page.wait_for_timeout(300)
    assert np.abs(np.array(seen.colour(6, 4)) - before).max() < 60
    seen.page.select_option("#colour", label="height")
    seen.page.wait_for_timeout(300)
    assert [line for line in seen.text("#legend").split("\n") if line] == ["0", "6", "grey: 8 without a value"]
    assert np.abs(np.array(seen.colour(0, 0)) - seen.colour(0, 6)).max() > 60


def test_hover_shows_the_picture_and_the_name_as_text(seen):
    seen.page.mouse.move(*seen.at(1, 1))  # example 9
    seen.page.wait_for_selector("#tip:not([hidden])")
    assert seen.text("#tip").split("\n")[0] == EVIL
    style = seen.page.evaluate("getComputedStyle(document.querySelector('#tip .picture')).backgroundPosition")
    assert style == f"{-9 * 112}px 0px"
    assert seen.page.locator("#tip img").count() == 0
    seen.page.mouse.move(5, 5)
    seen.page.wait_for_selector("#tip", state="hidden")


def test_click_shows_neighbours_that_lead_on(seen):
    seen.click(3, 0)
    seen.page.wait_for_selector("#detail:not([hidden])")
    assert seen.text("#h-detail") == "left/3-0.wav"
    assert seen.page.get_attribute("#open", "href") == "../data/left/3-0.wav"
    buttons = seen.page.locator("#neighbours button")
    assert [buttons.nth(i).get_attribute("aria-label") for i in range(2)] == [
        "right/4-0.wav, right, 0.50", "left/3-1.wav, left, 0.50",
    ]  # fmt: skip
    buttons.nth(0).click()
    assert seen.text("#h-detail") == "right/4-0.wav"
    seen.page.click("#with")
    assert seen.text("#count") == "3"


def test_recordings_are_played_from_the_page_or_from_their_file(seen):
    seen.page.fill("#search", "left/0-0.wav")
    seen.page.click("#found button")
    assert seen.page.get_attribute("audio", "src").startswith("data:audio/wav;base64,")
    assert seen.page.evaluate("""new Promise((done) => { const a = document.querySelector('audio'); a.preload = 'auto';
        a.onloadedmetadata = () => done(a.duration); a.onerror = () => done(-1); a.load(); })""") == pytest.approx(0.25)
    seen.page.fill("#search", "left/2-0.wav")
    seen.page.click("#found button")
    assert seen.page.get_attribute("audio", "src") == "../data/left/2-0.wav"
    seen.page.fill("#search", "left/1-0.wav")  # of no file
    seen.page.click("#found button")
    assert seen.page.locator("audio").count() == 0
    assert seen.page.locator("#open").is_hidden()


def test_search_finds_by_part_of_a_name(seen):
    seen.page.fill("#search", "RIGHT/7")
    assert seen.text("#found-count") == "8 found"
    assert seen.text("#found button >> nth=2") == "right/7-2.wav"
    seen.page.click("#choose-found")
    assert seen.text("#count") == "8"
    seen.page.fill("#search", "nothing like it")
    assert seen.text("#found-count") == "0 found"
    assert seen.page.locator("#choose-found").is_hidden()
    seen.page.fill("#search", "")
    seen.page.click("#more")
    assert seen.page.locator("#found button").count() == 50
    seen.page.click("#more")
    assert seen.page.locator("#found button").count() == 64


def test_a_lasso_selects_what_lies_in_it_and_the_table_has_it(seen, tmp_path):
    seen.page.click("#lasso")
    seen.around((0.5, 0.5), (2.5, 0.5), (2.5, 2.5), (0.5, 2.5))
    assert seen.text("#count") == "4"
    seen.click(6, 6)  # a click asks for one, and leaves the selection alone
    assert seen.text("#h-detail") == "right/6-6.wav"
    assert seen.text("#count") == "4"
    with seen.page.expect_download() as caught:
        seen.page.click("#csv")
    caught.value.save_as(tmp_path / "own.csv")
    rows = list(csv.DictReader((tmp_path / "own.csv").open(newline="")))
    assert [row["path"] for row in rows] == [EVIL, "left/2-1.wav", "left/1-2.wav", "left/2-2.wav"]
    assert [row["label"] for row in rows] == ["left", "", "left", "left"]
    seen.page.fill("#label", 'odd, "one"')
    with seen.page.expect_download() as caught:
        seen.page.click("#csv")
    caught.value.save_as(tmp_path / "given.csv")
    assert {row["label"] for row in csv.DictReader((tmp_path / "given.csv").open(newline=""))} == {'odd, "one"'}
    with seen.page.expect_download() as caught:
        seen.page.click("#txt")
    caught.value.save_as(tmp_path / "list.txt")
    assert (tmp_path / "list.txt").read_text().split("\n") == [*(row["path"] for row in rows), ""]
    seen.page.keyboard.down("Control")
    seen.around((5.5, 0.5), (7.4, 0.5), (7.4, 1.5), (5.5, 1.5))
    seen.page.wait_for_function("document.getElementById('count').textContent === '6'", timeout=5000)
    seen.page.keyboard.up("Control")
    seen.page.keyboard.down("Alt")
    seen.around((0.5, 0.5), (2.5, 0.5), (2.5, 1.5), (0.5, 1.5))
    seen.page.wait_for_function("document.getElementById('count').textContent === '4'", timeout=5000)
    seen.page.keyboard.up("Alt")
    seen.page.click("#clear")
    assert seen.text("#count") == "0"


def test_keys_reach_everything(seen):
    seen.page.focus("#stage")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        seen.page.keyboard.press(key)  # to the first, to its right, up
    assert seen.text("#status") == f"{EVIL}, left"
    seen.page.keyboard.press("ArrowRight")
    seen.page.keyboard.press("Enter")
    assert seen.text("#h-detail") == "left/2-1.wav"
    assert "2 neighbours are listed" in seen.text("#status")
    seen.page.focus("#stage")
    seen.page.keyboard.press(" ")
    assert seen.text("#count") == "1"
    seen.page.keyboard.press("ArrowDown")
    seen.page.keyboard.press("ArrowDown")
    assert seen.text("#status") == "No further example in this direction"
    place = "+document.querySelector('#rings circle').getAttribute('cx')"
    before = seen.page.evaluate(place)
    seen.page.keyboard.press("+")
    seen.page.wait_for_function(f"Math.abs({place} - {before}) > 5", timeout=5000)
    seen.page.keyboard.press("0")
    seen.page.wait_for_function(f"Math.abs({place} - {before}) < 1", timeout=5000)
    bare = """[...document.querySelectorAll('button, input, select, a, [tabindex]')].filter((e) => e.offsetParent &&
        !(e.ariaLabel || e.textContent.trim() || e.labels?.length || e.title || e.placeholder)).length"""
    assert seen.page.evaluate(bare) == 0


def test_light_and_dark(browser, file):
    papers = []
    for scheme in ("light", "dark"):
        seen = Seen(browser, file, color_scheme=scheme)
        paper = "getComputedStyle(document.body).backgroundColor"
        papers.append(seen.page.evaluate(paper))
        for told in ("light", "dark", "auto"):
            seen.page.click("#theme")
            assert seen.text("#theme") == f"Theme: {told}"
            papers.append(seen.page.evaluate(paper))
        assert seen.wrong == []
        seen.context.close()
    light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 27)"
    assert papers == [light, light, dark, light, dark, light, dark, dark]


def test_a_phone_has_all_of_it_and_scrolls_one_way_alone(browser, file):
    seen = Seen(browser, file, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    seen.page.touchscreen.tap(*seen.at(3, 0))
    seen.page.wait_for_selector("#detail:not([hidden])")
    assert seen.text("#h-detail") == "left/3-0.wav"
    seen.page.click("#lasso")
    corners = [seen.at(*corner) for corner in ((0.5, 0.5), (2.5, 0.5), (2.5, 2.5), (0.5, 2.5), (0.5, 0.5))]
    for kind, (x, y) in [("pointerdown", corners[0]), *(("pointermove", each) for each in path(corners)),
                         ("pointerup", corners[0])]:  # fmt: skip
        seen.finger(kind, x, y)
        seen.page.wait_for_timeout(100 if kind == "pointerdown" else 20)
    seen.page.wait_for_function("document.getElementById('many').textContent === '4 selected'", timeout=5000)
    seen.page.click("#move")
    wide = "((e) => e('.here') - e('.near'))((e) => document.querySelector(`#rings ${e}`).cx.baseVal.value)"
    before = abs(seen.page.evaluate(wide))
    (left, y), (right, _) = seen.at(2, 4), seen.at(5, 4)
    for kind, x, number in (("pointerdown", left, 1), ("pointerdown", right, 2), ("pointermove", right + 60, 2),
                            ("pointerup", left, 1), ("pointerup", right + 60, 2)):  # fmt: skip
        seen.finger(kind, x, y, number)
    seen.page.wait_for_function(f"Math.abs({wide}) > {before} * 1.2", timeout=5000)
    assert seen.wrong == []
    seen.context.close()


def path(corners):
    """Points along a line through corners."""
    return [(a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t)
            for a, b in itertools.pairwise(corners) for t in (0.25, 0.5, 0.75, 1)]  # fmt: skip


def test_without_webgl_all_but_the_map_works(browser, file):
    context = browser.new_context()
    context.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page = context.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready=true]")
    assert "needs WebGL" in page.inner_text("#broken")
    page.fill("#search", "left/3-0")
    page.click("#found button")
    assert page.inner_text("#h-detail") == "left/3-0.wav"
    page.click("#toggle")
    assert page.inner_text("#count") == "1"
    context.close()


def test_the_check_itself_can_fail(browser, tmp_path):
    spoiled = page().replace("<main>", '<main><img src="https://example.invalid/x.png">')
    (tmp_path / "bad.html").write_text(spoiled)
    seen = Seen(browser, tmp_path / "bad.html")
    assert any("Content Security Policy" in each for each in seen.wrong)
    seen.context.close()
    assert base64.b64encode(tone()).decode() in spoiled
