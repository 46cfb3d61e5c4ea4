"""Small recordings for tests: tones with a syllable's envelope; what is said decides the pitch contour."""

import numpy as np
import soundfile

RATE = 8000


def tone(word=0, voice=0, seconds=0.5, rate=RATE, seed=0):
    """A recording whose partials tell the word, and whose pitch and loudness tell the voice."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    pitch = 100 * 2 ** (voice / 6)
    formants = 400 + 250 * word, 1200 + 300 * ((word * 3) % 5)
    partials = []
    for k in range(1, int(rate / 2 / pitch)):
        loud = sum(np.exp(-(((pitch * k - f) / 150) ** 2)) for f in formants)
        partials.append(loud * np.sin(2 * np.pi * pitch * k * t + rng.uniform(0, 6)))
    wave = sum(partials) * np.sin(np.pi * t / t[-1]) + rng.normal(0, 0.01, len(t))
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


def write(path, wave, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate)
    return path


def speech_folder(root, words=3, each=8, rate=RATE):
    """root/word0/0.wav, ...: clips of different lengths, one class a word."""
    for word in range(words):
        for i in range(each):
            wave = tone(word, i % 4, 0.3 + 0.05 * (i % 5), rate, seed=100 * word + i)
            write(root / f"word{word}" / f"{i}.wav", wave, rate)
    return root
