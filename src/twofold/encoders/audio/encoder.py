"""Encoders of utterances: waveforms with lengths in, vectors out; the front end is inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from twofold.encoders.audio.filterbank import Cmvn, Filterbank
from twofold.encoders.audio.transformer import SpeechTransformer, mean_over_time, valid_frames
from twofold.encoders.base import Encoder, InputSpec
from twofold.encoders.blocks import Blocks
from twofold.encoders.build import EncoderConfig
from twofold.errors import UserError
from twofold.waves import Waves, as_waves

Pooling = Literal["mean", "mean_std", "padded"]

PRESETS: dict[str, dict[str, Any]] = {
    "released": {
        "sample_rate": 16000, "mels": 40, "low_hz": 60.0, "floor": 1e-12, "cmvn": "global", "eps": 0.0,
        "width": 768, "layers": 3, "heads": 12, "hidden": 3072, "dropout": 0.1, "pooling": "padded", "stack": 1,
    },
    "corrected": {
        "sample_rate": 16000, "mels": 80, "low_hz": 20.0, "floor": 2**-23, "cmvn": "global", "eps": 1e-8,
        "width": 768, "layers": 3, "heads": 12, "hidden": 3072, "dropout": 0.1, "pooling": "mean", "stack": 1,
    },
    "small": {
        "sample_rate": 8000, "mels": 40, "low_hz": 60.0, "floor": 2**-23, "cmvn": "utterance_mean", "eps": 1e-8,
        "width": 192, "layers": 3, "heads": 4, "hidden": 768, "dropout": 0.0, "pooling": "mean", "stack": 3,
    },
}  # fmt: skip
"""released: as athena's code runs; corrected: its defects mended, the default; small: for telephone speech on a CPU."""


@dataclass(frozen=True)
class SpeechEncoderConfig:
    """Departures from the preset of encoder.name speech:released, speech:corrected or speech:small."""

    sample_rate: int | None = None
    """Hz that recordings are brought to when they are read."""
    mels: int | None = None
    """Filters of the log-mel filterbank."""
    low_hz: float | None = None
    """Lower edge of the first filter in Hz."""
    cmvn: Literal["none", "global", "utterance", "utterance_mean"] | None = None
    """What gets mean 0 and variance 1: nothing, the training data, each utterance, or (utterance_mean) each
    utterance's mean and the training data's variance."""
    width: int | None = None
    """Width of the transformer, which is the length of a feature vector."""
    layers: int | None = None
    """Layers of the transformer."""
    heads: int | None = None
    """Attention heads; they must divide the width."""
    hidden: int | None = None
    """Width inside the transformer's MLPs."""
    dropout: float | None = None
    """Dropout in training."""
    pooling: Literal["mean", "mean_std", "padded"] | None = None
    """From frames to an utterance: mean over its own frames, mean and deviation, or (as released) the sum divided by
    the padded length."""
    stack: int | None = None
    """Neighbouring frames of 10 ms that become one step of the transformer."""


