"""`bn_momentum` and `global_bn` of every kind of run: local batch norm on two processes, and where they are refused.

Float64, so that 1e-9 after some steps shows equality of what is computed (see tests/methods/test_simclr_processes.py).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_build import NET, images, train
from torch import Tensor, nn

from processes import run_processes
from twofold.commands.pretrain import pretrain as command
from twofold.data import ArraySource
from twofold.distributed import batch_norm_layers
from twofold.encoders import EncoderConfig, ResNet, adapt, build_encoder, load_encoder, save_encoder
from twofold.errors import UserError
from twofold.heads import Classifier, HeadConfig
from twofold.losses import nt_xent
from twofold.methods import Inputs, MethodConfig, SimCLR
from twofold.runs import build as building
from twofold.runs import config as runs
from twofold.runs import pretrain
from twofold.runs.build import set_batch_norm
from twofold.runs.starting import start_accelerator
from twofold.studies.transfer import finetune as transfer
from twofold.training.loop import AnyTraining
from twofold.training.rundir import RunDirectory

N, STEPS, WORLD = 6, 3, 2
OPTIONS: dict[str, Any] = {
    "epochs": 2, "batch": N * WORLD, "views": {"size": 8}, "encoder": NET | {"channels": 3},
    "head": {"layers": 2, "out_dim": 6}, "method": {"name": "simclr", "temperature": 0.2},
    "optim": {"name": "sgd", "lr": 0.1, "lr_rule": "none", "weight_decay": 0.0, "schedule": "constant"},
    "training": {"device": "cpu", "precision": "fp32", "channels_last": False}, "monitor": {"every": 0},
}  # fmt: skip


def training_of(options: dict[str, Any], folder: Path) -> AnyTraining:
    """A run's training by what its options build, in float64."""
    source, run = ArraySource(np.zeros((48, 8, 8, 3), np.uint8)), RunDirectory(folder / "run")
    config = runs.build(options)
    training = pretrain.assemble(config, source, run, start_accelerator(config.training, run), None)
    training.method.double()
    return training


def views_of(step: int) -> Tensor:
    """[2, N of all ranks, 3, 8, 8]."""
    generator = torch.Generator().manual_seed(step)
    return torch.rand(2, N * WORLD, 3, 8, 8, dtype=torch.float64, generator=generator)


def local_steps(rank: int, options: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Steps of a run on this rank's rows: the state after each."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
    states = []
    with tempfile.TemporaryDirectory() as folder:
        training = training_of(options, Path(folder))
        model, optimizer = training.accelerator.prepare(training.method, training.optimizer)
        for step in range(STEPS):
            a, b = views_of(step)[:, rank * N : (rank + 1) * N]
            training.make_inputs = lambda _batch, a=a, b=b: Inputs(a, b)
            training.update(model, optimizer, SimpleNamespace(labels=None, index=torch.arange(N)))
            training.step += 1
            states.append({name: value.clone() for name, value in training.method.state_dict().items()})
    return states


def by_hand(options: dict[str, Any], folder: Path) -> list[dict[str, Tensor]]:
    """The same in one process: each rank's rows pass alone, the running averages are the mean of where each leads."""
    training, states = training_of(options, folder), []
    method, optimizer = training.method, training.optimizer
    assert isinstance(method, SimCLR)
    for step in range(STEPS):
        before = {name: value.clone() for name, value in method.named_buffers()}
        zs, after = [], []
        for rank in range(WORLD):
            for name, value in method.named_buffers():
                value.copy_(before[name])
            own = views_of(step)[:, rank * N : (rank + 1) * N]
            zs.append(method.head(method.encoder(torch.cat([*own]))).chunk(2))
            after.append({name: value.clone() for name, value in method.named_buffers()})
        nt_xent(*(torch.cat(side) for side in zip(*zs, strict=True)), 0.2).backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, value in method.named_buffers():
            value.copy_((after[0][name] + after[1][name]) / 2)
        states.append({name: value.clone() for name, value in method.state_dict().items()})
    return states


def test_local_batch_norm_sees_each_processs_rows_and_averages_over_ranks(tmp_path: Path) -> None:
    options = OPTIONS | {"global_bn": False, "bn_momentum": 0.3}
    expected = by_hand(options, tmp_path)
    for ours in run_processes(local_steps, WORLD, options, timeout=300):
        for step, state in enumerate(ours):
            for name, value in expected[step].items():
                torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-9, msg=f"{name}, step {step}")


