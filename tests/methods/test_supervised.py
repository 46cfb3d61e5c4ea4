"""Learning from labels: what is trained and what stays, many labels, layer decay; see test_training_steps for steps."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from processes import run_processes
from twofold.data import ArraySource
from twofold.encoders import ResNet, adapt
from twofold.errors import UserError
from twofold.evaluation.frozen import tensor_digests
from twofold.evaluation.monitors import LabelMonitor
from twofold.heads import HeadConfig, ProjectionHead
from twofold.methods import ContrastiveMethod, Inputs, Method, Output
from twofold.methods.supervised import Supervised
from twofold.optim import LARS, OptimConfig, build_optimizer
from twofold.optim.layer_decay import decay_layers, layers


def net(classes: int = 3, **options: Any) -> Supervised:
    torch.manual_seed(0)
    encoder = ResNet(10, 0.125, "cifar")
    head = ProjectionHead(encoder.feature_dim, HeadConfig(layers=3, out_dim=8))
    return Supervised(encoder, head, classes, **options)


def data(n: int = 12, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, 8, 8, generator=generator), torch.arange(n) % classes


def inputs() -> Inputs:
    images, labels = data()
    return Inputs(images, labels=labels)


def changed(method: Supervised, before: dict[str, str]) -> set[str]:
    after = tensor_digests(method)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("freeze", ["nothing", "head", "encoder"])
def test_what_is_frozen_stays(freeze: Any) -> None:
    method = net(from_head=1, freeze=freeze, init="normal")
    before = tensor_digests(method)
    optimizer = build_optimizer(OptimConfig("sgd", 0.1, weight_decay=0.0), method.trained(), 12)
    for _ in range(2):
        method(inputs()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = changed(method, before)
    moved = {name.split(".")[0] + ("" if "running" not in name else " averages") for name in found}
    assert not any(name.startswith(("head.layers.1", "head.layers.2")) for name in found)
    assert {"classifier.weight", "classifier.bias"} <= found
    if freeze == "encoder":
        assert moved == {"classifier"}
    elif freeze == "head":
        assert moved == {"classifier", "encoder", "encoder averages", "head averages"}
        assert all("running" in name for name in found if name.startswith("head"))
    else:
        assert {"head.layers.0.0.weight", "head.layers.0.1.weight", "head.layers.0.1.bias"} <= found


def test_a_frozen_encoder_stays_in_inference_mode() -> None:
    method = net(freeze="encoder").train()
    assert method.classifier.training
    assert not any(part.training for part in [*method.encoder.modules(), *method.head.modules()])
    h, _ = method.logits(data()[0])
    assert not h.requires_grad
    assert torch.equal(h, copy.deepcopy(method.encoder).eval()(data()[0]))


def test_the_classifier_reads_the_output_asked_for() -> None:
    images, labels = data()
    for j in range(4):
        method = net(from_head=j, init="normal").eval()
        expected = method.classifier(method.head.outputs(method.encoder(images))[j])
        output = method(Inputs(images, labels=labels))
        assert torch.equal(output.logits, expected)
        torch.testing.assert_close(output.loss, F.cross_entropy(expected, labels))
    with pytest.raises(UserError, match="--from_head 4: the run's projection head has 3 layers"):
        net(from_head=4)
    with pytest.raises(UserError, match="has 0 layers"):
        Supervised(ResNet(10, 0.125), None, 2, from_head=1)


def test_many_labels_are_as_many_decisions() -> None:
    method, images = net(init="normal").eval(), data()[0]
    labels = (torch.arange(36).reshape(12, 3) % 5 == 0).long()
    output = Supervised.forward(_many(method), Inputs(images, labels=labels))
    p = torch.sigmoid(output.logits)
    by_hand = -sum(
        (p[i, k] if labels[i, k] else 1 - p[i, k]).log() for i in range(12) for k in range(3)
    ) / 12  # fmt: skip
    torch.testing.assert_close(output.loss, by_hand)
    right = ((p > 0.5) == (labels > 0)).float().mean().item()
    assert float(method.watched(output)["train_accuracy"]) == pytest.approx(right)


def test_what_chance_would_be_right_in_is_counted_over_the_pairs_of_others() -> None:
    """Of 12 examples, 11 others each: an answer to all of one class is right by chance alone, whatever its share."""
    method, (images, labels) = net(init="normal").eval(), data()
    output = method(Inputs(images, labels=labels))
    said = output.logits.argmax(1)
    by_hand = np.mean([said[i] == labels[j] for i in range(12) for j in range(12) if i != j])
    watched = {name: float(value) for name, value in method.watched(output).items()}
    assert watched == pytest.approx({"train_accuracy": float((said == labels).float().mean()), "by_chance": by_hand})
    torch.nn.init.zeros_(method.classifier.weight)  # names the first class for all
    uneven = Inputs(images, labels=(torch.arange(12) > 8).long())
    watched = method.watched(method(uneven))
    assert float(watched["train_accuracy"]) == float(watched["by_chance"]) == 0.75
    assert "by_chance" not in method.watched(method(Inputs(images[:1], labels=labels[:1])))
    many = (torch.arange(36).reshape(12, 3) % 5 == 0).long()
    output = _many(net(init="normal").eval())(Inputs(images, labels=many))
    yes = output.logits > 0
    by_hand = np.mean([yes[i, k] == many[j, k] for i in range(12) for j in range(12) if i != j for k in range(3)])
    assert float(method.watched(output)["by_chance"]) != by_hand  # one class an example is another question
    assert float(_many(method).watched(output)["by_chance"]) == pytest.approx(by_hand)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_the_loss_of_a_constant_prediction_is_the_least_that_one_answer_to_all_gets(
    weights: list[float] | None,
) -> None:
    shares = torch.tensor([0.5, 0.3, 0.2])
    method = net(shares=shares, weights=None if weights is None else torch.tensor(weights))
    chance = method.describe(method(inputs()), 12)["chance"]
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    logits = torch.zeros(3, requires_grad=True)
    fit = torch.optim.LBFGS([logits], max_iter=50)

    def loss() -> Tensor:
        fit.zero_grad()
        found = F.cross_entropy(logits.expand(10, 3), labels, weight=method.weights, reduction="sum") / 10
        found.backward()
        return found

    fit.step(loss)
    assert chance == pytest.approx(float(loss().detach()), abs=1e-5)
    assert method.largest() == pytest.approx(0.5)
    several = _many(net(shares=shares))
    parts = [-p * np.log(p) - (1 - p) * np.log(1 - p) for p in (0.5, 0.3, 0.2)]
    assert several.describe(several(inputs_of_many()), 12)["chance"] == pytest.approx(sum(parts))
    assert several.largest() is None
    assert "chance" not in net().describe(net()(inputs()), 12)


def inputs_of_many() -> Inputs:
    return Inputs(data()[0], labels=(torch.arange(36).reshape(12, 3) % 5 == 0).long())


def test_the_norm_is_of_what_is_trained() -> None:
    for options, parts in (({}, ("encoder", "classifier")), ({"freeze": "encoder"}, ("classifier",))):
        method = net(init="normal", **options)
        whole = sum(float(p.double().square().sum()) for name, p in method.named_parameters() if name.startswith(parts))
        assert method.trained_norm() == pytest.approx(whole**0.5)
        assert method.trains_encoder() == ("encoder" in parts)


def _many(method: Supervised) -> Supervised:
    method.many = True
    return method


def test_lars_leaves_the_classifiers_decay_to_the_loss() -> None:
    images, labels = data()
    plain, decayed = net(init="normal").eval(), net(init="normal", decay=0.1).eval()
    difference = decayed(Inputs(images, labels=labels)).loss - plain(Inputs(images, labels=labels)).loss
    torch.testing.assert_close(difference, 0.05 * plain.classifier.weight.square().sum())


def gradients(rank: int, world: int, weights: Tensor | None = None) -> list[Tensor]:
    images, labels = data()
    labels = labels if weights is None else labels.sort().values  # the ranks' classes differ, and so do their weights
    method = net(from_head=1, init="normal", weights=weights)
    share = len(images) // world
    rows = slice(rank * share, (rank + 1) * share)
    parallel = torch.nn.parallel.DistributedDataParallel(method) if world > 1 else method
    parallel(Inputs(images[rows], labels=labels[rows])).loss.backward()
    return [p.grad for p in method.parameters() if p.grad is not None]


def weighted_gradients(rank: int, world: int) -> list[Tensor]:
    """Weights differ so much that a mean over each rank's own weights would show."""
    return gradients(rank, world, torch.tensor([0.1, 1.0, 5.0]))


