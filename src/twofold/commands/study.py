"""`twofold study NAME PATH`: the papers' questions asked of your own data.

Which studies there are is said in `twofold.studies.STUDIES`; here they are looked up and started.
"""

from __future__ import annotations

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
    folder = StudyFolder(out, name, {"data": where, "options": plain(config)}, resume)
    result: StudyResult[Any] = kind(where, config, folder).perform()
    return result


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
