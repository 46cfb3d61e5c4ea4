"""A folder for the Hugging Face hub: weights, configuration, preprocessing and a model card."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from twofold.encoders import Encoder
from twofold.encoders.base import Preprocessing
from twofold.encoders.composed import EncoderWithClassifier
from twofold.errors import UserError
from twofold.files import write_atomically
from twofold.interop.torchvision import LibraryWeights, timm_weights
from twofold.text import counted

WEIGHTS, TIMM_WEIGHTS = "encoder.safetensors", "model.safetensors"
_LARGE = 384
"""From this side on, transformers' image processors with a `crop_pct` resize without cropping."""


@dataclass(frozen=True)
class CardFacts:
    """What a model card says of a run; what is not known is left out.

    Attributes:
        title: of the model.
        data: what it was trained on, in words.
        trained: how, in lines "name: value".
        results: lines about measurements.
        notice: how other libraries' features differ.
    """

    title: str
    data: str = ""
    trained: Sequence[str] = ()
    results: Sequence[str] = ()
    notice: str = ""


def write_hub_folder(
    out: Path, encoder_file: Path, net: Encoder, known: Preprocessing | None, classes: Sequence[str] | None,
    facts: CardFacts,
) -> str:  # fmt: skip
    """Write the folder.

    It gets `encoder.safetensors`, which `twofold.load` reads, and any reader of safetensors; `config.json`;
    `preprocessor_config.json` for encoders of images; `README.md`, the model card; and where timm has the architecture
    `model.safetensors` under timm's names, with which ``timm.create_model("local-dir:FOLDER")`` (or ``hf-hub:``) makes
    the model, with the classifier where it reads the features.

    Args:
        out: a new folder.
        encoder_file: the encoder's file.
        net: what is in it; an `EncoderWithClassifier` where there is a classifier.
        known: preprocessing of the images.
        classes: names of the classes, where they are known.
        facts: for the card.

    Returns:
        What is in it, in words.
    """
    encoder = net.encoder if isinstance(net, EncoderWithClassifier) else net
    weights = _for_timm(net)
    write_atomically(out / WEIGHTS, lambda file: file.write(encoder_file.read_bytes()))
    if weights is not None:
        content = save(_contiguous(weights.state), metadata={"format": "pt"})
        write_atomically(out / TIMM_WEIGHTS, lambda file: file.write(content))
        facts = replace(facts, notice=weights.notice)
    _write_json(out / "config.json", _config(net, encoder, weights, known, classes))
    if known is not None:
        _write_json(out / "preprocessor_config.json", _preprocessor(encoder, weights, known))
    text = model_card(net, encoder, weights, known, facts)
    write_atomically(out / "README.md", lambda file: file.write(text.encode()))
    return "timm and Twofold load it" if weights is not None else "Twofold loads it, and any reader of safetensors"


def _for_timm(net: Encoder) -> LibraryWeights | None:
    """The net for timm, with its classifier where that reads the features; None where timm has no such net."""
    encoder = net.encoder if isinstance(net, EncoderWithClassifier) else net
    try:
        weights = timm_weights(encoder)
    except UserError:
        return None
    if isinstance(net, EncoderWithClassifier) and net.layer == 0 and weights.classifier_name:
        own = {f"{weights.classifier_name}.{name}": tensor for name, tensor in net.classifier.state_dict().items()}
        weights = replace(weights, state=weights.state | own)
    return weights


def _config(
    net: Encoder, encoder: Encoder, weights: LibraryWeights | None, known: Preprocessing | None,
    classes: Sequence[str] | None,
) -> dict[str, Any]:  # fmt: skip
    """`config.json`: timm's where it has the architecture, always with our specification."""
    ours: dict[str, Any] = {
        "library_name": "twofold", "encoder": encoder.spec(), "num_features": encoder.feature_dim, "weights": WEIGHTS,
        "preprocessing": None if known is None else known.to_dict(),
    }  # fmt: skip
    if isinstance(net, EncoderWithClassifier):
        ours["num_classes"] = net.feature_dim
        if classes:
            ours["label_names"] = list(classes)
    if weights is None:
        return ours
    classified = f"{weights.classifier_name}.weight" in weights.state
    side = weights.side or (known.size if known is not None and known.size else 224)
    first = next(name for name, tensor in weights.state.items() if tensor.ndim == 4)
    mode = "border" if known is not None and known.rule == "letterbox" else "center"
    pretrained = {
        "input_size": [encoder.input.channels, side, side], "fixed_input_size": weights.side is not None,
        "interpolation": "bilinear" if known and known.resample == "bilinear" else "bicubic",
        "crop_pct": _share(known), "crop_mode": mode,
        "mean": list(weights.mean), "std": list(weights.std), "num_classes": net.feature_dim if classified else 0,
        "classifier": weights.classifier_name, "first_conv": first.removesuffix(".weight"),
    }  # fmt: skip
    config: dict[str, Any] = {
        "architecture": weights.name, "num_classes": pretrained["num_classes"], "num_features": encoder.feature_dim,
        "pretrained_cfg": pretrained, "twofold": ours,
    }  # fmt: skip
    if encoder.input.channels != 3:
        config["model_args"] = {"in_chans": encoder.input.channels}
    if classified and classes:
        config["label_names"] = list(classes)
    return config


