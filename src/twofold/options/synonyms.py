"""The names that options have in other programs, and in hands that come from there."""

from __future__ import annotations

from collections.abc import Sequence

SYNONYMS: dict[str, tuple[str, ...]] = {
    "a": ("encoder.name",),
    "arch": ("encoder.name",),
    "architecture": ("encoder.name",),
    "b": ("batch",),
    "backbone": ("encoder.name",),
    "batch_size": ("batch",),
    "bs": ("batch",),
    "crop_size": ("views.size", "size"),
    "image_size": ("views.size", "size"),
    "img_size": ("views.size", "size"),
    "input_size": ("views.size", "size"),
    "j": ("data.workers", "workers"),
    "learning_rate": ("optim.lr",),
    "log_interval": ("training.log_every",),
    "max_epochs": ("epochs",),
    "model": ("encoder.name",),
    "n_epochs": ("epochs",),
    "n_workers": ("data.workers", "workers"),
    "num_epochs": ("epochs",),
    "num_threads": ("training.threads",),
    "num_workers": ("data.workers", "workers"),
    "o": ("out",),
    "opt": ("optim.name",),
    "optimiser": ("optim.name",),
    "optimizer": ("optim.name",),
    "out_dim": ("head.out_dim",),
    "out_dir": ("out",),
    "output": ("out",),
    "output_dir": ("out",),
    "print_freq": ("training.log_every",),
    "random_seed": ("seed",),
    "resolution": ("views.size", "size"),
    "save_dir": ("out",),
    "scheduler": ("optim.schedule",),
    "tau": ("method.temperature", "temperature"),
    "temp": ("method.temperature", "temperature"),
    "tracker": ("training.track",),
    "wd": ("optim.weight_decay",),
}
"""What the options of other programs are called here; of several the first that there is."""


def meant(name: str, paths: Sequence[str], prefix: str = "") -> list[str]:
    """The options that a name which none has may mean: by a habit, or as the last word of their own names.

    Args:
        name: as it was given, without the groups that it was given in.
        paths: dotted names of all options.
        prefix: of the groups that it was given in, with a dot at its end; those that lie in them come first.
    """
    asked = name.replace("-", "_").rpartition(".")[2]
    found = [path for path in SYNONYMS.get(asked, ()) if path in paths][:1]
    found += [path for path in paths if path.rpartition(".")[2] == asked]
    return sorted(dict.fromkeys(found), key=lambda path: not path.startswith(prefix))[:3]
