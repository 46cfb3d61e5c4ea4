"""Networks as studies name them."""

from __future__ import annotations

from typing import Any

from twofold.errors import UserError


def net_options(name: str, option: str) -> dict[str, Any]:
    """Encoder options of NAME or NAME@WIDTH, such as resnet18@0.5, which the user gave in `option`.

    Raises:
        UserError: a width that is none.
    """
    model, at, width = name.partition("@")
    try:
        return {"name": model} | ({"width": float(width)} if at else {})
    except ValueError as error:
        raise UserError(f"--{option} {name}: {width!r} is no width; write e.g. resnet18@0.5") from error


def title(encoder: dict[str, Any]) -> str:
    """An architecture as its options name it: NAME, or NAME@WIDTH."""
    width = encoder.get("width") or 1.0
    return str(encoder["name"]) if width == 1.0 else f"{encoder['name']}@{width:g}"
