"""The transfer study on small trees of every data set: parts, metrics, choice of settings, results that are kept."""

import json
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from transfer_trees import TREES

from twofold import cli
from twofold.commands.transfer import transfer
from twofold.data import DataConfig
from twofold.encoders import EncoderConfig, build_encoder, save_encoder
from twofold.errors import UserError
from twofold.evaluation.logistic import PAPER_GRID, fit_path
from twofold.evaluation.scores import average_precision_11
from twofold.runs.finetune import finetune
from twofold.studies.transfer import linear as measuring
from twofold.studies.transfer import study as command
from twofold.studies.transfer.finetune import DECAYS, RATES, Budget, run_options
from twofold.studies.transfer.linear import fit_many_path, measure, open_parts
from twofold.studies.transfer.permutation import unpacked
from twofold.studies.transfer.sets import SETS, reported
from twofold.training.loop import Training

GRID = tuple(10.0**k for k in range(-5, 2))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All twelve."""
    folder = tmp_path_factory.mktemp("data")
    for tree in TREES.values():
        tree(folder)
    return folder


@pytest.fixture
def trusting(monkeypatch):
    """The checksums of the real files, which ours cannot have, are taken as right."""

    def exists(path, md5=None):  # noqa: ARG001  # torchvision's signature
        return Path(path).is_file()

    for module in ("cifar", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", exists)


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "encoder.safetensors"
    config = EncoderConfig.of(name="resnet10", width=0.125, stem="cifar", channels=3)
    save_encoder(path, build_encoder(config, 16), extra={"options": {"views": {"size": 16}}})
    return path


def test_the_twelve_sets_are_the_papers():
    """Table 8 of the paper: metrics, and sets with validation images of their own (appendix B.8)."""
    assert list(SETS) == list(TREES)
    assert {n for n, s in SETS.items() if s.metric == "mean_per_class"} == {"aircraft", "pets", "caltech101", "flowers"}
    assert [n for n, s in SETS.items() if s.metric == "map11"] == ["voc2007"]
    assert {n for n, s in SETS.items() if s.validation} == {"aircraft", "voc2007", "dtd", "flowers"}
    assert len(PAPER_GRID) == 45
    assert PAPER_GRID[0] == pytest.approx(1e-6)
    assert PAPER_GRID[-1] == pytest.approx(1e5)
    assert (len(RATES), len(DECAYS), DECAYS[0]) == (7, 8, 0.0)
    assert reported("cifar10", "linear")["SimCLR 4x"] == 95.3
    assert reported("flowers", "finetune") == {
        "SimCLR 1x": 97.0, "supervised 1x": 97.6, "random start 1x": 92.0,
        "SimCLR 4x": 97.6, "supervised 4x": 98.0, "random start 4x": 92.5,
    }  # fmt: skip


@pytest.mark.usefixtures("trusting")
def test_all_twelve_in_one_command_and_nothing_twice(root, encoder_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "PAPER_GRID", GRID)
    options = {"root": str(root), "out": str(tmp_path / "out")}
    result = transfer(encoder_file, **options)
    cells = result.cells
    assert [cell.name for cell in cells] == list(SETS)
    for cell in cells:
        classes = {"cifar10": 10, "cifar100": 100, "voc2007": 20, "flowers": 102}.get(cell.name, 3)
        assert cell.metric == SETS[cell.name].metric
        assert 1.5 / classes < cell.value <= 1, (cell.name, cell.value)
        assert cell.settings["l2"] in GRID
        assert (tmp_path / "out" / f"{cell.name}-linear.json").exists()
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert rows[1]["paper"]["SimCLR 1x"] == 90.6
    assert rows[1]["result"] == round(100 * cells[1].value, 2)
    assert len(result.table.rows) == 12
    assert [cell.name for cell in cells if "object marked as difficult counts as one of its class" in cell.text] == [
        "voc2007"
    ]

    def forbidden(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(measuring, "linear", forbidden)
    (tmp_path / "out" / "table.json").unlink()
    assert transfer(encoder_file, resume=True, **options).cells == cells
    (tmp_path / "out" / "dtd-linear.json").unlink()  # stopped there: the others are kept
    with pytest.raises(AssertionError, match="measured again"):
        transfer(encoder_file, resume=True, **options)
    with pytest.raises(UserError, match="measured with another data, seed"):
        transfer(encoder_file, resume=True, **options, data="pets", seed=1)
    (tmp_path / "out" / "pets-linear.json").write_text("{")
    with pytest.raises(UserError, match=r"pets-linear\.json is damaged"):
        transfer(encoder_file, resume=True, **options, data="pets")
    words = ["transfer", str(encoder_file), "--data", "cars", "--root", str(root), "--out", options["out"]]
    assert cli.main([*words, "--resume"]) == 0
    assert "Stanford Cars" in capsys.readouterr().out


@pytest.mark.usefixtures("trusting")
def test_parts_are_divided_as_the_study_says(root):
    config = DataConfig(root=str(root), channels=3)
    for name in SETS:
        parts = open_parts(name, config)
        assert len(parts.fit) + len(parts.validation) == len(parts.whole)
        assert parts.test.name.endswith("/test")
    flowers, pets = open_parts("flowers", config), open_parts("pets", config)
    assert [source.name for source in (flowers.fit, flowers.validation)] == ["flowers/train", "flowers/val"]
    assert "its 102 validation images" in flowers.words
    assert np.bincount(pets.validation.labels).tolist() == [1, 1]
    held = {pets.whole.path(i) for i in pets.validation._indices}
    assert not held & {pets.whole.path(i) for i in pets.fit._indices}


def test_the_penalty_is_the_best_on_validation_images_and_the_fit_on_all():
    """Against scikit-learn used plainly, on features that we give."""
    rng = np.random.default_rng(3)
    y = {part: np.arange(count) % 3 for part, count in (("fit", 30), ("validation", 60), ("test", 60))}
    x = {part: (rng.normal(0, 1.6, (len(v), 6)) + np.eye(6)[v]).astype(np.float32) for part, v in y.items()}
    x["whole"], y["whole"] = np.concatenate([x["fit"], x["validation"]]), np.concatenate([y["fit"], y["validation"]])

    class Part:
        classes, name = None, "part"

        def __init__(self, part):
            self.part, self.labels = part, y[part]

        def __len__(self):
            return len(self.labels)

    class Known:
        def extract(self, _encoder, source, *_):
            every = np.arange(len(source.labels))
            return type("F", (), {"h": x[source.part], "index": every, "text": "given", "skipped": ()})

    parts = measuring.DataSplits(*(Part(name) for name in ("fit", "validation", "whole", "test")), "words")
    value, validation, settings, _, hits = measuring.linear(torch.nn.Linear(1, 1), "cifar10", parts, Known(), GRID)

    def plain(train, test, l2, metric=accuracy_score):
        mean = x[train].mean(0)
        scale = np.sqrt(((x[train] - mean) ** 2).mean())
        solver = LogisticRegression(C=1 / (l2 * len(x[train])), max_iter=1000)
        solver.fit((x[train] - mean) / scale, y[train])
        return metric(y[test], solver.predict((x[test] - mean) / scale))

    found = {l2: plain("fit", "validation", l2) for l2 in GRID}
    assert len(set(found.values())) > 1
    best = max(sorted(found, reverse=True), key=lambda l2: found[l2])
    assert (settings["l2"], validation) == (best, found[best])
    assert value == pytest.approx(plain("whole", "test", best))
    assert unpacked(hits).mean() == pytest.approx(value)
    model = fit_path(x["whole"], y["whole"], [best])[0]
    balanced = plain("whole", "test", best, balanced_accuracy_score)
    assert measure(model, x["test"], y["test"], "mean_per_class") == pytest.approx(balanced)


def test_many_labels_get_one_regression_a_class():
    rng = np.random.default_rng(0)
    y = (rng.random((80, 3)) < [0.5, 0.2, 0.4]).astype(np.int64)
    x = (y @ rng.normal(0, 2, (3, 5)) + rng.normal(0, 1, (80, 5))).astype(np.float32)
    model = fit_many_path(x, y, [1.0, 0.1])[1]
    scaled = (x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).mean())
    expected = []
    for k in range(3):
        solver = LogisticRegression(C=1 / (0.1 * 80), max_iter=1000).fit(scaled, y[:, k])
        np.testing.assert_allclose(model.logits(x)[:, k], solver.decision_function(scaled), rtol=1e-2, atol=1e-2)
        expected.append(average_precision_11(solver.decision_function(scaled), y[:, k] > 0))
    assert measure(model, x, y, "map11") == pytest.approx(np.mean(expected), abs=1e-3)


def test_published_settings_of_fine_tuning():
    options = run_options(Budget(), 1e-2, 1e-4, 2040, 224, "antialias", 0)
    assert options["epochs"] * 2040 / 256 == pytest.approx(20_000)
    assert options["optim"]["weight_decay"] == pytest.approx(1e-2)  # the decay divided by the rate
    assert options["optim"]["decay"] == "all_but_norms"  # biases of dense layers too, as the code does without LARS
    assert options["bn_momentum"] == pytest.approx(0.1)  # max(1 - 10 / s, 0.9) at s = 8 steps an epoch
    assert run_options(Budget(), 1e-2, 0.0, 256_000, 224, "antialias", 0)["bn_momentum"] == pytest.approx(0.01)


def test_fine_tuning_takes_the_best_pair_and_scores_once(root, encoder_file, tmp_path, monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(args[2])
        return finetune(*args, **kwargs)

    monkeypatch.setattr("twofold.studies.transfer.finetune.finetune", counted)
    budget = {"steps": 6, "batch": 6, "rates": [1e-4, 3e-2], "decays": [0.0]}
    options = {"root": str(root), "data": "birdsnap", "protocol": "finetune", "out": str(tmp_path)}
    cell = transfer(encoder_file, **options, budget=budget).cells[0]
    assert [source.name for source in calls] == ["birdsnap/train", "birdsnap/train", "birdsnap/test"]
    results = [json.loads((tmp_path / "runs/birdsnap" / name / "result.json").read_text()) for name in ("00", "01")]
    best = int(np.argmax([result["scores"]["top1"] for result in results]))
    assert cell.settings["rate"] == budget["rates"][best]
    final = json.loads((tmp_path / "runs/birdsnap/final/result.json").read_text())
    assert (cell.value, final["labels"]) == (final["scores"]["top1"], 12)
    with pytest.raises(UserError, match="another budget"):
        transfer(encoder_file, resume=True, **options, budget=budget | {"steps": 7})


def test_a_rate_at_which_fine_tuning_diverges_is_not_chosen(root, encoder_file, tmp_path, monkeypatch, capsys):
    options = {"root": str(root), "data": "birdsnap", "protocol": "finetune", "out": str(tmp_path / "some")}
    budget = {"steps": 6, "batch": 6, "rates": [3e-2, 1e30], "decays": [0.0]}
    cell = transfer(encoder_file, **options, budget=budget).cells[0]
    assert cell.settings["rate"] == 3e-2
    assert "chosen among 1 pair (1 more diverged)" in cell.text
    assert "rate 1e+30 and decay 0 are left out: " in " ".join(capsys.readouterr().out.split())
    (tmp_path / "some" / "birdsnap-finetune.json").unlink()
    monkeypatch.setattr("twofold.training.loop.Training.fit", lambda _: pytest.fail("what is done is not done again"))
    assert transfer(encoder_file, resume=True, **options, budget=budget).cells[0].settings["rate"] == 3e-2
    monkeypatch.undo()
    options |= {"out": str(tmp_path / "none")}
    message = r"in every cell \(birdsnap, finetune\), as told above: give lower --budget.rates"
    with pytest.raises(UserError, match=message):
        transfer(encoder_file, **options, budget=budget | {"rates": [1e30]})


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "food102"}, "--data food102: the transfer study has food101"),
        ({"data": "all", "root": "nowhere"}, r"food101 .*was looked for in nowhere/food-101.*; --root says"),
        ({"data": "cars", "budget.steps": 0}, r"budget\.steps"),
        ({"data": "cars", "protocol": "knn"}, "protocol"),
        ({"data": "cars", "batch": 0}, "--batch must be at least 1, got 0"),
        ({"data": "cars", "workers": -1}, "--workers -1: give 0 or more"),
        (
            {"data": "cars", "budget.steps": 9},
            r"--budget\.steps 9 has no effect with --protocol linear: leave it out, or choose finetune",
        ),
        (
            {"data": "cars", "protocol": "finetune", "batch": 8},
            r"--batch 8 has no effect .* finetune: use --budget\.batch",
        ),
        ({"data": "cars", "protocol": "finetune", "workers": 2}, "--workers 2 has no effect .*: leave it out"),
    ],
)
def test_wrong_options(root, encoder_file, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        transfer(encoder_file, **({"root": str(root), "out": str(tmp_path)} | options))
    assert not list(tmp_path.iterdir())


def test_a_class_without_images(encoder_file, tmp_path):
    TREES["birdsnap"](tmp_path)
    for file in (tmp_path / "birdsnap/train/owl").iterdir():
        if file.name != "0.jpg":
            file.unlink()
    with pytest.raises(UserError, match=r"birdsnap/train: 1 of 3 classes with fewer than 2 images: owl"):
        transfer(encoder_file, data="birdsnap", root=str(tmp_path))
    TREES["aircraft"](tmp_path)
    data = tmp_path / "fgvc-aircraft-2013b/data/images_variant_val.txt"
    data.write_text("".join(line for line in data.read_text().splitlines(True) if "A300" not in line))
    with pytest.raises(UserError, match=r"aircraft/val: 1 of 2 classes without an image: A300B4"):
        transfer(encoder_file, data="aircraft", root=str(tmp_path))


def test_a_size_that_nobody_said(root, tmp_path):
    config = EncoderConfig.of(name="resnet10", width=0.125, stem="cifar", channels=3)
    save_encoder(tmp_path / "e.safetensors", build_encoder(config, 16))
    with pytest.raises(UserError, match="give --size"):
        transfer(tmp_path / "e.safetensors", data="cars", root=str(root))


def kept(out):
    """Run -> how many files of weights it holds."""
    files = [*(out / "runs").rglob("*.pt"), *(out / "runs").rglob("*.safetensors")]
    return dict(Counter(f"{file.relative_to(out).parts[1]}/{file.relative_to(out).parts[2]}" for file in files))


@pytest.mark.usefixtures("trusting")
def test_fine_tuning_by_each_kind_of_metric_stopped_and_resumed(root, encoder_file, tmp_path, monkeypatch, capsys):
    """Top-1, mean per class and mAP; stopped within the second, no run is done twice and the table is whole."""
    budget = {"steps": 3, "batch": 8, "rates": [1e-3, 1e-1], "decays": [0.0]}
    names = {"cifar10": "top1", "voc2007": "map11", "pets": "mean_per_class"}
    options = {"root": str(root), "data": ",".join(names), "protocol": "finetune", "budget": budget}
    whole = transfer(encoder_file, **options, out=str(tmp_path / "whole")).cells
    assert {cell.name: cell.metric for cell in whole} == names
    for cell in whole:
        final = json.loads((tmp_path / "whole" / "runs" / cell.name / "final" / "result.json").read_text())["scores"]
        assert cell.value == final[cell.metric]
        assert final["count"] == cell.images[1]
        tried = [json.loads(path.read_text())["scores"][cell.metric]
                 for path in sorted((tmp_path / "whole" / "runs" / cell.name).glob("0?/result.json"))]  # fmt: skip
        assert cell.validation == max(tried)
        assert cell.settings["rate"] == budget["rates"][int(np.argmax(tried))]

    trained, fit = [], Training.fit

    def counted(self):
        trained.append(str(self.run.path.relative_to(tmp_path / "cut" / "runs")))
        if trained == ["cifar10/00", "cifar10/01", "cifar10/final", "voc2007/00", "voc2007/01"]:
            self.agree = lambda _asked: signal.SIGINT if self.step == 2 else 0
        return fit(self)

    monkeypatch.setattr(Training, "fit", counted)
    words = ["transfer", str(encoder_file), "--data", options["data"], "--root", str(root), "--protocol", "finetune"]
    words += ["--budget.steps", "3", "--budget.batch", "8", "--budget.rates", "[0.001, 0.1]", "--budget.decays", "[0]"]
    words += ["--out", str(tmp_path / "cut")]
    assert cli.main(words) == 128 + signal.SIGINT
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "cut").glob("*.json")} == {"cifar10-finetune.json", "table.json"}
    assert kept(tmp_path / "cut") == {"cifar10/final": 1, "voc2007/01": 2}  # that one is not done
    trained.clear()
    trained.append("again")
    cut = transfer(encoder_file, **options, out=str(tmp_path / "cut"), resume=True).cells
    assert trained == ["again", "voc2007/01", "voc2007/final", "pets/00", "pets/01", "pets/final"]
    assert [(c.name, c.value, c.settings) for c in cut] == [(c.name, c.value, c.settings) for c in whole]
    assert kept(tmp_path / "cut") == {f"{name}/final": 1 for name in names}
    rows = {row["data"]: row for row in json.loads((tmp_path / "cut" / "table.json").read_text())}
    assert (rows["voc2007"]["metric"], rows["voc2007"]["paper"]["SimCLR 1x"]) == ("map11", 84.1)
    assert (rows["pets"]["paper"]["SimCLR 4x"], rows["cifar10"]["paper"]["supervised 1x"]) == (92.1, 97.5)
    assert {name: row["result"] for name, row in rows.items()} == {c.name: round(100 * c.value, 2) for c in whole}
    capsys.readouterr()
    assert cli.main([*words, "--resume"]) == 0
    assert "84.1/86.6" in (told := capsys.readouterr().out)
    assert "67.3/69.4" in told  # from a random start


@pytest.mark.usefixtures("trusting")
def test_an_empty_validation_split(encoder_file, tmp_path):
    TREES["dtd"](tmp_path)
    (tmp_path / "dtd" / "dtd" / "labels" / "val1.txt").write_text("")
    with pytest.raises(UserError, match="dtd/val holds no image"):
        transfer(encoder_file, data="dtd", root=str(tmp_path))
    TREES["voc2007"](tmp_path)
    (tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "val.txt").write_text("")
    with pytest.raises(UserError, match="voc2007/val holds no image"):
        transfer(encoder_file, data="voc2007", root=str(tmp_path))
