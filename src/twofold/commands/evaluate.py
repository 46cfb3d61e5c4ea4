"""`twofold evaluate`: what a frozen encoder's representation is worth on labelled images or recordings."""

from __future__ import annotations

import dataclasses
import datetime
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from twofold.commands.folds import FoldsReport
from twofold.commands.imagenet import ImageNetReport, imagenet
from twofold.commands.recognition import RecognitionReport
from twofold.commands.verification import VerificationReport
from twofold.console import console, duration
from twofold.data import DataConfig, Source, open_source, splits_of
from twofold.devices import choose_device
from twofold.encoders import Encoder, load_head
from twofold.encoders.audio.encoder import UtteranceEncoder, baseline_of
from twofold.encoders.composed import EncoderWithHead
from twofold.encoders.load import encoder_path, load
from twofold.encoders.weights import read_header
from twofold.errors import UserError
from twofold.evaluation.feature_cache import FeatureCache
from twofold.evaluation.label_subsets import check_draw, labelled_part
from twofold.evaluation.logistic import GRID, PAPER_GRID
from twofold.evaluation.parts import evaluation_parts, labelled_parts
from twofold.evaluation.protocols import evaluate as protocols
from twofold.evaluation.protocols.ctc import CtcConfig, recognise
from twofold.evaluation.protocols.evaluate import AudioEvaluation, beside_baseline
from twofold.evaluation.protocols.folds import leave_one_out
from twofold.evaluation.protocols.verification import verify
from twofold.evaluation.splits import check_cover
from twofold.files import write_atomically
from twofold.kinds import EXAMPLE
from twofold.options import OptionsParser, flatten, plain

_HEADS_OUTPUT = "features are z, the projection head's output"


