"""`twofold search`: neighbours of files or names, near-duplicates, leaks between splits, and outliers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import ArgumentParser
from numpy.typing import NDArray
from torch import nn

from twofold.commands.arguments import EITHER, PATH, add_data, new_parser, require_out
from twofold.commands.shelf import Shelf, Shelves
from twofold.data import DataConfig
from twofold.devices import choose_device
from twofold.encoders.load import encoder_path, load
from twofold.encoders.weights import read_header
from twofold.errors import UserError, suggest
from twofold.evaluation.features import Pixels
from twofold.evaluation.neighbours import Index, Kind, build_index
from twofold.evaluation.protocols.base import BatchOptions, HeadOptions, PreprocessingOptions
from twofold.evaluation.rows import write_rows
from twofold.evaluation.searching import Group, Hit, duplicates, leaks, neighbours, outliers
from twofold.files import check_out, write_atomically
from twofold.options import OptionsParser, add_options, merge, refuse_unused
from twofold.report.contact import MOST_ACROSS, MOST_ROWS, Shot, Strip, write_sheet
from twofold.results import in_json, unread
from twofold.text import counted

_OUTLIERS = 20
"""So many are told where nothing is asked for by name."""
_MEANS = "cosine of features around the mean of those that are searched, -1 to 1; of outliers plain cosine"


@dataclass(frozen=True)
class SearchConfig(HeadOptions, PreprocessingOptions, BatchOptions):
    """What is searched for, and how."""

    k: int = 10
    """Neighbours of each query."""
    duplicates: bool = False
    """Group what is nearly the same. Without this, outliers, test, a query or names both are told: duplicates, and 20
    outliers."""
    similarity: float = 0.95
    """Cosine, around the mean of all features, from which two examples count as nearly the same."""
    outliers: int = 0
    """So many of those that lie farthest from their 10th nearest neighbour."""
    index: Kind = "auto"
    """How neighbours are found: exact compares all; flat, hnsw and ivf are faiss's; auto is exact below 100,000
    examples, and above takes HNSW, from a million IVF, where faiss is installed."""
    sheet: bool = True
    """Write contact sheets of what was found as PNG files."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data: images are read as in the encoder's training, unless told otherwise"""

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("outliers", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)}: give {least} or more")
        if not -1 <= self.similarity <= 1:
            raise UserError(
                f"--similarity {self.similarity:g}: a cosine lies in -1..1; what is nearly the same is near 1"
            )


