"""What the fuzzers found once, each refused by name since."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from twofold.data import DataConfig, open_source
from twofold.data.labels import class_labels
from twofold.data.sources.arrays import ArraySource
from twofold.encoders.weights import load_encoder, sealed
from twofold.errors import UserError
from twofold.evaluation.label_subsets import label_positions
from twofold.optim.lars import LARS
from twofold.options import OptionsParser
from twofold.runs.config import FinetuneConfig, RunConfig
from twofold.training.checkpoint import check_state_fits, load_checkpoint


@pytest.mark.parametrize(
    ("kind", "option"),
    [(RunConfig, "extensions"), (FinetuneConfig, "draw"), (RunConfig, "seed"), (RunConfig, "views.size")],
)
def test_null_where_an_option_needs_a_value(kind: Any, option: str) -> None:
    if option == "views.size":  # null is what leaves it open
        assert OptionsParser(kind).build({option: None}).views.size is None
        return
    with pytest.raises(UserError, match=f"--{option} null: give a value"):
        OptionsParser(kind).build({option: None})


@pytest.mark.parametrize("encoding", ["punycode", "idna", "undefined", "a\0b", "zlib_codec"])
@pytest.mark.parametrize("name", ["m.csv", "l.txt"])
def test_encodings_of_names_and_none(tmp_path: Path, encoding: str, name: str) -> None:
    (tmp_path / name).write_bytes(b"path\n\x80 x.png\n" * 3)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        open_source(tmp_path / name, DataConfig(encoding=encoding))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"path": "\0.wav"}, "wav|m.jsonl"),
        ({"path": "../\0.wav"}, "row 1 names .*as which no file can be called"),
        ({"path": "a.wav", "start": 10**400}, "start is 1000"),
    ],
)
def test_rows_of_manifests(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=said):
        open_source(tmp_path / "m.jsonl")


def test_words_of_fairseq_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text(f"{tmp_path}\na.wav\t100\n")
    (tmp_path / "train.wrd").write_bytes(b"\x80")
    with pytest.raises(UserError, match=r"train\.wrd is not written in utf-8"):
        open_source(tmp_path / "train.tsv")


@pytest.mark.parametrize("line", ["²", ".", "9" * 5000, "/"])
def test_lines_of_lists_of_labels(tmp_path: Path, line: str) -> None:
    source = ArraySource.of(np.zeros((4, 8, 8, 3), np.uint8), [0, 0, 1, 1], DataConfig())
    (tmp_path / "list").write_text(line)
    with pytest.raises(UserError, match=r"list|positions"):
        label_positions(source, str(tmp_path / "list"))


@pytest.mark.parametrize("wanted", ["9" * 5000, "9" * 400 + "%", "9" * 5000 + "/class", "0", "0/class", "~nobody0"])
def test_choices_of_labels(wanted: str) -> None:
    source = ArraySource.of(np.zeros((4, 8, 8, 3), np.uint8), [0, 0, 1, 1], DataConfig())
    with pytest.raises(UserError, match=f"--labels {wanted[:40]}"):
        label_positions(source, wanted)


@pytest.mark.parametrize("values", [[0, [1]], [[0, 1], [0]], [{}, [1, 2]]])
def test_labels_of_several_forms(values: list[Any]) -> None:
    with pytest.raises(UserError, match="the labels: labels must be"):
        class_labels(values, len(values), "the labels")


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"kind": []}},
        {"spec": {"kind": {}}},
        {"versions": None, "format": 9},
        {"classifier": 3},
        {"format": True},
    ],
)
def test_headers_of_encoders(tmp_path: Path, change: dict[str, Any]) -> None:
    header = {"format": 2, "spec": {"kind": "resnet"}, "head": None, "classifier": None, "versions": {}, "extra": {}}
    tensors = {"encoder.x": torch.zeros(4)}
    save_file(tensors, tmp_path / "e.safetensors", metadata=sealed(json.dumps(header | change), tensors))
    with pytest.raises(UserError, match=r"e\.safetensors: its header is malformed"):
        load_encoder(tmp_path / "e.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metrics", []), ("metrics", torch.zeros(3)), ("metrics", {"bytes": torch.zeros(3), "crc32": 1}), ("best", []),
        ("best", [1, float("nan")]), ("sums", {"loss": torch.zeros(3), "steps": torch.ones(())}), ("seconds", 10**400),
    ],
)  # fmt: skip
def test_facts_of_checkpoints(tmp_path: Path, name: str, value: Any) -> None:
    torch.save({"step": 1, name: value}, tmp_path / "step-000000001.pt")
    with pytest.raises(UserError, match=r"step-000000001\.pt (holds no|says)"):
        load_checkpoint(tmp_path / "step-000000001.pt")


@pytest.mark.parametrize(
    ("name", "value"), [("lr", "fast"), ("betas", (0.9,)), ("eps", float("nan")), ("weight_decay", None)]
)
def test_settings_of_optimisers(name: str, value: Any) -> None:
    optimizer = torch.optim.AdamW([torch.zeros(2, requires_grad=True)])
    state = optimizer.state_dict()
    check_state_fits(optimizer, state)
    state["param_groups"][0][name] = value
    with pytest.raises(ValueError, match=f"the optimiser's {name} is"):
        check_state_fits(optimizer, state)


@pytest.mark.parametrize(
    "value",
    [
        "missing",
        None,
        3.0,
        torch.tensor(2),
        torch.zeros(3),
        torch.zeros(0),
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(2).to_sparse(),
    ],
    ids=str,
)
@pytest.mark.parametrize("numbers", [(1,), (0, 1, 2)])
@pytest.mark.parametrize(
    ("made", "name"),
    [
        (torch.optim.AdamW, "exp_avg"),
        (torch.optim.AdamW, "step"),
        (partial(torch.optim.Adam, amsgrad=True), "max_exp_avg_sq"),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), "momentum_buffer"),
        (partial(LARS, lr=0.1), "momentum_buffer"),
    ],
)
def test_what_optimisers_keep_of_each_parameter(
    made: Callable[..., torch.optim.Optimizer], name: str, numbers: tuple[int, ...], value: Any
) -> None:
    """Of one parameter, or of all, where no other tells what is missing."""
    parameters = [torch.zeros(2, requires_grad=True) for _ in range(4)]
    optimizer = made(parameters)
    check_state_fits(optimizer, optimizer.state_dict())
    sum(each.sum() for each in parameters[:3]).backward()  # type: ignore[union-attr]
    optimizer.step()
    state = optimizer.state_dict()
    before = [parameter.clone() for parameter in parameters]
    check_state_fits(optimizer, state)  # the last was never moved, and has nothing
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
    for number in numbers:
        state["state"][number] = {key: kept for key, kept in state["state"][number].items() if key != name}
        state["state"][number]["odd"] = 1.0
        if not isinstance(value, str):
            state["state"][number][name] = value
    said = "(has the shape|is of)" if isinstance(value, torch.Tensor) else "is no Tensor"
    with pytest.raises(ValueError, match=f"the optimiser's {name} of parameter {numbers[0]} {said}"):
        check_state_fits(optimizer, state)


def test_what_holds_an_optimiser_s_state() -> None:
    def refused(change: Callable[[Any], Any], said: str) -> None:
        optimizer = torch.optim.AdamW([torch.zeros(2, requires_grad=True) for _ in range(2)])
        state = optimizer.state_dict()
        change(state)
        with pytest.raises((ValueError, KeyError), match=said):
            check_state_fits(optimizer, state)

    refused(lambda state: state["state"].update({0: []}), "of parameter 0 has no names")
    refused(lambda state: state["param_groups"][0].update(params=[1, 0]), "numbered in order")
    refused(lambda state: state["param_groups"][0].update(params=[0]), "has 1 parameters, this run's 2")
    refused(lambda state: state["param_groups"][0].pop("betas"), "betas")
    refused(lambda state: state["param_groups"][0].update(maximize=True), "maximize is True")


@pytest.mark.parametrize("name", ["~nobody0", "~nobody0/photos", "~nobody0.csv", "~nobody0.npz"])
def test_homes_of_nobody(name: str) -> None:
    with pytest.raises(UserError, match="nobody0"):
        open_source(name, DataConfig())