class UtteranceEncoder(Encoder):
    """Base of the encoders that take waveforms: `forward(waves, lengths)` gives [n, feature_dim]."""

    frontend: Filterbank
    pooling: Pooling
    stack: int = 1
    """Frames of the front end that make one frame of the layers."""

    def forward(self, waves: Waves | Tensor | Sequence[Tensor], lengths: Tensor | None = None) -> Tensor:
        """Features of utterances.

        Args:
            waves: `Waves`, or float [n, samples] in [-1, 1] at the encoder's sample rate, or a list of [samples].
            lengths: [n] samples that count of a padded tensor; all of them without.

        Returns:
            [n, feature_dim]. What stands beside an utterance in a batch, and how far it is padded, changes nothing.

        Raises:
            UserError: wrong shapes, or an utterance shorter than one frame of 25 ms.
        """
        return self.features(self.prepare(waves, lengths))

    def prepare(  # type: ignore[override]  # recordings have lengths
        self, images: Waves | Tensor | Sequence[Tensor], lengths: Tensor | None = None
    ) -> Waves:
        """Recordings as `Waves`."""
        return as_waves(images, lengths)

    def preprocess(self, images: Any) -> Tensor:  # noqa: ARG002
        """Always a UserError: recordings need none but to be read at the encoder's rate."""
        raise UserError(
            f"this encoder takes recordings: give it waveforms [n, samples] of floats at {self.input.sample_rate:,} "
            "Hz; twofold embed reads files"
        )

    def features(self, x: Waves) -> Tensor:  # type: ignore[override]
        """[n, feature_dim] of the last layer's frames."""
        states, frames = self.hidden_states(x)
        return self.pool(states[-1], frames)

    def hidden_states(self, waves: Waves) -> tuple[list[Tensor], Tensor]:
        """Every layer's frames, [n, T, d] each, first to last, and the numbers of these frames [n]."""
        raise NotImplementedError(f"{type(self).__name__} gives no frames of {len(waves)} waveforms")

    def features_of(self, waves: Waves) -> tuple[Tensor, Tensor]:
        """The front end's features [n, T, F] and frames [n]; UserError if one has no whole frame."""
        device = self.frontend.window.device
        x, frames = self.frontend(waves.to(device))
        if not torch.compiler.is_compiling() and len(frames) and not int(frames.min()):
            shortest = int(waves.lengths.min())
            raise UserError(
                f"an utterance has {shortest} samples, less than one frame of {self.frontend.size}: leave out what is "
                "shorter than 25 ms"
            )
        return x, frames

    def pool(self, x: Tensor, frames: Tensor) -> Tensor:
        """Frames [n, T, d] to [n, d], or [n, 2d] for mean_std."""
        mean = mean_over_time(x, frames, padded=self.pooling == "padded")
        if self.pooling != "mean_std":
            return mean
        deviation = torch.where(valid_frames(frames, x.shape[1])[:, :, None], x - mean[:, None], 0.0)
        return torch.cat([mean, (deviation.square().sum(1) / frames[:, None] + 1e-8).sqrt()], dim=1)

    def fit_frontend(self, batches: Iterable[Waves]) -> int:
        """Take the front end's statistics from training data; returns the frames seen."""
        return self.frontend.fit(batches)


class SpeechEncoder(UtteranceEncoder, kind="speech"):
    """The encoder of Speech SimCLR (arXiv 2010.13991) with its front end. Arguments as `SpeechEncoderConfig` says."""

    @dataclass(frozen=True)
    class Config(EncoderConfig, variant="speech"):
        """The encoder of Speech SimCLR."""

        forms = tuple(f"speech:{preset}" for preset in ("small", "corrected", "released"))
        kind = "audio"
        neutral = MappingProxyType({**EncoderConfig.neutral, "channels": (1,)})

        speech: SpeechEncoderConfig = field(default_factory=SpeechEncoderConfig)
        """Speech encoder"""

        def chosen(
            self, count: int, channels: int, sample_rate: int | None, size: int | None, gpu: bool  # noqa: ARG002
        ) -> tuple[Self, list[str]]:  # fmt: skip
            """The corrected encoder on a GPU, the small one on a CPU or for telephone speech."""
            config, reasons, rate = self, list[str](), sample_rate or 16000
            if config.name is None:
                config = replace(config, name="speech:corrected" if gpu and rate >= 16000 else "speech:small")
                reasons.append(f"encoder.name {config.name} ({rate:,} Hz, {'GPU' if gpu else 'CPU'})")
            own_rate = speech_arguments(config.model(), config.speech)["sample_rate"]
            if own_rate > rate:
                reasons.append(
                    f"warning: recordings of {rate:,} Hz are brought to {own_rate:,} Hz and stay empty above: "
                    "encoder.speech.sample_rate would tell"
                )
            return config, reasons

        def build(self, image_size: int | None = None) -> SpeechEncoder:  # noqa: ARG002
            """The preset with its departures."""
            return speech_encoder(self.model(), self.speech)

    def __init__(
        self,
        sample_rate: int = 16000,
        mels: int = 80,
        low_hz: float = 20.0,
        floor: float = 2**-23,
        cmvn: Cmvn = "global",
        eps: float = 1e-8,
        width: int = 768,
        layers: int = 3,
        heads: int = 12,
        hidden: int = 3072,
        dropout: float = 0.1,
        pooling: Pooling = "mean",
        stack: int = 1,
    ) -> None:
        if pooling not in get_args(Pooling):
            raise UserError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
        super().__init__(_speech_input(sample_rate), width * (2 if pooling == "mean_std" else 1))
        self.frontend = Filterbank(sample_rate, mels, low_hz, floor, cmvn, eps)
        self.transformer = SpeechTransformer(mels, width, layers, heads, hidden, dropout, stack)
        self.pooling, self.stack = pooling, stack
        self._arguments = {
            "sample_rate": sample_rate, "mels": mels, "low_hz": low_hz, "floor": floor, "cmvn": cmvn, "eps": eps,
            "width": width, "layers": layers, "heads": heads, "hidden": hidden, "dropout": dropout, "pooling": pooling,
            "stack": stack,
        }  # fmt: skip

    def hidden_states(self, waves: Waves) -> tuple[list[Tensor], Tensor]:
        """What the dense layer and each transformer layer give, layers + 1 of [n, T, width], and their frames [n]."""
        x, frames = self.features_of(waves)
        return self.transformer.hidden_states(x, frames), self.transformer.steps(frames)

    def blocks(self) -> Blocks:
        """The front end with the dense layer, and the transformer's layers."""
        return Blocks((self.frontend, self.transformer.dense), tuple(self.transformer.layers))

    def body(self) -> nn.Module:
        """The transformer: training hides frames between the front end and it."""
        return self.transformer

    def arguments(self) -> dict[str, Any]:
        """See `Encoder.arguments`."""
        return dict(self._arguments)


