"""What is trained and what one step is: one file a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from twofold.distributed import world_size
from twofold.encoders import Encoder, SpeechEncoder
from twofold.errors import UserError
from twofold.heads import HeadConfig
from twofold.losses.studies import Mining, Reduction
from twofold.methods.ablations import SimCLRAblation
from twofold.methods.base import Method, Output
from twofold.methods.memory import SimCLRMemory
from twofold.methods.moco import MoCo
from twofold.methods.queue import check_fits
from twofold.methods.simclr import SimCLR
from twofold.methods.speech_simclr import SpeechSimCLR

# The method an option is for, and its value where it is not given; set for another, it would be silently ignored.
_OWNERS: dict[str, tuple[str, Any]] = {
    "normalize": ("simclr", True),
    "scale": ("simclr", "mean_2n"),
    "loss": ("simclr", "nt_xent"),
    "mining": ("simclr", None),
    "margin": ("simclr", None),
    "negatives": ("simclr", None),
    "memory": ("simclr", None),
    "memory_momentum": ("simclr", None),
    "queue": ("moco", None),
    "momentum": ("moco", None),
    "symmetric": ("moco", None),
    "bn_splits": ("moco", None),
    "shuffle": ("moco", None),
    "contrastive_weight": ("speech_simclr", None),
    "reconstruction_weight": ("speech_simclr", None),
    "mask_share": ("speech_simclr", None),
    "mask_span": ("speech_simclr", None),
    "time_mask": ("speech_simclr", None),
    "frequency_mask": ("speech_simclr", None),
    "mask_rule": ("speech_simclr", None),
    "reconstruction_scale": ("speech_simclr", None),
    "target": ("speech_simclr", None),
}
_SPEECH = [name for name, (owner, _) in _OWNERS.items() if owner == "speech_simclr"]


@dataclass(frozen=True)
class MethodConfig:
    """What is minimised."""

    name: Literal["simclr", "moco", "speech_simclr"] | None = None
    """The method: simclr contrasts with the batch, moco with a queue of keys, for small batches; speech_simclr also
    reconstructs what was hidden. When not given, simclr for images and speech_simclr, the only one, for recordings."""
    temperature: float | None = None
    """Temperature of the contrastive logits, above 0. Chosen from the batch when not given: 0.1 for 2,048 and more
    (the paper's value), 0.2 below (arXiv 2011.02803 finds small batches better there; MoCo v2's value too)."""
    normalize: bool = True
    """simclr: compare projections by cosine; false compares by inner product (Table 5 of the paper)."""
    scale: Literal["mean_2n", "simclr_sum2"] = "mean_2n"
    """simclr: mean over the 2N anchors (the paper's loss), or the released code's value, which is twice that."""
    loss: Literal["nt_xent", "nt_logistic", "margin_triplet"] = "nt_xent"
    """simclr: nt_xent, or one that it was compared with (Table 4): its negatives are the second views alone."""
    mining: Mining | None = None
    """nt_logistic, margin_triplet: all negatives (none), or the semi_hard one only; default none."""
    margin: float | None = None
    """margin_triplet: the margin, 0 or more (the paper tried 0, 0.4, 0.8 and 1.6); default 0.8."""
    negatives: Reduction | None = None
    """nt_logistic, margin_triplet without mining: mean or sum over an anchor's negatives; default mean."""
    memory: int | None = None
    """simclr: contrast with keys of a momentum network, the batch's and those of so many earlier views, as SimCLR v2
    with memory (arXiv 2006.10029); none when not given."""
    memory_momentum: float | None = None
    """simclr with memory: share of the momentum network that stays at each step; default 0.999."""
    queue: int | None = None
    """moco: number of keys K, the negatives of each query. Chosen from the data when not given: up to 65,536."""
    momentum: float | None = None
    """moco: share of the key encoder that stays at each step. When not given, 0.999, or 0.99 for small data."""
    symmetric: bool | None = None
    """moco: each view is query and key in turn, and both losses are added; default false, as published."""
    bn_splits: int | None = None
    """moco: equal runs of a device's batch that batch norm takes for devices (the CIFAR-10 demo: 8). When not given,
    up to 8 of at least 16 images for a ResNet on one device, else 1."""
    shuffle: bool | None = None
    """moco: encode keys in an order that parts them from their queries' batch statistics; default true."""
    contrastive_weight: float | None = None
    """speech_simclr: weight of the contrast; 0 only reconstructs. Default 1."""
    reconstruction_weight: float | None = None
    """speech_simclr: weight of the reconstruction; 0 only contrasts. Default 1, or 0.5 for encoder speech:released."""
    mask_share: float | None = None
    """speech_simclr: share of the frames that are hidden and have to be reconstructed; default 0.2."""
    mask_span: int | None = None
    """speech_simclr: frames hidden together; default 7, or 1 for encoder speech:released."""
    time_mask: int | None = None
    """speech_simclr: most frames of the block of time that is masked in each view; default 100, 0 for none."""
    frequency_mask: float | None = None
    """speech_simclr: largest share of the bins of the block of frequency that is masked; default 0.3375, 0 for none."""
    mask_rule: Literal["own", "released"] | None = None
    """speech_simclr: blocks inside each utterance's own length (own), or as the released code draws them."""
    reconstruction_scale: Literal["masked_mean", "released"] | None = None
    """speech_simclr: mean error of hidden elements, or the released code's value, which depends on the padding."""
    target: Literal["features", "masked"] | None = None
    """speech_simclr: reconstruct the view's features as they were, or (released) with their masked blocks."""

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise UserError(f"--method.temperature must be above 0, got {self.temperature}")
        self._check_owners()
        self._check_loss()
        for option in ("memory", "queue", "bn_splits", "mask_span"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UserError(f"--method.{option} must be at least 1, got {value}")
        for option in ("memory_momentum", "momentum"):
            value = getattr(self, option)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"--method.{option} must lie in [0, 1], got {value}")
        self._check_speech()
        if self.memory_momentum is not None and self.memory is None:
            raise UserError(f"--method.memory_momentum {self.memory_momentum} has no effect without --method.memory")

    def _check_owners(self) -> None:
        """Refuse another method's options. While the method is open, those of the two that the data may choose pass."""
        for option, (owner, neutral) in _OWNERS.items():
            if getattr(self, option) == neutral or owner == self.name or (self.name is None and owner != "moco"):
                continue
            if self.name is None:
                why = "with --method.name simclr or speech_simclr, which the data choose: leave it out, or choose moco"
            elif self.name == "speech_simclr":
                why = "on recordings, which are trained with --method.name speech_simclr: leave it out"
            elif owner == "speech_simclr":
                why = f"with --method.name {self.name}: leave it out; it is speech_simclr's, which is for recordings"
            else:
                why = f"with --method.name {self.name}: leave it out, or choose {owner}"
            raise UserError(f"--method.{option} {getattr(self, option)} has no effect {why}")

    def _check_loss(self) -> None:
        """Refuse what would have no effect with the loss."""

        def refuse(option: str, why: str) -> None:
            raise UserError(f"--method.{option} {getattr(self, option)} {why}")

        if self.loss == "nt_xent":
            for option in ("mining", "margin", "negatives"):
                if getattr(self, option) is not None:
                    refuse(option, "has no effect with --method.loss nt_xent: leave it out, or choose another loss")
        elif self.scale != "mean_2n":
            refuse("scale", f"is nt_xent's; with --method.loss {self.loss}, leave it out")
        elif self.memory is not None:
            refuse("memory", f"goes with --method.loss nt_xent, not with {self.loss}: leave it out")
        if self.margin is not None and self.loss != "margin_triplet":
            refuse("margin", "needs --method.loss margin_triplet")
        if self.margin is not None and not self.margin >= 0:
            refuse("margin", "must be 0 or more")
        if self.mining == "semi_hard":
            if self.margin == 0:
                refuse("margin", "leaves semi_hard mining no negative: give one above 0")
            if self.negatives is not None:
                refuse("negatives", "has no effect with --method.mining semi_hard, which keeps one: leave it out")

    def _check_speech(self) -> None:
        """Refuse weights and masks out of range."""
        for option in ("contrastive_weight", "reconstruction_weight", "time_mask"):
            value = getattr(self, option)
            if value is not None and value < 0:
                raise UserError(f"--method.{option} must be at least 0, got {value}")
        if self.contrastive_weight == 0 and self.reconstruction_weight == 0:
            raise UserError(
                "--method.contrastive_weight and --method.reconstruction_weight are both 0: nothing is left"
            )
        for option in ("mask_share", "frequency_mask"):
            value = getattr(self, option)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"--method.{option} must lie in [0, 1], got {value}")

    def check_batch(self, batch: int) -> None:
        """Raise a UserError if a global batch of `batch` images does not fit the options."""
        if self.queue is not None:
            check_fits(batch * (2 if self.symmetric else 1), self.queue)
        if self.memory is not None:
            check_fits(2 * batch, self.memory, "memory")
        own, splits = batch // world_size(), self.bn_splits or 1
        if splits > 1 and own % splits:
            raise UserError(
                f"--method.bn_splits {splits} does not divide the {own} images of a device's batch: choose a --batch "
                "that it divides"
            )


