"""Public corpora of speech by their layout on disk: LibriSpeech, TIMIT, WSJ and IEMOCAP.

Whoever has one gives its folder, as it is delivered or unpacked. Speakers, texts, classes and official parts are those
of the corpus' own files; what is not there is told.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from twofold.data.base import Splits
from twofold.data.config import DataConfig
from twofold.data.sources.audio import Listing, Recording, find_recordings
from twofold.data.sources.outside import inside
from twofold.data.sources.texts import read_texts, text_beside
from twofold.errors import UserError
from twofold.reading import unreadable_folder
from twofold.text import counted, counted_have

LIBRISPEECH_TRAINING = ("train-clean-100", "train-clean-360", "train-other-500")
"""The subsets that are LibriSpeech's 960 hours."""
EMOTIONS = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad"}
"""IEMOCAP's codes of the four usual classes; excited counts as happy."""
_SESSIONS = {"Session1": 1085, "Session2": 1023, "Session3": 1151, "Session4": 1031, "Session5": 1241}
"""Utterances of these classes in each session (s3prl's lists for SUPERB)."""
_KINDS = {"improvised": "impro", "scripted": "script"}
_TIMIT_SIZES = {"train": 4620, "test": 1680, "train-sx-si": 3696, "core-test": 192, "dev": 400}
"""Recordings of each part: ten of each speaker, eight without the two sentences that all say."""
_CORE = (
    "mdab0 mwbt0 felc0 mtas1 mwew0 fpas0 mjmp0 mlnt0 fpkt0 mlll0 mtls0 fjlm0 mbpm0 mklt0 fnlp0 mcmj0 mjdh0 fmgd0 "
    "mgrt0 mnjm0 fdhc0 mjln0 mpam0 fmld0"
)
_DEV = (
    "faks0 fdac1 fjem0 mgwt0 mjar0 mmdb1 mmdm2 mpdf0 fcmh0 fkms0 mbdg0 mbwm0 mcsh0 fadg0 fdms0 fedw0 mgjf0 mglb0 mrtk0 "
    "mtaa0 mtdt0 mthc0 mwjg0 fnmr0 frew0 fsem0 mbns0 mmjr0 mdls0 mdlf0 mdvc0 mers0 fmah0 fdrw0 mrcs0 mrjm4 fcal1 mmwh0 "
    "fjsj0 majc0 mjsw0 mreb0 fgjd0 fjmg0 mroa0 mteb0 mjfc0 mrjr0 fmml0 mrws1"
)
CORE_TEST = frozenset(_CORE.split())
"""Speakers of TIMIT's core test set: two men and a woman of each dialect region."""
DEVELOPMENT = frozenset(_DEV.split())
"""The fifty speakers of TIMIT's test part on whom Kaldi's recipe chooses settings; none is of the core test set."""


# LibriSpeech


def librispeech_splits(folder: Path) -> Splits:
    """The subsets that are there."""
    return Splits.named(sorted(p.name for p in folder.iterdir() if next(p.glob("*/*/*.trans.txt"), None)))


def librispeech(folder: Path, split: str | None, config: DataConfig) -> Listing:
    """SUBSET/speaker/chapter/speaker-chapter-number.flac, texts in speaker-chapter.trans.txt; labels are speakers.

    Without a split all subsets whose names begin with train. A recording without a line of text is one without text.
    """
    base, there = folder / split if split else folder, librispeech_splits(folder).names
    if not base.is_dir():
        raise UserError(f"--data.split {split}: {folder} has {', '.join(there)}")
    training = [folder / name for name in there if name.startswith("train")]
    bases = [base] if split or not training else training
    recordings, untold = [], 0
    for chapter, tables, flacs in sorted(each for base in bases for each in _chapters(base)):
        told = set()
        for table in sorted(tables):
            for name, text in _lines(chapter / table, config):
                told.add(f"{name}.flac")
                path = inside(chapter, chapter, f"{name}.flac", config, str(chapter / table))
                recordings.append(Recording(path, name.split("-")[0], text, None, name.split("-")[0]))
        alone = sorted(set(flacs) - told)
        untold += len(alone)
        speakers = [name.split("-")[0] for name in alone]
        recordings += [Recording(str(chapter / n), s, None, None, s) for n, s in zip(alone, speakers, strict=True)]
    notes = [f"{counted_have(untold, 'recording')} no line in a .trans.txt file"] if untold else []
    gone = [name for name in LIBRISPEECH_TRAINING if training and not split and name not in there]
    notes += [f"of the 960 hours {', '.join(gone)} {_are(gone)} not there"] if gone else []
    return Listing(recordings, "; ".join(notes))


