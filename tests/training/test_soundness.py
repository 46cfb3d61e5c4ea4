"""No checkpoint is written from weights that are no numbers, and what spoiled them is told."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twofold.archives import spoiled
from twofold.commands.pretrain import pretrain
from twofold.encoders import load_encoder
from twofold.errors import UserError
from twofold.training.checkpoint import checkpoints
from twofold.training.loop import Training

OPTIONS: dict[str, Any] = {
    "epochs": 2.0, "batch": 8, "report": False, "views.size": 16, "data.workers": 0,
    "training": {"device": "cpu", "precision": "fp32", "keep": 1, "checkpoint_every": 1},
    "encoder": {"name": "resnet10", "width": 0.125, "stem": "cifar"},
}  # fmt: skip


def photos(folder: Path, count: int = 32) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def kept(run: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoints(run)}


def one_by_one(value: Any) -> set[str]:
    """The slow oracle."""
    found = set()
    for key, part in value.items():
        if isinstance(part, dict):
            found |= {f"{key}.{name}" for name in one_by_one(part)}
        elif part.is_floating_point() and not torch.isfinite(part).all():
            found.add(key)
    return found


def test_spoiled_tensors_are_found_as_one_by_one() -> None:
    """In any type, at any place, and the largest numbers are numbers."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(60):
        state: dict[str, Any] = {}
        for i in range(6):
            dtype = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64][(trial + i) % 5]
            tensor = (torch.rand(int(torch.randint(1, 5000, (1,), generator=generator)), generator=generator) * 9).to(
                dtype
            )
            tensor[-1] = torch.finfo(dtype).max if tensor.is_floating_point() else 7
            if tensor.is_floating_point() and (trial + i) % 3 == 0:
                tensor[trial * 7 % len(tensor)] = [torch.nan, torch.inf, -torch.inf][i % 3]
            state[f"t{i}"] = tensor if i % 2 else {"inner": tensor.reshape(1, -1).t()}
        assert set(spoiled(state)) == one_by_one(state)
    assert spoiled({"empty": torch.zeros(0), "text": "nan", "scalar": torch.tensor(torch.nan)}) == ["scalar"]


def test_a_gradient_that_is_no_number_keeps_the_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the loss is still finite: the batch of that very step is named."""
    update = Training.update

    def spoiling(self: Any, model: Any, optimizer: Any, batch: Any) -> Any:
        if self.step == 4:
            next(model.parameters()).register_hook(lambda grad: grad * torch.nan)
        return update(self, model, optimizer, batch)

    monkeypatch.setattr(Training, "update", spoiling)
    with pytest.raises(UserError, match=r"after step 5 weights are .*; the checkpoint of step 4 is sound") as error:
        pretrain(photos(tmp_path / "photos"), tmp_path / "run", **OPTIONS)
    assert "optim.lr" in str(error.value)
    assert list(kept(tmp_path / "run")) == ["step-000000004.pt"]
    assert not (tmp_path / "run" / "encoder.safetensors").exists()
    monkeypatch.setattr(Training, "update", update)
    assert pretrain(tmp_path / "photos", tmp_path / "run", resume=True, **OPTIONS).steps == 9


def test_the_batch_that_spoiled_the_weights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two checkpoints the next loss tells of it, and the batch before is at fault."""
    update, seen = Training.update, {}

    def spoiling(self: Any, model: Any, optimizer: Any, batch: Any) -> Any:
        seen[self.step] = [Path(self.loader.name(int(i))).name for i in batch.index]
        if self.step == 4:
            next(model.parameters()).register_hook(lambda grad: grad * torch.nan)
        return update(self, model, optimizer, batch)

    monkeypatch.setattr(Training, "update", spoiling)
    options = OPTIONS | {"training": OPTIONS["training"] | {"checkpoint_every": 4}}
    with pytest.raises(UserError, match=r"the weights became no numbers in step 5 .*checkpoint of step 4") as error:
        pretrain(photos(tmp_path / "photos"), tmp_path / "run", **options)
    assert all(f"photos/{name}" in str(error.value) for name in seen[4][:5])


def test_statistics_that_overflow_end_the_run(tmp_path: Path) -> None:
    """LARS at a rate of a million: the loss stays a number and the running variances do not."""
    options = OPTIONS | {"optim": {"name": "lars", "lr": 1e6, "lr_rule": "none", "warmup_epochs": 0}}
    with pytest.raises(UserError, match=r"running_var|loss became|no numbers"):
        pretrain(photos(tmp_path / "photos"), tmp_path / "run", **options)
    assert not (tmp_path / "run" / "encoder.safetensors").exists()
    for path in checkpoints(tmp_path / "run"):
        assert spoiled(torch.load(path, weights_only=True)) == []


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends as one that nothing happened to."""
    options = OPTIONS | {"training": OPTIONS["training"] | {"keep": 3}}
    photos(tmp_path / "photos")
    pretrain(tmp_path / "photos", tmp_path / "whole", **options)
    pretrain(tmp_path / "photos", tmp_path / "run", **options)
    for path in checkpoints(tmp_path / "run")[-2:]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    pretrain(tmp_path / "photos", tmp_path / "run", resume=True, **options)
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("cannot be read as a checkpoint") == 2
    assert "going on from step 7" in told
    ours, theirs = (load_encoder(tmp_path / name / "encoder.safetensors").state_dict() for name in ("whole", "run"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.damaged"))) == 2


def test_a_checkpoint_of_another_run_is_told(tmp_path: Path) -> None:
    """Not a traceback of missing tensors."""
    photos(tmp_path / "photos")
    options = OPTIONS | {"training": OPTIONS["training"] | {"checkpoint_every": 100}}
    pretrain(tmp_path / "photos", tmp_path / "run", **options)
    wider = options | {"encoder": options["encoder"] | {"width": 0.25}}
    pretrain(tmp_path / "photos", tmp_path / "other", **wider)
    other, ours = checkpoints(tmp_path / "other")[-1], checkpoints(tmp_path / "run")[-1]
    ours.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="is no checkpoint of this run"):
        pretrain(tmp_path / "photos", tmp_path / "run", resume=True, **options)
