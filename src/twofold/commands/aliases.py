"""The names by which hands type options: taken for an option where one is meant, else answered with the right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from twofold.errors import UserError
from twofold.options.synonyms import SYNONYMS

_HALF = "--training.precision bf16 (auto takes it where the processor has it)"
_DATA = "the data come without a name: `twofold {command}{before} PATH`"
_MANY = "start one process a device: `torchrun --nproc-per-node N -m twofold {command} ...`"
_GPU = "{device} cuda (auto takes a GPU where there is one)"
_SOUGHT = (
    "--names NAME finds what is like an example of that name, --query FILE what is like a file; the column of a table "
    "with the texts of recordings is --data.audio.text"
)
_REMEDIES: dict[str, str] = {
    **dict.fromkeys(("amp", "bf16", "fp16"), _HALF),
    **dict.fromkeys(("checkpoint", "ckpt"), "{run}"),
    **dict.fromkeys(("cuda", "gpu"), _GPU),
    **dict.fromkeys(("data", "data_dir", "data_path", "dataset", "input", "root"), _DATA),
    **dict.fromkeys(("devices", "dist_url", "gpus", "num_gpus", "world_size"), _MANY),
    **dict.fromkeys(("prompt", "search", "text", "texts"), _SOUGHT),
    "tensorboard": "--training.track tensorboard",
    "wandb": "--training.track wandb",
}
"""Habits that have no option of one value here, and what does it."""


class Names:
    """The options of one command by every name that means one of them.

    Args:
        command: its name.
        options: the names of its options without dashes, as they are declared: `optim.lr`, `print-config`.
        before: the names of what comes without a name, in order: `run`, `data`.
    """

    def __init__(self, command: str, options: Iterable[str], before: Sequence[str] = ()) -> None:
        self.command, self.before = command, before
        self._exact = {name.replace("-", "_"): name for name in options}
        self._last: dict[str, list[str]] = {}
        for name in self._exact.values():
            self._last.setdefault(name.rpartition(".")[2].replace("-", "_"), []).append(name)

    def find(self, word: str) -> str:
        """The option that a word means.

        Its own name, with dashes or underscores; a habit of `SYNONYMS`; a group that has a name (`encoder` for
        `encoder.name`); or the last word of one option alone (`lr` for `optim.lr`). Beginnings of a name mean nothing.

        Raises:
            UserError: it means none or several; the right name comes first.
        """
        asked = word.replace("-", "_")
        if asked in self._exact:
            return self._exact[asked]
        group = [name for known, name in self._exact.items() if known.startswith(f"{asked}.")]
        if group and (chooser := f"{asked}.name") in self._exact:
            return self._exact[chooser]
        if (known := next((name for name in SYNONYMS.get(asked, ()) if name in self._exact), None)) is not None:
            return known
        if asked in _REMEDIES and (remedy := self._remedy(asked)) is not None:
            raise UserError(f"there is no option '{_dashed(word)}': {remedy}")
        ends = self._last.get(asked, [])
        if len(ends) == 1:
            return ends[0]
        if ends:
            names = _several([f"--{name}" for name in sorted(ends, key=lambda name: (name.count("."), name))])
            raise UserError(f"the option '{_dashed(word)}' could be {names}: say which")
        if group:
            shown = ", ".join(f"--{name}" for name in group[:4])
            more = f", ... ({len(group)} in all)" if len(group) > 4 else ""
            raise UserError(f"'{_dashed(word)}' is a group of options: {shown}{more}; set one of them")
        raise UserError(f"there is no option '{_dashed(word)}'{self._suggest(asked)}")

    def _remedy(self, asked: str) -> str | None:
        """What does it here; None where nothing of the command does."""
        text, training = _REMEDIES[asked], "training.device" in self._exact
        device = next((f"--{name}" for name in ("training.device", "device") if name in self._exact), "")
        run = [f"the {name} comes without a name" for name in self.before if name in ("run", "teacher")]
        run += ["--resume goes on with what is in --out"] if "resume" in self._exact else []
        run += ["--start_from takes weights to begin with"] if "start_from" in self._exact else []
        needs = {"{device}": device, "torchrun": training, "--training.": training, "{run}": run}
        needs |= {"--names": "names" in self._exact and "query" in self._exact}
        if any(word in text and not there for word, there in (needs | {"PATH": "data" in self.before}).items()):
            return None
        first = "".join(f" {name.upper()}" for name in self.before if name != "data")
        return text.format(command=self.command, before=first, device=device, run="; ".join(run))

    def _suggest(self, asked: str) -> str:
        """The options that may be meant, the likeliest first."""
        known: dict[str, str] = {name: full for name, full in self._exact.items() if name not in ("help", "help_all")}
        last = asked.rpartition(".")[2]
        near = list(self._last.get(last, []))
        near += [full for name, full in known.items() if name.startswith(asked)]
        near += [full for name, full in known.items() if name.rpartition(".")[2].startswith(asked)]
        by_last = {name.rpartition(".")[2]: full for name, full in reversed(known.items())}
        for words, names in ((asked, known), (last, by_last), (asked, {name: name for name in SYNONYMS})):
            for match in difflib.get_close_matches(words, names, n=3, cutoff=0.7):
                near += [names[match]] if names[match] in known.values() else self._meant(match)
        close = [f"'--{name}'" for name in dict.fromkeys(near)][:3]
        if close:
            return f"; did you mean {_several(close)}?"
        return f"; `twofold {self.command} --help-all` lists them"

    def _meant(self, habit: str) -> list[str]:
        """The option that a synonym is for here."""
        return [name for name in SYNONYMS[habit] if name in self._exact][:1]


def resolve(names: Names, words: Sequence[str]) -> list[str]:
    """Words of the shell with every option under its declared name.

    Args:
        names: of the command's options.
        words: as the shell gave them; those after a lone ``--`` stay as they are.

    Raises:
        UserError: a name that means no option or several; one option under two names with different values.
    """
    found: list[str] = []
    given: dict[str, tuple[str, str]] = {}
    for index, word in enumerate(words):
        if word == "--":
            return [*found, *words[index:]]
        if not _is_option(word):
            found.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        full = names.find(name)
        said = value if equals else next(iter(words[index + 1 : index + 2]), "")
        before = given.setdefault(full, (name, said))
        if before[1] != said and before[0].replace("-", "_") != name.replace("-", "_"):
            raise UserError(
                f"{_dashed(before[0])} {before[1]} and {_dashed(name)} {said} are the same option, --{full}: "
                "give it once"
            )
        found.append(f"--{full}{equals}{value}")
    return found


def _is_option(word: str) -> bool:
    """Whether a word is an option's name: dashes and a letter; a number below 0 is a value."""
    return word.startswith("-") and word.lstrip("-")[:1].isalpha()


def _dashed(name: str) -> str:
    return f"-{name}" if len(name) == 1 else f"--{name}"


def _several(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
