"""Libraries that only the report needs; whoever installs without what Twofold requires may lack them."""

from __future__ import annotations

import importlib
from typing import Any

from twofold.errors import UserError


def require(module: str) -> Any:
    """Import `module`; UserError that says how to install it if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"the report needs {module.split('.')[0]}, which is not installed: pip install {module.split('.')[0]}"
        ) from error
