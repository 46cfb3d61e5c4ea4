"""What hands type: aliases, names with dashes, beginnings of names, and help that fits a screen."""

import re
import subprocess
import sys

import pytest

from twofold import cli, parsers
from twofold.commands import COMMANDS, TASKS
from twofold.commands.help import BRIEF, LINES, WIDTH, brief_help
from twofold.errors import UserError
from twofold.options import OptionsParser, flatten
from twofold.options.synonyms import SYNONYMS
from twofold.studies.finetuning import FinetuneStudyConfig
from twofold.studies.strengths import StrengthConfig

PARSERS = {name: COMMANDS[name].parser() for name in ("pretrain", "finetune", "distill", "evaluate", "embed", "search")}


def parsed(command, *words):
    first = {"pretrain": ["photos"]}.get(command, ["run", "photos"])
    return flatten(parsers.parse(PARSERS[command], command, [*first, *words]))


@pytest.mark.parametrize(
    ("command", "words", "name", "value"),
    [
        ("pretrain", ["--lr", "0.1"], "optim.lr", 0.1),
        ("pretrain", ["--lr=0.1"], "optim.lr", 0.1),
        ("pretrain", ["--learning-rate", "0.1"], "optim.lr", 0.1),
        ("finetune", ["--wd", "0.1"], "optim.weight_decay", 0.1),
        ("distill", ["--weight-decay", "0.1"], "optim.weight_decay", 0.1),
        ("pretrain", ["--batch-size", "8"], "batch", 8),
        ("evaluate", ["--batch_size", "8"], "batch", 8),
        ("pretrain", ["-b", "8"], "batch", 8),
        ("pretrain", ["--device", "cpu"], "training.device", "cpu"),
        ("evaluate", ["--device", "cpu"], "device", "cpu"),
        ("pretrain", ["--model", "resnet18"], "encoder.name", "resnet18"),
        ("distill", ["--arch", "resnet18"], "encoder.name", "resnet18"),
        ("pretrain", ["--encoder", "resnet18"], "encoder.name", "resnet18"),
        ("pretrain", ["--encoder=resnet18"], "encoder.name", "resnet18"),
        ("pretrain", ["--method", "moco"], "method.name", "moco"),
        ("pretrain", ["--optimizer", "lars"], "optim.name", "lars"),
        ("pretrain", ["--optim", "lars"], "optim.name", "lars"),
        ("embed", ["--workers", "2"], "data.workers", 2),
        ("pretrain", ["--num-workers", "2"], "data.workers", 2),
        ("pretrain", ["-j", "2"], "data.workers", 2),
        ("pretrain", ["--image-size", "32"], "views.size", 32),
        ("pretrain", ["--size", "32"], "views.size", 32),
        ("embed", ["--image-size", "32"], "size", 32),
        ("pretrain", ["--temperature", "0.2"], "method.temperature", 0.2),
        ("distill", ["--temperature", "0.2"], "temperature", 0.2),
        ("pretrain", ["--precision", "bf16"], "training.precision", "bf16"),
        ("pretrain", ["-o", "here"], "out", "here"),
        ("finetune", ["--output-dir", "here"], "out", "here"),
        ("pretrain", ["--compile"], "training.compile", True),
        ("evaluate", ["--keep-classifier"], "keep_classifier", True),
        ("evaluate", ["--keep-classifier", "--device", "cpu"], "keep_classifier", True),
        ("pretrain", ["--print_config"], "print_config", True),
        ("pretrain", ["--views.crop-area", "[0.2, 1]"], "views.crop_area", (0.2, 1.0)),
        ("pretrain", ["--optim.lr", "-1"], "optim.lr", -1.0),
    ],
)
def test_a_habit_means_the_option_that_it_is_for(command, words, name, value):
    given = parsed(command, *words)
    assert given[name] == value
    assert {*given} - {"path_of_the_data", "run", "teacher", "device"} <= {name}


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("pretrain", ["--epoch", "3"], "there is no option '--epoch'; did you mean '--epochs'?"),
        ("pretrain", ["--ep", "3"], "did you mean '--epochs"),
        ("pretrain", ["--views.siz", "3"], "did you mean '--views.size"),
        ("pretrain", ["--encoder.nam", "resnet18"], "did you mean '--encoder.name"),
        ("pretrain", ["--batchsize", "3"], "did you mean '--batch"),
        ("pretrain", ["--learning-rte", "3"], "did you mean '--optim.lr"),
        ("pretrain", ["--optim.learning-rate", "3"], "did you mean '--optim.lr"),
        ("evaluate", ["--training.device", "cpu"], "did you mean '--device"),
        ("pretrain", ["--momentum", "0.9"], "could be --method.momentum or --optim.momentum: say which"),
        ("pretrain", ["--views", "3"], "'--views' is a group of options: --views.size,"),
        ("pretrain", ["--gpus", "2"], "torchrun --nproc-per-node N -m twofold pretrain"),
        ("pretrain", ["--amp"], "--training.precision bf16"),
        ("pretrain", ["--gpu", "0"], "--training.device cuda"),
        ("embed", ["--gpu", "0"], "--device cuda"),
        ("pretrain", ["--data-dir", "photos"], "`twofold pretrain PATH`"),
        ("evaluate", ["--data", "photos"], "`twofold evaluate RUN PATH`"),
        ("finetune", ["--checkpoint", "x"], "the run comes without a name; --resume goes on with"),
        ("pretrain", ["--ckpt", "x"], "--resume goes on with what is in --out; --start_from takes weights"),
        ("search", ["--text", "cat"], "--names NAME finds what is like an example of that name, --query FILE what is"),
        ("search", ["--prompt", "cat"], "there is no option '--prompt': --names NAME"),
        ("embed", ["--prompt", "cat"], "`twofold embed --help-all` lists them"),
        ("evaluate", ["--ckpt", "x"], "the run comes without a name"),
        ("pretrain", ["--resume", "runs/a"], "--resume takes no value, and runs/a stands after it"),
        ("pretrain", ["more"], "too many words: more; `twofold pretrain` takes DATA"),
        ("pretrain", ["--zzzz", "1"], "`twofold pretrain --help-all` lists them"),
        ("pretrain", ["--lr", "0.1", "--optim.lr", "0.2"], "--lr 0.1 and --optim.lr 0.2 are the same option"),
        ("pretrain", ["--lr=0.1", "--learning-rate=0.2"], "--lr 0.1 and --learning-rate 0.2 are the same option"),
        (
            "pretrain",
            ["--model", "resnet18", "--encoder=resnet50"],
            "are the same option, --encoder.name: give",
        ),
    ],
)
def test_what_means_nothing_is_refused_with_the_right_name_first(command, words, said):
    with pytest.raises(UserError) as raised:
        parsed(command, *words)
    assert said in str(raised.value)
    assert "--help'" not in str(raised.value)


