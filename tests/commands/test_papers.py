"""The registry of published results against the papers' numbers, its recipes, its command, and lines beside results."""

import dataclasses
import functools
import json
import re
import shlex
from importlib import import_module, resources
from pathlib import Path

import pytest

import twofold
from twofold import cli
from twofold import recipe as recipes
from twofold.cli import command_of
from twofold.commands import COMMANDS
from twofold.commands.papers import commands_of, released_of
from twofold.errors import UserError
from twofold.options import OptionsParser, merge
from twofold.parsers import parse
from twofold.published import MEASURED, SAME, _paper, find, papers, published, reached
from twofold.runs.config import build
from twofold.studies import STUDIES
from twofold.studies.grid import GridStudy
from twofold.studies.transfer.sets import SETS, reported

ITEMS = [item for paper in papers().values() for item in paper.items.values()]


@functools.cache
def parser_of(name):
    """A command's parser, which takes a tenth of a second to make."""
    return COMMANDS[name].parser()


def values(name, metric="top1"):
    """(keys joined by spaces) -> published value."""
    return {" ".join(row.keys.values()): row.values[metric] for row in find(name)[0].rows if metric in row.values}


def test_the_numbers_are_the_papers():
    """Read again from the papers and the READMEs, apart from the files: a slip in one of them shows."""
    grid = values("simclr/table-b1")
    assert len(grid) == 48
    assert [grid[f"{batch} 100 linear"] for batch in (256, 512, 1024, 2048, 4096, 8192)] == [
        57.5, 60.7, 62.8, 64.0, 64.6, 64.8
    ]  # fmt: skip
    assert [grid[f"{batch} 800 sqrt"] for batch in (256, 512, 1024, 2048, 4096, 8192)] == [
        66.5, 67.4, 68.3, 68.8, 69.1, 69.1
    ]  # fmt: skip
    assert values("simclr/table-4")["NT-Logistic (semi-hard)"] == 57.9
    assert list(values("simclr/table-5").values()) == [59.7, 64.4, 60.7, 58.0, 57.2, 57.0]
    assert list(values("simclr/table-5", "contrastive_entropy").values()) == [1.0, 4.5, 8.2, 8.3, 0.5, 0.5]
    assert list(values("simclr/table-6").values()) == [69.3, 74.2, 76.5]
    assert list(values("simclr/table-6", "top5").values()) == [89.0, 92.0, 93.2]
    assert values("simclr/table-7")["SimCLR 4x 1pct"] == 63.0
    nets = values("simclr2/checkpoints")
    assert list(nets.values()) == [71.7, 74.6, 75.6, 77.7, 73.6, 76.3, 77.0, 79.0, 74.5, 77.2, 77.4, 79.4, 79.8]
    tuned = values("simclr2/finetuned")
    assert len(tuned) == 39
    assert [tuned[f"r152-3x-sk {labels}"] for labels in ("1pct", "10pct", "100pct")] == [74.9, 80.1, 83.1]
    assert [tuned[f"r50-1x {labels}"] for labels in ("1pct", "10pct", "100pct")] == [57.9, 68.4, 76.3]
    assert list(values("simclr2/supervised").values())[::6] == [76.6, 78.9, 80.5]
    assert list(values("moco/demo").values()) == [82.6, 86.3, 88.7, 85.3, 88.5, 89.7]


@pytest.mark.parametrize(("name", "width"), [("simclr/table-8", "4x"), ("simclr/appendix-b8", "1x")])
def test_transfer_is_what_its_own_table_prints(name, width):
    rows = find(name)[0].rows
    assert len(rows) == 60
    for row in rows:
        keys = row.keys
        assert row.values["result"] == reported(keys["data"], keys["protocol"])[f"{keys['start']} {width}"]
    assert {row.keys["data"] for row in rows} == set(SETS)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.full_name)
