"""Reading what others wrote asks nobody else: no header, configuration or cell makes a connection."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hub_files import saved_with_paths
from twofold.data import open_source
from twofold.encoders.weights import load_encoder, sealed
from twofold.errors import UserError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that anything tries to reach; none is reached."""
    addresses: list[Any] = []

    def refuse(*words: Any, **_: Any) -> None:
        addresses.append(words)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TORCH_HOME", "/nowhere")
    return addresses


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "timm", "name": "resnet10t.c3_in1k", "pretrained": True},
        {"kind": "torchvision", "name": "squeezenet1_1", "pretrained": True},
        {"kind": "torchvision", "name": "squeezenet1_1", "pretrained": "yes"},
        {"kind": "resnet", "depth": 10, "width": 0.125, "pretrained": True},
        {"kind": "timm", "name": "hf-hub:timm/resnet10t.c3_in1k"},
        {"kind": "timm", "name": "hf_hub:timm/resnet10t.c3_in1k"},
        {"kind": "timm", "name": "local-dir:/etc"},
        {"kind": "torchvision", "name": "fcn_resnet50"},  # of another kind: its backbone would be fetched
    ],
    ids=lambda spec: f"{spec.get('name')} {spec.get('pretrained', '')}",
)
def test_the_header_of_an_encoder(spec: dict[str, Any], asked: list[Any], tmp_path: Path) -> None:
    header = {"format": 2, "spec": spec, "head": None, "classifier": None, "versions": {}, "extra": {}}
    tensors = {"encoder.x": torch.zeros(2**20)}
    save_file(tensors, tmp_path / "e.safetensors", metadata=sealed(json.dumps(header), tensors))
    with pytest.raises(UserError) as error:
        load_encoder(tmp_path / "e.safetensors")
    assert asked == []
    assert str(tmp_path) in str(error.value)
    if spec.get("pretrained"):
        assert "asks for weights of a hub" in str(error.value)


def test_the_cells_of_a_data_set(asked: list[Any], tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    what = saved_with_paths(tmp_path / "saved", ["https://example.org/a.png", "hf://datasets/a/b/c.png"])
    with pytest.raises(UserError, match="No such file"):
        open_source(what)
    assert asked == []
