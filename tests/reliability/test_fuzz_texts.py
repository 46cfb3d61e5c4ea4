"""Whatever stands in a configuration, a manifest, a table or a list: it is read, or refused by name, within bounds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fuzzing import ODD_TEXTS, PLAIN, TEXTS, VALUES, changed, encoded, spliced, tried
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sound_files import tone, write
from twofold.data import DataConfig, open_source
from twofold.data.groups import named_by, take_groups
from twofold.data.labels import class_labels
from twofold.data.sources.open import splits_of
from twofold.evaluation.label_subsets import label_positions
from twofold.options import OptionsParser, plain
from twofold.options.variants import leaves
from twofold.recipe import read_layers
from twofold.runs.config import DistillConfig, FinetuneConfig, RunConfig, build
from twofold.runs.defaults import choose
from twofold.training.rundir import RunDirectory

KINDS: dict[str, Any] = {"pretrain": RunConfig, "finetune": FinetuneConfig, "distill": DistillConfig}
PATHS = {name: [leaf.path for leaf in leaves(kind)] for name, kind in KINDS.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures and three recordings, and room for files beside them."""
    place = tmp_path_factory.mktemp("data")
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(place / f"{i}.png")
        write(place / f"{i}.wav", tone(i))
    return place


@st.composite
def options(draw: st.DrawFn, command: str) -> dict[str, Any]:
    """Some options of a command, or of none, with values of any kind."""
    names = st.one_of(st.sampled_from(PATHS[command]), st.sampled_from(PATHS[command]), TEXTS)
    return draw(st.dictionaries(names, VALUES, min_size=1, max_size=3))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as mappings in mappings, the later over the earlier."""
    result: dict[str, Any] = {}
    for name, value in flat.items():
        place, (*groups, last) = result, name.split(".")
        for group in groups:
            inner = place.setdefault(group, {})
            place = inner if isinstance(inner, dict) else place
        place[last] = value
    return result


FACTS = open_source(np.zeros((64, 8, 8, 3), np.uint8)).facts()


@given(st.data())
@pytest.mark.parametrize("command", KINDS)
def test_options(command: str, data: st.DataObject) -> None:
    """As Python gives them; where they are taken, what is left open can be chosen or is refused."""
    flat = data.draw(options(command))
    given = nested(flat) if data.draw(st.booleans()) else flat

    def read() -> None:
        if command != "pretrain":
            OptionsParser(KINDS[command]).build(given)
        else:
            choose(build(given), FACTS, torch.device("cpu"))

    tried(read, "options", "option ''", *flat)


@given(st.data())
def test_configs(folder: Path, data: st.DataObject) -> None:
    """As files, and as the config.yaml of a run that is to be resumed."""
    flat = data.draw(options("pretrain"))
    document: Any = data.draw(st.sampled_from([flat, nested(flat), {"options": nested(flat), "run": {}}]))
    if data.draw(st.booleans()):
        document = data.draw(changed(document))
    text = encoded(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    if data.draw(st.booleans()):
        text = data.draw(spliced(text))
    (folder / "config.yaml").write_bytes(text)
    run = RunDirectory(folder)
    tried(lambda: build(read_layers(None, folder / "config.yaml", {})), "config.yaml", "options", *flat)
    tried(lambda: run.check_resumable(RunConfig, {"epochs": 3}), "config.yaml", "options", *flat)
    tried(run.facts, "config.yaml")


WHOLE = yaml.safe_dump({"run": {"data": "x"}, "options": plain(RunConfig())}, sort_keys=False).encode()


@given(spliced(WHOLE))
def test_configs_of_runs(folder: Path, text: bytes) -> None:
    (folder / "config.yaml").write_bytes(text)
    tried(lambda: RunDirectory(folder).read(RunConfig), "config.yaml")


USUAL = (
    "path",
    "file_name",
    "text",
    "speaker",
    "label",
    "fold",
    "split",
    "start",
    "end",
    "duration",
    "offset_ms",
    "group",
)


@st.composite
def rows(draw: st.DrawFn, suffix: str) -> list[dict[str, Any]]:
    """Rows of a table, of which many name a file that is there."""
    names = draw(st.lists(st.one_of(st.sampled_from(USUAL), TEXTS), min_size=1, max_size=5, unique=True))
    paths = st.one_of(st.sampled_from([f"{i}.{suffix}" for i in range(3)]), TEXTS)
    row = st.fixed_dictionaries({}, optional={name: paths if name in USUAL[:2] else VALUES for name in names})
    return draw(st.lists(row, max_size=5))


def as_table(rows: list[dict[str, Any]], kind: str) -> bytes:
    """Rows as a file of a kind."""
    if kind == ".json":
        return encoded(json.dumps(rows))
    if kind == ".jsonl":
        return encoded("\n".join(json.dumps(row) for row in rows))
    if kind == ".parquet":
        return as_parquet(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter="\t" if kind == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return encoded(text.getvalue())


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    """Of columns whose values Arrow does not take together, their texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(dict.fromkeys(name for row in rows for name in row))
    arrays = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        try:
            arrays[encoded(name).decode("utf-8", "replace")] = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            arrays[encoded(name).decode("utf-8", "replace")] = pa.array([encoded(str(value)) for value in values])
    stream = io.BytesIO()
    try:
        pq.write_table(pa.table(arrays), stream)
    except pa.ArrowException:  # mappings without a name in them
        pq.write_table(pa.table({"path": ["0.wav", "0.png"]}), stream)
    return stream.getvalue()