@pytest.mark.parametrize("gradients", [gradients, weighted_gradients])
def test_two_processes_give_the_gradients_of_one(gradients: Any) -> None:
    alone = gradients(0, 1)
    for ours in run_processes(gradients, 2, 2):
        assert len(ours) == len(alone)
        for ours_each, alone_each in zip(ours, alone, strict=True):
            torch.testing.assert_close(ours_each, alone_each, rtol=1e-4, atol=1e-6)


def test_layers_further_down_learn_slower() -> None:
    method = net(from_head=1)
    optimizer = build_optimizer(OptimConfig("lars", 1.0), method.trained(), 256)
    before = {id(p): (g["weight_decay"], g["adapt"]) for g in optimizer.param_groups for p in g["params"]}
    decay_layers(optimizer, method.encoder, 0.5)
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    assert {id(p): (g["weight_decay"], g["adapt"]) for g in optimizer.param_groups for p in g["params"]} == before
    assert scale[id(method.classifier.weight)] == scale[id(method.head.layers[0][0].weight)] == 1
    # conv1, bn1 and the four blocks of a ResNet-10
    assert scale[id(method.encoder.layer4[0].conv1.weight)] == 0.5
    assert scale[id(method.encoder.layer1[0].bn2.bias)] == 0.5**4
    assert scale[id(method.encoder.conv1.weight)] == 0.5**6
    assert isinstance(optimizer, LARS)
    with pytest.raises(UserError, match=r"--layer_decay must lie in \(0, 1\], got 0"):
        decay_layers(optimizer, method.encoder, 0)


