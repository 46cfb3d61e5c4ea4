"""Tensors by name from the files that PyTorch's users keep weights in, and the prefixes under which a network's lie.

`.pth`, `.pt`, `.ckpt`, `.pth.tar` and `.bin` are pickles: they are read with ``torch.load(weights_only=True)``, which
executes nothing. `.safetensors` holds tensors alone.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from twofold.archives import DamagedFile, read_tensors
from twofold.devices import available_memory
from twofold.errors import UserError
from twofold.interop.detect import shorten
from twofold.reading import regular
from twofold.text import counted

SUFFIXES = (".pth", ".pt", ".ckpt", ".tar", ".bin", ".safetensors")
"""Of the names of such files."""
_QUERY = "encoder_q."
_DEEPEST, _MOST = 64, 10**6
"""How deep mappings lie in one another in any checkpoint, and how many names there are."""


@dataclass(frozen=True)
class StateDict:
    """What a file holds.

    Attributes:
        path: the file.
        tensors: by name, without what all names begin with where the file keeps them under one key ("state_dict").
        containers: the keys, with a point behind, under which a file keeps several sets of tensors ("student.").
        facts: plain values beside them: "arch", "epoch".
    """

    path: Path
    tensors: Mapping[str, Tensor]
    containers: tuple[str, ...]
    facts: Mapping[str, Any]


def load_pickle(path: Path) -> Any:
    """What a file of `torch.save` holds; of objects only tensors, plain values and argparse's namespaces are made.

    Raises:
        UserError: no such file, a damaged one, or one with other objects in it.
    """
    check_size(path)
    try:
        return read_tensors(path, also=[argparse.Namespace])  # the options of many training scripts: no code
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except DamagedFile as error:
        raise UserError(
            f"{path} is no whole PyTorch checkpoint of plain tensors ({str(error)[:200]}); fetch it again, or, if it "
            "holds objects of Python, which are never loaded, save the tensors alone where it was made: "
            "torch.save(model.state_dict(), FILE)"
        ) from error


def check_size(path: Path) -> None:
    """Raise a UserError for what is no regular file, and for more tensors than there is memory for."""
    try:
        size, free = regular(path).size, available_memory()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if size > free:
        raise UserError(f"{path} has {size / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB of memory are free")


def check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise a UserError where values are not finite."""
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise UserError(f"{path} holds values that are not finite, in {shorten(broken)}: the training had diverged")


def read_state_dict(path: str | Path) -> StateDict:
    """The tensors of a file by name, wherever in it they are kept.

    Raises:
        UserError: no such file, a damaged one, one with other objects than tensors and plain values, one without
            tensors, or an encoder of this package.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        check_size(path)
        try:
            with safe_open(path, "pt") as file:
                own = "twofold" in (file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is no whole safetensors file: {error}; fetch it again") from error
        if own:
            raise UserError(f"{path} is an encoder of Twofold's own: use it as it is, without a prefix")
        content: Any = tensors
    else:
        content = load_pickle(path)
    tensors = dict(_flat(content)) if isinstance(content, Mapping) else {}
    if not tensors:
        raise UserError(
            f"{path} holds no tensors by name: save them where it was made, torch.save(model.state_dict(), FILE)"
        )
    keys = {f"{name}." for name, value in content.items() if isinstance(value, Mapping) and dict(_flat(value))}
    if len(keys) == 1 and all(name.startswith(tuple(keys)) for name in tensors):
        tensors, keys = {name.removeprefix(*keys): tensor for name, tensor in tensors.items()}, set()
    facts = {name: value for name, value in content.items() if isinstance(value, str | int)}
    return StateDict(path, tensors, tuple(sorted(keys)), facts)


def _flat(content: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors under names; what is numbered, as optimisers keep their state, is passed over.

    Raises:
        UserError: mappings in mappings without end, as a kilobyte can hold that repeats itself.
    """
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    gone_through = 0
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            gone_through += len(value)
            if depth > _DEEPEST or gone_through > _MOST:
                raise UserError("the file holds mappings in mappings without end, as no network's tensors are kept")
            inner = [
                (f"{name}.{key}" if depth else key, each, depth + 1)
                for key, each in value.items()
                if isinstance(key, str)
            ]
            waiting += inner[::-1]


