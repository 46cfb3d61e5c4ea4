"""The configuration of a run: one frozen dataclass a room, gathered here, merged from layers and checked as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jsonargparse import set_parsing_settings

from twofold.errors import UserError

set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True)
class TrainingConfig:
    """How the loop runs: nothing here changes what is learned, but for the arithmetic's precision."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoder and head; the loss is always fp32. auto takes bf16 where the processor has it."""
    channels_last: bool = True
    """Keep images and kernels in channels-last order, which convolutions run faster on."""
    compile: bool = False
    """Compile the encoder (torch.compile): pays off in runs of hours, not of minutes."""
    threads: int | None = None
    """CPU threads for arithmetic; all cores when not given."""
    keep_memory: bool = True
    """On a CPU: keep memory that a step frees for the next one, instead of giving it back to the system each time,
    which is faster and holds more memory (Linux with glibc only)."""
    log_every: int | None = None
    """Steps between two rows of metrics.jsonl; chosen from the run's length when not given."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints. When not given one epoch, or as many epochs as keep the time that saving takes
    within 1 % of the run's."""
    checkpoint_minutes: float | None = None
    """A checkpoint also after so many minutes without one."""
    keep: int = 2
    """How many of the last checkpoints are kept, at least 1; where labels are watched, the best by its neighbours (or
    probe) stays as well, and its encoder as best.safetensors."""
    patience: float = 60.0
    """Of several processes: seconds within which one that has died or hangs is noticed, and the run ends, to be
    resumed."""
    join_patience: float = 300.0
    """Of several processes: seconds within which all must have started."""
    track: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = "none"
    """Send metrics, options and, of pretraining, pictures of views and neighbours to a tracker too: TensorBoard (the
    extra `track`; its files lie in the run's folder), or W&B, MLflow or trackio, which are installed by their names."""

    changed_data: Literal["refuse", "allow"] = "refuse"
    """When a run goes on and its files hold something else than when it began: refuse to, or allow it. A file that was
    copied or touched is none of these; data of more than 2 GiB are not read whole to know that."""

    def __post_init__(self) -> None:
        for name in ("threads", "log_every", "checkpoint_every", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--training.{name} must be at least 1, got {value}")
        for name in ("patience", "join_patience"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"--training.{name} {getattr(self, name)}: give seconds above 0")
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
            raise UserError(f"--training.checkpoint_minutes must be above 0, got {self.checkpoint_minutes}")
