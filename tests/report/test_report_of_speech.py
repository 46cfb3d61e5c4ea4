"""The page of a run on recordings: both losses with what needs no learning, speakers' neighbours, players that play."""

from __future__ import annotations

import json
import os
import re
import subprocess

import numpy as np
import pytest
import torch
from test_report_browser import BROWSER, FLAGS

import twofold
from sound_files import RATE, tone, write
from twofold.encoders import SpeechEncoder, Waves
from twofold.heads import HeadConfig
from twofold.losses import chance_level, interpolated
from twofold.methods import Inputs, SpeechSimCLR
from twofold.randomness import Key
from twofold.report.plots import training_figures
from twofold.report.retrieval import retrieval_table
from twofold.views.audio.views import WavesConfig, WaveViews

TINY = {
    "epochs": 2, "batch": 8, "training": {"device": "cpu", "precision": "fp32", "log_every": 1},
    "monitor": {"every": 0},
    "encoder": {
        "name": "speech:small",
        "speech": {"mels": 20, "width": 16, "layers": 1, "heads": 2, "hidden": 32, "sample_rate": RATE},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a manifest that names two words and three speakers."""
    root = tmp_path_factory.mktemp("speech")
    lines = ["path,label,speaker"]
    for i in range(24):
        word, voice = i % 2, i % 3
        write(root / f"{i}.wav", tone(word, voice, 0.5, seed=i))
        lines.append(f"{i}.wav,word{word},voice{voice}")
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    return twofold.pretrain(root / "clips.csv", root / "run", **TINY)


def test_hidden_frames_lie_on_the_line_between_those_that_are_seen():
    x = torch.tensor([[0.0, 5.0, 5.0, 3.0, 9.0, 7.0], [2.0, 9.0, 4.0, 9.0, 1e9, 1e9], [1.0, 1.0, 8.0, 8.0, 8.0, 8.0]])
    hidden = torch.tensor([[0, 1, 1, 0, 0, 1], [0, 1, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    found = interpolated(x[:, :, None], hidden, torch.tensor([6, 4, 2]))[:, :, 0]
    expected = torch.tensor([[0, 1, 2, 3, 9, 9], [2, 3, 4, 4, 1e9, 1e9], [0, 0, 8, 8, 8, 8]], dtype=torch.float32)
    torch.testing.assert_close(found, expected)


def test_the_rows_tell_both_losses_and_what_needs_no_learning(run):
    for row in run.rows():
        assert row["loss"] == pytest.approx(row["contrastive"] + row["reconstruction"], rel=1e-4)
        assert row["contrastive_chance"] == pytest.approx(chance_level(8))
        assert row["linear_error"] > 0


@torch.no_grad()
def test_the_line_is_drawn_through_what_the_encoder_sees():
    torch.manual_seed(0)
    small = {"mels": 20, "width": 16, "layers": 1, "heads": 2, "hidden": 32}
    model = SpeechSimCLR(SpeechEncoder(RATE, **small, cmvn="utterance_mean"), HeadConfig(out_dim=8, norm=False)).eval()
    waves = Waves.of([torch.from_numpy(tone(i % 5, i // 5, 0.3 + 0.06 * i, seed=i)) for i in range(8)])
    made = WaveViews(WavesConfig(), RATE)
    views = made.apply(waves, made.draw(Key(0, 0), np.arange(8), waves.lengths.numpy()))
    output = model(Inputs(*views))
    both = Waves.cat(views)
    x, frames = model.encoder.features_of(both)
    masked, hidden = model.mask(x, frames, both.random)
    error = (interpolated(masked, hidden, frames) - x).abs()[hidden].mean()
    torch.testing.assert_close(output.linear_error, error)
    assert output.linear_error < output.mean_error  # sounds change slowly
    assert model.describe(output, 8)["linear_error"] == pytest.approx(float(error))


def test_reconstruction_is_drawn_beside_the_contrast(run):
    figures = {figure.title: figure for figure in training_figures(run.rows())}
    assert list(figures)[:3] == ["Training loss", "Contrastive loss", "Reconstruction"]
    last = run.rows()[-1]
    drawn = {title: {s["name"]: s["text"][-1] for s in figures[title].hover["series"]} for title in list(figures)[:3]}
    assert drawn["Training loss"]["loss"] == f"{last['loss']:.4g}"
    assert drawn["Contrastive loss"] == {
        "loss": f"{last['contrastive']:.4g}", "chance level": f"{last['contrastive_chance']:.4g}",
    }  # fmt: skip
    assert drawn["Reconstruction"] == {
        "error": f"{last['reconstruction']:.4g}", "the mean everywhere": f"{last['mean_error']:.4g}",
        "straight line": f"{last['linear_error']:.4g}",
    }  # fmt: skip


def test_a_run_of_images_has_one_loss():
    rows = [{"step": i, "epoch": i / 2, "loss": 3.0 - i, "chance": 4.0} for i in range(3)]
    assert [figure.title for figure in training_figures(rows)] == ["Contrastive loss"]


def test_neighbours_by_speaker_are_counted():
    """Features are words: the neighbour says the same word, whoever speaks."""
    words = np.array([0, 1] * 6)
    speakers = np.repeat(["a", "b", "c"], 4).tolist()
    h = np.stack([words, 1 - words], axis=1).astype(np.float32)
    h = np.concatenate([h, np.random.default_rng(0).normal(0, 1e-3, (12, 2)).astype(np.float32)], axis=1)
    table = retrieval_table(h, speakers, words)
    assert table.columns[:2] == ["speaker", "recordings"]
    assert [row[0] for row in table.rows] == ["all", "a", "b", "c"]
    assert all(row[4:] == ["100.0", "50.0"] for row in table.rows)  # by other speakers, of whom half say the same
    assert all(row[3] == f"{100 * 3 / 11:.1f}" for row in table.rows)  # three others of one's own among eleven
    voices = np.eye(3, dtype=np.float32)[np.repeat([0, 1, 2], 4)]
    assert all(row[2] == "100.0" for row in retrieval_table(voices, speakers).rows)
    assert len(retrieval_table(voices, speakers).columns) == 4  # without labels
    assert retrieval_table(h, ["a"] * 12) is None
    assert retrieval_table(h, [str(i) for i in range(12)]) is None
    some = retrieval_table(h, [*speakers[:8], "", "", "", ""], np.where(np.arange(12) < 2, -1, words))
    assert [row[:2] for row in some.rows] == [["all", 8], ["a", 4], ["b", 4]]


def test_the_page_of_recordings_speaks_of_recordings(run):
    """The map and the neighbours of recordings were told as images."""
    page = (run.path / "report.html").read_text()
    words = re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert not re.search(r"\bimages?\b", words, re.IGNORECASE)
    assert "Recordings that the encoder finds similar" in words
    assert "a recording&#39;s spectrogram" in words
    assert re.search(r'aria-label="Map of \d+ recordings', page)


def test_the_page_shows_speakers(run):
    page = (run.path / "report.html").read_text()
    assert "Neighbours by speaker" in page
    assert page.count(">voice") >= 3


@pytest.mark.skipif(BROWSER is None, reason="needs chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 390])
def test_players_are_wide_enough_to_have_a_button_and_are_let_play(run, tmp_path, width):
    probe = """<script>addEventListener("load", async () => {
      const players = [...document.querySelectorAll("audio")], widths = players.map((p) => p.clientWidth);
      const sideways = document.documentElement.scrollWidth - innerWidth;
      players[0].preload = "auto"; players[0].load();
      const ready = await new Promise((done) => {
        players[0].addEventListener("loadedmetadata", () => done(players[0].duration));
        players[0].addEventListener("error", () => done("refused"));
      });
      const result = document.createElement("pre");
      result.id = "probe"; result.textContent = JSON.stringify({ widths, ready, sideways });
      document.body.replaceChildren(result);
    });</script>"""
    file = tmp_path / "page.html"
    file.write_text((run.path / "report.html").read_text().replace("</body>", probe + "</body>"))
    flags = [flag for flag in FLAGS if not flag.startswith("--window-size")] + [f"--window-size={width},1000"]
    command = [str(BROWSER), *flags, f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "HOME": str(tmp_path)}
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-2000:]
    seen = json.loads(found[1])
    assert len(seen["widths"]) == 12
    assert min(seen["widths"]) >= 200
    assert seen["ready"] == pytest.approx(0.5, abs=0.3)
    assert seen["sideways"] <= 0
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
