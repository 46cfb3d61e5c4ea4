"""How a folder or a manifest becomes a list of recordings: plain folders, public corpora, toolkits' layouts."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twofold.data.base import Format, Source, Splits
from twofold.data.config import AudioConfig, DataConfig
from twofold.data.decoding.images import find_pictures, image_extensions
from twofold.data.decoding.recordings import EXTENSIONS, FFMPEG_EXTENSIONS, passed_over
from twofold.data.groups import named_by
from twofold.data.sources.audio import AudioSource, Listing, Recording, find_recordings
from twofold.data.sources.corpora import (
    iemocap,
    iemocap_splits,
    librispeech,
    librispeech_splits,
    timit,
    timit_splits,
)
from twofold.data.sources.files import SPLIT_FOLDERS
from twofold.data.sources.manifests import MANIFESTS, manifest_rows, read_manifest
from twofold.data.sources.outside import inside
from twofold.data.sources.texts import read_texts, text_beside
from twofold.data.sources.wsj import roots, wsj, wsj_splits
from twofold.errors import UserError
from twofold.files import at_home

Layout = Callable[[Path, str | None, DataConfig], Listing]
_NESTED = ("librispeech", "timit", "wsj", "iemocap")
"""Corpora whose archives unpack into a folder of their own, which may be alone in the folder that is given."""


def open_audio(path: Path, split: str | None, config: DataConfig) -> AudioSource:
    """The recordings of a manifest, or of a folder in any layout that `layout_of` knows.

    Without a split those made for training, where the data say which these are; else all.

    Raises:
        UserError: no such split or column, nothing readable, an option that only images have, ...
    """
    refuse_colours(path, config)
    left = "" if path.is_file() else passed_over(path)
    if path.is_file():
        recordings = read_manifest(path, split, config)
    else:
        layout, place = located(path)
        found = _LAYOUTS[layout](place, split, config)
        left = "; ".join(part for part in (left, found.note) if part)
        recordings = _relabelled(found.recordings, path, config.audio, layout)
        recordings = _grouped(recordings, path, config.group)
    if not recordings:
        raise UserError(
            f"{path}: no recordings" + (f" in the split {split}" if split else "") + (f"; {left}" if left else "")
        )
    source = AudioSource(recordings, config, f"{path}:{split}" if split else str(path))
    source.note = left
    return source


def refuse_colours(path: Path | str, config: DataConfig) -> None:
    """Raise a UserError where recordings are to have channels as images have them."""
    if config.channels not in (None, 1):  # commands take it from the encoder where it is not given
        raise UserError(
            f"{path} holds recordings, which have one channel, and --data.channels or the encoder asks for "
            f"{config.channels}: leave the option out, or use an encoder of speech{_if_table(path)}"
        )


def _if_table(path: Path | str) -> str:
    """What else a table that counts as a manifest of recordings may be, in words; empty for anything else."""
    if Path(path).suffix.lower() not in MANIFESTS:
        return ""
    return "; a table of images has commas between its columns, and paths in one called path, image, file or the like"


def _relabelled(recordings: list[Recording], folder: Path, config: AudioConfig, layout: str) -> list[Recording]:
    """A folder's recordings with speakers as labels or folds, where these are asked for; a folder has no columns."""
    columns = {option: getattr(config, option) for option in ("path", "text", "speaker")}
    if layout == "timit" and columns["text"] in ("words", "phones"):
        columns["text"] = None  # its layout has both
    if any(columns.values()):
        option = next(option for option, value in columns.items() if value)
        raise UserError(
            f"--data.audio.{option} {columns[option]} names a column of a manifest, and {folder} is a folder: "
            "leave it out"
        )
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


def _grouped(recordings: list[Recording], folder: Path, wanted: str | None) -> list[Recording]:
    """A folder's recordings with their groups: who speaks, where the layout tells, or by the names of the files."""
    if wanted is None or any(recording.group for recording in recordings):
        return recordings
    if wanted == "speaker" and any(recording.speaker for recording in recordings):
        groups = [recording.speaker for recording in recordings]
    else:
        names = [os.path.relpath(recording.path, folder) for recording in recordings]
        groups = [group or None for group in named_by(wanted, names, str(folder))]
    return [dataclasses.replace(each, group=group) for each, group in zip(recordings, groups, strict=True)]


