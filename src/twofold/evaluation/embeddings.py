"""Features with all that is known of their examples, made part by part, and kept as .npz, .parquet or a faiss index."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.data import Source
from twofold.data.sources.subset import subset
from twofold.errors import UserError
from twofold.evaluation.feature_cache import check_stored
from twofold.evaluation.framing import together
from twofold.evaluation.neighbours import FaissIndex, Kind, centred, faiss_module
from twofold.evaluation.rows import parquet_module
from twofold.files import write_atomically
from twofold.text import printable

FORMS = (".npz", ".parquet", ".faiss")
"""Kinds of files that embeddings are kept in."""
BESIDE = ".npz"
"""What is added to the name of a faiss index for the file of its names, labels and columns."""
_COLUMN = "column."
_OWN = ("name", "label", "class", "group", "frame", "seconds", "features")
"""Columns of a parquet file that are not of the user's table."""


@dataclass(frozen=True)
class Embeddings:
    """Features and what is known of them.

    Attributes:
        features: [n, d] float32; of frames [total, d], one example's after the other's.
        names: [n] of the examples.
        facts: in JSON's types: `encoder`, the digest of what gave them; `data`, where they come from; `text`, how
            examples were prepared.
        labels: [n] or [n, K]; None without labels.
        classes: their names; empty without.
        groups: [n]; None without.
        columns: [n] each, of the user's table.
        starts: of frames: [n + 1] where each example's begin, and the end.
        step: of frames: seconds from one to the next.
    """

    features: NDArray[np.float32]
    names: NDArray[np.str_]
    facts: dict[str, Any] = field(default_factory=dict)
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    groups: NDArray[np.str_] | None = None
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    starts: NDArray[np.int64] | None = None
    step: float | None = None

    def write(self, out: Path, kind: Kind = "auto") -> str:
        """Write them to a new file, whole or not at all; returns what was written, in words.

        Args:
            out: .npz, .parquet or .faiss: an index of features of length 1 around their mean. Beside it `out` + ".npz"
                holds what an index cannot, with `mean` [d] and the `lengths` [n] that the features had around it.
            kind: of the faiss index.
        """
        if out.suffix == ".parquet":
            self._write_parquet(out)
            return f"{out}"
        if out.suffix == ".npz":
            write_atomically(out, lambda file: np.savez(file, features=self.features, **self._arrays()))
            return f"{out}"
        around, mean = centred(self.features)
        lengths = np.linalg.norm(self.features - mean, axis=1)
        index = FaissIndex.build(around, kind)
        beside = dataclasses.replace(self, facts=self.facts | {"index": index.words})
        write_atomically(
            out.with_name(out.name + BESIDE),
            lambda file: np.savez(file, mean=mean, lengths=lengths, **beside._arrays()),
        )
        write_atomically(out, lambda file: file.write(index.to_bytes()))
        return f"{out} ({index.words}) and {out.name}{BESIDE}"

    def _arrays(self) -> dict[str, Any]:
        """All but the features."""
        values: dict[str, Any] = {"names": self.names, "facts": np.array(json.dumps(self.facts))}
        for name, value in (("labels", self.labels), ("groups", self.groups), ("starts", self.starts)):
            values |= {} if value is None else {name: value}
        values |= {"classes": np.array(self.classes)} if self.classes else {}
        values |= {} if self.step is None else {"step": np.array(self.step)}
        return values | {_COLUMN + name: value for name, value in self.columns.items()}

    def _write_parquet(self, out: Path) -> None:
        """A row an example, or a frame; `name`, `label`, `class`, `group`, the user's columns, `features`."""
        arrow = parquet_module(str(out))
        clash = sorted(set(_OWN) & self.columns.keys())
        if clash:
            raise UserError(
                f"--columns {clash[0]}: {out} has a column of that name of its own: write .npz, or rename it"
            )
        counts = np.diff(self.starts) if self.starts is not None else np.ones(len(self.names), dtype=np.int64)
        of = np.repeat(np.arange(len(self.names)), counts)
        columns: dict[str, Any] = {"name": [printable(str(name)) for name in self.names[of]]}
        if self.starts is not None:
            frames = np.arange(len(of)) - np.repeat(self.starts[:-1], counts)
            columns |= {"frame": frames, "seconds": frames * (self.step or 0.0)}
        if self.labels is not None:
            columns["label"] = list(self.labels[of])
            if self.classes and self.labels.ndim == 1:
                names = [None if label < 0 else self.classes[label] for label in self.labels[of].tolist()]
                columns["class"] = names
        columns |= {} if self.groups is None else {"group": self.groups[of]}
        columns |= {name: value[of] for name, value in self.columns.items()}
        flat = arrow.array(np.ascontiguousarray(self.features).reshape(-1))
        columns["features"] = arrow.FixedSizeListArray.from_arrays(flat, self.features.shape[1])
        table = arrow.table(columns).replace_schema_metadata({"twofold": json.dumps(self.facts | {
            "classes": list(self.classes), "step": self.step, "columns": list(self.columns),
        })})  # fmt: skip
        write_atomically(out, lambda file: arrow.parquet.write_table(table, file))

    @classmethod
    def read(cls, path: Path) -> Embeddings:
        """What `write` wrote; of an index, too, the features that it was made of, to rounding.

        Raises:
            UserError: no such file, of another kind, or damaged.
        """
        try:
            if path.suffix == ".parquet":
                return _from_parquet(path)
            if path.suffix == ".npz":
                return _from_arrays(_load(path))
            arrays = _load(path.with_name(path.name + BESIDE))
            around = FaissIndex.from_bytes(path.read_bytes()).vectors()
            return _from_arrays(arrays | {"features": arrays["mean"] + arrays["lengths"][:, None] * around})
        except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} holds no features of twofold embed, or is damaged: {error}; write it anew"
            ) from error