def _chapters(base: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, tables of texts, recordings) of each folder that has either."""
    for place, folders, names in os.walk(base, onerror=unreadable_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        tables = [name for name in names if name.endswith(".trans.txt")]
        flacs = [name for name in names if name.endswith(".flac") and not name.startswith(".")]
        if tables or flacs:
            yield Path(place), tables, flacs


def _lines(table: Path, config: DataConfig) -> Iterator[tuple[str, str]]:
    """(name, text) of each line."""
    for line in read_texts(table, config.encoding).split("\n"):
        if line.strip():
            name, _, text = line.partition(" ")
            yield name, text


def _are(names: Iterable[str]) -> str:
    return "is" if len(list(names)) == 1 else "are"


# TIMIT


def timit_splits(folder: Path) -> Splits:
    """The corpus' own parts that are there, and parts of these without the sentences that all speakers say."""
    parts = sorted(path.name.lower() for path in folder.iterdir() if path.name.lower() in ("train", "test"))
    of = {"train": ("train-sx-si",), "test": ("core-test", "dev")}
    return dataclasses.replace(Splits.named(parts), others=tuple(name for part in parts for name in of[part]))


def timit(folder: Path, split: str | None, config: DataConfig) -> Listing:
    """[TRAIN|TEST/]DRn/SPEAKER/SENTENCE.WAV, texts after two sample numbers in SENTENCE.TXT; labels are speakers.

    The files are NIST SPHERE by content. A copy that holds SENTENCE.WAV.wav, too, is read once. `data.audio.text
    phones` takes the phones of SENTENCE.PHN, as labelled, in place of the words. `train-sx-si`, `core-test` and `dev`
    leave out SA1 and SA2, which all speakers say.
    """
    parts = {path.name.lower(): path for path in folder.iterdir() if path.name.lower() in ("train", "test")}
    split = split or ("train" if "train" in parts else None)
    known = timit_splits(folder)
    if split is not None and split not in known.names + known.others:
        raise UserError(f"--data.split {split}: {folder} has {', '.join(known.names + known.others)}")
    base = folder if split is None else parts["train" if split.startswith("train") else "test"]
    speakers = {"core-test": CORE_TEST, "dev": DEVELOPMENT}.get(split or "")
    recordings = []
    for path in _once(find_recordings(base)):
        speaker, sentence = path.parent.name, path.name.partition(".")[0]
        if split not in (None, "train", "test") and sentence.lower().startswith("sa"):
            continue
        if speakers is None or speaker.lower() in speakers:
            text = _phones(path, config) if config.audio.text == "phones" else _words(path, config)
            recordings.append(Recording(str(path), speaker, text, None, speaker))
    untold = sum(recording.text is None for recording in recordings)
    notes = [f"{counted_have(untold, 'recording')} no text beside them"] if untold else []
    whole = _TIMIT_SIZES.get(split or "", 0)
    notes += [f"{len(recordings):,} of its {counted(whole, 'recording')} are there"] if len(recordings) < whole else []
    return Listing(recordings, "; ".join(notes))


def _once(paths: Iterable[Path]) -> list[Path]:
    """One file of each sentence: X.WAV where it lies beside X.WAV.wav."""
    found: dict[Path, Path] = {}
    for path in sorted(paths, key=lambda path: (len(path.name), path)):
        found.setdefault(path.parent / path.name.partition(".")[0].lower(), path)
    return sorted(found.values())