class FilterbankEncoder(UtteranceEncoder, kind="filterbank"):
    """No encoder at all: mean and deviation of the log-mel filterbank over time. The baseline beside every number."""

    def __init__(self, sample_rate: int = 16000, mels: int = 80, low_hz: float = 20.0, cmvn: Cmvn = "none") -> None:
        super().__init__(_speech_input(sample_rate), 2 * mels)
        self.frontend, self.pooling = Filterbank(sample_rate, mels, low_hz, cmvn=cmvn), "mean_std"
        self._arguments = {"sample_rate": sample_rate, "mels": mels, "low_hz": low_hz, "cmvn": cmvn}

    def hidden_states(self, waves: Waves) -> tuple[list[Tensor], Tensor]:
        """The features themselves, one of [n, T, F], and the frames [n]."""
        x, frames = self.features_of(waves)
        return [x], frames

    def arguments(self) -> dict[str, Any]:
        """See `Encoder.arguments`."""
        return dict(self._arguments)


def baseline_of(encoder: UtteranceEncoder) -> FilterbankEncoder:
    """The filterbank that an encoder starts from, alone, before any normalisation."""
    front = encoder.frontend
    return FilterbankEncoder(front.sample_rate, front.mels, front.low_hz)


def speech_encoder(preset: str, config: SpeechEncoderConfig | None = None) -> SpeechEncoder:
    """Build the encoder of a preset with the given departures; UserError for another preset's name."""
    return SpeechEncoder(**speech_arguments(preset, config))


def speech_arguments(preset: str, config: SpeechEncoderConfig | None = None) -> dict[str, Any]:
    """A preset's arguments with the given departures."""
    if preset not in PRESETS:
        raise UserError(f"unknown encoder.name 'speech:{preset}'; there are speech:{', speech:'.join(PRESETS)}")
    given = {name: value for name, value in asdict(config or SpeechEncoderConfig()).items() if value is not None}
    return PRESETS[preset] | given


def speech_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Options of an encoder with these arguments: the nearest preset's name and the departures from it.

    Raises:
        UserError: it has arguments that are no option, other than every preset's.
    """
    fields = asdict(SpeechEncoderConfig())
    departures = {
        preset: {name: value for name, value in arguments.items() if values[name] != value}
        for preset, values in PRESETS.items()
    }
    possible = {preset: changed for preset, changed in departures.items() if changed.keys() <= fields.keys()}
    if not possible:
        raise UserError("no preset's options build this speech encoder: give --encoder.name speech:small or another")
    preset = min(possible, key=lambda name: len(possible[name]))
    return {"name": f"speech:{preset}", "speech": possible[preset]}


def _speech_input(sample_rate: int) -> InputSpec:
    return InputSpec(channels=1, kind="audio", sample_rate=sample_rate)
