"""Files that were replaced by others of the same name and size are noticed."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sound_files import RATE, tone, write
from twofold.data import open_source
from twofold.data.content import content_digest
from twofold.data.sources.subset import subset


def save(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)


def test_images_of_the_same_size_in_bytes(tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.bmp", i)
    before = open_source(tmp_path)
    fingerprint, content = before.fingerprint(), content_digest(before)
    assert content_digest(open_source(tmp_path)) == content
    save(tmp_path / "3.bmp", 99)
    after = open_source(tmp_path)
    assert after.fingerprint() == fingerprint, "names and sizes are what they were"
    assert content_digest(after) != content
    assert content_digest(subset(after, [0, 1])) == content_digest(after)


def test_recordings_of_the_same_length(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.wav", tone(i), RATE)
    before = content_digest(open_source(tmp_path))
    write(tmp_path / "1.wav", tone(1, 2), RATE)
    assert content_digest(open_source(tmp_path)) != before


@pytest.mark.parametrize("dtype", [np.uint8])
def test_arrays_are_their_own_fingerprint(dtype):
    assert content_digest(open_source(np.zeros((4, 8, 8), dtype))) is None
