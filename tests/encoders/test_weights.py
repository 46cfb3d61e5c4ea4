"""Encoder files: what goes in comes out bit for bit; what does not fit is told by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import twofold
from twofold.encoders import Encoder, EncoderConfig, ResNet, adapt, build_encoder
from twofold.encoders.adapters import TorchvisionEncoder
from twofold.encoders.weights import load_encoder, load_head, read_header, save_encoder, sealed
from twofold.errors import UserError
from twofold.heads import HeadConfig, ProjectionHead


def small() -> ResNet:
    return ResNet(10, 0.125, "small", 1, 0.0)


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in ours
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    encoder = small()
    encoder(torch.rand(4, 1, 16, 16))
    save_encoder(path, encoder, ProjectionHead(64, HeadConfig(layers=3, out_dim=8)), {"run": "x", "steps": 7})
    return path


def rewrite(path: Path, header: Any = None, drop: str = "", **tensors: torch.Tensor) -> Path:
    """The same file with another header, without some tensor, with others, and the sums of these, as anyone can."""
    kept = {name: t for name, t in load_file(path).items() if name != drop} | tensors
    header = json.dumps(read_header(path)) if header is None else header
    save_file(kept, path, metadata=sealed(header, kept) if header else None)
    return path


@pytest.mark.parametrize(
    "encoder",
    [
        small(),
        ResNet(50, 0.125, "imagenet", 5, 0.0625).double(),
        build_encoder(EncoderConfig.of(name="timm:test_resnet", channels=1)),
        adapt(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]),
    ],
    ids=["resnet", "sk", "timm", "own"],
)
def test_round_trip(tmp_path: Path, encoder: Encoder) -> None:
    """Weights, averages and features come back bit for bit; channels_last and training mode do not matter."""
    dtype = next(encoder.parameters()).dtype
    x = torch.rand(3, encoder.input.channels, 64, 64, dtype=dtype)
    encoder.train()(x)  # running averages away from their start
    encoder.to(memory_format=torch.channels_last)
    save_encoder(tmp_path / "e.safetensors", encoder)
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) if encoder.kind == "custom" else None
    again = load_encoder(tmp_path / "e.safetensors", own)
    assert same(again, encoder)
    assert not again.training
    assert again.spec() == encoder.spec()
    assert all(p.requires_grad and p.device.type == "cpu" for p in again.parameters())
    encoder.to(memory_format=torch.contiguous_format)
    assert torch.equal(again(x), encoder.eval()(x))
    assert load_head(tmp_path / "e.safetensors") is None
    again.train()(x).sum().backward()


def test_head_and_facts(saved: Path) -> None:
    """The head comes back too; the header holds versions and what the run added."""
    head = load_head(saved)
    assert head is not None
    assert head.config == HeadConfig(layers=3, out_dim=8, norm=True)
    assert head(torch.rand(2, 64)).shape == (2, 8)
    header = read_header(saved)
    assert header["extra"] == {"run": "x", "steps": 7}
    assert set(header["versions"]) == {"twofold", "torch"}
    assert header["spec"]["kind"] == "resnet"


def test_writing_is_atomic(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure half way leaves the old file whole and no debris."""
    before = saved.read_bytes()

    def full(_tensors: Any, path: Path, **_options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("twofold.encoders.weights.save_file", full)
    with pytest.raises(UserError, match=r"cannot write .*encoder\.safetensors: .*No space left.* make room"):
        save_encoder(saved, small())
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_equal_encoders_are_equal_files(tmp_path: Path) -> None:
    """What is said of them, with letters and signs of all kinds, stands in one order."""
    net, facts = small(), {"run": 'Käfer "α"\n\x01\x7f\u2028😀', "classes": ["b", "a"], "steps": 7}
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:
        save_encoder(file, net, extra=facts)
    assert len({file.read_bytes() for file in files}) == 1
    assert read_header(files[0])["extra"] == facts
    raw = files[0].read_bytes()
    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
    assert list(json.loads(header)["__metadata__"]) == sorted(json.loads(header)["__metadata__"])


def test_bad_destinations(tmp_path: Path) -> None:
    """No such folder; facts that are not JSON."""
    with pytest.raises(UserError, match=r"cannot write .*nowhere/e\.safetensors"):
        save_encoder(tmp_path / "nowhere" / "e.safetensors", small())
    with pytest.raises(UserError, match="JSON"):
        save_encoder(tmp_path / "e.safetensors", small(), extra={"path": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_the_exact_tensors_are_told(saved: Path) -> None:
    """Missing, left over and of another shape: each by name, none of them silently passed."""
    rewrite(saved, drop="encoder.layer2.0.bn1.weight", **{"encoder.fc.bias": torch.zeros(3)})
    with pytest.raises(UserError) as error:
        load_encoder(saved)
    assert str(saved) in str(error.value)
    assert "missing: layer2.0.bn1.weight; left over: fc.bias" in str(error.value)


def test_shapes_are_told(saved: Path) -> None:
    """Also for the head."""
    rewrite(saved, **{"encoder.bn1.weight": torch.zeros(9), "head.layers.0.1.bias": torch.zeros(1)})
    with pytest.raises(UserError, match=r"of another shape: bn1\.weight \(9,\) instead of \(8,\)"):
        load_encoder(saved)
    with pytest.raises(UserError, match=r"does not fit its head.*layers\.0\.1\.bias"):
        load_head(saved)


def test_strays_are_told(saved: Path) -> None:
    """A tensor that belongs to no part."""
    rewrite(saved, **{"optimizer.step": torch.zeros(1)})
    with pytest.raises(UserError, match=r"belong to none of its parts: optimizer\.step"):
        load_encoder(saved)


def header_with(path: Path, **changes: Any) -> str:
    """Without the digest, as files of earlier versions are: what else is wrong is to be told."""
    header = read_header(path) | changes
    return json.dumps(header)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "has format 99"),
        ({"spec": {"kind": "resnet", "depth": 51}}, "no ResNet has depth 51"),
        ({"spec": {"kind": "resnet", "depth": "50"}}, "no ResNet has depth 50"),
        ({"spec": {"kind": "resnet", "width": 1e4}}, "a network far larger than the 78,024 weights"),
        ({"spec": {"kind": "resnet", "width": 1e9}}, "a network far larger than the 78,024 weights"),
        ({"spec": {"kind": "resnet", "width": "wide"}}, "builds no encoder"),
        ({"spec": {"kind": "unheard"}}, "unknown kind of encoder 'unheard'"),
        ({"spec": []}, "header is malformed"),
        ({"head": 3}, "header is malformed"),
    ],
)
def test_wrong_headers(saved: Path, changes: dict[str, Any], message: str) -> None:
    """Every error names the file; nothing large is allocated."""
    rewrite(saved, header_with(saved, **changes))
    with pytest.raises(UserError, match=message) as error:
        load_encoder(saved)
    assert str(saved) in str(error.value)


