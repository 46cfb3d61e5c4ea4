"""What a method is: what a step is given, the modules it trains, what the step computes, and what happens after it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.heads import Classifier, ProjectionHead
from twofold.losses import chance_level, describe, negatives_per_anchor, retrieval_auc
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

    def watched(self, output: Output) -> dict[str, Tensor]:  # noqa: ARG002 (for those that have more to say)
        """Scalars of this rank's step: a row of metrics has their means over all steps since the row before."""
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

    def watched(self, output: Output) -> dict[str, Tensor]:
        """How often a view is nearer to its partner than to another; nothing of a single example."""
        assert isinstance(output, ContrastiveOutput)
        if len(output.z_a) < 2:
            return {}
        return {"retrieval_auc": retrieval_auc(output.z_a, output.z_b, self.normalize)}

    def encoder_norm(self) -> float:
        """L2 norm of the encoder's parameters, of which a run that trains them changes some digits."""
        return l2_norm(self.encoder.parameters())


class ClassifierMethod(Method):
    """A method that names classes: those of labels, or those that a teacher names.

    Attributes:
        classifier: what gives the logits.
        measure: name of the share of answers that are right, among the metrics.
        many: whether an example can be of several classes, and each class is a decision of its own.
        fresh: whether the encoder begins at random.
    """

    classifier: Classifier
    measure: ClassVar[str] = "train_accuracy"
    many: bool = False
    fresh: bool = True

    def watched(self, output: Output) -> dict[str, Tensor]:
        """The share of right answers (with many labels: of decisions), and, of two examples or more, what share would
        be right if the answers were dealt out among the batch's examples at random: the expected agreement of Cohen's
        kappa, without the pairs of an answer and its own example.

        A classifier that gives one answer to all is right by chance alone, whatever share its class has.
        """
        assert isinstance(output, ClassifierOutput)
        logits, targets = output.logits.float(), output.targets
        if self.many:
            said, true = (logits > 0).float(), (targets > 0).float()
            right = (said == true).float().mean(1).sum()
            pairs = (said.sum(0) * true.sum(0) + (1 - said).sum(0) * (1 - true).sum(0)).mean()
        else:
            said = _one_hot(logits.argmax(1), logits)
            true = _one_hot(targets if targets.ndim == 1 else targets.argmax(1), logits)
            right, pairs = (said * true).sum(), (said.sum(0) * true.sum(0)).sum()
        n = len(logits)
        found = {self.measure: right / n}
        return found if n < 2 else found | {"by_chance": (pairs - right) / (n * (n - 1))}

    def describe(self, output: Output, batch: int) -> dict[str, float]:  # noqa: ARG002 (other methods' depend on it)
        """L2 norm of all that is trained."""
        return {"trained_norm": self.trained_norm()}

    def largest(self) -> float | None:
        """Share of the largest class among the labels as they are drawn; None where it is not known."""
        return None

    def trains_encoder(self) -> bool:
        """Whether anything of the encoder is updated."""
        return any(parameter.requires_grad for parameter in self.encoder.parameters())

    def trained_norm(self) -> float:
        """L2 norm of the parameters that are updated."""
        return l2_norm(p for part in self.trained() for p in part.parameters() if p.requires_grad)


def l2_norm(parameters: Iterable[nn.Parameter]) -> float:
    """L2 norm of parameters together, 0 without any."""
    parts = [parameter.detach().double().square().sum() for parameter in parameters]
    return float(torch.stack(parts).sum().sqrt()) if parts else 0.0


def _one_hot(classes: Tensor, like: Tensor) -> Tensor:
    """[n, K] as `like` is, of classes [n]; without asking a GPU which they are."""
    return torch.zeros_like(like).scatter_(1, classes.long()[:, None], 1.0)