GROUPS = st.one_of(st.none(), st.sampled_from(["speaker", "group", "path", r"(\d)", r"x(y)?", "("]), TEXTS)
ENCODINGS = [
    "utf-8",
    "utf-8",
    "utf-8",
    "latin-1",
    "utf-16",
    "idna",
    "punycode",
    "undefined",
    "zlib_codec",
    "a\0b",
    "",
    "none",
]


@given(st.data())
@pytest.mark.parametrize("suffix", ["wav", "png"])
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_manifests(folder: Path, kind: str, suffix: str, data: st.DataObject) -> None:
    """Tables of recordings and of images: opened, and the first example read."""
    text = as_table(data.draw(rows(suffix)), kind)
    if data.draw(st.booleans()):
        text = data.draw(spliced(text))
    path = folder / f"table{kind}"
    path.write_bytes(text)
    config = DataConfig(
        group=data.draw(GROUPS), encoding=data.draw(st.sampled_from(ENCODINGS)), outside=data.draw(st.booleans()),
        max_skipped=1.0,
    )  # fmt: skip
    split = data.draw(st.one_of(st.none(), st.none(), TEXTS))
    tried(lambda: splits_of(path), path.name)
    source: Any = tried(lambda: open_source(path, config, split), path.name)
    if source is not None:
        assert len(source) > 0
        tried(source.fingerprint, path.name)


@given(st.data())
def test_lists_of_images_and_of_fairseq(folder: Path, data: st.DataObject) -> None:
    lines = data.draw(st.lists(st.one_of(st.sampled_from(["0.png", "1.png", str(folder)]), TEXTS), max_size=5))
    counts = data.draw(st.lists(TEXTS | st.integers(0, 9000).map(str), min_size=5, max_size=5))
    for name, text in {
        "list.txt": "\n".join(lines),
        "train.tsv": "\n".join(
            [str(folder), *(f"{line}\t{count}" for line, count in zip(lines, counts, strict=False))]
        ),
    }.items():
        (folder / name).write_bytes(encoded(text))
        (folder / "train.wrd").write_bytes(data.draw(st.binary(max_size=10)))
        tried(lambda name=name: open_source(folder / name, DataConfig(max_skipped=1.0)), name, "train.wrd")


class Files:
    """Six labelled images by their names."""

    name = "data"
    labels = np.array([0, 0, 0, 1, 1, -1])
    classes = None

    def __len__(self) -> int:
        return 6

    def path(self, index: int) -> str:
        return f"/d/{'xy'[index % 2]}/{index // 2}.png"

    def member(self, index: int) -> str:
        return f"{'xy'[index % 2]}/{index // 2}.png"


class Numbers(Files):
    """The same without names."""

    path = property()  # type: ignore[assignment]


@given(st.data())
def test_lists_of_labels(folder: Path, data: st.DataObject) -> None:
    line = st.one_of(st.sampled_from(["x/0.png", "y/1.png", "2.png", "0", "3", "5"]), TEXTS)
    text = encoded("\n".join(data.draw(st.lists(line, max_size=6))))
    if data.draw(st.integers(0, 3)) == 0:
        text = data.draw(spliced(text))
    (folder / "list").write_bytes(text)
    source: Any = data.draw(st.sampled_from([Files(), Numbers()]))
    chosen = tried(lambda: label_positions(source, str(folder / "list")), "list")
    assert chosen is None or (len(chosen) and chosen.min() >= 0 and chosen.max() < 6)


@given(st.one_of(TEXTS, st.from_regex(r"\d{1,400}(\.\d+)? ?(%|/ ?class)?", fullmatch=True), st.integers()))
def test_choices_of_labels(wanted: Any) -> None:
    chosen = tried(lambda: label_positions(Files(), wanted))  # type: ignore[arg-type]  # what of a source is asked for
    assert chosen is None or chosen.max() < 6


@given(st.data())
def test_labels(data: st.DataObject) -> None:
    """Of a list, and as NumPy makes an array of them."""
    values: Any = data.draw(st.lists(st.one_of(PLAIN, st.integers(0, 3), VALUES), max_size=6))
    if data.draw(st.booleans()):
        kind = data.draw(st.sampled_from(["f4", "f8", "i1", "u8", "U", "O", "S", "c8", "?", "M8[s]"]))
        try:
            values = np.array(values, dtype=kind)
        except (ValueError, TypeError, OverflowError, UnicodeEncodeError):
            return  # NumPy makes none of them
    classes = data.draw(st.one_of(st.none(), st.lists(TEXTS, max_size=3, unique=True)))
    found = tried(lambda: class_labels(values, len(values), "the labels", classes), "the labels")
    if found is not None:
        numbers, names = found
        assert numbers.dtype == np.int64
        assert len(numbers) == len(values)
        assert not numbers.size or (numbers.min() >= -1 and numbers.max() < max(len(names or []), 2 * numbers.size + 2))


@given(pattern=st.one_of(TEXTS, st.sampled_from(ODD_TEXTS)), names=st.lists(TEXTS, max_size=4))
def test_groups(pattern: str, names: list[str]) -> None:
    found = tried(lambda: named_by(pattern, names, "data"), "data")
    assert found is None or len(found) == len(names)
    tried(lambda: take_groups(Files(), pattern), "data")
