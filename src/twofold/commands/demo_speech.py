"""`twofold demo-speech`: what pretraining on two hours of telephone prompts buys, five ways, on real recordings."""

from __future__ import annotations

import csv
import gzip
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from twofold.commands.load import load
from twofold.commands.pretrain import pretrain
from twofold.data import DataConfig, SoundSource
from twofold.data.sounds import Recording
from twofold.encoders import UtteranceEncoder
from twofold.encoders.utterance import floor_of, speech_encoder
from twofold.errors import UserError
from twofold.evaluation.logistic import fit_linear
from twofold.evaluation.scores import score
from twofold.evaluation.sound_features import spoken_parts, with_babble
from twofold.randomness import permutation
from twofold.training.parts import match
from twofold.training.progress import console, duration

SOUNDS = Path("/usr/share/asterisk/sounds")
PACKAGES = "asterisk-core-sounds-{en,es,fr,it,ru}-wav"
RATE, SNR, PENALTY = 8000, 5.0, 0.1
FLOOR = "filterbank"
WAYS = {
    "contrastive only": {"reconstruction_weight": 0.0},
    "reconstruction only": {"contrastive_weight": 0.0},
    "both": {},
}


@dataclass(frozen=True)
class Task:
    """Clips that say one of some words in several voices: each voice in turn is held out, its clips are the test."""

    name: str
    source: SoundSource
    voices: NDArray[np.str_]


def demo_speech(
    data: str | Path | None = None, out: str | Path = "runs/demo-speech", seeds: int = 1, epochs: float | None = None
) -> dict[str, Any]:
    """Pretrain the small encoder three ways and compare it with itself untrained and with a plain filterbank.

    Letters and numbers are told from clips of voices (languages) of which no labelled clip was seen: with all other
    voices as labelled clips, with one of them, and with other people talking behind at 5 dB, a noise that no view has.
    A logistic regression of one fixed penalty reads each encoder's layers, averaged over the thirds of what is spoken.
    Pretraining hears all clips, and no labels.

    Args:
        data: a folder that holds the sounds of the Debian packages; by default where these put them.
        out: folder for the runs; the same call goes on with those that are there.
        seeds: of pretraining and of the untrained encoder; each trains three times.
        epochs: passes over the clips; those of the recipe when not given.

    Returns:
        What was written to `demo-speech.json` in `out`: accuracies of each way and task, [seeds][held-out voices].

    Raises:
        UserError: the recordings are not there.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: give at least 1")
    corpus, tasks = recordings(Path(data) if data else SOUNDS)
    manifest = _write_manifest(corpus, Path(out))
    found: dict[str, dict[str, list[list[float]]]] = {}
    seconds = []
    given: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    if len(corpus) < 256:  # a part of the packages
        given["batch"] = max(2, len(corpus) // 4)

    def judge(way: str, encoder: UtteranceEncoder, parts: int = 3) -> None:
        for name, values in measure(encoder, tasks, corpus, parts).items():
            found.setdefault(way, {}).setdefault(name, []).append(values)

    for seed in range(seeds):
        torch.manual_seed(seed)
        encoder = speech_encoder("small")
        match(corpus, encoder, seed, fit=True)
        if seed == 0:
            judge(f"{FLOOR}, mean and deviation", floor_of(encoder), parts=0)
            judge(FLOOR, floor_of(encoder))
        judge("untrained", encoder.eval())
        for way, weights in WAYS.items():
            run = pretrain(
                manifest, Path(out) / f"{way.replace(' ', '-')}-{seed}", report=False, seed=seed,
                recipe="demo-speech", method={"name": "speech_simclr"} | weights, resume=True, **given,
            )  # fmt: skip
            seconds.append(run.metrics()[-1]["seconds"])
            pretrained = load(run.path)
            assert isinstance(pretrained, UtteranceEncoder)
            judge(way, pretrained)
    told = {"accuracy": found, "clips": len(corpus), "pretraining_seconds": seconds, "threads": torch.get_num_threads()}
    _write_json(Path(out) / "demo-speech.json", told)
    voices = len(np.unique(np.concatenate([task.voices for task in tasks])))
    console.print(table(found, seeds, voices))
    console.print(
        f"{len(corpus):,} clips; {len(seconds)} pretrainings took {duration(sum(seconds))}, "
        f"about {duration(float(np.median(seconds)))} each"
    )
    return told


def recordings(root: Path) -> tuple[SoundSource, list[Task]]:
    """All clips of speech of at most 8 s that are there, and the tasks that they allow.

    Raises:
        UserError: the packages are not installed.
    """
    text = gzip.decompress(files("twofold.data").joinpath("asterisk.csv.gz").read_bytes()).decode()
    rows = [row for row in csv.DictReader(io.StringIO(text)) if (root / row["path"]).is_file()]
    if len({row["language"] for row in rows}) < 2:
        raise UserError(
            f"{root} does not hold the recordings of this demo: apt-get install {PACKAGES} (real voices, CC-BY-SA-3.0 "
            "and CC-BY-3.0), or name the folder that holds them"
        )
    clips = [Recording(str(root / row["path"]), row["language"], None, row["fold"], row["speaker"]) for row in rows]
    corpus = SoundSource(clips, DataConfig(), str(root)).at_rate(RATE)
    row_of = {str(root / row["path"]): row for row in rows}
    read = [row_of[recording.path] for recording in corpus.recordings]
    tasks = []
    for name, column in (("letters", "letter"), ("numbers", "number"), ("spelled letters", "spelled_letter")):
        words = sorted({row[column] for row in read if row[column]})
        voices = {word: {row["language"] for row in read if row[column] == word} for word in words}
        everywhere = {word for word in words if len(voices[word]) == len({row["language"] for row in read})}
        chosen = np.array([i for i, row in enumerate(read) if row[column] in everywhere], dtype=np.int64)
        if len(everywhere) > 1:
            source = corpus.subset(chosen).with_labels([read[i][column] for i in chosen])
            tasks.append(Task(name, source, np.array([read[i]["language"] for i in chosen])))
    return corpus, tasks


def measure(
    encoder: UtteranceEncoder, tasks: Sequence[Task], corpus: SoundSource, parts: int = 3
) -> dict[str, list[float]]:
    """Accuracies in [0, 1] on each held-out voice of each task: with all other voices labelled, with one of them, and
    under other people's talk. `parts` as for `spoken_parts`."""
    results = {}
    for task in tasks:
        clean = spoken_parts(encoder, task.source, parts=parts)
        noisy = spoken_parts(encoder, task.source, lambda i, wave: with_babble(wave, corpus, i, SNR), parts)
        labels = np.asarray(task.source.labels)
        results[task.name] = held_out_voices(clean, clean, labels, task.voices)
        results[f"{task.name}, 1 label"] = held_out_voices(clean, clean, labels, task.voices, single=True)
        results[f"{task.name}, noise"] = held_out_voices(clean, noisy, labels, task.voices)
    return results


