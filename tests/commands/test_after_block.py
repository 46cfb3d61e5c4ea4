"""`twofold finetune --after_block`: what of the encoder is trained and what stays, by the command."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import OPTIONS, images
from torch import Tensor, nn

import twofold
from twofold.cli import main
from twofold.commands.finetune import finetune
from twofold.encoders import adapt
from twofold.encoders.audio.encoder import SpeechEncoder
from twofold.encoders.base import Encoder, InputSpec
from twofold.errors import Stopped, UserError
from twofold.evaluation.frozen import NotFrozenError
from twofold.heads import ProjectionHead
from twofold.methods.supervised import Supervised
from twofold.training.loop import Training

TINY: dict[str, Any] = {"epochs": 1, "batch": 16, "training": {"device": "cpu", "precision": "fp32"}}
TEST = images(40, seed=1)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = OPTIONS | {"epochs": 1, "monitor": {"every": 0}, "head": {"layers": 2, "out_dim": 8}}
    return twofold.pretrain(images(), tmp_path_factory.mktemp("runs") / "base", report=False, **options).path


def changed(before: Path, after: Path) -> set[str]:
    """Tensors of encoder and head that fine-tuning changed."""
    old, new = (load_file(path / "encoder.safetensors") for path in (before, after))
    return {name.removeprefix("encoder.") for name in old if not torch.equal(old[name], new[name])}


@pytest.mark.parametrize("block", [0, 1, 3])
def test_the_command_trains_what_follows_the_block(block: int, pretrained: Path, tmp_path: Path) -> None:
    for name, (x, y) in (("train", images()), ("test", TEST)):
        np.savez(tmp_path / f"{name}.npz", images=x, labels=y)
    words = ["finetune", str(pretrained), str(tmp_path / "train.npz"), "--test", str(tmp_path / "test.npz")]
    words += ["--after_block", str(block), "--out", str(tmp_path / "run"), "--epochs", "1", "--batch", "16"]
    assert main([*words, "--training.device", "cpu", "--training.precision", "fp32"]) == 0
    found = changed(pretrained, tmp_path / "run")
    stages = {name.split(".")[0] for name in found if "running" not in name}
    assert stages == {f"layer{stage}" for stage in range(block + 1, 5)}
    # as in the official code, batch norm of what is frozen sees the batch and moves its averages
    assert {"bn1.running_mean", "bn1.running_var"} <= found
    text = json.loads((tmp_path / "run" / "result.json").read_text())["text"]
    below = ("the stem and 1 block" if block == 1 else f"the stem and {block} blocks") if block else "the stem"
    assert f"all above {below} fine-tuned, {below} frozen and in training mode" in text


def test_in_inference_mode_the_averages_below_stay_too(pretrained: Path, tmp_path: Path) -> None:
    report = finetune(
        pretrained, images(), tmp_path / "run", test=TEST, after_block=2, frozen_mode="inference", **TINY
    )  # fmt: skip
    found = changed(pretrained, report.path)
    assert {name.split(".")[0] for name in found} == {"layer3", "layer4"}
    assert any("running" in name for name in found)


def test_a_linear_classifier_on_batch_statistics_moves_averages_alone(pretrained: Path, tmp_path: Path) -> None:
    """TF2 with fine_tune_after_block 4, see trainstep_linear_eval_block4."""
    options = TINY | {"freeze": "encoder", "frozen_mode": "training"}
    report = finetune(pretrained, images(), tmp_path / "run", test=TEST, **options)
    found = changed(pretrained, report.path)
    assert found
    assert all("running" in name for name in found)
    assert "all below frozen and in training mode" in report.result.text


def test_all_blocks_stay_and_the_heads_layer_learns(pretrained: Path, tmp_path: Path) -> None:
    report = finetune(pretrained, images(), tmp_path / "run", test=TEST, after_block=4, from_head=1, **TINY)
    learned = {name for name in changed(pretrained, report.path) if "running" not in name}
    assert learned == {"head.layers.0.0.weight", "head.layers.0.1.weight", "head.layers.0.1.bias"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"after_block": 4}, "--after_block 4 leaves nothing but the classifier to train, which is --freeze encoder"),
        ({"after_block": 4, "from_head": 1, "freeze": "head"}, "leaves nothing but the classifier"),
        ({"after_block": 5}, "--after_block 5: the encoder has 4 blocks; give 0"),
        ({"after_block": -1}, "--after_block -1: the encoder has 4 blocks; give 0"),
        ({"after_block": 2, "freeze": "encoder"}, "--after_block 2 has no effect with --freeze encoder"),
        ({"after_block": 2, "from_scratch": True}, "--from_scratch has nothing to keep: leave --after_block 2 out"),
        ({"frozen_mode": "training"}, "--frozen_mode training has no effect where nothing of the encoder is frozen"),
        ({"frozen_mode": "inference", "freeze": "head"}, "--frozen_mode inference has no effect where nothing"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], said: str, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        finetune(pretrained, images(), tmp_path / "run", test=TEST, **options, **TINY)
    assert not (tmp_path / "run").exists()


def test_a_frozen_block_that_moves_is_an_error(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof can fail: here the second stage is trained in spite of --after_block 2."""
    keep = Supervised._keep

    def forgetful(method: Supervised, after_block: int) -> None:
        keep(method, after_block)
        method.encoder.layer2.requires_grad_(True)  # type: ignore[union-attr, operator]

    real = Supervised.kept
    monkeypatch.setattr(Supervised, "_keep", forgetful)
    monkeypatch.setattr(
        Supervised, "kept", lambda self: real(self) | {n for n, _ in self.encoder.named_parameters() if "layer2" in n}
    )
    with pytest.raises(NotFrozenError, match=r"changed: layer2\.0\.bn1\.bias"):
        finetune(pretrained, images(), tmp_path / "run", test=TEST, after_block=2, **TINY)