def test_every_item_names_what_there_is(item):
    assert item.title
    assert item.measured in MEASURED
    told = [bool(row.values) for row in item.rows]
    assert all(told) or not any(told)
    assert any(told) or (item.left_out and item.command_lines), "without values, what is asked and why there are none"
    assert len({tuple(row.keys.items()) for row in item.rows}) == len(item.rows), "no row twice"
    for name in item.recipes():
        assert recipes.load(name)
    told = re.findall(r"`(twofold [^`]+)`", item.note + item.left_out)
    for command in [*commands_of(item), *released_of(item), *told]:
        words = shlex.split(command)
        assert words[0] == "twofold"
        name, rest = command_of(words[1:])
        parse(parser_of(name), name, rest)
        if "--recipe" in words:
            recipe = recipes.load(words[words.index("--recipe") + 1])
            assert not recipe.axes, "a family is no recipe"
            assert recipe.command == ("pretrain" if words[1] in ("study", "fresh") else words[1])


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.full_name)
def test_every_item_is_commands_that_lead_from_data_to_its_result(item):
    """Nothing is taken that no command made, and no command is told in a note that could not be run as it stands."""
    lines, made = commands_of(item), set()
    assert lines
    for line in lines:
        words = shlex.split(line)
        taken = {word.strip("[],") for word in " ".join(words).split() if word.strip("[],").startswith("runs/")}
        out = words[words.index("--out") + 1] if "--out" in words else None
        assert taken - {out} <= made, line
        assert out is not None or words[1] in ("evaluate", "transfer", "recipes"), line
        made.add(out)
    for line in re.findall(r"`(twofold [^`]+)`", item.note + item.left_out):
        words = shlex.split(line)
        assert "..." not in words
        assert "RUN" in words or "--out" in words, line
        name, rest = command_of(words[1:])
        parse(COMMANDS[name].parser(), name, rest)
    measured = {
        "linear": {"finetune", "evaluate", "study", "recipes"}, "knn": {"evaluate"}, "recogniser": {"evaluate"},
        "finetune": {"finetune", "study"}, "distill": {"distill", "study"}, "transfer": {"transfer", "study"},
    }  # fmt: skip
    assert shlex.split(lines[-1])[1] in measured.get(item.measured, {shlex.split(lines[-1])[1]}), (
        "it ends in the measure"
    )


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.full_name)
def test_every_study_of_the_papers_settings_can_be_planned(item):
    """Two could not: a recipe's scale of the loss and its milestones have no effect in some of the cells."""
    lines = [line for line in commands_of(item) if line.startswith("twofold study ")]
    for line in lines + re.findall(r"`(twofold study [^`]+)`", item.note):
        words = shlex.split(line)
        name, rest = command_of(words[1:])
        module, _, kind = STUDIES[words[2]].place.partition(":")
        study = getattr(import_module(module), kind)
        if not issubclass(study, GridStudy):
            continue
        given = parse(COMMANDS[name].parser(), name, rest)
        fields = {field.name for field in dataclasses.fields(study.Config)}
        config = OptionsParser(study.Config).build({n: v for n, v in given.items() if n.partition(".")[0] in fields})
        made = study("imagenet", config, None)
        own = {name: getattr(config, name) for name in ("epochs", "batch") if getattr(config, name) is not None}
        made.shared = merge(recipes.read_layers(config.recipe, config.config, {}), own)
        if study.needs_width:
            made.prepare(2048, 3)
        for place in made.places():
            assert build(merge(made.shared, place.options, {"seed": 0}), f"{place.row}, {place.column}")