def test_layers_of_a_module_of_ones_own_are_found_inside_its_adapter() -> None:
    blocks = torch.nn.Sequential(*(torch.nn.Linear(12, 12) for _ in range(2)))
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 12), blocks)
    assert [sum(p.numel() for p in part) for part in layers(adapt(module, 3, size=2))] == [156, 156, 156]


def test_a_step_learns() -> None:
    method = net(init="zero")
    optimizer = build_optimizer(OptimConfig("sgd", 0.1, weight_decay=0.0), method.trained(), 12)
    losses = []
    for _ in range(30):
        loss = method(inputs()).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] == pytest.approx(np.log(3))
    assert losses[-1] < 0.5


def test_a_classifier_tells_nothing_of_contrast() -> None:
    """Neither negatives, nor a loss of chance, nor how well views are told apart."""
    method = net(init="normal")
    output = method(inputs())
    assert set(method.describe(output, 12)) == {"trained_norm"}
    assert set(method.watched(output)) == {"train_accuracy", "by_chance"}
    assert not isinstance(method, ContrastiveMethod)
    with pytest.raises(TypeError, match="the inputs have none"):
        method(Inputs(data()[0]))
    with pytest.raises(UserError, match="is what a projection head gives, and Supervised has none"):
        LabelMonitor(method, ArraySource(np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1]), None, features="z")


def test_a_method_that_is_not_contrastive_tells_what_it_says_itself() -> None:
    class Plain(Method):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = ResNet(10, 0.125, "cifar")

        def forward(self, given: Inputs) -> Output:
            h = self.encoder(given.a)
            return Output(h.square().mean(), h.detach())

    method = Plain()
    output = method(inputs())
    assert (method.describe(output, 12), method.watched(output)) == ({}, {})
    assert method.trained() == [method.encoder]
