"""Whole training steps against tf2/run.py of google-research/simclr (golden README, section 14), in float64.

The reference's flags are written as options of `pretrain` and `finetune`, and what those build makes the steps: the
loop's own update, with the golden images in the place of the loader's. What is compared, at every step: the parts of
the loss, outputs, each variable's gradient (its norm, and its product with a fixed random tensor), its update, and the
moving averages, which must have moved.

Tolerance 1e-11, as the order of sums differs and three steps through 21 batch norms of 8 images magnify that (found:
2e-12). Keras holds two settings in float32 even there: the rate of the moving averages and the momentum of its SGD, so
that these tests set them as float32 rounds them. Differences of products with the random tensor are relative to the
tensor's norm, all others to the largest entry.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fidelity import agree
from golden_data import Golden, golden, rule_value
from processes import run_processes
from twofold.data import ArraySource
from twofold.distributed import world_size
from twofold.encoders import ResNet, save_encoder
from twofold.encoders.reference_names import classifier_pairs, encoder_pairs, head_pairs, to_ours
from twofold.heads import HeadConfig, ProjectionHead
from twofold.losses import contrastive_metrics
from twofold.methods import ClassifierOutput, ContrastiveOutput, Inputs
from twofold.optim import classifier_decay
from twofold.options import OptionsParser, merge
from twofold.runs import config as runs
from twofold.runs import finetune, pretrain
from twofold.runs.starting import start_accelerator
from twofold.training.loop import AnyTraining
from twofold.training.rundir import RunDirectory

COMPONENTS = {
    "pretrain_lars_1rep": ("Training step: pretraining with LARS", 1e-11),
    "pretrain_lars_2rep": ("Training step: pretraining with LARS", 1e-11),
    "finetune_momentum": ("Training step: fine-tuning with momentum", 1e-11),
    "linear_eval_block4": ("Training step: linear evaluation", 1e-11),
}
MOMENTUM, RATE = float(np.float32(0.9)), float(np.float32(1 - 0.9))


def options_of(flags: dict[str, Any]) -> dict[str, Any]:
    """The options of `pretrain` or `finetune` that say what the reference's flags say."""
    lars = flags["optimizer"] == "lars"
    optim = {"name": "lars"} if lars else {"name": "sgd", "momentum_rule": "keras", "nesterov": True}
    optim |= {"momentum": 0.9 if lars else MOMENTUM, "decay": "kernels" if lars else "all_but_norms"}
    optim |= {"lr": flags["learning_rate"], "lr_rule": "linear", "weight_decay": flags["weight_decay"]}
    options = {
        "epochs": flags["train_epochs"], "batch": flags["train_batch_size"], "bn_momentum": RATE,
        "optim": optim | {"warmup_epochs": flags["warmup_epochs"]}, "views": {"size": 32},
        "training": {"device": "cpu", "precision": "fp32"},
    }  # fmt: skip
    if flags["train_mode"] == "pretrain":
        return options | {
            "encoder": {"name": f"resnet{flags['resnet_depth']}", "stem": "cifar", "channels": 3},
            "head": {"layers": flags["num_proj_layers"], "out_dim": flags["proj_out_dim"]},
            "method": {"name": "simclr", "temperature": flags["temperature"], "scale": "simclr_sum2"},
            "monitor": {"every": 1, "knn": False, "probe_rule": "run"},
        }
    block = flags.get("fine_tune_after_block", -1)
    # Of the frozen part the reference uses the batch's statistics, for the classifier alone too.
    kept = {"freeze": "encoder", "frozen_mode": "training"} if block == 4 else {"after_block": block}
    return options | {"from_head": flags["ft_proj_selector"]} | (kept if block >= 0 else {})


