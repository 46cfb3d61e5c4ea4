"""Twofold learns representations from unlabelled images or speech by contrasting two views of each example.

`pretrain` learns an encoder, `load` gives it back, `evaluate` says what it is worth; the other functions are the other
commands. The command line has the same, with the same options: ``twofold pretrain PATH --out runs/first``.

`Embedder` is the same as a transformer of scikit-learn. `two_views` and `nt_xent` are for a training loop of your own,
with more of their kind in `twofold.views` and `twofold.losses`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from twofold import losses as losses
    from twofold import views as views
    from twofold.commands.compare import compare as compare
    from twofold.commands.convert import convert as convert
    from twofold.commands.distill import distill as distill
    from twofold.commands.doctor import doctor as doctor
    from twofold.commands.embed import embed as embed
    from twofold.commands.evaluate import evaluate as evaluate
    from twofold.commands.explore import explore as explore
    from twofold.commands.export import export as export
    from twofold.commands.finetune import finetune as finetune
    from twofold.commands.fresh import fresh as fresh
    from twofold.commands.label import label as label
    from twofold.commands.labels import labels as labels
    from twofold.commands.papers import papers as papers
    from twofold.commands.predict import predict as predict
    from twofold.commands.pretrain import pretrain as pretrain
    from twofold.commands.recipes import recipes as recipes
    from twofold.commands.search import search as search
    from twofold.commands.shard import shard as shard
    from twofold.commands.study import study as study
    from twofold.commands.transfer import transfer as transfer
    from twofold.embedder import Embedder as Embedder
    from twofold.evaluation.loading import load as load
    from twofold.losses.info_nce import info_nce as info_nce
    from twofold.losses.nt_xent import nt_xent as nt_xent
    from twofold.views import two_views as two_views

_COMMANDS = (
    "pretrain", "evaluate", "finetune", "distill", "labels", "predict", "embed", "search", "explore", "label",
    "convert", "export", "transfer", "study", "shard", "recipes", "papers", "compare", "doctor", "fresh",
)  # fmt: skip
_PLACES = {name: f"twofold.commands.{name}" for name in _COMMANDS} | {
    "load": "twofold.evaluation.loading", "Embedder": "twofold.embedder", "two_views": "twofold.views",
    "nt_xent": "twofold.losses", "info_nce": "twofold.losses",
}  # fmt: skip
_MODULES = ("losses", "views")


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import twofold` alone costs nothing and imports nothing.
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    if name in _MODULES:
        return import_module(f"twofold.{name}")
    raise AttributeError(f"module 'twofold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_PLACES, *_MODULES, "__version__"]
