"""The shell's side: help, exit statuses, and messages without tracebacks."""

import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import OPTIONS, as_arguments, images

from twofold.cli import main
from twofold.commands import COMMANDS


def run(capsys, *words):
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def folder(tmp_path):
    x, _ = images(40)
    for i, image in enumerate(x):
        Image.fromarray(image).save(tmp_path / f"{i:03d}.png")
    return tmp_path


def test_help_lists_every_command(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert all(name in out for name in COMMANDS)
    assert run(capsys)[0] == 2


def test_help_loads_nothing_heavy():
    """The first thing that a user tries must not take the seconds that PyTorch takes to load."""
    code = "import sys; from twofold.cli import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "usage: twofold" in done.stdout
    assert not {"torch", "numpy", "sklearn", "jsonargparse"} & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("command", ["pretrain", "evaluate", "finetune", "labels", "embed"])
def test_help_says_that_sounds_will_do(command):
    told = " ".join(COMMANDS[command].parser().format_help().split())
    assert "folder of recordings or a manifest" in told
    assert "images" in told


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_of_a_command_explains_each_option_with_its_default(capsys, command):
    status, told, _ = run(capsys, *command.split(), "--help-all")
    assert status == 0
    assert "usage: twofold" in told
    if command == "pretrain":
        for words in (
            "--views.crop_aspect",
            "default: (0.75, 1.333",
            "--optim.lr",
            "Passes over the data",
            "--recipe",
            "--config",
        ):
            assert words in told


def test_version(capsys):
    assert run(capsys, "--version")[1].startswith("twofold 0.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrian", "x"], "pretrain"),
        (["pretrain", "no/such/folder", "--out", "{tmp}/run"], "no/such/folder"),
        (["pretrain", "{folder}", "--out", "{tmp}/run", "--recipe", "simclr-imagenet"], "simclr-imagenet-100"),
        (["pretrain", "{folder}", "--out", "{tmp}/run", "--optim.learning-rate", "1"], "optim.lr"),
        (["pretrain", "{folder}", "--out", "{tmp}/run", "--epochs", "many"], "--epochs"),
        (["pretrain", "{folder}", "--out", "{tmp}/run", "--encoder.name", "resnet51"], "resnet50"),
        (["pretrain", "{folder}", "--out", "{tmp}/run", "--config", "{tmp}/none.yaml"], "none.yaml"),
        (["pretrain", "{folder}", "--out", "{tmp}/run", "--batch", "64"], "--batch"),
        (["pretrain", "{folder}"], "--out"),
        (["evaluate", "{tmp}/nothing", "{folder}"], "nothing"),
        (["recipes", "simclr-mars"], "simclr-"),
        (["study"], "study methods"),
        (["study", "method", "{folder}"], "study methods"),
    ],
)
def test_a_mistake_gets_one_clear_line_and_status_2(capsys, folder, tmp_path_factory, words, said):
    tmp = tmp_path_factory.mktemp("cli")
    status, _, err = run(capsys, *[word.format(tmp=tmp, folder=folder) for word in words])
    assert status == 2
    assert err.startswith("twofold: error: ")
    assert said in err
    assert "Traceback" not in err
    assert not (tmp / "run" / "config.yaml").exists()


def test_print_config_prints_what_would_run_and_is_itself_a_config(capsys, folder, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("cli")
    status, out, _ = run(capsys, "pretrain", folder, "--print-config", "--epochs", "3", "--views.color-strength", "0.3")
    assert status == 0
    options = yaml.safe_load(out)
    assert options["epochs"] == 3
    assert options["views"]["color_strength"] == 0.3
    assert options["encoder"]["name"]
    (tmp / "c.yaml").write_text(out)
    status, again, _ = run(capsys, "pretrain", folder, "--print-config", "--config", tmp / "c.yaml")
    assert yaml.safe_load(again) == options


def test_command_line_beats_file_beats_recipe(capsys, folder, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("cli")
    (tmp / "c.yaml").write_text("epochs: 7\nbatch: 8\n")
    words = ["--recipe", "simclr-cifar10-resnet18", "--config", tmp / "c.yaml", "--batch", "4", "--print-config"]
    options = yaml.safe_load(run(capsys, "pretrain", folder, *words)[1])
    assert (options["batch"], options["epochs"], options["method"]["temperature"]) == (4, 7, 0.5)


def test_recipes_are_listed_and_shown(capsys):
    assert "simclr-imagenet-1000-4x" in run(capsys, "recipes")[1]
    shown = run(capsys, "recipes", "simclr-imagenet-1000-4x")[1]
    assert "76.5 % top-1" in shown
    assert "not run by us" in shown


def test_pretrain_then_evaluate_a_folder_of_classes(capsys, tmp_path):
    x, y = images(60)
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        path = tmp_path / "data" / ("disc" if label else "bar") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    status, out, err = run(capsys, "pretrain", tmp_path / "data", "--out", tmp_path / "run", *as_arguments(OPTIONS))
    assert status == 0, err
    assert "encoder.safetensors" in out
    assert "report.html" in out
    for protocol in ("linear", "knn"):
        status, out, err = run(capsys, "evaluate", tmp_path / "run", tmp_path / "data", "--protocol", protocol)
        assert status == 0, err
        assert "top-1" in out
        assert "unchanged" in out
    assert len(list((tmp_path / "run" / "evaluations").glob("*.json"))) == 2


def test_arrays_are_data_too(capsys, tmp_path):
    np.save(tmp_path / "x.npy", images(40, channels=1)[0][..., 0])
    status, out, err = run(capsys, "pretrain", tmp_path / "x.npy", "--out", tmp_path / "run", *as_arguments(OPTIONS))
    assert status == 0, err
    assert "40 images" in out