def held_out_voices(
    train: NDArray[np.float32],
    test: NDArray[np.float32],
    labels: NDArray[np.int64],
    voices: NDArray[np.str_],
    single: bool = False,
) -> list[float]:
    """Accuracy on each voice's clips of a classifier of the other voices' clips; the word is in both, the clip is not.

    Args:
        train, test: [n, d] features of the same clips, as they are learned from and as they are tested.
        labels, voices: [n].
        single: learn from one of the other voices alone; the mean over all of them.
    """
    accuracies, names = [], np.unique(voices)
    for name in names:
        others = [other for other in names if other != name]
        held, rounds = voices == name, []
        for chosen in [[other] for other in others] if single else [others]:
            fit = np.isin(voices, chosen)
            scale = train[fit].std(axis=0) + 1e-6  # of labelled clips alone: the layers' scales differ
            with warnings.catch_warnings():  # one clip a class is what is asked for
                warnings.filterwarnings("ignore", message="The number of unique classes")
                model = fit_linear(train[fit] / scale, labels[fit], PENALTY)
            rounds.append(score(model.logits(test[held] / scale), model.classes, labels[held]).top1)
        accuracies.append(float(np.mean(rounds)))
    return accuracies


def table(found: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], seeds: int, voices: int) -> Table:
    """Accuracies in per cent: mean, and standard deviation over the held-out voices of each one's mean over seeds.

    A block of rows for each task, so that it fits a terminal of 80 columns.
    """
    tasks = dict.fromkeys(name.partition(", ")[0] for name in next(iter(found.values())))
    title = f"Voices never heard with labels: accuracy in %, mean ± deviation over {voices} held-out voices; "
    shown = Table(title=f"{title}{seeds} pretraining(s) a row")
    shown.add_column("task, features")
    for column in ("all labels", "1 label", "noise"):
        shown.add_column(column, justify="right")
    for task in tasks:
        shown.add_row(f"[bold]{task}[/bold]")
        for way, accuracies in found.items():
            each = [100 * np.mean(accuracies[name], axis=0) for name in (task, f"{task}, 1 label", f"{task}, noise")]
            shown.add_row(f"  {way}", *(f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" for values in each))
        shown.add_section()
    return shown


def _write_manifest(corpus: SoundSource, out: Path) -> Path:
    """The clips as a manifest that `twofold pretrain` reads, without labels, in an order of its own."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "clips.csv"
    order = permutation(0, "demo", 0, len(corpus))
    lines = "".join(f'"{Path(corpus.recordings[i].path).resolve()}"\n' for i in order)
    path.write_text("path\n" + lines)
    return path


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