def _sentence(path: Path) -> Path:
    return path.with_name(path.name.partition(".")[0] + ".WAV")


def _words(path: Path, config: DataConfig) -> str | None:
    text = text_beside(_sentence(path), config.encoding)
    return re.sub(r"^\d+ \d+ ", "", text) if text else None


def _phones(path: Path, config: DataConfig) -> str | None:
    """The labels of SENTENCE.PHN, which has a first and a last sample and a label on each line."""
    text = text_beside(_sentence(path), config.encoding, ".phn")
    if text is None:
        return None
    rows = [line.split() for line in text.split("\n") if line.strip()]
    bad = next((row for row in rows if len(row) != 3), None)
    if bad is not None:
        raise UserError(
            f"{_sentence(path).with_suffix('.PHN')}: {' '.join(bad)!r} is no first and last sample and a phone"
        )
    return " ".join(row[2] for row in rows)


# IEMOCAP


def iemocap_splits(folder: Path) -> Splits:  # noqa: ARG001  # the same in every copy
    """One whole, of which its two kinds of dialogue can be taken."""
    return Splits(others=tuple(_KINDS))


def iemocap(folder: Path, split: str | None, config: DataConfig) -> Listing:
    """SessionN/sentences/wav/DIALOGUE/UTTERANCE.wav; the four usual classes (excited counts as happy); folds are
    sessions, texts are those of SessionN/dialog/transcriptions.

    Utterances of other emotions are left out. `improvised` and `scripted` take one kind of dialogue: in scripted ones
    the sessions say the same texts.
    """
    if split is not None and split not in _KINDS:
        raise UserError(
            f"--data.split {split}: IEMOCAP has {' and '.join(_KINDS)} dialogues; its sessions are folds, see --folds"
        )
    recordings, notes = [], []
    for session in sorted(folder.glob("Session?")):
        found, untold = _session(session, _KINDS.get(split or "", ""), config)
        recordings += found
        notes += (
            [f"{counted(untold, 'utterance')} of {session.name} {'has' if untold == 1 else 'have'} no transcription"]
            if untold
            else []
        )
        whole = _SESSIONS.get(session.name, 0)
        if split is None and len(found) < whole:
            notes.append(f"{session.name} has {len(found):,} of {counted(whole, 'utterance')} of the four classes")
    gone = [name for name in _SESSIONS if not (folder / name / "dialog" / "EmoEvaluation").is_dir()]
    notes += [f"{', '.join(gone)} {_are(gone)} not there"] if gone else []
    return Listing(recordings, "; ".join(notes))


def _session(session: Path, kind: str, config: DataConfig) -> tuple[list[Recording], int]:
    """The utterances of a session whose dialogues are of a kind, and how many of them have no text."""
    recordings = []
    for table in sorted((session / "dialog" / "EmoEvaluation").glob("*.txt")):
        if kind not in table.stem:
            continue
        said = _said(session / "dialog" / "transcriptions" / table.name, config)
        rows = re.findall(r"^\[[\d. -]+\]\t(\S+)\t(\w+)\t", read_texts(table, config.encoding), re.MULTILINE)
        for name, code in rows:
            if code in EMOTIONS:
                wanted = f"{table.stem}/{name}.wav"
                path = inside(session, session / "sentences" / "wav", wanted, config, str(table))
                speaker = f"{name[:5]}{name.rsplit('_', 1)[1][0]}" if "_" in name else None
                recordings.append(Recording(path, EMOTIONS[code], said.get(name), session.name, speaker))
    return recordings, sum(recording.text is None for recording in recordings)


def _said(table: Path, config: DataConfig) -> dict[str, str]:
    """Utterance -> text: `Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.` on a line; others are remarks."""
    if not table.is_file():
        return {}
    return dict(re.findall(r"^(\S+) \[[\d. -]+\]: *(.*\S)", read_texts(table, config.encoding), re.MULTILINE))
