"""`twofold demo-speech`: what pretraining on two hours of telephone prompts buys, five ways, on real recordings."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from numpy.typing import NDArray
from torch import Tensor

from twofold.commands.arguments import PATH, add_data, add_out, new_parser
from twofold.commands.demos import DemoResult, keywords
from twofold.commands.pretrain import pretrain
from twofold.console import console, duration
from twofold.data import AudioSource, DataConfig
from twofold.data.sources.audio import Recording
from twofold.encoders import UtteranceEncoder, Waves
from twofold.encoders.audio.encoder import baseline_of, speech_encoder
from twofold.encoders.load import load
from twofold.errors import UserError
from twofold.evaluation.for_encoder import source_for
from twofold.evaluation.logistic import fit_linear
from twofold.evaluation.scores import score
from twofold.files import check_out
from twofold.randomness import permutation
from twofold.report.tables import Table, spread

SOUNDS = Path("/usr/share/asterisk/sounds")
PACKAGES = "asterisk-core-sounds-{en,es,fr,it,ru}-wav"
RATE, SNR, PENALTY = 8000, 5.0, 0.1
TAUGHT, DRAWS = 3, 10
"""Keywords: voices whose words are labelled, and how often these are drawn."""
BASELINE = "filterbank"
_CLIPS, _WORDS = "clips.csv", "words"
"""In the demo's folder: what pretraining hears, and synthetic clips of it; one of them is there first."""
WAYS: dict[str, dict[str, Any]] = {
    "contrastive only": {"method": {"reconstruction_weight": 0.0}},
    "reconstruction only": {"method": {"contrastive_weight": 0.0}},
    "both": {},
}
ABLATED = {f"{way}, clean waves": options | {"waves": {"chain": 0.0}} for way, options in WAYS.items()}
"""Both views start from the same waveform: they differ by what is masked alone."""


@dataclass(frozen=True)
class Task:
    """Clips that say one of some words in several voices: each voice in turn is held out, its clips are the test."""

    name: str
    source: AudioSource
    voices: NDArray[np.str_]
    unseen: NDArray[np.bool_] | None = None
    """[n] clips of voices that pretraining did not hear, which are the test instead, whichever others are labelled."""


