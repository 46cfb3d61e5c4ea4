"""`twofold export`: a trained encoder in the files that other libraries and runtimes read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jsonargparse import ArgumentParser
from numpy.typing import NDArray
from torch import Tensor, nn

from twofold.commands.arguments import new_parser, require_out
from twofold.data import AudioSource, DataConfig, open_source
from twofold.data.decoding.opening import BadImage
from twofold.encoders import Encoder, UtteranceEncoder, load_classifier, load_head, load_part, read_header
from twofold.encoders.composed import EncoderWithClassifier
from twofold.encoders.load import encoder_path
from twofold.errors import UserError
from twofold.evaluation.features import Pixels
from twofold.evaluation.kept import EVALUATIONS, PREDICTION, named_classes
from twofold.evaluation.loading import ImagePreprocessor, load
from twofold.files import write_atomically
from twofold.interop import hub_folder
from twofold.interop.moco import KeySide, write_moco
from twofold.interop.onnx_files import metadata, require_onnx, write_int8, write_onnx
from twofold.interop.program import TOLERANCE, Program, checked_program, least_samples
from twofold.interop.torchvision import LibraryWeights, detectron2_model, timm_weights, torchvision_weights
from twofold.randomness import permutation
from twofold.report.records import ends_of, published_in
from twofold.runs.config import RunConfig
from twofold.text import counted
from twofold.training.checkpoint import load_checkpoint
from twofold.training.rundir import RunDirectory

Format = Literal["torchvision", "timm", "moco", "detectron2", "torch_export", "onnx", "huggingface"]
_OF_ANY_ENCODER = ("torch_export", "onnx", "huggingface")
_LOOKED_AT = 768
"""Most images that int8 is made and measured with."""
_FORMATS = (
    "torchvision: a state dict without classifier; timm: the same under timm's names; moco: MoCo's .pth.tar; "
    "detectron2: the pickle that MoCo's detection experiments start from; torch_export: a program of torch.export "
    "(.pt2); onnx: an ONNX file, checked against ONNX Runtime; huggingface: a folder for the hub with a model card"
)


@dataclass(frozen=True)
class ExportResult:
    """An encoder in another library's layout.

    Attributes:
        file: that was written, or the folder.
        note: what its reader has to know.
        metrics: what was measured: of ONNX the largest difference from PyTorch, of int8 what it costs.
    """

    file: Path
    note: str
    metrics: dict[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """For people."""
        return f"{self.file}: {self.note}"

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {"file": str(self.file), "note": self.note, "metrics": self.metrics}


def export(
    run: str | Path,
    out: str | Path,
    *,
    format: Format = "torchvision",  # noqa: A002
    int8: Any = None,
    push: str | None = None,
    encoder: nn.Module | None = None,
) -> ExportResult:
    """Write an encoder in another library's layout, or for another runtime.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        out: a new file; of huggingface a new folder.
        format: torchvision: a state dict of a torchvision model, without its classifier; timm: the same of a model of
            timm; moco: MoCo's `.pth.tar`, with the key encoder and the queue if the run is one of MoCo; detectron2: the
            pickle that MoCo's detection experiments start from; torch_export: any encoder as a program of torch.export;
            onnx: any encoder as an ONNX file whose outputs ONNX Runtime gives within 1e-4; huggingface: a folder for
            the hub with configuration, preprocessing and model card. torch_export, onnx and huggingface have the
            classifier where there is one.
        int8: images, as `twofold.evaluate` takes them: the ONNX file has weights and activations of 8 bits, whose
            ranges come of half of them, and what that costs is measured on the others.
        push: OWNER/NAME of a repository on the hub, made private if it is new, that the folder is uploaded to.
        encoder: your own module, if the run was trained with one.

    Raises:
        UserError: a net or head that the layout cannot hold, a library that is missing, or an `out` that exists.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"--out {out} exists already; choose another name")
    _check_options(format, int8, push)
    file = encoder_path(run)
    known = load(run, encoder)
    if format in _OF_ANY_ENCODER:
        net = _with_classifier(file, known)
        if format == "onnx":
            return _onnx(net, file, out, int8)
        return _program(net, out) if format == "torch_export" else _hub(net, run, file, out, push)
    if known.input.kind == "audio":
        raise UserError(
            f"--format {format} is for encoders of images, and {run} takes recordings: use torch_export, onnx or "
            "huggingface"
        )
    if format == "moco":
        head = load_head(file)
        if head is None:
            raise UserError(f"{run} holds no projection head, which MoCo's layout needs; use --format torchvision")
        epoch, keys = _key_side(run)
        write_moco(out, known, head, epoch, keys)
        has = "query and key encoder and queue" if keys else "query encoder and head; no key encoder, no queue"
        return ExportResult(out, f"MoCo's layout with {has}; no optimizer: it is for evaluation and fine-tuning")
    return _weights(timm_weights(known) if format == "timm" else torchvision_weights(known), out, format)


