"""Words in many synthetic voices: the test of telling a word from voices that were never heard."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twofold.data.decoding.recordings import soundfile
from twofold.data.sources.audio import Recording, resampled
from twofold.errors import UserError
from twofold.randomness import Key, permutation, uniforms

PROGRAM = "espeak-ng"
WORDS = (
    "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "zero", "one", "two", "three", "four",
    "five", "six", "seven", "eight", "nine",
)  # fmt: skip
"""What has to be told: the ten commands and the ten digits of Speech Commands (arXiv 1804.03209)."""
OTHERS = (
    "bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow", "backward", "forward", "follow",
    "learn", "visual",
)  # fmt: skip
"""The other words of that data set, which are heard in pretraining and never asked for."""
ACCENTS = (
    "en-gb", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp", "en-029", "en-us-nyc",
)  # fmt: skip
VARIANTS = (
    "adam", "Alex", "Alicia", "Andrea", "Andy", "Annie", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb",
    "david", "Denis", "Diogo", "ed", "edward", "gene", "Gustave", "Henrique", "Hugo", "iven", "Jacky", "john",
    "kaukovalta", "Lee", "linda", "Marcelo", "Marco", "max", "michael", "miguel", "Mike", "norbert", "pablo", "paul",
    "pedro", "quincy", "rob", "robert", "steph", "steph2", "Storm", "travis", "victor", "f1", "f2", "f3", "f4", "f5",
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "klatt2", "klatt4",
)  # fmt: skip
"""Voices of espeak-ng 1.51 and later that speak, and do not whisper or imitate a machine."""
_NOISE = 1e-3
"""Of the peak: synthetic speech has digital silence between recordings, which no recording has."""


@dataclass(frozen=True)
class Voice:
    """A synthetic voice: a variant of the program's with an accent, a pitch (0..99) and a rate in words a minute."""

    name: str
    accent: str
    pitch: int
    speed: int


def voices() -> list[Voice]:
    """Sixty voices, the same everywhere."""
    u = uniforms(Key(0, 0), "keywords", np.arange(len(VARIANTS)), 2)
    return [
        Voice(name, ACCENTS[i % len(ACCENTS)], 25 + int(50 * u[i, 0]), 130 + int(70 * u[i, 1]))
        for i, name in enumerate(VARIANTS)
    ]


def unseen(names: list[str]) -> NDArray[np.bool_]:
    """[n] whether each name is one of the half of the voices that only tests hear."""
    held = {VARIANTS[i] for i in permutation(0, "unseen voices", 0, len(VARIANTS))[: len(VARIANTS) // 2].tolist()}
    return np.array([name in held for name in names])


def available() -> bool:
    """Whether the program that speaks is installed."""
    return shutil.which(PROGRAM) is not None


def speak(folder: Path, rate: int) -> list[Recording]:
    """Every word by every voice as `folder`/voice-word.wav at `rate` Hz; files that are there are not made again.

    Returns:
        Recordings with the word as label and the voice as speaker.

    Raises:
        UserError: the program is not installed, or does not know a voice.
    """
    if not available():
        raise UserError(f"words in many voices need {PROGRAM}: apt-get install {PROGRAM}")
    folder.mkdir(parents=True, exist_ok=True)
    asked = [(voice, word, folder / f"{voice.name}-{word}.wav") for voice in voices() for word in (*WORDS, *OTHERS)]
    missing = [part for part in asked if not part[2].exists()]
    with ThreadPoolExecutor() as threads:
        for _ in threads.map(lambda part: _speak(part[0], part[1], part[2], rate), missing):
            pass  # raises what went wrong
    return [Recording(str(path), word, word, None, voice.name) for voice, word, path in asked]


def _speak(voice: Voice, word: str, path: Path, rate: int) -> None:
    raw = path.with_suffix(".part")
    how = ["-v", f"{voice.accent}+{voice.name}", "-p", str(voice.pitch), "-s", str(voice.speed)]
    predicted = subprocess.run([PROGRAM, *how, "-w", raw, word], capture_output=True, text=True, check=False)
    if predicted.returncode or not raw.exists():
        raise UserError(f"{PROGRAM} did not say {word!r} as {voice.accent}+{voice.name}: {predicted.stderr.strip()}")
    wave, own = soundfile().read(raw, dtype="float32")
    wave = resampled(wave, own, rate)
    noise = np.random.Generator(np.random.Philox(key=len(wave))).standard_normal(len(wave), dtype=np.float32)
    wave = wave + _NOISE * float(np.abs(wave).max()) * noise
    soundfile().write(raw, wave, rate, format="WAV", subtype="PCM_16")
    raw.replace(path)  # a file that is there is whole
