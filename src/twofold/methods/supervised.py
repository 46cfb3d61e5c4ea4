"""Learning from labels on top of a pretrained encoder: fine-tuning, linear evaluation, and training from scratch.

Source: arXiv 2002.05709, appendices B.5 and B.6; arXiv 2006.10029, section 3 (fine-tuning from a middle layer of the
head); tf2/model.py and tf2/run.py of google-research/simclr.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.distributed import all_reduce_mean
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.heads import Classifier, ProjectionHead
from twofold.methods.base import ClassifierOutput, Inputs, Method, Output
from twofold.optim import classifier_decay
from twofold.waves import Waves

Freeze = Literal["nothing", "head", "encoder"]


class Supervised(Method):
    """Encoder f, the first layers of its projection head, and a fresh linear classifier, trained on labelled images.

    Args:
        encoder: f, [n, C, S, S] in [0, 1] -> h [n, d].
        head: the projection head that f was trained with; its layers above `from_head` are kept as they are.
        classes: K.
        from_head: the output of the head that the classifier reads: 0 is h, SimCLR v2 takes 1 of a 3-layer head for
            1 % and 10 % of the labels.
        freeze: "nothing": all of it is trained, as tf2/model.py does. "head": the head's layers are used and not
            updated but for the averages of their batch norm, as the TF1 code does by its list of variables. "encoder":
            the classifier alone is trained, all below is in inference mode: linear evaluation.
        init: of the classifier: "zero" as the SimCLR recipes, "normal" as MoCo's.
        decay: weight decay of the classifier's kernel where the loss has to carry it (LARS; see `classifier_decay`).
        many: an image can have many labels: [n, K] of 0 and 1, a binary cross-entropy for each class.
        weights: [K] how much an example of each class counts in the loss, which is the weighted sum over a batch
            divided by its size, so that any number of processes gives the same; None: all alike. Not with `many`.

    Raises:
        UserError: the head has no such output.
    """

    weights: Tensor | None

    def __init__(
        self,
        encoder: Encoder,
        head: ProjectionHead | None,
        classes: int,
        from_head: int = 0,
        freeze: Freeze = "nothing",
        init: Literal["zero", "normal"] = "zero",
        decay: float = 0.0,
        many: bool = False,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        layers = 0 if head is None else len(head.layers)
        if not 0 <= from_head <= layers:
            raise UserError(
                f"--from_head {from_head}: the run's projection head has {layers} layers; give 0 (the encoder's "
                f"features) to {layers}"
            )
        self.encoder, self.head = encoder, head if head is not None else nn.Identity()
        self.below = list(head.layers[:from_head]) if head is not None else []
        width = encoder.feature_dim if head is None else head.widths[from_head]
        self.classifier = Classifier(width, classes, init)
        self.from_head, self.freeze, self.decay, self.many = from_head, freeze, decay, many
        self.register_buffer("weights", weights, persistent=False)  # of the options and data, not of what is learned
        if head is not None:
            head.requires_grad_(False)
        for layer in self.below:
            layer.requires_grad_(freeze == "nothing")
        self.encoder.requires_grad_(freeze != "encoder")
        self.train()

    def train(self, mode: bool = True) -> Supervised:
        """Training mode for what learns; a frozen encoder and its head stay in inference mode."""
        super().train(mode)
        if self.freeze == "encoder":
            self.encoder.eval()
            self.head.eval()
        return self

    def trained(self) -> list[nn.Module]:
        """The modules that the optimiser is given; of them, what needs a gradient is updated."""
        return [self.encoder, *self.below, self.classifier]

    def logits(self, views: Tensor | Waves) -> tuple[Tensor, Tensor]:
        """h [n, d] and logits [n, K]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.freeze != "encoder"):
            h = x = self.encoder(views)
            for layer in self.below:
                x = layer(x)
        return h, self.classifier(x)

    def forward(self, inputs: Inputs) -> ClassifierOutput:
        """One step's loss of one view of each example and the labels."""
        labels = inputs.labels
        if labels is None:
            raise TypeError("a classifier learns from labels, and the inputs have none")
        h, logits = self.logits(inputs.a)
        # In float32 or better whatever autocast made of the logits.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.many:
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="sum") / len(labels)
        elif self.weights is not None:
            weights = self.weights.to(logits)
            loss = F.cross_entropy(logits, labels, weight=weights, reduction="sum") / len(labels)
        else:
            loss = F.cross_entropy(logits, labels)
        if self.decay:
            loss = loss + classifier_decay(self.classifier, self.decay)
        return ClassifierOutput(loss, h.detach(), logits.detach(), labels)

    def describe(self, output: Output, batch: int) -> dict[str, float]:  # noqa: ARG002 (other methods' depend on it)
        """Accuracy on the step's augmented training images (with many labels: of each decision)."""
        assert isinstance(output, ClassifierOutput)
        logits, labels = output.logits, output.targets
        right = (logits > 0) == (labels > 0) if self.many else logits.argmax(1) == labels
        return {"train_accuracy": float(all_reduce_mean(right.float().mean()))}
