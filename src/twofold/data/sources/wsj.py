"""The Wall Street Journal corpus (WSJ0 and WSJ1, or CSR-I and CSR-II) as its discs lie in a folder.

Below each disc is wsj0 or wsj1, in it a folder for each kind of speaker and use, such as si_tr_s, in it the speakers,
and an utterance is NAME.wv1 of the close microphone and NAME.wv2 of another one. The official parts are lists on the
discs; texts are in .dot files, a line an utterance with its name in brackets behind. The places of the lists, the
sentences that the usual training set leaves out, and what of a text is no word are as in Kaldi's egs/wsj/s5.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from twofold.data.base import Splits
from twofold.data.config import DataConfig
from twofold.data.decoding.recordings import extensions
from twofold.data.sources.audio import Listing, Recording
from twofold.data.sources.texts import read_texts
from twofold.errors import UserError
from twofold.reading import unreadable_folder
from twofold.text import counted, counted_have

_NVP = "wsj0/doc/indices/test/nvp/"
INDICES: dict[str, tuple[str, ...]] = {
    "si84": ("wsj0/doc/indices/train/tr_s_wv1.ndx",),
    "si284": ("wsj1/doc/indices/si_tr_s.ndx", "wsj0/doc/indices/train/tr_s_wv1.ndx"),
    "dev93": ("wsj1/doc/indices/h1_p0.ndx",),
    "dev93-5k": ("wsj1/doc/indices/h2_p0.ndx",),
    "eval92": (f"{_NVP}si_et_20.ndx",),
    "eval92-5k": (f"{_NVP}si_et_05.ndx",),
    "eval93": ("wsj1/doc/indices/wsj1/eval/h1_p0.ndx",),
    "eval93-5k": ("wsj1/doc/indices/wsj1/eval/h2_p0.ndx",),
}
"""The lists on the discs whose sentences are a part."""
_ROOT = re.compile(r"(?i)wsj[01]")
_DISCS = re.compile(r"(?i)(\d\d-\d+\.\d+|csr[\w-]*|wsj[\w-]*|ldc9[34]s\w*|dis[ck].*|cd.*)")
"""What the folders around wsj0 and wsj1 are called, as delivered or copied."""
_PART = re.compile(r"(?i)[a-z]{2,3}_(tr|dt|et)_\w+")
_LEFT_OUT = re.compile(r"wsj0/si_tr_s/401/")
"""The speaker whose sentences the usual training sets do without: 7,138 of 7,236 are left of SI-84."""
_NOISE = re.compile(r"\[[^\]\s]*\]")
_SIGNED = re.compile(r"(?i)^[%.](percent|point)$")
_PREFERRED = (".wav", ".flac", ".sph", ".wv1")


def roots(folder: Path) -> list[Path]:
    """Every wsj0 and wsj1 in a folder: it may be one of them, a disc, or hold discs, in one more folder or not."""
    if _ROOT.fullmatch(folder.name) and any(_PART.fullmatch(child.name) for child in _folders(folder)):
        return [folder]
    found, around = [], [folder]
    for _ in range(3):
        inside = [child for place in around for child in _folders(place)]
        found += [child for child in inside if _ROOT.fullmatch(child.name)]
        around = [child for child in inside if _DISCS.fullmatch(child.name) and not _ROOT.fullmatch(child.name)]
    with_speech = any(_PART.fullmatch(child.name) for root in found for child in _folders(root))
    return found if with_speech else []


def wsj_splits(folder: Path) -> Splits:
    """The folders of speech by name, and the official parts whose lists are there."""
    places = roots(folder)
    official = [name for name, files in INDICES.items() if all(_listed(places, file) for file in files)]
    own = sorted({child.name.lower() for root in places for child in _folders(root) if _PART.fullmatch(child.name)})
    training = next((name for name in ("si284", "si84") if name in official), None)
    if training is None or "eval92" not in official:
        return Splits(tuple(own), others=tuple(official))
    choice = (training, "dev93") if "dev93" in official else None
    return Splits(tuple(own), (training, "eval92"), choice, tuple(official))


def wsj(folder: Path, split: str | None, config: DataConfig) -> Listing:
    """Its sentences by the close microphone; labels are speakers.

    Without a split SI-284, or SI-84 where the second corpus is not there, by their lists; without lists all folders of
    training sentences. A sentence that was written anew lies beside the .wv1 file as .wav, .flac or .sph, and is taken
    in its place.

    Raises:
        UserError: no such part, or sentences of an official part that are not there.
    """
    places, known = roots(folder), wsj_splits(folder)
    names = known.others + known.names
    split = split or next((name for name in ("si284", "si84") if name in names), None)
    if split is not None and split not in names:
        gone = [file for file in INDICES.get(split, ()) if not _listed(places, file)]
        remedy = f" {split} is what {' and '.join(gone)} lists: add the disc that has it." if gone else ""
        raise UserError(f"--data.split {split}: {folder} has {', '.join(names)}.{remedy}")
    files, dots = _files(places)
    if split in INDICES:
        wanted = _of_lists(places, INDICES[split], config)
        missing = [name for name in wanted if name not in files]
        if missing:
            raise UserError(
                f"{folder}: {len(missing):,} of the {counted(len(wanted), 'sentence')} of {split} are not there, such "
                f"as {missing[0]}.wv1: add the discs that hold them, or name another part with --data.split"
            )
    else:
        wanted = [name for name in files if (name.split("/")[1] == split if split else "_tr_" in name.split("/")[1])]
        wanted = wanted if wanted or split else list(files)
    texts = _texts({name.rsplit("/", 1)[1] for name in wanted}, dots, config)
    recordings = []
    for name in wanted:
        utterance = name.rsplit("/", 1)[1]
        recordings.append(Recording(str(files[name]), utterance[:3], texts.get(utterance), None, utterance[:3]))
    untold = sum(recording.text is None for recording in recordings)
    return Listing(
        recordings,
        f"{counted_have(untold, 'sentence')} no text in a .dot file" if untold else "",
    )


def words_of(line: str) -> str:
    r"""A line of a .dot file without what is no word.

    Noises and remarks in square brackets go, and pauses (a dot alone), the mark of a text that was cut off (~), quoting
    (\) and the angle brackets around words that the prompt does not have; %PERCENT and .POINT lose their sign. The
    marks of words said wrongly, stressed or drawn out (*, ! and :) go, too, which is ours.
    """
    words = []
    for word in _NOISE.sub(" ", line.replace("\\", "")).split():
        if word in ("~", "."):
            continue
        word = _SIGNED.sub(r"\1", re.sub(r"[*!:]", "", word))
        words.append(re.sub(r"^<([^<>]+)>$", r"\1", word))
    return " ".join(word for word in words if word)


def _folders(place: Path) -> list[Path]:
    try:
        with os.scandir(place) as inside:
            return sorted(Path(each.path) for each in inside if not each.name.startswith(".") and each.is_dir())
    except OSError:  # (a folder that may not be read is none of the corpus')
        return []


def _listed(places: Iterable[Path], file: str) -> Path | None:
    """The file of the discs whose name from wsj0 or wsj1 on is this, in small letters or capitals."""
    root, *rest = file.split("/")
    for place in (place for place in places if place.name.lower() == root):
        found: Path | None = place
        for name in rest:
            inside = {child.name.lower(): child for child in found.iterdir()} if found and found.is_dir() else {}
            found = inside.get(name)
        if found is not None and found.is_file():
            return found
    return None


def _of_lists(places: Iterable[Path], files: Iterable[str], config: DataConfig) -> list[str]:
    """The sentences that lists name, `11_6_1:wsj0/si_tr_s/01i/01ic0201.wv1` on a line, as wsj0/si_tr_s/01i/01ic0201."""
    found = []
    for file in files:
        place = _listed(places, file)
        assert place is not None  # it was among the parts
        for line in read_texts(place, config.encoding).split("\n"):
            if not line.strip() or line.startswith(";"):
                continue
            name = line.rpartition(":")[2].strip().strip("/").lower()
            name = re.sub(r"\.wv[12]$", "", name)
            if not re.fullmatch(r"wsj[01](/\w+){3,}", name):
                raise UserError(f"{place}: {line.strip()!r} names no sentence of the corpus")
            if not _LEFT_OUT.match(name):
                found.append(name)
    return sorted(dict.fromkeys(found))


def _files(places: Iterable[Path]) -> tuple[dict[str, Path], list[Path]]:
    """The sentences, wsj0/si_tr_s/01i/01ic0201 -> its file, and the .dot files."""
    found: dict[str, Path] = {}
    dots = []
    for root in places:
        for place, folders, names in os.walk(root, onerror=unreadable_folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in (Path(place, name) for name in sorted(names)):
                if file.suffix.lower() == ".dot":
                    dots.append(file)
                elif file.suffix.lower() in extensions() and ".wv2" not in file.name.lower():
                    own = file.name.partition(".")[0]  # (A.wv1.wav is what some call what A.wv1 was unpacked to)
                    key = "/".join((root.name, *file.relative_to(root).parent.parts, own)).lower()
                    if key.count("/") > 2 and _PART.fullmatch(key.split("/")[1]):
                        found[key] = min((found.get(key, file), file), key=_rank)
    return dict(sorted(found.items())), dots


def _rank(file: Path) -> int:
    suffix = file.suffix.lower()
    return _PREFERRED.index(suffix) if suffix in _PREFERRED else len(_PREFERRED)


def _texts(wanted: set[str], dots: Iterable[Path], config: DataConfig) -> Mapping[str, str]:
    """Utterance -> text. A .dot file holds the sentences of a session, by the first six letters of its name."""
    sessions = {name[:6] for name in wanted}
    found: dict[str, str] = {}
    for file in dots:
        if file.stem.lower()[:6] in sessions:
            found.update(each for each in _dotted(file, config) if each[0] in wanted)
    return found


def _dotted(file: Path, config: DataConfig) -> Iterator[tuple[str, str]]:
    for line in read_texts(file, config.encoding).split("\n"):
        match = re.fullmatch(r"(.*?)\s*\((\w+)\)\s*", line)
        if match and (words := words_of(match[1])):
            yield match[2].lower(), words
