"""Fine-tuning and linear evaluation by gradient descent on labelled images: a run like any other, scored once.

Whatever is trained (all of it, without the head's layers, the classifier alone, or a fresh net as the control), the
run is resumable, leaves `encoder.safetensors` with encoder, head and classifier, and `result.json`. Test images take
no part until the last step is done: no epoch is chosen by them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from twofold.console import print_rank0
from twofold.data import Source
from twofold.data.base import class_count
from twofold.data.batches.balanced import BalancedDraws
from twofold.data.content import labelled_digests
from twofold.data.groups import groups_of
from twofold.data.sources.subset import subset
from twofold.devices import choose_device
from twofold.distributed import rank
from twofold.encoders import (
    Encoder,
    FilePart,
    build_encoder_from_spec,
    load_classifier,
    load_encoder,
    load_head,
    read_header,
    save_encoder,
)
from twofold.encoders.composed import EncoderWithClassifier, below_classifier
from twofold.encoders.load import kind_of
from twofold.errors import UserError
from twofold.evaluation.class_weights import check_class_weights, class_weights_in_words, weights_by_class
from twofold.evaluation.features import Extractor, Pixels, cut_from
from twofold.evaluation.for_encoder import source_for
from twofold.evaluation.frozen import assert_frozen, digest, tensor_digests
from twofold.evaluation.grouped import groups_in_words
from twofold.evaluation.kept import PREDICTION, class_names, prediction_part
from twofold.evaluation.label_subsets import labelled_part
from twofold.evaluation.novelty import MOST_HELD, MOST_SEEN, Novelty, places
from twofold.evaluation.scores import ManyScores, Scores, no_better_than_chance, score, score_many
from twofold.evaluation.splits import check_test_labels, labels_fingerprint, without_label
from twofold.heads import HeadConfig, ProjectionHead
from twofold.kinds import EXAMPLE, Kind
from twofold.methods.supervised import Supervised
from twofold.optim.layer_decay import decay_layers
from twofold.options import OptionsParser, as_written, merge, plain, refuse_unused
from twofold.reading import read_json
from twofold.runs.build import build_training
from twofold.runs.config import FinetuneConfig
from twofold.runs.inputs import refuse_straddling
from twofold.runs.standing import of_finetuning
from twofold.runs.starting import check_same_data, owned_run, start_accelerator, start_run
from twofold.runs.tracking import start_tracking
from twofold.text import counted, counted_have
from twofold.training.inputs import LabelledView
from twofold.training.loop import AnyTraining
from twofold.training.micro_batch import train_or_advise
from twofold.training.rundir import RunDirectory
from twofold.views.config import CROP_AREA

RESULT = "result.json"


@dataclass(frozen=True)
class FinetuneResult:
    """What came of it; everything in it is plain data.

    Attributes:
        scores: on the test images, None where the run has not reached its last step.
        complete: whether it has.
        labels: number of labelled images trained on.
        steps: taken.
        seconds: of training.
        text: what was trained and how, in words.
        digest: SHA-256 of the encoder before and after; equal under --freeze encoder in inference mode. Whatever is
            frozen stayed as it was, tensor by tensor, or the run would have failed.
        stopped_by: number of the signal that ended it early.
        test: fingerprint of what was scored, images and labels (see `labels_fingerprint`).
        published: lines that set what is published for the recipe beside it.
    """

    scores: Scores | ManyScores | None
    complete: bool
    labels: int
    steps: int
    seconds: float
    text: str
    digest: tuple[str, str]
    stopped_by: int | None = None
    test: str = ""
    published: tuple[str, ...] = ()

    @property
    def metric(self) -> float:
        """Top-1 accuracy, or mean average precision where an image can have many labels."""
        if self.scores is None:
            raise ValueError("the run has not been scored")
        return self.scores.top1 if isinstance(self.scores, Scores) else self.scores.map11

    @classmethod
    def read(cls, run: RunDirectory) -> FinetuneResult | None:
        """What an earlier call left in `run`; None if it is not done."""
        try:
            values = read_json(run.path / RESULT)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{run.path / RESULT} is damaged: {error}; remove it to have it measured again") from error
        result = values.pop("scores")
        if "map11" in result:
            result["per_class"] = tuple(result["per_class"])
        scores = ManyScores(**result) if "map11" in result else Scores(**result)
        tuples = {name: tuple(values.get(name, ())) for name in ("digest", "published")}
        return cls(scores=scores, **{**values, **tuples})


def default_options(encoder_file: str | Path) -> dict[str, Any]:
    """Options that the encoder's own run gives: how images are read, and its views without colour and blur.

    That is crop and flip, as the papers fine-tune (arXiv 2002.05709, appendix B.5), for their recipes. Of recordings it
    is all that was done to them.
    """
    header = read_header(encoder_file)
    if kind_of(header["spec"]) == "audio":
        return {"waves": header["extra"].get("options", {}).get("waves", {})}
    seen = header["extra"].get("options", {}).get("views", {})
    size = seen.get("size") or header["spec"].get("size")
    views = {"size": size} if size else {}
    geometry = ("crop_area", "crop_aspect", "crop_rule", "resample", "flip", "rotation")
    views |= {name: seen[name] for name in geometry if name in seen}
    return Pixels.of(header).options() | {"views": views | {"color_strength": 0.0, "grayscale": 0.0, "blur": 0.0}}


def _rate(config: FinetuneConfig) -> float:
    """Published for 256 images and a pretrained net (SimCLR's code and its appendix B.5); ours from a random start.

    A net that starts at random learns little in 500 steps at the rate that suits a pretrained one, and would be no
    control.
    """
    if config.from_scratch:
        return 0.3
    return 0.1 if config.freeze == "encoder" else 0.05


def resolve(config: FinetuneConfig, images: int, kind: Kind = "image") -> FinetuneConfig:
    """Fill what was left open, from the number of labelled images or recordings."""
    batch = config.batch if config.batch is not None else min(64, images)
    if batch > images:
        raise UserError(f"--batch {batch}: {counted_have(images, EXAMPLE[kind])} a label; give 1..{images}")
    epochs = config.epochs if config.epochs is not None else max(30.0, float(-(-500 * batch // images)))
    optim = config.optim
    if optim.name is None:
        optim = dataclasses.replace(optim, name="sgd", nesterov=True if optim.nesterov is None else optim.nesterov)
    if optim.lr is None:
        optim = dataclasses.replace(optim, lr=_rate(config), lr_rule=optim.lr_rule or "linear")
    if optim.weight_decay is None:
        optim = dataclasses.replace(optim, weight_decay=0.0)
    if optim.schedule in ("cosine", "inverse_sqrt") and optim.warmup_epochs is None and optim.warmup_steps is None:
        optim = dataclasses.replace(optim, warmup_epochs=0.0)
    return dataclasses.replace(config, batch=batch, epochs=epochs, optim=optim)


def finetune(
    encoder_file: str | Path,
    train: Source,
    test: Source,
    out: str | Path,
    options: dict[str, Any] | None = None,
    *,
    module: nn.Module | None = None,
    recipe: str | None = None,
    quiet: bool = False,
) -> FinetuneResult:
    """Train a classifier, and what is below it as far as it is not frozen, then score it once.

    The same call again goes on where an earlier one was stopped, and only reads the result of one that was done; with
    other test images, it scores the trained net on those.

    Args:
        encoder_file: an `encoder.safetensors`; it stays as it is.
        train: labelled images; `labels` of the options says how many of the labels are used.
        test: labelled images for the score, of classes that the chosen training images have.
        out: the run's folder, new or of the same run.
        options: fields of `FinetuneConfig`, nested or dotted.
        module: your own module, if the encoder was made from one.
        recipe: whose options they are, for the record.
        quiet: say nothing of resuming.

    Raises:
        UserError: wrong options or labels, a test class without a training image, another run in `out`.
    """
    run = RunDirectory(out)
    given = merge(default_options(encoder_file), options or {})
    resuming = run.config_file.exists()
    config = run.check_resumable(FinetuneConfig, given) if resuming else OptionsParser(FinetuneConfig).build(given)
    header = read_header(encoder_file)
    if not resuming and kind_of(header["spec"]) == "audio":  # a run of an earlier version may hold it
        refuse_straddling(config.data)
    part, words = labelled_part(train, config.labels, config.seed, config.draw)
    targets = check_test_labels(part, test)
    _check_balance(config, part)
    words = "; ".join([words, *_about_the_data(header, config, part, test, targets)])
    config = resolve(config, len(part), kind_of(header["spec"]))
    accelerator, file_hash = start_accelerator(config.training, run), _fingerprint(encoder_file)
    with owned_run(run):
        if resuming:
            check_same_data(run, part, config.training.changed_data)
            if run.facts().get("encoder") != file_hash:
                raise UserError(f"the run in {run.path} began with another encoder than {encoder_file}")
            done = FinetuneResult.read(run)
            if done is not None:
                if done.test != labels_fingerprint(test):
                    done = _scored_anew(done, run, config, test, targets, module)
                return _written(done, run, Path(encoder_file))
        training = assemble(encoder_file, part, config, run, accelerator, module)
        if not resuming:  # only now: what is wrong with the options leaves no folder behind
            start_run(run, config, part, part.name, recipe, encoder=file_hash, base=str(encoder_file))
        before = tensor_digests(training.method.encoder)
        start_tracking(accelerator, config, run)
        training.resume()
        if training.step and not quiet:
            print_rank0(f"resumed {run.path} at step {training.step:,} of {training.steps:,}")
        train_or_advise(training, config.micro_batch)
        result = _finish(training, config, part, test, targets, words, before)
        return _written(result, run, Path(encoder_file)) if result.complete else result


def assemble(
    encoder_file: str | Path,
    part: Source,
    config: FinetuneConfig,
    run: RunDirectory,
    accelerator: Accelerator,
    module: nn.Module | None = None,
) -> AnyTraining:
    """Build every part of the run; `config` must be resolved (see `resolve`)."""
    torch.manual_seed(config.seed)  # a fresh net's and the classifier's start
    encoder, head = _networks(encoder_file, config.from_scratch, module)
    if encoder.input.channels != part.channels:
        raise UserError(
            f"the encoder takes {counted(encoder.input.channels, 'channel')} and the images have {part.channels}; "
            f"set --data.channels {encoder.input.channels}"
        )
    kind = encoder.input.kind
    refuse_unused(config, kind=kind)
    if config.views.size is None and kind == "image":
        raise UserError(f"{encoder_file} does not say which side its images had: give --views.size")
    part = source_for(part, encoder, config.seed, fit=config.from_scratch)
    assert part.labels is not None  # labelled_part has seen them
    lars, classes = config.optim.name == "lars", class_count(part.labels, part.classes) or 0
    weights = weights_by_class(config.class_weights, part.labels, classes)
    drawn = BalancedDraws(part.labels, config.seed) if config.sampling == "balanced" else None
    method = Supervised(
        encoder, head, classes, config.from_head, config.freeze, config.init,
        (config.optim.weight_decay or 0.0) if lars else 0.0, part.labels.ndim == 2, config.after_block,
        config.frozen_mode, None if weights is None else torch.from_numpy(weights).float(),
        torch.from_numpy(_shares(part.labels, classes, drawn is not None)),
    )  # fmt: skip
    method.fresh = config.from_scratch
    training = build_training(config, method, part, LabelledView, run, accelerator, short_epochs=True, drawn=drawn)
    if config.layer_decay is not None:
        decay_layers(training.optimizer, encoder, config.layer_decay)
    return training


def _shares(labels: NDArray[np.int64], classes: int, balanced: bool) -> NDArray[np.float64]:
    """[K] of the examples as they are drawn, the share that is of each class; an example can be of many."""
    counts = (labels > 0).sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=classes)
    drawn = (counts > 0) if balanced else counts
    shares: NDArray[np.float64] = drawn / (len(labels) if labels.ndim == 2 else drawn.sum())
    return shares


def _about_the_data(
    header: dict[str, Any], config: FinetuneConfig, part: Source, test: Source, targets: NDArray[np.int64]
) -> list[str]:
    """What is to be told of the data beside the number of labels: how they are read, what is left out, their groups."""
    differing, left_out = Pixels.of(header).differences(part), int((targets < 0).sum()) if targets.ndim == 1 else 0
    told = [
        f"images read with {differing}" if differing else "",
        f"the images are pieces of {whole}" if (whole := cut_from(part)) else "",
        without_label({"test": left_out}, EXAMPLE[kind_of(header["spec"])]),
        groups_in_words(config.data.group, {"training": groups_of(part), "test": groups_of(test)}),
    ]
    return [each for each in told if each]


def _check_balance(config: FinetuneConfig, part: Source) -> None:
    """Raise a UserError where classes are to be balanced and an image can be of several."""
    asked = {"sampling": config.sampling != "uniform", "class_weights": config.class_weights is not None}
    option = next((name for name, given in asked.items() if given), None)
    if option is None or part.labels is None:
        return
    if part.labels.ndim == 2:
        raise UserError(
            f"--{option} {as_written(getattr(config, option))} is for one class an image, and {part.name} has several "
            "labels an image: leave it out"
        )
    check_class_weights(config.class_weights, class_count(part.labels, part.classes), part.classes)


def _networks(
    encoder_file: str | Path, from_scratch: bool, module: nn.Module | None
) -> tuple[Encoder, ProjectionHead | None]:
    """The encoder and head of a file, or ones like them with fresh weights."""
    if not from_scratch:
        return load_encoder(encoder_file, module), load_head(encoder_file)
    header = read_header(encoder_file)
    encoder = build_encoder_from_spec(header["spec"], module)
    if header["head"] is None:
        return encoder, None
    facts = dict(header["head"])
    return encoder, ProjectionHead(facts.pop("in_dim"), HeadConfig(**facts))


def _fingerprint(encoder_file: str | Path) -> str:
    with Path(encoder_file).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finish(
    training: AnyTraining, config: FinetuneConfig, part: Source, test: Source, targets: NDArray[np.int64],
    words: str, before: dict[str, str],
) -> FinetuneResult:  # fmt: skip
    """Check what had to stay, save the net, and score it if the last step is done."""
    method, run = cast(Supervised, training.method), training.run
    after = tensor_digests(method.encoder)
    kept = method.kept()
    assert_frozen(*({name: value for name, value in each.items() if name in kept} for each in (before, after)))
    for tracker in training.accelerator.trackers:
        tracker.finish()
    complete = training.step == training.steps
    head = method.head if isinstance(method.head, ProjectionHead) else None
    net = EncoderWithClassifier(method.encoder, method.classifier, head, method.from_head)
    scores = _score(net, config, test, targets, part.classes) if complete else None
    if isinstance(scores, Scores):
        _tell_chance(training, scores, targets)
    parts = {PREDICTION: _prediction(net, config, part, test)} if complete else None
    result = FinetuneResult(
        scores, complete, len(part), training.step, round(training.seconds, 3),
        _text(config, words, method.encoder.input.kind),
        (digest(before), digest(after)), training.stopped_by, labels_fingerprint(test) if complete else "",
    )  # fmt: skip
    if rank() == 0:
        facts = {"steps": training.step, "of": training.steps, "options": plain(config), "class_names": part.classes}
        save_encoder(run.encoder_file, method.encoder, head, facts, method.classifier, method.from_head, parts)
    return result


def _written(result: FinetuneResult, run: RunDirectory, start: Path) -> FinetuneResult:
    """The result of a run that is done, with what is published beside it, as `result.json` then holds it."""
    result = dataclasses.replace(result, published=of_finetuning(start, run, result.scores, result.labels))
    if rank() == 0 and result != FinetuneResult.read(run):
        run.write_json(RESULT, dataclasses.asdict(result))
    return result


def _tell_chance(training: AnyTraining, scores: Scores, targets: NDArray[np.int64]) -> None:
    """Warn where the test examples are told no better than by chance."""
    method, rows = cast(Supervised, training.method), training.metrics.rows() if rank() == 0 else []
    shares = np.unique(targets[targets >= 0], return_counts=True)[1] / max((targets >= 0).sum(), 1)
    trained, kind = (rows[-1].get("train_accuracy") if rows else None), method.encoder.input.kind
    words = no_better_than_chance(scores, float(shares.max()), method.classifier.out_features, trained, kind)
    if words:
        print_rank0(f"warning: {words}")


def _prediction(net: EncoderWithClassifier, config: FinetuneConfig, part: Source, test: Source) -> FilePart:
    """What `twofold predict` needs beside the net: names, and what training and test images look like to it."""
    assert part.labels is not None  # labelled_part has seen them
    views = config.views
    extractor, below = Extractor(views.size, config.preprocessing, views.resample), below_classifier(net)
    seen, held = (
        extractor.extract(below, subset(source, places(len(source), most))).h
        for source, most in ((part, MOST_SEEN), (test, MOST_HELD))
    )
    names = class_names(part.classes, range(net.classifier.out_features))
    return prediction_part(
        names, "h", part.labels.ndim == 2, _trained(config), Novelty.of(seen, held),
        learned=labelled_digests(part),
    )  # fmt: skip


def outputs(
    place: str | Path, test: Source, module: nn.Module | None = None
) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """What the net of a finished run says of images, read as its own test images were.

    Args:
        place: the run's folder.
        test: images.
        module: your own module, if the encoder was made from one.

    Returns:
        Scores [n, K] of the classes for the images that can be read, and which of the images these are [n].

    Raises:
        UserError: the run holds no classifier.
    """
    run = RunDirectory(place)
    config, _ = run.read(FinetuneConfig)
    views = config.views
    result = Extractor(views.size, config.preprocessing, views.resample).extract(_kept_net(run, config, module), test)
    return result.h, result.index


def _kept_net(run: RunDirectory, config: FinetuneConfig, module: nn.Module | None) -> EncoderWithClassifier:
    """Encoder, head and classifier that a run left, where they are to compute."""
    results = load_classifier(run.encoder_file)
    if results is None or results[1] is None:
        raise UserError(f"{run.encoder_file} holds no classifier to score: start another run in another folder")
    net = EncoderWithClassifier(
        load_encoder(run.encoder_file, module), results[0], load_head(run.encoder_file), results[1]
    )
    return net.to(choose_device(config.training.device))


def _scored_anew(
    done: FinetuneResult, run: RunDirectory, config: FinetuneConfig, test: Source, targets: NDArray[np.int64],
    module: nn.Module | None,
) -> FinetuneResult:  # fmt: skip
    """The result of a run that is done, on other test images than it was scored on."""
    net = _kept_net(run, config, module)
    print_rank0(
        f"{run.path} was scored on other {EXAMPLE[net.input.kind]}s: its net is scored on those of {test.name}, "
        "nothing is trained"
    )
    names = read_header(run.encoder_file)["extra"].get("class_names")
    scores = _score(net, config, test, targets, names)
    return dataclasses.replace(done, scores=scores, test=labels_fingerprint(test))


def _score(
    net: EncoderWithClassifier, config: FinetuneConfig, test: Source, targets: NDArray[np.int64],
    names: Sequence[str] | None,
) -> Scores | ManyScores:  # fmt: skip
    views = config.views
    result = Extractor(views.size, config.preprocessing, views.resample).extract(net, test)
    targets = targets[result.index]
    if targets.ndim == 2:
        return score_many(result.h, targets)
    known = targets >= 0
    return score(result.h[known], np.arange(result.h.shape[1]), targets[known]).named(names)


def _text(config: FinetuneConfig, words: str, kind: Kind) -> str:
    """What was trained and how."""
    optim, views = config.optim, config.views
    least, most = views.crop_area or CROP_AREA
    seen = f"crops of {least:g} to {most:g}, flip {views.flip:g}"
    if kind == "audio":
        seen = f"one view of each recording, changed with probability {config.waves.chain:g}"
    entry = f"output {config.from_head} of the projection head" if config.from_head else "the encoder's features"
    balance = class_weights_in_words(config.class_weights)
    if config.sampling == "balanced":
        balance = ", ".join(filter(None, ["as many examples of each class drawn", balance]))
    words += f"; {balance}" if balance else ""
    nesterov = " with Nesterov momentum" if optim.nesterov else ""
    return (
        f"{_trained(config)}, classifier on {entry}; {words}; {optim.name}{nesterov}, "
        f"lr {optim.lr:g} ({optim.lr_rule or 'none'}), weight decay {optim.weight_decay:g}, {optim.schedule}, "
        f"{counted(config.epochs or 0, 'epoch')}, batch {config.batch}; "
        f"{seen}; seed {config.seed}; "
        f"the test {EXAMPLE[kind]}s were scored once, after the last step"
    )


def _trained(config: FinetuneConfig) -> str:
    """What was trained and what was kept."""
    if config.from_scratch:
        return "the same net trained from scratch"
    if config.freeze == "encoder":
        mode = config.frozen_mode or "inference"
        return f"linear classifier trained by gradient descent, all below frozen and in {mode} mode"
    head = ", the head's layers kept" if config.freeze == "head" else ""
    if config.after_block is not None:
        below = f"the stem and {counted(config.after_block, 'block')}" if config.after_block else "the stem"
        return f"all above {below} fine-tuned{head}, {below} frozen and in {config.frozen_mode or 'training'} mode"
    return f"encoder and classifier fine-tuned{head}" if head else "the whole net fine-tuned"