class Steps:
    """One golden run on one rank, made by what our options build."""

    def __init__(self, data: Golden, folder: Path, more: dict[str, Any] | None = None) -> None:
        self.meta, self.flags = data.meta, data.meta["flags"]
        images = np.zeros((self.meta["num_examples"], 32, 32, 3), np.uint8)
        source = ArraySource(images, np.arange(len(images)) % self.meta["K"])
        options = merge(options_of(self.flags), more or {})
        if self.flags["train_mode"] == "pretrain":
            self.training = self._pretraining(runs.build(options), source, folder)
            monitor = self.training.monitors[0]
            self.classifier, self.optimizers = monitor.classifier, [self.training.optimizer, monitor.optimizer]
        else:
            self.training = self._finetuning(OptionsParser(runs.FinetuneConfig).build(options), source, folder)
            self.classifier, self.optimizers = self.training.method.classifier, [self.training.optimizer]
        self.training.method.double()
        self.classifier.double()
        self.model, self.optimizer = self.training.accelerator.prepare(self.training.method, self.training.optimizer)
        self.model.train()
        self.tensors = dict(self._load())  # only now: DistributedDataParallel puts buffers of its own in their places
        self.seen: dict[int, Tensor] = {}
        self.classifier.register_forward_hook(lambda _module, _inputs, logits: self.seen.update({-1: logits.detach()}))
        for optimizer in self.optimizers:
            optimizer.register_step_pre_hook(self._see_gradients)

    @staticmethod
    def _pretraining(config: runs.RunConfig, source: ArraySource, folder: Path) -> AnyTraining:
        run = RunDirectory(folder / "run")
        return pretrain.assemble(config, source, run, start_accelerator(config.training, run), None)

    def _finetuning(self, config: runs.FinetuneConfig, source: ArraySource, folder: Path) -> AnyTraining:
        encoder, run = ResNet(self.flags["resnet_depth"], stem="cifar"), RunDirectory(folder / "run")
        head = HeadConfig("nonlinear", self.flags["num_proj_layers"], self.flags["proj_out_dim"])
        file = folder / "encoder.safetensors"
        save_encoder(file, encoder, ProjectionHead(encoder.feature_dim, head))
        config = finetune.resolve(config, len(source))
        return finetune.assemble(file, source, config, run, start_accelerator(config.training, run))

    def _load(self) -> Iterator[tuple[int, tuple[str, Tensor, Tensor]]]:
        """Set the weights; each variable's index, our tensor with its name, and its random tensor in our layout."""
        index = {name: i for i, name in enumerate(self.meta["tf1_names"])}
        method = self.training.method
        for part, module, pairs in (
            ("encoder", method.encoder, encoder_pairs(method.encoder)),
            ("head", method.head, head_pairs(method.head)),
            ("classifier", self.classifier, classifier_pairs(self.classifier)),
        ):
            ours = dict(module.named_parameters()) | dict(module.named_buffers())
            for pair in pairs:
                i = index.pop(pair.reference)
                shape, tensor = self.meta["var_shapes"][i], ours[pair.name]
                value = rule_value(pair.reference, shape, self.meta["weight_seed"] + i, self.meta["gain"])
                tensor.data.copy_(to_ours(value, pair.kind))
                random = np.random.default_rng(7000000 + i).standard_normal(shape)
                yield i, (f"{part}.{pair.name}", tensor, to_ours(random, pair.kind))
        assert not index, f"variables without a place: {sorted(index)}"

    def _see_gradients(self, optimizer: torch.optim.Optimizer, *_arguments: Any) -> None:
        """Keep what an optimiser is given: with LARS the gradient, else with the decay, which the reference's has."""
        lars = self.flags["optimizer"] == "lars"
        place = {id(tensor): i for i, (_, tensor, _) in self.tensors.items()}
        for group in optimizer.param_groups:
            for p in group["params"]:
                decay = 0.0 if lars else group["weight_decay"]
                self.seen[place[id(p)]] = p.grad.add(p.detach(), alpha=decay)

    def step(self, images: Tensor, labels: Tensor, lr: float) -> dict[str, Any]:
        """One update; what the golden file keeps of it."""
        before = {i: tensor.detach().clone() for i, (_, tensor, _) in self.tensors.items()}
        decay = self.decay()
        inputs = Inputs(*images.chunk(2)) if self.flags["train_mode"] == "pretrain" else Inputs(images, labels=labels)
        self.seen.clear()
        training, schedule = self.training, self.training.schedule
        assert lr == pytest.approx(schedule(training.step), rel=1e-6)  # the reference's is rounded to float32
        training.make_inputs, training.schedule = lambda _batch: inputs, lambda _step: lr
        output = training.update(
            self.model, self.optimizer, SimpleNamespace(labels=labels, index=torch.arange(len(images)))
        )
        training.schedule, training.step = schedule, training.step + 1
        kept: dict[str, Any] = self._losses(output, labels, decay)
        for i, (_, tensor, random) in self.tensors.items():
            if i in self.seen:
                kept[f"grad_l2/{i}"], kept[f"grad_dot/{i}"] = self.seen[i].norm(), (self.seen[i] * random).sum()
            kind = "param" if isinstance(tensor, nn.Parameter) else "moving"
            tensor = tensor.detach()
            kept[f"{kind}_l2/{i}"], kept[f"{kind}_dot/{i}"] = tensor.norm(), (tensor * random).sum()
            kept[f"delta_l2/{i}"] = (tensor - before[i]).norm()
        return kept

    def decay(self) -> Tensor:
        """The weight decay as a loss: what the optimiser adds to gradients, or what LARS leaves to the loss."""
        if self.flags["optimizer"] == "lars":
            return torch.as_tensor(classifier_decay(self.classifier, self.flags["weight_decay"])).detach()
        groups = self.training.optimizer.param_groups
        return torch.stack(
            [g["weight_decay"] / 2 * p.detach().square().sum() for g in groups for p in g["params"]]
        ).sum()

    def _losses(self, output: Any, labels: Tensor, decay: Tensor) -> dict[str, Any]:
        if isinstance(output, ClassifierOutput):
            out = {"logits_sup": output.logits, "sup_loss": F.cross_entropy(output.logits, labels)}
            # with LARS the loss carries the classifier's decay
            total = output.loss.detach() + (0.0 if self.flags["optimizer"] == "lars" else decay)
            return out | {"weight_decay": decay, "total_loss": total}
        assert isinstance(output, ContrastiveOutput)
        z = output.z_a, output.z_b
        logits = self.seen.pop(-1).chunk(world_size())[torch.distributed.get_rank() if world_size() > 1 else 0]
        out = {"con_loss": output.loss.detach(), "proj": torch.cat(z), "logits_sup": logits}
        out |= {"sup_loss": F.cross_entropy(logits, labels.repeat(2)), "weight_decay": decay}
        out["contrast_acc"] = contrastive_metrics(*z, self.flags["temperature"]).accuracy
        return out | {"total_loss": out["con_loss"] + out["sup_loss"] + decay}