def test_a_stopped_run_goes_on_bit_for_bit(pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TINY | {"after_block": 1, "epochs": 2, "training": TINY["training"] | {"checkpoint_every": 2}}
    finetune(pretrained, images(), tmp_path / "whole", test=TEST, **options)
    update = Training.update

    def stopping(training: Any, *arguments: Any) -> Any:
        output = update(training, *arguments)
        if training.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return output

    monkeypatch.setattr(Training, "update", stopping)
    with pytest.raises(Stopped):
        finetune(pretrained, images(), tmp_path / "run", test=TEST, **options)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"--after_block is 2, but the run in .* was started with 1"):
        finetune(pretrained, images(), tmp_path / "run", test=TEST, resume=True, **(options | {"after_block": 2}))
    finetune(pretrained, images(), tmp_path / "run", test=TEST, resume=True, **options)
    whole, parted = (load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(value, parted[name]) for name, value in whole.items())


def test_chunks_and_their_advice_know_frozen_blocks(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(pretrained, images(), tmp_path / "chunks", test=TEST, after_block=2, micro_batch=8, **TINY)
    assert {n.split(".")[0] for n in changed(pretrained, tmp_path / "chunks") if "running" not in n} == {
        "layer3", "layer4",
    }  # fmt: skip

    def spent(_training: Any) -> bool:
        raise torch.OutOfMemoryError("spent")

    monkeypatch.setattr(Training, "fit", spent)
    with pytest.raises(UserError, match=r"--batch 16; --micro-batch 8 fits"):
        finetune(pretrained, images(), tmp_path / "run", test=TEST, after_block=2, **TINY)


class Plain(nn.Module):
    """A module whose structure tells no blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 6, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class Stacked(nn.Module):
    """A transformer's outline: a patch layer, positions, blocks without batch norm or dropout, a last norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, 6, 4, 4), nn.Parameter(torch.zeros(6))
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(3)))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.norm(self.blocks(tokens)).mean(1)


def supervised(encoder: Encoder, **options: Any) -> Supervised:
    return Supervised(encoder, ProjectionHead(encoder.feature_dim), 2, **options)


def learning(encoder: Encoder) -> list[str]:
    return [name.removeprefix("module.") for name, p in encoder.named_parameters() if p.requires_grad]


def test_layers_of_a_transformer_are_blocks() -> None:
    encoder = adapt(Stacked(), size=8)
    supervised(encoder, after_block=0)
    assert learning(encoder)[0] == "blocks.0.0.weight"
    supervised(encoder, after_block=2)
    assert learning(encoder) == ["blocks.2.0.weight", "blocks.2.0.bias", "norm.weight", "norm.bias"]
    supervised(encoder, after_block=3)  # the last norm follows them
    assert learning(encoder) == ["norm.weight", "norm.bias"]
    with pytest.raises(UserError, match="--frozen_mode inference has no effect: what is frozen has neither"):
        supervised(encoder, after_block=1, frozen_mode="inference")


def test_an_encoder_without_blocks_says_so() -> None:
    with pytest.raises(UserError, match=r"--after_block 1: the structure of this encoder \(CustomEncoder\) tells no"):
        supervised(adapt(Plain()), after_block=1)

    class Nothing(Encoder):
        def __init__(self) -> None:
            super().__init__(InputSpec(3), 3)
            self.layer = nn.Linear(3, 3)

        def features(self, x: Tensor) -> Tensor:
            return self.layer(x.mean((2, 3)))

    with pytest.raises(UserError, match=r"this encoder \(Nothing\) tells no blocks"):
        supervised(Nothing(), after_block=0)


def test_layers_of_a_speech_encoder_are_blocks() -> None:
    encoder = SpeechEncoder(mels=20, width=16, layers=3, heads=2, hidden=32, dropout=0.1)
    supervised(encoder, after_block=2, frozen_mode="inference").train()
    assert {name.split(".")[2] for name in learning(encoder)} == {"2"}
    assert [layer.training for layer in encoder.transformer.layers] == [False, False, True]