def _check_options(format: str, int8: Any, push: str | None) -> None:  # noqa: A002
    """Raise a UserError for an option that the format has no use for, and for a library that is missing."""
    if format not in get_args(Format):
        raise UserError(f"--format {format}: choose one of {', '.join(get_args(Format))}")
    if int8 is not None and format != "onnx":
        raise UserError(f"--int8 is for --format onnx; leave it out of --format {format}")
    if push is not None and format != "huggingface":
        raise UserError(f"--push is for --format huggingface; leave it out of --format {format}")
    if push is not None:
        if push.count("/") != 1 or not all(push.split("/")):
            raise UserError(f"--push {push}: give the repository as OWNER/NAME")
        hub_folder.require_hub()
    if format == "onnx":
        require_onnx()


def _weights(weights: LibraryWeights, out: Path, format: str) -> ExportResult:  # noqa: A002
    if format == "detectron2":
        model = detectron2_model(weights)
        write_atomically(out, lambda file: pickle.dump(model, file))
        mean, std = ([round(255 * v, 4) for v in values] for values in (weights.mean, weights.std))
        message = f"detectron2: INPUT.FORMAT RGB, MODEL.PIXEL_MEAN {mean}, MODEL.PIXEL_STD {std}, STRIDE_IN_1X1 False"
    else:
        write_atomically(out, lambda file: torch.save(weights.state, file))
        message = (
            f"{format} {weights.name} without its classifier; images in [0, 1], minus {list(weights.mean)}, "
            f"divided by {list(weights.std)}"
        )
    return ExportResult(out, f"{message}; {weights.notice}" if weights.notice else message)


def _with_classifier(file: Path, encoder: Encoder) -> Encoder:
    """The encoder, with its classifier if the file holds one whose place is known."""
    found = load_classifier(file)
    if found is None:
        return encoder
    classifier, layer = found
    return encoder if layer is None else EncoderWithClassifier(encoder, classifier, load_head(file), layer).eval()


def _program(net: Encoder, out: Path) -> ExportResult:
    program = checked_program(net, _side(net))
    write_atomically(out, lambda file: torch.export.save(program.exported, file))
    module = f".module({'check_guards=False' if program.guarded else ''})"
    return ExportResult(out, f"torch.export.load(...){module} takes {_takes(net, program)}")


def _takes(net: Encoder, program: Program) -> str:
    """What a program takes and gives, in words."""
    encoder = net.encoder if isinstance(net, EncoderWithClassifier) else net
    gives = f"gives {'features ' if 'logits' in program.outputs else ''}[n, {encoder.feature_dim}]"
    gives += f" and logits [n, {net.feature_dim}]" if "logits" in program.outputs else ""
    if isinstance(encoder, UtteranceEncoder):
        return (
            f"waveforms [n, samples] at {encoder.input.sample_rate:,} Hz, padded with zeros to "
            f"{counted(least_samples(encoder), 'sample')} or more, and lengths [n]; {gives}"
        )
    sides = "H, W" if program.side is None else f"{program.side}, {program.side}"
    only = f" (one size alone: {program.reason})" if program.reason else ""
    return f"images [n, {encoder.input.channels}, {sides}] in [0, 1]{only}; {gives}"


