"""Every option of every kind of run does something or is refused: none is accepted and ignored.

A tiny run is made with a recorder on the classes of options, which notes each field that is read by what builds or
trains (not by what checks, copies, stores or describes options). A field that is not read is then set, and has to be
refused by its name.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from PIL import Image

from sound_files import speech_folder
from twofold.commands.distill import distill
from twofold.commands.finetune import finetune
from twofold.commands.pretrain import pretrain
from twofold.errors import UserError
from twofold.options import Leaf, fields_of, flatten, is_group, leaves, merge
from twofold.runs.config import DistillConfig, FinetuneConfig, RunConfig

CPU = {"device": "cpu", "precision": "fp32", "log_every": 1}
SHORT: dict[str, Any] = {"epochs": 1.0, "batch": 8, "training": CPU, "data": {"workers": 0}}
NET: dict[str, Any] = {
    "image": {"name": "resnet10", "width": 0.125, "stem": "cifar"},
    "audio": {"name": "speech:small", "speech": {"mels": 20, "width": 16, "layers": 1, "heads": 2, "hidden": 32}},
}
OWN: dict[str, Any] = {
    "pretrain": {"head": {"out_dim": 8}, "monitor": {"every": 1, "knn_k": 3}},
    "finetune": {"labels": "8/class"},
    "distill": {"alpha": 0.5},
}
CONFIGS: dict[str, Any] = {"pretrain": RunConfig, "finetune": FinetuneConfig, "distill": DistillConfig}

BESIDE = ("options", "config.py", "defaults", "presets.py", "rundir.py")
"""Files that check, copy and store options: that they read one is no use of it."""
DESCRIBING = ("__post_init__", "_text", "as_run")

OF_THE_SOURCE = {
    "data.root": "where data sets called by name live",
    "data.download": "of data sets called by name",
    "data.encoding": "of manifests, lists and texts",
    "data.outside": "of what names files: manifests, tables, cells (tests/data/test_outside.py)",
}
"""Read for some sources alone, not for the folders of this test (see tests/data/test_torchvision_sets.py)."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for label in range(2):
        (root / "photos" / f"class{label}").mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (20 + i % 3, 18, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / f"class{label}" / f"{i}.png")
    return {"image": root / "photos", "audio": speech_folder(root / "clips", 2, 12)}


@pytest.fixture(scope="module")
def chain(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., set[str]]:
    """Makes a run of a kind on examples of a kind, with more options; gives the fields that were read."""
    root = tmp_path_factory.mktemp("runs")

    def make(run: str, kind: str, more: dict[str, Any] | None = None, name: str = "") -> set[str]:
        out = root / (name or f"{run}-{kind}")
        for before in {"finetune": ["pretrain"], "distill": ["finetune"]}.get(run, []):
            if not (root / f"{before}-{kind}").exists():
                make(before, kind)
        views = {"views": {"size": 24, "blur": 1.0}} if kind == "image" else {}
        encoder = {"encoder": NET[kind]} if run != "finetune" else {}
        options = merge(SHORT, OWN[run], views, encoder, more or {})
        with recorded(CONFIGS[run]) as fields:
            if run == "pretrain":
                pretrain(data[kind], out, report=False, **flatten(options))
            elif run == "finetune":
                finetune(root / f"pretrain-{kind}", data[kind], out, **flatten(options))
            else:
                distill(root / f"finetune-{kind}", data[kind], out, **flatten(options))
        return fields

    return make


class recorded:
    """Inside, the dotted names of the options that are read are gathered in the set that it gives."""

    def __init__(self, config: type) -> None:
        self.prefixes = dict(groups(config))
        self.read: set[str] = set()

    def __enter__(self) -> set[str]:
        self.patch = pytest.MonkeyPatch()
        for cls, prefix in self.prefixes.items():
            self.patch.setattr(cls, "__getattribute__", self._noting(prefix, set(fields_of(cls))), raising=False)
        return self.read

    def _noting(self, prefix: str, names: set[str]) -> Callable[[Any, str], Any]:
        def noting(config: Any, name: str) -> Any:
            if name in names and _is_use():
                self.read.add(f"{prefix}{name}")
            return object.__getattribute__(config, name)

        return noting

    def __exit__(self, *_error: object) -> None:
        self.patch.undo()


def _is_use() -> bool:
    """Whether the code that reads is part of the package and does more than check, copy, store or describe options."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.endswith(("dataclasses.py", "copy.py")):
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    if "twofold" not in path.parts or frame.f_code.co_name in DESCRIBING:
        return False
    return not any(part.startswith(BESIDE) for part in path.parts[path.parts.index("twofold") :])


def groups(config: type, prefix: str = "") -> Iterator[tuple[type, str]]:
    """The class of each group of options, and what its options' names begin with."""
    yield config, prefix
    for name, leaf in fields_of(config).items():
        if is_group(leaf.type):
            yield from groups(leaf.type, f"{prefix}{name}.")


def another(leaf: Leaf) -> Any:
    """A value that is not the default."""
    kinds = [kind for kind in (get_args(leaf.type) or (leaf.type,)) if kind is not type(None)]
    if get_origin(leaf.type) is Literal:
        return next(value for value in get_args(leaf.type) if value != leaf.default)
    if get_origin(leaf.type) is tuple or isinstance(leaf.default, tuple):
        return [1.0] if not leaf.default else [value * 0.9 for value in leaf.default]
    for kind in kinds:
        if get_origin(kind) is Literal:
            return next(value for value in get_args(kind) if value != leaf.default)
        if kind is bool:
            return not leaf.default
        if kind in (int, float):
            return kind(2) if not leaf.default else kind(leaf.default * 2)
        if kind is str:
            return "speaker"
        if get_origin(kind) is tuple:
            return [0.5, 0.5]
    raise AssertionError(f"{leaf.path}: no other value known for {leaf.type}")


SPECIAL: dict[str, Any] = {
    "encoder.zero_init_residual": False,  # true was the default of earlier versions, whose files say it of any encoder
    "optim.milestones": [1],
    "views.operators": ["cutout"],
    "data.bands": [1],
    "data.band_ranges": [[0.0, 1.0]],
    "waves.speeds": [0.5],
    "waves.pitches": [0.5],
}


@pytest.mark.parametrize("kind", ["image", "audio"])
@pytest.mark.parametrize("run", ["pretrain", "finetune", "distill"])
def test_each_option_is_used_or_refused(chain: Callable[..., set[str]], run: str, kind: str) -> None:
    read = chain(run, kind)
    assert {"epochs", "batch", "seed", "data.workers", "training.compile", "micro_batch"} <= read  # it does record
    ignored, unnamed = [], {}
    for leaf in leaves(CONFIGS[run]):
        if leaf.path in read or leaf.path in OF_THE_SOURCE:
            continue
        value = SPECIAL.get(leaf.path)
        value = another(leaf) if value is None else value
        try:
            chain(run, kind, {leaf.path: value}, name=f"{run}-{kind}-{leaf.path}")
        except UserError as error:
            group = leaf.path.rpartition(".")[0]
            names = (leaf.path, f"--{group}.* is for", f"--{group} are for", f"has no {group} ")
            if not any(name in str(error) for name in names):
                unnamed[leaf.path] = str(error)
        else:
            ignored.append(leaf.path)
    assert not ignored
    assert not unnamed


def test_the_recorder_sees_use_and_not_storage() -> None:
    config = RunConfig()
    with recorded(RunConfig) as fields:
        dataclasses.replace(config, seed=4)
        flatten(dataclasses.asdict(config))
    assert fields == set()
