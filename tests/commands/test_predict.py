"""`twofold predict`: what a kept or fine-tuned classifier says of new files, and of those that cannot be read."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import OPTIONS, images

import twofold
from sound_files import RATE, speech_folder, tone, write
from twofold import cli
from twofold.commands.export import _with_classifier
from twofold.encoders import FilePart, SpeechEncoder, load_classifier, load_part, read_header, save_encoder
from twofold.encoders.composed import EncoderWithClassifier
from twofold.errors import UserError
from twofold.evaluation.protocols.linear import evaluate_linear
from twofold.evaluation.protocols.weighted import evaluate_weighted
from twofold.options import merge


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Trained so little, at a low rate, that what is far stays far, whatever the defaults are."""
    options = merge(OPTIONS, {"encoder.zero_init_residual": True, "optim": {"lr": 2e-3, "weight_decay": 1e-4}})
    return twofold.pretrain(images(), tmp_path_factory.mktemp("runs") / "base", report=False, **options).path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """bar/ and disc/, images of unequal sizes."""
    root = tmp_path_factory.mktemp("photos")
    for i, (image, label) in enumerate(zip(*images(40, seed=2), strict=True)):
        place = root / ("bar", "disc")[1 - label]
        place.mkdir(exist_ok=True)
        Image.fromarray(image).resize((24 + i % 3, 24)).save(place / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def kept(pretrained, photos):
    return twofold.evaluate(pretrained, photos, test=photos, keep_classifier=True)


@pytest.fixture(scope="module")
def of_speech(tmp_path_factory):
    torch.manual_seed(0)
    net = SpeechEncoder(RATE, 20, 60.0, width=16, layers=1, heads=2, hidden=16, cmvn="none", dropout=0.0)
    file = tmp_path_factory.mktemp("speech") / "encoder.safetensors"
    save_encoder(file, net.eval())
    return file


def test_a_kept_classifier_gives_what_the_evaluation_scored(pretrained, photos, kept, tmp_path, capsys):
    out = tmp_path / "p.csv"
    assert cli.main(["predict", str(pretrained), str(photos), "--out", str(out), "--device", "cpu"]) == 0
    told = capsys.readouterr().out.replace("\n", "")
    rows = list(csv.DictReader(out.open()))
    assert [row["name"] for row in rows] == sorted(str(p.relative_to(photos)) for p in photos.rglob("*.png"))
    assert np.mean([row["label"] == row["given"] for row in rows]) == pytest.approx(kept.top1)
    assert f"{kept.top1:.2%}" in told
    for row in rows:
        assert float(row["probability"]) >= 0.5
        assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=1e-5)
        assert 0 <= float(row["unlike"]) < 1
    result = twofold.predict(kept.kept_in, photos)
    assert result.metrics == {"top1": pytest.approx(kept.top1)}
    assert result.model == kept.kept_in
    # the probabilities are those of the regression itself, image by image
    from twofold.data import open_source
    from twofold.evaluation.features import Extractor

    found = Extractor.of(pretrained / "encoder.safetensors").extract(twofold.load(pretrained), open_source(photos))
    fitted = evaluate_linear(found.h, found.labels, found.h, found.labels)
    weight, bias = fitted.affine
    chances = torch.from_numpy(found.h @ weight.T + bias).softmax(1).numpy()
    for row, chance in zip(result.rows, chances, strict=True):
        assert row.label == ("bar", "disc")[int(chance.argmax())]
        assert row.probability == pytest.approx(chance.max(), abs=1e-4)


