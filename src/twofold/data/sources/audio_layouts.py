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
from twofold.data.sources.audio import AudioSource, Recording, find_recordings
from twofold.data.sources.files import SPLIT_FOLDERS
from twofold.data.sources.manifests import MANIFESTS, manifest_rows, most_text, read_manifest
from twofold.data.sources.outside import inside
from twofold.errors import UserError
from twofold.files import at_home
from twofold.reading import read_text

_LONGEST_TRANSCRIPT = 2**24
"""Bytes of a transcript beside a recording: hours of speech are some hundred thousand."""
_EMOTIONS = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad"}

Layout = Callable[[Path, str | None, DataConfig], list[Recording]]


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
        recordings = _relabelled(_LAYOUTS[layout_of(path)](path, split, config), path, config.audio)
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
            f"{config.channels}: leave the option out, or use an encoder of speech"
        )


def _relabelled(recordings: list[Recording], folder: Path, config: AudioConfig) -> list[Recording]:
    """A folder's recordings with speakers as labels or folds, where these are asked for; a folder has no columns."""
    columns = {option: getattr(config, option) for option in ("path", "text", "speaker")}
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
    bases = [folder, folder / "wav", folder / "dev" / "wav", folder / "test" / "wav"]
    if any(re.fullmatch(r"id\d{5}", p.name) for base in bases if base.is_dir() for p in base.iterdir()):
        return "voxceleb"
    return "folder"


def _children(folder: Path, *names: str) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and path.name.lower() in names]


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
    if layout == "timit":
        return tuple(sorted(path.name.lower() for path in _children(path, "train", "test")))
    if layout == "common_voice":
        return tuple(sorted(table.stem for table in path.glob("*.tsv")))
    if layout == "kaldi":
        return ()
    if layout == "voxceleb":
        return tuple(name for name in ("dev", "test") if (path / name / "wav").is_dir())
    return tuple(_split_folders(path))


def _split_folders(folder: Path) -> dict[str, Path]:
    subfolders = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    splits = {s: p for s, names in SPLIT_FOLDERS.items() for p in subfolders if p.name.lower() in names}
    return {} if any(p not in splits.values() and find_recordings(p, 1) for p in subfolders) else splits


def _folder(folder: Path, split: str | None, config: DataConfig) -> list[Recording]:
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
    return [
        Recording(str(p), top if labelled else None, _text_beside(p, config.encoding))
        for p, top in zip(paths, tops, strict=True)
    ]


def _text_beside(path: Path, encoding: str) -> str | None:
    """The transcript in a .txt file of the same name."""
    file = next((file for file in (path.with_suffix(".txt"), path.with_suffix(".TXT")) if file.is_file()), None)
    if file is None:
        return None
    if file.stat().st_size > _LONGEST_TRANSCRIPT:
        raise UserError(f"{file} has {file.stat().st_size:,} bytes, and would be what {path.name} says: take it away")
    return _read(file, encoding).strip() or None


def _read(file: Path, encoding: str) -> str:
    """A file of texts; UserError where it is written otherwise."""
    try:
        return read_text(file, most_text(), encoding)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    except (UnicodeDecodeError, LookupError) as error:
        raise UserError(
            f"{file} is not written in {encoding} ({error}): save it as UTF-8, or say what it is with --data.encoding"
        ) from error


def _librispeech(folder: Path, split: str | None, config: DataConfig) -> list[Recording]:
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
        for line in _read(table, config.encoding).split("\n"):
            if not line.strip():
                continue
            name, _, text = line.partition(" ")
            speaker = name.split("-")[0]
            path = inside(table.parent, table.parent, f"{name}.flac", config, str(table))
            recordings.append(Recording(path, speaker, text, None, speaker))
    return recordings


def _speech_commands(folder: Path, split: str | None, config: DataConfig) -> list[Recording]:
    """WORD/speaker_nohash_number.wav; validation_list.txt and testing_list.txt name the parts; labels are words."""
    listed = {
        name: set(_read(folder / f"{file}_list.txt", config.encoding).split())
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


def _voxceleb(folder: Path, split: str | None, config: DataConfig) -> list[Recording]:  # noqa: ARG001 (a layout's)
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


def _iemocap(folder: Path, split: str | None, config: DataConfig) -> list[Recording]:
    """SessionN/sentences/wav/DIALOGUE/UTTERANCE.wav; the four usual classes (excited counts as happy); folds are
    sessions. Utterances of other emotions are left out."""
    if split is not None:
        raise UserError(f"--data.split {split}: IEMOCAP has sessions, which are folds, and no splits")
    recordings = []
    for session in sorted(folder.glob("Session?")):
        for table in sorted((session / "dialog" / "EmoEvaluation").glob("*.txt")):
            for name, code in re.findall(r"^\[[\d. -]+\]\t(\S+)\t(\w+)\t", _read(table, config.encoding), re.MULTILINE):
                path = session / "sentences" / "wav" / table.stem / f"{name}.wav"
                if code in _EMOTIONS and path.is_file():
                    speaker = f"{name[:5]}{name.rsplit('_', 1)[1][0]}"
                    recordings.append(Recording(str(path), _EMOTIONS[code], None, session.name, speaker))
    return recordings


def _timit(folder: Path, split: str | None, config: DataConfig) -> list[Recording]:
    """[TRAIN|TEST/]DRn/SPEAKER/SENTENCE.WAV, texts after two sample numbers in SENTENCE.TXT; labels are speakers."""
    parts = {path.name.lower(): path for path in folder.iterdir() if path.name.lower() in ("train", "test")}
    split = split or ("train" if "train" in parts else None)
    if split is not None and split not in parts:
        raise UserError(f"--data.split {split}: {folder} has {', '.join(parts)}")
    recordings = []
    for path in find_recordings(folder if split is None else parts[split]):
        text, speaker = _text_beside(path, config.encoding), path.parent.name
        words = re.sub(r"^\d+ \d+ ", "", text) if text else None
        recordings.append(Recording(str(path), speaker, words, None, speaker))
    return recordings


def _kaldi(folder: Path, split: str | None, config: DataConfig) -> list[Recording]:
    """wav.scp, and text, utt2spk and segments where they are there; labels are speakers."""
    if split is not None:
        raise UserError(f"--data.split {split}: {folder} is one part in Kaldi's form; give the folder of another part")

    def table(name: str) -> dict[str, str]:
        file = folder / name
        lines = _read(file, config.encoding).split("\n") if file.is_file() else []
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
    return recordings


def _common_voice(folder: Path, split: str | None, config: DataConfig) -> list[Recording]:
    """clips/, and a table a part: train.tsv, dev.tsv, test.tsv, ..."""
    names = [path.stem for path in sorted(folder.glob("*.tsv"))]
    split = split or "train"
    if split not in names:
        raise UserError(f"--data.split {split}: {folder} has {', '.join(names)}")
    return read_manifest(folder / f"{split}.tsv", None, config)


_LAYOUTS: dict[str, Layout] = {
    "folder": _folder,
    "timit": _timit,
    "kaldi": _kaldi,
    "common_voice": _common_voice,
    "librispeech": _librispeech,
    "speech_commands": _speech_commands,
    "voxceleb": _voxceleb,
    "iemocap": _iemocap,
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
    lambda what: Splits.named(audio_splits(at_home(what))),
)