def test_the_same_said_twice_is_no_mistake():
    assert parsed("pretrain", "--lr", "0.1", "--optim.lr", "0.1")["optim.lr"] == 0.1


def test_every_option_goes_by_dashes_and_underscores():
    """Of every command; and no habit has the name of an option that means something else."""
    for command, parser in PARSERS.items():
        names = parsers._names(parser, command)
        for action in parser._actions:
            for full in (word[2:] for word in action.option_strings if word.startswith("--")):
                assert names.find(full.replace("_", "-")) == names.find(full.replace("-", "_")) == full
        taken = {name for name in SYNONYMS if name in names._exact}
        assert not taken


def test_a_library_s_model_is_not_told_in_place_of_ours(tmp_path, capsys):
    words = ["pretrain", str(tmp_path), "--out", str(tmp_path / "run"), "--model", "resnet51"]
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert "did you mean resnet50 or resnet" in told
    meant = told.split("did you mean ")[1].split("?")[0].split(" or ")
    assert len({*meant}) == len(meant)


def test_several_values_need_no_brackets():
    def given(command, *words):
        return parsers.parse(COMMANDS[command].parser(), command, ["RUN", "DATA", *words])

    assert list(given("embed", "--columns", "camera")["columns"]) == ["camera"]
    assert list(given("embed", "--columns=camera,taken at")["columns"]) == ["camera", "taken at"]
    assert list(given("embed", "--columns", "[camera]")["columns"]) == ["camera"]
    views = parsers.parse(COMMANDS["pretrain"].parser(), "pretrain", ["DATA", "--crop-area", "0.2,1"])["views"]
    assert list(views["crop_area"]) == [0.2, 1.0]
    assert given("evaluate", "--class_weights", "balanced")["class_weights"] == "balanced"  # a word or numbers


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["finetune", "--run", "r", "--labels", "40,all"], ["40", "all"]),
        (["finetune", "--run", "r", "--labels", "[40, 10%]"], ["40", "10%"]),
        (["finetune", "--run", "r", "--labels=40"], ["40"]),
        (["color", "--strengths", "[0.5, 1, 1-blur]"], ["0.5", "1", "1-blur"]),
        (["color", "--strengths", "0.125,AutoAugment"], ["0.125", "AutoAugment"]),
    ],
)
def test_numbers_are_names_where_names_are_taken(words, meant):
    """A label count and a strength are texts by type: YAML reads 40 as a number, which was then refused."""
    name, rest = cli.command_of(["study", words[0], "DATA", *words[1:]])
    options = parsers.parse(COMMANDS[name].parser(), name, rest)
    assert list(options.get("labels") or options["strengths"]) == meant
    with pytest.raises(UserError, match="--strengths expects one of"):
        parsers.parse(COMMANDS["study color"].parser(), "study color", ["DATA", "--strengths", "0.7"])