@dataclass(frozen=True)
class EvaluationConfig:
    """How an encoder is evaluated."""

    protocol: Literal["linear", "knn", "weighted", "imagenet", "verification", "ctc"] = "linear"
    """linear: logistic regression on frozen features, its penalty chosen on held-out training images; knn: the vote of
    the nearest neighbours by cosine; weighted: a linear classifier on a learned mixture of all layers of a speech
    encoder; imagenet: top-1 and top-5 of the classifier that the encoder's file holds, on a
    folder of validation images, preprocessed as the SimCLR code does it; verification: equal error rate of telling
    whether two recordings are of one speaker, labels being speakers; ctc: word and character error rate of a recogniser
    trained on the frames, from recordings with texts."""
    test: str | None = None
    """Data for the score; without it the data's own test split, or else a fifth of each class, held out."""
    folds: bool = False
    """Leave one fold out: each of the data's folds is scored by a classifier of the others (linear, knn, weighted)."""
    validation: str | None = None
    """Data to choose the penalty on, fitted on as well in the end; without it the data's own validation split, where it
    has one beside a test split and all labels are used, or else a fifth of each class of the training images (linear).
    """
    seed: int = 0
    """Of the held-out parts."""
    labels: str = "all"
    """Which training images have a label: all, 10%, 40, 4/class, or a list, as for `twofold finetune` (linear, knn,
    weighted); with ctc, which training recordings have a text."""
    draw: int = 0
    """Which of the random choices of that many labels; `twofold labels` takes several and tells their spread."""
    held_out: float = 0.2
    """Share of each class that is held out for the score where there is no test data."""
    k: int = 200
    """Neighbours that vote (knn)."""
    features: Literal["h", "z"] = "h"
    """What is evaluated: h, the encoder's output; z, the projection head's, as MoCo's kNN monitor does."""
    temperature: float | None = 0.1
    """A neighbour's vote weighs exp(cosine / temperature); null gives each one vote (knn)."""
    grid: Literal["short", "paper"] = "short"
    """l2 penalties to choose from: 13 values from 1e-4 to 1e2, or the paper's 45 from 1e-6 to 1e5 (linear)."""
    size: int | None = None
    """Side of the images in pixels; the side that the encoder was trained on when not given."""
    preprocessing: Literal["auto", "none", "resize", "crop"] = "auto"
    """crop: central 0.875 of the shorter side, resized; resize: the whole central square; none: pixels as they are;
    auto: none for images of that size, resize up to 32 pixels, else crop."""
    resample: Literal["tf2", "tf1", "antialias"] | None = None
    """How images are resized; as in the encoder's training when not given."""
    classifier_layer: int | None = None
    """Output of the projection head that the classifier reads, where the file does not say (imagenet)."""
    batch: int = 256
    """Images at a time."""
    keep_features: bool = True
    """Keep the features in the run's folder `features`: the next evaluation of the same data does not encode again."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    trials: str | None = None
    """File with a trial a line, `1 FILE FILE` (one speaker) or `0 FILE FILE` (two), as VoxCeleb1's; all pairs when not
    given (verification)."""
    ctc: CtcConfig = field(default_factory=CtcConfig)
    """Recognition (--protocol ctc)"""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""

    def __post_init__(self) -> None:
        check_draw(self.labels, self.draw)


@dataclass(frozen=True)
class EvaluationReport:
    """An evaluation, and the file that it was written to.

    Attributes:
        evaluation: all that was found.
        file: JSON in the run's `evaluations` folder; None if the encoder belongs to no run.
    """

    evaluation: protocols.Evaluation
    file: Path | None

    @property
    def top1(self) -> float:
        """Test accuracy in [0, 1]."""
        return self.evaluation.scores.top1

    def text(self) -> str:
        """For people."""
        results, scores = self.evaluation, self.evaluation.scores
        kept = " (some features kept from an earlier evaluation)" if results.train.kept or results.test.kept else ""
        lines = [f"top-1 {scores.top1:.2%}" + (f", top-5 {scores.top5:.2%}" if scores.top5 is not None else "")]
        f1 = f", macro F1 {scores.macro_f1:.2%}" if scores.macro_f1 is not None else ""
        kind = "recordings" if isinstance(results, AudioEvaluation) else "images"
        lines[0] += (
            f", mean per class {scores.mean_per_class:.2%}{f1}  "
            f"({results.protocol}, {results.test.images:,} test {kind})"
        )
        lines.append(f"protocol: {results.result.text}; {results.text}")
        lines.append(f"encoder unchanged: sha256 {results.digest_before[:16]}... before and after")
        lines.append(
            f"took {duration(sum(results.seconds.values()))}{kept}" + (f"; written to {self.file}" if self.file else "")
        )
        return "\n".join(lines)


def evaluate(
    run: str | Path, data: Any, *, encoder: nn.Module | None = None, **options: Any
) -> EvaluationReport | ImageNetReport | VerificationReport | RecognitionReport | FoldsReport:
    """Evaluate a frozen encoder.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        data: labelled images or recordings: whatever `twofold.pretrain` takes.
        encoder: your own module, if the run was trained with one.
        options: fields of `EvaluationConfig`, nested or dotted; `test` and `validation` may be data of any kind, too.

    Returns:
        The evaluation. Its JSON is in the run's `evaluations` folder.

    Raises:
        UserError: for anything wrong in the options, the encoder or the data.
    """
    test_data, validation_data = options.pop("test", None), options.pop("validation", None)
    config = OptionsParser(EvaluationConfig).build(options)
    path, device = encoder_path(run), choose_device(config.device, "--device").type
    if config.protocol == "imagenet":
        _refuse_unused(options, test_data, validation_data, encoder)
        return imagenet(
            path, data, size=config.size, resample=config.resample, classifier_layer=config.classifier_layer,
            batch=config.batch, device=device, workers=config.data.workers,
        )  # fmt: skip
    if config.classifier_layer is not None:
        raise UserError(f"--classifier_layer {config.classifier_layer} goes with --protocol imagenet; leave it out")
    base = model = load(path, encoder, device)
    _refuse_other_protocols(config, model)
    if config.features == "z":
        model = with_head(model, path)
    views = read_header(path)["extra"].get("options", {}).get("views", {})
    data_config = dataclasses.replace(config.data, channels=config.data.channels or model.input.channels)
    if config.folds:
        for name, given in (("test", test_data), ("validation", validation_data)):
            if given is not None:
                raise UserError(f"--folds scores each fold of the data in turn: leave --{name} out")
        return _leave_one_out(model, open_source(data, data_config), config, views, path)
    train, test, validation = _parts(data, test_data, validation_data, data_config, config)
    if test is not None and config.held_out != EvaluationConfig.held_out:
        raise UserError(
            f"--held_out {config.held_out:g} has no effect: {test.name} is what is scored; leave it out, or divide one "
            "part by --data.split train"
        )
    if config.protocol == "ctc":
        predicted = recognise(
            model, train, test, config.ctc, seed=config.seed, held_out=config.held_out, labels=config.labels,
            draw=config.draw, device=device,
        )  # fmt: skip
        return RecognitionReport(predicted, _write(path, "ctc", json.dumps(predicted.to_dict(), indent=2) + "\n"))
    selection = ""
    if config.labels != "all":
        train, test = labelled_parts(train, test, config.seed, config.held_out, config.labels)
        train, selection = labelled_part(train, config.labels, config.seed, config.draw)
    if config.protocol == "verification":
        result = verify(model, test or train, config.seed, config.batch, config.trials)
        return VerificationReport(result, _write(path, "verification", json.dumps(result.to_dict(), indent=2) + "\n"))
    message: set[str] = set()

    def progress(what: str, done: int, total: int) -> None:
        if done == total and what not in message:
            message.add(what)
            console.print(f"{what}: {total:,} {EXAMPLE[model.input.kind]}s")

    def measure(encoder: Encoder) -> protocols.Evaluation:
        return protocols.evaluate(
            encoder, train, test, held_out=config.held_out, progress=progress, validation=validation,
            **_measuring(config, views, path),
        )  # fmt: skip

    results = measure(model)
    if isinstance(base, UtteranceEncoder):
        results = beside_baseline(results, measure(baseline_of(base)))
    if selection:
        results = dataclasses.replace(results, text=f"{selection}; {results.text}")
    if config.features == "z":
        results = dataclasses.replace(results, text=f"{_HEADS_OUTPUT}; {results.text}")
    return EvaluationReport(results, _write(path, config.protocol, results.to_json()))


def _leave_one_out(
    model: Encoder, source: Source, config: EvaluationConfig, views: dict[str, Any], path: Path
) -> FoldsReport:
    if config.protocol not in ("linear", "knn", "weighted"):
        raise UserError(f"--folds goes with --protocol linear, knn and weighted, not with {config.protocol}")
    if config.labels != "all":
        raise UserError(f"--folds scores each fold of the data in turn: leave --labels {config.labels} out")
    result = leave_one_out(model, source, **_measuring(config, views, path))
    if config.features == "z":
        result = dataclasses.replace(result, text=f"{_HEADS_OUTPUT}; {result.text}")
    return FoldsReport(result, _write(path, f"{config.protocol}-folds", json.dumps(result.to_dict(), indent=2) + "\n"))


def _measuring(config: EvaluationConfig, views: dict[str, Any], path: Path) -> dict[str, Any]:
    """What the closed protocols share, with or without folds."""
    return {
        "protocol": config.protocol, "size": config.size or views.get("size"), "batch": config.batch,
        "preprocessing": config.preprocessing,
        "resample": config.resample or views.get("resample", "antialias"), "seed": config.seed, "k": config.k,
        "temperature": config.temperature, "grid": PAPER_GRID if config.grid == "paper" else GRID,
        "workers": config.data.workers,
        "cache": FeatureCache.beside(path) if config.keep_features else FeatureCache(None),
    }  # fmt: skip


def _parts(
    data: Any, test: Any, validation: Any, reading: DataConfig, config: EvaluationConfig
) -> tuple[Source, Source | None, Source | None]:
    """What is fitted on, scored on, and chosen on: the data's own parts where they have them and no others are given.

    The own validation part is for `linear` with all labels: with some of them, it would be labels that nobody counted.
    """
    own = splits_of(data).validation
    free = test is None and validation is None and reading.split is None
    if own is not None and free and config.protocol == "linear" and config.labels == "all":
        train, chosen_on, tested = (open_source(data, reading, split=name) for name in (*own, "test"))
        check_cover(train, tested, "--test with the images to score on")
        return train, tested, chosen_on
    if validation is not None and config.protocol != "linear":
        raise UserError(f"--validation goes with --protocol linear: {config.protocol} chooses nothing; leave it out")
    choice = open_source(validation, dataclasses.replace(reading, split=None)) if validation is not None else None
    # Of speakers and texts the test part may have others than the training part.
    classes = config.protocol in ("linear", "knn", "weighted")
    return *evaluation_parts(data, test, reading, same_classes=classes), choice


def _write(encoder: Path, protocol: str, text: str) -> Path | None:
    """Write an evaluation's JSON into the run's folder, if the encoder lies in one."""
    if not (encoder.parent / "config.yaml").exists():
        return None
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = _free_name(encoder.parent / "evaluations", f"{protocol}-{stamp}")
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def with_head(model: Encoder, path: Path) -> Encoder:
    """The encoder with the projection head of its file on top."""
    head = load_head(path)
    if head is None:
        raise UserError(f"--features z: {path} holds no projection head; use --features h")
    return EncoderWithHead(model, head.to(next(model.parameters()).device), head.out_dim).eval()


def _refuse_unused(options: dict[str, Any], test: Any, validation: Any, encoder: nn.Module | None) -> None:
    """Raise where an option is given that the published protocol has no use for, or that would change it."""
    used = {"protocol", "size", "resample", "classifier_layer", "batch", "device", "data.workers"}
    unused = sorted(flatten(plain(options)).keys() - used)
    unused += [name for name, given in (("test", test), ("validation", validation), ("encoder", encoder))
               if given is not None]  # fmt: skip
    if unused:
        message = ", ".join(f"--{name}" for name in unused)
        raise UserError(
            f"--protocol imagenet has no use for {message}; it scores the classifier on all images of the folder"
        )


_GO_WITH = {
    "ctc": ("ctc",), "trials": ("verification",), "grid": ("linear",), "k": ("knn",), "temperature": ("knn",),
    "features": ("linear", "knn"), "batch": ("linear", "knn", "weighted", "verification"),
    **dict.fromkeys(("labels", "draw", "held_out"), ("linear", "knn", "weighted", "ctc")),
}  # fmt: skip
"""The protocols that an option goes with; options that are not here go with all."""


def _refuse_other_protocols(config: EvaluationConfig, model: Encoder) -> None:
    """Raise where an option is changed that this protocol has no use for."""
    plain, speech = EvaluationConfig(), model.input.kind == "audio"
    changed = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(plain, f.name)]
    for name in changed:
        value = ".*" if name == "ctc" else f" {getattr(config, name)}"
        protocols = _GO_WITH.get(name, (config.protocol,))
        if config.protocol not in protocols:
            message = ", ".join(protocols)
            raise UserError(f"--{name}{value} goes with --protocol {message}, not with {config.protocol}: leave it out")
        if speech and name in ("size", "preprocessing", "resample"):
            raise UserError(f"--{name}{value} is for images, and the encoder takes recordings: leave it out")


def _free_name(folder: Path, stem: str) -> Path:
    """A file name that no earlier evaluation has."""
    folder.mkdir(exist_ok=True)
    names = (folder / f"{stem}{suffix}.json" for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    free = next((path for path in names if not path.exists()), None)
    if free is None:
        raise UserError(f"{folder} holds 999 evaluations of this second; move some of them")
    return free
