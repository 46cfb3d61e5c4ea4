"""Curves, options and pictures of a run sent to a tracker as well, through Accelerate."""

from __future__ import annotations

import importlib
import importlib.util
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from twofold.console import print_rank0
from twofold.distributed import rank
from twofold.errors import UserError
from twofold.options import as_written, flatten, plain
from twofold.training.config import TrainingConfig
from twofold.training.rundir import RunDirectory

PROJECT = "twofold"
"""What the runs stand under in trackers that keep many."""
_FILE = "trackers.json"
_INSTALL = {"tensorboard": '"twofold[track]"', "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


def check_tracker(config: TrainingConfig) -> None:
    """Raise a UserError where the tracker that is asked for is not installed, before anything else is done."""
    track = config.track
    if track != "none" and importlib.util.find_spec(track) is None:
        raise UserError(f"--training.track {track} needs {track}: pip install {_INSTALL[track]}")


def start_tracking(accelerator: Accelerator, config: Any, run: RunDirectory) -> None:
    """Open the tracker of a run whose folder holds its configuration already: TensorBoard writes in there.

    A run that is resumed goes on as the same one there: `trackers.json` says which that is.

    Args:
        accelerator: of the run.
        config: the resolved configuration, a dataclass with `training`.
        run: the run's folder.

    Raises:
        UserError: the tracker refuses: no server, no login, ...
    """
    track = config.training.track
    if track == "none":
        return
    name, known = run.path.resolve().name, _known(run)
    own = known.get(track) or uuid.uuid4().hex[:12]
    more: dict[str, dict[str, Any]] = {
        "wandb": {"name": name, "id": own, "resume": "allow", "dir": str(run.path)},
        "mlflow": {"run_name": name, "run_id": known.get(track)},
        "trackio": {"name": f"{name}-{own}", "resume": "allow"},
    }
    options = {key: _told(value) for key, value in flatten(plain(config)).items() if value is not None}
    try:
        project = track if track == "tensorboard" else PROJECT
        accelerator.init_trackers(project, None, {track: more[track]} if track in more else {})
        if rank() == 0 and not accelerator.trackers:
            raise RuntimeError(f"this version of Accelerate finds no usable {track}")
        if rank() == 0 and track == "tensorboard":  # whose own way to keep options writes a second run beside the first
            text = "\n".join(f"    {key}: {value}" for key, value in options.items())
            accelerator.trackers[0].writer.add_text("options", text, 0)
        elif rank() == 0:
            own = accelerator.trackers[0].tracker.info.run_id if track == "mlflow" else own
            if track not in known:
                accelerator.trackers[0].store_init_configuration(options)
                run.write_json(_FILE, known | {track: own})
    except Exception as error:  # each library has dozens of its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        words = f"--training.track {track} cannot be started: {first}; --training.track none does without"
        raise UserError(words) from error


def _known(run: RunDirectory) -> dict[str, str]:
    """What the trackers of earlier parts of the run call it."""
    file = run.path / _FILE
    try:
        found: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} is damaged: {error}; remove it, and the tracker shows the rest as another run"
        ) from error
    return found


def _told(value: Any) -> Any:
    """A value as every tracker takes it."""
    return value if isinstance(value, bool | int | float | str) else as_written(tuple(value))


def release(accelerator: Accelerator) -> Sequence[Any]:
    """The trackers, no longer the accelerator's to finish: `finish` does it once the last pictures are known."""
    trackers, accelerator.trackers = list(accelerator.trackers), []
    return trackers


def finish(
    trackers: Sequence[Any], step: int, pictures: Callable[[], Mapping[str, NDArray[np.uint8]]] | None = None
) -> None:
    """Send what `pictures` gives, [n, H, W, C] by name, to trackers that take them, and close all.

    What fails in it is told: a run that is whole must not end in it.
    """

    def show(tracker: Any) -> None:
        for name, images in (pictures() if pictures else {}).items():
            _send(tracker, name, images if images.shape[-1] == 3 else images[..., :1].repeat(3, axis=-1), step)

    for tracker in trackers:
        for act in (show, lambda open_one: open_one.finish()):
            try:
                act(tracker)
            except Exception as error:  # a server that went away, data that can no longer be read
                print_rank0(f"{tracker.name} took no more: {error}; the run itself is whole")


def _send(tracker: Any, name: str, images: NDArray[np.uint8], step: int) -> None:
    if tracker.name == "tensorboard":
        tracker.log_images({name: images}, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        tracker.log_images({name: list(images)}, step=step)
    elif tracker.name == "mlflow":
        mlflow = importlib.import_module("mlflow")
        for place, image in enumerate(images):
            mlflow.log_image(image, f"{name}/{place:02d}.png")
    elif tracker.name == "trackio":
        trackio = importlib.import_module("trackio")
        # (a list of images is no value that it keeps)
        tracker.run.log({f"{name}/{at:02d}": trackio.Image(image) for at, image in enumerate(images)}, step=step)
