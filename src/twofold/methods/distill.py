"""Distillation (arXiv 2006.10029, equations 2 and 3): a student learns a fixed teacher's class probabilities."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from twofold.encoders import Encoder
from twofold.heads import Classifier
from twofold.losses import distillation_loss
from twofold.methods.base import ClassifierMethod, ClassifierOutput, Inputs, Output
from twofold.optim import classifier_decay


class Distill(ClassifierMethod):
    """A student, encoder and linear classifier, that learns to say what a teacher says.

    The teacher is no part of it: its logits come with each batch, so neither checkpoints nor the optimiser hold it.

    Args:
        encoder: the student's, views of images or recordings -> h [n, d].
        classes: K, as many as the teacher's.
        temperature: tau > 0 of both softmaxes.
        squared_temperature: multiply by tau^2, see `distillation_loss`.
        alpha: share of the teacher in the loss, where some images have labels; None: the teacher alone.
        decay: weight decay of the classifier's kernel where the loss has to carry it (LARS; see `classifier_decay`).
    """

    measure: ClassVar[str] = "agreement"

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        temperature: float = 1.0,
        squared_temperature: bool = False,
        alpha: float | None = None,
        decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = Classifier(encoder.feature_dim, classes)
        self.temperature, self.squared_temperature, self.alpha = temperature, squared_temperature, alpha
        self.decay = decay

    def trained(self) -> list[nn.Module]:
        """Encoder and classifier."""
        return [self.encoder, self.classifier]

    def forward(self, inputs: Inputs) -> ClassifierOutput:
        """One step's loss of one view of each example, the teacher's logits, and labels [n], -1 where unknown.

        Without alpha there are no labels (None).
        """
        teacher, labels = inputs.teacher_logits, inputs.labels
        if teacher is None:
            raise TypeError("a student learns from its teacher's logits, and the inputs have none")
        h = self.encoder(inputs.a)
        logits = self.classifier(h)
        loss = distillation_loss(logits, teacher, self.temperature, self.squared_temperature, labels, self.alpha)
        if self.decay:
            loss = loss + classifier_decay(self.classifier, self.decay)
        return ClassifierOutput(loss, h.detach(), logits.detach(), teacher)

    def watched(self, output: Output) -> dict[str, Tensor]:
        """How often both name the same class, and the teacher's mean entropy: the loss of a perfect student."""
        assert isinstance(output, ClassifierOutput)
        probabilities = torch.softmax(output.targets.float() / self.temperature, 1)
        entropy = torch.special.entr(probabilities).sum(1).mean()
        if self.squared_temperature:
            entropy = entropy * self.temperature**2
        found = {**super().watched(output), "teacher_entropy": entropy}
        if self.alpha == 0:  # nobody listens to the teacher: that they agree by chance is no trouble
            found.pop("by_chance", None)
        return found

    def describe(self, output: Output, batch: int) -> dict[str, float]:
        """Of all that is trained, and the loss of even answers where the teacher alone is listened to."""
        row = super().describe(output, batch)
        if self.alpha is not None:
            return row
        scale = self.temperature**2 if self.squared_temperature else 1.0
        return row | {"chance": scale * math.log(self.classifier.out_features)}
