"""The released files: what measures them is printed, and of one that was converted the published value is told."""

import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from simclr_files import write_small
from test_moco_checkpoint import official_state, write

import twofold
from twofold import cli
from twofold.commands.convert import PUBLISHED_STEPS, convert, describe_network
from twofold.commands.papers import commands_of, released_of
from twofold.encoders import ResNet, read_header, save_encoder
from twofold.heads import Classifier
from twofold.published import converted, find, papers

ROWS = [
    (item, row) for paper in papers().values() for item in paper.items.values() for row in item.rows if row.released
]
SIMCLR = [(item, row) for item, row in ROWS if item.paper != "moco"]


def test_the_names_that_conversions_give_are_those_of_the_files():
    nets = {
        describe_network({"depth": depth, "width": width, "stem": "imagenet", "sk_ratio": ratio})
        for depth in (50, 101, 152) for width in (1, 2, 3, 4) for ratio in (0, 0.0625)
    }  # fmt: skip
    assert {row.released.found["network"] for _, row in SIMCLR} <= nets
    known = {
        step: (item.full_name, row.keys.get("labels"))
        for item, row in SIMCLR
        if (step := row.released.found.get("step"))
    }
    assert known == {
        225206: ("simclr/linear-files", None), 250228: ("simclr2/checkpoints", None),
        28151: ("simclr2/supervised", None), 751: ("simclr2/finetuned", "1pct"),
        3754: ("simclr2/finetuned", "10pct"), 37535: ("simclr2/finetuned", "100pct"),
    }  # fmt: skip
    assert known.keys() == PUBLISHED_STEPS.keys()
    assert len(SIMCLR) == 3 + 6 + 13 * 5
    for _, row in ROWS:
        assert row.released.file.count("{") == 0
        if row.released.saved():
            assert [each[1] for each in converted(row.released.found)] == [row], "one file, one row"
    assert len({row.released.file for _, row in ROWS}) == len(ROWS)


def test_the_numbers_are_those_of_the_readmes():
    files = {row.keys["width"]: row.values["top1"] for row in find("simclr/linear-files")[0].rows}
    assert files == {"1x": 69.1, "2x": 74.2, "4x": 76.6}
    found = {row.released.file: row.values["top1"] for _, row in ROWS}
    assert found["r50_1x_sk0/pretrained"] == 71.7
    assert found["r152_3x_sk1/finetuned_1pct"] == 74.9
    assert found["moco_v2_800ep_pretrain.pth.tar"] == 71.1


def test_a_conversion_without_a_step_or_of_another_net_is_of_no_known_file():
    found = {"network": "ResNet-50 1x, imagenet stem"}
    assert converted(found | {"step": 225207}) == []
    assert converted({"network": "ResNet-18 1x, imagenet stem", "step": 225206}) == []
    assert converted(found) == [], "that of the fine-tuned files is not known: any net is like them"


def test_the_papers_print_the_whole_way(capsys):
    (item,) = find("simclr/linear-files")
    assert commands_of(item) == released_of(item)
    for name in ("simclr/linear-files", "simclr2/checkpoints"):
        assert cli.main(["papers", name]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert "not run by us" in told
        assert "of the released files, where they lie in checkpoints/" in told
        lines = [shlex.split(line) for line in released_of(find(name)[0])]
        for first, second in zip(lines[::2], lines[1::2], strict=True):
            assert first[1:3] == ["convert", f"checkpoints/{first[2].removeprefix('checkpoints/')}"]
            assert second == ["twofold", "evaluate", first[-1], "imagenet", "--protocol", "imagenet"]
        assert " ".join(lines[0]) in told
    scored = released_of(find("moco/checkpoints")[0])[1]
    assert scored.startswith("twofold finetune encoders/moco_v1_200ep_pretrain imagenet --recipe linear-moco --out ")


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("n1", "n2", "n3")):
        place = tmp_path / "imagenet" / "val" / name
        place.mkdir(parents=True)
        Image.fromarray(np.full((40, 40, 3), 80 * i, np.uint8)).save(place / "a.png")
    return tmp_path / "imagenet"


