"""Speech through the same commands as images: a folder in, an encoder, metrics, report and evaluations out."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from tiny import as_arguments, images

import twofold
from sound_files import RATE, speech_folder
from twofold import cli
from twofold.commands.export import export
from twofold.commands.finetune import finetune
from twofold.commands.labels import labels
from twofold.encoders import SpeechEncoder, Waves, read_header
from twofold.errors import UserError

TINY = {
    "epochs": 4, "batch": 8, "seed": 3,
    "encoder": {
        "name": "speech:small",
        "speech": {"mels": 20, "width": 16, "layers": 1, "heads": 2, "hidden": 32, "sample_rate": RATE},
    },
    "head": {"out_dim": 8, "norm": False},
    "training": {"device": "cpu", "precision": "fp32", "log_every": 2, "checkpoint_every": 4},
    "monitor": {"every": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return speech_folder(tmp_path_factory.mktemp("speech") / "clips", 3, 12)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "speech"
    assert cli.main(["pretrain", str(folder), "--out", str(out), *as_arguments(TINY)]) == 0
    return out


def test_progress_counts_recordings_and_a_finished_run_tells_no_time(folder, tmp_path, capsys):
    words = ["pretrain", str(folder), "--out", str(tmp_path / "run"), *as_arguments(TINY)]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert "recordings/s" in told
    assert "images/s" not in told
    assert "time: " in told
    assert cli.main([*words, "--resume"]) == 0
    assert "time: " not in capsys.readouterr().out


def test_the_run_is_complete(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"contrastive", "reconstruction", "mean_error", "probe_top1", "knn_top1", "chance"} <= rows[-1].keys()
    assert rows[-1]["step"] == 16
    page = (run / "report.html").read_text()
    assert page.count("<audio") == 12
    assert "data:audio/wav" in page
    assert "Two views of each recording" in page
    header = read_header(run / "encoder.safetensors")
    assert header["spec"]["kind"] == "speech"
    assert header["spec"]["mels"] == 20
    encoder = twofold.load(run)
    assert isinstance(encoder, SpeechEncoder)
    assert (encoder.frontend.std != 1).all()


def test_it_resumes_bit_for_bit(folder, run, tmp_path):
    out = tmp_path / "parts"
    twofold.pretrain(folder, out, report=False, **TINY)
    for name in ("0000012", "0000016"):
        found = [p for p in (out / "checkpoints").iterdir() if name[-2:] in p.name]
        assert found, list((out / "checkpoints").iterdir())
    newest = max((out / "checkpoints").iterdir(), key=lambda p: p.name)
    newest.unlink()
    twofold.pretrain(folder, out, resume=True, report=False, **TINY)
    once, again = (twofold.load(path).state_dict() for path in (run, out))
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_evaluation_by_the_same_command(folder, run, protocol, capsys):
    assert cli.main(["evaluate", str(run), str(folder), "--protocol", protocol]) == 0
    told = capsys.readouterr().out
    assert "top-1" in told
    assert "whole recordings" in told.replace("\n", " ")
    assert "filterbank alone: top-1" in told


def test_verification_by_the_same_command(folder, run, capsys):
    assert cli.main(["evaluate", str(run), str(folder), "--protocol", "verification"]) == 0
    told = capsys.readouterr().out
    assert "EER" in told
    assert "filterbank alone: EER" in told
    written = json.loads(next((run / "evaluations").glob("verification-*.json")).read_text())
    assert written["pairs"] == 36 * 35 / 2
    assert 0 <= written["eer"] <= 1
    with pytest.raises(UserError, match="holds images, and the encoder takes recordings"):
        twofold.evaluate(run, images(), protocol="verification")


def test_the_encoder_is_exported_as_a_program(run, tmp_path, capsys):
    out = tmp_path / "encoder.pt2"
    assert cli.main(["export", str(run), "--format", "torch_export", "--out", str(out)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "8,000 Hz" in told
    assert "gives [n, 16]" in told
    module, encoder = torch.export.load(out).module(), twofold.load(run)
    for sizes in ([6000], [3000, 9000, 1200]):
        waves = Waves.of([torch.randn(size) for size in sizes])
        with torch.no_grad():
            torch.testing.assert_close(module(waves.samples, waves.lengths), encoder(waves), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="use torch_export"):
        export(run, tmp_path / "x")


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_what_is_compiled_is_what_runs(folder, tmp_path, monkeypatch, micro_batch):
    """The transformer: training hides frames before it, so the encoder as a whole is never called."""
    frames = []

    def backend(graph, _inputs):
        def run(*inputs):
            frames.append(next(x.shape for x in inputs if isinstance(x, torch.Tensor) and x.ndim == 3))
            return graph(*inputs)

        return run

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: real(f, backend=backend, fullgraph=True))
    options = TINY | {"epochs": 1, "micro_batch": micro_batch, "training.compile": True, "monitor": {"every": 0}}
    twofold.pretrain(folder, tmp_path / "run", report=False, **options)
    assert len(frames) >= 4 * (2 if micro_batch else 1)  # steps of an epoch, times chunks
    assert {shape[0] for shape in frames} == {2 * (micro_batch or 8)}


def test_only_one_of_the_losses(folder, tmp_path):
    for name, weights in (("c", {"reconstruction_weight": 0.0}), ("r", {"contrastive_weight": 0.0})):
        options = TINY | {"epochs": 1, "method": weights}
        run = twofold.pretrain(folder, tmp_path / name, report=False, **options)
        last = run.rows()[-1]
        assert last["loss"] > 0


def test_choices_for_speech(folder, capsys):
    assert cli.main(["pretrain", str(folder), "--print-config"]) == 0
    told = capsys.readouterr().out
    assert "name: speech_simclr" in told
    assert "name: speech:small" in told
    assert "norm: false" in told
    assert cli.main(["pretrain", str(folder), "--encoder.name", "speech:released", "--print-config"]) == 0
    told = capsys.readouterr().out
    for line in ("name: lamb", "reconstruction_weight: 0.5", "mask_span: 1", "mask_rule: released", "out_dim: 768"):
        assert line in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"views": {"size": 32}}, "--waves"),
        ({"encoder": {"name": "resnet18"}}, "speech:small"),
        ({"method": {"name": "moco"}}, "speech_simclr"),
        (
            {"method": {"name": "simclr"}},
            r"--method\.name simclr is for images, .*recordings.*choose speech_simclr",
        ),
        (
            {"method": {"loss": "nt_logistic"}},
            r"--method\.loss nt_logistic has no effect .*for images: leave it out$",
        ),
        ({"method": {"queue": 64}}, r"--method\.queue 64"),
        ({"data.audio.distinct": "text"}, "has no texts"),
        ({"data.audio.one_speaker": True}, "does not say who speaks"),
    ],
)
def test_options_for_images_are_refused(folder, tmp_path, options, told):
    with pytest.raises(UserError, match=told):
        twofold.pretrain(folder, tmp_path / "run", report=False, **TINY | options)


def test_the_method_of_the_data_takes_its_options(folder, capsys):
    """As the documentation gives them: without --method.name."""
    words = ["--method.reconstruction_weight", "0", "--method.mask_span", "3"]
    assert cli.main(["pretrain", str(folder), *words, "--print-config"]) == 0
    told = capsys.readouterr().out
    for line in ("name: speech_simclr", "reconstruction_weight: 0", "mask_span: 3"):
        assert line in told
    assert cli.main(["pretrain", str(folder), "--method.loss", "nt_logistic", "--print-config"]) == 2
    assert "choose simclr" not in capsys.readouterr().err.replace("\n", " ")


def test_options_for_audio_are_refused_for_images(tmp_path):
    for options, told in (
        ({"waves": {"pitch": 0.0}}, "--views"),
        ({"method": {"name": "speech_simclr"}}, "is for recordings, and the data are images: .*simclr or moco$"),
        (
            {"method": {"mask_span": 3}},
            r"--method\.mask_span 3 has no effect with --method\.name simclr.*for recordings",
        ),
    ):
        with pytest.raises(UserError, match=told):
            twofold.pretrain(images(), tmp_path / "run", report=False, batch=8, epochs=1, **options)


def test_distinct_labels(folder, tmp_path):
    options = TINY | {"epochs": 1, "batch": 3, "data.audio.distinct": "label"}
    run = twofold.pretrain(folder, tmp_path / "run", report=False, **options)
    assert np.isfinite(run.rows()[-1]["loss"])


def test_a_classifier_is_trained_on_recordings_and_the_encoder_with_it(folder, run, tmp_path):
    given = {"epochs": 2, "batch": 6, "training": {"device": "cpu", "precision": "fp32"}}
    quick = {"epochs": 40, "optim": {"name": "adamw", "lr": 3e-3, "lr_rule": "none"}, "waves": {"chain": 0.2}}
    found = finetune(run, folder, tmp_path / "tuned", **given | quick)
    assert found.metrics["top1"] > 0.6  # of three words
    assert found.result.digest[0] != found.result.digest[1]
    assert "one view of each recording" in found.text()
    frozen = finetune(run, folder, tmp_path / "frozen", freeze="encoder", **given)
    assert frozen.result.digest[0] == frozen.result.digest[1]
    fresh = finetune(run, folder, tmp_path / "fresh", from_scratch=True, labels="2/class", **given)
    encoder = twofold.load(tmp_path / "fresh")
    assert not torch.equal(
        encoder.frontend.std, twofold.load(run).frontend.std
    )  # the control has statistics of its own, of the labelled recordings
    assert fresh.result.labels == 6
    with pytest.raises(UserError, match="use those of --waves"):
        finetune(run, folder, tmp_path / "no", views={"size": 8}, **given)


def test_labels_answers_for_recordings(folder, run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    told = labels(copied, folder, counts=(3, 12), draws=2, epochs=2, batch=3)
    assert {(cell.features, cell.labels) for cell in told.cells} == {
        (way, count)
        for way in ("linear classifier", "linear classifier on filterbank", "fine-tuned", "from scratch")
        for count in (3, 12)
    }


def test_chunks_give_the_gradient_of_the_whole_batch(folder, tmp_path):
    states = []
    for micro_batch in (None, 2):
        speech = TINY["encoder"]["speech"] | {"dropout": 0.0}
        options = TINY | {"encoder": {"name": "speech:small", "speech": speech}, "epochs": 1, "monitor": {"every": 0}}
        options |= {"micro_batch": micro_batch}
        twofold.pretrain(folder, tmp_path / str(micro_batch), report=False, **options)
        states.append(twofold.load(tmp_path / str(micro_batch)).state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="does not divide"):
        twofold.pretrain(folder, tmp_path / "no", report=False, **TINY, micro_batch=3)


def test_the_heads_output_can_be_evaluated_of_recordings(folder, run):
    found = twofold.evaluate(run, folder, features="z", protocol="knn", k=3)
    assert found.feature_dim == 8
    assert found.baselines["filterbank"].top1 > 0.5  # the filterbank stands beside every number