@pytest.mark.usefixtures("kept")
def test_what_cannot_be_read_is_a_row(pretrained, photos, tmp_path):
    good = next(photos.rglob("*.png"))
    broken, gone, cut = tmp_path / "broken.png", tmp_path / "gone.png", tmp_path / "cut.png"
    broken.write_bytes(b"no image")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:3000])  # the header is whole, the pixels are not
    result = twofold.predict(pretrained, [good, broken, gone, cut], tmp_path / "p.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows if "label" in row] == [str(good)]
    assert {row["name"] for row in rows if row.get("problem")} == {str(broken), str(gone), str(cut)}
    assert "3 could not be read" in result.text()
    for alone in (broken, [broken, gone], cut):
        rows = twofold.predict(pretrained, alone).rows
        assert rows
        assert all(row.problem and row.label is None for row in rows), rows
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "x.png").write_bytes(b"")
    assert [row.name for row in twofold.predict(pretrained, folder).rows] == ["x.png"]
    assert twofold.predict(pretrained, good).rows[0].label == twofold.predict(pretrained, str(good)).rows[0].label
    other = tmp_path / "other.png"
    other.write_bytes(b"")
    rows = twofold.predict(pretrained, [good, broken, gone, other], **{"data.background": "black"}).rows
    assert [row.problem is None for row in rows] == [True, False, False, False]
    with pytest.raises(UserError, match="max_skipped allows 0"):
        twofold.predict(pretrained, [good, broken], **{"data.max_skipped": 0.0})


@pytest.mark.usefixtures("kept")
def test_a_table_a_list_and_parquet(pretrained, photos, tmp_path):
    import pyarrow.parquet

    rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in sorted(photos.rglob("*.png"))[::4]]
    (photos / "list.csv").write_text("\n".join(["path,label", *rows]))
    try:
        result = twofold.predict(pretrained, photos / "list.csv", tmp_path / "p.parquet", top=1)
    finally:
        (photos / "list.csv").unlink()
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pydict()
    assert table["name"] == [row.name for row in result.rows]
    assert len(table["name"]) == 10
    assert "label_2" not in table
    assert table["probability"] == [row.probability for row in result.rows]


@pytest.mark.usefixtures("kept")
def test_what_is_far_from_all_training_images_is_unlike(pretrained, photos, tmp_path):
    rng = np.random.default_rng(0)
    strange = tmp_path / "strange"
    strange.mkdir()
    for i in range(4):
        checks = (np.indices((24, 24)).sum(0) // (i + 1) % 2 * 255).astype(np.uint8)
        Image.fromarray(np.stack([checks, 255 - checks, rng.integers(0, 255, (24, 24), dtype=np.uint8)], -1)).save(
            strange / f"{i}.png"
        )
    known = [row.unlike for row in twofold.predict(pretrained, photos).rows]
    unknown = [row.unlike for row in twofold.predict(pretrained, strange).rows]
    # those that it was calibrated on: their shares are the ranks 0 / 41 ... 39 / 41
    assert sorted(known) == pytest.approx([i / 41 for i in range(40)], abs=2e-6)
    assert min(unknown) > 0.9


@pytest.mark.parametrize("features", ["h", "z"])
def test_the_head_goes_with_a_classifier_of_its_output(pretrained, photos, features):
    done = twofold.evaluate(pretrained, photos, test=photos, features=features, keep_classifier=True)
    assert read_header(done.kept_in)["classifier"]["layer"] == (2 if features == "z" else 0)
    assert twofold.predict(done.kept_in, photos).metrics["top1"] == pytest.approx(done.top1)


def test_reading_is_that_of_the_fit(pretrained, photos, tmp_path):
    """Another preprocessing, and another colour behind transparent pixels, than the encoder's."""
    clear = tmp_path / "clear"
    for path in photos.rglob("*.png"):
        place = clear / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        rgb = np.asarray(Image.open(path))
        Image.fromarray(np.concatenate([rgb, 255 - rgb[..., :1]], axis=2)).save(place)
    options = {"preprocessing": "crop", "data": {"background": "black"}, "keep_classifier": True}
    done = twofold.evaluate(pretrained, clear, test=clear, **options)
    said = twofold.predict(done.kept_in, clear)
    assert said.metrics["top1"] == pytest.approx(done.top1)
    assert "0.875" in said.words
    plain = twofold.predict(done.kept_in, clear, **{"data.background": "#ffffff"})
    assert [row.probability for row in plain.rows] != [row.probability for row in said.rows]


def test_a_finetuned_run_predicts(pretrained, photos, tmp_path):
    options = {"epochs": 2, "batch": 8, "training": {"device": "cpu", "precision": "fp32"}}
    report = twofold.finetune(pretrained, photos, tmp_path / "ft", test=photos, from_head=1, **options)
    said = twofold.predict(tmp_path / "ft", photos, top=1)
    assert said.metrics["top1"] == pytest.approx(report.metrics["top1"])
    assert all(row.unlike is not None and len(row.top) == 1 for row in said.rows)
    many = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0]] * 16)
    x, _ = images()
    twofold.finetune(pretrained, (x, many), tmp_path / "many", test=(x, many), **options)
    said = twofold.predict(tmp_path / "many", (x[:5], None))
    for row in said.rows:
        likely = [name for name, chance in row.top if chance > 0.5]
        assert set(row.label.split("|")) - {""} == set(likely)


