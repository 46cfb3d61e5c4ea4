"""Encoders as ONNX files that ONNX Runtime gives the same features from, and as int8 files with what that costs."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twofold.encoders import Encoder
from twofold.errors import UserError
from twofold.files import write_atomically
from twofold.interop.program import TOLERANCE, Program, apart, encoder_program, examples, outputs_of
from twofold.text import counted

ONE_FILE = 2**31 - 2**20
"""Bytes that one file of protocol buffers can hold; weights beyond lie in a second file."""
_CALIBRATED, _BATCH = 256, 16
"""Images that ranges of int8 are taken from, and how many go through the net at a time."""
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Raise a UserError where a library that writes or reads ONNX is missing."""
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--format onnx needs {name}: pip install 'twofold[onnx]'") from error


@dataclass(frozen=True)
class OnnxFile:
    """What was written.

    Attributes:
        program: what it was made of.
        difference: largest difference of ONNX Runtime's outputs from PyTorch's, as a share of the largest output.
        files: the file, and that of its weights where one file cannot hold them.
    """

    program: Program
    difference: float
    files: tuple[Path, ...]


def write_onnx(out: Path, net: Encoder, facts: Mapping[str, str], side: int | None = None) -> OnnxFile:
    """Write an encoder, with its classifier where it is an `EncoderWithClassifier`, as an ONNX file.

    Args:
        out: a new file.
        net: see `encoder_program`, which also tells the inputs and outputs.
        facts: what the file's metadata say, by name.
        side: of the images, for nets that can be followed for one alone.

    Raises:
        UserError: the net has no such form, or ONNX Runtime gives other outputs; nothing is left then.
    """
    require_onnx()
    program = encoder_program(net, side)
    with _quiet(), tempfile.TemporaryDirectory(prefix=".onnx-", dir=_folder(out)) as folder:
        made = Path(folder) / out.name
        try:
            difference = _made(made, net, program, facts)
        except UserError as error:
            if program.inputs != ("images",) or program.side is not None:
                raise UserError(f"{error}; {out} is not written") from error
            program = encoder_program(net, side, refused=str(error))
            difference = _made(made, net, program, facts)
        return OnnxFile(program, difference, _moved(Path(folder), out))


def _made(file: Path, net: Encoder, program: Program, facts: Mapping[str, str]) -> float:
    """Write a program and compare it with the net; gives the largest difference, and raises if that is too large."""
    try:
        model: Any = torch.onnx.export(
            program.exported, dynamo=True, input_names=program.inputs, output_names=program.outputs, verbose=False
        )
        model.model.metadata_props.update(facts)
        model.save(str(file), external_data=_bytes(net) > ONE_FILE)
        difference = largest_difference(file, net, program)
    except Exception as error:  # exporter and runtime raise every kind
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"--format onnx: ONNX cannot hold this encoder ({said}); use torch_export") from error
    if not difference <= TOLERANCE:
        raise UserError(
            f"--format onnx: ONNX Runtime's outputs differ from PyTorch's by {difference:.1e} of the largest, more "
            f"than {TOLERANCE:g}; use torch_export"
        )
    return difference


def largest_difference(file: Path, net: Encoder, program: Program) -> float:
    """How far ONNX Runtime's outputs lie from PyTorch's, as a share of the largest output of each kind.

    Batches of one, two and five images of noise of several sides, odd ones too, or as many recordings of several
    lengths.
    """
    session, worst = _session(file), 0.0
    for inputs in examples(net, program.side):
        fed = {name: value.numpy() for name, value in zip(program.inputs, inputs, strict=True)}
        got = tuple(map(torch.from_numpy, session.run(list(program.outputs), fed)))
        worst = max(worst, apart(got, outputs_of(net, inputs)))
    return worst


@dataclass(frozen=True)
class Int8Cost:
    """What whole numbers of 8 bits change, on images that their ranges were not taken from.

    Attributes:
        calibrated, measured: images of which the ranges were taken, and others that were compared.
        cosine, lowest: cosine between an image's features in both forms, on average and at least.
        neighbour: share of the images whose nearest neighbour among the others stays the same.
        accuracy: (before, after) share of the images whose nearest neighbour has their label; None without labels.
        megabytes: (before, after) of the files.
    """

    calibrated: int
    measured: int
    cosine: float
    lowest: float
    neighbour: float
    accuracy: tuple[float, float] | None
    megabytes: tuple[float, float]

    def text(self) -> str:
        """For people."""
        cost = (
            ""
            if self.accuracy is None
            else f", nearest-neighbour accuracy {self.accuracy[0]:.1%} -> {self.accuracy[1]:.1%}"
        )
        return (
            f"int8 weights and activations, {self.megabytes[0]:.2f} -> {self.megabytes[1]:.2f} MB, ranges from "
            f"{counted(self.calibrated, 'image')}; on {counted(self.measured, 'other')} cosine to float32 features "
            f"{self.cosine:.4f} on average and {self.lowest:.4f} at least, the same nearest neighbour for "
            f"{self.neighbour:.1%}{cost}"
        )


