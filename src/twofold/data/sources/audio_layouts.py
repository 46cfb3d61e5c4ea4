"""How a folder or a manifest becomes a list of recordings: plain folders and the layouts of four public corpora."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from twofold.data.config import AudioConfig, DataConfig
from twofold.data.sources.audio import AudioSource, Recording, find_recordings
from twofold.data.sources.files import SPLIT_FOLDERS
from twofold.errors import UserError

MANIFESTS = (".csv", ".tsv", ".jsonl", ".parquet")
_PATH = ("path", "file", "audio", "audio_filepath", "wav", "filename", "deb_path")
_TEXT = ("text", "transcript_norm", "transcript", "sentence", "transcription")
_FOR_IMAGES = ("background", "orient", "deep_pixels", "max_pixels", "jpeg_draft")
_EMOTIONS = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad"}

Layout = Callable[[Path, str | None], list[Recording]]


def open_audio(path: Path, split: str | None, config: DataConfig) -> AudioSource:
    """The recordings of a manifest, or of a folder in any layout that `layout_of` knows.

    Without a split those made for training, where the data say which these are; else all.

    Raises:
        UserError: no such split or column, nothing readable, an option that only images have, ...
    """
    _refuse_image_options(path, config)
    if path.is_file():
        recordings = read_manifest(path, split, config.audio.label, config.audio.fold)
    else:
        recordings = _relabelled(_LAYOUTS[layout_of(path)](path, split), path, config.audio)
    if not recordings:
        raise UserError(f"{path}: no recordings" + (f" in the split {split}" if split else ""))
    return AudioSource(recordings, config, f"{path}:{split}" if split else str(path))


def _refuse_image_options(path: Path, config: DataConfig) -> None:
    """Raise a UserError where an option that only images have is given for recordings."""
    if config.channels not in (None, 1):  # commands take it from the encoder where it is not given
        raise UserError(
            f"{path} holds recordings, which have one channel, and --data.channels or the encoder asks for "
            f"{config.channels}: leave the option out, or use an encoder of speech"
        )
    plain = DataConfig()
    given = [name for name in _FOR_IMAGES if getattr(config, name) != getattr(plain, name)]
    if given:
        message = ", ".join(f"--data.{name} {getattr(config, name)}" for name in given)
        raise UserError(f"{message}: for images, and the data are recordings: leave it out")


def _relabelled(recordings: list[Recording], folder: Path, config: AudioConfig) -> list[Recording]:
    """A folder's recordings with speakers as labels or folds, where these are asked for; a folder has no columns."""
    for option, value in (("label", config.label), ("fold", config.fold if config.fold != "fold" else None)):
        if value is None:
            continue
        if value != "speaker" or all(r.speaker is None for r in recordings):
            known = "can be speaker" if any(r.speaker for r in recordings) else "is not to be had"
            raise UserError(
                f"--data.audio.{option} {value} names a column of a manifest, and {folder} is a folder, of which it "
                f"{known}: give a manifest, or leave it out"
            )
        changed: list[dict[str, Any]] = [{option: r.speaker} for r in recordings]
        recordings = [dataclasses.replace(r, **new) for r, new in zip(recordings, changed, strict=True)]
    return recordings


def layout_of(folder: Path) -> str:
    """librispeech, speech_commands, voxceleb, iemocap or folder, by what lies where."""
    if any((folder / f"Session{i}" / "dialog" / "EmoEvaluation").is_dir() for i in range(1, 6)):
        return "iemocap"
    if (folder / "testing_list.txt").is_file() and (folder / "validation_list.txt").is_file():
        return "speech_commands"
    if next(folder.glob("*/*/*/*.trans.txt"), None) or next(folder.glob("*/*/*.trans.txt"), None):
        return "librispeech"
    bases = [folder, folder / "wav", folder / "dev" / "wav", folder / "test" / "wav"]
    if any(re.fullmatch(r"id\d{5}", p.name) for base in bases if base.is_dir() for p in base.iterdir()):
        return "voxceleb"
    return "folder"


def audio_splits(path: Path) -> tuple[str, ...]:
    """The names that `--data.split` can have for this folder or manifest."""
    if path.is_file():
        rows = manifest_rows(path)
        return tuple(sorted({str(row["split"]) for row in rows if row.get("split")}))
    layout = layout_of(path)
    if layout == "librispeech":
        return tuple(sorted(p.name for p in path.iterdir() if next(p.glob("*/*/*.trans.txt"), None)))
    if layout == "speech_commands":
        return ("train", "val", "test")
    if layout == "voxceleb":
        return tuple(name for name in ("dev", "test") if (path / name / "wav").is_dir())
    return tuple(_split_folders(path))


