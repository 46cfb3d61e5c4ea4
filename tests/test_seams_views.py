"""Views draw and apply what their options say: each option off its default, against numbers made by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from asked import Asked
from twofold.encoders import EncoderConfig, build_encoder
from twofold.heads import Classifier, HeadConfig, ProjectionHead
from twofold.randomness import Key, uniforms
from twofold.views import ImageViews, ViewsConfig, build_views, color, images, pairs, resample
from twofold.views.audio import operators
from twofold.views.audio.masks import numbers_needed
from twofold.views.audio.views import _NUMBERS, _OPERATORS, WavesConfig, WaveViews, _places
from twofold.views.boxes import crop_boxes
from twofold.views.studies import operators as studies
from twofold.views.studies.operators import Blur, Color, Crop, make_operator
from twofold.views.studies.views import StudyViews, left_out
from twofold.waves import Waves

RATE, KEY = 8000, Key(3, 5)
WAVES = WavesConfig(
    speeds=(0.8, 1.25), pitches=(0.75, 1.5), reverb=1.0, reverb_seconds=(0.2, 0.3), band_reject=1.0, band_width=0.3,
)  # fmt: skip


def test_every_option_of_the_views_of_recordings_reaches_them() -> None:
    noise, response = torch.arange(5.0) + 1, torch.tensor([0.0, 3.0, 1.0])
    views = WaveViews(WAVES, RATE, [noise], [response], 4)
    assert (views._speeds, views._pitches) == ([Fraction(4, 5), Fraction(5, 4)], [Fraction(3, 4), Fraction(3, 2)])
    assert (views.span, len(views.noises)) == (4, 1)
    assert torch.equal(views.noises[0, :7], torch.tensor([1.0, 2, 3, 4, 5, 1, 2]))
    assert views.responses is not None
    assert torch.equal(views.responses.samples, torch.tensor([[1.0, 1 / 3]]))
    plain = WaveViews(WAVES, RATE)
    assert (plain.span, len(plain.noises), plain.responses) == (1, 4, None)


def test_the_numbers_of_a_recording_s_views_are_their_formula() -> None:
    views, rows = WaveViews(WAVES, RATE, span=4), np.arange(6)
    first, second = views.draw(KEY, rows, np.array([4000, 800, 2400, 4000, 1600, 900]))
    frames = int(4000 / 0.8 / 80) + 2
    for view, draw in (("a", first), ("b", second)):
        u = uniforms(KEY, f"{view}/waves", rows, _NUMBERS)
        assert torch.equal(
            draw.later, torch.from_numpy(uniforms(KEY, f"{view}/masks", rows, numbers_needed(frames, 4))).float()
        )
        place = 2 + 3 * list(_OPERATORS).index("band_reject")
        top = 2595 * np.log10(1 + RATE / 2 / 700)
        width = u[:, place + 1] * 0.3 * top
        low = 700 * (10 ** (u[:, place + 2] * (top - width) / 2595) - 1)
        np.testing.assert_allclose(draw.band[:, 0].numpy(), low, rtol=1e-5)


def test_a_room_is_noise_from_its_place_that_decays(monkeypatch: pytest.MonkeyPatch) -> None:
    views = WaveViews(WAVES, RATE)
    room = torch.tensor([[0.2, -6.0, 0.25], [0.3, -3.0, 0.5]])
    impulse = views._rooms(room)
    assert impulse.shape == (2, int(0.3 * RATE))
    white = views._tail
    _, start = _places(room[:, 2], 1, len(white))
    t = torch.arange(1, impulse.shape[1])
    for row in range(2):
        tail = white[(start[row] + t) % len(white)] * torch.exp(-6.9078 * t / (room[row, 0] * RATE))
        tail = tail * (10 ** (room[row, 1] / 10) / tail.square().sum()).sqrt()
        torch.testing.assert_close(impulse[row, 1:], tail)
    asked = Asked(monkeypatch)
    asked.of(operators, "add_noise")
    part = Waves(torch.randn(2, 300), torch.tensor([300, 200]))
    views._mix(part, torch.tensor([[10.0, 0.3], [5.0, 0.9]]))
    ((_, noise, _),) = asked["add_noise"]
    kind, begin = _places(torch.tensor([0.3, 0.9]), 4, views.noises.shape[1])
    for row in range(2):
        assert torch.equal(noise[row, :10], views.noises[kind[row], begin[row] : begin[row] + 10])


def test_what_masks_need_goes_with_the_view() -> None:
    views = WaveViews(replace(WAVES, chain=0.0), RATE, span=2)
    waves = Waves(torch.randn(3, 900), torch.tensor([900, 800, 700]))
    draws = views.draw(KEY, np.arange(3), waves.lengths.numpy())
    for view, draw in zip(views.apply(waves, draws), draws, strict=True):
        assert view.random is not None
        assert torch.equal(view.random, draw.later)
    assert torch.equal(views.one(waves, draws[1]).random, draws[1].later)  # type: ignore[arg-type]


def test_speed_and_noise_follow_what_they_were_given() -> None:
    waves = Waves(torch.sin(torch.arange(2000.0) / 10)[None], torch.tensor([2000]))
    fast = operators.change_speed(waves, Fraction(5, 4))
    assert int(fast.lengths[0]) == 1600
    short = Waves(torch.ones(1, 400), torch.tensor([100]))
    noise = torch.cat([torch.ones(1, 100), 9 * torch.ones(1, 300)], dim=1)
    mixed = operators.add_noise(short, noise, torch.tensor([0.0]))
    torch.testing.assert_close(mixed.samples[0, :100], torch.full((100,), 2.0))
    assert not mixed.samples[0, 100:].any()


def test_a_crop_that_cannot_be_is_the_whole_image() -> None:
    assert crop_boxes(KEY, "x", [0, 1], 7, 13, area=(3.0, 4.0)).tolist() == [[0, 0, 7, 13]] * 2
    central = crop_boxes(KEY, "x", [0, 1], 7, 13, area=(3.0, 4.0), aspect=(0.5, 0.9), rule="torchvision")
    assert central.tolist() == [[0, 3, 7, 6]] * 2


@pytest.mark.parametrize("rule", ["tf", "torchvision"])
def test_each_operator_of_colours_has_its_rule(rule: Any) -> None:
    x, factors = torch.rand(2, 3, 5, 4), torch.tensor([[0.3, 0.6, 1.4, 0.1], [-0.2, 1.5, 0.5, -0.2]])
    for additive in ("additive", "multiplicative"):
        made = color.jitter(x.clone(), torch.tensor([2, 1, 0, 3]), factors, additive, rule)  # type: ignore[arg-type]
        y = color.saturation(x.clone(), factors[:, 2], rule).clamp(0, 1)
        y = color.contrast(y, factors[:, 1], rule).clamp(0, 1)
        y = color.brightness(y, factors[:, 0], additive).clamp(0, 1)  # type: ignore[arg-type]
        torch.testing.assert_close(made, color.hue(y, factors[:, 3]).clamp(0, 1))


def test_whole_images_are_resized_by_the_rule_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    asked.of(resample, "crop_resize", "resample")
    resample.letterbox(torch.rand(2, 3, 9, 7), 6, "tf1")
    resample.center_crop(torch.rand(2, 3, 9, 7), 6, 0.7, "bilinear")
    assert asked["crop_resize"] == ["tf1", "bilinear"]


VIEWS: dict[str, Any] = {
    "crop_rule": "torchvision", "crop_area": (0.3, 0.6), "crop_aspect": (0.5, 0.9), "resample": "bilinear",
    "blur_padding": "reflect",
}  # fmt: skip


def test_every_option_of_the_views_of_images_reaches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    asked.of(images, "crop_resize", "resample")
    asked.of(images, "gaussian_blur")
    asked.of(images, "jitter_rows")
    config = ViewsConfig(size=24, blur=1.0, brightness_rule="additive", color_rule="torchvision", **VIEWS)
    views = ImageViews(config)
    assert views.size == 24
    draws = views.draw(KEY, np.arange(4), 30, 40)
    expected = crop_boxes(KEY, "a/crop", np.arange(4), 30, 40, rule="torchvision", area=(0.3, 0.6), aspect=(0.5, 0.9))
    assert (draws[0].box.numpy() == expected).all()
    pixels = torch.randint(0, 256, (4, 3, 30, 40), dtype=torch.uint8)
    first, _ = views.apply(pixels, draws)
    torch.testing.assert_close(views.one(pixels, draws[0]), first)
    assert set(asked["crop_resize"]) == {"bilinear"}
    assert {given[3] for given in asked["gaussian_blur"]} == {"reflect"}
    assert {given[4:] for given in asked["jitter_rows"]} == {("additive", "torchvision")}
    assert images.strength_of(ViewsConfig(size=8)) == 1.0
    assert images.strength_of(ViewsConfig(size=8, color_strength=0.3)) == 0.3


@pytest.mark.parametrize(("size", "chosen"), [(32, (0.5, 0.0)), (33, (0.5, 0.5)), (64, (0.5, 0.5)), (65, (1.0, 0.5))])
def test_views_in_one_call_are_those_of_the_seed(size: int, chosen: tuple[float, float]) -> None:
    views = pairs.views_of(size)
    assert (views.size, views.config.color_strength, views.config.blur) == (size, *chosen)
    told = pairs.views_of(size, color_strength=0.2, blur=0.3).config
    assert (told.color_strength, told.blur) == (0.2, 0.3)
    several = [torch.randint(0, 256, (3, *sides), dtype=torch.uint8) for sides in ((40, 36), (50, 44), (36, 60))]
    a, b = pairs.two_views(several, 9, size=size)
    draws = views.draw(Key(9, 0), np.arange(3), np.array([40, 50, 36]), np.array([36, 44, 60]))
    for row, image in enumerate(several):
        for made, draw in zip((a, b), draws, strict=True):
            torch.testing.assert_close(made[row], views.one(image[None], draw[row : row + 1])[0], atol=1e-5, rtol=1e-5)


def test_every_option_of_the_views_of_studies_reaches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ViewsConfig(size=24, operators=("crop", "color"), operators_on="both", shared_crop=False)
    built = build_views(config)
    assert isinstance(built, StudyViews)
    assert ([type(each) for each in built.operators], built.branch, built.shared_crop) == ([Crop, Color], "both", False)
    one = build_views(replace(config, operators_on="first", shared_crop=True))
    assert isinstance(one, StudyViews)
    assert (one.branch, one.shared_crop) == ("first", True)
    shared = build_views(ViewsConfig(size=24, shared_crop=True))
    assert isinstance(shared, StudyViews)
    assert shared.operators == []
    assert type(build_views(ViewsConfig(size=24))) is ImageViews
    crop = Crop(area=(0.3, 0.6), aspect=(0.5, 0.9), rule="torchvision", resample="bilinear")
    boxes = crop_boxes(KEY, "s/box", np.arange(4), 24, 24, rule="torchvision", area=(0.3, 0.6), aspect=(0.5, 0.9))
    assert torch.equal(crop.draw(KEY, "s", np.arange(4), 24)[:, 1:], torch.from_numpy(boxes).float())
    asked, x = Asked(monkeypatch), torch.rand(4, 3, 24, 24)
    asked.of(studies, "gaussian_blur", "padding")
    asked.of(studies, "crop_resize", "resample")
    for operator in (crop, Blur(padding="reflect")):
        operator.apply(x, operator.draw(KEY, "s", np.arange(4), 24))
    assert (asked["gaussian_blur"], asked["crop_resize"]) == (["reflect"], ["bilinear"])
    assert Color(strength=0.5)._parts()["jitter"].strength == 0.5  # type: ignore[attr-defined]
    assert make_operator({"name": "color", "strength": 0.5}) == Color(strength=0.5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, True), ({"color_strength": 0.0}, False), ({"grayscale": 0.0, "jitter": 0.0}, False),
        ({"grayscale": 0.0, "jitter_ranges": (0.8, 0.8, 0.0, 0.0)}, False), ({"grayscale": 0.0}, True),
        ({"jitter": 0.0}, True), ({"color_strength": 0.0, "operators": ("color",)}, True),
    ],
)  # fmt: skip
def test_what_four_channels_leave_out_is_told_where_it_was_asked_for(options: dict[str, Any], told: bool) -> None:
    assert bool(left_out(ViewsConfig(size=24, **options), 4)) is told
    assert left_out(ViewsConfig(size=24, **options), 3) == ""


def test_every_option_of_a_head_reaches_it() -> None:
    head = ProjectionHead(9, HeadConfig(kind="nonlinear", layers=3, hidden_dim=7, out_dim=5, norm=True))
    assert head.widths == [9, 7, 7, 5]
    assert [len(layer) for layer in head.layers] == [3, 3, 2]  # type: ignore[arg-type]
    assert head.config.norm
    bare = ProjectionHead(9, HeadConfig(kind="nonlinear", layers=2, out_dim=5, norm=False))
    assert bare.widths == [9, 9, 5]
    assert not any("norm" in type(module).__name__.lower() for module in bare.modules())
    assert bare.layers[0][0].bias is not None  # type: ignore[index]
    assert head.layers[0][0].bias is None  # type: ignore[index]
    linear = ProjectionHead(9, HeadConfig(kind="linear", out_dim=5))
    assert linear.widths == [9, 5]
    assert not Classifier(4, 2, "zero").weight.any()
    assert Classifier(4, 2, "normal").weight.any()


def test_the_channels_of_an_encoder_are_the_data_s_where_nothing_is_said() -> None:
    for told, found in ((None, 3), (1, 1)):
        config = EncoderConfig.of(name="resnet10", channels=told)
        assert config.chosen(10, 3, None, 16, False)[0].channels == found
    assert build_encoder(EncoderConfig.of(name="resnet10", width=0.125, channels=1), 16).input.channels == 1
    assert build_encoder(EncoderConfig.of(name="resnet10", width=0.125), 16).input.channels == 3
