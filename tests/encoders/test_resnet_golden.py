"""ResNets, heads and classifier against google-research/simclr (golden README section 9), weights by its rule.

Tolerances, relative to the largest magnitude of each array:
* float64 against the reference's float64: 1e-9. Measured: 4e-15 (inference) and 3e-12 (training).
* float32 inference: 5e-6, ten times what float32 costs the reference itself (below 1e-6).
* float32 training: ten times the reference's own distance to its float64 run (`rel_err_f32_vs_f64`, 1e-3 for ResNet-50:
  a dozen rows in the batch statistics of 53 layers), and at least 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fidelity import agree
from golden_data import Golden, golden, golden_path, rule_value
from twofold.encoders import ResNet
from twofold.encoders.reference_names import classifier_pairs, encoder_pairs, head_pairs, to_ours
from twofold.heads import Classifier, HeadConfig, ProjectionHead

SETS = [
    name
    for name in ("r18_1x_cifar", "r18_1x_finetune", "r18_2x_cifar", "r50_1x_cifar", "r50_1x_imagenet", "r50_1x_sk")
    if golden_path(f"resnet_{name}.npz").exists()
]
RUNS = {None: "float64", "eval": "float32 inference", "train": "float32 training"}
TAPS = {"initial_conv": "conv1", "initial_max_pool": "pool", **{f"block_group{i}": f"layer{i}" for i in range(1, 5)}}


class Net(nn.Module):
    """Encoder, head and classifier of one golden set."""

    def __init__(self, meta: dict[str, Any]) -> None:
        super().__init__()
        flags = meta["flags"]
        self.encoder = ResNet(
            flags["resnet_depth"],
            flags["width_multiplier"],
            "cifar" if meta["cifar_stem"] else "imagenet",
            sk_ratio=flags["sk_ratio"],
        )
        config = HeadConfig(flags["proj_head_mode"], flags["num_proj_layers"], flags["proj_out_dim"])
        self.head = ProjectionHead(self.encoder.feature_dim, config)
        self.selector = flags["ft_proj_selector"]
        self.pretrain = flags["train_mode"] == "pretrain"
        self.classifier = Classifier(self.encoder.feature_dim, meta["num_classes"])

    def pairs(self) -> Iterator[tuple[str, str, str]]:
        for part, pairs in (
            ("encoder", encoder_pairs(self.encoder)),
            ("head", head_pairs(self.head)),
            ("classifier", classifier_pairs(self.classifier)),
        ):
            for pair in pairs:
                yield f"{part}.{pair.name}", pair.reference, pair.kind

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.head.outputs(self.encoder(images))
        named = {f"proj_hidden_{j}": output for j, output in enumerate(outputs)}
        named["final_avg_pool"] = outputs[0]
        named["logits_sup"] = self.classifier(outputs[self.selector])
        if self.pretrain:
            named["proj_head_output"] = outputs[-1]
        return named


def build(meta: dict[str, Any]) -> Net:
    """The net of a golden set with its weights; fails unless both sides' tensors match one to one."""
    with torch.device("meta"):
        net = Net(meta)
    index = {name: i for i, name in enumerate(meta["tf1_names"])}
    state = {}
    for ours, reference, kind in net.pairs():
        i = index.pop(reference)
        state[ours] = to_ours(rule_value(reference, meta["var_shapes"][i], meta["weight_seed"] + i, meta["gain"]), kind)
    assert not index, f"variables without a place: {sorted(index)}"
    net.load_state_dict(state, assign=True)
    return net


