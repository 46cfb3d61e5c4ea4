"""What a GPU has to agree with a CPU on. Skipped without one: `python -m pytest tests/test_cuda.py` where there is."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny import OPTIONS, images
from torch import Tensor, nn

import twofold
from processes import run_processes
from sound_files import RATE, speech_folder
from twofold.commands.evaluate import evaluate
from twofold.commands.finetune import finetune
from twofold.data import open_source
from twofold.distributed import _AllGather, _AllReduceSum, _NormalizeOverRanks
from twofold.encoders import EncoderConfig, adapt, build_encoder
from twofold.errors import UserError
from twofold.heads import HeadConfig
from twofold.losses import nt_xent
from twofold.methods import Inputs, SimCLR
from twofold.optim import LARS
from twofold.options import merge
from twofold.randomness import Key
from twofold.runs.config import build
from twofold.runs.defaults import choose
from twofold.runs.pretrain import assemble
from twofold.runs.starting import start_accelerator
from twofold.training.micro_batch import run_in_chunks
from twofold.training.rundir import RunDirectory
from twofold.views import ImageViews, ViewsConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
ON_GPU = merge(OPTIONS, {"training": {"device": "cuda"}})
RULES: list[dict[str, Any]] = [
    {},
    {"resample": "tf2", "crop_rule": "tf", "color_rule": "tf", "blur_padding": "zero", "blur_sigma_per": "batch"},
    {"resample": "tf1", "brightness_rule": "additive", "jitter_order": "fixed", "rotation": 20.0},
]


@pytest.fixture(autouse=True)
def full_float32() -> Any:
    """Convolutions in TF32, torch's default on a GPU, would hide differences of 1e-3."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("side", [32, 96, 224])
@pytest.mark.parametrize("rule", RULES, ids=["default", "tf2", "tf1"])
def test_views(rule: dict[str, Any], side: int) -> None:
    """The same draws give the same views. Another device may round a position across a pixel's edge: at most 1e-4."""
    batch = torch.randint(0, 256, (24, 3, side + 8, side), dtype=torch.uint8)
    views = ImageViews(ViewsConfig(size=side, **rule))
    draws = views.draw(Key(0, 5), range(24), side + 8, side)
    here, there = views.apply(batch, draws), views.apply(batch.cuda(), draws)
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=0, atol=1e-4)


@pytest.mark.parametrize("implementation", ["dense", "blocks"])
@pytest.mark.parametrize("n", [40, 3000])
def test_loss(n: int, implementation: Any) -> None:
    z = torch.randn(2, n, 64)
    leaf, truth = z.cuda().requires_grad_(), z.double().requires_grad_()
    expected = nt_xent(*truth, 0.1, implementation="dense")
    expected.backward()
    loss = nt_xent(*leaf, 0.1, implementation=implementation)
    loss.backward()
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=1e-6, atol=1e-6)
    assert leaf.grad is not None
    assert truth.grad is not None
    assert (leaf.grad.double().cpu() - truth.grad).norm() < 1e-5 * truth.grad.norm()


def small() -> SimCLR:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.of(name="resnet10", width=0.125, stem="cifar", channels=3), 16)
    return SimCLR(encoder, HeadConfig(out_dim=16))


