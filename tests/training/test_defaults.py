"""What is chosen when little is said, and that it is said."""

import re
from pathlib import Path

import pytest
import torch

from twofold import recipe as recipes
from twofold.data import DataFacts
from twofold.devices import choose_precision
from twofold.options import flatten, merge, plain
from twofold.randomness import Key
from twofold.runs.config import build
from twofold.runs.defaults import choose
from twofold.views import views_of


def facts(count=1000, side=100, channels=3):
    return DataFacts(count, side, side, channels, False, False, None)


@pytest.mark.parametrize("count", [2, 5, 60, 3000, 1_281_167])
@pytest.mark.parametrize("side", [8, 28, 32, 96, 500])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_choice_is_made_and_fits_the_data(count, side, device):
    config, told = choose(build({}), facts(count, side), torch.device(device))
    assert 2 <= config.batch <= count
    assert 0 < config.views.size <= side or (side < 8 and config.views.size == side)
    for room, names in {"encoder": ("name", "stem", "channels"), "optim": ("name", "lr", "weight_decay")}.items():
        for name in names:
            assert getattr(getattr(config, room), name) is not None
    assert config.epochs >= 1
    assert config.method.temperature
    for word in ("views.size", "encoder", "batch", "epochs", "lr", "temperature", f"{count:,} images"):
        assert word in told


def test_what_was_said_stays():
    said = {
        "epochs": 3.0,
        "batch": 16,
        "views.size": 48,
        "views.blur": 0.25,
        "views.color_strength": 0.75,
        "encoder": {"name": "resnet34", "width": 2.0, "stem": "imagenet", "channels": 1},
        "optim": {"name": "sgd", "lr": 0.1, "lr_rule": "linear", "weight_decay": 0.0},
        "method.temperature": 0.7,
    }
    config, told = choose(build(said), facts(), torch.device("cpu"))
    chosen = flatten(plain(config))
    for name, value in flatten(merge(said)).items():
        assert chosen[name] == value
    assert "nothing" in told
    assert "measured" not in told


@pytest.mark.parametrize(("size", "blur"), [(16, 0.0), (20, 0.5)])
def test_a_blur_of_one_pixel_is_left_out(size, blur):
    config, told = choose(build({"views": {"size": size, "blur": 0.5}}), facts(), torch.device("cpu"))
    assert config.views.blur == blur
    assert ("views.blur 0 (at 16 px" in told) == (blur == 0)


@pytest.mark.parametrize("given", [{}, {"crop_area": (0.3, 1.0)}, {"flip": 0.0}])
@pytest.mark.parametrize(("size", "strength", "blur"), [(32, 0.5, 0.0), (64, 0.5, 0.5), (65, 1.0, 0.5)])
def test_an_option_of_the_views_changes_no_other(given, size, strength, blur):
    config, _ = choose(build({"views": {"size": size} | given}), facts(), torch.device("cpu"))
    assert (config.views.color_strength, config.views.blur) == (strength, blur)
    for name, value in given.items():
        assert getattr(config.views, name) == value


@pytest.mark.parametrize(
    ("side", "cpu", "gpu"), [(20, 20, 20), (32, 32, 32), (63, 32, 32), (64, 32, 64), (129, 32, 128), (500, 32, 224)]
)
def test_views_on_a_processor_are_small(side, cpu, gpu):
    for device, size in (("cpu", cpu), ("cuda", gpu)):
        assert choose(build({}), facts(side=side), torch.device(device))[0].views.size == size


@pytest.mark.parametrize(("size", "least"), [(8, 0.3), (16, 0.3), (17, 0.08), (32, 0.08), (224, 0.08)])
def test_crops_of_tiny_views_are_larger(size, least):
    config, told = choose(build({"views": {"size": size}}), facts(), torch.device("cpu"))
    assert config.views.crop_area == (least, 1.0)
    assert ("views.crop_area" in told) == (least == 0.3)
    said, _ = choose(build({"views": {"size": size, "crop_area": (0.05, 0.9)}}), facts(), torch.device("cpu"))
    assert said.views.crop_area == (0.05, 0.9)
    draws = views_of(size).draw(Key(0, 0), range(500), size, size)
    same = views_of(size, crop_area=(least, 1.0)).draw(Key(0, 0), range(500), size, size)
    other = views_of(size, crop_area=(0.2, 1.0)).draw(Key(0, 0), range(500), size, size)
    assert torch.equal(draws[0].box, same[0].box)
    assert not torch.equal(draws[0].box, other[0].box)


@pytest.mark.parametrize(
    ("side", "cpu", "gpu"),
    [(8, "cifar", "cifar"), (16, "small", "cifar"), (64, "small", "small"), (96, "imagenet", "imagenet")],
)
def test_a_stem_leaves_enough_of_the_picture(side, cpu, gpu):
    for device, stem in (("cpu", cpu), ("cuda", gpu)):
        config, _ = choose(build({"views": {"size": side}}), facts(side=side), torch.device(device))
        assert config.encoder.stem == stem


@pytest.mark.parametrize(("side", "width"), [(8, 1.0), (16, 1.0), (17, 0.5), (64, 0.5)])
def test_the_smallest_pictures_leave_time_for_a_whole_width(side, width):
    config, told = choose(build({}), facts(side=side), torch.device("cpu"))
    assert config.encoder.width == width
    assert f"resnet10 at width {width:g} (CPU" in told