def demo_speech(
    data: str | Path | None = None,
    out: str | Path = "runs/demo-speech",
    seeds: int = 3,
    epochs: float | None = None,
    ablation: bool = False,
    resume: bool = False,
) -> DemoResult:
    """Pretrain the small encoder three ways and compare it with itself untrained and with a plain filterbank.

    Letters and numbers are told from clips of voices (languages) of which no labelled clip was seen: with all other
    voices as labelled clips, with one of them, and with other people talking behind at 5 dB, a noise that no view has.
    A logistic regression of one fixed penalty reads each encoder's layers, averaged over the thirds of what is spoken.
    Pretraining hears all clips, and no labels.

    Where espeak-ng is installed, thirty of its voices say 35 words to pretraining, too, and thirty others are tested on
    20 of them, with labels of three voices, or of one.

    Args:
        data: a folder that holds the recordings of the Debian packages; by default where these put them.
        out: folder for the runs; must be new or empty unless `resume`.
        seeds: of pretraining and of the untrained encoder; each trains three times.
        epochs: passes over the clips; those of the recipe when not given.
        ablation: pretrain each way without changing the waveforms, too.
        resume: go on with the runs in `out`, or start if there are none yet.

    Returns:
        Accuracies of each way and task, [seeds][held-out voices]; `demo-speech.json` in `out` holds them.

    Raises:
        UserError: the recordings are not there.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: give at least 1")
    check_out(Path(out), any((Path(out) / name).exists() for name in (_CLIPS, _WORDS)), "demo", resume)
    corpus, tasks = recordings(Path(data) if data else SOUNDS)
    heard = list(corpus.recordings)
    if keywords.available():
        spoken, task = synthetic(Path(out) / _WORDS)
        tasks.append(task)
        heard += spoken
    else:
        console.print(f"{keywords.PROGRAM} is not installed: keywords in unseen voices are left out")
    manifest = _write_manifest(heard, Path(out))
    result: dict[str, dict[str, list[list[float]]]] = {}
    seconds = []
    given: dict[str, Any] = {"data.outside": True}  # the manifest names the packages' files
    given |= {} if epochs is None else {"epochs": epochs}
    if len(corpus) < 256:  # a part of the packages
        given["batch"] = max(2, len(corpus) // 4)

    def judge(way: str, encoder: UtteranceEncoder, parts: int = 3) -> None:
        for name, values in measure(encoder, tasks, corpus, parts).items():
            result.setdefault(way, {}).setdefault(name, []).append(values)

    for seed in range(seeds):
        torch.manual_seed(seed)
        encoder = speech_encoder("small")
        source_for(corpus, encoder, seed, fit=True)
        if seed == 0:
            judge(f"{BASELINE}, mean and deviation", baseline_of(encoder), parts=0)
            judge(BASELINE, baseline_of(encoder))
        judge("untrained", encoder.eval())
        for way, options in (WAYS | ABLATED if ablation else WAYS).items():
            run = pretrain(
                manifest, Path(out) / f"{way.replace(',', '').replace(' ', '-')}-{seed}", report=False, seed=seed,
                recipe="demo-speech", resume=True, **options, **given,
            )  # fmt: skip
            seconds.append(run.rows()[-1]["seconds"])
            pretrained = load(run.path)
            assert isinstance(pretrained, UtteranceEncoder)
            judge(way, pretrained)
    document = {
        "accuracy": result,
        "clips": len(heard),
        "pretraining_seconds": seconds,
        "threads": torch.get_num_threads(),
    }
    file = Path(out) / "demo-speech.json"
    _write_json(file, document)
    note = (
        f"{len(heard):,} clips; {len(seconds)} pretrainings took {duration(sum(seconds))}, "
        f"about {duration(float(np.median(seconds)))} each"
    )
    metrics = {
        f"{way}, {name}: top1": float(np.mean(values)) for way, each in result.items() for name, values in each.items()
    }
    return DemoResult(Path(out), file, None, table(result, seeds), note, document, metrics)


def recordings(root: Path) -> tuple[AudioSource, list[Task]]:
    """All clips of speech that are there, and the tasks that they allow.

    Raises:
        UserError: the packages are not installed.
    """
    text = gzip.decompress(files("twofold.commands.demos").joinpath("asterisk.csv.gz").read_bytes()).decode()
    rows = [row for row in csv.DictReader(io.StringIO(text)) if (root / row["path"]).is_file()]
    if len({row["language"] for row in rows}) < 2:
        raise UserError(
            f"{root} does not hold the recordings of this demo: apt-get install {PACKAGES} (real voices, CC-BY-SA-3.0 "
            "and CC-BY-3.0), or name the folder that holds them"
        )
    clips = [Recording(str(root / row["path"]), row["language"], None, row["fold"], row["speaker"]) for row in rows]
    corpus = AudioSource(clips, DataConfig(), str(root)).at_rate(RATE)
    row_of = {str(root / row["path"]): row for row in rows}
    read = [row_of[recording.path] for recording in corpus.recordings]
    tasks = []
    for name, column in (("letters", "letter"), ("numbers", "number"), ("spelled letters", "spelled_letter")):
        words = sorted({row[column] for row in read if row[column]})
        voices = {word: {row["language"] for row in read if row[column] == word} for word in words}
        everywhere = {word for word in words if len(voices[word]) == len({row["language"] for row in read})}
        selection = np.array([i for i, row in enumerate(read) if row[column] in everywhere], dtype=np.int64)
        if len(everywhere) > 1:
            source = corpus.subset(selection).with_labels([read[i][column] for i in selection])
            tasks.append(Task(name, source, np.array([read[i]["language"] for i in selection])))
    return corpus, tasks


def synthetic(folder: Path) -> tuple[list[Recording], Task]:
    """What pretraining hears of the synthetic voices, and the test on the others; clips are made in `folder`."""
    clips = keywords.speak(folder, RATE)
    unseen = keywords.unseen([str(clip.speaker) for clip in clips])
    asked = [(clip, new) for clip, new in zip(clips, unseen, strict=True) if clip.label in keywords.WORDS]
    source = AudioSource([clip for clip, _ in asked], DataConfig(), "synthetic words").at_rate(RATE)
    voices = np.array([clip.speaker for clip, _ in asked])
    heard = [clip for clip, new in zip(clips, unseen, strict=True) if not new]
    return heard, Task("keywords", source, voices, np.array([new for _, new in asked]))


def measure(
    encoder: UtteranceEncoder, tasks: Sequence[Task], corpus: AudioSource, parts: int = 3
) -> dict[str, list[float]]:
    """Accuracies in [0, 1] on each held-out voice of each task: with all other voices labelled, with one of them, and
    under other people's talk. `parts` as for `spoken_parts`."""
    results = {}
    for task in tasks:
        clean = spoken_parts(encoder, task.source, parts=parts)
        noisy = spoken_parts(encoder, task.source, lambda i, wave: with_babble(wave, corpus, i, SNR), parts)
        labels = np.asarray(task.source.labels)

        def tell(test: NDArray[np.float32], single: bool) -> list[float]:
            if task.unseen is None:  # noqa: B023  # called in this round alone
                return held_out_voices(clean, test, labels, task.voices, single)  # noqa: B023
            return unseen_voices(clean, test, labels, task.voices, task.unseen, 1 if single else TAUGHT)  # noqa: B023

        results[task.name] = tell(clean, False)
        results[f"{task.name}, 1 label"] = tell(clean, True)
        results[f"{task.name}, noise"] = tell(noisy, False)
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
        for selection in [[other] for other in others] if single else [others]:
            rounds.append(_accuracy(train, test, labels, np.isin(voices, selection), held))
        accuracies.append(float(np.mean(rounds)))
    return accuracies