def test_numbers_are_names_in_files_and_from_python():
    assert OptionsParser(StrengthConfig).build({"strengths": [0.5, 1, "1-blur"]}).strengths == ("0.5", "1", "1-blur")
    assert OptionsParser(FinetuneStudyConfig).build({"run": "r", "labels": [40, "all"]}).labels == ("40", "all")
    for wrong in ([True], [0.7], [None]):
        with pytest.raises(UserError, match="--strengths expects one of"):
            OptionsParser(StrengthConfig).build({"strengths": wrong})


def test_what_may_be_null_is_null_without_brackets():
    def given(command, *words):
        return parsers.parse(COMMANDS[command].parser(), command, ["RUN", "DATA", *words])

    assert given("evaluate", "--data.band_ranges", "null")["data"]["band_ranges"] is None


@pytest.mark.parametrize("command", list(BRIEF))
def test_help_is_a_screen_of_options_that_exist(command, capsys):
    assert cli.main([command, "--help"]) == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= WIDTH
    parser = COMMANDS[command].parser()
    names = parsers._names(parser, command)
    positional, sections = BRIEF[command]
    assert [name.lower() for name in positional] == names.before
    for section in sections.values():
        for name, text in section.items():
            assert name.split()[0].removeprefix("--") in names._exact.values()
            for habit in (word.strip("().") for word in text.split() if word.startswith("(--")):
                assert names.find(habit.lstrip("-")) == name.split()[0].removeprefix("--")
    assert cli.main([command, "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert all(f"--{name}" in whole for name in names._exact.values() if name != "help")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in BRIEF])
def test_help_of_every_other_command_is_a_screen_too(command, capsys):
    assert cli.main([*command.split(), "--help"]) == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) <= LINES
    assert max(map(len, told.splitlines())) <= WIDTH
    assert told.startswith("usage: twofold ")
    shown = set(re.findall(r"--([a-z_0-9]+)", told))
    parser = COMMANDS[command].parser()
    names = [name[2:] for action in parser._actions for name in action.option_strings if name.startswith("--")]
    own, groups = ({n for n in names if "." not in n}, {n.split(".")[0] for n in names if "." in n})
    assert {*own, *groups} - {"help", "json"} <= shown
    assert cli.main([*command.split(), "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert all(f"--{name}" in whole for name in names if name != "help")


def test_commands_are_listed_by_task(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:-1] for line in lines if line[:-1] in TASKS and line.endswith(":")] == [*TASKS]
    assert all(command.task in TASKS for command in COMMANDS.values())
    assert brief_help("export", "") is None


NOTED = """
import runpy, sys
class Noted:
    def find_spec(self, name, *_):
        if name == "torch":
            print("PyTorch is looked for", file=sys.stderr, flush=True)
sys.meta_path.insert(0, Noted())
runpy.run_module("twofold", run_name="__main__", alter_sys=True)
"""


def test_the_first_word_comes_before_pytorch(tmp_path):
    """What a person sees within a second; PyTorch alone takes longer."""
    words = [sys.executable, "-c", NOTED, "pretrain", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    first, *rest = found.stderr.splitlines()
    assert first.startswith("twofold 0.")
    assert "pretrain" in first
    assert found.returncode == 2
    assert "PyTorch is looked for" in rest
    assert "no such file or folder" in rest[-1]