@dataclass(frozen=True)
class SearchResult:
    """What was found; names are those that `twofold embed` writes.

    Attributes:
        path: the folder of `search.json`, a table of each kind and its contact sheet.
        count: examples that were searched.
        words: how, and what a similarity is.
        neighbours: of each query its name and what is most like it: names with classes and similarities.
        duplicates: groups of what is nearly the same, the largest first.
        leaks: groups of which some lie in the data and some in `test`.
        outliers: what lies farthest from its neighbours, farthest first.
        skipped: what could not be read, of the data, the queries and the test data: path and reason.
        similarity: from which two are nearly the same.
        sought: which of duplicates and leaks were looked for.
    """

    path: Path
    count: int
    words: str
    neighbours: tuple[dict[str, Any], ...] = ()
    duplicates: tuple[dict[str, Any], ...] = ()
    leaks: tuple[dict[str, Any], ...] = ()
    outliers: tuple[dict[str, Any], ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    similarity: float = 0.0
    sought: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """`duplicates` and `leaks`: how many examples lie in a group with another, and how many of `test` in one."""
        twice = sum(len(group["names"]) for group in self.duplicates)
        leaked = sum(len(group["test"]) for group in self.leaks)
        return {"duplicates": float(twice), "leaks": float(leaked)}

    def text(self) -> str:
        """For people: the first of each kind."""
        lines = []
        for query in self.neighbours[:5]:
            found = ", ".join(f"{hit['name']} {hit['similarity']:.2f}" for hit in query["found"][:5])
            lines.append(f"like {query['query']}: {found}")
        kinds = (("nearly the same", "duplicates", self.duplicates), ("in both", "leaks", self.leaks))
        for what, name, groups in kinds:
            if name in self.sought and not groups:
                lines.append(f"{what}: nothing from a similarity of {self.similarity:g} on")
            if groups:
                members = sum(len(group["names"]) + len(group.get("test", ())) for group in groups)
                count = "1 group:" if len(groups) == 1 else f"{len(groups):,} groups, such as"
                lines.append(f"{what}: {counted(members, 'example')} in {count}")
                lines += [
                    f"  {', '.join([*g['names'], *g.get('test', ())][:6])} ({g['similarity']:.3f})" for g in groups[:3]
                ]
        if self.outliers:
            lines.append(f"like nothing else: {', '.join(hit['name'] for hit in self.outliers[:5])}")
        lines += unread(self.skipped)
        return "\n".join([*(lines or ["nothing was found"]), f"{self.words}; written to {self.path}"])

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        document: dict[str, Any] = in_json(self)
        return document


def search(
    run: str | Path,
    data: Any,
    /,
    out: str | Path,
    *,
    query: Any = None,
    names: Sequence[str] | None = None,
    test: Any = None,
    encoder: nn.Module | None = None,
    **options: Any,
) -> SearchResult:
    """Find what is like a query, what is there twice, what lies in two splits, and what is like nothing else.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        data: what is searched: whatever `twofold.pretrain` takes, or a file that `twofold.embed` wrote by this encoder.
        out: a new folder for `search.json`, tables and contact sheets.
        query: files whose neighbours are asked for: one path, a list of paths, a folder, or data of any kind.
        names: the same of examples that are searched, by their names (see `twofold.embed`).
        test: other data, such as the test split, to find in `data`.
        encoder: your own module, if the run was trained with one.
        options: fields of `SearchConfig`, nested or dotted.

    Raises:
        UserError: `out` is no empty folder, a name that is not there, an index of another encoder, ...
    """
    path, folder = encoder_path(run), Path(out)
    config = OptionsParser(SearchConfig).build(merge(Pixels.of(read_header(path)).options(), options))
    check_out(folder, False, "search", False)
    model = load(path, encoder, choose_device(config.device, "--device"))
    refuse_unused(config, kind=model.input.kind)
    shelves = Shelves(path, model, config, folder / "parts")
    search = _Search(shelves, config, folder)
    bank, index = search.searched(data)
    asked = query is not None or bool(names) or test is not None or config.duplicates or config.outliers > 0
    twice = config.duplicates or not asked
    names = [names] if isinstance(names, str) else names
    rows = _rows_of(names or (), bank.found.names)
    new = None if query is None else shelves.of(query, bank.mean)
    other = None if test is None else shelves.of(test, bank.mean)
    folder.mkdir(parents=True, exist_ok=True)
    result = SearchResult(
        folder, len(bank.features),
        f"{counted(len(bank.features), 'example')}{_how(bank)}, {index.words}; similarity: {_MEANS}",
        (*search.like(bank, index, bank, rows, "names"), *search.like(bank, index, new, None, "query")),
        search.twice(bank, index) if twice else (),
        search.in_both(bank, index, other) if other is not None else (),
        search.alone(bank, config.outliers or (0 if asked else _OUTLIERS)), tuple(shelves.skipped), config.similarity,
        (*(("duplicates",) if twice else ()), *(("leaks",) if other is not None else ())),
    )  # fmt: skip
    document = json.dumps(result.to_dict(), indent=2) + "\n"
    write_atomically(folder / "search.json", lambda file: file.write(document.encode()))
    return result


def _how(bank: Shelf) -> str:
    """How examples were prepared, where that is known."""
    text = str(bank.found.facts.get("text", ""))
    return f" ({text})" if text else ""


def _rows_of(names: Sequence[str], known: NDArray[np.str_]) -> NDArray[np.int64]:
    """Where names stand; UserError for one that is not there."""
    places = {str(name): place for place, name in enumerate(known)}
    for name in names:
        if name not in places:
            near = suggest(name, places) if len(places) <= 10_000 else ""
            raise UserError(f"--names {name}: no example that is searched has this name{near[:300]}")
    return np.array([places[name] for name in names], dtype=np.int64)


@dataclass(frozen=True)
class _Search:
    """One call of the command."""

    shelves: Shelves
    config: SearchConfig
    folder: Path

    def searched(self, data: Any) -> tuple[Shelf, Index]:
        """What is searched, and how neighbours are found in it."""
        shelf = self.shelves.of_any(data)
        if shelf.index is not None and self.config.index == "auto":
            return shelf, shelf.index
        return shelf, build_index(shelf.features, self.config.index)

    def like(
        self, bank: Shelf, index: Index, queries: Shelf | None, rows: NDArray[np.int64] | None, name: str
    ) -> tuple[dict[str, Any], ...]:
        """The neighbours of queries, of all or of some rows that are searched themselves."""
        if queries is None or (rows is not None and not len(rows)):
            return ()
        places = np.arange(len(queries.features)) if rows is None else rows
        hits = neighbours(index, queries.features[places], self.config.k, rows)
        result, table = [], []
        for place, found in zip(places.tolist(), hits, strict=True):
            asked = queries.entry(place)
            listed = [bank.entry(hit.row) | {"similarity": round(hit.similarity, 6)} for hit in found]
            result.append({"query": asked["name"], "class": asked["class"], "found": listed})
            table += [{"query": asked["name"], "rank": rank, **each} for rank, each in enumerate(listed, 1)]
        stem = "neighbours" if name == "query" else "neighbours-of-names"
        write_rows(self.folder / f"{stem}.csv", ["query", "rank", "name", "class", "similarity"], table)
        self._sheet(stem, len(result), lambda i: Strip(
            f"{result[i]['query']}  {result[i]['class'] or ''}",
            [queries.shot(int(places[i]), "query", marked=True), *(self._hit(bank, hit) for hit in hits[i])],
        ))  # fmt: skip
        return tuple(result)

    def _hit(self, bank: Shelf, hit: Hit) -> Shot:
        return bank.shot(hit.row, f"{hit.similarity:.2f}  {bank.class_of(hit.row) or bank.found.names[hit.row]}")

    def twice(self, bank: Shelf, index: Index) -> tuple[dict[str, Any], ...]:
        """Groups of what is nearly the same."""
        groups, table = duplicates(index, bank.features, self.config.similarity), []
        for number, group in enumerate(groups, 1):
            table += [
                {"group": number, **bank.entry(row), "similarity": round(group.similarity, 6)} for row in group.rows
            ]
        write_rows(self.folder / "duplicates.csv", ["group", "name", "class", "similarity"], table)
        result = tuple(_told(group, bank) for group in groups)
        self._sheet("duplicates", len(groups), lambda i: Strip(
            f"group {i + 1}: {len(groups[i].rows)}, similarity from {groups[i].similarity:.3f}{_mixed(result[i])}",
            [bank.shot(row, str(bank.found.names[row])) for row in groups[i].rows[: MOST_ACROSS + 1]],
        ))  # fmt: skip
        return result

    def in_both(self, bank: Shelf, index: Index, test: Shelf) -> tuple[dict[str, Any], ...]:
        """Groups of which some lie in the data and some in the test data."""
        groups, table = leaks(index, test.features, self.config.similarity, len(bank.features)), []
        for number, group in enumerate(groups, 1):
            for part, shelf, rows in (("data", bank, group.rows), ("test", test, group.others)):
                like = {"similarity": round(group.similarity, 6)}
                table += [{"group": number, "part": part, **shelf.entry(row), **like} for row in rows]
        write_rows(self.folder / "leaks.csv", ["group", "part", "name", "class", "similarity"], table)
        result = tuple(_told(group, bank, test) for group in groups)
        self._sheet("leaks", len(groups), lambda i: Strip(
            f"group {i + 1}, similarity from {groups[i].similarity:.3f}; framed: in the test data{_mixed(result[i])}",
            [*(test.shot(row, str(test.found.names[row]), marked=True) for row in groups[i].others[:5]),
             *(bank.shot(row, str(bank.found.names[row])) for row in groups[i].rows[:6])],
        ))  # fmt: skip
        return result

    def alone(self, bank: Shelf, most: int) -> tuple[dict[str, Any], ...]:
        """What lies farthest from its neighbours.

        By plain cosines: around the mean, what has nothing of the others would only have another direction.
        """
        if not most:
            return ()
        plain = bank.found.features / np.maximum(np.linalg.norm(bank.found.features, axis=1, keepdims=True), 1e-12)
        found = outliers(build_index(plain, self.config.index), plain, most)
        result = tuple(bank.entry(hit.row) | {"similarity": round(hit.similarity, 6)} for hit in found)
        columns = ["rank", "name", "class", "similarity"]
        write_rows(self.folder / "outliers.csv", columns, [{"rank": i, **each} for i, each in enumerate(result, 1)])
        lines = [found[i : i + MOST_ACROSS] for i in range(0, len(found), MOST_ACROSS)]
        self._sheet("outliers", len(lines), lambda i: Strip(
            "farthest from their neighbours" if i == 0 else "", [self._hit(bank, hit) for hit in lines[i]]
        ))  # fmt: skip
        return result

    def _sheet(self, stem: str, rows: int, strip: Callable[[int], Strip]) -> None:
        """A contact sheet; pictures are read for what is drawn alone."""
        if self.config.sheet and rows:
            drawn = [strip(row) for row in range(min(rows, MOST_ROWS))]
            write_sheet(self.folder / f"{stem}.png", drawn + [Strip("", ())] * (rows - len(drawn)))


def _told(group: Group, bank: Shelf, test: Shelf | None = None) -> dict[str, Any]:
    """A group as it is told."""
    shown: dict[str, Any] = {"names": [str(bank.found.names[row]) for row in group.rows]}
    classes = {bank.class_of(row) for row in group.rows}
    if test is not None:
        shown["test"] = [str(test.found.names[row]) for row in group.others]
        classes |= {test.class_of(row) for row in group.others}
    return shown | {"similarity": round(group.similarity, 6), "classes": sorted(each for each in classes if each)}


def _mixed(group: dict[str, Any]) -> str:
    """A word on a group whose labels contradict each other."""
    return f"; classes differ: {', '.join(group['classes'])}" if len(group["classes"]) > 1 else ""


def parser() -> ArgumentParser:
    """Of `twofold search`."""
    parser = new_parser("Find neighbours, near-duplicates, leaks between splits, and outliers.")
    parser.add_argument("run", help="a run's folder, or an encoder.safetensors")
    add_data(parser, f"{EITHER}; or a file that twofold embed wrote")
    parser.add_argument("--out", type=str, help="a new folder for search.json, tables and contact sheets")
    parser.add_argument("--query", nargs="+", type=str, help="files whose neighbours are asked for, or their folder")
    parser.add_argument("--names", nargs="+", type=str, help="names among the data whose neighbours are asked for")
    parser.add_argument("--test", type=str, help="other data, such as the test split, to find in the data")
    add_options(parser, SearchConfig)
    return parser


def run(options: dict[str, Any]) -> SearchResult:
    """`twofold search`."""
    require_out(options, "a new folder", "found")
    return search(options.pop("run"), options.pop(PATH), options.pop("out"), **options)