def _share(known: Preprocessing | None) -> float:
    """Share of the shorter side, or of a letterbox, that timm is to take."""
    if known is None:
        return 0.875
    return known.crop if known.rule in ("auto", "crop") else 1.0


def _preprocessor(encoder: Encoder, weights: LibraryWeights | None, known: Preprocessing) -> dict[str, Any]:
    """`preprocessor_config.json`: our steps, and the nearest that an image processor of transformers has.

    That resizes before it cuts, which differs by rounding and at the edges of the filter.
    """
    result: dict[str, Any] = {"twofold": known.to_dict()}
    if known.size is not None and encoder.input.channels == 3 and known.rule not in ("none", "letterbox", "squares"):
        small = known.size <= known.whole_up_to and known.rule != "crop"
        whole = known.rule == "resize" or small or known.size >= _LARGE
        mean = list(weights.mean) if weights is not None else [0.0] * 3
        std = list(weights.std) if weights is not None else [1.0] * 3
        result |= {
            "image_processor_type": "ConvNextImageProcessor", "do_resize": True,
            "size": {"shortest_edge": known.size}, "crop_pct": 1.0 if whole else known.crop,
            "resample": 2 if known.resample == "bilinear" else 3,  # Pillow's numbers of both
            "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": mean, "image_std": std,
        }  # fmt: skip
    return result


def model_card(
    net: Encoder, encoder: Encoder, weights: LibraryWeights | None, known: Preprocessing | None, facts: CardFacts
) -> str:
    """The model card in Markdown, with the hub's metadata in front."""
    classified = isinstance(net, EncoderWithClassifier)
    audio = encoder.input.kind == "audio"
    task = ("audio" if audio else "image") + ("-classification" if classified else "-feature-extraction")
    library = "timm" if weights is not None else "twofold"
    metadata = [f"library_name: {library}", "tags:", *(f"- {tag}" for tag in _tags(audio))]
    if task != "audio-feature-extraction":
        metadata.append(f"pipeline_tag: {task}")
    else:
        metadata.append("pipeline_tag: feature-extraction")
    parameters = sum(p.numel() for p in encoder.parameters())
    lines = ["---", *metadata, "---", "", f"# {facts.title}", ""]
    lines.append(
        f"An encoder of {'recordings' if audio else 'images'} with {parameters:,} parameters that gives "
        f"{counted(encoder.feature_dim, 'feature')}"
        + (f", and a classifier of {counted(net.feature_dim, 'class')}." if classified else ".")
    )
    if facts.data:
        lines += ["", f"Trained on {facts.data}."]
    for heading, entries in (("Training", facts.trained), ("Results", facts.results)):
        if entries:
            lines += ["", f"## {heading}", "", *(f"- {entry}" for entry in entries)]
    lines += ["", "## Use", "", "```python", *_use(encoder, known), "```"]
    if weights is not None:
        lines += ["", f"timm has the architecture as `{weights.name}`:", "", "```python", "import timm", ""]
        lines += ['model = timm.create_model("local-dir:FOLDER", pretrained=True)', "```"]
        lines += ["", f"{facts.notice[0].upper()}{facts.notice[1:]}."] if facts.notice else []
    if known is not None:
        lines += ["", "## Preprocessing", "", f"`{json.dumps(known.to_dict())}`"]
    return "\n".join(lines) + "\n"


def _tags(audio: bool) -> list[str]:
    return ["twofold", "self-supervised-learning", "contrastive-learning", *(["audio"] if audio else [])]


def _use(encoder: Encoder, known: Preprocessing | None) -> list[str]:
    start = ["import twofold", "", 'encoder = twofold.load("FOLDER")']
    if encoder.input.kind == "audio":
        rate = f"{encoder.input.sample_rate:,} Hz"
        return [*start, f"features = encoder(waves)  # [n, samples] at {rate} -> [n, {encoder.feature_dim}]"]
    if known is None:
        return [*start, f"features = encoder(images)  # [n, C, H, W] in [0, 1] -> [n, {encoder.feature_dim}]"]
    return [*start, f'features = encoder(encoder.preprocess("photo.jpg"))  # [1, {encoder.feature_dim}]']


def push(folder: Path, name: str) -> str:
    """Make a private repository of that name, or take the one that there is, and upload the folder; gives its address.

    Raises:
        UserError: huggingface_hub is missing, or the hub refuses.
    """
    hub = require_hub()
    try:
        api = hub.HfApi()
        api.create_repo(name, repo_type="model", private=True, exist_ok=True)
        address = api.upload_folder(repo_id=name, folder_path=str(folder), repo_type="model")
    except Exception as error:  # of the network, of the hub, of a missing token: all end here
        raise UserError(f"--push {name}: the hub refused: {error}; {folder} is complete, push it later") from error
    return str(address)


def require_hub() -> Any:
    """The library that talks to the hub; UserError where it is missing."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError("--push needs huggingface_hub: pip install huggingface_hub") from error


def _contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory, as safetensors wants them."""
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