def _side(net: Encoder) -> int | None:
    return None if net.input.preprocessing is None else net.input.preprocessing.size


def _onnx(net: Encoder, file: Path, out: Path, int8: Any) -> ExportResult:
    known = net.input.preprocessing
    encoder = net.encoder if isinstance(net, EncoderWithClassifier) else net
    facts = metadata(None if known is None else known.to_dict(), encoder.spec(), _classes(file))
    if int8 is None:
        written = write_onnx(out, net, facts, _side(net))
        beside = f"; weights in {written.files[1].name}, which belongs beside it" if len(written.files) > 1 else ""
        note = (
            f"ONNX Runtime gives PyTorch's outputs to {written.difference:.1e} of the largest (at most {TOLERANCE:g}); "
            f"takes {_takes(net, written.program)}{beside}"
        )
        return ExportResult(out, note, {"difference": written.difference})
    images, labels = _some_images(net, int8)
    whole = out.with_name(f".{out.name}.float32")
    try:
        written = write_onnx(whole, net, facts, _side(net))
        cost = write_int8(out, whole, images, labels, facts)
    finally:
        for part in (whole, whole.with_name(f"{whole.name}.data")):
            part.unlink(missing_ok=True)
    measured = {"difference": written.difference, "cosine": cost.cosine, "neighbour": cost.neighbour}
    measured |= {} if cost.accuracy is None else dict(zip(("accuracy", "accuracy_int8"), cost.accuracy, strict=True))
    return ExportResult(out, f"{cost.text()}; takes {_takes(net, written.program)}", measured)


def _some_images(net: Encoder, data: Any) -> tuple[list[Tensor], NDArray[np.int64] | None]:
    """Images as the encoder takes them, in an order of their own, and their labels."""
    if net.input.kind == "audio" or net.input.preprocessing is None:
        raise UserError("--int8 is for encoders of images, and this one takes recordings: leave it out")
    prepare = ImagePreprocessor(net.input.preprocessing, net.input.channels)
    config = Pixels(**net.input.preprocessing.pixels).fill(DataConfig(channels=net.input.channels))
    source = open_source(data, config)
    if isinstance(source, AudioSource):
        raise UserError(f"--int8 {source.name} holds recordings, and the encoder takes images: give images")
    kept, images = [], []
    for index in permutation(0, "int8", 0, len(source))[:_LOOKED_AT].tolist():
        try:
            images.append(prepare.pixels(source.read(index))[0])
            kept.append(index)
        except BadImage as error:
            source.skipped.add(error.path, error.reason)
    labels = source.labels
    if labels is None or np.asarray(labels).ndim != 1:
        return images, None
    return images, np.asarray(labels)[kept]


def _classes(file: Path) -> list[str] | None:
    """Names of the classes of the classifier that goes out with the encoder, where they are known."""
    found = load_classifier(file)
    return None if found is None or found[1] is None else named_classes(file)


def _hub(net: Encoder, run: str | Path, file: Path, out: Path, push: str | None) -> ExportResult:
    encoder = net.encoder if isinstance(net, EncoderWithClassifier) else net
    known, facts = net.input.preprocessing, _card(Path(run), file, encoder)
    note = hub_folder.write_hub_folder(out, file, net, known, _classes(file), facts)
    where = f"; pushed to {hub_folder.push(out, push)}" if push is not None else "; nothing was pushed"
    return ExportResult(out, f"weights, configuration, preprocessing and model card; {note}{where}")


