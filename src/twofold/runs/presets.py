"""Options that come with the name of an encoder, as a recipe's do: they lie under what was given."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

# athena's branch simclr as it runs, beyond the encoder itself (whose part is encoders.utterance.PRESETS): one clean
# view, short clips, the masks and the scale of the loss, LAMB and the schedule of "Attention is all you need" (k 1,
# d 768), whose peak is 768 ** -0.5 * 8000 ** -0.5.
_RELEASED: dict[str, dict[str, Any]] = {
    "data": {"audio": {"max_seconds": 8.0}},
    "waves": {"clean_view": True},
    "head": {"out_dim": 768, "norm": False},
    "method": {
        "temperature": 0.1, "contrastive_weight": 1.0, "reconstruction_weight": 0.5, "mask_share": 0.2, "mask_span": 1,
        "time_mask": 100, "frequency_mask": 27 / 40, "mask_rule": "released", "reconstruction_scale": "released",
        "target": "masked",
    },
    "optim": {"lr": 4.034e-4, "lr_rule": "none", "schedule": "inverse_sqrt", "warmup_steps": 8000},
}  # fmt: skip


def preset_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the encoder that nested options name brings along; nothing for all but speech:released.

    Of the optimiser, only what agrees with what was given: another optimiser has a rate of its own, another schedule or
    length of the warm-up its own warm-up. Without timm, which has LAMB, there is AdamW.
    """
    encoder, optim = given.get("encoder"), given.get("optim") or {}
    if not isinstance(encoder, Mapping) or encoder.get("name") != "speech:released" or not isinstance(optim, Mapping):
        return {}
    own = dict(_RELEASED["optim"])
    if optim.get("name") is None:
        own["name"] = "lamb" if find_spec("timm") else "adamw"
    elif optim["name"] != "lamb":
        own = {name: value for name, value in own.items() if not name.startswith("lr")}
    if {"schedule", "warmup_epochs"} & {name for name, value in optim.items() if value is not None}:
        own.pop("warmup_steps")
    brought = _RELEASED | {"optim": own}
    method = given.get("method")
    if isinstance(method, Mapping) and method.get("name") not in (None, "speech_simclr"):
        brought.pop("method")  # its options are that method's
    return brought