def test_what_the_files_do_not_know_is_refused():
    """YAML takes a comma or a number sign outside quotes for its own: a reason ended before its comma so."""
    text = (
        "title: A\nsource: b\nitems: {}\nleft_out:\n  - {where: all, why: only the abstract, and no table, was read}\n"
    )
    with pytest.raises(ValueError, match="and no table, was read, which nothing reads: is a text not in quotes"):
        _paper("a", text)
    assert _paper("a", text.replace("only the abstract, and no table, was read", '"of it, nothing"')).left_out == (
        ("all", "of it, nothing"),
    )
    item = "title: A\nsource: b\nitems:\n  x: {title: of a, b, columns: [c], measured: linear, rows: []}\n"
    with pytest.raises(ValueError, match="a/x has b, which nothing reads"):
        _paper("a", item)
    for file in resources.files("twofold.published").iterdir():
        for line in file.read_text().splitlines() if file.name.endswith(".yaml") else []:
            assert line.startswith("#") or not re.fullmatch(r"[^\"'#]*[^\s\"'#] #.*", line), (
                f"{file.name}: {line} is cut off"
            )
    (left,) = [each for each in papers()["intriguing"].left_out if each[0].startswith("the paper's tables")]
    assert left[1] == "only the abstract, the authors' page and their notebook could be read"


@pytest.mark.parametrize("paper", papers().values(), ids=lambda paper: paper.name)
def test_sections_name_code_and_commands_that_exist(paper):
    for _, _, code, command in paper.sections:
        for file in code.split(", "):
            assert (Path(twofold.__file__).parent / file).exists(), file
        name, rest = command_of(shlex.split(command)[1:])
        parse(COMMANDS[name].parser(), name, rest)


@pytest.mark.parametrize(("own", "cell"), SAME.items())
def test_a_recipe_with_a_name_of_its_own_is_the_cell(own, cell):
    a, b = recipes.load(own), recipes.load(cell)
    assert a.command == b.command
    plain = [dict(each.options, encoder=dict(each.options.get("encoder", {}))) for each in (a, b)]
    for each in plain:
        each["encoder"].pop("sk_ratio", None) if not each["encoder"].get("sk_ratio") else None
    assert plain[0] == plain[1]
    assert published(own) == published(cell)


def test_speech_is_told_with_its_commands_and_no_figure_that_was_not_read(capsys):
    """One figure of the paper could be read; the other items name commands, and why they have no values."""
    (found,) = find("speech-simclr/abstract")
    assert [row.values for row in found.rows] == [{"wer": 5.89}]
    assert sum(len(row.values) for item in find("speech-simclr") for row in item.rows) == 1
    for name, protocol in (("emotions", "weighted"), ("timit", "ctc"), ("wsj", "ctc")):
        (item,) = find(f"speech-simclr/{name}")
        pretraining, downstream = item.command_lines
        assert "--recipe speech-released" in pretraining
        assert recipes.load(downstream.rpartition(" ")[2]).options["protocol"] == protocol
        assert cli.main(["papers", f"speech-simclr/{name}"]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert downstream in told
        assert "could not be read" in told or "does not name the corpus" in told


def test_families():
    assert len(recipes.cells("simclr-imagenet-grid")) == 48
    assert len(recipes.cells("simclr2-finetune")) == 39
    assert len(recipes.cells("simclr-imagenet-margin")) == 2 * 5 * 4 - 5, "a margin of 0 has no semi-hard negative"
    one = recipes.load("simclr-imagenet-grid:rule=sqrt,epochs=200,batch=512")
    assert one.name == "simclr-imagenet-grid:batch=512,epochs=200,rule=sqrt"
    assert (one.options["batch"], one.options["epochs"], one.options["optim"]["lr"]) == (512, 200, 0.075)
    assert one.result == "65.6 % top-1 by linear evaluation"
    big = recipes.load("simclr2-finetune:net=r50-2x,labels=100pct").options
    assert (big["optim"]["lr"], big["from_head"], big["epochs"], big["labels"]) == (0.002, 0, 30, "all")
    assert recipes.load("simclr2-finetune:net=r50-1x,labels=1pct").options["optim"]["lr"] == 0.005
    loss = recipes.load("simclr-imagenet-margin:mining=semi_hard,lr=0.5,margin=1.6").options
    assert loss["method"] | {"mining": "semi_hard", "margin": 1.6, "loss": "margin_triplet"} == loss["method"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simclr-imagenet-grid:batch=300", "batch is one of 256, 512"),
        ("simclr-imagenet-grid:size=3", "there is no 'size'; it has batch, epochs, rule"),
        ("simclr-imagenet-grid:batch=256,rule=sqrt", r"say epochs \(100, 200, 400, 800\), too"),
        ("simclr-imagenet-100:batch=256", "is a single recipe"),
        ("simclr-imagenet-margin:mining=semi_hard,lr=0.1,margin=0", "this combination is none"),
        ("simclr-imagenet-gird:batch=256", "simclr-imagenet-grid"),
    ],
)
def test_cells_that_are_none(name, message):
    with pytest.raises(UserError, match=message):
        recipes.load(name)


