"""The page in a real browser: nothing fetched, nothing logged, and the map and curves answer the pointer."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_example import example

from twofold.report import Report, render

BROWSER = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--window-size=1280,1000", "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom",
]  # fmt: skip
PROBE = """
<script>
addEventListener("load", () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const tell = (target, type, x, y) => target.dispatchEvent(
    new PointerEvent(type, { bubbles: true, clientX: x, clientY: y, pointerType: "mouse" }));
  const centre = (element) => {
    const box = element.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const out = { title: document.title };
  out.fetched = performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 60));
  out.broken = all("img").filter((img) => !img.naturalWidth).length;
  out.sideways = document.documentElement.scrollWidth - innerWidth;
  const svg = document.querySelector(".points"), tip = document.querySelector(".stage .tip");
  const marks = all(".points use");
  out.marks = marks.filter((mark) => mark.getBoundingClientRect().width > 0).length;
  out.hovers = [];
  if (svg) for (const i of [0, 17, 120]) {
    tell(svg, "pointermove", ...centre(marks[i]));
    const at = marks.findIndex((mark) => mark.classList.contains("here"));
    const style = getComputedStyle(tip.querySelector(".picture"));
    const close = centre(marks[at]).every((v, axis) => Math.abs(v - centre(marks[i])[axis]) < 2);
    out.hovers.push({ at, close, shown: !tip.hidden, words: tip.textContent.trim(), label: marks[at].dataset.l,
      position: style.backgroundPosition, picture: style.backgroundImage.startsWith("url(\\"data:image/png") });
  }
  if (svg) tell(svg, "pointerleave", 0, 0);
  out.left = tip?.hidden;
  const toggles = all("[aria-pressed]"), visible = () => marks.filter((m) => m.getBoundingClientRect().width > 0);
  if (toggles.length) {
    const own = centre(marks.find((mark) => mark.dataset.l === toggles[2].dataset.l));
    toggles[2].click();
    tell(svg, "pointermove", ...own);
    out.under = tip.hidden ? null : tip.textContent.trim();
    tell(svg, "pointerleave", 0, 0);
    out.pressed = toggles[2].getAttribute("aria-pressed");
    out.without = [...new Set(visible().map((m) => m.dataset.l))];
    document.querySelector("[data-all=false]").click();
    out.none = visible().length;
    document.querySelector("[data-all=true]").click();
    out.again = visible().length;
    tell(svg, "pointermove", ...own);
    out.back = tip.textContent.trim();
  }
  const plot = all("[data-hover]")[1];
  if (plot) {
    tell(plot, "pointermove", ...centre(plot));
    out.plot = plot.querySelector(".tip").innerText;
    plot.focus();
    plot.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
    out.next = plot.querySelector(".tip").innerText;
  }
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify(out);
  document.body.replaceChildren(result);
});
</script>
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium (Debian: apt-get install chromium)")


def open_in_browser(page: str, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What the probe saw, and what the browser logged about the page."""
    assert BROWSER is not None
    file = folder / "page.html"
    file.write_text(page.replace("</body>", PROBE + "</body>"))
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "HOME": str(folder)}
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>', run.stdout, re.DOTALL)
    assert found is not None, run.stdout[-2000:]
    text = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return json.loads(text), [line for line in run.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    return open_in_browser(render(example()), tmp_path_factory.mktemp("browser"))


def test_nothing_is_fetched_and_nothing_goes_wrong(seen: tuple[dict[str, Any], list[str]]) -> None:
    probe, console = seen
    assert console == []
    assert all(name.startswith("data:") for name in probe["fetched"])
    assert probe["title"].startswith("Digits </script>")
    assert probe["broken"] == 0
    assert probe["sideways"] <= 0


def test_every_point_is_drawn_and_shows_its_image(seen: tuple[dict[str, Any], list[str]]) -> None:
    probe, _ = seen
    assert probe["marks"] == 300
    columns = 18  # the least whole number whose square holds 300
    for hover in probe["hovers"]:
        assert hover["shown"]
        assert hover["picture"]
        assert hover["close"]
        assert hover["words"] == hover["label"]
        row, column = divmod(hover["at"], columns)
        assert [float(v) for v in re.findall(r"-?\d+", hover["position"])] == [-112.0 * column, -112.0 * row]
    assert probe["left"] is True


def test_classes_can_be_hidden_and_shown(seen: tuple[dict[str, Any], list[str]]) -> None:
    probe, _ = seen
    assert probe["pressed"] == "false"
    assert probe["under"] != "2"  # what is hidden does not answer the pointer
    assert probe["back"] == "2"
    assert sorted(probe["without"]) == [str(i) for i in range(10) if i != 2]
    assert (probe["none"], probe["again"]) == (0, 300)


def test_curves_tell_their_numbers_to_pointer_and_keyboard(seen: tuple[dict[str, Any], list[str]]) -> None:
    probe, _ = seen
    epoch, loss, chance = probe["plot"].split("\n")
    assert epoch.startswith("epoch ")
    assert float(loss.removeprefix("loss ")) > 1
    assert chance == "chance level 6.236"
    assert float(probe["next"].split("\n")[0].removeprefix("epoch ")) == float(epoch.removeprefix("epoch ")) + 0.5


def test_a_page_of_little_works_too_and_the_check_itself_can_fail(tmp_path: Path) -> None:
    page = render(Report("little", metrics=[{"step": 1, "loss": 1.0}]))
    probe, console = open_in_browser(page, tmp_path)
    assert (probe["title"], console) == ("little", [])
    spoiled = page.replace("<main>", '<main><img src="https://example.invalid/x.png">')
    probe, console = open_in_browser(spoiled, tmp_path)
    assert probe["broken"] == 1
    assert any("Content Security Policy" in line for line in console)
