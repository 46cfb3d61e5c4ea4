"""Recordings in tar archives named as WebDataset names them: KEY.flac with KEY.txt, KEY.cls or KEY.json."""

from __future__ import annotations

import functools
import io
import json
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold.data.config import DataConfig
from twofold.data.decoding.images import image_extensions
from twofold.data.decoding.recordings import EXTENSIONS, FFMPEG_EXTENSIONS
from twofold.data.sources.audio import AudioSource
from twofold.data.sources.audio_layouts import refuse_colours
from twofold.data.sources.manifests import choose_columns, with_groups
from twofold.data.sources.tars import LARGEST_LABEL
from twofold.errors import UserError
from twofold.reading import regular
from twofold.text import counted

_KINDS = {*EXTENSIONS, *FFMPEG_EXTENSIONS}
_LOOKED_AT = 1000
"""Members of an archive that tell whether it holds recordings or images."""


@dataclass(frozen=True)
class TarMember:
    """The bytes of one member of a plain tar archive, read by position."""

    archive: str
    offset: int
    size: int

    @property
    def file(self) -> str:
        """The archive."""
        return self.archive

    def open(self) -> io.BufferedReader:
        """A file of the member alone, of which no more is read than is asked for."""
        return io.BufferedReader(_Window(self.archive, self.offset, self.size))

    def read(self) -> bytes:
        """All of it; raises OSError where the archive has become shorter."""
        with self.open() as file:
            contents = file.read()
        if len(contents) < self.size:
            raise OSError(f"{self.archive} is cut short")
        return contents


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, path: str, offset: int, size: int) -> None:
        super().__init__()
        self._file, self._offset, self._size, self._place = os.open(path, os.O_RDONLY), offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._place))
        data = os.pread(self._file, count, self._offset + self._place)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()


@dataclass(frozen=True)
class _Walked:
    """What an archive holds: where each recording lies, by its name; what is said, by names without extension; and what
    is wrong with it."""

    archive: Path
    members: dict[str, TarMember]
    facts: dict[str, dict[str, Any]]
    problems: list[tuple[str, str]]

    def said(self, member: str) -> dict[str, Any]:
        """What members of the same name say of a recording, over what is said of its name up to the first dot."""
        folder, _, base = member.rpartition("/")
        key = f"{folder}/{base.partition('.')[0]}" if folder else base.partition(".")[0]
        return self.facts.get(key, {}) | self.facts.get(member.rpartition(".")[0], {})


def holds_recordings(paths: Sequence[Path]) -> bool:
    """Whether the first archive that holds recordings or images holds recordings."""
    pictures = image_extensions()
    for path in paths:
        try:
            regular(path)
            with tarfile.open(path, "r:") as archive:
                for _, member in zip(range(_LOOKED_AT), archive, strict=False):
                    kind = Path(member.name).suffix.lower()
                    if member.isfile() and kind in pictures | _KINDS and not Path(member.name).name.startswith("."):
                        return kind not in pictures
        except (tarfile.TarError, OSError, EOFError):  # told by whoever walks it
            continue
    return False


def open_audio_tars(paths: Sequence[Path], config: DataConfig, name: str) -> AudioSource:
    """The recordings of some archives, in the order of archives and members.

    KEY.txt is what is said, KEY.cls the label (a name or a number), and KEY.json holds any of both, the speaker and the
    fold, under the names that columns of a manifest have; `config.audio` names others. Every archive is walked once,
    and each recording is read by position.

    Raises:
        UserError: no recordings, or more unreadable ones than `max_skipped`; a text that is not in `config.encoding`.
    """
    refuse_colours(name, config)
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as threads:
        walked = list(threads.map(functools.partial(_walk, encoding=config.encoding), paths))
    known = list(dict.fromkeys(column for each in walked for facts in each.facts.values() for column in facts))
    columns = choose_columns(known, config.audio, name)
    recordings = [
        columns.recording(f"{each.archive}:{member}", each.said(member), place)
        for each in walked
        for member, place in each.members.items()
    ]
    said = [each.said(member) for each in walked for member in each.members]
    recordings = with_groups(recordings, said, config.group, known, columns.speaker, name)
    if not recordings:
        raise UserError(f"{name}: no recordings in {counted(len(paths), 'tar archive')} (members such as 000017.flac)")
    source = AudioSource(recordings, config, name)
    for each in walked:
        for path, reason in each.problems:
            source.skipped.add(path, reason)
    return source


def _walk(path: Path, encoding: str) -> _Walked:
    result = _Walked(path, {}, {}, [])
    try:
        size = regular(path).size
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                base, kind = Path(member.name).name, Path(member.name).suffix.lower()
                if not member.isfile() or base.startswith("."):
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"cut short in {member.name}")
                if kind in _KINDS:
                    result.members[member.name] = TarMember(str(path), member.offset_data, member.size)
                elif kind in (".txt", ".cls", ".json"):
                    _note(archive, member, encoding, result)
            if size < archive.offset + 512:
                raise tarfile.ReadError("cut short: the end of the archive is missing")
    except (tarfile.TarError, OSError, EOFError) as error:
        left = f"; {counted(len(result.members), 'recording')} before that can be used" if result.members else ""
        result.problems.append((str(path), f"not a whole tar archive ({error}){left}"))
    return result


def _note(archive: tarfile.TarFile, member: tarfile.TarInfo, encoding: str, result: _Walked) -> None:
    """Keep what a member says of its key."""
    place = f"{result.archive}:{member.name}"
    if member.size > LARGEST_LABEL:
        result.problems.append(
            (place, f"{member.size:,} bytes, more than the {LARGEST_LABEL:,} of a text that are read")
        )
        return
    stream = archive.extractfile(member)
    try:
        text = (stream.read() if stream is not None else b"").decode(encoding).strip()
        kind = Path(member.name).suffix.lower()
        said = json.loads(text) if kind == ".json" else {"label" if kind == ".cls" else "text": text}
    except (UnicodeDecodeError, LookupError) as error:
        raise UserError(
            f"{place} is not written in {encoding} ({error}): say what it is with --data.encoding"
        ) from error
    except (ValueError, RecursionError) as error:
        result.problems.append((place, f"no JSON: {error}"))
        return
    if isinstance(said, dict):
        if "label" not in said and "cls" in said:
            said["label"] = said["cls"]
        result.facts.setdefault(member.name.rpartition(".")[0], {}).update(said)
