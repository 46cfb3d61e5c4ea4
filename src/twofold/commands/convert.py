"""`twofold convert`: official checkpoints of SimCLR and MoCo, and others' backbones, as an encoder of ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn

from twofold.commands.arguments import new_parser, require_out
from twofold.encoders import Encoder, EncoderConfig, save_encoder
from twofold.errors import UserError
from twofold.evaluation.frozen import digest
from twofold.files import check_out, write_atomically
from twofold.heads import Classifier, ProjectionHead
from twofold.interop.backbones import read_backbone
from twofold.interop.detect import Network, Weights, detect
from twofold.interop.moco import holds_moco, read_moco
from twofold.interop.state_dicts import SUFFIXES
from twofold.interop.tensorflow import Variables, read_variables
from twofold.options import OptionsParser, add_options, merge, plain
from twofold.reading import usable
from twofold.text import counted
from twofold.versions import environment

PUBLISHED_STEPS = {
    250228: (0, "SimCLR v2, pretrained for 800 epochs"),
    751: (1, "SimCLR v2, fine-tuned on 1 % of the labels"),
    3754: (1, "SimCLR v2, fine-tuned on 10 % of the labels"),
    37535: (0, "SimCLR v2, fine-tuned on all labels"),
    28151: (0, "supervised, 90 epochs; the projection head was never trained"),
    225206: (0, "SimCLR, pretrained, its linear classifier trained for 90 epochs"),
}
"""Step of each kind of published file: which output of the head its classifier reads, and what it is.

