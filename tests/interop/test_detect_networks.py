"""Networks found from names and shapes alone, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from simclr_files import listed, small_net, tf1_tensors

from golden_data import golden, golden_path
from twofold.encoders import ResNet
from twofold.errors import UserError
from twofold.heads import Classifier, HeadConfig, ProjectionHead
from twofold.interop.detect import Network, Shape, detect, require_same

# Spec B.2: convolutions, norms and millions of parameters of the 13 nets of SimCLR v2, r152_3x_sk1 the largest.
V2 = [
    (50, 1, 0, 53, 53, 24), (50, 1, 1, 87, 71, 35), (50, 2, 0, 53, 53, 94), (50, 2, 1, 87, 71, 140),
    (101, 1, 0, 104, 104, 43), (101, 1, 1, 172, 139, 65), (101, 2, 0, 104, 104, 170), (101, 2, 1, 172, 139, 257),
    (152, 1, 0, 155, 155, 58), (152, 1, 1, 257, 207, 89), (152, 2, 0, 155, 155, 233), (152, 2, 1, 257, 207, 354),
    (152, 3, 1, 257, 207, 795),
]  # fmt: skip
V1 = [(1, 24), (2, 94), (4, 376)]  # width and millions of parameters


def shapes_of(
    encoder: ResNet, head: ProjectionHead | None, classifier: Classifier | None, prefix: str = ""
) -> dict[str, Shape]:
    return Network(encoder, head, classifier, prefix, []).expected()


def count(shapes: dict[str, Shape], leaf: str) -> int:
    return sum(re.search(leaf, name) is not None for name in shapes)


@pytest.mark.parametrize(("depth", "width", "sk", "convs", "norms", "millions"), V2)
def test_the_nets_of_simclr_v2(depth: int, width: int, sk: int, convs: int, norms: int, millions: int) -> None:
    with torch.device("meta"):
        encoder = ResNet(depth, width, "imagenet", sk_ratio=0.0625 * sk)
        head = ProjectionHead(encoder.feature_dim, HeadConfig(layers=3))
        shapes = shapes_of(encoder, head, Classifier(encoder.feature_dim, 1000))
    assert count(shapes, "^base_model/conv2d") == convs
    assert count(shapes, "^base_model/.*gamma") == norms
    found = detect(shapes, "file")
    assert found.encoder.arguments() == encoder.arguments()
    assert found.head is not None
    assert found.head.config == head.config
    assert found.classifier is not None
    assert found.classifier.out_features == 1000
    assert round(sum(t.numel() for t in found.encoder.state_dict().values()) / 1e6) == millions


@pytest.mark.parametrize(("width", "millions"), V1)
def test_the_nets_of_simclr_v1(width: int, millions: int) -> None:
    """No projection head in these files."""
    with torch.device("meta"):
        encoder = ResNet(50, width, "imagenet")
        shapes = shapes_of(encoder, None, Classifier(encoder.feature_dim, 1000))
    found = detect(shapes, "file")
    assert found.encoder.arguments() == encoder.arguments()
    assert found.head is None
    assert found.classifier is not None
    assert round(sum(t.numel() for t in found.encoder.state_dict().values()) / 1e6) == millions


GOLDEN = [
    ("resnet_r18_1x_cifar.npz", 18, 1.0, "cifar", 0.0, 2),
    ("resnet_r18_1x_finetune.npz", 18, 1.0, "imagenet", 0.0, 3),
    ("resnet_r18_2x_cifar.npz", 18, 2.0, "cifar", 0.0, 2),
    ("resnet_r50_1x_cifar.npz", 50, 1.0, "cifar", 0.0, 3),
    ("resnet_r50_1x_imagenet.npz", 50, 1.0, "imagenet", 0.0, 3),
    ("resnet_r50_1x_sk.npz", 50, 1.0, "imagenet", 0.0625, 3),
]


@pytest.mark.parametrize(("name", "depth", "width", "stem", "sk_ratio", "layers"), GOLDEN)
def test_names_and_shapes_of_the_official_code(
    name: str, depth: int, width: float, stem: str, sk_ratio: float, layers: int
) -> None:
    if not golden_path(name).exists():
        pytest.skip(f"{name} is in the whole golden set only")
    meta = golden(name).meta
    found = detect({n: tuple(s) for n, s in zip(meta["tf1_names"], meta["var_shapes"], strict=True)}, name)
    assert found.encoder.arguments() == {
        "depth": depth, "width": width, "stem": stem, "channels": 3, "sk_ratio": sk_ratio,
    }  # fmt: skip
    assert found.head is not None
    assert found.head.config == HeadConfig(layers=layers, norm=True)


# Selective kernels add nothing to the variables of basic blocks but the deep stem; there the ratio does not show.
NETS = [(depth, stem, 0.0) for depth in (10, 18, 34, 50, 101, 152, 200) for stem in ("cifar", "imagenet")]
NETS += [(depth, "imagenet", 0.0625) for depth in (10, 18, 34, 50, 101, 152, 200)]
NETS += [(depth, "cifar", 0.0625) for depth in (50, 101, 152, 200)]
NETS += [(50, "cifar", 0.25), (50, "imagenet", 0.25), (101, "imagenet", 0.125)]


@pytest.mark.parametrize(("depth", "stem", "sk_ratio"), NETS)
def test_every_net_that_can_be_built(depth: int, stem: str, sk_ratio: float) -> None:
    with torch.device("meta"):
        encoder = ResNet(depth, 1.5, stem, 3, sk_ratio)  # type: ignore[arg-type]
    found = detect(shapes_of(encoder, None, None), "file")
    assert found.encoder.arguments() == encoder.arguments()


@pytest.mark.parametrize(
    "config",
    [
        HeadConfig("linear", out_dim=64),
        HeadConfig(layers=1),
        HeadConfig(layers=2, out_dim=2048),
        HeadConfig(layers=4, hidden_dim=100),
        HeadConfig(layers=3, out_dim=32),
    ],
)
def test_heads(config: HeadConfig) -> None:
    with torch.device("meta"):
        encoder = ResNet(18, 0.125, "cifar")
        shapes = shapes_of(encoder, ProjectionHead(encoder.feature_dim, config), None)
    found = detect(shapes, "file")
    assert found.classifier is None
    assert found.head is not None
    told = found.head.config
    layers = 1 if config.kind == "linear" else config.layers
    assert (told.kind, told.layers, told.out_dim, told.hidden_dim) == (
        config.kind,
        layers,
        config.out_dim,
        config.hidden_dim,
    )


def test_the_golden_list_of_a_fine_tuned_resnet_50() -> None:
    """443 variables, of which 162 are the optimizer's; given whole, the slots are left-over variables."""
    names = {name: tuple(shape) for name, shape in listed("tf1_r50_1x_sk0_finetune/variables.txt").items()}
    weights = {
        name: shape for name, shape in names.items() if name.startswith(("base", "head")) and "Momentum" not in name
    }
    found = detect(weights, "file")
    assert found.encoder.arguments()["depth"] == 50
    assert len(found.expected()) == 281
    with pytest.raises(UserError, match=r"left over.*beta/Momentum.*and \d+ more"):
        detect({name: shape for name, shape in names.items() if name != "global_step"}, "file")


