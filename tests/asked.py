"""Notes what functions of the package are asked while a test runs, and lets them answer."""

from __future__ import annotations

import inspect
from typing import Any

import pytest


class Asked(dict[str, list[Any]]):
    """What was asked of whom: the arguments of each call, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.patch = monkeypatch

    def of(self, owner: Any, name: str, *parameters: str) -> None:
        """Note these parameters of each call from now on, or all that is given."""
        real, told = getattr(owner, name), self.setdefault(name, [])
        signature = inspect.signature(real)

        def asked(*given: Any, **more: Any) -> Any:
            bound = signature.bind(*given, **more)
            bound.apply_defaults()
            kept = tuple(bound.arguments[parameter] for parameter in parameters)
            told.append(kept[0] if len(kept) == 1 else kept or given)
            return real(*given, **more)

        self.patch.setattr(owner, name, asked)

    def taken(self, name: str) -> list[Any]:
        """The calls since the last time."""
        calls = self[name][:]
        self[name].clear()
        return calls