def replica(rank: int, name: str, more: dict[str, Any] | None = None, count: int | None = None) -> dict[str, Any]:
    """Steps of a golden run on this rank: what is compared, the names of our tensors, and at the end some of them."""
    data = golden(f"trainstep_{name}.npz")
    n, world = data.meta["B"], data.meta["n_rep"]
    if world > 1:  # as a launcher tells each process
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
    steps = []
    with tempfile.TemporaryDirectory() as folder:
        made = Steps(data, Path(folder), more)
        for step in range(count or data.meta["steps"]):
            rows = slice(rank * n, (rank + 1) * n)
            images = (torch.from_numpy(data["images_u8"][step, rows]).permute(0, 3, 1, 2).float() / 255).double()
            labels = torch.from_numpy(data["labels"][step, rows]).long()
            lr = float(data[f"f64/step{step}/lr"])
            steps.append(made.step(torch.cat(images.split(3, dim=1)), labels, lr))
    full = [data.meta["var_names"].index(key.split("/param/")[1]) for key in data.arrays if "/param/" in key]
    tensors = {i: made.tensors[i][1].detach().t() for i in sorted(set(full))}
    return {"steps": steps, "full": tensors, "names": {i: name for i, (name, _, _) in made.tensors.items()}}


def compare_outputs(name: str, data: Golden, prefix: str, kept: list[dict[str, Any]], apart: float) -> None:
    """Loss parts and outputs, replica by replica; `apart` is decay that the reference counts and ours need not."""
    component, tolerance = COMPONENTS[name]
    for part in ("con_loss", "sup_loss", "weight_decay", "total_loss", "proj", "logits_sup"):
        key = f"{prefix}/{part}"
        assert (key in data) == (part in kept[0]), key
        if key in data:
            ours = torch.stack([k[part] for k in kept]) + (apart if part in ("weight_decay", "total_loss") else 0.0)
            agree(component, ours, data[key], tolerance, "largest", note=key)
    if "contrast_acc" in kept[0]:  # ours is the mean over ranks
        assert kept[0]["contrast_acc"].item() == pytest.approx(data[f"{prefix}/contrast_acc"].mean(), abs=1e-6)