def small(path, found, classes=3):
    """An encoder that says it was converted from a file with all this in it."""
    torch.manual_seed(0)
    encoder = ResNet(10, 0.125, stem="cifar").eval()
    extra = {"converted": {"weights": "base"} | found, "options": {"views": {"size": 32, "resample": "tf1"}}}
    path.mkdir()
    save_encoder(path / "encoder.safetensors", encoder, None, extra, Classifier(encoder.feature_dim, classes), 0)
    return path


@pytest.mark.parametrize(
    ("step", "network", "told"),
    [
        (225206, "ResNet-50 2x, imagenet stem", "74.2 % top-1 by linear evaluation (width 2x) (simclr/linear-files; "),
        (751, "ResNet-50 1x, imagenet stem, selective kernels 0.0625",
         "64.5 % top-1 fine-tuned (net r50-1x-sk, labels 1pct) (simclr2/finetuned; "),
        (28151, "ResNet-101 2x, imagenet stem", "78.9 % top-1 trained with labels (net r101-2x) (simclr2/supervised; "),
    ],
)  # fmt: skip
def test_the_published_value_stands_beside_that_of_a_converted_file(tmp_path, folder, step, network, told):
    encoder = small(tmp_path / "converted", {"step": step, "network": network})
    found = twofold.evaluate(encoder, folder, protocol="imagenet")
    line = f"published: {told}a released file, known by its step {step:,} and its net alone), not to be compared: "
    assert found.published == [f"{line}50,000 test examples there, 3 here"]
    assert found.published[0] in found.text()
    assert json.loads(found.file.read_text())["published"] == found.published


def test_other_weights_of_the_file_and_other_files_have_none(tmp_path, folder):
    known = {"step": 225206, "network": "ResNet-50 1x, imagenet stem"}
    for name, found in (("ema", known | {"weights": "ema"}), ("other", known | {"step": 7})):
        assert twofold.evaluate(small(tmp_path / name, found), folder, protocol="imagenet").published == []


def test_what_a_conversion_finds_is_kept_with_the_encoder(tmp_path):
    """By what `published` asks for: else no file would ever be known."""
    write_small(tmp_path / "simclr", step=751)
    first = read_header(convert(tmp_path / "simclr", tmp_path / "first").file)["extra"]["converted"]
    assert first["step"] == 751
    file = write(tmp_path / "moco.pth.tar", official_state("resnet18", True))  # after 200 epochs
    second = read_header(convert(file, tmp_path / "second").file)["extra"]["converted"]
    wanted = find("moco/checkpoints")[0].rows[1].released.found
    assert {name: second[name] for name in wanted} == wanted | {
        "network": wanted["network"].replace("resnet50", "resnet18")
    }
    assert converted(second | {"network": wanted["network"]}) == [
        (find("moco/checkpoints")[0], find("moco/checkpoints")[0].rows[1])
    ]


def test_a_classifier_trained_on_a_converted_encoder_stands_beside_it(tmp_path):
    """MoCo's files hold none."""
    encoder = small(tmp_path / "converted", dict(find("moco/checkpoints")[0].rows[2].released.found))
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), np.arange(24) % 3
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    small_options = {"epochs": 1, "batch": 8, "training": {"device": "cpu"}, "report": False, "freeze": "encoder"}
    found = twofold.finetune(encoder, str(tmp_path / "data.npz"), tmp_path / "run", **small_options)
    (line,) = found.published
    assert line.startswith(
        "published: 71.1 % top-1 by linear evaluation (case v2-800) (moco/checkpoints; a released file, known by its "
        "epoch 800 and its net alone), not to be compared: 50,000 test examples there, 6 here; of the evaluation, "
    )
    whole = twofold.finetune(
        encoder, str(tmp_path / "data.npz"), tmp_path / "whole", **small_options | {"freeze": "nothing"}
    )
    assert whole.published == ()
