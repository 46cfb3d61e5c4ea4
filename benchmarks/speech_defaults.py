"""What pretraining on recordings buys, arms for each question: trimming, batches,
lengths, views, masks, losses, pooling, size, learning rate.

    python benchmarks/speech_defaults.py --out runs/speech-defaults --minutes 3 --seeds 5
    python benchmarks/speech_defaults.py --out runs/speech-defaults --minutes 3 --arms recipe,lengths,masks
    python benchmarks/speech_defaults.py --out runs/speech-passes --passes 12 --seeds 2   # equal passes over the data

Data: the voices of Debian's asterisk-core-sounds-*-wav that are installed, without labels for pretraining; the letters
of the alphabet that every voice says are the test. Each voice is held out in turn: a logistic regression of one penalty
is fitted on the letters of the others. Beside each other: the filterbank, the untrained encoder and every arm, each
read whole and by thirds. A row is mean and standard error over seeds; `results.json` has all values.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import twofold
from twofold.data import AudioSource, DataConfig
from twofold.data.config import AudioConfig
from twofold.data.sources.audio import Recording
from twofold.encoders import Encoder
from twofold.encoders.audio.encoder import UtteranceEncoder, baseline_of, speech_encoder
from twofold.encoders.composed import in_parts
from twofold.evaluation.features import Extractor
from twofold.evaluation.for_encoder import source_for
from twofold.evaluation.logistic import fit_linear
from twofold.evaluation.scores import score
from twofold.options import merge

SOUNDS = Path("/usr/share/asterisk/sounds")
TRIM, PENALTY = 35.0, 0.1
ARMS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "defaults": {"recipe": None},
    "trim": {"data.audio.trim": TRIM},
    "mixed voices": {"data.audio.one_speaker": False},
    "batch 32": {"batch": 32},
    "batch 64": {"batch": 64},
    "a quarter of a second": {"data.audio.max_seconds": 0.25},
    "one second": {"data.audio.max_seconds": 1.0},
    "two seconds": {"data.audio.max_seconds": 2.0},
    "whole recordings": {"data.audio.max_seconds": 4.0},
    "clean waves": {"waves.chain": 0.0},
    "no blocks": {"method.time_mask": 0, "method.frequency_mask": 0.0},
    "large blocks": {"method.time_mask": 25, "method.frequency_mask": 0.3375},
    "no hidden frames": {"method.mask_share": 0.0, "method.reconstruction_weight": 0.0},
    "40 % hidden": {"method.mask_share": 0.4},
    "single frames hidden": {"method.mask_span": 1},
    "contrast alone": {"method.reconstruction_weight": 0.0},
    "reconstruction alone": {"method.contrastive_weight": 0.0},
    "temperature 0.2": {"method.temperature": 0.2},
    "mean and deviation": {"encoder.speech.pooling": "mean_std"},
    "sum over the padding": {"encoder.speech.pooling": "padded"},
    "steps of 10 ms": {"encoder.speech.stack": 1},
    "1 layer": {"encoder.speech.layers": 1},
    "6 layers": {"encoder.speech.layers": 6},
    "width 96": {"encoder.speech.width": 96, "encoder.speech.hidden": 384},
    "width 384": {"encoder.speech.width": 384, "encoder.speech.heads": 8, "encoder.speech.hidden": 1536},
    "lr 5e-4": {"optim.lr": 5e-4},
    "lr 2e-3": {"optim.lr": 2e-3},
    "lr 4e-3": {"optim.lr": 4e-3},
}
"""Departures from the recipe demo-speech, one question each; and what `twofold pretrain` chooses without a recipe."""

QUESTIONS = {
    "trimming": ("trim",),
    "batches": ("mixed voices", "batch 32", "batch 64"),
    "lengths": ("a quarter of a second", "one second", "two seconds", "whole recordings"),
    "views": ("clean waves",),
    "masks": ("no blocks", "large blocks", "no hidden frames", "40 % hidden", "single frames hidden"),
    "losses": ("contrast alone", "reconstruction alone", "temperature 0.2"),
    "pooling": ("mean and deviation", "sum over the padding"),
    "size": ("steps of 10 ms", "1 layer", "6 layers", "width 96", "width 384"),
    "rate": ("lr 5e-4", "lr 2e-3", "lr 4e-3"),
}
"""Arms that answer one question, each beside the recipe."""


def recordings(sounds: Path, most: int | None) -> tuple[list[Recording], list[Recording]]:
    """All clips of every voice, and those of letters that every voice says, each labelled by its letter."""
    clips, letters = list[Recording](), defaultdict[str, list[Recording]](list)
    # Debian links en to a voice of its own: a voice under two names would be trained on while it is held out
    voices = sorted(path for path in sounds.iterdir() if not path.is_symlink() and any(path.glob("*.wav")))
    for voice in voices:
        files = sorted(voice.rglob("*.wav"))
        clips += [Recording(str(path), speaker=voice.name) for path in files[:most]]
        for path in files:
            if path.parent.name == "letters" and len(path.stem) == 1:
                letters[path.stem].append(Recording(str(path), path.stem, speaker=voice.name))
    common = [each for said in letters.values() if len({r.speaker for r in said}) == len(voices) for each in said]
    if len(voices) < 2 or not common:
        raise SystemExit(
            f"{sounds} has no letters in two voices: apt-get install asterisk-core-sounds-en-wav and others"
        )
    return clips, common


def told(encoder: Encoder, source: AudioSource) -> float:
    """Share of the letters of each held-out voice that a classifier of the other voices' letters tells, on average."""
    found = Extractor(device="cpu").extract(encoder, source)
    assert found.labels is not None
    voices, accuracies = np.array(source.speakers)[found.index], []
    for name in np.unique(voices):
        fit, held = voices != name, voices == name
        scale = found.h[fit].std(axis=0) + 1e-6
        with warnings.catch_warnings():  # few clips a class are what is asked for
            warnings.filterwarnings("ignore", message="The number of unique classes")
            model = fit_linear(found.h[fit] / scale, found.labels[fit], PENALTY)
        accuracies.append(score(model.logits(found.h[held] / scale), model.classes, found.labels[held]).top1)
    return float(np.mean(accuracies))


