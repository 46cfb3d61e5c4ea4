"""Documents of options: what nobody can have meant is refused with the file and the key, in no time."""

import time
from pathlib import Path

import numpy as np
import pytest

from twofold.commands.pretrain import pretrain
from twofold.data.batches.order import Order
from twofold.errors import UserError
from twofold.options import OptionsParser, merge
from twofold.options.documents import read_yaml
from twofold.recipe import read_layers
from twofold.runs.config import FinetuneConfig, RunConfig
from twofold.training.rundir import RunDirectory

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))

REFUSED = {
    "null: 1": "the key 'null' is no name",
    "1: resnet18": "the key '1' is no name",
    "2020-01-01: 1\nepochs: &x [*x]": "leads back",
    "true: 1": "the key 'true' is no name",
    "? [a]\n: 1": "the key a sequence is no name",
    "epochs: 3\nepochs: 4": "the key 'epochs' comes twice",
    "data: {channels: 1, channels: 3}": "the key 'channels' comes twice",
    "x: &x {1: 2}\ny: {<<: *x}": "no name",
    "[1, 2]": "must hold options by name, got a list",
    "options: [1, 2]": "'options' holds a list",
    "options: null": "'options' holds nothing",
    "options: 3": "'options' holds a int",
    "data: !!python/object/apply:os.getcwd []": "could not determine a constructor",
    "data: !!binary aGVsbG8=": "could not determine a constructor",
    "epochs: " + "[" * 100_000: "nested deeper than 32 levels",
    "\n".join("  " * i + "a:" for i in range(200)): "nested deeper than 32 levels",
    "epochs: " + "9" * 100_000: "a number of 100,000 digits",
    "epochs: " + "1" + ":59" * 50_000: "a number of",
    "#" * 2**21: "more than the 1,048,576 that are read",
    LAUGHS: "with what its aliases repeat it holds more than 100,000 values",
    MERGES: "with what its aliases repeat it holds more than 100,000 values",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:24])
def test_a_document_that_nobody_means_is_refused_at_once(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        read_layers(None, file, {})
    assert str(file) in str(error.value)
    assert REFUSED[text] in str(error.value)
    assert time.monotonic() - start < 10


def test_a_document_in_another_encoding_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes("data: {split: \xfcbung}".encode("latin-1"))
    with pytest.raises(UserError, match=r"run.yaml is not written in UTF-8 \(byte 14\)"):
        read_layers(None, file, {})


def test_what_people_write_is_read_as_before(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "one: &one {lr: 1.e-3, name: lars}\ntwo: {<<: *one, lr: 2.0}\nsplit: 2020-01-01\nlist: [*one, *one]\n"
    )
    one = {"lr": 1e-3, "name": "lars"}
    assert read_yaml(file, "it") == {
        "one": one, "two": {"lr": 2.0, "name": "lars"}, "split": "2020-01-01", "list": [one, one],
    }  # fmt: skip
    file.write_text("# nothing yet\n")
    assert read_layers(None, file, {"epochs": 3.0}) == {"epochs": 3.0}


def test_a_runs_config_names_what_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for text, wanted in {
        "run: {data: x}": "'options' is missing",
        "options: {epochs: 1}": "'run' is missing",
        "options: []\nrun: {}": "'options' holds a list",
        "": "'options' is missing",
        "options: {epochs: 1}\nrun: {}\nrun: {}": "the key 'run' comes twice",
    }.items():
        file.write_text(text)
        with pytest.raises(UserError) as error:
            RunDirectory(tmp_path).read(RunConfig)
        assert str(file) in str(error.value)
        assert wanted in str(error.value)
    file.write_bytes(b"options: {data: {split: \xff}}\nrun: {}\n")
    with pytest.raises(UserError, match="not written in UTF-8"):
        RunDirectory(tmp_path).read(RunConfig)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", float("inf")), ("epochs", float("nan")), ("optim.lr", float("inf")), ("batch", 10**30),
     ("views.flip", float("nan")), ("data.pixel_range", [0.0, float("inf")])],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"--{name}"):
        OptionsParser(RunConfig).build({name: value})


def test_not_a_number_of_epochs_is_refused_for_classifiers_too() -> None:
    with pytest.raises(UserError, match="--epochs"):
        OptionsParser(FinetuneConfig).build({"epochs": float("nan")})


def test_more_epochs_than_can_be_counted_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--epochs 1e\+308 of 4 steps are more steps than can be counted"):
        Order(16, 4, 0).steps(1e308)
    images = np.random.default_rng(0).integers(0, 255, (8, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(UserError, match="more steps than can be counted"):
        pretrain(images, tmp_path / "run", epochs=1e308, batch=4, encoder={"name": "resnet10", "width": 0.125})


def test_options_that_are_no_names_are_refused() -> None:
    for key in (None, 1, ("epochs",)):
        with pytest.raises(UserError, match="options go by names"):
            merge({"data": {key: 1}})