@pytest.mark.parametrize("head", [{"in_dim": 64, "layers": 9}, {"in_dim": 64, "colour": 1}, {}, {"in_dim": "many"}])
def test_wrong_heads(saved: Path, head: dict[str, Any]) -> None:
    """A head that cannot be built."""
    rewrite(saved, header_with(saved, head=head))
    with pytest.raises(UserError, match=r"its head .* cannot be built"):
        load_head(saved)


@pytest.mark.parametrize("header", ["{", "[]", "{}"])
def test_headers_that_are_no_header(saved: Path, header: str) -> None:
    """Text that is no JSON, or another JSON."""
    rewrite(saved, header)
    with pytest.raises(UserError, match="header is"):
        load_encoder(saved)


def test_files_that_are_no_encoder(saved: Path) -> None:
    """Absent, truncated, empty, text, a folder, somebody else's tensors."""
    whole = saved.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:5], b"", b"hello " * 99):
        saved.write_bytes(content)
        with pytest.raises(UserError, match=r"encoder\.safetensors is no whole safetensors file"):
            load_encoder(saved)
    saved.write_bytes(whole)
    save_file({"x": torch.zeros(2)}, saved)
    with pytest.raises(UserError, match="no encoder of twofold"):
        load_encoder(saved)
    with pytest.raises(UserError, match="no such file"):
        load_encoder(saved.parent / "other.safetensors")
    with pytest.raises(UserError, match="is no encoder file: it is a folder, no file"):
        load_encoder(saved.parent)


