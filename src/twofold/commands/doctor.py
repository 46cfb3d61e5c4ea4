"""`twofold doctor`: what this machine and this installation can do, and whether a training step works."""

from __future__ import annotations

import importlib.util
import math
import platform
import shutil
import tempfile
import time
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import ArgumentParser

from twofold.commands.arguments import new_parser
from twofold.commands.pretrain import pretrain
from twofold.console import console
from twofold.devices import available_memory, choose_device, choose_precision, usable_cores
from twofold.results import in_json
from twofold.text import counted
from twofold.versions import package_version

State = Literal["ok", "missing", "fault"]
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "speech": (("soundfile", "soxr", "jiwer"), "recordings, and word error rates"),
    "av": (("av",), "m4a, mp4, webm and other recordings that need FFmpeg"),
    "shards": (("datasets", "webdataset"), "Hugging Face data sets, streams into archives"),
    "dicom": (("pydicom",), "DICOM files"),
    "bands": (("imagecodecs",), "compressed TIFF files of many bands"),
    "timm": (("timm",), "timm's encoders, LAMB"),
    "search": (("faiss",), "search among many examples, .faiss files"),
    "onnx": (("onnx", "onnxruntime", "onnxscript"), "export to ONNX"),
    "track": (("tensorboard",), "--training.track tensorboard"),
    "completion": (("shtab",), "completion by the shell"),
    "demo": (("mlxtend",), "`twofold demo`"),
}
"""What each extra installs and gives."""
_ROOM = 2**30
"""Bytes on the disk below which a run may find no room for its checkpoints."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its state, and what was found, in words."""

    name: str
    state: State
    words: str


@dataclass(frozen=True)
class DoctorResult:
    """All that was looked at; `status` is 1 where something has a fault."""

    checks: tuple[Check, ...]

    @property
    def status(self) -> int:
        """The command's exit status."""
        return int(any(check.state == "fault" for check in self.checks))

    @property
    def metrics(self) -> dict[str, float]:
        """Nothing is measured."""
        return {}

    def text(self) -> str:
        """For people."""
        width = max(len(check.name) for check in self.checks)
        lines = [f"{check.state:<7}  {check.name:<{width}}  {check.words}" for check in self.checks]
        faults = [check.name for check in self.checks if check.state == "fault"]
        end = f"to be mended: {', '.join(faults)}" if faults else "nothing to mend; what is missing is optional"
        return "\n".join([*lines, end])

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {"status": self.status, **in_json(self)}


def doctor() -> DoctorResult:
    """Look at Python, PyTorch, devices, memory, disk and extras, and train one step in a temporary folder."""
    return DoctorResult((*_installation(), *_machine(), *_extras(), _guarded("training step", _step)))


def _installation() -> Iterator[Check]:
    yield Check("twofold", "ok", package_version("twofold"))
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        yield Check("torch", "ok", f"{torch.__version__}, torchvision {version('torchvision')}")
    except PackageNotFoundError:
        yield Check("torch", "fault", f"{torch.__version__} without torchvision: pip install torchvision")


def _machine() -> Iterator[Check]:
    yield _guarded("device", _device)
    yield Check(
        "threads",
        "ok",
        f"{torch.get_num_threads()} of PyTorch's, on {counted(usable_cores(), 'core')} (OMP_NUM_THREADS, --threads)",
    )
    yield Check("memory", "ok", f"{available_memory() / 2**30:.1f} GiB free")
    free = shutil.disk_usage(Path.cwd()).free
    words = f"{free / 2**30:.1f} GiB free in {Path.cwd()}"
    yield Check("disk", "ok", words) if free > _ROOM else Check("disk", "fault", f"{words}: a run may find no room")
    yield _guarded("temporary files", _temporary)
    yield _browser()


def _device() -> str:
    device = choose_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return f"{device.type} ({name}); auto trains in {choose_precision('auto', device)}"


def _temporary() -> str:
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    return tempfile.gettempdir()


def _browser() -> Check:
    try:  # asks which there is, and opens none
        return Check("browser", "ok", f"{webbrowser.get().name} can show a report")
    except webbrowser.Error:
        return Check("browser", "missing", "none here: copy a report.html, which is one file, to where there is one")


def _extras() -> Iterator[Check]:
    for extra, (modules, gives) in EXTRAS.items():
        lacking = [name for name in modules if importlib.util.find_spec(name) is None]
        words = gives if not lacking else f'{gives}: pip install "twofold[{extra}]"'
        yield Check(f"[{extra}]", "missing" if lacking else "ok", words)


def _guarded(name: str, look: Callable[[], str]) -> Check:
    """What a look finds, or that it failed and how."""
    try:
        return Check(name, "ok", look())
    except Exception as error:  # whatever is broken here is what is asked for
        first = (str(error).strip() or "no word").splitlines()[0]
        return Check(name, "fault", f"{type(error).__name__}: {first}")


def _step() -> str:
    """Train a small encoder for one step, with data, views, loss, checkpoint and file; what that took, in words."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    quiet, console.quiet = console.quiet, True
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = pretrain(
                pixels, Path(folder) / "run", epochs=1, batch=8, report=False, views={"size": 16},
                encoder={"name": "resnet10", "width": 0.125}, monitor={"every": 0},
            )  # fmt: skip
            loss = run.metrics["loss"]
    finally:
        console.quiet = quiet
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss of one step is {loss}")
    return f"SimCLR on 8 images, loss {loss:.3f}, {time.monotonic() - began:.1f} s"


def parser() -> ArgumentParser:
    """Of `twofold doctor`."""
    return new_parser("Tell what this machine and this installation can do, and whether a training step works.")


def run(options: dict[str, Any]) -> DoctorResult:  # noqa: ARG001
    """`twofold doctor`."""
    return doctor()