def own_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of `MethodConfig` that are not another method's than `name`."""
    return {option: value for option, value in options.items() if _OWNERS.get(option, (name,))[0] == name}


def build_method(config: MethodConfig, encoder: Encoder, head: HeadConfig, seed: int = 0) -> Method:
    """Build the method that `config` names around `encoder`.

    Args:
        config: its temperature must be set; its name may be open, which is simclr.
        encoder: what is trained.
        head: of the projection.
        seed: of the method's own random numbers, the same on all ranks.
    """
    if config.temperature is None:
        raise ValueError("the temperature has not been chosen yet")
    if config.name == "moco":
        names = ("queue", "momentum", "symmetric", "bn_splits", "shuffle")
        given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
        return MoCo(encoder, head, config.temperature, **given, seed=seed)
    if config.name == "speech_simclr":
        if not isinstance(encoder, SpeechEncoder):
            raise UserError("--method.name speech_simclr needs a speech encoder, e.g. --encoder.name speech:small")
        given = {name: getattr(config, name) for name in _SPEECH if getattr(config, name) is not None}
        return SpeechSimCLR(encoder, head, config.temperature, **given)
    if config.loss != "nt_xent":
        margin, mining = 0.8 if config.margin is None else config.margin, config.mining or "none"
        return SimCLRAblation(
            encoder, head, config.temperature, config.normalize, config.loss, margin, mining, config.negatives
        )
    options = (encoder, head, config.temperature, config.normalize, config.scale)
    if config.memory is not None:
        momentum = 0.999 if config.memory_momentum is None else config.memory_momentum
        return SimCLRMemory(*options, config.memory, momentum, seed)
    return SimCLR(*options)


__all__ = [
    "Method",
    "MethodConfig",
    "MoCo",
    "Output",
    "SimCLR",
    "SimCLRAblation",
    "SimCLRMemory",
    "SpeechSimCLR",
    "build_method",
    "own_options",
]