@pytest.mark.parametrize("protocol", ["weighted", "linear"])
@pytest.mark.parametrize("parts", [1, 3])
def test_recordings_by_their_layers_and_parts(of_speech, tmp_path, protocol, parts):
    folder = speech_folder(tmp_path / "clips", 2, 6)
    options = {"protocol": protocol, "parts": parts, "keep_classifier": True, "seed": 1}
    done = twofold.evaluate(of_speech, folder, test=folder, **options)
    whole = protocol == "linear" and parts == 1
    classifier, layer = load_classifier(done.kept_in)
    assert layer == (0 if whole else None)  # who knows nothing of parts and layers takes it for none of theirs
    assert classifier.in_features == twofold.load(of_speech).feature_dim * parts * (1 if protocol == "linear" else 2)
    write(folder / "word0" / "silent.wav", np.zeros(RATE, np.float32))
    said = twofold.predict(done.kept_in, folder, top=9)
    assert said.metrics["top1"] == pytest.approx(done.top1)
    assert [(row.name, row.label) for row in said.rows if row.problem] == [("word0/silent.wav", None)]
    alone = twofold.predict(done.kept_in, folder / "word1" / "3.wav").rows[0]
    same = next(row for row in said.rows if row.name == "word1/3.wav")
    assert alone.label == same.label
    assert alone.probability == pytest.approx(same.probability, abs=1e-4)
    exported = _with_classifier(done.kept_in, twofold.load(done.kept_in))
    assert isinstance(exported, EncoderWithClassifier) == whole


def test_layers_folded_into_one_matrix_give_the_same_logits():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3 * 5)).astype(np.float32), np.arange(40) % 3
    x[y == 1, :5] += 2
    outcome = evaluate_weighted(x, y, x, y, 3)
    weight, bias = outcome.affine
    from twofold.evaluation.protocols.weighted import Mixture

    model = Mixture(x, y, 3, outcome.settings["l2"])
    np.testing.assert_allclose(x @ weight.T + bias, model.logits(x), atol=1e-4)


@pytest.mark.parametrize("tune", [False, True])
def test_a_recogniser_is_kept_and_reads_what_was_scored(of_speech, tmp_path, tune):
    folder = tmp_path / "said"
    lines = ["path,text"]
    for i in range(12):
        write(folder / f"{i}.wav", tone(i % 2, i % 3, 0.6, seed=i))
        lines.append(f"{i}.wav,{('ba', 'na')[i % 2]}")
    (folder / "list.csv").write_text("\n".join(lines))
    ctc = {"epochs": 3, "tune": tune, "tune_lr": 0.01}
    done = twofold.evaluate(
        of_speech, folder / "list.csv", test=folder / "list.csv", protocol="ctc", ctc=ctc, keep_classifier=True
    )
    (folder / "bad.wav").write_bytes(b"RIFF")
    said = twofold.predict(done.kept_in, [folder / f"{i}.wav" for i in range(5)] + [folder / "bad.wav"])
    assert [row.text for row in said.rows[:5]] == [read for _, read in done.examples]
    assert all(0 < row.confidence <= 1 for row in said.rows[:5])
    assert said.rows[5].problem
    before, after = read_header(of_speech), load_part(done.kept_in, "recogniser")
    assert after.facts["characters"] == "abn"
    assert before["parts"] == {}
    same = [
        torch.equal(a, b)
        for a, b in zip(twofold.load(of_speech).parameters(), twofold.load(done.kept_in).parameters(), strict=True)
    ]
    assert all(same) != tune


def test_the_last_kept_one_is_taken_and_told(pretrained, photos, kept):
    newer = twofold.evaluate(pretrained, photos, test=photos, keep_classifier=True, seed=5)
    assert newer.kept_in != kept.kept_in
    said = twofold.predict(pretrained, photos)
    assert said.model == newer.kept_in
    assert str(newer.kept_in) in said.text()