def located(folder: Path) -> tuple[str, Path]:
    """(layout, the folder that has it): a corpus may lie alone in the folder that is given, or in one in it."""
    place = folder
    for _ in range(3):
        layout = layout_of(place)
        if layout in _NESTED or (layout != "folder" and place == folder):
            return layout, place
        inside = [child for child in place.iterdir() if child.is_dir() and not child.name.startswith(".")]
        if len(inside) != 1:
            break
        place = inside[0]
    return layout_of(folder), folder


def layout_of(folder: Path) -> str:
    """The name of the layout in `_LAYOUTS`, by what lies where."""
    if any((folder / f"Session{i}" / "dialog" / "EmoEvaluation").is_dir() for i in range(1, 6)):
        return "iemocap"
    if (folder / "wav.scp").is_file():
        return "kaldi"
    if (folder / "clips").is_dir() and (folder / "train.tsv").is_file():
        return "common_voice"
    if any(re.fullmatch(r"(?i)dr[1-8]", p.name) for base in (folder, *_children(folder, "train", "test"))
           for p in base.iterdir()):  # fmt: skip
        return "timit"
    if (folder / "testing_list.txt").is_file() and (folder / "validation_list.txt").is_file():
        return "speech_commands"
    if next(folder.glob("*/*/*/*.trans.txt"), None) or next(folder.glob("*/*/*.trans.txt"), None):
        return "librispeech"
    if roots(folder):
        return "wsj"
    bases = [folder, folder / "wav", folder / "dev" / "wav", folder / "test" / "wav"]
    if any(re.fullmatch(r"id\d{5}", p.name) for base in bases if base.is_dir() for p in base.iterdir()):
        return "voxceleb"
    return "folder"


def _children(folder: Path, *names: str) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and path.name.lower() in names]


def audio_splits(path: Path) -> Splits:
    """The parts of this folder or manifest, as `--data.split` names them."""
    if path.is_file():
        return Splits.named(sorted({str(row["split"]) for row in manifest_rows(path) if row.get("split")}))
    layout, place = located(path)
    return _SPLITS[layout](place)


def _voxceleb_splits(folder: Path) -> tuple[str, ...]:
    return tuple(name for name in ("dev", "test") if (folder / name / "wav").is_dir())


def _split_folders(folder: Path) -> dict[str, Path]:
    subfolders = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    splits = {s: p for s, names in SPLIT_FOLDERS.items() for p in subfolders if p.name.lower() in names}
    return {} if any(p not in splits.values() and find_recordings(p, 1) for p in subfolders) else splits


def _folder(folder: Path, split: str | None, config: DataConfig) -> Listing:
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
    return Listing([
        Recording(str(p), top if labelled else None, text_beside(p, config.encoding))
        for p, top in zip(paths, tops, strict=True)
    ])  # fmt: skip


