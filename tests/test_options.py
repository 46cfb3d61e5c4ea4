"""The machinery of options: classes chosen by one field, where an option applies, and what is said otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import pytest
from jsonargparse import ArgumentParser

from twofold.errors import UserError
from twofold.options import (
    GIVEN,
    OptionsParser,
    Variant,
    add_options,
    explanation,
    fields_of,
    given,
    leaves,
    option,
    plain,
    refuse_unused,
)
from twofold.runs.config import FinetuneConfig, RunConfig


@dataclass(frozen=True)
class Shape(Variant):
    """A shape."""

    prefix = "shape."
    unnamed = ("circle", "tone")

    name: str | None = None
    """The shape."""
    colour: str = "black"
    """Its colour."""


@dataclass(frozen=True)
class Grain:
    """The grain of a material."""

    size: int = 3
    """Of a grain."""


@dataclass(frozen=True)
class Circle(Shape, variant="circle"):
    """Round, all of it."""

    kind = "image"
    neutral = {"corners": (0,)}  # noqa: RUF012

    name: str | None = "circle"
    radius: float = 1.0
    """From the middle to the edge."""
    filled: bool = True
    """Not the line alone."""
    pattern: Literal["dots", "lines"] | None = option(None, when={"filled": (True,)})
    """On it."""
    grain: Grain = field(default_factory=Grain)
    """Grain"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.radius > 0:
            raise UserError(f"--shape.radius must be above 0, got {self.radius}")


@dataclass(frozen=True)
class Square(Shape, variant="square"):
    """Has corners."""

    kind = "image"

    name: str | None = "square"
    side: float = 1.0
    """Of the square."""
    corners: int | None = None
    """How many are round."""
    rounding: float | None = option(None, when={"corners": (GIVEN,)})
    """Radius of those."""


@dataclass(frozen=True)
class Tone(Shape, variant="tone"):
    """Is heard."""

    kind = "audio"

    name: str | None = "tone"
    hertz: float = 440.0
    """Its pitch."""
    radius: float = 1.0
    """How far it is heard."""


@dataclass(frozen=True)
class Paint:
    """Paint."""

    gloss: float | None = None
    """How much it shines."""


@dataclass(frozen=True)
class Drawing:
    """A drawing."""

    seed: int = 0
    """Of the hand."""
    shape: Shape = field(default_factory=Shape.of)
    """Shape"""
    paint: Paint = option(factory=Paint, when={"kind": ("image",)}, instead="use those of --sound")
    """Paint"""
    layers: int | None = option(None, when={"run": ("first", "second")})
    """Of paint."""


def build(**options: object) -> Drawing:
    return OptionsParser(Drawing).build(options)


