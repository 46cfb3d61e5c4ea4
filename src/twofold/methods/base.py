"""What a method is: what a step is given, the modules it trains, what the step computes, and what happens after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.heads import ProjectionHead
from twofold.losses import chance_level, describe, negatives_per_anchor
from twofold.text import counted
from twofold.waves import Waves


@dataclass(frozen=True)
class Inputs:
    """What one step is given, on the device; row i of everything is of example i.

    Attributes:
        a: first views, [n, C, S, S] in [0, 1] of images, or `Waves` of recordings.
        b: second views of the same examples; None where the method takes one.
        labels: [n] classes, or [n, K] of 0 and 1 where an example can have many; None where the method needs none.
        teacher_logits: [n, K] what a teacher says of each example; None without a teacher.
    """

    a: Tensor | Waves
    b: Tensor | Waves | None = None
    labels: Tensor | None = None
    teacher_logits: Tensor | None = None

    def images(self) -> tuple[Tensor, Tensor]:
        """Both views, of images.

        Raises:
            TypeError: there is one view, or they are of recordings.
        """
        if not (isinstance(self.a, Tensor) and isinstance(self.b, Tensor)):
            raise TypeError(f"two views of images are needed, got {type(self.a).__name__} and {type(self.b).__name__}")
        return self.a, self.b

    def waves(self) -> tuple[Waves, Waves]:
        """Both views, of recordings.

        Raises:
            TypeError: there is one view, or they are of images.
        """
        if not (isinstance(self.a, Waves) and isinstance(self.b, Waves)):
            raise TypeError(f"two views of waves are needed, got {type(self.a).__name__} and {type(self.b).__name__}")
        return self.a, self.b


@dataclass(frozen=True)
class Output:
    """What one step gives.

    Attributes:
        loss: scalar to minimise: the mean over this rank's examples.
        h: [2n, d] representations that the encoder gave, detached: of view a, then of view b. [n, d] of view a alone
            where it saw no other.
    """

    loss: Tensor
    h: Tensor


@dataclass(frozen=True)
class ContrastiveOutput(Output):
    """What a step of a contrastive method gives.

    Attributes:
        z_a, z_b: [n, k] projections that the loss compares, detached.
        layers: what each layer of the head made of h, detached: the last is z before it is normalised.
    """

    z_a: Tensor
    z_b: Tensor
    layers: tuple[Tensor, ...] = field(default=(), kw_only=True)

    def output(self, layer: int) -> Tensor:
        """h for 0, else the output of the head's layer of this number; UserError where the method does not give it."""
        if layer > len(self.layers):
            raise UserError(
                f"the method gives no output {layer} of its head: give --monitor.probe_layer 0 to {len(self.layers)}"
            )
        return self.layers[layer - 1] if layer else self.h


@dataclass(frozen=True)
class ClassifierOutput(Output):
    """What a step of a classifier gives.

    Attributes:
        logits: [n, K], detached.
        targets: what the loss compares them with: labels, [n] or [n, K], or a teacher's logits [n, K].
    """

    logits: Tensor
    targets: Tensor


class Method(nn.Module):
    """What is trained: `forward(inputs)` takes `Inputs` and returns an `Output`.

    Attributes:
        encoder: what is kept after training.
        local_batch_norm: whether batch norm takes statistics of each rank alone, by what the method is.
    """

    encoder: Encoder
    local_batch_norm: ClassVar[bool] = False

    def forward(self, inputs: Inputs) -> Output:
        """One step's loss."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say what a step of {counted(len(inputs.a), 'example')} computes"
        )

    def trained(self) -> list[nn.Module]:
        """The modules whose parameters the optimiser updates."""
        return [self.encoder]

    def after_step(self) -> None:
        """Called when the optimiser has made its update (nothing to do unless a method averages or stores)."""

    def notice(self) -> str:
        """What somebody who watches the loss should know before it starts; empty where there is nothing to say."""
        return ""

    def describe(self, output: Output, batch: int) -> dict[str, float]:  # noqa: ARG002 (for those that have more to say)
        """What a row of metrics tells of a step beside its loss, at a global batch of `batch` examples."""
        return {}


class ContrastiveMethod(Method):
    """A method that compares projections of two views with those of other examples.

    Attributes:
        head: what maps the encoder's output to the space of the loss.
        temperature, normalize: of the contrastive logits, as in `twofold.losses.nt_xent`.
    """

    head: ProjectionHead
    temperature: float
    normalize: bool = True

    def trained(self) -> list[nn.Module]:
        """Encoder and head."""
        return [self.encoder, self.head]

    def project(self, h: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """z [N, k] of h [N, d], and what each layer of the head gave, detached."""
        outputs = self.head.outputs(h)
        return outputs[-1], tuple(output.detach() for output in outputs[1:])

    def negatives(self, batch: int) -> int:
        """Negatives for each anchor at a global batch of `batch` examples."""
        return negatives_per_anchor(batch)

    def chance(self, batch: int) -> float:
        """The loss of an embedding that tells nothing apart, at a global batch of `batch` examples."""
        return chance_level(batch)

    def describe(self, output: Output, batch: int) -> dict[str, float]:
        """Negatives, how well the embedding tells views apart and how it lies, and the loss of chance."""
        assert isinstance(output, ContrastiveOutput)
        embedding = describe(output.z_a, output.z_b, output.h, self.temperature, batch, self.normalize)
        own = {"chance": self.chance(batch), "encoder_norm": self.encoder_norm()}
        return {"negatives": self.negatives(batch)} | embedding | own

    def encoder_norm(self) -> float:
        """L2 norm of the encoder's parameters, of which a run that trains them changes some digits."""
        parts = [parameter.detach().double().square().sum() for parameter in self.encoder.parameters()]
        return float(torch.stack(parts).sum().sqrt()) if parts else 0.0
