"""Every command and snippet in README and docs runs; every list in them is true.

A page's blocks run in order in one folder that holds what a reader would have: `photos/`, images of mixed sizes in two
classes; `simclr-checkpoint/`, a narrow net as the official code saves it; `imagenet/`, images of its ten classes.
Blocks that train at full size, or set up a machine, are marked with ``<!-- parsed -->`` on the line before: their
options are checked as the command would check them, and nothing is trained.
"""

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from PIL import Image
from simclr_files import write_small
from tiny import OPTIONS, as_arguments, images

from sound_files import speech_folder
from twofold import cli, parsers
from twofold.commands import COMMANDS, pretrain
from twofold.commands.arguments import PATH
from twofold.evaluation.protocols.base import PROTOCOLS, EvaluationConfig
from twofold.options import merge
from twofold.recipe import load

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
ADDITIONS = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r"(?P<mark><!-- parsed -->\n)?```(?P<kind>bash|python)\n(?P<body>.*?)```", re.DOTALL)


def blocks(page):
    return [(found["kind"], found["body"], bool(found["mark"])) for found in BLOCK.finditer(page.read_text())]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader's working folder: photos, and patience for tiny runs only."""
    rng = np.random.default_rng(0)
    x, y = images(48, side=40)
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        path = tmp_path / "photos" / ("disc" if label else "bar") / f"{i}.{'png' if i % 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = int(rng.integers(24, 60))
        Image.fromarray(image).resize((side, side + 5)).save(path)
    speech_folder(tmp_path / "speech", 2, 10)
    for path in (tmp_path / "speech").rglob("*.wav"):
        path.with_suffix(".txt").write_text("yes" if path.parent.name == "word0" else "no")
    np.savez(tmp_path / "digits.npz", images=images(48, channels=1)[0], labels=images(48)[1])
    write_small(tmp_path / "simclr-checkpoint", step=751)
    for k in range(10):
        path = tmp_path / "imagenet" / f"n{k:08d}" / "image.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(x[k]).resize((32, 32)).save(path)
    monkeypatch.chdir(tmp_path)
    real = pretrain.run
    small = ["--batch", "8", "--epochs", "1", *as_arguments({k: OPTIONS[k] for k in ("encoder", "head")})]

    small_speech = ["--batch", "8", "--epochs", "1", "--encoder.speech.width", "16", "--encoder.speech.heads", "2"]

    def run_small(options):
        recordings = options[PATH] == "speech"
        limits = parsers.parse(pretrain.parser(), "pretrain", ["anything", *(small_speech if recordings else small)])
        return real(merge(options, limits | {PATH: options[PATH]}))

    monkeypatch.setattr(pretrain, "run", run_small)
    protocols = set(PROTOCOLS)
    yield tmp_path
    for name in PROTOCOLS.keys() - protocols:  # of a snippet
        del PROTOCOLS[name], EvaluationConfig.variants[name]


def commands(body):
    """The commands of a shell block, continuation lines joined, comments dropped."""
    lines = body.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


class Parsed(Exception):
    """Raised where a script has read its options and would begin."""


def check_script(name, rest):
    """Parse the options of a script of this repository by its own parser, and go no further."""
    parse = argparse.ArgumentParser.parse_args

    def parse_alone(parser):
        parse(parser, rest)
        raise Parsed

    with (
        mock.patch.object(sys, "path", [str((ROOT / name).parent), *sys.path]),
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_alone),
    ):
        spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
        module = importlib.util.module_from_spec(spec)
        with mock.patch.dict(sys.modules, {spec.name: module}):  # dataclasses look for it there
            spec.loader.exec_module(module)
            with pytest.raises(Parsed):
                module.main()


def check(words):
    """Parse a command's options without running it."""
    if words[0] == "twofold" and len(words) > 1:
        command, rest = cli.command_of(words[1:])
        options = parsers.parse(COMMANDS[command].parser(), command, rest)
        if options.get("recipe"):
            load(options["recipe"])
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert all("=" in word or word in targets for word in words[1:]), words
    elif words[0] == "python":
        check_script(words[1], words[2:])
    else:
        assert words[0] in (
            "git",
            "cd",
            "pip",
            "uv",
            "apt-get",
            "sudo",
            "export",
            "torchrun",
            "accelerate",
            "source",
        ), words


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("page", [page for page in PAGES if page != ADDITIONS], ids=lambda page: page.name)
def test_every_block_runs(page, capsys):
    scope: dict = {}
    for kind, body, parsed in blocks(page):
        if kind == "python":
            compile(body, str(page), "exec")
            if not parsed:
                exec(body, scope)
            continue
        for words in commands(body):
            check(words)
            if not parsed and words[0] == "twofold":
                status = cli.main(words[1:])
                assert status == 0, (words, capsys.readouterr().err)


