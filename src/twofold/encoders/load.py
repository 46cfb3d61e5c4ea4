"""A run's encoder, as the commands load it; `twofold.load` (evaluation/loading.py) adds its preprocessing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twofold.encoders import Encoder, UtteranceEncoder
from twofold.encoders.weights import load_encoder
from twofold.errors import UserError
from twofold.kinds import Kind
from twofold.reading import usable


def load(run: str | Path, encoder: nn.Module | None = None, device: str | torch.device = "cpu") -> Encoder:
    """Load a pretrained encoder.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        encoder: your own module, if the run was trained with one: its weights are filled in.
        device: where to put it.

    Returns:
        The encoder in evaluation mode. It takes images as floats in [0, 1], [n, C, H, W], and returns [n, d].

    Raises:
        UserError: if there is no finished or stopped run, or the file is damaged.
    """
    return load_encoder(encoder_path(run), encoder).to(device).eval()


def encoder_path(run: str | Path) -> Path:
    """The encoder file of a run's folder, or `run` itself if it is such a file; UserError if there is none."""
    if not isinstance(run, str | os.PathLike):
        raise UserError(f"a run given as {type(run).__name__}: give its folder, or the path of an encoder.safetensors")
    path = Path(run)
    if (problem := usable(str(run))) is not None:
        raise UserError(f"the path of a run '{str(path)[:100]}' {problem}")
    try:
        return _encoder_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _encoder_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"there is no run or encoder at {path}")
        return path
    file = path / "encoder.safetensors"
    if file.exists():
        return file
    hint = "give a folder that `twofold pretrain --out` made, or the path of an encoder.safetensors"
    if (path / "config.yaml").exists():
        hint = "the run has not finished; let it, or stop it with Ctrl-C, which leaves the encoder as it is then"
    raise UserError(f"{path} holds no encoder.safetensors: {hint}")


def kind_of(spec: Mapping[str, Any]) -> Kind:
    """What examples an encoder takes, by its specification."""
    return "audio" if issubclass(Encoder.kinds.get(spec.get("kind", ""), Encoder), UtteranceEncoder) else "image"