def manifest_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .csv, .tsv, .jsonl or .parquet file; UserError for one that cannot be read."""
    try:
        if path.suffix == ".parquet":
            try:
                import pyarrow.parquet
            except ImportError as error:
                raise UserError(f"{path}: parquet needs pyarrow: pip install pyarrow") from error
            rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
            return rows
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte order mark in front
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return list(csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is no readable manifest: {error}") from error


def read_manifest(path: Path, split: str | None, label: str | None, fold: str = "fold") -> list[Recording]:
    """Recordings of a manifest: paths relative to it, labels from the column `label` ("label" if there is one).

    Without a split those of the split train, where a column says so.
    """
    rows = manifest_rows(path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    where = _column(columns, _PATH)
    if where is None:
        raise UserError(f"{path}: no column of paths ({', '.join(_PATH)}); it has {', '.join(columns)}")
    if label is not None and label not in columns:
        raise UserError(f"--data.audio.label {label}: {path} has no such column; it has {', '.join(columns)}")
    if fold != "fold" and fold not in columns:
        raise UserError(f"--data.audio.fold {fold}: {path} has no such column; it has {', '.join(columns)}")
    named, text = label or _column(columns, ("label",)), _column(columns, _TEXT)
    if split is None and any(row.get("split") == "train" for row in rows):
        split = "train"
    if split is not None:
        rows = [row for row in rows if str(row.get("split")) == split]
    return [
        Recording(
            str(path.parent / str(row[where])), _value(row, named), _value(row, text), _value(row, fold),
            _value(row, "speaker"),
        )
        for row in rows if row.get(where)
    ]  # fmt: skip


def _column(columns: Iterable[str], names: tuple[str, ...]) -> str | None:
    present = set(columns)
    return next((name for name in names if name in present), None)


def _value(row: Mapping[str, Any], column: str | None) -> str | None:
    value = row.get(column) if column else None
    return None if value is None or str(value).strip() == "" else str(value)


def _split_folders(folder: Path) -> dict[str, Path]:
    subfolders = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    splits = {s: p for s, names in SPLIT_FOLDERS.items() for p in subfolders if p.name.lower() in names}
    return {} if any(p not in splits.values() and find_recordings(p, 1) for p in subfolders) else splits


def _folder(folder: Path, split: str | None) -> list[Recording]:
    """Every recording below; where each lies in one of two or more subfolders, these are the classes."""
    splits = _split_folders(folder)
    if split is None and "train" in splits:
        split = "train"
    if split is not None and split not in splits:
        raise UserError(f"--data.split {split}: {folder} has {', '.join(splits) or 'no folders such as train or test'}")
    base = folder if split is None else splits[split]
    paths = find_recordings(base)
    tops = [path.relative_to(base).parts[0] if len(path.relative_to(base).parts) > 1 else "" for path in paths]
    labelled = "" not in tops and len(set(tops)) > 1
    return [Recording(str(p), top if labelled else None, _text_beside(p)) for p, top in zip(paths, tops, strict=True)]


def _text_beside(path: Path) -> str | None:
    """The transcript in a .txt file of the same name."""
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() or None if text.is_file() else None


def _librispeech(folder: Path, split: str | None) -> list[Recording]:
    """SUBSET/speaker/chapter/speaker-chapter-number.flac, texts in speaker-chapter.trans.txt; labels are speakers.

    Without a split all subsets whose names begin with train.
    """
    recordings = []
    base = folder / split if split else folder
    if not base.is_dir():
        raise UserError(f"--data.split {split}: {folder} has {', '.join(audio_splits(folder))}")
    training = [folder / name for name in audio_splits(folder) if name.startswith("train")]
    bases = [base] if split or not training else training
    for table in sorted(table for base in bases for table in base.rglob("*.trans.txt")):
        for line in table.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            speaker = name.split("-")[0]
            recordings.append(Recording(str(table.parent / f"{name}.flac"), speaker, text, None, speaker))
    return recordings


def _speech_commands(folder: Path, split: str | None) -> list[Recording]:
    """WORD/speaker_nohash_number.wav; validation_list.txt and testing_list.txt name the parts; labels are words."""
    listed = {
        name: set((folder / f"{file}_list.txt").read_text().split())
        for name, file in (("val", "validation"), ("test", "testing"))
    }
    split = split or "train"
    if split not in ("train", "val", "test"):
        raise UserError(f"--data.split {split}: Speech Commands has train, val and test")
    recordings = []
    for path in find_recordings(folder):
        name = path.relative_to(folder).as_posix()
        if name.startswith("_"):  # _background_noise_ is no speech
            continue
        part = next((s for s, names in listed.items() if name in names), "train")
        if part == split:
            recordings.append(Recording(str(path), path.parent.name, None, None, path.name.split("_nohash_")[0]))
    return recordings


def _voxceleb(folder: Path, split: str | None) -> list[Recording]:
    """[dev|test/]wav/idNNNNN/VIDEO/NNNNN.wav; labels are speakers. Without a split dev, on which it is trained."""
    if split is None and "dev" in audio_splits(folder):
        split = "dev"
    base = folder / split if split else folder
    if not base.is_dir():
        raise UserError(f"--data.split {split}: {folder} has {', '.join(audio_splits(folder)) or 'no such parts'}")
    recordings = []
    for path in find_recordings(base):
        speaker = next((part for part in path.parts if re.fullmatch(r"id\d{5}", part)), None)
        if speaker:
            recordings.append(Recording(str(path), speaker, speaker=speaker))
    return recordings


def _iemocap(folder: Path, split: str | None) -> list[Recording]:
    """SessionN/sentences/wav/DIALOGUE/UTTERANCE.wav; the four usual classes (excited counts as happy); folds are
    sessions. Utterances of other emotions are left out."""
    if split is not None:
        raise UserError(f"--data.split {split}: IEMOCAP has sessions, which are folds, and no splits")
    recordings = []
    for session in sorted(folder.glob("Session?")):
        for table in sorted((session / "dialog" / "EmoEvaluation").glob("*.txt")):
            for name, code in re.findall(r"^\[[\d. -]+\]\t(\S+)\t(\w+)\t", table.read_text(), re.MULTILINE):
                path = session / "sentences" / "wav" / table.stem / f"{name}.wav"
                if code in _EMOTIONS and path.is_file():
                    speaker = f"{name[:5]}{name.rsplit('_', 1)[1][0]}"
                    recordings.append(Recording(str(path), _EMOTIONS[code], None, session.name, speaker))
    return recordings


_LAYOUTS: dict[str, Layout] = {
    "folder": _folder,
    "librispeech": _librispeech,
    "speech_commands": _speech_commands,
    "voxceleb": _voxceleb,
    "iemocap": _iemocap,
}
