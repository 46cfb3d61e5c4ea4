"""Parameters are sorted by what they are: every trainable one into exactly one group, of the right kind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.distributed import BatchNorm
from twofold.encoders import EncoderConfig, build_encoder
from twofold.errors import UserError
from twofold.heads import Classifier, HeadConfig, ProjectionHead
from twofold.optim import LARS, classifier_decay, parameter_groups

WD = 0.25


class UnknownNorm(nn.Module):
    """A normalisation layer of a class that nobody has heard of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.scale)


class Everything(nn.Module):
    """One of each kind; no attribute is called what the reference's regular expressions look for."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)
        self.b = nn.BatchNorm2d(4)
        self.c = nn.GroupNorm(2, 4)
        self.d = nn.LayerNorm([4, 2, 2])  # its weight has three dimensions
        self.e = nn.Linear(4, 4, bias=False)
        self.f = BatchNorm(4)
        self.g = UnknownNorm(4)
        self.h = nn.MultiheadAttention(4, 2)
        self.i = Classifier(4, 3)
        self.batch_normalization_bias = nn.Linear(4, 4)  # a kernel and a bias all the same


EXPECTED = {
    "kernel": {"a.weight", "e.weight", "h.in_proj_weight", "h.out_proj.weight", "batch_normalization_bias.weight"},
    "norm": {"b.weight", "b.bias", "c.weight", "c.bias", "d.weight", "d.bias", "f.weight", "f.bias", "g.scale"},
    "bias": {"a.bias", "h.in_proj_bias", "h.out_proj.bias", "i.bias", "batch_normalization_bias.bias"},
    "classifier": {"i.weight"},
}


def names(module: nn.Module, groups: list[dict]) -> dict[str, set[str]]:  # type: ignore[type-arg]
    name_of = {id(p): name for name, p in module.named_parameters()}
    return {group["kind"]: {name_of[id(p)] for p in group["params"]} for group in groups}


def test_kinds() -> None:
    module = Everything()
    assert names(module, parameter_groups(module, WD)) == EXPECTED


@pytest.mark.parametrize(
    ("decay", "lars", "decayed", "adapted"),
    [
        ("kernels", True, {"kernel"}, {"kernel"}),
        ("kernels", False, {"kernel", "classifier"}, {"kernel", "classifier"}),
        ("all_but_norms", False, {"kernel", "classifier", "bias"}, {"kernel", "classifier"}),
        ("all", False, {"kernel", "classifier", "bias", "norm"}, {"kernel", "classifier"}),
    ],
)
def test_what_is_decayed_and_adapted(decay: str, lars: bool, decayed: set[str], adapted: set[str]) -> None:
    groups = parameter_groups(Everything(), WD, decay, lars)  # type: ignore[arg-type]
    assert {group["kind"] for group in groups if group["weight_decay"]} == decayed
    assert {group["weight_decay"] for group in groups if group["kind"] in decayed} == {WD}
    assert {group["kind"] for group in groups if group["adapt"]} == adapted


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_a_networks_trainable_parameters_are_in_exactly_one_group(name: str, stem: str) -> None:
    encoder = build_encoder(EncoderConfig.of(name=name, stem=stem, width=0.25))  # type: ignore[arg-type]
    head = ProjectionHead(encoder.feature_dim, HeadConfig(layers=3))
    modules = [encoder, head, Classifier(encoder.feature_dim, 10)]
    frozen = next(encoder.parameters())
    frozen.requires_grad_(False)
    groups = parameter_groups(modules, WD)
    found = [id(p) for group in groups for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for m in modules for p in m.parameters() if p is not frozen}
    # in a ResNet, all but convolutions and dense kernels are vectors
    for group in groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["kind"] in ("kernel", "classifier")}


def test_shared_parameters_count_once() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    groups = parameter_groups([first, second, first], WD)
    assert sorted(len(group["params"]) for group in groups) == [1, 2]


def test_nothing_to_train_and_unknown_decay() -> None:
    module = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match="nothing to train"):
        parameter_groups(module, WD)
    with pytest.raises(UserError, match="decay"):
        parameter_groups(Everything(), WD, "biases")  # type: ignore[arg-type]


def test_classifier_decay() -> None:
    classifier, frozen = Classifier(4, 3), Classifier(4, 3).requires_grad_(False)
    value = classifier_decay([nn.Sequential(nn.Linear(4, 4), classifier), classifier, frozen], 0.1)
    assert isinstance(value, Tensor)
    assert value.item() == pytest.approx(0.05 * classifier.weight.square().sum().item())
    value.backward()
    torch.testing.assert_close(classifier.weight.grad, 0.1 * classifier.weight.detach())
    assert classifier.bias.grad is None
    assert classifier_decay(nn.Linear(4, 4), 0.1) == 0


def test_excluded_parameters_take_plain_steps_at_the_full_rate() -> None:
    """Spec H.2: with the trust ratio, or decay, on normalisation or biases it would be another optimiser."""
    torch.manual_seed(0)
    module = Everything()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    LARS(parameter_groups(module, WD), lr=2.0).step()
    for name, p in module.named_parameters():
        if name in EXPECTED["kernel"]:
            g = p.grad + WD * before[name]  # type: ignore[operator]
            expected = before[name] - 2.0 * 0.001 * before[name].norm() / g.norm() * g
        else:
            expected = before[name] - 2.0 * p.grad  # type: ignore[operator]
        # float32: norms of a few dozen entries
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)