def _speech_commands(folder: Path, split: str | None, config: DataConfig) -> Listing:
    """WORD/speaker_nohash_number.wav; validation_list.txt and testing_list.txt name the parts; labels are words."""
    listed = {
        name: set(read_texts(folder / f"{file}_list.txt", config.encoding).split())
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
    return Listing(recordings)


def _voxceleb(folder: Path, split: str | None, config: DataConfig) -> Listing:  # noqa: ARG001 (a layout's)
    """[dev|test/]wav/idNNNNN/VIDEO/NNNNN.wav; labels are speakers. Without a split dev, on which it is trained."""
    if split is None and "dev" in _voxceleb_splits(folder):
        split = "dev"
    base = folder / split if split else folder
    if not base.is_dir():
        raise UserError(f"--data.split {split}: {folder} has {', '.join(_voxceleb_splits(folder)) or 'no such parts'}")
    recordings = []
    for path in find_recordings(base):
        speaker = next((part for part in path.parts if re.fullmatch(r"id\d{5}", part)), None)
        if speaker:
            recordings.append(Recording(str(path), speaker, speaker=speaker))
    return Listing(recordings)


def _kaldi(folder: Path, split: str | None, config: DataConfig) -> Listing:
    """wav.scp, and text, utt2spk and segments where they are there; labels are speakers."""
    if split is not None:
        raise UserError(f"--data.split {split}: {folder} is one part in Kaldi's form; give the folder of another part")

    def table(name: str) -> dict[str, str]:
        file = folder / name
        lines = read_texts(file, config.encoding).split("\n") if file.is_file() else []
        pairs = (line.split(maxsplit=1) for line in lines if line.strip())
        return {key: rest[0].strip() if rest else "" for key, *rest in pairs}

    files, texts, speakers = table("wav.scp"), table("text"), table("utt2spk")
    piped = next((value for value in files.values() if value.endswith("|")), None)
    if piped is not None:
        raise UserError(
            f"{folder}/wav.scp runs a command ({piped[:60]}): nothing is run here; write the audio to files"
        )
    recordings = []
    for utterance, place in (table("segments") or {key: f"{key} 0" for key in files}).items():
        try:
            source, start, *end = place.split()
            begin = float(start)
            duration = float(end[0]) - begin if end and float(end[0]) >= 0 else None  # (-1 is the end of the file)
        except ValueError as error:
            raise UserError(
                f"{folder}/segments, {utterance}: {place!r} is no recording with a start and an end in seconds"
            ) from error
        if source not in files:
            raise UserError(f"{folder}/segments names {source}, which is not in wav.scp")
        path = inside(folder, folder, files[source], config, f"{folder}/wav.scp, {source}")
        speaker = speakers.get(utterance)
        recordings.append(Recording(path, speaker, texts.get(utterance) or None, None, speaker, begin, duration))
    return Listing(recordings)


def _common_voice(folder: Path, split: str | None, config: DataConfig) -> Listing:
    """clips/, and a table a part: train.tsv, dev.tsv, test.tsv, ..."""
    names = [path.stem for path in sorted(folder.glob("*.tsv"))]
    split = split or "train"
    if split not in names:
        raise UserError(f"--data.split {split}: {folder} has {', '.join(names)}")
    return Listing(read_manifest(folder / f"{split}.tsv", None, config))


_LAYOUTS: dict[str, Layout] = {
    "folder": _folder,
    "timit": timit,
    "kaldi": _kaldi,
    "common_voice": _common_voice,
    "librispeech": librispeech,
    "speech_commands": _speech_commands,
    "voxceleb": _voxceleb,
    "iemocap": iemocap,
    "wsj": wsj,
}
_SPLITS: dict[str, Callable[[Path], Splits]] = {
    "folder": lambda folder: Splits.named(_split_folders(folder)),
    "timit": timit_splits,
    "kaldi": lambda _: Splits(),
    "common_voice": lambda folder: Splits.named(sorted(table.stem for table in folder.glob("*.tsv"))),
    "librispeech": librispeech_splits,
    "speech_commands": lambda _: Splits.named(("train", "val", "test")),
    "voxceleb": lambda folder: Splits.named(_voxceleb_splits(folder)),
    "iemocap": iemocap_splits,
    "wsj": wsj_splits,
}


def _holds_audio(what: str) -> bool:
    """Whether this is a manifest, or a folder of recordings with no images on top of it."""
    path = at_home(what)
    if path.is_file():
        return path.suffix.lower() in MANIFESTS
    if not path.is_dir():
        return False
    if (path / "wav.scp").is_file():  # Kaldi's: the recordings may lie anywhere
        return True
    pictures = image_extensions()
    for _, folders, names in os.walk(path):  # the first file that is either decides for images: trees can be large
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        kinds = {Path(name).suffix.lower() for name in names if name[0] != "."}
        if kinds & pictures:
            return False
        if kinds & {*EXTENSIONS, *FFMPEG_EXTENSIONS}:
            return not find_pictures(path)
    return False


def _open(what: str, split: str | None, config: DataConfig) -> Source:
    return open_audio(at_home(what), split, config)  # type: ignore[return-value]  # it reads recordings


AUDIO = Format(
    "a folder or manifest of recordings",
    _holds_audio,
    _open,
    lambda what: audio_splits(at_home(what)),
)