def write_int8(
    out: Path, file: Path, images: Sequence[Tensor], labels: NDArray[np.int64] | None, facts: Mapping[str, str]
) -> Int8Cost:
    """Write an ONNX file of an encoder of images with 8-bit weights and activations, and measure what that costs.

    Convolutions and products of matrices are quantised, weights by channel, as ONNX Runtime's static quantisation does
    it (pairs of QuantizeLinear and DequantizeLinear), with the smallest and largest activations of half the images, at
    most 256; the others are compared.

    Args:
        out: a new file.
        file: what `write_onnx` wrote.
        images: float32 [C, H, W] each, preprocessed, in an order that tells nothing.
        labels: [n] of the images, where they have any.
        facts: what the file's metadata say, by name.

    Raises:
        UserError: fewer than eight images.
    """
    if len(images) < 8:
        raise UserError(
            f"--int8 has {counted(len(images), 'image')}: give 8 or more, half of them to measure what int8 costs"
        )
    onnx = importlib.import_module("onnx")
    quantization = importlib.import_module("onnxruntime.quantization")
    known = min(len(images) // 2, _CALIBRATED)
    with _quiet(), tempfile.TemporaryDirectory(prefix=".onnx-", dir=_folder(out)) as folder:
        made = Path(folder) / out.name
        quantization.quantize_static(
            str(file), str(made), _Calibration(images[:known]), per_channel=True,
            quant_format=quantization.QuantFormat.QDQ,
        )  # fmt: skip
        model = onnx.load(str(made))
        onnx.helper.set_model_props(model, dict(facts))
        write_atomically(made, lambda stream: stream.write(model.SerializeToString()))
        before, after = (_features(_session(each), images[known:]) for each in (file, made))
        megabytes = (file.stat().st_size / 1e6, made.stat().st_size / 1e6)
        _moved(Path(folder), out)
    cosines = (before * after).sum(1)
    neighbours = [_neighbours(features) for features in (before, after)]
    accuracy = None
    if labels is not None:
        of = labels[known:]
        accuracy = (float((of[neighbours[0]] == of).mean()), float((of[neighbours[1]] == of).mean()))
    same = float((neighbours[0] == neighbours[1]).mean())
    return Int8Cost(
        known, len(images) - known, float(cosines.mean()), float(cosines.min()), same, accuracy, megabytes
    )  # fmt: skip


class _Calibration:
    """Batches of images of one size for ONNX Runtime, as its CalibrationDataReader gives them."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self._batches = _batches(images)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch by the name of the input; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def _batches(images: Sequence[Tensor]) -> Iterator[NDArray[np.float32]]:
    """Neighbours of one size together, at most `_BATCH`."""
    begin = 0
    while begin < len(images):
        end = begin + 1
        while end < min(begin + _BATCH, len(images)) and images[end].shape == images[begin].shape:
            end += 1
        yield torch.stack(list(images[begin:end])).numpy()
        begin = end


def _features(session: Any, images: Sequence[Tensor]) -> NDArray[np.float64]:
    """[n, d], of length 1."""
    parts = [session.run(["features"], {"images": batch})[0] for batch in _batches(images)]
    features = np.concatenate(parts).astype(np.float64)
    unit: NDArray[np.float64] = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return unit


def _neighbours(features: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n] the nearest of the others to each."""
    similar = features @ features.T
    np.fill_diagonal(similar, -np.inf)
    nearest: NDArray[np.int64] = similar.argmax(1)
    return nearest


def metadata(
    preprocessing: Mapping[str, Any] | None, spec: Mapping[str, Any], classes: Sequence[str] | None
) -> dict[str, str]:
    """What a file says of itself: the preprocessing of its images, the encoder's specification, names of classes."""
    facts: dict[str, Any] = {"twofold.encoder": spec}
    if preprocessing is not None:
        facts["twofold.preprocessing"] = preprocessing
    if classes is not None:
        facts["twofold.classes"] = list(classes)
    return {name: json.dumps(value) for name, value in facts.items()}


def _session(file: Path) -> Any:
    runtime = importlib.import_module("onnxruntime")
    return runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def _bytes(net: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))


def _folder(out: Path) -> Path:
    """Where a file is made before it gets its name: beside it, so that it can be renamed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}") from error
    return out.parent


def _moved(folder: Path, out: Path) -> tuple[Path, ...]:
    """Move what was made to its place, the file that names the others last."""
    made = sorted(folder.iterdir(), key=lambda path: path.name == out.name)
    try:
        for path in made:
            if (target := out.parent / path.name).exists():
                raise UserError(f"{target} exists already; choose another --out")
        for path in made:
            shutil.move(path, out.parent / path.name)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}") from error
    return tuple(out.parent / path.name for path in reversed(made))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own versions and passes, and the quantiser's on preprocessing."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
