"""`twofold export`: a trained encoder in the files that other libraries read."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser

from twofold.commands.arguments import new_parser, require_out
from twofold.encoders import Encoder, UtteranceEncoder, load_head
from twofold.encoders.load import encoder_path, load
from twofold.errors import UserError
from twofold.files import write_atomically
from twofold.interop.moco import KeySide, write_moco
from twofold.interop.program import least_samples, speech_program
from twofold.interop.torchvision import detectron2_model, torchvision_weights
from twofold.runs.config import RunConfig
from twofold.training.checkpoint import load_checkpoint
from twofold.training.rundir import RunDirectory

Format = Literal["torchvision", "moco", "detectron2", "torch_export"]


@dataclass(frozen=True)
class ExportResult:
    """An encoder in another library's layout.

    Attributes:
        file: that was written.
        note: what its reader has to know.
    """

    file: Path
    note: str

    @property
    def metrics(self) -> dict[str, float]:
        """Nothing is measured."""
        return {}

    def text(self) -> str:
        """For people."""
        return f"{self.file}: {self.note}"

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {"file": str(self.file), "note": self.note}


def export(run: str | Path, out: str | Path, *, format: Format = "torchvision") -> ExportResult:  # noqa: A002
    """Write an encoder in another library's layout.

    Args:
        run: a run's folder, or an `encoder.safetensors`.
        out: a new file.
        format: torchvision: a state dict of a torchvision model, without its classifier; moco: MoCo's `.pth.tar`, with
            the key encoder and the queue if the run is one of MoCo; detectron2: the pickle that MoCo's detection
            experiments start from; torch_export: a speech encoder, front end included, as a program of torch.export.

    Raises:
        UserError: a net or head that the layout cannot hold, or an `out` that exists.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"--out {out} exists already; choose another name")
    encoder = load(run)
    if format == "torch_export":
        return _program(encoder, out)
    if encoder.input.kind == "audio":
        raise UserError(f"--format {format} is for encoders of images, and {run} takes recordings: use torch_export")
    if format == "moco":
        head = load_head(encoder_path(run))
        if head is None:
            raise UserError(f"{run} holds no projection head, which MoCo's layout needs; use --format torchvision")
        epoch, keys = _key_side(run)
        write_moco(out, encoder, head, epoch, keys)
        has = "query and key encoder and queue" if keys else "query encoder and head; no key encoder, no queue"
        return ExportResult(out, f"MoCo's layout with {has}; no optimizer: it is for evaluation and fine-tuning")
    weights = torchvision_weights(encoder)
    if format == "detectron2":
        model = detectron2_model(weights)
        write_atomically(out, lambda file: pickle.dump(model, file))
        mean, std = ([round(255 * v, 4) for v in values] for values in (weights.mean, weights.std))
        message = f"detectron2: INPUT.FORMAT RGB, MODEL.PIXEL_MEAN {mean}, MODEL.PIXEL_STD {std}, STRIDE_IN_1X1 False"
    else:
        write_atomically(out, lambda file: torch.save(weights.state, file))
        message = (
            f"torchvision {weights.name} without its classifier; images in [0, 1], minus {list(weights.mean)}, "
            f"divided by {list(weights.std)}"
        )
    return ExportResult(out, f"{message}; {weights.notice}" if weights.notice else message)


def _program(encoder: Encoder, out: Path) -> ExportResult:
    program = speech_program(encoder)
    write_atomically(out, lambda file: torch.export.save(program, file))
    assert isinstance(encoder, UtteranceEncoder)  # or speech_program would have said so
    return ExportResult(
        out,
        f"torch.export.load(...).module() takes waveforms [n, samples] at {encoder.input.sample_rate:,} Hz, padded "
        f"with zeros to {least_samples(encoder):,} samples or more, and lengths [n]; gives [n, {encoder.feature_dim}]",
    )


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
    parser = new_parser("Write an encoder in the layout of another library.")
    parser.add_argument("run", help="a run's folder, or an encoder.safetensors")
    parser.add_argument(
        "--format",
        type=Format,
        default="torchvision",
        help="torchvision: a state dict without classifier; moco: MoCo's .pth.tar; detectron2: the pickle that MoCo's "
        "detection experiments start from; torch_export: a speech encoder as a program of torch.export (default: "
        "torchvision)",
    )
    parser.add_argument("--out", type=str, help="a new file")
    return parser


def run(options: dict[str, Any]) -> ExportResult:
    """`twofold export`."""
    require_out(options, "a new file", "encoder.pth")
    return export(options.pop("run"), options.pop("out"), **options)
