"""What a method was given decides its loss: each option, off its default, against the loss function called by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from asked import Asked
from twofold.data import DataFacts
from twofold.encoders import Encoder, EncoderConfig, SpeechEncoder, Waves, build_encoder
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead
from twofold.losses import distillation_loss, info_nce, margin_triplet, masked_reconstruction, nt_logistic, nt_xent
from twofold.methods import MethodConfig, MoCo, SimCLR, SpeechSimCLR, moco, speech_simclr
from twofold.methods.base import ClassifierOutput, ContrastiveOutput, Inputs
from twofold.methods.distill import Distill
from twofold.methods.supervised import Supervised
from twofold.optim import LARS
from twofold.optim.extended import in_words
from twofold.optim.other_schedules import EpochCosine, InverseSqrt
from twofold.randomness import permutation

HEAD = HeadConfig(kind="linear", out_dim=12, norm=False)
FACTS = DataFacts(
    count=900, median_height=12, median_width=12, channels=3, equal_sized=True, labelled=False, classes=None
)


def encoder() -> Encoder:
    torch.manual_seed(1)
    return build_encoder(EncoderConfig.of(name="resnet10", width=0.125, stem="cifar"), 12)


def views() -> Inputs:
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.rand(6, 3, 12, 12, generator=generator) for _ in range(2))
    return Inputs(a, b)


ABLATIONS: list[dict[str, Any]] = [
    {"loss": "nt_logistic", "normalize": False},
    {"loss": "nt_logistic", "mining": "semi_hard"},
    {"loss": "nt_logistic", "negatives": "sum"},
    {"loss": "margin_triplet", "margin": 0.3, "normalize": False},
    {"loss": "margin_triplet", "margin": 1.6, "mining": "semi_hard"},
    {"loss": "margin_triplet", "margin": 0.3, "negatives": "sum"},
]


@pytest.mark.parametrize("options", ABLATIONS)
def test_each_option_of_a_compared_loss_counts(options: dict[str, Any]) -> None:
    method = SimCLR.Config(temperature=0.37, **options).build(encoder(), HEAD)
    out = method(views())
    assert isinstance(out, ContrastiveOutput)
    given = {"normalize": True, "mining": "none", "negatives": None} | options
    more = {"margin": given.pop("margin")} if given.pop("loss") == "margin_triplet" else {"temperature": 0.37}
    loss = margin_triplet if "margin" in more else nt_logistic
    torch.testing.assert_close(out.loss, loss(out.z_a, out.z_b, **more, **given))


@pytest.mark.parametrize("options", [{"normalize": False}, {"scale": "simclr_sum2"}])
def test_each_option_of_nt_xent_counts(options: dict[str, Any]) -> None:
    method = SimCLR.Config(temperature=0.37, **options).build(encoder(), HEAD)
    out = method(views())
    torch.testing.assert_close(out.loss, nt_xent(out.z_a, out.z_b, temperature=0.37, **options))


TEACHER = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 4, -1, 2, -1, 1])


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.4}, {"temperature": 2.0, "squared_temperature": True}, {"temperature": 0.4, "alpha": 0.3}],
)
def test_each_option_of_distillation_counts(options: dict[str, Any]) -> None:
    method = Distill(encoder(), 5, **options)
    torch.nn.init.normal_(method.classifier.weight)
    labels = LABELS if "alpha" in options else None
    out = method(Inputs(views().a, labels=labels, teacher_logits=TEACHER))
    expected = distillation_loss(out.logits, TEACHER, labels=labels, **options)
    torch.testing.assert_close(out.loss, expected)
    p = (TEACHER / options["temperature"]).softmax(1)
    entropy = -(p * p.log()).sum(1).mean() * (4.0 if "squared_temperature" in options else 1.0)
    assert float(method.watched(out)["teacher_entropy"]) == pytest.approx(float(entropy), rel=1e-5)
    decayed = Distill(method.encoder, 5, decay=0.5, **options)
    decayed.classifier = method.classifier
    more = decayed(Inputs(views().a, labels=labels, teacher_logits=TEACHER)).loss - out.loss
    torch.testing.assert_close(more, 0.25 * method.classifier.weight.square().sum(), rtol=1e-4, atol=1e-4)


def supervised(**options: Any) -> Supervised:
    torch.manual_seed(4)
    return Supervised(encoder(), ProjectionHead(64, HeadConfig(layers=3, out_dim=12, hidden_dim=20)), 5, **options)


def test_each_option_of_a_classifier_counts() -> None:
    labels = LABELS.clamp(min=0)
    plain = supervised(init="normal")
    out = plain(Inputs(views().a, labels=labels))
    assert isinstance(out, ClassifierOutput)
    assert plain.classifier.weight.shape == (5, 64)
    assert plain.classifier.weight.any()
    assert not supervised().classifier.weight.any()
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, labels))
    decayed = supervised(init="normal", decay=0.5)(Inputs(views().a, labels=labels)).loss
    torch.testing.assert_close(decayed - out.loss, 0.25 * plain.classifier.weight.square().sum())
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    weighted = supervised(init="normal", weights=weights)(Inputs(views().a, labels=labels)).loss
    each = torch.nn.functional.cross_entropy(out.logits, labels, reduction="none")
    torch.testing.assert_close(weighted, (each * weights[labels]).mean())
    many = torch.nn.functional.one_hot(labels, 5)
    both = supervised(init="normal", many=True)(Inputs(views().a, labels=many))
    binary = torch.nn.functional.binary_cross_entropy_with_logits(out.logits, many.float(), reduction="sum") / 6
    torch.testing.assert_close(both.loss, binary)


def test_what_a_classifier_reads_and_trains() -> None:
    assert supervised(from_head=2).classifier.weight.shape == (5, 20)
    learns = {n.split(".")[0] for n, p in supervised(from_head=1).named_parameters() if p.requires_grad}
    assert learns == {"encoder", "head", "classifier"}
    learns = {n.split(".")[0] for n, p in supervised(from_head=1, freeze="head").named_parameters() if p.requires_grad}
    assert learns == {"encoder", "classifier"}
    learns = {n.split(".")[0] for n, p in supervised(freeze="encoder").named_parameters() if p.requires_grad}
    assert learns == {"classifier"}
    assert not supervised(freeze="encoder").encoder.training
    assert supervised(freeze="encoder", frozen_mode="training").encoder.training
    blocks = supervised(after_block=2).encoder.blocks()
    assert blocks is not None
    assert not any(p.requires_grad for p in blocks.parameters(2))
    assert all(p.requires_grad for block in blocks.blocks[2:] for p in block.parameters())
    assert all(part.training for part in blocks.up_to(2))
    blocks = supervised(after_block=2, frozen_mode="inference").encoder.blocks()
    assert blocks is not None
    assert not any(part.training for part in blocks.up_to(2))


def opened(
    config: MethodConfig, batch: int = 64, encoder: str = "resnet10", steps: int = 20_000
) -> tuple[dict[str, Any], list[str]]:
    chosen, reasons = config.chosen(FACTS, batch, steps, encoder)
    return vars(chosen), reasons


GIVEN = MoCo.Config(temperature=0.37, queue=300, momentum=0.7, symmetric=True, bn_splits=2, shuffle=False)


def test_what_is_given_to_moco_stays_and_the_rest_is_chosen() -> None:
    assert opened(GIVEN) == (vars(GIVEN), [])
    free, reasons = opened(MoCo.Config())
    assert free == vars(MoCo.Config(temperature=0.2, queue=128, momentum=0.99, bn_splits=4))
    assert reasons == [
        "temperature 0.2 (batch 64)", "method.momentum 0.99 (over 100 of 20,000 steps)",
        "method.queue 128 (900 images)", "method.bn_splits 4 (one device)",
    ]  # fmt: skip
    assert opened(MoCo.Config(symmetric=True))[0]["queue"] == 256  # twice the 128 keys of a step
    assert opened(replace(GIVEN, bn_splits=None), batch=20)[0]["bn_splits"] == 1
    assert opened(replace(GIVEN, bn_splits=None), encoder="vit_tiny")[0]["bn_splits"] is None


@pytest.mark.parametrize(
    ("steps", "momentum"), [(1, 0.0), (200, 0.0), (1001, 0.8), (9_999, 0.98), (200_000, 0.999), (10**7, 0.999)]
)
def test_moco_s_key_encoder_averages_over_a_two_hundredth_of_the_run(steps: int, momentum: float) -> None:
    assert opened(MoCo.Config(), steps=steps)[0]["momentum"] == momentum
    assert opened(MoCo.Config(momentum=0.5), steps=steps)[0]["momentum"] == 0.5


def test_a_key_encoder_that_follows_fast_gets_both_directions_and_batch_norm_in_its_head() -> None:
    free, reasons = opened(MoCo.Config(), steps=1001)
    assert free == vars(MoCo.Config(temperature=0.2, queue=256, momentum=0.8, symmetric=True, bn_splits=4))
    assert reasons[1:] == [
        "method.momentum 0.8 (over 5 of 1,001 steps)", "method.symmetric true (momentum 0.8)",
        "method.queue 256 (900 images)", "method.bn_splits 4 (one device)",
    ]  # fmt: skip
    for momentum, fast in ((0.989, True), (0.99, False)):
        chosen, _ = MoCo.Config(momentum=momentum).chosen(FACTS, 64, 1001, "resnet10")
        assert (chosen.symmetric, chosen.head_norm) == ((True, True) if fast else (None, False))
    said = opened(MoCo.Config(symmetric=False, bn_splits=2), steps=1001)[0]
    assert (said["symmetric"], said["bn_splits"]) == (False, 2)


def test_moco_tells_the_loss_of_chance_of_its_own_options() -> None:
    assert GIVEN.about_chance().startswith(" = 2 ln(K + 1), K = 300;")
    assert replace(GIVEN, symmetric=False).about_chance().startswith(" = ln(K + 1), K = 300;")


def test_memory_and_queue_have_to_hold_a_step() -> None:
    for config in (replace(GIVEN, queue=32), SimCLR.Config(temperature=0.3, memory=32)):
        config.check_batch(16)
        with pytest.raises(UserError, match="holds fewer keys than the 36"):
            config.check_batch(18)
    replace(GIVEN, queue=32, symmetric=False).check_batch(32)
    with pytest.raises(UserError, match="bn_splits 4 does not divide the 18"):
        replace(GIVEN, bn_splits=4).check_batch(18)


def test_the_temperature_of_simclr_is_that_of_the_batch_where_none_is_given() -> None:
    assert opened(SimCLR.Config(temperature=0.37), 4096) == (vars(SimCLR.Config(temperature=0.37)), [])
    assert opened(SimCLR.Config(), 2048)[0]["temperature"] == 0.1
    assert opened(SimCLR.Config(), 2047)[0]["temperature"] == 0.2


def test_a_memory_refuses_inner_products() -> None:
    with pytest.raises(UserError, match=r"leave --method.normalize true"):
        SimCLR.Config(temperature=0.37, memory=48, normalize=False).build(encoder(), HEAD)


def test_moco_compares_at_its_own_temperature_and_shuffles_by_its_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    method = MoCo.Config(temperature=0.37, queue=24, bn_splits=2).build(encoder(), HEAD, seed=9)
    before, asked = method.queue.keys.clone(), list[Any]()
    monkeypatch.setattr(moco, "permutation", lambda *given: asked.append(given) or permutation(*given))
    out = method(views())
    assert isinstance(out, ContrastiveOutput)
    torch.testing.assert_close(out.loss, info_nce(out.z_a, out.z_b, before, temperature=0.37)[0])
    method(views())
    assert asked == [(9, "shuffle", 0, 6), (9, "shuffle", 1, 6)]


def test_both_halves_of_moco_s_symmetric_loss_have_its_temperature() -> None:
    method = MoCo.Config(temperature=0.37, queue=24, symmetric=True).build(encoder(), HEAD).eval()
    a, b = views().images()
    halves = [
        info_nce(method.queries(x)[1], method.keys(y, "")[0], method.queue.keys, temperature=0.37)[0]
        for x, y in ((a, b), (b, a))
    ]
    torch.testing.assert_close(method(Inputs(a, b)).loss, halves[0] + halves[1])


def test_lars_and_the_words_of_an_extension_have_their_own_numbers() -> None:
    (group,) = LARS([torch.nn.Parameter(torch.ones(2))], 0.1, weight_decay=0.3).param_groups
    assert group["weight_decay"] == 0.3
    schedule = EpochCosine(0.25, 4.0, 5, 0)
    assert schedule(10) != schedule(15)  # it falls with each epoch of 5 steps
    assert in_words(schedule, 14, 20).startswith(f"begins anew at {schedule(14):g} and")
    slow = InverseSqrt(0.25, 2)
    assert in_words(slow, 14, 20).endswith(f"from {slow(14):g} to {slow(19):g}")


def test_each_option_of_speech_simclr_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"temperature": 0.37, "mask_rule": "released", "reconstruction_scale": "released", "time_mask": 9}
    encoder = SpeechEncoder(8000, 13, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="none", dropout=0.0)
    method = SpeechSimCLR(encoder, HEAD, contrastive_weight=0.6, reconstruction_weight=0.4, **options)  # type: ignore[arg-type]
    asked = Asked(monkeypatch)
    asked.of(speech_simclr, "blocks")
    asked.of(speech_simclr, "fill_blocks", "rule")
    asked.of(speech_simclr, "masked_reconstruction")
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([4000, 3200, 2400])
    a, b = (
        Waves(torch.randn(3, 4000, generator=generator), lengths, torch.rand(3, 200, generator=generator))
        for _ in range(2)
    )
    out = method(Inputs(a, b))
    assert isinstance(out, speech_simclr.SpeechOutput)
    torch.testing.assert_close(out.contrastive, nt_xent(out.z_a, out.z_b, 0.37))
    frames = int(encoder.frontend.frames(lengths).max())
    assert [(given[2:6], given[6]) for given in asked["blocks"]] == [((frames, 13, 9, 0.3375), "released")] * 2
    assert asked["fill_blocks"] == ["released"] * 2
    first, _ = asked["masked_reconstruction"]
    loss = masked_reconstruction(*first[:4], "released").loss
    torch.testing.assert_close(out.loss, 0.6 * out.contrastive + 0.4 * loss)