def test_every_addition_is_one_file_that_runs(reader):
    """A block that begins with the name of a file is that file; the others use it, in a process of their own."""
    files, script = 0, ""
    for kind, body, _ in blocks(ADDITIONS):
        assert kind == "python"
        name = re.match(r"# (\w+\.py)\n", body)
        if name:
            (reader / name[1]).write_text(body)
            files += 1
        else:
            script += body
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert files == 5


def test_scripts_that_are_named_exist():
    named = {name for page in PAGES for name in re.findall(r"`python (\S+\.py)", page.read_text())}
    assert named
    assert all((ROOT / name).is_file() for name in named), named


@pytest.mark.parametrize("words", ["step.py --epoch 3", "nosuch.py"])
def test_a_wrong_command_is_found(words):
    with pytest.raises((SystemExit, FileNotFoundError)):
        check(["python", *f"benchmarks/{words}".split()])


def test_every_part_of_the_gpu_script_is_a_command_that_its_script_takes():
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
    gpu = importlib.util.module_from_spec(spec)
    path = [str(ROOT / "benchmarks"), *sys.path]
    with mock.patch.object(sys, "path", path), mock.patch.dict(sys.modules, {"gpu": gpu}):
        spec.loader.exec_module(gpu)
    assert all((ROOT / name).is_file() for name in gpu.TESTS)
    for part in gpu.parts(16):
        for words in (part.command.split(), part.dry.split()):
            if words[0] != "-m":
                check_script(words[0], words[1:])


@pytest.mark.slow
def test_the_gpu_script_runs_small_without_a_gpu(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--dry-run", "--out", str(tmp_path / "bench.txt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "bench.txt").read_text().count(": done") >= 4


def test_the_blocks_are_found():
    assert sum(len(blocks(page)) for page in PAGES) >= 5


def maker(script):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(script, ROOT / "docs" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "script", "function"),
    [
        ("options.md", "make_options", "options"),
        ("recipes.md", "make_options", "recipe_page"),
        ("papers.md", "make_papers", "page"),
        ("architecture.md", "make_architecture", "page"),
    ],
)
def test_generated_pages_are_those_of_the_code(page, script, function):
    """`make docs` rewrites them."""
    assert (ROOT / "docs" / page).read_text() == getattr(maker(script), function)()


def test_the_reading_list_is_what_a_run_enters():
    """The same files in the same order; lines may differ a little from machine to machine."""
    make_reading = maker("make_reading")
    text, entries = (ROOT / "docs" / "reading.md").read_text(), make_reading.measure()
    listed = dict(re.findall(r"`src/twofold/(\S+\.py)` \| (\d+)", text))
    assert re.sub(r"\d[\d,]*", "N", text) == re.sub(r"\d[\d,]*", "N", make_reading.page(entries))
    assert sum(map(int, listed.values())) == pytest.approx(make_reading.total(entries), rel=0.05)
    assert all((make_reading.PACKAGE / name).exists() for name in make_reading.SKIP)


def test_files_that_pages_name_are_there():
    named = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w/.-]+)", page.read_text())
    }
    assert len(named) > 20
    assert not [(page, name) for page, name in sorted(named) if not (ROOT / name).exists()]


def test_scripts_and_manifests_are_well_formed():
    """Blocks that need a cluster cannot run here; that they parse is the least."""
    found = [
        (kind, body) for page in PAGES for kind, body in re.findall(r"```(sh|yaml)\n(.*?)```", page.read_text(), re.S)
    ]
    assert {kind for kind, _ in found} == {"sh", "yaml"}
    for kind, body in found:
        if kind == "sh":
            assert subprocess.run(["bash", "-n"], input=body, text=True, check=False).returncode == 0, body
        else:
            assert list(yaml.safe_load_all(body))


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
