"""A method, an encoder and an option of one's own: each says itself what it takes, and refuses what is others'."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import OPTIONS, images
from torch import Tensor, nn

import twofold
from twofold import cli
from twofold.encoders import Encoder, InputSpec, build_encoder
from twofold.encoders.build import EncoderConfig, ImageEncoderConfig
from twofold.encoders.load import load
from twofold.errors import UserError
from twofold.heads import HeadConfig
from twofold.methods import Inputs, Method, MethodConfig, Output
from twofold.optim import OptimConfig
from twofold.options import merge, option, plain
from twofold.recipe import read_layers
from twofold.runs.config import RunConfig, build


@pytest.fixture
def method() -> Iterator[type[Method]]:
    """Tells the mean colour of a view: no head, no negatives, no temperature."""

    class MeanColour(Method):
        @dataclass(frozen=True)
        class Config(MethodConfig, variant="mean_colour"):
            """Tell the mean colour."""

            name: str | None = "mean_colour"
            error: float = 2.0
            """Power of the error."""

            def build(self, encoder: Encoder, head: HeadConfig, seed: int = 0) -> MeanColour:  # noqa: ARG002
                return MeanColour(encoder, self.error)

        def __init__(self, encoder: Encoder, error: float) -> None:
            super().__init__()
            self.encoder, self.error = encoder, error
            self.colour = nn.Linear(encoder.feature_dim, 3)

        def forward(self, inputs: Inputs) -> Output:
            a, _ = inputs.images()
            h = self.encoder(a)
            return Output((self.colour(h) - a.mean((2, 3))).abs().pow(self.error).mean(), h.detach())

        def trained(self) -> list[nn.Module]:
            return [self.encoder, self.colour]

    yield MeanColour
    del MethodConfig.variants["mean_colour"]


@pytest.fixture
def encoder() -> Iterator[type[Encoder]]:
    """The colours of a few cells."""

    class Cells(Encoder, kind="cells"):
        @dataclass(frozen=True)
        class Config(ImageEncoderConfig, variant="cells"):
            """The colours of a few cells."""

            name: str | None = "cells"
            side: int = 2
            """Cells in a row."""

            def build(self, image_size: int | None = None) -> Cells:  # noqa: ARG002
                return Cells(self.channels_or_rgb(), self.side)

        def __init__(self, channels: int = 3, side: int = 2) -> None:
            super().__init__(InputSpec(channels), channels * side**2)
            self.side, self.scale = side, nn.Parameter(torch.ones(()))

        def features(self, x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(x, self.side).flatten(1) * self.scale

        def arguments(self) -> dict[str, Any]:
            return {"channels": self.input.channels, "side": self.side}

    yield Cells
    del EncoderConfig.variants["cells"], Encoder.kinds["cells"]


@pytest.mark.usefixtures("method")
def test_a_new_method_has_its_own_options_and_its_own_metrics(tmp_path: Path) -> None:
    options = merge(OPTIONS, {"method": {"name": "mean_colour", "error": 1.5}, "epochs": 1})
    run = twofold.pretrain(images(), tmp_path / "run", **options)
    assert plain(run.read(RunConfig)[0].method) == {"name": "mean_colour", "error": 1.5}
    rows = run.rows()
    assert all(np.isfinite(row["loss"]) for row in rows)
    for row in rows:
        assert not row.keys() & {"negatives", "chance", "contrastive_top1", "temperature"}
    assert "knn_top1" in rows[-1]
    assert "loss of chance" not in (run.path / "report.html").read_text()


@pytest.mark.usefixtures("method")
def test_a_new_method_refuses_the_options_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("temperature", 0.2), ("queue", 64), ("normalize", False), ("mask_span", 3)):
        words = rf"--method\.{name} {str(value).lower()} has no effect with --method\.name mean_colour"
        with pytest.raises(UserError, match=words):
            twofold.pretrain(images(), tmp_path / "run", method={"name": "mean_colour", name: value})
    with pytest.raises(UserError, match=r"--method\.error 1\.5 has no effect with --method\.name moco.*mean_colour"):
        build({"method": {"name": "moco", "error": 1.5}})
    assert not (tmp_path / "run").exists()
    brought = build({"encoder.name": "speech:released", "method.name": "mean_colour"})  # the name brings none of them
    assert (plain(brought.method), brought.waves.clean_view) == ({"name": "mean_colour", "error": 2.0}, True)
    assert cli.main(["pretrain", "--help-all"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "mean_colour: tell the mean colour" in told
    assert "mean_colour: Power of the error." in told


@pytest.mark.usefixtures("encoder")
def test_a_new_encoder_has_its_own_options_and_refuses_the_options_of_others(tmp_path: Path) -> None:
    options = merge(OPTIONS, {"epochs": 1}) | {"encoder": {"name": "cells", "side": 3}}
    run = twofold.pretrain(images(), tmp_path / "run", report=False, **options)
    assert load(run.path).feature_dim == 27
    for name, value in (("stem", "cifar"), ("sk_ratio", 0.0625), ("width", 2.0), ("pretrained", True)):
        with pytest.raises(UserError, match=rf"--encoder\.{name} .* has no effect with --encoder\.name cells"):
            twofold.pretrain(images(), tmp_path / "other", encoder={"name": "cells", name: value})


@pytest.mark.parametrize(("name", "value"), [("stem", "cifar"), ("sk_ratio", 0.0625), ("channels", 1)])
def test_a_module_of_ones_own_has_no_options_of_a_resnet(tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / "options.yaml").write_text(f"encoder: {{{name}: {value}}}\n")
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    with pytest.raises(UserError, match=rf"--encoder\.{name} {value} has no effect with --encoder\.name custom"):
        twofold.pretrain(images(), tmp_path / "run", config=tmp_path / "options.yaml", encoder=module)
    layers = read_layers("demo-mnist", None, {"encoder": {"name": "custom"}})
    assert layers["encoder"] == {"name": "custom"}, "what a recipe says of its encoder is not meant"
    with pytest.raises(UserError, match=r"encoder\.name custom is a module of your own"):
        build_encoder(EncoderConfig.of(name="custom"))


def test_a_new_option_of_an_optimiser_says_itself_where_it_applies() -> None:
    @dataclass(frozen=True)
    class WithSlowStart(OptimConfig):
        amsgrad: bool | None = option(None, when={"name": ("adamw",)})
        """Keep the largest second moment."""

    assert WithSlowStart(name="adamw", amsgrad=True).amsgrad
    with pytest.raises(UserError, match=r"--optim\.amsgrad true has no effect with --optim\.name sgd.*choose adamw"):
        WithSlowStart(name="sgd", amsgrad=True)


def test_a_run_of_an_earlier_version_loads() -> None:
    """Its config.yaml holds the options of all methods and encoders, those of others at their defaults."""
    method = {
        "name": "moco", "temperature": 0.2, "normalize": True, "scale": "mean_2n", "loss": "nt_xent", "mining": None,
        "margin": None, "negatives": None, "memory": None, "memory_momentum": None, "queue": 64, "momentum": 0.99,
        "symmetric": None, "bn_splits": 1, "shuffle": None, "contrastive_weight": None, "reconstruction_weight": None,
        "mask_share": None, "mask_span": None, "time_mask": None, "frequency_mask": None, "mask_rule": None,
        "reconstruction_scale": None, "target": None,
    }  # fmt: skip
    speech = dict.fromkeys(("sample_rate", "mels", "low_hz", "cmvn", "width", "layers", "heads", "hidden", "dropout",
                            "pooling", "stack"))  # fmt: skip
    encoder = {
        "name": "timm:test_resnet", "width": 1.0, "stem": "auto", "channels": 3, "zero_init_residual": True,
        "pretrained": False, "sk_ratio": 0.0, "mean": None, "std": None, "speech": speech,
    }  # fmt: skip
    config = build({"method": method, "encoder": encoder})
    assert plain(config.method) == {key: method[key] for key in ("name", "temperature", "queue", "momentum",
                                                                  "symmetric", "bn_splits", "shuffle")}  # fmt: skip
    kept = {key: encoder[key] for key in ("name", "channels", "pretrained", "mean", "std")}
    assert plain(config.encoder) == kept | {"pooling": "auto"}, "and of options since then the default"
    heard = build({"encoder": encoder | {"name": "speech:small", "stem": None, "channels": 1}}).encoder
    assert plain(heard) == {"name": "speech:small", "speech": speech}


def test_resuming_refuses_another_methods_option(tmp_path: Path) -> None:
    options = merge(OPTIONS, {"epochs": 1, "monitor.every": 0})
    run = twofold.pretrain(images(), tmp_path / "run", report=False, **options)
    with pytest.raises(UserError, match=r"--method\.queue 64 has no effect with --method\.name simclr"):
        twofold.pretrain(images(), run.path, resume=True, report=False, **merge(options, {"method.queue": 64}))
