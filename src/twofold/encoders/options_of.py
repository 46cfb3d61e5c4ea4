"""The options that build an encoder like a given one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twofold.encoders.adapters import CustomEncoder
from twofold.encoders.audio.encoder import SpeechEncoder, speech_options
from twofold.errors import UserError


def options_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `EncoderConfig` from an encoder's specification (see `Encoder.spec`); its fixed side is no option.

    Raises:
        UserError: a kind of encoder that no option names.
    """
    values = dict(spec)
    kind = values.pop("kind", None)
    if kind == "resnet":
        return {"name": f"resnet{values.pop('depth')}", **values}
    if kind in ("timm", "torchvision"):
        values.pop("size", None)
        name = f"{kind}:{values.pop('name')}"
        return {"name": name} | {key: value for key, value in values.items() if value is not None}
    if kind == SpeechEncoder.kind:
        return speech_options(values)
    if kind == CustomEncoder.kind:
        return {"name": "custom"}
    raise UserError(f"no options build an encoder of kind {kind!r}")