SMALL = {name: value.shape for name, value in tf1_tensors(*small_net()).items()}
EMA = {f"ema_model/{name}": shape for name, shape in SMALL.items() if not name.startswith("head_supervised")}


def test_moving_averages_are_one_tree_of_two() -> None:
    """Counted naively, a file with both trees has every layer twice."""
    both = SMALL | EMA
    base = detect(both, "file")
    assert (base.prefix, sorted(base.other)) == ("", sorted(EMA))
    assert base.expected() == SMALL
    assert detect(both, "file", "base").prefix == ""
    ema = detect(both, "file", "ema")
    assert (ema.prefix, ema.expected(), ema.classifier) == ("ema_model/", EMA, None)
    assert sorted(ema.other) == sorted(SMALL)
    assert detect(EMA, "file").prefix == "ema_model/"


def test_a_tree_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"--weights ema: file holds no such variables, only base"):
        detect(SMALL, "file", "ema")
    with pytest.raises(UserError, match=r"--weights base: file holds no such variables, only ema"):
        detect(EMA, "file", "base")
    with pytest.raises(UserError, match="give auto, base or ema"):
        detect(SMALL, "file", "both")  # type: ignore[arg-type]


def test_trees_are_never_mixed() -> None:
    """A moving average that lacks one variable is not completed from the base weights."""
    some = {name: shape for name, shape in EMA.items() if not name.endswith("conv2d_3/kernel")}
    with pytest.raises(UserError, match=r"1 missing: ema_model/base_model/conv2d_3/kernel$"):
        detect(SMALL | some, "file", "ema")
    mixed = {(f"ema_model/{name}" if "conv2d_3/" in name else name): shape for name, shape in SMALL.items()}
    with pytest.raises(UserError, match=r"1 missing: base_model/conv2d_3/kernel$"):
        detect(mixed, "file")