def both(encoder: UtteranceEncoder, letters: list[Recording]) -> dict[str, float]:
    """Accuracies of an encoder read whole and by thirds, of recordings as they are and trimmed."""
    values = {}
    for how, trim in (("", None), (", trimmed", TRIM)):
        source = AudioSource(letters, DataConfig(audio=AudioConfig(trim=trim)), "letters")
        values |= {f"whole{how}": told(encoder, source), f"thirds{how}": told(in_parts(encoder, 3), source)}
    return values


def arms(asked: str, epochs: str) -> Mapping[str, dict[str, Any]]:
    """The arms of a list of names, and one for each number of epochs."""
    named = [each for name in asked.split(",") if name for each in QUESTIONS.get(name, (name,))]
    unknown = [name for name in named if name not in ARMS and name != "all"]
    if unknown:
        raise SystemExit(
            f"--arms {unknown[0]}: give all, questions ({', '.join(QUESTIONS)}) or arms ({', '.join(ARMS)})"
        )
    chosen = ARMS if "all" in named else {name: ARMS[name] for name in named}
    return dict(chosen) | {f"{each} epochs": {"epochs": float(each)} for each in epochs.split(",") if each}


def summary(rows: Mapping[str, list[dict[str, float]]]) -> str:
    """Mean and standard error of each way, in per cent."""
    lines = [f"{'':24}" + "".join(f"{name:>18}" for name in next(iter(rows.values()))[0])]
    for way, values in rows.items():
        cells = []
        for name in values[0]:
            each = 100 * np.array([value[name] for value in values])
            error = f" ± {each.std(ddof=1) / np.sqrt(len(each)):.1f}" if len(each) > 1 else ""
            cells.append(f"{each.mean():.1f}{error}".rjust(18))
        lines.append(f"{way:24}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Run every arm for every seed; what is done already is read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sounds", type=Path, default=SOUNDS, help="folder of the voices")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--arms", default="all", help=f"all, or some of {','.join((*QUESTIONS, *ARMS))}".replace("%", "%%")
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="of each pretraining; else the recipe's epochs")
    length.add_argument("--passes", type=float, help="over the recordings, of each pretraining")
    parser.add_argument("--epochs", default="", help="further arms: numbers of epochs with commas between")
    parser.add_argument("--clips", type=int, help="of each voice, for a quick look; all of them when not given")
    given = parser.parse_args()
    clips, letters = recordings(given.sounds, given.clips)
    given.out.mkdir(parents=True, exist_ok=True)
    manifest = given.out / "clips.csv"
    manifest.write_text("path,speaker\n" + "".join(f'"{clip.path}",{clip.speaker}\n' for clip in clips))
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    heard = AudioSource(clips, DataConfig(), "clips")
    for seed in range(given.seeds):
        torch.manual_seed(seed)
        untrained = speech_encoder("small")
        source_for(heard, untrained, seed, fit=True)
        if seed == 0:
            rows["filterbank"].append(both(baseline_of(untrained), letters))
        rows["untrained"].append(both(untrained.eval(), letters))
        for name, options in arms(given.arms, given.epochs).items():
            folder = given.out / f"{re.sub(r'[^0-9a-z.-]+', '-', name)}-{seed}"
            asked = {"minutes": given.minutes, "epochs": given.passes}
            timed = {} if "epochs" in options else {key: value for key, value in asked.items() if value is not None}
            begun, own = time.monotonic(), dict(options)
            recipe = own.pop("recipe", "demo-speech")
            size = {"batch": min(own.pop("batch", 128), len(clips) // 4)} if recipe else {}
            run = twofold.pretrain(
                manifest, folder, recipe=recipe, resume=True, report=False, seed=seed,
                **merge({"data.outside": True}, size, own), **timed,
            )  # fmt: skip
            encoder = twofold.load(run.path)
            assert isinstance(encoder, UtteranceEncoder)
            rows[name].append(both(encoder, letters))
            seconds[name].append(run.rows()[-1]["seconds"])
            print(f"{name}, seed {seed}: {time.monotonic() - begun:.0f} s", flush=True)
        document = {
            "accuracy": rows, "seconds": seconds, "clips": len(clips), "letters": len(letters),
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        (given.out / "results.json").write_text(json.dumps(document, indent=2) + "\n")
        print(summary(rows), flush=True)


if __name__ == "__main__":
    main()
