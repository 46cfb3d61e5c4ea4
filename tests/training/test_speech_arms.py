"""The bench of speech: every arm is options that exist, departs from the recipe, and answers a question."""

import importlib.util
from pathlib import Path

import pytest
import torch

from sound_files import tone, write
from twofold.data import DataConfig, open_source
from twofold.encoders import build_encoder
from twofold.options import flatten, merge, plain
from twofold.recipe import load
from twofold.runs.config import build
from twofold.runs.defaults import choose

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "speech_defaults.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("speech_defaults", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_arm_departs_from_the_recipe_by_what_it_says(bench, tmp_path):
    for i in range(8):
        write(tmp_path / "clips" / f"{i}.wav", tone(i % 4, i))
    facts = open_source(tmp_path / "clips", DataConfig()).facts()
    recipe, found = load("demo-speech").options, {}
    for name, options in bench.ARMS.items():
        own = {key: value for key, value in options.items() if key != "recipe"}
        given = own if "recipe" in options else merge(recipe, own)
        config, _ = choose(build(merge({"batch": 2}, given)), facts, torch.device("cpu"))
        config.method.build(build_encoder(config.encoder, None), config.head)
        found[name] = flatten(plain(config))
        assert {key: found[name][key] for key in own} == own
    for name, values in found.items():
        assert name == "recipe" or values != found["recipe"], name
    assert len({tuple(sorted((k, str(v)) for k, v in values.items())) for values in found.values()}) == len(found)


def test_every_arm_has_a_question(bench):
    asked = [name for arms in bench.QUESTIONS.values() for name in arms]
    assert sorted(asked) == sorted(set(bench.ARMS) - {"recipe", "defaults"})


def test_arms_are_chosen_by_name_or_by_question(bench):
    assert list(bench.arms("recipe,pooling", "")) == ["recipe", *bench.QUESTIONS["pooling"]]
    assert list(bench.arms("", "3,5")) == ["3 epochs", "5 epochs"]
    assert dict(bench.arms("all", "")) == bench.ARMS
    with pytest.raises(SystemExit, match="--arms pooled: give all, questions"):
        bench.arms("pooled", "")


def test_a_voice_under_several_names_is_one_voice(bench, tmp_path):
    """Debian links en to a voice's folder: heard as two voices it would be trained on while it is held out."""
    for number, voice in enumerate(("en_US_f", "fr_CA_f")):
        for letter in "ab":
            write(tmp_path / voice / "letters" / f"{letter}.wav", tone(number, ord(letter)))
        write(tmp_path / voice / "hello.wav", tone(number, 9))
    (tmp_path / "en").symlink_to(tmp_path / "en_US_f")
    clips, letters = bench.recordings(tmp_path, None)
    assert [len(clips), len(letters)] == [6, 4]
    assert {each.speaker for each in clips} == {"en_US_f", "fr_CA_f"}