def test_own_module_must_be_given(tmp_path: Path) -> None:
    """And only where it is the user's own."""
    save_encoder(tmp_path / "own.safetensors", adapt(nn.Sequential(nn.Conv2d(3, 4, 3))))
    with pytest.raises(UserError, match=r"give it again, from Python: as `encoder`"):
        load_encoder(tmp_path / "own.safetensors")
    with pytest.raises(UserError, match="missing: module"):
        load_encoder(tmp_path / "own.safetensors", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    save_encoder(tmp_path / "resnet.safetensors", small())
    with pytest.raises(UserError, match="leave `module` out"):
        load_encoder(tmp_path / "resnet.safetensors", nn.Identity())


def test_a_flipped_bit_anywhere_is_noticed(saved: Path) -> None:
    """In the header, the names, the sums or the weights: refused, or, in padding, what was written."""
    whole, encoder, header = saved.read_bytes(), load_encoder(saved), read_header(saved)
    rng = np.random.default_rng(0)
    start = int.from_bytes(whole[:8], "little") + 8
    places = [*rng.integers(0, len(whole), 200), *rng.integers(0, start, 300)]
    for place, bit in zip(places, rng.integers(0, 8, len(places)), strict=True):
        changed = bytearray(whole)
        changed[place] ^= 1 << bit
        saved.write_bytes(changed)
        try:
            loaded = load_encoder(saved)
            assert same(loaded, encoder), place
            assert read_header(saved) == header, place
        except UserError as error:
            assert str(saved) in str(error)  # noqa: PT017  # either outcome is right, silence is not


def test_files_of_format_1_have_no_sums_and_are_read(saved: Path) -> None:
    """What earlier versions wrote."""
    encoder = load_encoder(saved)
    header = json.dumps(read_header(saved) | {"format": 1})
    save_file(load_file(saved), saved, metadata={"twofold": header})
    assert same(load_encoder(saved), encoder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder.bn1.running_var", -torch.ones(8), "negative variances: bn1.running_var"),
        ("encoder.bn1.weight", torch.full((8,), torch.inf), "infinite or not a number: bn1.weight"),
        ("encoder.bn1.weight", torch.full((8,), torch.nan), "infinite or not a number: bn1.weight"),
        ("encoder.bn1.weight", torch.ones(8, dtype=torch.int64), r"of another type: bn1.weight \(int64\)"),
    ],
)
def test_weights_that_no_network_has_are_told(saved: Path, name: str, value: torch.Tensor, message: str) -> None:
    """Their sums may be right: anyone can write such a file."""
    rewrite(saved, **{name: value})
    with pytest.raises(UserError, match=message):
        load_encoder(saved)


def test_others_may_read_an_encoder_as_umask_says(saved: Path) -> None:
    """As any file that a user makes."""
    before = os.umask(0o022)
    try:
        save_encoder(saved, small())
    finally:
        os.umask(before)
    assert saved.stat().st_mode & 0o777 == 0o644


def test_layouts_that_have_versions_come_back(tmp_path: Path) -> None:
    """torchvision's MNASNet refuses a state dict that does not say the version of its layout."""
    encoder = TorchvisionEncoder("mnasnet0_5").eval()
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path / "encoder.safetensors")(x), encoder(x))


def test_a_file_tells_the_version_of_the_code_that_wrote_it(tmp_path, monkeypatch):
    monkeypatch.setattr("twofold.versions.version", lambda _: "0.0.1")  # what is installed is another
    save_encoder(tmp_path / "e.safetensors", small())
    assert read_header(tmp_path / "e.safetensors")["versions"]["twofold"] == twofold.__version__