def unseen_voices(
    train: NDArray[np.float32],
    test: NDArray[np.float32],
    labels: NDArray[np.int64],
    voices: NDArray[np.str_],
    unseen: NDArray[np.bool_],
    taught: int,
) -> list[float]:
    """Accuracy on all unseen voices' clips of a classifier of `taught` other voices, for each draw of these.

    Args: as `held_out_voices`; `unseen` [n] says which clips are tested.
    """
    names, accuracies = np.unique(voices[~unseen]), []
    for draw in range(DRAWS):
        selection = names[permutation(draw, "taught", 0, len(names))[:taught]]
        accuracies.append(_accuracy(train, test, labels, np.isin(voices, selection) & ~unseen, unseen))
    return accuracies


def _accuracy(
    train: NDArray[np.float32],
    test: NDArray[np.float32],
    labels: NDArray[np.int64],
    fit: NDArray[np.bool_],
    held: NDArray[np.bool_],
) -> float:
    scale = train[fit].std(axis=0) + 1e-6  # of labelled clips alone: the layers' scales differ
    with warnings.catch_warnings():  # one clip a class is what is asked for
        warnings.filterwarnings("ignore", message="The number of unique classes")
        model = fit_linear(train[fit] / scale, labels[fit], PENALTY)
    return score(model.logits(test[held] / scale), model.classes, labels[held]).top1


def table(accuracies: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], seeds: int) -> Table:
    """Accuracies in per cent: mean, and deviation over seeds of the mean over voices (over voices with one seed).

    A block of rows for each task, so that it fits a terminal of 80 columns.
    """
    tasks = dict.fromkeys(name.partition(", ")[0] for name in next(iter(accuracies.values())))
    rows: list[list[str | None]] = []
    for task in tasks:
        rows.append([task, None, None, None])
        for way, values in accuracies.items():
            each = [np.asarray(values[name]) for name in (task, f"{task}, 1 label", f"{task}, noise")]
            rows.append([f"  {way}", *(spread(v.mean(axis=1) if len(v) > 1 else v[0]) for v in each)])
    title = f"Voices never heard with labels: accuracy in %, mean ± deviation; {seeds} pretraining(s) a row"
    return Table(title, ["task, features", "more labels", "1 voice", "noise"], rows)