def _card(run: Path, file: Path, encoder: Encoder) -> hub_folder.CardFacts:
    """What the run's folder tells for a model card; of a bare file what its header tells."""
    header = read_header(file)
    options, extra = header["extra"].get("options", {}), header["extra"]
    spec = encoder.spec()
    title = f"{spec.get('name') or spec['kind']}" + (f"-{spec['depth']}" if "depth" in spec else "")
    trained = [f"encoder: `{json.dumps(spec)}`"]
    for name in ("method", "epochs", "batch", "optim", "views"):
        if name in options:
            value = options[name]
            given = {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value
            trained.append(f"{name}: `{json.dumps(given)}`")
    trained += [f"steps: {extra['steps']:,} of {extra['of']:,}"] if {"steps", "of"} <= extra.keys() else []
    part = load_part(file, PREDICTION)
    trained += [f"classifier: {part.facts['words']}"] if part is not None and part.facts.get("words") else []
    trained.append("versions: " + ", ".join(f"{name} {value}" for name, value in header["versions"].items()))
    kept_in = file.parent.parent if file.parent.name == EVALUATIONS else None
    folder, data, results = RunDirectory(kept_in or run), "", list[str]()
    if folder.path.is_dir() and folder.config_file.exists():
        told = folder.facts()
        examples = "recordings" if encoder.input.kind == "audio" else "images"
        data = f"{told['images']:,} {examples} ({Path(told['data']).name})"
        own = [*sorted((run / EVALUATIONS).glob("*.json")), *(own for own in ends_of(run) if own.is_file())]
        results = _results([file.with_suffix(".json")] if kept_in else own)
    return hub_folder.CardFacts(f"{title} by Twofold", data, trained, results)


def _results(documents: Sequence[Path]) -> list[str]:
    """Lines about what was measured: evaluations, and a run's own result."""
    lines = []
    for path in documents:
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error}; move it out of the run's folder") from error
        scores = document.get("scores") or document.get("comparison") or document
        numbers = {k: v for k, v in scores.items() if isinstance(v, float)} if isinstance(scores, Mapping) else {}
        listed = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        words = document.get("words") or document.get("text") or document.get("name") or path.stem
        lines += [f"{words}: {listed}", *published_in(document)] if listed else []
    return lines


def _key_side(run: str | Path) -> tuple[int, KeySide | None]:
    """Epochs done, and what a run of MoCo holds beside its query encoder; None for other runs and bare encoders."""
    folder = RunDirectory(run)
    if not folder.config_file.exists():
        return 0, None
    config, _ = folder.read(RunConfig)
    newest = folder.latest()
    rows = folder.rows()
    epoch = int(rows[-1]["epoch"]) if rows else 0
    if config.method.name != "moco" or newest is None:
        return epoch, None
    state = load_checkpoint(newest)["method"]

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    queue = part("queue.")
    return epoch, KeySide(part("momentum_encoder.module."), part("momentum_head."), queue["keys"], queue["pointer"])


def parser() -> ArgumentParser:
    """Of `twofold export`."""
    parser = new_parser("Write an encoder in the layout of another library, or for another runtime.")
    parser.add_argument("run", help="a run's folder, or an encoder.safetensors")
    parser.add_argument("--format", type=Format, default="torchvision", help=f"{_FORMATS} (default: torchvision)")
    parser.add_argument("--out", type=str, help="a new file; of huggingface a new folder")
    parser.add_argument(
        "--int8",
        metavar="DATA",
        type=str,
        help="images: write an ONNX file of 8-bit weights and activations, and measure with them what that costs",
    )
    parser.add_argument("--push", metavar="OWNER/NAME", type=str, help="upload the folder to this private repository")
    return parser


def run(options: dict[str, Any]) -> ExportResult:
    """`twofold export`."""
    require_out(options, "a new file or folder", "encoder.pth")
    return export(options.pop("run"), options.pop("out"), **options)