@pytest.mark.parametrize(("epochs", "momentum", "norm"), [(8, 0.797, True), (200, 0.992, False), (100, 0.984, True)])
def test_moco_s_head_has_batch_norm_where_its_key_encoder_follows_fast(epochs, momentum, norm):
    options = {"method.name": "moco", "batch": 32, "epochs": float(epochs)}
    config, _ = choose(build(options), facts(3947), torch.device("cpu"))
    assert (config.method.momentum, config.head.norm) == (momentum, norm)
    said, _ = choose(build(options | {"head.norm": not norm}), facts(3947), torch.device("cpu"))
    assert said.head.norm == (not norm)


@pytest.mark.parametrize("recipe", ["simclr-cifar10-resnet18", "simclr-imagenet-100"])
def test_a_recipe_of_the_paper_keeps_its_crops_at_any_size(recipe):
    options = merge(recipes.load(recipe).options, {"views": {"size": 16}})
    assert choose(build(options), facts(side=16), torch.device("cpu"))[0].views.crop_area == (0.08, 1.0)


@pytest.mark.parametrize(
    ("name", "width", "lr"), [(None, 1.0, 6e-3), ("resnet18", None, 6e-3), ("resnet50", 2.0, 2e-3)]
)
def test_a_width_that_was_said_is_kept_and_all_branches_take_part(name, width, lr):
    config, _ = choose(build({"encoder": {"name": name, "width": width}}), facts(), torch.device("cpu"))
    assert (config.encoder.width, config.encoder.zero_init_residual) == (width or 1.0, False)
    assert (config.optim.name, config.optim.lr) == ("adamw", lr)


def test_recipes_of_the_published_runs_start_their_branches_at_zero():
    published = [r for r in recipes.names() if r.startswith("simclr")]
    for name in published:
        encoder = recipes.load(name).options.get("encoder", {})
        assert encoder.get("zero_init_residual", True), name
        if "name" in encoder:
            assert encoder["zero_init_residual"], name


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw", "lamb"])
def test_an_optimiser_named_alone_gets_its_usual_rate(name):
    config, told = choose(build({"optim.name": name}), facts(), torch.device("cpu"))
    assert config.optim.name == name
    assert config.optim.lr > 0
    assert f"usual for {name}" in told


def test_a_chosen_configuration_is_complete():
    config, _ = choose(build({}), facts(), torch.device("cpu"))
    again, told = choose(config, facts(), torch.device("cpu"))
    assert again == config
    assert "nothing" in told


def test_grey_images_get_a_one_channel_encoder():
    assert choose(build({}), facts(channels=1), torch.device("cpu"))[0].encoder.channels == 1


def test_precision_follows_the_wish_or_the_processor(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) == "no"
    assert choose_precision("bf16", cpu) == "bf16"
    assert choose_precision("auto", torch.device("mps")) == "no"
    for flags, chosen in (
        ({"avx512_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({}, "no"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags, raising=False)
        assert choose_precision("auto", cpu) == chosen
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as older releases of torch are
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert choose_precision("auto", cpu) == ("bf16" if native else "no")


def rows_of_choices():
    """The table "What each choice rests on" of docs/defaults.md: options, and the text of their rows."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "defaults.md").read_text()
    section = text.split("## What each choice rests on\n")[1].split("\n## ")[0]
    found = {}
    for line in section.splitlines():
        if line.startswith("| `--"):
            cells = line.strip("|").split(" | ")
            assert len(cells) == 3, line
            assert cells[2].strip(), line
            found |= dict.fromkeys(re.findall(r"`--([\w.]+)`", cells[0]), line)
    return found


VALUES = (
    "encoder.name", "encoder.stem", "views.blur", "views.color_strength", "optim.name", "optim.lr",
    "optim.weight_decay", "optim.lr_rule", "method.temperature", "method.name",
)  # fmt: skip
"""Options of few values, each of which is in the row."""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("change", [{}, {"encoder.name": "resnet50"}, {"batch": 2048}], ids=str)
def test_each_choice_has_its_row_and_its_value_there(device, change):
    rows, given = rows_of_choices(), flatten(plain(build(change)))
    for count in (60, 5000, 60_000, 1_281_167):
        for side in (8, 16, 28, 64, 128, 300):
            config, told = choose(build(change), facts(count, side), torch.device(device))
            assert "(measured in docs/defaults.md)" in told
            for name, value in flatten(plain(config)).items():
                if given.get(name) is not None or value is None or name == "encoder.channels":
                    continue  # (channels are the data's)
                assert name in rows, f"{name} {value} is chosen and docs/defaults.md does not say why"
                if name in VALUES:
                    text = f"{value:g}" if isinstance(value, float) else value
                    assert re.search(rf"(?<![\w.]){re.escape(text)}(?!\w|\.\d)", rows[name]), (name, value)


def test_the_page_of_recordings_is_named():
    about = DataFacts(100, 0, 8000, 1, False, False, None, "audio", 8000)
    assert "(measured in docs/speech.md)" in choose(build({}), about, torch.device("cpu"))[1]
