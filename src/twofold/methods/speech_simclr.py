"""Speech SimCLR (arXiv 2010.13991): agree on two views of an utterance, and say what was hidden in each."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.distributed import all_reduce_mean
from twofold.encoders import Encoder, SpeechEncoder, Waves
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead
from twofold.losses import chance_level, interpolated, masked_reconstruction, nt_xent
from twofold.methods.base import ContrastiveMethod, ContrastiveOutput, Inputs, Output
from twofold.methods.config import ContrastiveConfig
from twofold.views.audio.masks import MaskRule, blocks, fill_blocks, hidden_frames

if TYPE_CHECKING:
    from twofold.data import DataFacts

_CHOSEN = {
    "temperature": 0.1,
    "contrastive_weight": 1.0,
    "reconstruction_weight": 1.0,
    "mask_share": 0.2,
    "mask_span": 7,
}


@dataclass(frozen=True)
class SpeechOutput(ContrastiveOutput):
    """A `ContrastiveOutput`, and its two parts. What each tells of all ranks is the mean over ranks.

    Attributes:
        contrastive: NT-Xent.
        reconstruction: mean absolute error an element of the hidden frames, whatever the loss's scale.
        mean_error: what answering 0 (the mean) everywhere would get: reconstruction has learned nothing above it.
        mean_loss: the same in the loss's own scale.
        linear_error: the error of the line between the nearest frames that are not hidden, which needs no learning.
    """

    contrastive: Tensor
    reconstruction: Tensor
    mean_error: Tensor
    mean_loss: Tensor
    linear_error: Tensor


class SpeechSimCLR(ContrastiveMethod):
    """Transformer over masked spectral features; NT-Xent on pooled, projected utterances; L1 on the hidden frames.

    One step (athena/models/simclr.py, branch simclr): features of both views; a block of time and one of frequency of
    each are replaced by the mean; then frames are hidden (set to 0, the mean of normalised features). Masks come from
    the numbers that the views drew; without them (`Waves.random` is None) nothing is masked.

    Args:
        encoder: with its front end.
        head: g of the contrast.
        temperature: tau > 0.
        contrastive_weight, reconstruction_weight: of the two losses; 0 leaves one out. The released code's are 1 and
            0.5, in our normalisation of NT-Xent (mean over 2N).
        mask_share, mask_span: share of frames that are hidden, in spans of so many; released: 0.2 and 1.
        time_mask, frequency_mask: most frames, and largest share of the bins, of the blocks; 0 for none.
        mask_rule: see `blocks`.
        reconstruction_scale: see `masked_reconstruction`.
        target: what has to be said of hidden frames: features as they were, or (released) masked, with the blocks.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig, variant="speech_simclr"):
        """Contrast with the batch, and reconstruct what was hidden."""

        kind = "audio"

        name: str | None = "speech_simclr"
        contrastive_weight: float | None = None
        """Weight of the contrast; 0 only reconstructs. Default 1."""
        reconstruction_weight: float | None = None
        """Weight of the reconstruction; 0 only contrasts. Default 1, or 0.5 for encoder speech:released."""
        mask_share: float | None = None
        """Share of the frames that are hidden and have to be reconstructed; default 0.2."""
        mask_span: int | None = None
        """Frames hidden together; default 7, or 1 for encoder speech:released."""
        time_mask: int | None = None
        """Most frames of the block of time that is masked in each view; default 100, 0 for none."""
        frequency_mask: float | None = None
        """Largest share of the bins of the block of frequency that is masked; default 0.3375, 0 for none."""
        mask_rule: Literal["own", "released"] | None = None
        """Blocks inside each utterance's own length (own), or as the released code draws them."""
        reconstruction_scale: Literal["masked_mean", "released"] | None = None
        """Mean error of hidden elements, or the released code's value, which depends on the padding."""
        target: Literal["features", "masked"] | None = None
        """Reconstruct the view's features as they were, or (released) with their masked blocks."""

        @property
        def head_norm(self) -> bool:
            """None, as published."""
            return False

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check_least(1, "mask_span")
            self.check_least(0, "contrastive_weight", "reconstruction_weight", "time_mask")
            self.check_shares("mask_share", "frequency_mask")
            if self.contrastive_weight == 0 and self.reconstruction_weight == 0:
                raise UserError(
                    "--method.contrastive_weight and --method.reconstruction_weight are both 0: nothing is left"
                )

        def chosen(self, facts: DataFacts, batch: int, steps: int, encoder: str) -> tuple[Self, list[str]]:  # noqa: ARG002
            """Weights and masks; those of speech:released come with its name."""
            opened: dict[str, Any] = {name: value for name, value in _CHOSEN.items() if getattr(self, name) is None}
            return replace(self, **opened), []

        def hidden_span(self) -> int:
            """`mask_span`."""
            return self.mask_span or 1

        def build(self, encoder: Encoder, head: HeadConfig, seed: int = 0) -> SpeechSimCLR:  # noqa: ARG002 (draws none)
            """Speech SimCLR; UserError for an encoder of images."""
            if not isinstance(encoder, SpeechEncoder):
                raise UserError("--method.name speech_simclr needs a speech encoder, e.g. --encoder.name speech:small")
            names = [field.name for field in fields(self) if field.name not in ("name", "temperature")]
            given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
            return SpeechSimCLR(encoder, head, self.tau(), **given)

    encoder: SpeechEncoder

    def __init__(
        self,
        encoder: SpeechEncoder,
        head: HeadConfig,
        temperature: float = 0.1,
        contrastive_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        mask_share: float = 0.2,
        mask_span: int = 7,
        time_mask: int = 100,
        frequency_mask: float = 0.3375,
        mask_rule: MaskRule = "own",
        reconstruction_scale: Literal["masked_mean", "released"] = "masked_mean",
        target: Literal["features", "masked"] = "features",
    ) -> None:
        super().__init__()
        self.encoder, self.temperature = encoder, temperature
        self.head = ProjectionHead(encoder.feature_dim, head)
        self.reconstruction = nn.Linear(encoder.transformer.feature_dim, encoder.frontend.mels * encoder.stack)
        self.contrastive_weight, self.reconstruction_weight = contrastive_weight, reconstruction_weight
        self.mask_share, self.mask_span = mask_share, mask_span
        self.time_mask, self.frequency_mask, self.mask_rule = time_mask, frequency_mask, mask_rule
        self.reconstruction_scale, self.target = reconstruction_scale, target

    def forward(self, inputs: Inputs) -> SpeechOutput:
        """One step's loss of two batches of views, row i of both from utterance i."""
        waves = Waves.cat(inputs.waves())
        with torch.no_grad():
            x, frames = self.encoder.features_of(waves)  # [2n, T, F], [2n]
            masked, hidden = self.mask(x, frames, waves.random)
        states = self.encoder.transformer(torch.where(hidden[:, :, None], 0.0, masked), frames)  # [2n, T / stack, d]
        h = self.encoder.pool(states, self.encoder.transformer.steps(frames))  # [2n, d]
        z, layers = self.project(h)
        z_a, z_b = z.chunk(2)
        contrastive = nt_xent(z_a, z_b, self.temperature)
        target = masked if self.target == "masked" else x
        stacked = self.reconstruction(states).unflatten(2, (self.encoder.stack, -1))
        prediction = stacked.flatten(1, 2)[:, : x.shape[1]]  # [2n, T, F]
        rec = masked_reconstruction(prediction, target, hidden, frames, self.reconstruction_scale)
        loss = self.contrastive_weight * contrastive + self.reconstruction_weight * rec.loss
        with torch.no_grad():
            line = interpolated(masked, hidden, frames)
            linear = masked_reconstruction(line, target, hidden, frames).error
        parts = contrastive.detach(), *rec[1:], linear
        return SpeechOutput(loss, h.detach(), z_a.detach(), z_b.detach(), *parts, layers=layers)

    def mask(self, x: Tensor, frames: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features [2n, T, F] with their blocks filled, and which frames are hidden, bool [2n, T]."""
        if u is None:
            return x, torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        filled = []
        for part, own, numbers in zip(x.chunk(2), frames.chunk(2), u.chunk(2), strict=True):
            total = int(own.max())  # the released rule reads the padded length of a view's own batch
            view = part[:, :total]
            time, frequency = blocks(
                numbers[:, :4], own, total, x.shape[2], self.time_mask, self.frequency_mask, self.mask_rule
            )
            view = fill_blocks(view, own, time, frequency, self.mask_rule)
            filled.append(F.pad(view, (0, 0, 0, x.shape[1] - total)))
        return torch.cat(filled), hidden_frames(u[:, 4:], frames, x.shape[1], self.mask_share, self.mask_span)

    def trained(self) -> list[nn.Module]:
        """Encoder, projection head and reconstruction head."""
        return [self.encoder, self.head, self.reconstruction]

    def describe(self, output: Output, batch: int) -> dict[str, float]:
        """Beside the embedding: both losses of the step, and what answers that need no learning would get."""
        row = super().describe(output, batch)
        assert isinstance(output, SpeechOutput)
        names = ("contrastive", "reconstruction", "mean_error", "linear_error", "mean_loss")
        message = all_reduce_mean(torch.stack([getattr(output, name) for name in names])).tolist()
        parts = dict(zip(names, message, strict=True))
        chance = self.contrastive_weight * chance_level(batch) + self.reconstruction_weight * parts.pop("mean_loss")
        return row | parts | {"chance": chance, "contrastive_chance": chance_level(batch)}