def holds_embeddings(path: Path) -> bool:
    """Whether this is a file of `Embeddings.write`, and no data of the same ending."""
    if not path.is_file():
        return False
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return {"features.npy", "names.npy", "facts.npy"} <= set(archive.namelist())
        if path.suffix == ".parquet":
            schema = parquet_module(str(path)).parquet.read_schema(path)
            return b"twofold" in (schema.metadata or {})
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        return False
    return path.suffix == ".faiss"


def check_form(out: Path) -> None:
    """Raise a UserError for a name of no known form, or one whose library is missing."""
    if out.suffix not in FORMS:
        raise UserError(f"--out {out}: give a name that ends in .npz, .parquet or .faiss")
    if out.suffix == ".parquet":
        parquet_module(f"--out {out}")
    if out.suffix == ".faiss":
        faiss_module(f"--out {out}")


def _load(path: Path) -> dict[str, Any]:
    check_stored(path)
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _from_arrays(arrays: Mapping[str, Any]) -> Embeddings:
    starts, names, features = arrays.get("starts"), arrays["names"], arrays["features"]
    count = len(names) if starts is None else int(starts[-1])
    if features.ndim != 2 or len(features) != count or not np.isfinite(features).all():
        raise ValueError(f"features {features.shape} of {len(names)} names")
    return Embeddings(
        np.asarray(features, np.float32), names, json.loads(str(arrays["facts"])) if "facts" in arrays else {},
        arrays.get("labels"), tuple(arrays["classes"].tolist()) if "classes" in arrays else (), arrays.get("groups"),
        {name.removeprefix(_COLUMN): value for name, value in arrays.items() if name.startswith(_COLUMN)},
        starts, float(arrays["step"]) if "step" in arrays else None,
    )  # fmt: skip


def _from_parquet(path: Path) -> Embeddings:
    arrow = parquet_module(str(path))
    table = arrow.parquet.read_table(path)
    facts = json.loads((table.schema.metadata or {})[b"twofold"])
    features = table["features"].combine_chunks()
    matrix = np.asarray(features.flatten(), np.float32).reshape(len(table), -1)
    names, first, starts = np.array(table["name"].to_pylist(), dtype=np.str_), np.arange(len(table)), None
    if "frame" in table.column_names:
        begun = np.flatnonzero(table["frame"].to_numpy() == 0)
        starts, first = np.append(begun, len(table)), begun
    held = {name: np.array(table[name].to_pylist())[first] for name in ("label", "group") if name in table.column_names}
    classes, step, own = (facts.pop(name, None) for name in ("classes", "step", "columns"))
    columns = {name: np.array(table[name].to_pylist())[first] for name in own or ()}
    return Embeddings(
        matrix, names[first], facts, held.get("label"), tuple(classes or ()), held.get("group"), columns, starts, step
    )