def test_mistakes_are_told(pretrained, photos, kept, tmp_path):
    (tmp_path / "there.csv").write_text("mine")
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((pretrained / "encoder.safetensors").read_bytes())
    for run, data, out, options, told in (
        (bare, photos, None, {}, "holds no classifier: keep the one"),
        (kept.kept_in, photos, "there.csv", {}, "exists already"),
        (kept.kept_in, photos, "p.xlsx", {}, "ends in .csv, .jsonl or .parquet"),
        (kept.kept_in, photos, None, {"top": 0}, "--top 0"),
        (kept.kept_in, photos, None, {"batch": 0}, "--batch 0"),
        (kept.kept_in, photos / "nothing", None, {}, "no such file or folder"),
        (kept.kept_in, [], None, {}, "no file is named"),
        (kept.kept_in, speech_folder(tmp_path / "s", 1, 2), None, {}, "holds recordings"),
    ):
        with pytest.raises(UserError, match=told):
            twofold.predict(run, data, None if out is None else tmp_path / out, **options)
    assert (tmp_path / "there.csv").read_text() == "mine"
    with pytest.raises(UserError, match="keep_classifier true"):
        twofold.evaluate(pretrained, photos, folds=2, keep_classifier=True)


def test_a_distilled_student_predicts(pretrained, photos, tmp_path):
    options = {"epochs": 1, "batch": 8, "training": {"device": "cpu", "precision": "fp32"}}
    twofold.distill(pretrained, photos, tmp_path / "student", teacher_labels="all", **options)
    rows = twofold.predict(tmp_path / "student", photos, device="cpu").rows
    assert {row.label for row in rows} <= {"bar", "disc"}
    assert all(row.unlike is None for row in rows)


@pytest.mark.parametrize(
    ("facts", "tensors", "told"),
    [
        ({"classes": ["bar"]}, {}, "1 names for 2 classes"),
        ({"classes": ["bar", 7]}, {}, "2 names for 2 classes"),
        ({"classes": ["a", "b"], "k": 1}, {"seen": torch.ones(3, 5), "held": torch.ones(2)}, "for features of 64"),
        ({"classes": ["a", "b"], "k": 9}, {"seen": torch.ones(3, 64), "held": torch.ones(2)}, "neighbour 9 of 3"),
        ({"classes": ["a", "b"], "k": 1}, {"seen": torch.ones(3, 64), "held": torch.tensor([torch.nan])}, "is damaged"),
        ({"classes": ["a", "b"], "reads": "layers"}, {}, "it reads frames over time"),
        ({"classes": ["a", "b"], "in_parts": 3}, {}, "it reads frames over time"),
        ({"classes": ["a", "b"], "in_parts": "3"}, {}, "in '3' parts"),
    ],
)
def test_parts_that_do_not_fit_are_refused(kept, photos, tmp_path, facts, tensors, told):
    file = tmp_path / "made.safetensors"
    classifier, layer = load_classifier(kept.kept_in)
    parts = {"prediction": FilePart(facts, tensors)}
    save_encoder(file, twofold.load(kept.kept_in), None, {}, classifier, layer, parts)
    assert read_header(file)["format"] == 3
    with pytest.raises(UserError, match=told):
        twofold.predict(file, photos)


def test_a_changed_file_is_refused(kept, photos, tmp_path):
    with safe_open(kept.kept_in, "pt") as file:
        facts, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["prediction.seen"] = -tensors["prediction.seen"]
    save_file(tensors, tmp_path / "changed.safetensors", metadata=facts)
    with pytest.raises(UserError, match="is damaged"):
        twofold.predict(tmp_path / "changed.safetensors", photos)


@pytest.mark.usefixtures("kept")
def test_of_long_images_it_is_told_what_makes_another_classifier(pretrained, tmp_path):
    """`twofold predict` has no --preprocessing: that is of the classifier."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "long.png")
    told = twofold.predict(pretrained, tmp_path / "long.png").words
    assert "1 of 1 image is more than twice as long as wide" in told
    assert "twofold evaluate --keep-classifier or twofold finetune with --preprocessing letterbox sees all" in told
    assert "of evaluate, embed and search" not in told
