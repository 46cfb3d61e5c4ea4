"""The online probe's options: which output of the head it reads, and how it is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import OPTIONS, images
from torch import Tensor

from twofold.commands.pretrain import pretrain
from twofold.data import ArraySource
from twofold.encoders import ResNet
from twofold.errors import UserError
from twofold.evaluation.monitors import LabelMonitor, _width
from twofold.heads import HeadConfig
from twofold.methods import ContrastiveOutput, Inputs, MethodConfig
from twofold.options import merge
from twofold.runs import config as runs
from twofold.runs import pretrain as core
from twofold.runs.starting import start_accelerator
from twofold.training.loop import AnyTraining
from twofold.training.rundir import RunDirectory


def training_of(folder: Path, **options: Any) -> AnyTraining:
    source, run = ArraySource(*images()), RunDirectory(folder / "run")
    given = {"views": {"size": 16}, "method": {"name": "simclr", "temperature": 0.2}, "head.layers": 3}
    given |= {"encoder.channels": 3, "optim": {"name": "lars", "lr": 0.5, "weight_decay": 0.01, "warmup_epochs": 0}}
    config = runs.build(merge(OPTIONS, given, options))
    return core.assemble(config, source, run, start_accelerator(config.training, run), None)


def monitor_of(training: AnyTraining) -> LabelMonitor:
    monitor = training.monitors[0]
    assert isinstance(monitor, LabelMonitor)
    return monitor


@pytest.mark.parametrize(
    "options",
    [
        {"name": "simclr"},
        {"name": "simclr", "loss": "nt_logistic"},
        {"name": "simclr", "memory": 32},
        {"name": "moco", "queue": 32},
        {"name": "moco", "queue": 32, "symmetric": True},
    ],
)
def test_every_method_gives_what_each_layer_of_its_head_made(options: dict[str, Any]) -> None:
    head = HeadConfig(layers=3, out_dim=8)
    method = MethodConfig.of(**options, temperature=0.2).build(ResNet(10, 0.125, "cifar"), head).eval()
    output = method(Inputs(torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)))
    assert isinstance(output, ContrastiveOutput)
    assert len(output.layers) == 3
    for layer, expected in enumerate(method.head.outputs(output.h)):
        assert torch.equal(output.output(layer), expected)
        assert not output.output(layer).requires_grad


def test_a_method_that_keeps_its_heads_outputs_to_itself_is_told_so() -> None:
    output = ContrastiveOutput(torch.zeros(()), torch.zeros(4, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    assert output.output(0) is output.h
    with pytest.raises(UserError, match=r"no output 1 of its head: give --monitor\.probe_layer 0 to 0"):
        output.output(1)


@pytest.mark.parametrize("rule", ["adamw", "run"])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_the_accuracy_is_of_the_layer_asked_for(layer: int, rule: str, tmp_path: Path) -> None:
    training = training_of(tmp_path, monitor={"probe_layer": layer, "probe_rule": rule, "knn": layer == 1})
    monitor, method = monitor_of(training), training.method
    torch.nn.init.normal_(monitor.classifier.weight)  # type: ignore[union-attr]
    method.eval()
    with torch.no_grad():
        features = method.head.outputs(method.encoder(monitor.queries.images))[layer]  # type: ignore[union-attr, operator]
        expected = monitor.classifier(monitor.norm.eval()(features))  # type: ignore[misc]
    seen: list[Tensor] = []
    monitor.classifier.register_forward_hook(lambda _module, _inputs, logits: seen.append(logits))  # type: ignore[union-attr]
    row = monitor.measure()
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)
    assert row["probe_top1"] == (expected.argmax(1).numpy() == monitor.queries.labels).mean()
    assert ("knn_top1" in row) == (layer == 1)


@pytest.mark.parametrize("layer", [0, 2])
def test_by_the_runs_rule_it_is_trained_as_the_reference_trains_it(layer: int, tmp_path: Path) -> None:
    """LARS leaves a classifier unadapted: momentum SGD at the run's rate, its kernel decayed through the loss."""
    training = training_of(tmp_path, monitor={"probe_layer": layer, "probe_rule": "run"})
    monitor, classifier = monitor_of(training), monitor_of(training).classifier
    assert classifier is not None
    w, b = classifier.weight.detach().clone(), classifier.bias.detach().clone()
    v_w, v_b = torch.zeros_like(w), torch.zeros_like(b)
    labels, method = torch.arange(8) % 2, training.method.train()
    for step in range(3):
        training.step = step
        output = method(Inputs(torch.rand(8, 3, 16, 16), torch.rand(8, 3, 16, 16)))
        monitor.after_step(output, labels)
        h, lr = output.output(layer), training.schedule(step)
        p = (h @ w.T + b).softmax(1) - torch.eye(w.shape[0])[labels.repeat(2)]
        v_w = 0.9 * v_w + lr * (p.T @ h / len(h) + 0.01 * w)
        v_b = 0.9 * v_b + lr * p.mean(0)
        w, b = w - v_w, b - v_b
        torch.testing.assert_close(classifier.weight.detach(), w, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(classifier.bias.detach(), b, rtol=1e-4, atol=1e-6)
    assert training.schedule(0) != training.schedule(2)


@pytest.mark.parametrize("rule", ["adamw", "run"])
def test_a_probe_is_taken_up_as_it_was_left(rule: str, tmp_path: Path) -> None:
    options = {"monitor": {"probe_layer": 1, "probe_rule": rule}}
    first, second = training_of(tmp_path, **options), training_of(tmp_path, **options)
    outputs = [first.method(Inputs(torch.rand(8, 3, 16, 16), torch.rand(8, 3, 16, 16))) for _ in range(2)]
    labels = torch.arange(8) % 2
    monitor_of(first).after_step(outputs[0], labels)
    torch.save(monitor_of(first).state_dict(), tmp_path / "state.pt")
    torch.nn.init.normal_(monitor_of(second).classifier.weight)  # type: ignore[union-attr]
    monitor_of(second).load_state_dict(torch.load(tmp_path / "state.pt"))
    for training in (first, second):
        monitor_of(training).after_step(outputs[1], labels)
    one, two = (monitor_of(each).classifier for each in (first, second))
    assert torch.equal(one.weight, two.weight)  # type: ignore[union-attr]
    assert torch.equal(one.bias, two.bias)  # type: ignore[union-attr]


def test_a_probe_anywhere_changes_nothing_of_the_encoder(tmp_path: Path) -> None:
    weights: list[dict[str, Tensor]] = []
    probes: tuple[dict[str, Any], ...] = ({"probe": False}, {"probe_layer": 1}, {"probe_layer": 2, "probe_rule": "run"})
    for i, probe in enumerate(probes):
        options = merge(OPTIONS, {"epochs": 1, "monitor": probe | {"every": 1}})
        report = pretrain(images(), tmp_path / f"{i}", report=False, **options)
        weights.append(load_file(report.path / "encoder.safetensors"))
        row = RunDirectory(report.path).rows()[-1]
        assert ("probe_top1" in row) == (i > 0)
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    ("monitor", "said"),
    [
        ({"probe_layer": 4}, r"--monitor.probe_layer 4: the projection head has 3 layers; give 0 .* to 3"),
        ({"probe_layer": -1}, "--monitor.probe_layer must be at least 0, got -1"),
        ({"probe": False, "probe_layer": 1}, "--monitor.probe_layer 1 has no effect with --monitor.probe false"),
        ({"probe": False, "probe_rule": "run"}, "--monitor.probe_rule run has no effect with --monitor.probe false"),
    ],
)
def test_what_cannot_be_meant_is_refused(monitor: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        training_of(tmp_path, monitor=monitor)


def test_a_method_without_a_head_has_the_encoders_features_alone() -> None:
    method = SimpleNamespace(encoder=ResNet(10, 0.125, "cifar"))
    assert _width(method, 0) == 64  # type: ignore[arg-type]
    with pytest.raises(UserError, match="has 0 layers"):
        _width(method, 1)  # type: ignore[arg-type]