def test_one_field_chooses_the_class_and_its_options() -> None:
    drawing = build(shape={"name": "circle", "radius": 2, "grain": {"size": 5}})
    assert drawing.shape == Circle(radius=2.0, grain=Grain(5))
    assert build(**{"shape.name": "square", "shape.side": 3}).shape == Square(side=3.0)
    assert Shape.of(name="tone", hertz=3.0) == Tone(hertz=3.0)
    assert build(**plain(drawing)) == drawing
    with pytest.raises(UserError, match=r"--shape\.name expects one of.*circle.*hexagon"):
        build(shape={"name": "hexagon"})
    with pytest.raises(UserError, match=r"no --shape\.name sqare; did you mean 'square'"):
        Shape.of(name="sqare")
    with pytest.raises(TypeError, match=r"'square' is for Square, not Circle"):
        Circle(name="square")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"name": "square", "radius": 2.0}, r"^--shape\.radius 2 has no effect with --shape\.name square: leave it "
         r"out, or choose circle or tone$"),
        ({"name": "square", "grain": {"size": 5}}, r"--shape\.grain\.size 5 has no effect with --shape\.name square"),
        ({"name": "tone", "side": 2.0}, r"side 2 has no effect with .* tone, it is of square, for images: leave"),
        ({"name": "circle", "filled": False, "pattern": "dots"},
         r"--shape\.pattern dots has no effect with --shape\.filled false: leave it out, or choose true"),
        ({"name": "square", "rounding": 0.5}, r"rounding 0\.5 has no effect without --shape\.corners: leave it out"),
        ({"name": "circle", "corners": 3}, r"--shape\.corners 3 has no effect"),
        ({"name": "circle", "radius": -1.0}, r"--shape\.radius must be above 0, got -1\.0"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused(shape: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(shape=shape)


def test_what_says_nothing_is_accepted_of_other_classes() -> None:
    """A configuration of an earlier version holds the options of all classes, those of others at their defaults."""
    everything = {"name": "square", "radius": 1.0, "filled": True, "pattern": None, "hertz": 440.0, "side": 2.0,
                  "grain": {"size": 3}, "corners": 1, "rounding": 0.5, "colour": "red"}  # fmt: skip
    assert build(shape=everything).shape == Square(side=2.0, corners=1, rounding=0.5, colour="red")
    assert build(shape={"name": "circle", "corners": 0}).shape == Circle()  # what a circle has anyway


def test_an_open_choice_keeps_options_until_the_kind_of_data_is_known() -> None:
    drawing = build(shape={"radius": 2.0, "colour": "red"})
    assert (drawing.shape.name, drawing.shape.radius) == (None, 2.0)  # type: ignore[attr-defined]
    assert drawing.shape.narrowed("image") == Circle(radius=2.0, colour="red")
    assert drawing.shape.narrowed("audio") == Tone(radius=2.0, colour="red")
    assert Square().narrowed("audio") == Square()  # chosen already; `refuse_unused` says that it does not fit
    assert build(**plain(drawing)) == drawing
    assert build() == Drawing()
    with pytest.raises(UserError, match=r"hertz 3 has no effect with .* circle, it is of tone, for"):
        build(shape={"hertz": 3.0}).shape.narrowed("image")
    with pytest.raises(UserError, match=r"side 2 has no effect with --shape\.name circle or tone, .* choose square"):
        build(shape={"side": 2.0})
    with pytest.raises(UserError, match=r"pattern dots has no effect with --shape\.filled false"):
        build(shape={"filled": False, "pattern": "dots"})
    with pytest.raises(UserError, match=r"--shape\.(hertz|filled) .* has no effect"):
        build(shape={"hertz": 3.0, "filled": False})  # of a circle and a tone: no class has both


def test_the_kind_of_data_and_other_words_decide_what_applies() -> None:
    refuse_unused(build(shape={"name": "circle"}, paint={"gloss": 0.5}, layers=2), kind="image", run="first")
    refuse_unused(build(layers=2))  # nothing is known of the run
    for drawing, context, words in (
        (build(paint={"gloss": 0.5}), {"kind": "audio"},
         r"^--paint\.gloss 0\.5 is for images, and the data are recordings: use those of --sound$"),
        (build(shape={"name": "square"}), {"kind": "audio"},
         r"^--shape\.name square is for images, and the data are recordings: leave it out, or choose tone$"),
        (build(shape={"name": "tone"}), {"kind": "image"}, r"is for recordings.*or choose circle or square$"),
        (build(layers=2), {"run": "third"}, r"--layers 2 has no effect with --run third: leave it out, or choose"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            refuse_unused(drawing, **context)


def test_every_option_reaches_the_parser_and_says_whose_it_is() -> None:
    parser = ArgumentParser(exit_on_error=False)
    add_options(parser, Drawing)
    words = ["--seed=3", "--shape.name=square", "--shape.side=2", "--shape.grain.size=4", "--paint.gloss=0.5"]
    assert given(parser.parse_args(words, defaults=False)) == {
        "seed": 3, "shape": {"name": "square", "side": 2.0, "grain": {"size": 4}}, "paint": {"gloss": 0.5},
    }  # fmt: skip
    paths = {leaf.path: explanation(leaf) for leaf in leaves(Drawing)}
    assert paths["shape.name"] == "The shape. circle: round, all of it; tone: is heard; square: has corners."
    assert paths["shape.side"] == "square: Of the square."
    assert paths["shape.pattern"] == "circle, filled true: On it."
    assert paths["shape.grain.size"] == "circle: Of a grain."
    assert paths["paint.gloss"] == "images: How much it shines."
    assert paths["shape.rounding"] == "square, with corners: Radius of those."
    assert paths["shape.radius"] == "circle or tone: From the middle to the edge. How far it is heard."
    assert "--shape.grain.size" in parser.format_help()


@pytest.fixture
def _another_shape() -> Iterator[None]:
    yield
    Shape.variants.pop("ring", None)


@pytest.mark.usefixtures("_another_shape")
def test_a_new_class_is_one_registration() -> None:
    @dataclass(frozen=True)
    class Ring(Shape, variant="ring"):
        """With a hole."""

        name: str | None = "ring"
        hole: float = 0.5
        """Its share."""

    assert build(shape={"name": "ring", "hole": 0.1}).shape == Ring(hole=0.1)
    with pytest.raises(UserError, match=r"--shape\.radius 2 has no effect with --shape\.name ring"):
        build(shape={"name": "ring", "radius": 2.0})
    with pytest.raises(UserError, match=r"--shape\.hole 0\.1 has no effect with --shape\.name square"):
        build(shape={"name": "square", "hole": 0.1})


@pytest.mark.usefixtures("_another_shape")
def test_two_classes_cannot_mean_different_things_by_one_name() -> None:
    @dataclass(frozen=True)
    class Ring(Shape, variant="ring"):
        """With a hole."""

        radius: int = 7
        """In pixels."""

    assert Ring().radius == 7
    with pytest.raises(TypeError, match="radius has another type or default in circle and ring"):
        fields_of(Shape)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 0.1}, "there is no option 'lr'; did you mean 'optim.lr'?"),
        ({"learning-rate": 0.1}, "there is no option 'learning-rate'; did you mean 'optim.lr'?"),
        ({"optim": {"learning_rate": 0.1}}, "there is no option 'optim.learning_rate'; did you mean 'optim.lr'?"),
        ({"batch_size": 8}, "there is no option 'batch_size'; did you mean 'batch'?"),
        ({"model": "resnet10"}, "there is no option 'model'; did you mean 'encoder.name'?"),
        ({"device": "cpu"}, "there is no option 'device'; did you mean 'training.device'?"),
        ({"workers": 0}, "there is no option 'workers'; did you mean 'data.workers'?"),
        ({"optim": {"temperature": 1}}, "there is no option 'optim.temperature'; did you mean 'method.temperature'?"),
        ({"epoch": 1}, "there is no option 'epoch'; did you mean 'epochs'?"),
        ({"encoder": "resnet18"}, "'encoder' is a group of options, got 'resnet18'; 'encoder.name' is the one"),
        ({"monitor": 3}, "'monitor' is a group of options, got 3; set 'monitor.<option>'"),
    ],
)
def test_names_of_other_programs_are_answered_with_ours(options, said):
    """In files and in Python, where they are not taken: what a run keeps has one name."""
    with pytest.raises(UserError, match=re.escape(said)):
        OptionsParser(RunConfig).build(options)


@pytest.mark.parametrize(("given", "expected"), [({"labels": 50}, "50"), ({"labels": "50"}, "50"), ({}, "all")])
def test_a_number_where_text_is_written_is_taken_as_on_the_command_line(given, expected) -> None:
    assert OptionsParser(FinetuneConfig).build(given).labels == expected


def test_a_truth_value_is_no_text() -> None:
    with pytest.raises(UserError, match="--labels expects str, got"):
        OptionsParser(FinetuneConfig).build({"labels": True})
