"""Errors at the seams between options and what is built from them: one is forgotten, mixed up with another, or late.

`sites` finds the errors that can be made in the package's source; `python tests/mutate.py` makes each of them.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from mutations import ROOT

PACKAGE = ROOT / "src" / "twofold"
SEAMS = (
    "methods", "optim", "runs/build.py", "runs/inputs.py", "runs/pretrain.py", "runs/finetune.py", "runs/distill.py",
    "runs/teacher.py", "training/loop.py", "training/inputs.py", "views", "heads.py", "encoders/build.py",
    "encoders/audio", "data/batches", "evaluation/protocols", "evaluation/monitors.py", "evaluation/features.py",
)  # fmt: skip
"""Where options become objects."""

COUNTS = ("step", "steps", "total", "warmup", "epoch", "first_epoch", "ends")
"""Names of what is counted in steps or epochs, which may be one off."""

_HOLDERS = ("config", "options")


@dataclass(frozen=True)
class Seam:
    """An error: the characters from `start` to `end` of `file` become `new`."""

    file: str
    where: str
    """Function or method, with its class."""
    kind: str
    """forgotten, swapped or late."""
    old: str
    new: str
    start: int
    end: int

    def mutated(self, text: str) -> str:
        """The file with the error."""
        return text[: self.start] + self.new + text[self.end :]

    @property
    def name(self) -> str:
        """What is done, in one line that survives other edits of the file."""
        return f"{self.file}: {self.where}: {self.kind}: {' '.join(self.old.split())} -> {' '.join(self.new.split())}"


@dataclass(frozen=True)
class Parameter:
    """Of a function, or a field of a dataclass: its type and default, as written."""

    annotation: str
    default: str | None


def files(under: tuple[str, ...] = SEAMS) -> list[str]:
    """Source files below these files and folders of the package, relative to it."""
    paths = [PACKAGE / part for part in under]
    found = [path for part in paths for path in (sorted(part.rglob("*.py")) if part.is_dir() else [part])]
    return [str(path.relative_to(PACKAGE)) for path in found if path.name != "__init__.py"]


def key(seam: Seam, text: str) -> str:
    """Tells whether an error, in the file as it is, has been made before."""
    return hashlib.sha256(seam.mutated(text).encode()).hexdigest()[:16]


def sites(file: str) -> list[Seam]:
    """Every error at a seam that can be made in a file of the package, each once, in the order of the source."""
    text = (PACKAGE / file).read_text()
    finder = _Finder(file, text)
    finder.visit(ast.parse(text))
    return sorted({(s.start, s.end, s.new): s for s in finder.found}.values(), key=lambda s: (s.start, s.end, s.new))


@cache
def signatures() -> dict[str, dict[str, Parameter]]:
    """Parameters of every function and class of the package by its name; classes by `__init__` or their fields."""
    found: dict[str, dict[str, Parameter]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                found.setdefault(node.name, _parameters(node))
            elif isinstance(node, ast.ClassDef):
                inits = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
                found[node.name] = _parameters(inits[0]) if inits else _fields(node)
    return found


@cache
def defaults() -> dict[str, str]:
    """What each option is when nothing is said, as written; of options of one name the first that is a constant, and
    none that is a group of options elsewhere."""
    found: dict[str, str] = {}
    groups: set[str] = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                for name, field in _fields(node).items():
                    if field.annotation.endswith("Config"):
                        groups.add(name)
                    if field.default is not None:
                        found.setdefault(name, field.default)
    return {name: default for name, default in found.items() if name not in groups}


def _constant(node: ast.expr | None) -> str | None:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "option" and node.args:
        node = node.args[0]
    try:
        ast.literal_eval(node)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return None
    return ast.unparse(node)  # type: ignore[arg-type]


def _fields(node: ast.ClassDef) -> dict[str, Parameter]:
    parts = [part for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
    return {ast.unparse(p.target): Parameter(ast.unparse(p.annotation), _constant(p.value)) for p in parts}


def _parameters(node: ast.FunctionDef) -> dict[str, Parameter]:
    plain = [*node.args.posonlyargs, *node.args.args]
    values = [*[None] * (len(plain) - len(node.args.defaults)), *node.args.defaults, *node.args.kw_defaults]
    names = [*plain, *node.args.kwonlyargs]
    found = {
        a.arg: Parameter(ast.unparse(a.annotation) if a.annotation else "", _constant(value) if value else None)
        for a, value in zip(names, values, strict=True)
    }
    return {name: parameter for name, parameter in found.items() if name not in ("self", "cls")}


class _Finder(ast.NodeVisitor):
    """Walks functions; what only checks or tells (`__post_init__`, `check_…`, `raise`) is no seam."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.text, self.found, self.stack = file, text, list[Seam](), list[str]()
        self.own: dict[str, Parameter] = {}  # parameters of the `__init__` that is walked
        self.holders: dict[str, dict[str, Parameter]] = {}  # options by the name that a function has for them
        self.functions = 0
        lines = text.splitlines(keepends=True)
        self.starts = [sum(len(line) for line in lines[:row]) for row in range(len(lines) + 1)]
        self.rows = lines

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        kept, self.holders = self.holders, {"self": _fields(node)} if node.name.endswith("Config") else {}
        self.inside(node)
        self.holders = kept

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name == "__post_init__" or node.name.startswith(("check_", "refuse_", "title", "describe")):
            return
        kept, self.own = (self.own, self.holders), _parameters(node) if node.name == "__init__" else {}
        typed = {name: p.annotation for name, p in _parameters(node).items() if p.annotation.endswith("Config")}
        self.holders = self.holders | {name: signatures().get(kind, {}) for name, kind in typed.items()}
        self.functions += 1
        self.inside(node)
        self.functions -= 1
        self.own, self.holders = kept

    def visit_Raise(self, node: ast.Raise) -> None:
        """Texts of errors have tests of their own."""

    def visit_If(self, node: ast.If) -> None:
        """Nor is what decides whether one is raised; such a condition is a check."""
        parts = node.body if all(isinstance(part, ast.Raise) for part in node.body) else [node.test, *node.body]
        for part in (*parts, *node.orelse):
            self.visit(part)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if self.functions and node.value is not None:
            self.visit(node.value)

    def inside(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        self.stack.append(node.name)
        for part in node.body:
            self.visit(part)
        self.stack.pop()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """An option that is read: it is as if it had not been given."""
        holder = ast.unparse(node.value).split(".")[-1]
        fields = self.holders.get(holder, {})
        room = isinstance(node.value, ast.Attribute) and ast.unparse(node.value).startswith(("config.", "options."))
        ours = holder in self.holders or holder in _HOLDERS or room
        default = fields[node.attr].default if node.attr in fields else defaults().get(node.attr)
        if ours and node.attr != "name" and default is not None and isinstance(node.ctx, ast.Load):
            self.add("forgotten", node, default)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        """A parameter that an object keeps: it is as if it had not been given."""
        parameter = self.own.get(node.id)
        if parameter is not None and parameter.default is not None and isinstance(node.ctx, ast.Load):
            self.add("forgotten", node, parameter.default)

    def visit_Call(self, node: ast.Call) -> None:
        """What is handed on: forgotten, mixed up with its neighbour of the same type, or a step late."""
        target = ast.unparse(node.func).split(".")[-1]
        known = signatures().get(target, {})
        names = list(known)
        given = [(names[i] if i < len(names) else "", arg) for i, arg in enumerate(node.args)]
        if any(isinstance(arg, ast.Starred) for arg in node.args):
            given = []
        passed: list[tuple[str, ast.expr]] = [*given, *((k.arg, k.value) for k in node.keywords if k.arg)]
        for name, value in passed:
            default = known[name].default if name in known else None
            if default is not None and _constant(value) is None:
                self.add("forgotten", value, default)
            if ast.unparse(value).split(".")[-1] in COUNTS or (target == "schedule" and _constant(value) is None):
                self.add("late", value, f"({self.source(value)} + 1)")
        for (name, value), (other, partner) in pairwise(passed):
            alike = name in known and other in known and known[name].annotation == known[other].annotation
            if alike and known[name].annotation not in ("", "Tensor") and self.source(value) != self.source(partner):
                self.swap(value, partner)
        self.generic_visit(node)

    def swap(self, a: ast.expr, b: ast.expr) -> None:
        (start, middle), (after, end) = self.span(a), self.span(b)
        text = self.text
        if middle <= after:
            self.put("swapped", start, end, text[after:end] + text[middle:after] + text[start:middle])

    def add(self, kind: str, node: ast.expr, new: str) -> None:
        self.put(kind, *self.span(node), new)

    def put(self, kind: str, start: int, end: int, new: str) -> None:
        new = f"({new})" if new.isdecimal() and self.text[end : end + 1] == "." else new
        if self.stack and self.text[start:end] != new:
            where = ".".join(self.stack)
            self.found.append(Seam(self.file, where, kind, self.text[start:end], new, start, end))

    def source(self, node: ast.expr) -> str:
        start, end = self.span(node)
        return self.text[start:end]

    def span(self, node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def offset(self, line: int, column: int) -> int:
        """Of a character; the parser counts bytes."""
        return self.starts[line - 1] + len(self.rows[line - 1].encode()[:column].decode())


def walk(under: tuple[str, ...] = SEAMS) -> Iterator[Seam]:
    """Every error that can be made below these files and folders."""
    for file in files(under):
        yield from sites(file)


NEAR = {
    "methods": "methods studies/test_study_methods",
    "optim": "optim",
    "heads.py": "test_heads methods",
    "runs/build.py": "runs training/test_run_config commands/test_pretrain",
    "runs/inputs.py": (
        "runs/test_build runs/test_every_option runs/test_pretraining runs/test_changed_data data/test_bands training/"
        "test_defaults training/test_speech_defaults commands/test_pretrain commands/test_tiles_in_commands commands/"
        "test_pixels_as_in_training commands/test_partly_labelled commands/test_balance commands/test_words"
    ),
    "runs/pretrain.py": (
        "runs training/test_saving_share training/test_soundness training/test_micro_batch training/test_run_config "
        "commands/test_pretrain commands/test_start commands/test_restarts commands/test_around_a_run commands/"
        "test_new_classes commands/test_groups_kept commands/test_pretrain_speech commands/test_words commands/"
        "test_extend commands/test_tiles_in_commands test_recipes"
    ),
    "runs/finetune.py": (
        "runs training/test_run_config commands/test_finetune commands/test_partly_labelled commands/test_balance "
        "commands/test_around_a_run commands/test_groups_kept commands/test_start commands/test_fresh commands/"
        "test_tiles_in_commands commands/test_pixels_as_in_training commands/test_after_block commands/"
        "test_evaluate_parts commands/test_pretrain_speech commands/test_words evaluation/test_label_subsets "
        "studies/test_few_label_studies test_recipes methods/test_training_steps"
    ),
    "runs/distill.py": (
        "commands/test_distill runs/test_distill_audio runs/test_build runs/test_every_option training/test_run_config "
        "commands/test_start commands/test_tiles_in_commands commands/test_pixels_as_in_training commands/"
        "test_evaluate_parts commands/test_words studies/test_few_label_studies test_recipes interop/test_backbones"
    ),
    "training/loop.py": (
        "training/test_checkpoint training/test_clock training/test_health training/"
        "test_micro_batch training/test_saving_share training/test_soundness training/test_vigil runs methods/"
        "test_training_steps commands/test_pretrain commands/test_restarts commands/test_stops commands/test_extend "
        "test_interrupts"
    ),
    "training/inputs.py": (
        "runs training/test_micro_batch methods/test_training_steps commands/test_distill commands/test_finetune"
    ),
    "views": "views runs/test_build data/test_loader commands/test_pretrain",
    "encoders": "encoders runs/test_build",
    "encoders/audio": (
        "encoders/test_filterbank encoders/test_speech_encoder encoders/test_utterance_encoder encoders/test_pooling "
        "evaluation/test_audio_features"
    ),
    "data/batches": (
        "data/test_loader data/test_order data/test_balanced data/test_audio_sources data/test_audio_containers data/"
        "test_images data/test_pieces data/test_trim data/test_pixel_range views/test_two_views commands/"
        "test_lost_ranks commands/test_balance runs/test_every_option training/test_vigil"
    ),
    "evaluation": "evaluation",
    "evaluation/protocols/base.py": (
        "evaluation/test_evaluation_protocols evaluation/test_protocol_contract evaluation/test_probe_options "
        "evaluation/test_in_parts evaluation/test_beside commands/test_evaluate_parts"
    ),
    "evaluation/protocols/beside.py": "evaluation/test_beside evaluation/test_in_parts",
    "evaluation/protocols/classifier.py": (
        "evaluation/test_evaluation_protocols evaluation/test_evaluation_labels evaluation/test_grouped_splits "
        "evaluation/test_weighted_folds evaluation/test_class_weights evaluation/test_beside evaluation/test_choosing "
        "commands/test_predict commands/test_groups_kept commands/test_evaluate_parts"
    ),
    "evaluation/protocols/ctc.py": "evaluation/test_ctc evaluation/test_grouped_splits commands/test_predict",
    "evaluation/protocols/recogniser.py": "evaluation/test_ctc commands/test_predict",
    "evaluation/protocols/imagenet.py": "evaluation/test_imagenet_protocol",
    "evaluation/protocols/knn.py": "evaluation/test_evaluation_knn evaluation/test_evaluation_protocols",
    "evaluation/protocols/linear.py": (
        "evaluation/test_evaluation_linear evaluation/test_class_weights evaluation/test_evaluation_protocols"
    ),
    "evaluation/protocols/verification.py": "evaluation/test_verification evaluation/test_in_parts",
    "evaluation/protocols/weighted.py": "evaluation/test_weighted_folds evaluation/test_class_weights",
    "evaluation/features.py": (
        "evaluation/test_evaluation_features evaluation/test_audio_features evaluation/test_preprocess evaluation/"
        "test_framing evaluation/test_feature_cache"
    ),
    "evaluation/monitors.py": (
        "runs/test_looks runs/test_build runs/test_every_option runs/test_pretraining training/test_health training/"
        "test_keep_memory training/test_checkpoint commands/test_pretrain commands/test_partly_labelled commands/"
        "test_start methods/test_training_steps"
    ),
}  # fmt: skip
"""Tests of each file at the seams, below tests: the longest prefix counts."""
NEAR["runs/teacher.py"] = NEAR["runs/distill.py"]


def nearest(file: str) -> list[str]:
    """Tests that are the likeliest to notice an error in a file, quick ones first: paths below the checkout."""
    general = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_seams*.py"))
    prefix = max((name for name in NEAR if file.startswith(name)), key=len)
    paths = [ROOT / "tests" / name for name in NEAR[prefix].split()]
    return [*general, *(str((p if p.is_dir() else p.with_suffix(".py")).relative_to(ROOT)) for p in paths)]