def test_without_it_the_statistics_are_of_all_rows(tmp_path: Path) -> None:
    local = by_hand(OPTIONS | {"global_bn": False}, tmp_path)
    ranks = run_processes(local_steps, WORLD, OPTIONS | {"global_bn": True}, timeout=300)
    difference = (ranks[0][-1]["encoder.bn1.running_var"] - local[-1]["encoder.bn1.running_var"]).abs().max()
    assert torch.equal(ranks[0][-1]["encoder.bn1.running_var"], ranks[1][-1]["encoder.bn1.running_var"])
    assert difference > 1e-4


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "distill"])
def test_the_momentum_reaches_every_layer(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[set[float], set[bool]]] = []
    real = building.set_batch_norm

    def looking(config: Any, method: Any) -> None:
        real(config, method)
        layers = batch_norm_layers(method)
        found.append(({layer.momentum for layer in layers}, {layer.synchronized for layer in layers}))  # type: ignore[misc]

    monkeypatch.setattr(building, "set_batch_norm", looking)
    file = encoder_file(tmp_path)
    train(kind, file, tmp_path / "given", bn_momentum=0.25, global_bn=False)
    train(kind, file, tmp_path / "default")
    assert found == [({0.25}, {False}), ({0.1}, {True})]
    trained, other = (load_encoder(tmp_path / name / "encoder.safetensors") for name in ("given", "default"))
    assert not torch.equal(trained.bn1.running_mean, other.bn1.running_mean)


def encoder_file(folder: Path) -> Path:
    encoder = build_encoder(EncoderConfig.of(**NET, channels=3), 16)
    classifier = Classifier(encoder.feature_dim, 2)
    file = folder / "encoder.safetensors"
    save_encoder(file, encoder, extra={"options": {"views": {"size": 16}}}, classifier=classifier)
    return file


class Silent(nn.Module):
    """No batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Deaf(nn.Module):
    """Batch norm of a class that nobody knows."""

    class Norm(nn.BatchNorm2d):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 4, 3, 2), Deaf.Norm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bn_momentum": 1.5}, r"--bn_momentum must lie in \[0, 1\], got 1.5"),
        (
            {"bn_momentum": 0.2, "encoder": Silent(), "head.norm": False},
            "--bn_momentum 0.2 has no effect: no batch norm",
        ),
        ({"global_bn": True, "encoder": Silent(), "head.norm": False}, "--global_bn true has no effect: no batch norm"),
        ({"global_bn": False, "encoder": Deaf()}, "--global_bn false has no effect: Norm knows no other processes"),
        ({"global_bn": True, "method.name": "moco"}, "--global_bn true has no effect: MoCo keeps it local"),
    ],
)
def test_what_would_do_nothing_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    given = {"epochs": 1.0, "batch": 16, "views.size": 16, "training.device": "cpu", "encoder": NET, "data.workers": 0}
    with pytest.raises(UserError, match=said):
        command(images(), tmp_path / "run", report=False, **(given | options))
    assert not (tmp_path / "run").exists()


def test_mocos_key_encoder_has_the_momentum_too() -> None:
    method = MethodConfig.of(name="moco", queue=32, temperature=0.2).build(ResNet(10, 0.125, "cifar"), HeadConfig())
    set_batch_norm(SimpleNamespace(bn_momentum=0.4, global_bn=None), method)
    layers = batch_norm_layers(method)
    assert {layer.momentum for layer in layers} == {0.4}
    assert len(layers) == 2 * len(batch_norm_layers(method.encoder))


@pytest.mark.parametrize("options", [{"bn_momentum": 0.2}, {"global_bn": False}])
def test_a_frozen_encoder_refuses_them_unless_it_works_as_in_training(options: dict[str, Any], tmp_path: Path) -> None:
    file = encoder_file(tmp_path)
    with pytest.raises(UserError, match=f"--{next(iter(options))} .* has no effect: no batch norm"):
        train("finetune", file, tmp_path / "run", freeze="encoder", **options)
    train("finetune", file, tmp_path / "other", freeze="encoder", frozen_mode="training", **options)


def test_transfer_gives_no_momentum_to_an_encoder_without_batch_norm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    torch.manual_seed(0)
    save_encoder(tmp_path / "own.safetensors", adapt(Silent(), 3))

    def noted(_file: Any, _fit: Any, _scored: Any, _out: Any, options: dict[str, Any], **_more: Any) -> Any:
        given.append(options)
        raise UserError("seen")

    monkeypatch.setattr(transfer, "finetune", noted)
    parts = SimpleNamespace(fit=range(20), validation=range(4), whole=range(24), test=range(4), words="")
    for file, module in ((tmp_path / "own.safetensors", Silent()), (encoder_file(tmp_path), None)):
        with pytest.raises(UserError, match="seen"):
            transfer.finetune_grid(
                file, "cifar10", parts, tmp_path, transfer.Budget(), 16, "antialias", module=module  # type: ignore[arg-type]
            )  # fmt: skip
    assert ["bn_momentum" in options for options in given] == [False, True]
