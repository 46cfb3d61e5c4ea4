"""`twofold study NAME PATH`: the papers' questions asked of your own data.

Which studies there are is said in `twofold.studies.STUDIES`; here they are looked up and started.
"""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from twofold.commands.arguments import PATH, add_data, add_out, new_parser, require_out
from twofold.errors import UserError, suggest
from twofold.options import OptionsParser, add_options, plain
from twofold.studies import STUDIES
from twofold.studies.base import StudyFolder, StudyResult


def study(name: str, data: str | Path, /, out: str | Path, *, resume: bool = False, **options: Any) -> StudyResult[Any]:
    """Do a study of `twofold.studies.STUDIES`.

    Args:
        name: which.
        data: a path, or the name of a torchvision data set.
        out: the study's folder; must be new or empty unless `resume`.
        resume: go on with the study in `out`, or start it if there is none yet: what is done is not done again.
        options: fields of the study's options, nested or dotted.

    Returns:
        Everything measured, a table and what it says. It is in `study.json` and `report.html`, too.

    Raises:
        UserError: for anything wrong in the options or the data.
        Stopped: if SIGINT or SIGTERM ended it early; `resume=True` goes on.
    """
    kind = _class_of(name)
    config: Any = OptionsParser(kind.Config).build(options)
    where = str(Path(data).resolve()) if Path(data).exists() else str(data)
    defaults = {"options": _defaults(kind.Config)}
    folder = StudyFolder(out, name, {"data": where, "options": plain(config)}, resume, defaults)
    result: StudyResult[Any] = kind(where, config, folder).perform()
    return result


def _defaults(config: type) -> dict[str, Any]:
    """What a study's options are where nothing is given; without those that have to be given."""
    found: dict[str, Any] = {}
    for each in dataclasses.fields(config):
        if each.default is not dataclasses.MISSING:
            found[each.name] = each.default
        elif each.default_factory is not dataclasses.MISSING:
            value = each.default_factory()
            found[each.name] = plain(value) if dataclasses.is_dataclass(value) else value
    return plain(found)


def _class_of(name: str) -> Any:
    """The class of a study; UserError if there is none of that name."""
    if name not in STUDIES:
        raise UserError(f"there is no study '{name}'{suggest(name, STUDIES)}")
    module, _, kind = STUDIES[name].place.partition(":")
    return getattr(import_module(module), kind)


def parser(name: str) -> ArgumentParser:
    """Of `twofold study NAME`."""
    parser = new_parser(f"{STUDIES[name].summary}.")
    add_data(parser, "a folder, an .npz file, or the name of a torchvision data set")
    add_out(parser, "study")
    add_options(parser, _class_of(name).Config)
    return parser


def run(options: dict[str, Any], name: str) -> StudyResult[Any]:
    """`twofold study NAME`."""
    require_out(options, "a folder for the study", f"studies/{name}")
    return study(name, options.pop(PATH), options.pop("out"), **options)
