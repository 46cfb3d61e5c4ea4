"""The one loop for distillation: one view of an image, the teacher's logits for it, and its label if there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from twofold.data import DataConfig
from twofold.data.loader import Batch
from twofold.encoders import EncoderConfig
from twofold.errors import UserError
from twofold.heads import HeadConfig
from twofold.methods import MethodConfig
from twofold.optim import OptimConfig
from twofold.training.config import MonitorConfig, RunConfig, TrainingConfig
from twofold.training.loop import Training
from twofold.views import ViewsConfig


@dataclass(frozen=True)
class DistillConfig:
    """How a student learns from a teacher."""

    epochs: float | None = None
    """Passes over the data. Chosen from the number of images when not given."""
    batch: int | None = None
    """Images per step over all devices. Chosen from the data when not given."""
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
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Views: crop and flip unless told otherwise, as published"""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
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

    def as_run(self) -> RunConfig:
        """What it has in common with a pretraining run, from which defaults are chosen."""
        return RunConfig(
            epochs=self.epochs, batch=self.batch, seed=self.seed, data=self.data, views=self.views,
            encoder=self.encoder, head=HeadConfig(kind="none"), method=MethodConfig(temperature=1.0), optim=self.optim,
            training=self.training, monitor=MonitorConfig(every=0),
        )  # fmt: skip


@dataclass
class Distilling(Training):
    """A run whose method takes a view and what is known of its image.

    Attributes:
        teacher: views [n, C, S, S] -> logits [n, K]; or
        cached: its logits for every image of the data, [N, K].
        known: labels of every image of the data, [N], -1 where unknown; None: no labels are used.
    """

    teacher: Callable[[Tensor], Tensor] | None = None
    cached: Tensor | None = None
    known: Tensor | None = None

    def look_twice(self, batch: Batch) -> Any:
        """The first view of a batch, and (the teacher's logits, labels or None), on the device."""
        device, draw = self.accelerator.device, batch.draws[0]
        images = (batch.images[0] if batch.cropped else batch.images).to(device, non_blocking=True)
        view = self.views.photometric(images if batch.cropped else self.views.crop(images, draw), draw)
        view = view.contiguous(memory_format=self.memory_format)
        labels = None if self.known is None else self.known[batch.index].to(device)
        return view, (self._targets(view, batch.index).to(device), labels)

    @torch.no_grad()
    def _targets(self, view: Tensor, index: Tensor) -> Tensor:
        if self.cached is not None:
            return self.cached[index]
        if self.teacher is None:
            raise ValueError("either a teacher or its cached logits are needed")
        with self.accelerator.autocast():
            return self.teacher(view)
