"""The one builder: what is asked of how a run computes is done, whatever the kind of run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from twofold.commands.distill import distill
from twofold.commands.finetune import finetune
from twofold.commands.pretrain import pretrain
from twofold.encoders import EncoderConfig, adapt, build_encoder, load_classifier, load_encoder, save_encoder
from twofold.errors import UserError
from twofold.heads import Classifier
from twofold.training.loop import Training

SHORT: dict[str, Any] = {
    "epochs": 1.0, "batch": 16, "seed": 3, "views": {"size": 16},
    "training": {"device": "cpu", "precision": "fp32", "channels_last": False},
}  # fmt: skip
NET = {"name": "resnet10", "width": 0.125, "stem": "cifar"}


def images(seed: int = 0) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (32, 16, 16, 3), generator=generator, dtype=torch.uint8)
    return pixels.numpy(), (torch.arange(32) % 2).numpy()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of an encoder with a classifier."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "encoder.safetensors"
    encoder = build_encoder(EncoderConfig.of(name="resnet10", width=0.125, stem="cifar", channels=3), 16)
    classifier = Classifier(encoder.feature_dim, 2)
    nn.init.normal_(classifier.weight)
    save_encoder(path, encoder, extra={"options": {"views": {"size": 16}}}, classifier=classifier)
    return path


def train(kind: str, teacher: Path, out: Path, **options: Any) -> None:
    options = {**SHORT, **options}
    if kind == "pretrain":
        pretrain(images(), out, report=False, encoder=options.pop("encoder", NET), **options)
    elif kind == "finetune":
        finetune(teacher, images(), out, test=images(1), **options)
    else:
        distill(teacher, images(), out, encoder=options.pop("encoder", NET), **options)


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "distill"])
def test_compile_compiles_the_encoder(
    kind: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *_args, **_more: compiled.append(type(self).__name__))
    train(kind, teacher, tmp_path / "plain")
    assert compiled == []
    train(kind, teacher, tmp_path / "compiled", training={**SHORT["training"], "compile": True})
    assert compiled == ["ResNet"]


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "distill"])
def test_out_of_memory_names_a_micro_batch_that_fits(
    kind: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(_training: Training[Any, Any]) -> bool:
        raise torch.OutOfMemoryError("a first line\nand more")

    monkeypatch.setattr(Training, "fit", spent)
    with pytest.raises(UserError, match=r"ran out with --batch 16; --micro-batch 8 fits.*\(a first line\)"):
        train(kind, teacher, tmp_path / "run")


def test_out_of_memory_of_a_frozen_encoder_names_what_helps(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(_training: Training[Any, Any]) -> bool:
        raise torch.OutOfMemoryError("spent")

    monkeypatch.setattr(Training, "fit", spent)
    with pytest.raises(UserError, match=r"--batch 16: choose a smaller --batch or --views\.size"):
        train("finetune", teacher, tmp_path / "run", freeze="encoder")
    with pytest.raises(UserError, match=r"--micro_batch 4 has no effect with --freeze encoder"):
        train("finetune", teacher, tmp_path / "other", freeze="encoder", micro_batch=4)


class Small(nn.Module):
    """No batch statistics, which chunks would change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows = len(x)
        return self.out(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "distill"])
def test_chunks_change_nothing_but_memory(kind: str, teacher: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Small()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    if kind == "finetune":
        save_encoder(tmp_path / "own.safetensors", adapt(module, 3), extra={"options": {"views": {"size": 16}}})
    results = []
    sgd = {"name": "sgd", "lr": 0.1, "lr_rule": "none"}  # Adam would make whole steps of rounding
    for micro_batch in (None, 4):
        out = tmp_path / f"{micro_batch}"
        module.load_state_dict(start)
        if kind == "finetune":
            finetune(
                tmp_path / "own.safetensors", images(), out, test=images(1), encoder=module, micro_batch=micro_batch,
                optim=sgd, **SHORT,
            )  # fmt: skip
        else:
            train(kind, teacher, out, encoder=module, micro_batch=micro_batch, optim=sgd)
        results.append(load_encoder(out / "encoder.safetensors", Small()).state_dict())
    assert any(not torch.equal(value, start[name.removeprefix("module.")]) for name, value in results[0].items())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-3, atol=1e-5)


def test_study_operators_are_applied_to_what_a_student_sees(teacher: Path, tmp_path: Path) -> None:
    """They were accepted and ignored before."""
    for name, more in (("plain", {}), ("cut", {"operators": ["cutout"]})):
        train("distill", teacher, tmp_path / name, views={"size": 16, **more})
    plain, cut = (load_classifier(tmp_path / name / "encoder.safetensors") for name in ("plain", "cut"))
    assert plain is not None
    assert cut is not None
    assert not torch.equal(plain[0].weight, cut[0].weight)