def inputs(data: Golden) -> Tensor:
    """[2B, 3, H, W] float32: all of view 1, then all of view 2."""
    images = data["images_u8"].astype(np.float32) / np.float32(255)
    views = np.split(images, images.shape[-1] // 3, axis=-1)
    return torch.from_numpy(np.concatenate(views)).permute(0, 3, 1, 2).contiguous()


def probe(net: Net, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs, and what section 9 keeps of the intermediate maps."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, path in TAPS.items():

        def keep(_module: nn.Module, _inputs: Any, v: Tensor, name: str = name) -> None:
            seen[f"{name}/shape"] = torch.tensor(v.permute(0, 2, 3, 1).shape)
            seen[f"{name}/mean_hw"], seen[f"{name}/meansq_hw"] = v.mean((2, 3)), v.square().mean((2, 3))
            seen[f"{name}/corner"] = v[0, :4, :3, :3].permute(1, 2, 0).clone()

        hooks.append(net.encoder.get_submodule(path).register_forward_hook(keep))
    with torch.no_grad():
        outputs = net(images)
    for hook in hooks:
        hook.remove()
    return outputs, seen


@pytest.fixture(scope="module", params=SETS)
def case(request: pytest.FixtureRequest) -> tuple[Golden, Net]:
    data = golden(f"resnet_{request.param}.npz")
    return data, build(data.meta)


def bounds(data: Golden, key: str, mode: str) -> float:
    own = max(v for k, v in data.meta["rel_err_f32_vs_f64"].items() if k.startswith(f"{mode}/{key.split('/')[0]}"))
    return 5e-6 if mode == "eval" else max(1e-5, 10 * own)


def compare(data: Golden, prefix: str, values: dict[str, Tensor], mode: str | None = None) -> int:
    """Compare all that the golden file has; gives the number of arrays compared."""
    present = {key: value for key, value in values.items() if f"{prefix}/{key}" in data}
    component = f"ResNet, head, classifier: {RUNS[mode]}"
    for key, value in present.items():
        bound = 1e-9 if mode is None else bounds(data, key, mode)
        agree(component, value, data[f"{prefix}/{key}"], bound, "largest", note=f"{prefix}/{key}")
    return len(present)


def test_parameter_count(case: tuple[Golden, Net]) -> None:
    """As many trained numbers as the reference has."""
    data, net = case
    assert sum(p.numel() for p in net.parameters()) == data.meta["n_params_trainable"]


# Order matters: the float64 test comes last, since it converts the net that the module's tests share.
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_float32(case: tuple[Golden, Net], mode: str) -> None:
    """Outputs, probes and shapes in float32; moving averages after one training step."""
    data, net = case
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    outputs, seen = probe(net.train(mode == "train"), inputs(data))
    assert compare(data, f"f32/{mode}", outputs, mode) >= 1
    probes = {f"probe/{key}": value for key, value in seen.items()}
    maps = {key: value for key, value in probes.items() if not key.endswith("shape")}
    assert compare(data, f"f32/{mode}", maps, mode) >= (6 if mode == "eval" else 0)
    for key, value in probes.items():
        if key.endswith("shape"):
            assert value.tolist() == data[f"{mode}/{key}"].tolist()
    if mode == "train":
        check_moving_averages(data, net)
    net.load_state_dict(before, strict=False)


def check_moving_averages(data: Golden, net: Net) -> None:
    ours = dict(net.named_buffers())
    theirs = dict(zip(data.meta["tf1_names"], data.meta["var_names"], strict=True))
    own = data.meta["rel_err_f32_vs_f64"]
    compared = 0
    for name, reference, _ in net.pairs():
        key = f"f32/train/after/{theirs[reference]}"
        if name in ours and key in data:
            bound = max(5e-6, 10 * own[f"train/after/{reference.split('/')[-1]}:0"])
            agree("Moving averages after a step", ours[name], data[key], bound, "largest", note=reference)
            compared += 1
    assert compared >= 20
    assert compared == sum("train/after/" in key for key in data.arrays), "averages that the mapping does not reach"


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_float64(case: tuple[Golden, Net], mode: str) -> None:
    """Outputs in float64 equal the reference's to 1e-9: the same function, not a similar one."""
    data, net = case
    net.double().train(mode == "train")
    with torch.no_grad():
        assert compare(data, f"f64/{mode}", net(inputs(data).double())) >= 2
