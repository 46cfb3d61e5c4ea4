"""Errors in a command's own words: the rooms below name options as `twofold pretrain` has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from twofold.errors import UserError


@contextmanager
def named(*options: str) -> Iterator[None]:
    """Inside, a UserError's `--room.option` is called `--option` for each `room.option` given; also a decorator."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for option in options:
            text = re.sub(rf"--{re.escape(option)}\b", f"--{option.rpartition('.')[2]}", text)
        raise UserError(text) from error
