"""The kinds of data there are, and what one example of each is called in what people read."""

from __future__ import annotations

from typing import Literal

Kind = Literal["image", "audio"]
EXAMPLE: dict[Kind, str] = {"image": "image", "audio": "recording"}
"""The noun for one example; its plural takes an s."""