def test_steps_of_lars() -> None:
    shapes = [(8, 4, 3, 3), (16, 8), (16,)]
    values, gradients = [torch.randn(s) for s in shapes], [[torch.randn(s) for s in shapes] for _ in range(4)]
    found = {}
    for device in ("cpu", "cuda"):
        parameters = [nn.Parameter(value.to(device, copy=True)) for value in values]
        groups = [{"params": parameters[:2]}, {"params": parameters[2:], "adapt": False}]
        optimizer = LARS(groups, 0.5, weight_decay=1e-4)
        for step in gradients:
            for p, gradient in zip(parameters, step, strict=True):
                p.grad = gradient.to(device)
            optimizer.step()
        found[device] = [p.detach().cpu() for p in parameters]
    for here, there in zip(*found.values(), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_chunks_equal_the_whole(precision: str, compiled: bool) -> None:
    """The gradients of a batch in chunks are those of the whole batch, batch norm aside: here there is none."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.GELU(), nn.Conv2d(8, 16, 3, 2), nn.GELU(), nn.Flatten(), nn.LazyLinear(32)
    )
    net(torch.rand(1, 3, 16, 16))
    whole = SimCLR(adapt(net, size=16), HeadConfig(out_dim=16, norm=False)).cuda()
    chunked = copy.deepcopy(whole)
    run_in_chunks(chunked, 12, 4, compiled)
    a, b = torch.rand(2, 12, 3, 16, 16, device="cuda")
    for method in (whole, chunked):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = method(Inputs(a, b)).loss
        loss.backward()
    g, h = (torch.cat([p.grad.flatten() for p in method.parameters()]) for method in (whole, chunked))
    bound = 1e-4 if precision == "fp32" else 0.1  # compiled code rounds to bfloat16 less often
    assert (g - h).norm() <= bound * g.norm()


@pytest.mark.parametrize("more", [
    {},
    {"training.precision": "bf16"},
    {"training.precision": "bf16", "training.compile": True},
    {"training.precision": "bf16", "training.compile": True, "micro_batch": 8},
    {"method": {"name": "moco", "queue": 64, "bn_splits": 2}, "head": {"norm": False}},
    {"optim": {"name": "lars", "lr": 0.3}, "epochs": 1},
], ids=["plain", "bf16", "compiled", "chunks", "moco", "lars"])  # fmt: skip
def test_runs_stop_and_go_on(more: dict[str, Any], tmp_path: Path) -> None:
    """A run that is stopped and resumed ends where one that was not does (sums of a GPU differ in their last bits)."""
    options = merge(ON_GPU, more)
    whole = twofold.pretrain(images(), tmp_path / "whole", report=False, **options)
    rows = whole.rows()
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows)
    half = twofold.pretrain(images(), tmp_path / "half", report=False, **options)
    newest = half.latest()
    assert newest is not None
    newest.unlink()  # as if it had been killed before the last checkpoint
    half.encoder_file.unlink()
    again = twofold.pretrain(images(), tmp_path / "half", report=False, resume=True, **options)
    assert again.rows()[-1]["loss"] == pytest.approx(rows[-1]["loss"], rel=0.05)
    assert again.rows()[-1]["step"] == rows[-1]["step"]


def test_evaluation_and_fine_tuning(tmp_path: Path) -> None:
    run = twofold.pretrain(images(), tmp_path / "run", report=False, **ON_GPU)
    on_gpu = evaluate(run.path, images(128, seed=1), protocol="knn", k=5, device="cuda", keep_features=False)
    on_cpu = evaluate(run.path, images(128, seed=1), protocol="knn", k=5, device="cpu", keep_features=False)
    assert on_gpu.metrics["top1"] == pytest.approx(on_cpu.metrics["top1"], abs=0.02)
    tuned = finetune(run.path, images(128, seed=1), out=tmp_path / "tuned", epochs=2, training={"device": "cuda"})
    assert tuned.metrics["top1"] > 0
    assert (tmp_path / "tuned" / "encoder.safetensors").exists()


def test_speech(tmp_path: Path) -> None:
    folder = speech_folder(tmp_path / "clips", 3, 12)
    encoder = {
        "name": "speech:small",
        "speech": {"mels": 20, "width": 16, "layers": 1, "heads": 2, "hidden": 32, "sample_rate": RATE},
    }
    run = twofold.pretrain(
        folder, tmp_path / "run", report=False, encoder=encoder, batch=8, epochs=4, head={"out_dim": 8, "norm": False},
        method={"name": "speech_simclr"}, training={"device": "cuda", "log_every": 2},
    )  # fmt: skip
    assert {"contrastive", "reconstruction"} <= run.rows()[-1].keys()


def test_memory_that_runs_out_names_a_chunk_that_fits(tmp_path: Path) -> None:
    x = images(2048, 64)[0]
    options = merge(
        ON_GPU, {"batch": 2048, "epochs": 1, "views": {"size": 64}, "encoder": {"width": 1.0}, "monitor.every": 0}
    )
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(4e9 / total)
    try:
        with pytest.raises(UserError, match=r"--micro-batch \d+ fits") as caught:
            twofold.pretrain(x, tmp_path / "whole", report=False, **options)
        found = int(re.findall(r"--micro-batch (\d+) fits", str(caught.value))[0])
        run = twofold.pretrain(x, tmp_path / "chunks", report=False, micro_batch=found, **options)
        assert run.encoder_file.exists()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def on_one_gpu(rank: int, world: int) -> dict[str, Tensor]:
    """Both processes on the same GPU, over gloo: NCCL refuses that."""
    method = small().double().cuda()
    a, b = (x.double().cuda() for x in torch.rand(2, 16, 3, 16, 16))
    rows = slice(rank * 16 // world, (rank + 1) * 16 // world)
    method(Inputs(a[rows], b[rows])).loss.backward()
    grads = {}
    for name, p in method.named_parameters():
        dist.all_reduce(p.grad)
        grads[name] = (p.grad / world).cpu()
    return grads


def test_two_processes_equal_one() -> None:
    one = run_processes(on_one_gpu, 1, 1)[0]
    for found in run_processes(on_one_gpu, 2, 2):
        for name, grad in one.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_the_collectives_run_under_nccl(tmp_path: Path) -> None:
    """One process, which `all_gather` and batch norm would not ask NCCL for: their inner halves are called."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        x = torch.randn(6, 4, 5, 5, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
        weight, bias = torch.rand(4, device="cuda").requires_grad_(), torch.rand(4, device="cuda").requires_grad_()
        for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
            y = _NormalizeOverRanks.apply(x.to(dtype), weight, bias, 1e-5)[0]
            expected = torch.nn.functional.batch_norm(x.to(dtype), None, None, weight, bias, training=True)
            assert (y - expected).norm() <= bound * expected.norm()
            ours, theirs = (torch.autograd.grad(out.float().square().sum(), (x, weight, bias)) for out in (y, expected))
            for a, b in zip(ours, theirs, strict=True):
                assert (a - b).norm() <= bound * b.norm() + 1e-3
        torch.testing.assert_close(_AllGather.apply(x), x)
        torch.testing.assert_close(_AllReduceSum.apply(x), x)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("more", [
    {},
    {"method": {"name": "moco", "queue": 64, "bn_splits": 2}, "head": {"norm": False}},
    {"optim": {"name": "lars", "lr": 0.3}, "training.precision": "bf16"},
    {"method": {"name": "simclr", "memory": 64}},
], ids=["adamw", "moco", "lars", "memory"])  # fmt: skip
def test_a_step_does_not_wait_for_the_gpu(more: dict[str, Any], tmp_path: Path) -> None:
    """Between two rows of metrics Python runs ahead: with labels (a probe is trained beside), views and all."""
    config = build(merge(ON_GPU, more))
    source, run = open_source(images(), config.data), RunDirectory(tmp_path / "run")
    accelerator = start_accelerator(config.training, run)
    config, _ = choose(config, source.facts(), accelerator.device)
    training = assemble(config, source, run, accelerator, None)
    model, optimizer = accelerator.prepare(training.method, training.optimizer)
    try:
        for step, batch in enumerate(training.loader.iterate(0, 6)):
            if step == 3:  # what is set up once may wait
                torch.cuda.set_sync_debug_mode("error")
            training.update(model, optimizer, batch)
            training.step += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value.is_cuda for value in training.sums.values())  # what collectives are given
