"""Libraries that only the report needs and that a plain installation lacks."""

from __future__ import annotations

import importlib
from typing import Any

from twofold.errors import UserError


def require(module: str) -> Any:
    """Import `module`; UserError that names the extra to install if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'the report needs {module.split(".")[0]}, which is not installed: pip install "twofold[report]"'
        ) from error