def _write_manifest(clips: Sequence[Recording], out: Path) -> Path:
    """The clips as a manifest that `twofold pretrain` reads, without labels, in an order of its own."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / _CLIPS
    order = permutation(0, "demo", 0, len(clips))
    lines = "".join(f'"{Path(clips[i].path).resolve()}",{clips[i].speaker}\n' for i in order)
    path.write_text("path,speaker\n" + lines)
    return path


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


_SPOKEN = 35 / 10 * float(np.log(10))
"""35 dB of energy as a difference of natural logs."""


@torch.inference_mode()
def spoken_parts(
    encoder: UtteranceEncoder,
    source: AudioSource,
    change: Callable[[int, NDArray[np.float32]], NDArray[np.float32]] | None = None,
    parts: int = 3,
) -> NDArray[np.float32]:
    """Each layer's frames averaged over parts of what is spoken, side by side: [n, (layers + 1) * parts * d].

    Frames in which the loudest filter is more than 35 dB below that of the loudest frame are left out: what stands
    before and after a word tells how it was cut, not what it is. The rest is divided in parts of equal length, because
    one mean tells nothing of the order of recordings.

    Args:
        encoder: in evaluation mode; where its parameters are.
        source: recordings, at any rate.
        change: makes another recording of recording i's.
        parts: of equal length, 1 or more; 0 for mean and deviation over all active frames instead.

    Raises:
        BadRecording: a recording cannot be read.
    """
    source = source.at_rate(encoder.frontend.sample_rate)
    lengths, rows = source.lengths(), dict[int, NDArray[np.float32]]()
    order = np.argsort(lengths, kind="stable")
    for batch in np.array_split(order, max(1, len(order) // 32)):
        recordings = [source.read(int(i)) for i in batch]
        if change is not None:
            recordings = [change(int(i), wave) for i, wave in zip(batch, recordings, strict=True)]
        waves = Waves.of([torch.from_numpy(wave) for wave in recordings])
        states, frames = encoder.hidden_states(waves)
        loudness = encoder.frontend.log_mel(waves)[0].amax(2)  # [n, T]
        loudness = F.max_pool1d(loudness, encoder.stack, ceil_mode=True)
        for row, index in enumerate(batch.tolist()):
            loud = loudness[row, : frames[row]]
            active = loud > loud.max() - _SPOKEN
            rows[index] = torch.cat([_summary(state[row, : frames[row]][active], parts) for state in states]).numpy()
    return np.stack([rows[i] for i in range(len(source))])


def _summary(x: Tensor, parts: int) -> Tensor:
    """Frames [T, d] as [parts * d], or mean and deviation [2 d] for parts 0; with fewer frames parts overlap."""
    if not parts:
        return torch.cat([x.mean(0), x.std(0, unbiased=False)])
    edges = [len(x) * k / parts for k in range(parts + 1)]
    return torch.cat([x[int(a) : max(int(b), int(a) + 1)].mean(0) for a, b in itertools.pairwise(edges)])


def with_babble(wave: NDArray[np.float32], corpus: AudioSource, index: int, snr: float) -> NDArray[np.float32]:
    """Other people talking behind a recording: six recordings of `corpus`, chosen by `index`, at `snr` dB in all."""
    babble = np.zeros_like(wave)
    for i in permutation(index, "babble", 0, len(corpus))[:6].tolist():
        babble += np.resize(corpus.read(i), len(wave))
    gain = np.sqrt(np.mean(wave**2) / max(float(np.mean(babble**2)), 1e-20)) * 10 ** (-snr / 20)
    mixed: NDArray[np.float32] = (wave + gain * babble).astype(np.float32)
    return mixed


def parser() -> ArgumentParser:
    """Of `twofold demo-speech`."""
    parser = new_parser("Speech SimCLR on two hours of real telephone prompts, five ways, on voices without labels.")
    add_data(parser, "folder of the Debian packages' recordings", nargs="?", default=None)
    add_out(parser, "demo", default="runs/demo-speech")
    parser.add_argument("--seeds", type=int, default=3, help="pretrainings of each way (default: 3)")
    parser.add_argument("--epochs", type=float, help="passes over the clips; the recipe's when not given")
    parser.add_argument("--ablation", type=bool, default=False, help="also with waveforms as they are (default: false)")
    return parser


def run(options: dict[str, Any]) -> DemoResult:
    """`twofold demo-speech`."""
    return demo_speech(options.pop(PATH, None), **options)
