"""Compare with the reference, and keep what came of it for docs/fidelity.md.

`agree` asserts and records in one call, so that the table cannot say anything but what the test saw. It writes a line
of JSON to the file that $TWOFOLD_FIDELITY names (docs/make_fidelity.py does); without it, it only asserts.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

SIMCLR, MOCO, ATHENA = "google-research/simclr", "facebookresearch/moco", "athena-team/athena"
COMMITS = {SIMCLR: "383d4143", MOCO: "5df3287e", ATHENA: "1b82bdb5"}


@dataclass(frozen=True)
class Row:
    """One row of the table: whose code and files, which golden files (glob patterns)."""

    repository: str
    files: tuple[str, ...]
    golden: tuple[str, ...]


ROWS: dict[str, Row] = {
    "Crop boxes (distribution)": Row(SIMCLR, ("data_util.py",), ("crop_sampling.npz",)),
    "Crop and bicubic resize, TF2": Row(SIMCLR, ("tf2/data_util.py",), ("crop_resize.npz",)),
    "Crop and bicubic resize, TF1": Row(SIMCLR, ("data_util.py",), ("crop_resize.npz",)),
    "Training view, every draw given": Row(SIMCLR, ("tf2/data_util.py",), ("crop_resize.npz",)),
    "Test-time view": Row(SIMCLR, ("tf2/data_util.py",), ("crop_resize.npz",)),
    "Colour operators": Row(SIMCLR, ("tf2/data_util.py",), ("color.npz",)),
    "Colour jitter, both brightness rules": Row(SIMCLR, ("tf2/data_util.py",), ("color.npz",)),
    "Gaussian blur": Row(SIMCLR, ("tf2/data_util.py",), ("blur.npz",)),
    "ResNet, head, classifier: float64": Row(SIMCLR, ("tf2/resnet.py", "tf2/model.py"), ("resnet_*.npz",)),
    "ResNet, head, classifier: float32 inference": Row(SIMCLR, ("tf2/resnet.py", "tf2/model.py"), ("resnet_*.npz",)),
    "ResNet, head, classifier: float32 training": Row(SIMCLR, ("tf2/resnet.py", "tf2/model.py"), ("resnet_*.npz",)),
    "Moving averages after a step": Row(SIMCLR, ("tf2/resnet.py",), ("resnet_*.npz",)),
    "NT-Xent: value": Row(SIMCLR, ("tf2/objective.py",), ("ntxent.npz",)),
    "NT-Xent: gradient": Row(SIMCLR, ("tf2/objective.py",), ("ntxent.npz",)),
    "NT-Xent: gradient in float64": Row(SIMCLR, ("tf2/objective.py",), ("ntxent.npz",)),
    "NT-Xent: logits": Row(SIMCLR, ("tf2/objective.py",), ("ntxent.npz",)),
    "Contrastive accuracy and entropy": Row(SIMCLR, ("tf2/metrics.py",), ("ntxent.npz",)),
    "NT-Xent over replicas: value": Row(SIMCLR, ("tf2/objective.py",), ("ntxent_xreplica.npz",)),
    "NT-Xent over replicas: gradients": Row(SIMCLR, ("tf2/objective.py", "tf2/run.py"), ("ntxent_xreplica.npz",)),
    "LARS, every variant": Row(SIMCLR, ("tf2/lars_optimizer.py",), ("lars.npz",)),
    "Learning rate and step counts": Row(SIMCLR, ("tf2/model.py",), ("schedule.npz",)),
    "Distillation": Row(SIMCLR, ("colabs/distillation_self_training.ipynb",), ("distill.npz",)),
    "Training step: pretraining with LARS": Row(
        SIMCLR, ("tf2/run.py",), ("trainstep_pretrain_lars_1rep.npz", "trainstep_pretrain_lars_2rep.npz")
    ),
    "Training step: fine-tuning with momentum": Row(SIMCLR, ("tf2/run.py",), ("trainstep_finetune_momentum.npz",)),
    "Training step: linear evaluation": Row(SIMCLR, ("tf2/run.py",), ("trainstep_linear_eval_block4.npz",)),
    "Converted checkpoints": Row(
        SIMCLR, ("model_util.py", "tf2/model.py"), ("checkpoints/*/expected.npz", "resnet_*.npz")
    ),
    "MoCo: steps, gradients, queue": Row(MOCO, ("moco/builder.py", "main_moco.py"), ("moco.npz",)),
    "MoCo: the key encoder's average": Row(MOCO, ("moco/builder.py",), ("moco.npz",)),
    "MoCo: learning rates": Row(MOCO, ("main_moco.py",), ("moco.npz",)),
    "Speech: contrastive loss": Row(ATHENA, ("athena/loss.py",), ("athena.npz",)),
    "Speech: reconstruction and total loss": Row(
        ATHENA, ("athena/loss.py", "athena/models/simclr.py"), ("athena.npz",)
    ),
    "Speech: encoder, pooling and heads": Row(
        ATHENA, ("athena/models/simclr.py", "athena/layers/transformer.py"), ("athena_model.npz",)
    ),
}


def deviation(got: Any, expected: Any, scale: float | Literal["largest"] = 1.0) -> float:
    """The largest difference, in units of `scale`; "largest": the expected value of largest magnitude."""
    got, expected = (np.asarray(getattr(v, "detach", lambda v=v: v)(), dtype=np.float64) for v in (got, expected))
    assert got.shape == expected.shape, (got.shape, expected.shape)
    unit = max(float(np.abs(expected).max(initial=0.0)), 1e-30) if scale == "largest" else scale
    return float(np.abs(got - expected).max(initial=0.0)) / unit


def record(component: str, found: float, tolerance: float, cases: int = 1, unit: str = "absolute") -> None:
    """Keep one comparison for the table; `component` must be one of ROWS."""
    assert component in ROWS, f"no row {component!r} in tests/fidelity.py"
    file = os.environ.get("TWOFOLD_FIDELITY")
    if file is not None:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0].split("[")[0]
        line = {"component": component, "found": found, "tolerance": tolerance, "cases": cases, "unit": unit}
        with Path(file).open("a") as lines:  # one short write: whole even where several workers append
            lines.write(json.dumps(line | {"test": test}) + "\n")


def agree(
    component: str,
    got: Any,
    expected: Any,
    tolerance: float,
    scale: float | Literal["largest"] = 1.0,
    cases: int = 1,
    note: str = "",
) -> None:
    """Assert |got - expected| <= tolerance * scale everywhere, and record how close it came."""
    found = deviation(got, expected, scale)
    record(component, found, tolerance, cases, "absolute" if scale == 1.0 else "relative")
    assert found <= tolerance, f"{component}, {note}{note and ': '}off by {found:.3g}, tolerance {tolerance:.3g}"
