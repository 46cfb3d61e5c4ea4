"""`twofold fresh`: an encoder with a random start, for training with labels alone: the papers' supervised baselines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from twofold.commands.arguments import new_parser, require_out
from twofold.encoders import EncoderConfig, build_encoder, save_encoder
from twofold.encoders.load import kind_of
from twofold.errors import UserError
from twofold.evaluation.frozen import digest
from twofold.files import check_out
from twofold.options import OptionsParser, add_options, merge
from twofold.recipe import load
from twofold.versions import environment


@dataclass(frozen=True)
class FreshConfig:
    """Which encoder."""

    size: int | None = None
    """Side of the images that it is for, in pixels; a recipe's when not given."""
    seed: int = 0
    """Of its weights."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig.of)
    """Encoder"""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise UserError(f"--size must be at least 1, got {self.size}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed must lie in [0, 2**63), got {self.seed}")


@dataclass(frozen=True)
class FreshResult:
    """A fresh encoder.

    Attributes:
        path: its folder.
        file: the encoder.
        parameters: how many it has.
        digest: SHA-256 over its tensors.
    """

    path: Path
    file: Path
    parameters: int
    digest: str

    @property
    def metrics(self) -> dict[str, float]:
        """Nothing is measured."""
        return {}

    def text(self) -> str:
        """For people."""
        return (
            f"{self.file}: {self.parameters:,} weights at random, sha256 {self.digest[:16]}...; train it by "
            f"`twofold finetune {self.path} DATA --labels all --from-scratch --out runs/supervised`"
        )

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "path": str(self.path), "file": str(self.file), "parameters": self.parameters, "digest": self.digest
        }  # fmt: skip


def fresh(out: str | Path, *, recipe: str | None = None, **options: Any) -> FreshResult:
    """Make an encoder with fresh weights, which `twofold.finetune` trains with labels like a pretrained one.

    Args:
        out: its folder; must be new or empty.
        recipe: a recipe of pretraining, whose encoder and side of the images are taken.
        options: fields of `FreshConfig`, nested or dotted; they win over the recipe's.

    Raises:
        UserError: wrong options, no encoder or side named, a folder with files in it, an encoder of speech.
    """
    check_out(Path(out), False, "encoder", resume=False)
    config = OptionsParser(FreshConfig).build(merge(_of_recipe(recipe), options))
    if config.encoder.name is None:
        raise UserError("--encoder.name is missing: say which, e.g. resnet50, or give a --recipe of pretraining")
    if config.size is None:
        raise UserError("--size is missing: say which side the images have, 224 for ImageNet's nets")
    torch.manual_seed(config.seed)
    encoder = build_encoder(config.encoder, config.size)
    if kind_of(encoder.spec()) == "audio":
        raise UserError(f"--encoder.name {config.encoder.name}: recordings are no images; fine-tune a pretrained one")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "encoder.safetensors"
    facts = {"fresh": True, "seed": config.seed, "options": {"views": {"size": config.size}}, **environment()}
    save_encoder(file, encoder, extra=facts)
    return FreshResult(folder, file, sum(p.numel() for p in encoder.parameters()), digest(encoder))


def _of_recipe(name: str | None) -> dict[str, Any]:
    """What a recipe of pretraining says of the encoder and of the side of its images."""
    if name is None:
        return {}
    recipe = load(name)
    if recipe.command != "pretrain" or recipe.axes:
        raise UserError(f"--recipe {name}: name a recipe of `twofold pretrain`, whose encoder is taken")
    size = recipe.options.get("views", {}).get("size")
    return {"encoder": recipe.options.get("encoder", {})} | ({} if size is None else {"size": size})


def parser() -> ArgumentParser:
    """Of `twofold fresh`."""
    parser = new_parser("Make an encoder with a random start, to be trained with labels alone.")
    parser.add_argument("--out", type=str, help="the encoder's folder: new or empty")
    parser.add_argument("--recipe", type=str, help="take the encoder of this recipe of pretraining")
    add_options(parser, FreshConfig)
    return parser


def run(options: dict[str, Any]) -> FreshResult:
    """`twofold fresh`."""
    require_out(options, "a folder for the encoder", "starts/resnet50")
    return fresh(options.pop("out"), **options)