Source: the files' own step counters; arXiv 2006.10029 section 3 (fine-tuning from layer 1 but for all labels);
google-research/simclr issue 117 (the supervised files' heads).
"""


@dataclass(frozen=True)
class _Contents:
    """What a checkpoint holds, and what there is to say about it."""

    encoder: Encoder
    head: ProjectionHead | None
    classifier: Classifier | None
    layer: int | None
    facts: dict[str, Any]
    ignored: Mapping[str, list[str]]
    views: dict[str, Any]
    files: list[Path]


@dataclass(frozen=True)
class ConvertResult:
    """A converted checkpoint.

    Attributes:
        file: `encoder.safetensors`.
        document: what `conversion.json` beside it holds.
    """

    file: Path
    document: Mapping[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        """Nothing is measured."""
        return {}

    def text(self) -> str:
        """For people."""
        facts, counts = self.document["found"], self.document["counts"]
        lines = [f"{facts['layout']}: {facts['network']}"]
        if facts["head"]:
            lines.append(f"projection head: {facts['head']}")
        if facts["classifier"]:
            lines.append(f"classifier: {facts['classifier']}")
        lines += facts["remarks"]
        left_out = ", ".join(f"{len(names)} {rule}" for rule, names in self.document["ignored"].items()) or "nothing"
        lines.append(
            f"{counted(counts['tensors'], 'tensor')}, {counted(counts['parameters'], 'parameter')}; left out by rule: "
            f"{left_out}"
        )
        lines.append(f"written to {self.file} and {self.file.parent / 'conversion.json'}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {"file": str(self.file), **self.document}


def convert(
    source: str | Path,
    out: str | Path,
    *,
    weights: Weights = "auto",
    classifier_layer: int | None = None,
    prefix: str | None = None,
    encoder: Mapping[str, Any] | None = None,
) -> ConvertResult:
    """Convert a checkpoint of SimCLR (TensorFlow 1 or 2) or MoCo (`.pth.tar`), or a backbone that others trained.

    Depth, width, selective kernels, head and classifier are found from names and shapes, and every tensor is mapped.
    TensorFlow is not needed, and nothing in a file is executed.

    Args:
        source: a TF1 checkpoint (its folder, or its path without .index), a TF2 SavedModel or checkpoint, or a
            `.pth.tar` file of MoCo v1 or v2; or a `.pth`, `.pt`, `.ckpt`, `.bin` or `.safetensors` file with the
            tensors of a model of torchvision or timm.
        out: a new folder. It gets `encoder.safetensors` (encoder, head and classifier) and `conversion.json` (what was
            found, what was left out by which rule, and hashes).
        weights: "base"; "ema" for the moving average (SimCLR v2's `ema_model/`, MoCo's key encoder); "auto": base.
        classifier_layer: which output of the projection head the classifier reads, 0 for the features. By default what
            the graph beside the checkpoint says, or the step count of the published files. Of a backbone 0 keeps its
            last linear layer, which is left out by default.
        prefix: which tensors of a backbone's file are the encoder's: what their names begin with, "module.encoder_q.",
            or a map of beginnings, "backbone.0.=conv1.,backbone.1.=bn1."; found if not given.
        encoder: options of the backbone's encoder, nested: ``{"name": "timm:convnext_tiny"}``; a ResNet of torchvision
            is found without.

    Returns:
        The new encoder's file, and what was found.

    Raises:
        UserError: no checkpoint, a damaged one, one with tensors missing, left over or of another shape; or an `out`
            that is not new.
    """
    out = Path(out)
    check_out(out, False, "conversion", resume=False)
    if (problem := usable(str(source))) is not None:
        raise UserError(f"the path of a checkpoint '{str(source)[:100]}' {problem}")
    path, named = Path(source), merge(encoder or {})
    if path.is_file() and path.suffix in SUFFIXES:
        if prefix is None and not named and holds_moco(path):
            if classifier_layer is not None:
                raise UserError("--classifier_layer: checkpoints of MoCo hold no classifier; leave the option out")
            result = _from_moco(path, weights)
        else:
            result = _from_backbone(path, weights, classifier_layer, prefix, named)
    elif prefix is not None or named:
        option = "--prefix" if prefix is not None else "--encoder.*"
        raise UserError(f"{option} is for files with the tensors of a backbone ({', '.join(SUFFIXES)}): leave it out")
    else:
        result = _from_tensorflow(path, weights, classifier_layer)
    document = _document(path, result)
    out.mkdir(parents=True, exist_ok=True)
    extra = {"converted": document["found"], "options": {"views": result.views}}
    file = out / "encoder.safetensors"
    save_encoder(file, result.encoder, result.head, extra, classifier=result.classifier, classifier_layer=result.layer)
    text = json.dumps(document, indent=2) + "\n"
    write_atomically(out / "conversion.json", lambda f: f.write(text.encode()))
    return ConvertResult(file, json.loads(text))


def _from_tensorflow(source: Path, weights: Weights, given: int | None) -> _Contents:
    variables = read_variables(source)
    network = detect(variables.shapes, str(variables.path), weights)
    layer, why = _classifier_layer(variables, network, given)
    network.fill(variables.read)
    arguments = network.encoder.arguments()
    remarks = []
    if network.other:
        kind = "moving average (ema_model/)" if not network.prefix else "base weights"
        remarks.append(f"the file holds the {kind}, too: left out; see --weights")
    if network.classifier is not None and layer is None:
        remarks.append("which output of the head the classifier reads is unknown: say so with --classifier_layer")
    if network.classifier is None and network.prefix:
        remarks.append("no classifier: the one in the file was trained on the base weights")
    published = PUBLISHED_STEPS.get(variables.step or -1)
    facts = {
        "layout": variables.layout,
        "weights": "ema" if network.prefix else "base",
        "network": describe_network(arguments),
        "head": _describe_head(network.head),
        "classifier": _describe_classifier(network.classifier, layer, why),
        "step": variables.step,
        "step_of": published[1] if published else None,
        "remarks": remarks,
    }
    ignored = dict(variables.ignored)
    if network.other:
        ignored["variables of the other tree"] = network.other
    small = arguments["stem"] == "cifar"
    views = {"size": 32 if small else 224, "resample": "tf1" if variables.layout.startswith("TF1") else "tf2"}
    files = sorted(p for p in variables.path.parent.iterdir() if p.name.startswith(f"{variables.path.stem}."))
    return _Contents(network.encoder, network.head, network.classifier, layer, facts, ignored, views, files)


def _from_moco(source: Path, weights: Weights) -> _Contents:
    network = read_moco(source, weights)
    facts: dict[str, Any] = {
        "layout": f"MoCo v{1 if network.head.config.kind == 'linear' else 2}",
        "weights": "ema" if weights == "ema" else "base",
        "network": f"{network.encoder.name} of torchvision, normalising with ImageNet's mean and deviation",
        "head": _describe_head(network.head),
        "classifier": None,
        "epoch": network.epoch,
        "remarks": [],
    }
    views = {"size": 224, "resample": "antialias"}
    return _Contents(network.encoder, network.head, None, None, facts, network.ignored, views, [source])


def _from_backbone(
    source: Path, weights: Weights, layer: int | None, prefix: str | None, named: Mapping[str, Any]
) -> _Contents:
    if weights != "auto":
        raise UserError(f"--weights {weights} is for checkpoints of SimCLR and MoCo: say which weights with --prefix")
    if layer not in (None, 0):
        raise UserError(f"--classifier_layer {layer}: a backbone has no projection head; give 0, or leave it out")
    options = plain(OptionsParser(EncoderConfig).build(named)) if named else {}
    found = read_backbone(source, prefix, options, classifier=layer == 0)
    arguments = found.encoder.arguments()
    side = arguments.get("size") or (32 if arguments.get("stem") == "cifar" else 224)
    epoch = found.facts.get("epoch")
    facts: dict[str, Any] = {
        "layout": "tensors by name",
        "weights": "base",
        "network": str(found.options["name"]),
        "head": None,
        "classifier": _describe_classifier(found.classifier, 0, "given"),
        "prefix": found.prefix,
        "epoch": epoch if isinstance(epoch, int) else None,
        "remarks": [
            *found.remarks,
            *([found.hint] if found.hint else []),
            f"images of {side} px are assumed; --views.size of other commands says otherwise",
        ],
    }
    views = {"size": side, "resample": "antialias"}
    return _Contents(found.encoder, None, found.classifier, 0, facts, found.ignored, views, [source])


def _classifier_layer(variables: Variables, network: Network, given: int | None) -> tuple[int | None, str]:
    """(which output of the head the classifier reads, how that is known)."""
    classifier = network.classifier
    if classifier is None:
        if given is not None:
            raise UserError(f"--classifier_layer {given}: {variables.path} holds no classifier for these weights")
        return None, ""
    widths = [network.encoder.feature_dim] if network.head is None else network.head.widths
    possible = [layer for layer, width in enumerate(widths) if width == classifier.in_features]
    published = PUBLISHED_STEPS.get(variables.step or -1)
    answers = [
        (given, "given"),
        (variables.classifier_layer, "from the graph beside the weights"),
        (possible[0] if len(possible) == 1 else None, "the only one of that width"),
        (published[0] if published else None, f"step {variables.step}: {published[1] if published else ''}"),
    ]
    layer, why = next(((layer, why) for layer, why in answers if layer is not None), (None, "unknown"))
    if not possible or (layer is not None and layer not in possible):
        raise UserError(
            f"{variables.path}: the classifier takes {counted(classifier.in_features, 'value')} and cannot read output "
            f"{'of the head' if layer is None else layer} ({why}); the outputs have {widths}: give --classifier_layer"
        )
    return layer, why


def describe_network(arguments: Mapping[str, Any]) -> str:
    """A ResNet of SimCLR as its arguments name it; by these words `twofold.published` knows the released files."""
    kernels = f", selective kernels {arguments['sk_ratio']:g}" if arguments["sk_ratio"] else ""
    return f"ResNet-{arguments['depth']} {arguments['width']:g}x, {arguments['stem']} stem{kernels}"


def _describe_head(head: ProjectionHead | None) -> str | None:
    if head is None:
        return None
    layers = len(head.layers)
    return f"{layers} layer{'s' if layers > 1 else ''}, {head.in_dim} to {head.out_dim}"


def _describe_classifier(classifier: Classifier | None, layer: int | None, why: str) -> str | None:
    if classifier is None:
        return None
    below = (
        "an unknown output of the head" if layer is None else f"output {layer} of the head" if layer else "the features"
    )
    return f"{counted(classifier.out_features, 'class')}, on {below} ({why})"


def _document(source: Path, contents: _Contents) -> dict[str, Any]:
    modules: dict[str, nn.Module | None] = {
        "encoder": contents.encoder,
        "head": contents.head,
        "classifier": contents.classifier,
    }
    parts = {name: module for name, module in modules.items() if module is not None}
    tensors = [tensor for module in parts.values() for tensor in module.state_dict().values()]
    return {
        "source": str(source.absolute()),
        "files": [
            {"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)} for path in contents.files
        ],
        "found": contents.facts,
        "encoder": contents.encoder.spec(),
        "head": None if contents.head is None else {"in_dim": contents.head.in_dim, **asdict(contents.head.config)},
        "classifier": None
        if contents.classifier is None
        else {"classes": contents.classifier.out_features, "layer": contents.layer},
        "counts": {
            "tensors": len(tensors),
            "parameters": sum(p.numel() for module in parts.values() for p in module.parameters()),
        },
        "ignored": {rule: list(names) for rule, names in contents.ignored.items()},
        "sha256": {name: digest(module) for name, module in parts.items()},
        **environment(),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parser() -> ArgumentParser:
    """Of `twofold convert`."""
    parser = new_parser(
        "Turn an official checkpoint of SimCLR (TensorFlow) or MoCo (.pth.tar), or a backbone that others trained, "
        "into an encoder of ours."
    )
    parser.add_argument(
        "source",
        help="a TF1 checkpoint or its folder, a TF2 SavedModel, MoCo's .pth.tar, or a file with the tensors of a model "
        "of torchvision or timm (.pth, .pt, .ckpt, .bin, .safetensors)",
    )
    parser.add_argument("--out", type=str, help="a new folder for encoder.safetensors and conversion.json")
    parser.add_argument(
        "--weights",
        type=Weights,
        default="auto",
        help="base weights or their moving average; auto: base where there are both (default: auto)",
    )
    parser.add_argument(
        "--classifier_layer",
        type=int,
        help="output of the head that the classifier reads, if nothing says it; 0 keeps the last layer of a backbone",
    )
    parser.add_argument(
        "--prefix",
        type=str,
        help="what the names of a backbone's tensors begin with, module.encoder_q., or a map with commas between, "
        "backbone.0.=conv1.; found if not given",
    )
    add_options(parser, EncoderConfig, "encoder.", "Encoder of a backbone")
    return parser


def run(options: dict[str, Any]) -> ConvertResult:
    """`twofold convert`."""
    require_out(options, "a new folder for the converted encoder", "encoders/r50")
    return convert(options.pop("source"), options.pop("out"), **options)
