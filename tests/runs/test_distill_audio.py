"""A fine-tuned speech run teaches another speech encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sound_files import RATE, speech_folder
from twofold.commands.distill import distill
from twofold.commands.finetune import finetune
from twofold.encoders import SpeechEncoder, Waves, read_header, save_encoder
from twofold.errors import Stopped, UserError
from twofold.heads import Classifier
from twofold.options import flatten, merge
from twofold.runs.teacher import TeacherSource, load_teacher
from twofold.training.inputs import TaughtView
from twofold.training.loop import Training

TINY: dict[str, Any] = {"mels": 20, "width": 16, "layers": 1, "heads": 2, "hidden": 32, "sample_rate": RATE}
TRAINING = {"device": "cpu", "precision": "fp32", "log_every": 2, "checkpoint_every": 2}
OPTIONS: dict[str, Any] = {"epochs": 2.0, "batch": 8, "seed": 3, "training": TRAINING, "data.workers": 0}


def flat(more: dict[str, Any]) -> dict[str, Any]:
    """The options with others over them, dotted."""
    return flatten(merge(OPTIONS, more))


SMALL = {"name": "speech:small", "speech": TINY | {"width": 8}}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech_folder(tmp_path_factory.mktemp("data") / "clips", 2, 8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder as pretraining leaves it."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("base") / "encoder.safetensors"
    save_encoder(file, SpeechEncoder(**TINY, low_hz=60.0, cmvn="utterance_mean", dropout=0.0, stack=3))
    return file


@pytest.fixture(scope="module")
def teacher(base: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    finetune(base, clips, out, **flat({"epochs": 20.0}))
    return out


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """(index, inputs) of every step."""
    steps: list[Any] = []
    real = TaughtView.__call__

    def spy(self: TaughtView[Any, Any], batch: Any) -> Any:
        inputs = real(self, batch)
        steps.append((batch.index, inputs))
        return inputs

    monkeypatch.setattr(TaughtView, "__call__", spy)
    return steps


def test_online_targets_are_of_the_view_that_the_student_sees(
    teacher: Path, clips: Path, tmp_path: Path, seen: list[Any]
) -> None:
    result = distill(teacher, clips, tmp_path / "run", encoder=SMALL, **OPTIONS)
    net = load_teacher(teacher / "encoder.safetensors")
    assert len(seen) == 4  # 16 recordings twice in batches of 8
    with torch.no_grad():
        for _, inputs in seen:
            assert isinstance(inputs.a, Waves)
            assert inputs.labels is None
            torch.testing.assert_close(inputs.teacher_logits, net(inputs.a), rtol=1e-4, atol=1e-4)
    assert "recordings" in result.text()
    assert result.result.comparison is not None
    assert result.result.comparison.images == 16
    assert result.result.comparison.student_parameters < result.result.comparison.teacher_parameters
    assert read_header(tmp_path / "run" / "encoder.safetensors")["spec"]["width"] == 8


def test_cached_targets_are_of_the_recording_as_it_is_and_labels_are_learned(
    teacher: Path, clips: Path, tmp_path: Path, seen: list[Any]
) -> None:
    from twofold.data import open_source

    distill(teacher, clips, tmp_path / "run", encoder=SMALL, targets="cached", alpha=0.5, labels="6", **OPTIONS)
    net, source = load_teacher(teacher / "encoder.safetensors"), open_source(clips).at_rate(RATE)
    labels = {}
    with torch.no_grad():
        for index, inputs in seen:
            whole = Waves.of([torch.from_numpy(source.read(i)) for i in index.tolist()])
            torch.testing.assert_close(inputs.teacher_logits, net(whole), rtol=1e-4, atol=1e-4)
            labels |= dict(zip(index.tolist(), inputs.labels.tolist(), strict=True))
    assert sum(label >= 0 for label in labels.values()) == 6
    assert all(label in (-1, source.labels[i]) for i, label in labels.items())


def test_the_student_is_built_as_its_teacher_unless_told_otherwise(
    teacher: Path, base: Path, clips: Path, tmp_path: Path
) -> None:
    spec = read_header(teacher / "encoder.safetensors")["spec"]
    assert TeacherSource(teacher / "encoder.safetensors").student_options() == {
        "name": "speech:small",
        "speech": {name: TINY[name] for name in ("mels", "width", "layers", "heads", "hidden")},
    }
    distill(base, clips, tmp_path / "like", teacher_labels="all", **OPTIONS)
    assert read_header(tmp_path / "like" / "encoder.safetensors")["spec"] == spec
    distill(teacher, clips, tmp_path / "narrow", **flat({"encoder": {"speech": {"width": 8}}}))
    assert read_header(tmp_path / "narrow" / "encoder.safetensors")["spec"] == spec | {"width": 8}


def test_a_student_learns_what_its_teacher_says(teacher: Path, clips: Path, tmp_path: Path) -> None:
    options = flat({"epochs": 40.0, "optim": {"name": "adamw", "lr": 5e-3}, "waves": {"chain": 0.0}})
    result = distill(teacher, clips, tmp_path / "run", encoder=SMALL, temperature=1.0, **options)
    assert result.result.comparison is not None
    assert result.result.comparison.agreement > 0.85


@pytest.mark.parametrize("stop_at", [1, 3])
def test_stopped_and_resumed_it_is_the_same_run(
    teacher: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    options = OPTIONS | {"encoder": SMALL}
    whole = distill(teacher, clips, tmp_path / "whole", **options)
    real = Training.agree
    monkeypatch.setattr(Training, "agree", lambda self, asked: self.step == stop_at or real(self, asked))
    with pytest.raises(Stopped, match="--resume"):
        distill(teacher, clips, tmp_path / "parts", **options)
    monkeypatch.undo()
    parts = distill(teacher, clips, tmp_path / "parts", resume=True, **options)
    a, b = (load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert parts.result.comparison == whole.result.comparison
    assert json.loads((tmp_path / "parts" / "distillation.json").read_text())["kind"] == "audio"


def test_a_teacher_of_other_examples_is_refused_in_one_sentence(teacher: Path, clips: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    with pytest.raises(UserError, match=r"takes recordings, and .*photos holds images: give a teacher of images"):
        distill(teacher, tmp_path / "photos", tmp_path / "run", **OPTIONS)
    with pytest.raises(UserError, match=r"takes images, and .*clips holds recordings: give a teacher of recordings"):
        distill(torch.nn.Flatten(), clips, tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


def test_both_hear_one_view_only_at_one_rate(clips: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = SpeechEncoder(**TINY | {"sample_rate": 16000})
    save_encoder(
        tmp_path / "wide.safetensors", encoder, classifier=Classifier(encoder.feature_dim, 2), classifier_layer=0
    )
    with pytest.raises(UserError, match=r"16,000 Hz and the student at 8,000 Hz.*sample_rate 16000, or --targets"):
        distill(tmp_path / "wide.safetensors", clips, tmp_path / "run", encoder=SMALL, **OPTIONS)
    result = distill(tmp_path / "wide.safetensors", clips, tmp_path / "run", encoder=SMALL, targets="cached", **OPTIONS)
    assert result.result.complete
