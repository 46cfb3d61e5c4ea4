"""Speech SimCLR: its loss against its parts, invariances, the released form against athena's rules, and learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from processes import run_processes
from sound_files import RATE, tone
from twofold.encoders import SpeechEncoder, Waves
from twofold.encoders.audio.encoder import PRESETS
from twofold.errors import UserError
from twofold.heads import HeadConfig
from twofold.losses import contrastive_metrics, nt_xent
from twofold.methods import Inputs, MethodConfig, SpeechSimCLR
from twofold.randomness import Key
from twofold.views.audio.views import WavesConfig, WaveViews

TINY = {"sample_rate": RATE, "mels": 20, "low_hz": 60.0, "width": 32, "layers": 2, "heads": 4, "hidden": 64}
HEAD = HeadConfig(out_dim=16, norm=False)


def method(dropout=0.0, stack=1, **options):
    torch.manual_seed(0)
    return SpeechSimCLR(SpeechEncoder(**TINY, dropout=dropout, cmvn="utterance_mean", stack=stack), HEAD, **options)


def views(n=8, step=0):
    waves = Waves.of([torch.from_numpy(tone(i % 5, i // 5, 0.3 + 0.06 * i, seed=i)) for i in range(n)])
    made = WaveViews(WavesConfig(), RATE)
    return made.apply(waves, made.draw(Key(0, step), np.arange(n), waves.lengths.numpy()))


def test_the_loss_is_the_weighted_sum_of_its_parts():
    a, b = views()
    for contrastive, reconstruction in ((1.0, 0.0), (0.0, 1.0), (2.0, 0.5)):
        out = method(contrastive_weight=contrastive, reconstruction_weight=reconstruction)(Inputs(a, b))
        expected = contrastive * out.contrastive + reconstruction * out.reconstruction
        torch.testing.assert_close(out.loss.detach(), expected)
        torch.testing.assert_close(out.contrastive, nt_xent(out.z_a, out.z_b, 0.1))


def test_reconstruction_counts_hidden_frames_alone():
    model = method()
    a, b = views()
    waves = Waves.cat([a, b])
    x, frames = model.encoder.features_of(waves)
    masked, hidden = model.mask(x, frames, waves.random)
    assert 0.1 < hidden.sum() / frames.sum() < 0.35
    states = model.encoder.transformer(torch.where(hidden[..., None], 0.0, masked), frames)
    error = (model.reconstruction(states) - x).abs()
    torch.testing.assert_close(model(Inputs(a, b)).reconstruction, error[hidden].mean().detach())
    torch.testing.assert_close(model(Inputs(a, b)).mean_error, x[hidden].abs().mean())
    released = method(mask_rule="released", reconstruction_scale="released", target="masked", mask_span=1)(Inputs(a, b))
    assert torch.isfinite(released.loss)
    assert released.loss.detach() != pytest.approx(float(released.contrastive + released.reconstruction))
    for scale in ("masked_mean", "released"):  # the level that nothing learned has is in the loss's own scale
        model = method(contrastive_weight=0.0, reconstruction_scale=scale)
        torch.nn.init.zeros_(model.reconstruction.weight)
        torch.nn.init.zeros_(model.reconstruction.bias)
        out = model(Inputs(a, b))
        assert model.describe(out, 8)["chance"] == pytest.approx(float(out.loss.detach()), rel=1e-5)


def test_stacked_frames_are_told_one_by_one():
    """With three frames a step, what is said of a hidden frame is compared with that frame."""
    torch.manual_seed(0)
    model = SpeechSimCLR(SpeechEncoder(**TINY, dropout=0.0, stack=3), HEAD).eval()
    a, b = views()
    waves = Waves.cat([a, b])
    x, frames = model.encoder.features_of(waves)
    masked, hidden = model.mask(x, frames, waves.random)
    states = model.encoder.transformer(torch.where(hidden[..., None], 0.0, masked), frames)
    told = model.reconstruction(states)
    errors = [(told[n, t // 3, 20 * (t % 3) : 20 * (t % 3 + 1)] - x[n, t]).abs() for n, t in hidden.nonzero().tolist()]
    torch.testing.assert_close(model(Inputs(a, b)).reconstruction, torch.stack(errors).mean().detach())


@pytest.mark.parametrize("stack", [1, 3])
def test_rows_may_be_permuted_and_padded(stack):
    model, (a, b) = method(stack=stack).eval(), views()
    loss = model(Inputs(a, b)).loss
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(Inputs(a[order], b[order])).loss, loss, rtol=1e-5, atol=1e-5)
    longer = [Waves(torch.nn.functional.pad(w.samples, (0, 9000)), w.lengths, w.random) for w in (a, b)]
    torch.testing.assert_close(model(Inputs(*longer)).loss, loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", ["masked_mean", "released"])
def test_two_processes_equal_one(scale):
    """Both losses see all utterances, the long ones of one rank and the short ones of the other; gradients, too.

    (The released scale counts padded frames: there the ranks' batches are padded alike.)
    """
    torch.set_num_threads(1)
    first, second = run_processes(one_step, 2, 4, scale)
    loss, told, gradients = one_step(0, 8, scale)
    assert np.mean([first[0], second[0]]) == pytest.approx(loss, rel=1e-5)
    assert first[1] == second[1]  # a row of metrics tells of all ranks, whichever writes it
    for name in ("contrastive", "reconstruction", "mean_error", "chance"):
        assert first[1][name] == pytest.approx(told[name], rel=1e-5), name
    assert {name.split(".")[0] for name in gradients} == {"encoder", "head", "reconstruction"}
    for name, gradient in gradients.items():
        for _, _, found in (first, second):
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def one_step(rank, n, scale):
    """One step of half of the batch on each of two ranks (n 4), or of all of it on one (n 8)."""
    model = method(reconstruction_scale=scale, contrastive_weight=0.5).train()
    parts = [part[slice(rank * n, (rank + 1) * n)] for part in views(8)]
    if scale == "masked_mean":  # as a rank's own batch comes: padded to its own longest
        parts = [Waves(part.samples[:, : int(part.lengths.max())], part.lengths, part.random) for part in parts]
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if n < 8 else model
    out = wrapped(Inputs(*parts))
    out.loss.backward()
    return float(out.loss.detach()), model.describe(out, 8), {k: p.grad.clone() for k, p in model.named_parameters()}


def test_without_numbers_nothing_is_masked():
    a, b = views()
    out = method().eval()(Inputs(Waves(a.samples, a.lengths), Waves(b.samples, b.lengths)))
    assert out.reconstruction == 0


def syllable(seed, samples):
    """Harmonics of a gliding voice under four gliding formants: hidden frames can be told from their neighbours."""
    rng = np.random.default_rng(seed)
    u = np.linspace(0, 1, samples)
    pitch = rng.uniform(90, 250) * (1 + rng.uniform(-0.3, 0.3) * u)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    formants = [first + (last - first) * u for first, last in rng.uniform(300, 3500, (4, 2))]
    wave = np.zeros(samples)
    for k in range(1, int(3900 / pitch.max()) + 1):
        loudness = 0.01 + sum(np.exp(-(((k * pitch - formant) / 250) ** 2)) for formant in formants)
        wave += loudness * np.sin(k * phase)
    return torch.tensor(0.05 * wave, dtype=torch.float32)


@pytest.mark.parametrize(
    ("encoder", "lr", "steps", "accuracy", "error"),
    [
        pytest.param(TINY | {"width": 64, "layers": 1, "hidden": 128}, 4e-3, 150, 0.95, 0.9, id="tiny"),
        pytest.param(PRESETS["small"], 2e-3, 200, 0.99, 0.85, id="small", marks=pytest.mark.slow),
    ],
)
def test_overfits_a_handful(encoder, lr, steps, accuracy, error):
    """32 clips: each finds its other view, and what is hidden is told clearly better than by the mean."""
    torch.manual_seed(0)
    encoder = SpeechEncoder(**encoder | {"dropout": 0.0, "cmvn": "utterance_mean", "stack": 3})
    model = SpeechSimCLR(encoder, HEAD, time_mask=10, frequency_mask=0.2).train()
    waves = Waves.of([syllable(i, 2400 + 80 * i) for i in range(32)])
    encoder.fit_frontend([waves])
    off = ("pitch", "speed", "reverb", "noise", "band_reject", "clip", "time_dropout")
    maker = WaveViews(WavesConfig(**dict.fromkeys(off, 0.0)), RATE, span=7)
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    top1, share = [], []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20)
        a, b = maker.apply(waves, maker.draw(Key(0, step), np.arange(32), waves.lengths.numpy()))
        out = model(Inputs(a, b))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        top1.append(contrastive_metrics(out.z_a, out.z_b).accuracy.item())
        share.append(float(out.reconstruction / out.mean_error))
    assert np.mean(top1[-10:]) > accuracy
    assert np.mean(share[-10:]) < error


def test_options_of_other_methods_are_refused():
    with pytest.raises(UserError, match="mask_share"):
        MethodConfig.of(name="simclr", mask_share=0.1)
    with pytest.raises(UserError, match=r"loss nt_logistic has no effect with .*for images: leave it out"):
        MethodConfig.of(name="speech_simclr", loss="nt_logistic")
    assert MethodConfig.of(mask_share=0.1).name is None  # the data will tell
    with pytest.raises(UserError, match="nothing is left"):
        MethodConfig.of(name="speech_simclr", contrastive_weight=0.0, reconstruction_weight=0.0)
    built = SpeechSimCLR.Config(temperature=0.2, mask_span=3).build(SpeechEncoder(**TINY), HEAD)
    assert built.mask_span == 3
