"""`twofold study NAME PATH`: the papers' questions asked of your own data.

A new study is an entry in `STUDIES`, and a line in `twofold.commands.SUMMARIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold.errors import UserError, suggest
from twofold.options import OptionsParser, plain
from twofold.studies.classes import ClassesStudy, study_classes
from twofold.studies.distilling import DistillStudy, study_distillation
from twofold.studies.finetuning import FinetuneStudy, study_finetune
from twofold.studies.folder import StudyFolder
from twofold.studies.methods import MethodsStudy, compare_methods


@dataclass(frozen=True)
class Study:
    """A study that the command line knows.

    Attributes:
        config: frozen dataclass of its options.
        run: does it: (data, the folder, an instance of `config`) -> text for the terminal. It checks what it can before
            it calls `folder.start()`.
    """

    config: type
    run: Callable[[str, StudyFolder, Any], str]


STUDIES: dict[str, Study] = {
    "methods": Study(MethodsStudy, compare_methods),
    "finetune": Study(FinetuneStudy, study_finetune),
    "distillation": Study(DistillStudy, study_distillation),
    "classes": Study(ClassesStudy, study_classes),
}


def study(name: str, data: str | Path, out: str | Path, *, resume: bool = False, **options: Any) -> str:
    """Do a study of `STUDIES`.

    Args:
        name: which.
        data: a path, or the name of a torchvision data set.
        out: the study's folder; must be new or empty unless `resume`.
        resume: go on with the study in `out`: what is done is not done again.
        options: fields of the study's options, nested or dotted.

    Returns:
        The results for people. They are in `study.json` and `report.html`, too.

    Raises:
        UserError: for anything wrong in the options or the data.
        Stopped: if SIGINT or SIGTERM ended it early; `resume=True` goes on.
    """
    if name not in STUDIES:
        raise UserError(f"there is no study '{name}'{suggest(name, STUDIES)}")
    config: Any = OptionsParser(STUDIES[name].config).build(options)
    where = str(Path(data).resolve()) if Path(data).exists() else str(data)
    folder = StudyFolder(out, name, {"data": where, "options": plain(config)}, resume)
    return STUDIES[name].run(where, folder, config)
