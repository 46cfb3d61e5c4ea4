"""Features of recordings: read by as many threads as asked, the same whatever their number."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from sound_files import RATE, speech_folder
from twofold.data import AudioSource, DataConfig, open_source
from twofold.encoders import SpeechEncoder
from twofold.errors import UserError
from twofold.evaluation.features import Extractor


@pytest.fixture(scope="module")
def encoder() -> SpeechEncoder:
    return SpeechEncoder(mels=20, width=16, layers=1, heads=2, hidden=32, sample_rate=RATE).eval()


def test_recordings_are_read_by_as_many_threads_as_asked(
    encoder: SpeechEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, read = open_source(speech_folder(tmp_path / "clips", 2, 6)), AudioSource.read
    alone = Extractor(workers=1).extract(encoder, source)
    together = threading.Barrier(3)

    def at_once(self: AudioSource, index: int) -> np.ndarray:
        together.wait(timeout=20)  # breaks unless three threads come
        return read(self, index)

    monkeypatch.setattr(AudioSource, "read", at_once)
    np.testing.assert_array_equal(Extractor(workers=3).extract(encoder, source).h, alone.h)


@pytest.mark.parametrize(("allowed", "words"), [
    (1.0, "none of its 4 recordings can be read"), (0.25, "2 of 4 recordings cannot be read"),
])  # fmt: skip
def test_of_recordings_it_speaks_of_recordings(
    encoder: SpeechEncoder, tmp_path: Path, allowed: float, words: str
) -> None:
    folder = speech_folder(tmp_path / "clips", 2, 2)
    source = open_source(folder, DataConfig(max_skipped=allowed))
    for path in folder.rglob("*.wav"):
        path.unlink()
    with pytest.raises(UserError, match=words):
        Extractor().extract(encoder, source)
