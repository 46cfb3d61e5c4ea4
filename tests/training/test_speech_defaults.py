"""What is chosen for recordings: the presets are what they say, and whatever was given stays."""

from __future__ import annotations

import pytest
import torch

from twofold import recipe as recipes
from twofold.data import DataFacts
from twofold.encoders import Waves, build_encoder
from twofold.errors import UserError
from twofold.methods import Inputs
from twofold.optim import build_optimizer, build_schedule
from twofold.options import flatten, plain
from twofold.randomness import Key
from twofold.runs import presets
from twofold.runs.config import build
from twofold.runs.defaults import choose
from twofold.views.audio.views import WaveViews

CPU = torch.device("cpu")
FACTS = DataFacts(30_000, 1, 64_000, 1, False, False, None, kind="audio", sample_rate=16_000)


def chosen(**options):
    config, told = choose(build(options), FACTS, CPU)
    return config, flatten(plain(config)), told


def test_released_is_as_released():
    """athena, branch simclr: its json's schedule, clips, views, masks, scale and head."""
    pytest.importorskip("timm")
    config, flat, _ = chosen(**{"encoder.name": "speech:released"})
    expected = {
        "batch": 16, "data.audio.max_seconds": 8.0, "waves.clean_view": True, "head.out_dim": 768, "head.norm": False,
        "method.name": "speech_simclr", "method.temperature": 0.1, "method.contrastive_weight": 1.0,
        "method.reconstruction_weight": 0.5, "method.mask_span": 1, "method.mask_rule": "released",
        "method.reconstruction_scale": "released", "method.target": "masked", "optim.name": "lamb",
        "optim.schedule": "inverse_sqrt", "optim.warmup_steps": 8000,
    }  # fmt: skip
    assert {name: flat[name] for name in expected} == expected
    rate = build_schedule(config.optim, 30_000, 16, 1000.0)
    for step, published in ((1, 5.04e-8), (8_000, 4.034e-4), (32_000, 2.017e-4), (200_000, 8.07e-5)):
        assert rate(step - 1) == pytest.approx(published, rel=1e-3)


def test_what_is_given_wins_over_the_preset():
    given = {"waves.clean_view": False, "data.audio.max_seconds": 15.99, "optim.schedule": "cosine", "batch": 32}
    _, flat, _ = chosen(**{"encoder.name": "speech:released"} | given)
    assert {name: flat[name] for name in given} == given
    assert flat["optim.warmup_steps"] is None
    _, flat, _ = chosen(**{"encoder.name": "speech:released", "optim": {"name": "adamw", "warmup_epochs": 2.0}})
    assert (flat["optim.name"], flat["optim.lr"], flat["optim.schedule"]) == ("adamw", 5e-4, "inverse_sqrt")
    assert flat["optim.warmup_steps"] is None
    again, _ = choose(build(plain(chosen(**{"encoder.name": "speech:released"})[0])), FACTS, CPU)
    assert again == chosen(**{"encoder.name": "speech:released"})[0]  # config.yaml says all of it


def test_released_without_timm_says_what_it_takes_instead(monkeypatch):
    monkeypatch.setattr(presets, "find_spec", lambda _: None)
    monkeypatch.setattr("twofold.runs.defaults_audio.find_spec", lambda _: None)
    _, flat, told = chosen(**{"encoder.name": "speech:released"})
    assert flat["optim.name"] == "adamw"
    assert "lamb, as released, needs the extra timm" in told


@pytest.mark.parametrize("head", [{}, {"out_dim": 64}, {"layers": 3, "hidden_dim": 32}])
@pytest.mark.parametrize("name", ["speech:small", "speech:released"])
def test_the_head_has_no_batch_norm_unless_it_is_asked_for(head, name):
    assert chosen(head=head, encoder={"name": name})[0].head.norm is False
    assert chosen(head=head | {"norm": True}, encoder={"name": name})[0].head.norm is True


def test_a_speech_encoder_is_refused_for_images():
    with pytest.raises(UserError, match=r"--encoder\.name speech:released is for recordings"):
        choose(build({"encoder.name": "speech:released"}), DataFacts(100, 32, 32, 3, False, False, None), CPU)


TRAINED = [name for name in recipes.names() if name.startswith("speech-") and recipes.load(name).command == "pretrain"]


def test_there_are_recipes_of_speech_that_train():
    assert {"speech-corrected", "speech-released"} <= set(TRAINED)


@pytest.mark.parametrize("name", TRAINED)
def test_the_recipes_of_speech_train(name):
    """A step of each recipe's method on its views, built as the command does, with a narrow encoder."""
    narrow = {"width": 12, "layers": 1, "hidden": 16}
    options = recipes.load(name).options
    if options["optim"]["name"] == "lamb":
        pytest.importorskip("timm")
    config, flat, _ = chosen(**options | {"encoder": options["encoder"] | {"speech": narrow}})
    for option, value in flatten(options).items():
        assert flat[option] == value
    encoder = build_encoder(config.encoder)
    method = config.method.build(encoder, config.head)
    optimizer = build_optimizer(config.optim, method.trained(), config.batch)
    steps = build_schedule(config.optim, FACTS.count, config.batch, config.epochs)
    assert 0 <= steps(0) < steps(1000)

    waves = Waves.of([torch.randn(length) / 9 for length in (9000, 12000, 16000, 7000)])
    encoder.fit_frontend([waves])
    views = WaveViews(config.waves, encoder.input.sample_rate, span=config.method.mask_span)
    a, b = views.apply(waves, views.draw(Key(0, 0), range(4), waves.lengths.numpy()))
    assert config.waves.clean_view == torch.equal(a.samples, waves.samples)
    method(Inputs(a, b)).loss.backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in method.parameters())


@pytest.mark.parametrize(("count", "seconds", "given", "epochs"), [
    (1_818, 0.7, {}, 157),  # letters: 200,000 seconds of sound
    (1_000, 0.2, {}, 300),  # 300,000 recordings at most
    (6_000, 4.0, {}, 10),  # 60,000 at least, as long as they are
    (1_000, 20.0, {"data.audio.max_seconds": 1.0}, 200),  # what is heard of a recording counts
    (100, 0.7, {}, 1000),
])  # fmt: skip
def test_short_recordings_are_heard_more_often(count, seconds, given, epochs):
    facts = DataFacts(count, 1, round(seconds * 16_000), 1, False, False, None, kind="audio", sample_rate=16_000)
    assert choose(build(given), facts, CPU)[0].epochs == epochs
