"""One page to explore a representation: a map to zoom, search, colour and draw lassos on, that opens without a network.

The map is drawn by regl-scatterplot (MIT), which lies beside this file as `scatterplot.js`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.files import write_atomically
from twofold.report.sheets import ACROSS, Sheets
from twofold.text import printable


@dataclass(frozen=True)
class Explorer:
    """What the page holds, of n examples.

    Attributes:
        title, lead, method: the heading, what the page is about, and how the map was made, in words.
        xy: [n, 2] in [0, 1].
        names: [n], told apart by them.
        neighbours: [n, k] places of the nearest, the nearest first; -1 for none.
        similarity: [n, k] their cosines.
        columns: [n] each, to colour by and to be told: text, of which "" is missing, or numbers, of which nan is. The
            first is the one that the page begins with.
        label: the column whose values an exported table has as labels; None for none.
        sheets: pictures; None for a page without.
        sounds: by example a compressed recording, all of one kind; those that are left out are linked to.
        sound_type: that kind, such as ``audio/mpeg``.
        audio: whether the examples are recordings.
        links: where the files lie that the names are relative to, as an address relative to the page; None where
            examples are no files.
        odd_links: by example, addresses that do not follow from `links` and the name; None for those of no file.
        where: what to do with an exported table, in words.
    """

    title: str
    lead: str
    method: str
    xy: NDArray[np.float32]
    names: Sequence[str]
    neighbours: NDArray[np.int64]
    similarity: NDArray[np.float32]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    label: str | None = None
    sheets: Sheets | None = None
    sounds: Mapping[int, bytes] = field(default_factory=dict)
    sound_type: str = ""
    audio: bool = False
    links: str | None = None
    odd_links: Mapping[int, str | None] = field(default_factory=dict)
    where: str = ""


def shown_name(name: str) -> str:
    """A name in one line of characters that can be shown."""
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


def write_explorer(path: Path, explorer: Explorer) -> int:
    """Write the page to `path`, whole or not at all; returns its bytes."""
    page = render_explorer(explorer).encode()
    write_atomically(path, lambda file: file.write(page))
    return len(page)


def render_explorer(explorer: Explorer) -> str:
    """The page as HTML: style, scripts, data, pictures and sounds inside, nothing to be fetched.

    Only the two scripts of this package run, by their digests; what comes with the data is text in JSON.
    """
    library, script = _resource("scatterplot.js"), _resource("explore.js")
    fields = {
        "title": html.escape(printable(explorer.title)),
        "lead": html.escape(printable(explorer.lead)),
        "method": html.escape(printable(explorer.method)),
        "hashes": " ".join(_digest(each) for each in (library, script)),
        "css": _resource("explore.css"),
        "data": _in_script(_payload(explorer)),
        "blobs": "\n".join(_blobs(explorer)),
        "library": library,
        "js": script,
    }
    parts = _resource("explore.html").split("{{ ")
    page = [parts[0]]
    for part in parts[1:]:  # each field once, so that nothing in the data is taken for a field
        name, rest = part.split(" }}", 1)
        page += [fields[name], rest]
    return "".join(page)


def _resource(name: str) -> str:
    return files("twofold.report").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _in_script(value: Any) -> str:
    """JSON that no parser of HTML takes for the end of a script, or for markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _packed(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()


def _payload(explorer: Explorer) -> dict[str, Any]:
    """What the script reads; arrays as base64 of little-endian numbers."""
    xy = 0.94 * (2 * explorer.xy - 1)  # the drawing's coordinates, with a margin
    return {
        "names": [shown_name(name) for name in explorer.names],
        "x": _packed(xy[:, 0], "<f4"),
        "y": _packed(xy[:, 1], "<f4"),
        "k": explorer.neighbours.shape[1],
        "near": _packed(explorer.neighbours, "<i4"),
        "like": _packed(np.round(np.clip(explorer.similarity, -1, 1) * 1e4), "<i2"),
        "columns": [_column(name, values) for name, values in explorer.columns.items()],
        "label": explorer.label,
        "sheets": None if explorer.sheets is None else {"side": explorer.sheets.side, "across": ACROSS},
        "sounds": explorer.sound_type if explorer.sounds else None,
        "audio": explorer.audio,
        "links": explorer.links,
        "odd": {str(place): link for place, link in explorer.odd_links.items()},
        "where": printable(explorer.where),
    }


def _column(name: str, values: NDArray[Any]) -> dict[str, Any]:
    """Numbers with their range, or different texts, the most frequent first, and the place of each example's."""
    title = printable(str(name))
    if values.dtype.kind in "iufb":
        numbers = values.astype(np.float64)
        numbers[~np.isfinite(numbers)] = np.nan
        known = numbers[~np.isnan(numbers)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
        return {"name": title, "kind": "number", "values": _packed(numbers, "<f8"), "low": low, "high": high}
    texts = np.array([printable(str(value)) for value in values.tolist()], dtype=np.str_)
    different, codes, counts = np.unique(texts, return_inverse=True, return_counts=True)
    order = np.lexsort((different, -counts))
    order = order[different[order] != ""]
    place = np.full(len(different), -1)
    place[order] = np.arange(len(order))
    return {"name": title, "kind": "text", "names": different[order].tolist(), "codes": _packed(place[codes], "<i4")}


def _blobs(explorer: Explorer) -> list[str]:
    """Sheets and sounds, each in an element of its own, which a browser keeps as text until it is asked for."""
    held = {f"sheet{i}": file for i, file in enumerate(explorer.sheets.files)} if explorer.sheets else {}
    held |= {f"sound{i}": sound for i, sound in explorer.sounds.items()}
    return [
        f'<script type="text/plain" id="{name}">{base64.b64encode(content).decode()}</script>'
        for name, content in held.items()
    ]