@dataclass(frozen=True)
class Part:
    """Features of some examples.

    Attributes:
        h: [m, d]; of frames those of one example after the other's.
        index: [k] places in the source, ascending.
        counts: [k] rows of `h` of each.
        skipped: (path, reason) of each example left out.
        text: what else is to be told of how examples were prepared, beside `framed`.
        cut: images of which only the middle was seen, and all that were.
        framed: what was done and to how many (see `twofold.evaluation.framing.Framing.framed`).
    """

    h: NDArray[np.float32]
    index: NDArray[np.int64]
    counts: NDArray[np.int64]
    skipped: tuple[tuple[str, str], ...]
    text: str
    cut: tuple[int, int] = (0, 0)
    framed: Mapping[str, int] = field(default_factory=dict)


def piecewise(
    source: Source,
    extract: Callable[[Source], Part],
    folder: Path,
    key: Mapping[str, Any],
    every: int,
    resume: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Part:
    """Features of a whole source, `every` so many examples kept in `folder` until `finished` is called.

    Args:
        source: as the encoder reads it.
        extract: of a part of it; its index counts within the part.
        folder: new, or that of an earlier call that `resume` goes on with.
        key: what the features depend on, in JSON's types: parts made of something else are refused.
        progress: called with (examples done, examples in all).

    Raises:
        UserError: parts are there and are not to be resumed, or are of something else.
    """
    begins = range(0, len(source), every)
    if len(begins) > 1 or folder.exists():
        _begin(folder, {**key, "every": every}, resume)
    parts = []
    for begin in begins:
        end, file = min(begin + every, len(source)), folder / f"{begin:012d}.npz"
        part = _kept(file, end - begin)
        if part is None:
            part = extract(source if len(begins) == 1 else subset(source, np.arange(begin, end)))
            if len(begins) > 1:
                _keep(file, part)
        else:
            for path, reason in part.skipped:
                source.skipped.add(path, reason)
        parts.append(dataclasses.replace(part, index=part.index + begin))
        if progress:
            progress(end, len(source))
    return Part(
        np.concatenate([part.h for part in parts if len(part.index)] or [np.empty((0, 0), np.float32)]),
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.counts for part in parts]),
        tuple(dict.fromkeys(each for part in parts for each in part.skipped)),
        " or ".join(dict.fromkeys(part.text for part in parts if part.text)),
        (sum(part.cut[0] for part in parts), sum(part.cut[1] for part in parts)),
        together(part.framed for part in parts),
    )


def finished(folder: Path) -> None:
    """Remove the parts."""
    shutil.rmtree(folder, ignore_errors=True)


def _begin(folder: Path, key: Mapping[str, Any], resume: bool) -> None:
    file, document = folder / "key.json", json.dumps(key, sort_keys=True)
    if folder.exists():
        if not resume:
            raise UserError(f"{folder} holds what an earlier embed has done: go on with --resume, or remove the folder")
        if file.exists() and file.read_text() != document:
            raise UserError(
                f"{folder} is of another encoder, other data or other options: remove it, or give what it began with"
            )
    write_atomically(file, lambda out: out.write(document.encode()))


def _keep(file: Path, part: Part) -> None:
    told = {"skipped": part.skipped, "text": part.text, "cut": part.cut, "framed": dict(part.framed)}
    facts = np.array(json.dumps(told))
    write_atomically(file, lambda out: np.savez(out, h=part.h, index=part.index, counts=part.counts, facts=facts))


def _kept(file: Path, count: int) -> Part | None:
    """A part that is whole; None where there is none, or a damaged one, which is made anew."""
    if not file.exists():
        return None
    try:
        arrays = _load(file)
        facts = json.loads(str(arrays["facts"]))
        h, index, counts = arrays["h"], arrays["index"], arrays["counts"]
        if int(counts.sum()) != len(h) or len(index) != len(counts) or (len(index) and index.max() >= count):
            return None
        cut, seen = facts["cut"]
        framed = {str(words): int(number) for words, number in dict(facts["framed"]).items()}  # not in files of before
        skipped = tuple((path, reason) for path, reason in facts["skipped"])
        return Part(h, index, counts, skipped, facts["text"], (int(cut), int(seen)), framed)
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None


def as_column(values: Sequence[Any]) -> NDArray[Any]:
    """Values of a table as an array: numbers where all that are given are, of which a missing one is no number (nan);
    else text, of which a missing one is empty."""
    given = [value for value in values if value is not None]
    if given and all(isinstance(value, int | float) and not isinstance(value, bool) for value in given):
        return np.array(values if len(given) == len(values) else [np.nan if v is None else v for v in values])
    return np.array(["" if value is None else str(value) for value in values])