@dataclass(frozen=True)
class Prefixes:
    """Which names of a file are those of a network: (what they begin with there, what stands for it in the network).

    Args:
        rules: the first whose beginning a name has decides; names that have none are no part of the network.
    """

    rules: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Prefixes:
        """Of the words of `--prefix`: ``FROM=TO``, several of them with commas between; ``FROM`` alone is taken off."""
        rules = []
        for rule in text.split(","):
            begin, _, stand_in = rule.strip().partition("=")
            rules.append((begin.strip(), stand_in.strip()))
        return cls(tuple(rules))

    def apply(self, state: StateDict) -> dict[str, Tensor]:
        """The tensors by the network's names.

        Raises:
            UserError: a rule that no name follows, or two names that become one.
        """
        renamed: dict[str, Tensor] = {}
        used = set()
        for name, tensor in state.tensors.items():
            rule = next((rule for rule in self._with(state.containers) if name.startswith(rule[0])), None)
            if rule is None:
                continue
            used.add(rule[2])
            target = rule[1] + name[len(rule[0]) :]
            if target in renamed:
                raise UserError(f"--prefix {self}: two tensors of {state.path} would both be {target}")
            renamed[target] = tensor
        idle = [rule for rule in self.rules if rule not in used]
        if idle:
            raise UserError(
                f"--prefix {idle[0][0]}: no tensor of {state.path} begins so; they begin with "
                f"{', '.join(beginnings(state.tensors))}"
            )
        return renamed

    def _with(self, containers: Sequence[str]) -> Iterator[tuple[str, str, tuple[str, str]]]:
        """The rules as they are, and within the containers, which users need not name."""
        for rule in self.rules:
            yield from ((f"{container}{rule[0]}", rule[1], rule) for container in ("", *containers))

    def in_words(self) -> str:
        """Which tensors they take."""
        if self.rules == (("", ""),):
            return "all names of the file"
        return "names with " + ", ".join(f"{a} (read as {b})" if b else a for a, b in self.rules)

    def __str__(self) -> str:
        return ",".join(f"{begin}={stand_in}" for begin, stand_in in self.rules)


def beginnings(names: Mapping[str, Tensor], most: int = 8) -> list[str]:
    """What most names begin with, up to their second point, the most frequent first."""
    counts = Counter(".".join(name.split(".")[:2]) + "." if name.count(".") > 1 else name for name in names)
    return [begin for begin, _ in counts.most_common(most)]


def find_prefix(state: StateDict, expected: Sequence[str]) -> str:
    """What the names of a network's tensors begin with in a file.

    Args:
        state: the file.
        expected: the network's own names.

    Raises:
        UserError: several sets of its tensors, of which nothing says which is meant.
    """
    candidates = {
        name[: -len(wanted)]
        for wanted in (expected[0], expected[len(expected) // 2], expected[-1])
        for name in state.tensors
        if name.endswith(wanted) and name[: -len(wanted)][-1:] in ("", ".")
    }
    found = {prefix: sum(f"{prefix}{name}" in state.tensors for name in expected) for prefix in candidates}
    most = max(found.values(), default=0)
    best = sorted(prefix for prefix, count in found.items() if count == most)
    asked = [prefix for prefix in best if prefix.endswith(_QUERY)]  # MoCo's, which it evaluates by
    if len(best) > 1 and len(asked) != 1 and most > len(expected) / 2:
        raise UserError(
            f"{state.path} holds {counted(len(best), 'such network')}, under {' and '.join(best)}: say which with the "
            f"prefix, e.g. {best[0]}"
        )
    return asked[0] if len(asked) == 1 else best[0] if best else ""
