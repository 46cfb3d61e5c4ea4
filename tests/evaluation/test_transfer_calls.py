"""`twofold transfer` over several calls, with files that cannot be read, and where it computes."""

import json

import pytest
import torch
from transfer_trees import TREES

from twofold import cli
from twofold.commands.transfer import transfer
from twofold.encoders import EncoderConfig, build_encoder, save_encoder
from twofold.errors import UserError
from twofold.studies.transfer import linear as measuring
from twofold.studies.transfer import study as command


@pytest.fixture
def root(tmp_path):
    for name in ("birdsnap", "cars", "pets"):
        TREES[name](tmp_path)
    return tmp_path


@pytest.fixture
def encoder_file(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "run" / "encoder.safetensors"
    path.parent.mkdir()
    config = EncoderConfig.of(name="resnet10", width=0.125, stem="cifar", channels=3)
    save_encoder(path, build_encoder(config, 16), extra={"options": {"views": {"size": 16}}})
    return path


@pytest.fixture(autouse=True)
def _three_penalties(monkeypatch):
    monkeypatch.setattr(command, "PAPER_GRID", (1e-3, 1e-1, 10.0))


def cut_short(root, *names):
    """JPEG files whose headers are whole and whose pixels are not."""
    for name in names:
        file = root / "oxford-iiit-pet" / "images" / f"{name}.jpg"
        file.write_bytes(file.read_bytes()[:-60])


def table(encoder_file):
    rows = json.loads((encoder_file.parent / "transfer" / "table.json").read_text())
    return [(row["data"], row["protocol"]) for row in rows]


def test_a_test_image_that_cannot_be_read_costs_that_image_alone(root, encoder_file, capsys):
    cut_short(root, "Abyssinian_40")
    words = ["transfer", str(encoder_file), "--data", "pets", "--root", str(root)]
    assert cli.main(words) == 0
    cell = json.loads((encoder_file.parent / "transfer" / "pets-linear.json").read_text())
    assert cell["value"] == 1.0  # labels of the wrong rows would give less
    assert "3 test images scored once; 0 of these and 1 test image could not be read" in cell["text"]
    cut_short(root, "beagle_40")
    (encoder_file.parent / "transfer" / "pets-linear.json").unlink()
    assert cli.main([*words, "--resume"]) == 2
    assert "2 of 4 images cannot be read and --max_skipped allows 1" in capsys.readouterr().err
    assert cli.main([*words, "--resume", "--max_skipped", "0.5"]) == 0


def test_a_class_none_of_which_can_be_read_is_told_before_anything_is_fitted(root, encoder_file, monkeypatch):
    cut_short(root, "beagle_40", "beagle_41")
    monkeypatch.setattr(measuring, "fit_path", lambda *_: pytest.fail("fitted"))
    with pytest.raises(UserError, match="pets/test: 1 of 2 classes without an image that can be read: Beagle"):
        transfer(encoder_file, data="pets", root=str(root), max_skipped=1.0)


def test_the_table_holds_what_every_call_found(root, encoder_file, monkeypatch):
    transfer(encoder_file, data="birdsnap,pets", root=str(root))
    with pytest.raises(UserError, match="already holds a study; continue it with --resume, or choose another folder"):
        transfer(encoder_file, data="cars", root=str(root))
    transfer(encoder_file, data="cars", root=str(root), resume=True)
    linear = [(name, "linear") for name in ("birdsnap", "cars", "pets")]
    assert table(encoder_file) == linear
    budget = {"steps": 2, "batch": 6, "rates": [1e-3], "decays": [0.0]}
    transfer(encoder_file, data="cars", root=str(root), protocol="finetune", budget=budget, resume=True)
    assert table(encoder_file) == [*linear[:2], ("cars", "finetune"), linear[2]]
    folder = encoder_file.parent / "transfer"
    (folder / "pets-linear.json").write_text("{")  # whoever asks for it is told
    (folder / "birdsnap-linear.json").unlink()
    transfer(encoder_file, data="birdsnap", root=str(root), seed=1, resume=True)
    assert table(encoder_file) == [("birdsnap", "linear")]  # the others were asked for with another seed
    transfer(encoder_file, data="cars", root=str(root), resume=True)
    assert table(encoder_file) == [("cars", "linear"), ("cars", "finetune")]

    measure = measuring.linear

    def stopping(encoder, name, *rest):
        return measure(encoder, name, *rest) if name == "birdsnap" else pytest.fail("stopped")

    monkeypatch.setattr(measuring, "linear", stopping)
    with pytest.raises(pytest.fail.Exception, match="stopped"):
        transfer(encoder_file, data="birdsnap,pets", root=str(root), out=str(root / "cut"))
    assert [row["data"] for row in json.loads((root / "cut" / "table.json").read_text())] == ["birdsnap"]


def test_it_computes_where_it_is_told(root, encoder_file, monkeypatch):
    asked, used = [], []
    finetune = command.finetune_grid
    monkeypatch.setattr(command, "choose_device", lambda name, _option: asked.append(name) or torch.device("cpu"))
    load = command.load
    monkeypatch.setattr(command, "load", lambda *args: used.append(args[2]) or load(*args))
    monkeypatch.setattr(command, "finetune_grid", lambda *args: used.append(args[9]) or finetune(*args))
    budget = {"steps": 2, "batch": 6, "rates": [1e-3], "decays": [0.0]}
    transfer(encoder_file, data="cars", root=str(root))
    transfer(encoder_file, data="cars", root=str(root), protocol="finetune", budget=budget, device="cpu", resume=True)
    assert (asked, used) == (["auto", "cpu"], [torch.device("cpu")] * 2 + ["cpu"])
    run = encoder_file.parent / "transfer" / "runs" / "cars" / "00" / "config.yaml"
    assert "device: cpu" in run.read_text()


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="the device is there")
def test_a_device_that_is_not_there(root, encoder_file):
    with pytest.raises(UserError, match=r"^--device mps: torch sees no such device here; use --device cpu$"):
        transfer(encoder_file, data="cars", root=str(root), device="mps")