def test_a_family_itself_is_no_recipe():
    with pytest.raises(
        UserError, match=r"is a family: name a cell of it, such as simclr-imagenet-color:strength=0\.125"
    ):
        recipes.read_layers("simclr-imagenet-color", None, {})
    cell = "simclr-imagenet-color:strength=0.125"
    assert recipes.read_layers(cell, None, {"epochs": 3})["views"]["color_strength"] == 0.125


@pytest.mark.parametrize(
    "name", [cell for family in recipes.names() for cell in recipes.cells(family) if ":" in cell][::7]
)
def test_cells_build(name):
    from test_recipes import resolved

    assert resolved(name)


def test_what_is_published_stands_beside():
    assert reached("simclr2-distill-small") == "73.9 % top-1 distilled; 77.5 % top-1 distilled"
    assert reached("simclr-imagenet-100") == "64.5 % top-1 by linear evaluation; 64.6 % top-1 by linear evaluation"
    assert reached("demo-mnist") == ""
    assert "another recogniser there" in reached("speech-released"), "no setting of ours is to reach it"


def test_the_command(capsys, tmp_path):
    assert cli.main(["papers"]) == 0
    listed = capsys.readouterr().out
    assert "simclr/table-5" in listed
    assert "not run by us" in listed
    assert "only the abstract could be read" in " ".join(listed.split())
    assert cli.main(["papers", "simclr/table-5"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--recipe simclr-imagenet-temperature:case=cosine-0.05" in shown
    assert "cosine-0.1 4.5 87.8 64.4" in shown
    assert cli.main(["papers", "simclr/table-b1", "--json", str(tmp_path / "table.json")]) == 0
    document = json.loads((tmp_path / "table.json").read_text())["simclr/table-b1"]
    assert document["rows"][0]["values"] == {"top1": 57.5}
    assert len(document["commands"]) == 2 * 48, "each is pretrained, and then measured"
    assert cli.main(["papers", "simclr/table-99"]) == 2
    assert "there is no 'table-99' in simclr" in capsys.readouterr().err
    assert cli.main(["recipes", "simclr-imagenet-grid", "--cell", "batch=256,epochs=100"]) == 0
    told = capsys.readouterr().out
    assert "57.5 % top-1" in told
    assert "62.8 % top-1" in told
    assert cli.main(["recipes", "simclr-imagenet-grid"]) == 0
    assert "a family of 48 recipes" in capsys.readouterr().out
    assert cli.main(["recipes", "simclr-imagenet-grid", "--cell", "batch=3"]) == 2


def test_every_name_that_is_listed_can_be_asked_for(capsys):
    assert cli.main(["papers"]) == 0
    names = [line.split()[0].rstrip(",") for line in capsys.readouterr().out.splitlines() if line[:1].strip()]
    assert set(names) >= {item.full_name for item in ITEMS} | {"2108.00587"}
    for name in {*names, *papers()}:
        assert cli.main(["papers", name]) == 0, name
        told = capsys.readouterr().out
        assert name in told
