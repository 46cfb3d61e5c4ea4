"""The head's output as features: what MoCo's kNN monitor looks at, where SimCLR's evaluations look at h."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from twofold.encoders import Encoder, UtteranceEncoder, Waves
from twofold.errors import UserError
from twofold.heads import Classifier, ProjectionHead
from twofold.waves import as_waves


class EncoderWithHead(Encoder):
    """Encoder and head as one: features are z = head(h), not normalised.

    Args:
        encoder: gives h [N, d].
        head: [N, d] -> [N, k].
        dim: k.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, dim: int) -> None:
        super().__init__(encoder.input, dim)
        self.encoder, self.head = encoder, head

    def prepare(self, images: Tensor) -> Tensor:
        """As the encoder takes them, recordings too."""
        return self.encoder.prepare(images)

    def features(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> z [N, k]."""
        z: Tensor = self.head(self.encoder.features(x))
        return z


class InParts(UtteranceEncoder):
    """A speech encoder whose frames are pooled by parts of equal length, side by side, first part first.

    One mean over all frames tells nothing of their order; thirds tell beginning, middle and end apart. Each part is
    pooled as the encoder pools a recording. Part k of p holds the frames from floor(k T / p) to floor((k + 1) T / p);
    of fewer frames than parts, some parts share one.

    Args:
        encoder: gives frames.
        parts: p, 1 or more; features are [n, p * d].
    """

    def __init__(self, encoder: UtteranceEncoder, parts: int) -> None:
        super().__init__(encoder.input, encoder.feature_dim * parts)
        self.encoder, self.parts, self.pooling, self.stack = encoder, parts, encoder.pooling, encoder.stack

    @property
    def frontend(self):  # type: ignore[no-untyped-def, override]
        """The encoder's."""
        return self.encoder.frontend

    def hidden_states(self, waves: Waves) -> tuple[list[Tensor], Tensor]:
        """The encoder's."""
        return self.encoder.hidden_states(waves)

    def pool(self, x: Tensor, frames: Tensor) -> Tensor:
        """Frames [n, T, d'] to the encoder's own pooling of each part, [n, p * d]."""
        pooled = []
        for k in range(self.parts):
            begin = torch.div(frames * k, self.parts, rounding_mode="floor")
            end = torch.maximum(torch.div(frames * (k + 1), self.parts, rounding_mode="floor"), begin + 1)
            places = begin[:, None] + torch.arange(int((end - begin).max()), device=x.device)
            rows = torch.arange(len(x), device=x.device)[:, None]
            pooled.append(self.encoder.pool(x[rows, places.clamp(max=x.shape[1] - 1)], end - begin))
        return torch.cat(pooled, dim=1)


def in_parts(encoder: Encoder, parts: int) -> Encoder:
    """An encoder of speech that is read by parts; itself for one part.

    Raises:
        UserError: it has no frames over time: one of images, or a projection head on top.
    """
    if parts == 1:
        return encoder
    if isinstance(encoder, EncoderWithHead):
        raise UserError(f"--parts {parts} reads the encoder's frames, which z has none of: use --features h")
    if not isinstance(encoder, UtteranceEncoder):
        raise UserError(f"--parts {parts} reads the frames of a speech encoder; this one has none: leave it out")
    return InParts(encoder, parts)


class AllLayers(UtteranceEncoder):
    """An encoder whose features are all its layers, pooled over time, side by side: [n, (layers + 1) * d]."""

    def __init__(self, encoder: UtteranceEncoder) -> None:
        super().__init__(encoder.input, encoder.feature_dim)
        self.encoder, self.pooling, self.stack = encoder, encoder.pooling, encoder.stack

    @property
    def frontend(self):  # type: ignore[no-untyped-def, override]
        """The encoder's."""
        return self.encoder.frontend

    def hidden_states(self, waves: Waves) -> tuple[list[Tensor], Tensor]:
        """The encoder's."""
        return self.encoder.hidden_states(waves)

    def forward(self, waves: Waves | Tensor | Sequence[Tensor], lengths: Tensor | None = None) -> Tensor:
        """[n, (layers + 1) * d], first layer first."""
        states, frames = self.hidden_states(as_waves(waves, lengths))
        return torch.cat([self.encoder.pool(state, frames) for state in states], dim=1)


def all_layers(encoder: Encoder) -> AllLayers:
    """An encoder of speech that gives all its layers; UserError for one of images."""
    if not isinstance(encoder, UtteranceEncoder):
        raise UserError("--protocol weighted mixes the layers of a speech encoder; images have one: use linear")
    return AllLayers(encoder)


class EncoderWithClassifier(Encoder):
    """Encoder, projection head up to a layer, and classifier as one net whose features are logits.

    Args:
        encoder: images [N, C, H, W] -> h [N, d].
        classifier: of output `layer` of the head.
        head: needed for `layer` above 0.
        layer: 0 for h itself, j for the output of the head's layer j (SimCLR v2 fine-tunes from 1).

    Raises:
        UserError: there is no such output, or it has another length than the classifier takes.
    """

    def __init__(
        self, encoder: Encoder, classifier: Classifier, head: ProjectionHead | None = None, layer: int = 0
    ) -> None:
        super().__init__(encoder.input, classifier.out_features)
        layers = 0 if head is None else len(head.layers)
        if not 0 <= layer <= layers:
            raise UserError(
                f"the classifier cannot read output {layer} of a head of {layers} layers; give 0 to {layers}"
            )
        self.encoder, self.classifier, self.layer = encoder, classifier, layer
        self.below = head.layers[:layer] if head is not None else torch.nn.ModuleList()
        width = encoder.feature_dim if head is None else head.widths[layer]
        if width != classifier.in_features:
            raise UserError(
                f"output {layer} of the head has {width} values, but the classifier takes {classifier.in_features}"
            )

    def prepare(self, images: Tensor) -> Tensor:
        """As the encoder takes them, recordings too."""
        return self.encoder.prepare(images)

    def features(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> logits [N, classes]."""
        return self.logits(self.encoder.features(x))

    def logits(self, h: Tensor) -> Tensor:
        """The encoder's features [N, d] -> logits [N, classes]."""
        for part in self.below:
            h = part(h)
        logits: Tensor = self.classifier(h)
        return logits


def below_classifier(net: EncoderWithClassifier) -> Encoder:
    """The net without its classifier: its features are what the classifier reads."""
    if not len(net.below):
        return net.encoder
    return EncoderWithHead(net.encoder, torch.nn.Sequential(*net.below), net.classifier.in_features)
