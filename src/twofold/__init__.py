"""Twofold learns representations from unlabelled images by contrasting two views of each example.

`pretrain` learns an encoder, `load` gives it back, `evaluate` says what it is worth. The command line has the same
three, with the same options: ``twofold pretrain PATH --out runs/first``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from twofold.commands.evaluate import evaluate as evaluate
    from twofold.commands.pretrain import pretrain as pretrain
    from twofold.encoders.load import load as load

_WHERE = {name: f"twofold.commands.{name}" for name in ("pretrain", "evaluate")} | {"load": "twofold.encoders.load"}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import twofold` alone costs nothing and imports nothing.
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'twofold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]
