"""Learning from labels on top of a pretrained encoder: fine-tuning, linear evaluation, and training from scratch.

Source: arXiv 2002.05709, appendices B.5 and B.6; arXiv 2006.10029, section 3 (fine-tuning from a middle layer of the
head); tf2/model.py and tf2/run.py of google-research/simclr.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.distributed import batch_norm_layers
from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.heads import Classifier, ProjectionHead
from twofold.methods.base import ClassifierMethod, ClassifierOutput, Inputs, Output
from twofold.optim import classifier_decay
from twofold.text import counted
from twofold.waves import Waves

Freeze = Literal["nothing", "head", "encoder"]
FrozenMode = Literal["training", "inference"]


class Supervised(ClassifierMethod):
    """Encoder f, the first layers of its projection head, and a fresh linear classifier, trained on labelled images.

    Args:
        encoder: f, [n, C, S, S] in [0, 1] -> h [n, d].
        head: the projection head that f was trained with; its layers above `from_head` are kept as they are.
        classes: K.
        from_head: the output of the head that the classifier reads: 0 is h, SimCLR v2 takes 1 of a 3-layer head for
            1 % and 10 % of the labels.
        freeze: "nothing": all of it is trained, as tf2/model.py does. "head": the head's layers are used and not
            updated but for the averages of their batch norm, as the TF1 code does by its list of variables. "encoder":
            the classifier alone is trained: linear evaluation.
        after_block: train what follows this block of the encoder; its stem and so many blocks stay as they are, 0 the
            stem alone. None: all of it is trained. `fine_tune_after_block` of tf2/resnet.py.
        frozen_mode: of what is frozen in the encoder. "training": batch norm normalises by the batch and moves its
            averages, as both programs do while any stage is trained, and TF2 always. "inference": as at test time.
            None: "training" after a block, "inference" where the whole encoder is frozen.
        init: of the classifier: "zero" as the SimCLR recipes, "normal" as MoCo's.
        decay: weight decay of the classifier's kernel where the loss has to carry it (LARS; see `classifier_decay`).
        many: an image can have many labels: [n, K] of 0 and 1, a binary cross-entropy for each class.
        weights: [K] how much an example of each class counts in the loss, which is the weighted sum over a batch
            divided by its size, so that any number of processes gives the same; None: all alike. Not with `many`.
        shares: [K] of the examples as they are drawn, the share that is of each class: metrics then tell the loss of a
            constant prediction. None where that is not known.

    Raises:
        UserError: the head has no such output, or the encoder no such block.
    """

    weights: Tensor | None
    shares: Tensor | None

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
        after_block: int | None = None,
        frozen_mode: FrozenMode | None = None,
        weights: Tensor | None = None,
        shares: Tensor | None = None,
    ) -> None:
        super().__init__()
        layers = 0 if head is None else len(head.layers)
        if not 0 <= from_head <= layers:
            raise UserError(
                f"--from_head {from_head}: the run's projection head has {counted(layers, 'layer')}; give 0 (the "
                f"encoder's features) to {layers}"
            )
        self.encoder, self.head = encoder, head if head is not None else nn.Identity()
        self.below = list(head.layers[:from_head]) if head is not None else []
        width = encoder.feature_dim if head is None else head.widths[from_head]
        self.classifier = Classifier(width, classes, init)
        self.from_head, self.freeze, self.decay, self.many = from_head, freeze, decay, many
        self.register_buffer("weights", weights, persistent=False)  # of the options and data, not of what is learned
        self.register_buffer("shares", shares, persistent=False)
        if head is not None:
            head.requires_grad_(False)
        for layer in self.below:
            layer.requires_grad_(freeze == "nothing")
        self.encoder.requires_grad_(freeze != "encoder")
        if after_block is not None:
            self._keep(after_block)
        frozen = self._frozen(after_block)
        mode = frozen_mode or ("inference" if freeze == "encoder" else "training")
        self._resting = frozen if mode == "inference" else []
        if frozen_mode is not None and not any(map(_has_modes, frozen)):
            raise UserError(
                f"--frozen_mode {frozen_mode} has no effect: what is frozen has neither batch norm nor dropout; leave "
                "it out"
            )
        self.train()

    def _keep(self, after_block: int) -> None:
        """Freeze the encoder's stem and this many of its blocks."""
        blocks, name = self.encoder.blocks(), type(self.encoder).__name__
        if blocks is None:
            raise UserError(
                f"--after_block {after_block}: the structure of this encoder ({name}) tells no blocks; leave it out, "
                "or give --freeze encoder"
            )
        if not 0 <= after_block <= len(blocks.blocks):
            raise UserError(
                f"--after_block {after_block}: the encoder has {counted(len(blocks.blocks), 'block')}; give 0 (what "
                f"follows the stem is trained) to {len(blocks.blocks)}"
            )
        for parameter in blocks.parameters(after_block):
            parameter.requires_grad_(False)
        if not any(p.requires_grad for part in (self.encoder, *self.below) for p in part.parameters()):
            raise UserError(
                f"--after_block {after_block} leaves nothing but the classifier to train, which is --freeze encoder: "
                "give that instead"
            )

    def _frozen(self, after_block: int | None) -> list[nn.Module]:
        """The modules that are frozen for the encoder's sake."""
        if self.freeze == "encoder":
            return [self.encoder, self.head]
        blocks = self.encoder.blocks()
        return [] if after_block is None or blocks is None else list(blocks.up_to(after_block))

    def kept(self) -> set[str]:
        """The names of the encoder's tensors that training must leave as they are."""
        tensors = self.encoder.named_parameters, self.encoder.named_buffers
        named = [pair for each in tensors for pair in each(remove_duplicate=False)]
        resting = {id(t) for part in self._resting for t in (*part.parameters(), *part.buffers())}
        fixed = {id(parameter) for parameter in self.encoder.parameters() if not parameter.requires_grad}
        return {name for name, tensor in named if id(tensor) in resting | fixed}

    def train(self, mode: bool = True) -> Supervised:
        """Training mode for what learns; what is frozen stays in inference mode unless `frozen_mode` says otherwise."""
        super().train(mode)
        for part in self._resting:
            part.eval()
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

    def describe(self, output: Output, batch: int) -> dict[str, float]:
        """Of all that is trained, and the loss of a constant prediction where it is known."""
        row = super().describe(output, batch)
        return row if self.shares is None else row | {"chance": self._chance(self.shares)}

    def largest(self) -> float | None:
        """Share of the largest class; None of many labels, each of which is a decision of its own."""
        return None if self.shares is None or self.many else float(self.shares.max())

    def _chance(self, shares: Tensor) -> float:
        """The loss of the best answer that is the same for all examples: the entropy of the (weighted) labels."""
        parts = torch.special.entr(shares.double())
        if self.many:
            return float((parts + torch.special.entr(1 - shares.double())).sum())
        weights = torch.ones_like(parts) if self.weights is None else self.weights.to(parts)
        counted = shares.to(parts) * weights
        return float(torch.special.entr(counted / counted.sum()).sum() * counted.sum())


def _has_modes(module: nn.Module) -> bool:
    """Whether a module does something else in training than at test time, as far as its layers tell."""
    rates = (getattr(part, name, None) for part in module.modules() for name in ("p", "drop_prob"))
    return bool(batch_norm_layers(module)) or any(isinstance(rate, float) and rate > 0 for rate in rates)