@pytest.mark.parametrize("name", [*sorted(SMALL)[::6], *(name for name in SMALL if name.startswith("head"))])
def test_every_missing_variable_is_named(name: str) -> None:
    rest = {other: shape for other, shape in SMALL.items() if other != name}
    with pytest.raises(UserError, match=rf"{name}\b"):
        detect(rest, "file")


@pytest.mark.parametrize(
    "name", ["base_model/conv2d_21/kernel", "base_model/se/kernel", "head_contrastive/nl_1/batch_normalization/beta",
             "head_supervised/linear_layer/dense_1/kernel", "base_model/conv2d/kernel/Average", "other"],
)  # fmt: skip
def test_every_left_over_variable_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"1 left over: {name}$"):
        detect({**SMALL, name: (3,)}, "file")


@pytest.mark.parametrize("name", ["base_model/conv2d_5/kernel", "base_model/batch_normalization_20/moving_mean"])
def test_a_wrong_shape_is_named_with_the_right_one(name: str) -> None:
    wrong = (*SMALL[name][:-1], SMALL[name][-1] + 1)
    with pytest.raises(UserError) as error:
        detect({**SMALL, name: wrong}, "file")
    assert f"1 of another shape: {name} {list(wrong)} instead of {list(SMALL[name])}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("base_model/conv2d/kernel", (3, 3), "no convolution"),
        ("head_contrastive/nl_0/dense/kernel", (64,), r"of another shape: \S*nl_0/dense/kernel \[64\] instead"),
        ("head_contrastive/nl_3/dense/kernel", (64, 16), r"missing: .*\S*nl_2/dense/kernel"),
        ("head_contrastive/nl_4/dense/kernel", (64, 64), "head.layers must be 1, 2, 3 or 4"),
        ("head_contrastive/l_0/dense/kernel", (64, 64), "head of no known kind"),
        ("head_contrastive/other", (64, 64), "1 left over: head_contrastive/other"),
        ("head_supervised/linear_layer/dense/kernel", (64,), "no matrix"),
    ],
)
def test_shapes_of_no_such_layer(name: str, shape: Shape, match: str) -> None:
    with pytest.raises(UserError, match=match):
        detect({**SMALL, name: shape}, "file")


def test_other_networks() -> None:
    with pytest.raises(UserError, match=r"file is no SimCLR checkpoint: .*it has conv1/kernel"):
        detect({"conv1/kernel": (3, 3, 3, 8)}, "file")
    with pytest.raises(UserError, match="no SimCLR checkpoint"):
        detect({}, "file")


def test_compare_says_all_that_differs() -> None:
    with pytest.raises(UserError) as error:
        require_same({"a": (1,), "b": (2,), "c": (3,)}, {"b": (2,), "c": (4,), "d": ()}, "this file")
    assert str(error.value) == "this file; 1 missing: a; 1 left over: d; 1 of another shape: c [4] instead of [3]"
    require_same({"a": (1,)}, {"a": (1,)}, "this file")