def compare_variables(name: str, data: Golden, prefix: str, kept: dict[str, Any], still: set[int]) -> None:
    """Gradients, updates and moving averages of all variables but those that stay `still`, which must."""
    component, tolerance = COMPONENTS[name]
    for what, index in (
        ("grad", "grad_index"),
        ("param", "trainable_index"),
        ("moving", "moving_index"),
    ):
        norms = data[f"{prefix}/{what}_l2"]
        for i, norm, dot in zip(data[index].tolist(), norms, data[f"{prefix}/{what}_dot"], strict=True):
            if i in still:
                continue
            note = f"{prefix} {what} of {data.meta['var_names'][i]}"
            agree(component, kept[f"{what}_l2/{i}"], norm, tolerance, float(norm), note=note)
            agree(component, kept[f"{what}_dot/{i}"], dot, tolerance, float(norm), note=note)
    for i, delta in zip(data["trainable_index"].tolist(), data[f"{prefix}/delta_l2"], strict=True):
        if i not in still:
            note = f"{prefix} update of {data.meta['var_names'][i]}"
            agree(component, kept[f"delta_l2/{i}"], delta, tolerance, float(delta) or 1.0, note=note)
    changed = {int(key.split("/")[1]) for key, value in kept.items() if key.startswith("delta_l2/") and value > 0}
    assert changed <= set(data["trainable_index"].tolist()) | set(data["moving_index"].tolist())
    assert not changed & still
    gradients = {int(key.split("/")[1]) for key in kept if key.startswith("grad_l2/")}
    assert gradients == set(data["grad_index"].tolist()) - still
    moved = dict(zip(data["moving_index"].tolist(), data[f"{prefix}/moving_changed"].tolist(), strict=True))
    assert {i: i in changed for i in moved if i not in still} == {i: moved[i] for i in moved if i not in still}


def unread(data: Golden, names: dict[int, str]) -> set[int]:
    """The head's layers above what the classifier reads: the reference runs and decays them, ours stay as they are."""
    if data.meta["flags"]["train_mode"] == "pretrain":
        return set()
    layer = data.meta["flags"]["ft_proj_selector"]
    return {i for i, name in names.items() if name.startswith("head.") and int(name.split(".")[2]) >= layer}


def decay_apart(data: Golden, step: int, still: set[int]) -> float:
    """The decay of variables that stay still, as the reference counts it in its loss before a step."""
    if data.meta["flags"]["optimizer"] == "lars":
        return 0.0
    names, total, place = data.meta["tf1_names"], 0.0, data["trainable_index"].tolist()
    for i in still & set(place):
        if "batch_normalization" in names[i]:
            continue
        start = rule_value(names[i], data.meta["var_shapes"][i], data.meta["weight_seed"] + i, data.meta["gain"])
        norm = (
            np.linalg.norm(start.astype(np.float64))
            if step == 0
            else data[f"f64/step{step - 1}/param_l2"][place.index(i)]
        )
        total += data.meta["flags"]["weight_decay"] / 2 * float(norm) ** 2
    return total


@pytest.mark.parametrize("name", COMPONENTS)
def test_training_steps_equal_the_reference(name: str) -> None:
    data = golden(f"trainstep_{name}.npz")
    world = data.meta["n_rep"]
    ranks = run_processes(replica, world, name) if world > 1 else [replica(0, name)]
    still = unread(data, ranks[0]["names"])
    for step in range(data.meta["steps"]):
        prefix = f"f64/step{step}"
        compare_outputs(name, data, prefix, [r["steps"][step] for r in ranks], decay_apart(data, step, still))
        for each in ranks:
            compare_variables(name, data, prefix, each["steps"][step], still)
    component, tolerance = COMPONENTS[name]
    tensors = {i: tensor for i, tensor in ranks[0]["full"].items() if i not in still}
    assert len(tensors) == len(ranks[0]["full"]) - (name == "linear_eval_block4") > 1
    for i, tensor in tensors.items():
        key = f"f64/step{data.meta['steps'] - 1}/param/{data.meta['var_names'][i]}"
        agree(component, tensor, data[key], tolerance, "largest", note=key)


@pytest.mark.parametrize("block", [0, 1, 2, 3])
def test_what_follows_a_block_is_trained_as_in_the_reference(block: int) -> None:
    """A gradient that stops after a block is the whole net's above it: outputs, gradients, updates and averages."""
    name = "finetune_momentum"
    data = golden(f"trainstep_{name}.npz")
    made = replica(0, name, {"after_block": block}, count=1)
    kept, names = made["steps"][0], made["names"]
    trained = {names[i].split(".")[1] for i in made["names"] if f"grad_l2/{i}" in kept and "encoder" in names[i]}
    assert trained == {f"layer{stage}" for stage in range(block + 1, 5)}
    below = ("encoder.conv1", "encoder.bn1", *(f"encoder.layer{stage}" for stage in range(1, block + 1)))
    averages = set(data["moving_index"].tolist())
    frozen = {i for i, own in names.items() if own.startswith(below) and i not in averages}
    still = unread(data, names) | frozen
    compare_outputs(name, data, "f64/step0", [kept], decay_apart(data, 0, still))
    compare_variables(name, data, "f64/step0", kept, still)
