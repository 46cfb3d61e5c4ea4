"""The configuration of each kind of run, merged from layers and checked as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from twofold.data import DataConfig
from twofold.encoders import EncoderConfig
from twofold.errors import UserError
from twofold.evaluation.class_weights import ClassWeights, check_class_weights
from twofold.evaluation.framing import Preprocessing
from twofold.evaluation.label_subsets import check_draw
from twofold.evaluation.monitors import MonitorConfig
from twofold.heads import HeadConfig
from twofold.kinds import Kind
from twofold.methods import MethodConfig
from twofold.methods.supervised import Freeze, FrozenMode
from twofold.optim import OptimConfig
from twofold.options import GIVEN, OptionsParser, merge, option, plain, refuse_unused
from twofold.runs.presets import preset_options
from twofold.training.config import TrainingConfig
from twofold.views import ViewsConfig
from twofold.views.audio.views import WavesConfig

_OF_WAVES, _OF_VIEWS = "use those of --waves", "use those of --views"
_LEARNING = {"freeze": ("nothing", "head")}


@dataclass(frozen=True)
class RunConfig:
    """A pretraining run."""

    epochs: float | None = None
    """Passes over the data. Chosen from the number of images when not given."""
    extensions: tuple[float, ...] = ()
    """Passes that were added to the finished run, one number for each time; see --extend."""
    batch: int | None = None
    """Images per step over all devices (N; the loss compares 2N views). Chosen from the data when not given."""
    micro_batch: int | None = None
    """Images per device that the encoder takes at once: a smaller memory for a third more time. The batch, its
    negatives and gradients stay, but batch norm in the encoder takes statistics of so many images."""
    bn_momentum: float | None = None
    """Share of a batch in the running averages of batch norm, 1 - the official `batch_norm_decay`; 0.1, or what the
    encoder has, when not given."""
    global_bn: bool | None = None
    """Batch norm takes statistics over all processes, in encoder and head; false: each process over its own rows, and
    the running averages are the mean of theirs. When not given as the method has it: true but for MoCo."""
    seed: int = 0
    """Seed of every random number of the run."""
    start_from: str | None = None
    """Weights that the encoder begins with: a run's folder, one that `twofold convert` wrote, or a file with the
    tensors of a backbone (.pth, .pt, .ckpt, .bin, .safetensors). The encoder's options and its reading of pixels come
    with them; the projection head starts anew."""
    start_prefix: str | None = option(None, when={"start_from": (GIVEN,)})
    """What the names of a backbone's tensors begin with, such as module.encoder_q., or a map of beginnings with commas
    between, such as backbone.0.=conv1.; found if not given."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""
    views: ViewsConfig = option(factory=ViewsConfig, when={"kind": ("image",)}, instead=_OF_WAVES)
    """Views"""
    waves: WavesConfig = option(factory=WavesConfig, when={"kind": ("audio",)}, instead=_OF_VIEWS)
    """Views of recordings"""
    encoder: EncoderConfig = field(default_factory=EncoderConfig.of)
    """Encoder"""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Projection head"""
    method: MethodConfig = field(default_factory=MethodConfig.of)
    """Method"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser"""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Training"""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """Monitor"""

    def __post_init__(self) -> None:
        if self.epochs is not None and not self.epochs > 0:
            raise UserError(f"--epochs must be above 0, got {self.epochs}")
        if any(not 0 < epochs < float("inf") for epochs in self.extensions):
            raise UserError(f"--extensions (and --extend) must be above 0, got {list(self.extensions)}")
        if self.batch is not None and self.batch < 2:
            raise UserError(
                f"--batch must be at least 2, got {self.batch}: the loss needs another image to contrast with"
            )
        check_micro_batch(self.micro_batch)
        check_bn_momentum(self.bn_momentum)
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed must lie in [0, 2**63), got {self.seed}")


def check_micro_batch(micro_batch: int | None) -> None:
    """Raise a UserError for a micro-batch without an example."""
    if micro_batch is not None and micro_batch < 1:
        raise UserError(f"--micro-batch must be at least 1, got {micro_batch}")


def check_bn_momentum(momentum: float | None) -> None:
    """Raise a UserError for a share that is none."""
    if momentum is not None and not 0 <= momentum <= 1:
        raise UserError(f"--bn_momentum must lie in [0, 1], got {momentum}")


def build(options: Mapping[str, Any], origin: str = "options") -> RunConfig:
    """Build a `RunConfig` from nested options, over those that the named encoder brings along."""
    nested = merge(options)
    return OptionsParser(RunConfig).build(merge(preset_options(nested), nested), origin)


def to_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class FinetuneConfig:
    """How a classifier is trained on a pretrained encoder."""

    labels: str = "all"
    """Which images get a label: all, a share (10%), a number in all (40), so many of each class (4/class), or a file
    with one image name a line, as the published ImageNet subsets are listed. Nothing else of the data is used."""
    draw: int = 0
    """Which of the random choices of that many labels."""
    from_head: int = 0
    """Output of the projection head that the classifier reads: 0 the encoder's features, j its layer j's (SimCLR v2:
    1 for 1 % and 10 % of the labels, 0 for all)."""
    freeze: Freeze = "nothing"
    """nothing: all is trained; head: the head's layers stay as they were; encoder: everything but the classifier stays,
    which is linear evaluation by gradient descent (the official `fine_tune_after_block` 4)."""
    after_block: int | None = option(None, when=_LEARNING)
    """Train what follows this block of the encoder, the official `fine_tune_after_block`: 0 what follows the stem, j
    what follows j stages of a ResNet or layers of a transformer. All of it when not given."""
    frozen_mode: FrozenMode | None = None
    """Of what after_block or freeze keep in the encoder. training: batch norm normalises by the batch and moves its
    averages, and dropout drops; inference: as at test time. When not given training with after_block, as in the
    official code, and inference with freeze encoder."""
    from_scratch: bool = False
    """Forget the pretrained weights: the same net from a random start, the control. Its learning rate is 0.3 for 256
    images unless set, because the 0.05 of a pretrained net would teach it little."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """How examples are drawn: uniform, each once an epoch; balanced, as many of each class, so that those of a rare one
    come more often (class-balanced sampling)."""
    class_weights: ClassWeights = None
    """How much the examples of each class count in the loss: balanced, inversely to their number; or a number a class,
    in the classes' order. Only their ratios count."""
    init: Literal["zero", "normal"] = "zero"
    """How the classifier starts: at zero (SimCLR) or as N(0, 0.01^2) (MoCo)."""
    layer_decay: float | None = option(None, when=_LEARNING)
    """Learning rate of each layer relative to the one above, in (0, 1]; one rate for all when not given."""
    bn_momentum: float | None = None
    """Share of a batch in the running averages of batch norm, 1 - the official `batch_norm_decay`; 0.1, or what the
    encoder has, when not given."""
    global_bn: bool | None = None
    """Batch norm takes statistics over all processes, in encoder and head; false: each process over its own rows, and
    the running averages are the mean of theirs. When not given true."""
    epochs: float | None = None
    """Passes over the labelled images. When not given, as many as make 500 steps, but 30 at least."""
    batch: int | None = None
    """Images per step over all devices. When not given 64, or all labelled images where there are fewer."""
    micro_batch: int | None = option(None, when=_LEARNING)
    """Images per device that the encoder takes at once, as in `twofold pretrain`."""
    seed: int = 0
    """Seed of the classifier's start, of order and views, and of the choice of labels."""
    preprocessing: Preprocessing = "auto"
    """Of the test images, see `twofold evaluate`."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""
    views: ViewsConfig = option(factory=ViewsConfig, when={"kind": ("image",)}, instead=_OF_WAVES)
    """Views: the run's own crops, flips and turns without colour and blur, unless set"""
    waves: WavesConfig = option(factory=WavesConfig, when={"kind": ("audio",)}, instead=_OF_VIEWS)
    """Views of recordings: the run's own, unless set"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser"""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Training"""

    def __post_init__(self) -> None:
        if self.epochs is not None and not self.epochs > 0:
            raise UserError(f"--epochs must be above 0, got {self.epochs}")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"--batch must be at least 1, got {self.batch}")
        check_micro_batch(self.micro_batch)
        check_bn_momentum(self.bn_momentum)
        for name in ("from_head", "draw", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} must be at least 0, got {getattr(self, name)}")
        check_draw(self.labels, self.draw)
        refuse_unused(self)
        kept = {"freeze": None if self.freeze == "nothing" else self.freeze, "after_block": self.after_block}
        for name, value in kept.items():
            if self.from_scratch and value is not None:
                raise UserError(f"--from_scratch has nothing to keep: leave --{name} {value} out")
        if self.frozen_mode is not None and self.freeze != "encoder" and self.after_block is None:
            raise UserError(
                f"--frozen_mode {self.frozen_mode} has no effect where nothing of the encoder is frozen: leave it out, "
                "or give --after_block or --freeze encoder"
            )
        check_class_weights(self.class_weights)
        if self.sampling == "balanced" and self.class_weights == "balanced":
            raise UserError(
                "--class_weights balanced with --sampling balanced would count rare classes twice over: leave one out"
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"--layer_decay must lie in (0, 1], got {self.layer_decay}")


@dataclass(frozen=True)
class DistillConfig:
    """How a student learns from a teacher."""

    epochs: float | None = None
    """Passes over the data. Chosen from the number of images when not given."""
    batch: int | None = None
    """Images per step over all devices. Chosen from the data when not given."""
    micro_batch: int | None = None
    """Images per device that the student takes at once, as in `twofold pretrain`."""
    bn_momentum: float | None = None
    """Share of a batch in the running averages of batch norm, 1 - the official `batch_norm_decay`; 0.1, or what the
    student has, when not given."""
    global_bn: bool | None = None
    """Batch norm takes statistics over all processes, in encoder and head; false: each process over its own rows, and
    the running averages are the mean of theirs. When not given true."""
    seed: int = 0
    """Seed of every random number of the run."""
    temperature: float | None = None
    """Temperature of both softmaxes. When not given 0.1 for a student built as its teacher, else 1 (SimCLR v2)."""
    squared_temperature: bool = False
    """Multiply the loss by temperature^2, as the released notebook does and the paper's equation does not."""
    targets: Literal["online", "cached"] = "online"
    """online: the teacher sees the very view that the student sees; cached: it sees each image once, as at test time,
    and what it said is kept."""
    alpha: float | None = None
    """Share of the teacher in the loss, the rest being the labels'; without it labels are not used."""
    labels: str | None = None
    """Images whose labels the student learns from, with alpha: all, 10%, 40 (in all), 4/class, or a list file."""
    teacher_labels: str | None = None
    """Fit a linear classifier on the frozen teacher first, with the labels of so many images of PATH, as in labels."""
    classifier_layer: int | None = None
    """Output of the projection head that the teacher's classifier reads, where its file does not say."""
    test: str | None = None
    """Labelled data to score both on; without it the data's own test split, or else the training images."""
    unlabelled: bool = False
    """Take no notice of labels in the data: only how often student and teacher agree is reported."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data"""
    views: ViewsConfig = option(factory=ViewsConfig, when={"kind": ("image",)})
    """Views: crop and flip unless told otherwise, as published"""
    waves: WavesConfig = option(factory=WavesConfig, when={"kind": ("audio",)})
    """Views of recordings: the teacher's own, unless set"""
    encoder: EncoderConfig = field(default_factory=EncoderConfig.of)
    """Student: built as its teacher unless told otherwise"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser"""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Training"""

    def __post_init__(self) -> None:
        self.as_run()  # checks what both have in common
        if self.temperature is not None and not self.temperature > 0:
            raise UserError(f"--temperature must be above 0, got {self.temperature}")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise UserError(f"--alpha must lie in [0, 1], got {self.alpha}: it is the teacher's share of the loss")
        if self.labels is not None and self.alpha is None:
            raise UserError(
                f"--labels {self.labels} needs --alpha, the teacher's share of the loss (the labels get the rest); "
                "without both, the student learns from the teacher alone"
            )
        if self.teacher_labels is not None and self.classifier_layer is not None:
            raise UserError(
                f"--classifier_layer {self.classifier_layer} has no effect with --teacher_labels, which fits a new "
                "classifier on the encoder's features: leave one of them out"
            )
        if self.unlabelled and (self.alpha is not None or self.test is not None):
            raise UserError("--unlabelled leaves the labels out, which --alpha and --test need: give one or the other")

    def as_run(self, kind: Kind = "image") -> RunConfig:
        """What it has in common with a pretraining run on examples of a kind, from which defaults are chosen."""
        method = MethodConfig.of(name=MethodConfig.unnamed[kind == "audio"], temperature=1.0)
        return RunConfig(
            epochs=self.epochs, batch=self.batch, micro_batch=self.micro_batch, seed=self.seed, data=self.data,
            bn_momentum=self.bn_momentum, global_bn=self.global_bn,
            views=self.views, waves=self.waves, encoder=self.encoder, head=HeadConfig(kind="none"),
            method=method, optim=self.optim, training=self.training,
            monitor=MonitorConfig(every=0),
        )  # fmt: skip
