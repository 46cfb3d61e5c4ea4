"""What is published for a recipe stands beside a run's result with all in which the two are not alike."""

import dataclasses

import pytest
import torch

from twofold.data.base import DataFacts
from twofold.evaluation.protocols.base import EvaluationConfig
from twofold.options import OptionsParser, merge, plain
from twofold.published import papers, published
from twofold.recipe import cells, load, names
from twofold.runs.config import FinetuneConfig, build
from twofold.runs.defaults import choose
from twofold.runs.standing import Made, Result, beside, changes

PRETRAINED = [cell for name in names() for cell in cells(name) if load(name).command == "pretrain" and published(cell)]
R50 = {"kind": "resnet", "depth": 50, "width": 1.0, "stem": "imagenet", "sk_ratio": 0.0}
IMAGENET = DataFacts(1_281_167, 400, 500, 3, equal_sized=False, labelled=True, classes=1000)
SPEECH = DataFacts(281_241, 1, 190_000, 1, False, False, None, kind="audio", sample_rate=16000)


def as_run(recipe, **more):
    """The options that a run of a recipe keeps."""
    given = load(recipe)
    facts = SPEECH if "Speech" in given.data else IMAGENET
    if "cifar" in given.data:
        facts = dataclasses.replace(IMAGENET, count=50_000, median_height=32, median_width=32, equal_sized=True)
    return plain(choose(build(merge(given.options, more)), facts, torch.device("cpu"))[0])


def linear(recipe, *, spec=R50, images=1_281_167, tested=50_000, evaluation="linear-simclr-paper", own=None, **more):
    """A linear evaluation of a run of a recipe with some of its options changed."""
    options = plain(OptionsParser(FinetuneConfig).build(merge(load(evaluation).options, own or {})))
    made = Made(as_run(recipe, **more), spec, images)
    return beside(recipe, Result(("linear",), ["top1"], tested, made, evaluation=options, command="finetune"))


@pytest.mark.parametrize(
    "recipe", [*PRETRAINED[::5], "simclr2-imagenet-800", "speech-released", "moco-cifar10-symmetric"]
)
def test_a_run_with_no_option_changed_differs_in_nothing(recipe):
    assert changes(recipe, as_run(recipe)) == []


def test_what_is_as_published_is_told_without_more():
    assert linear("simclr-imagenet-1000") == [
        "published: 69.3 % top-1, 89 % top-5 by linear evaluation (simclr/table-6; recipe simclr-imagenet-1000)"
    ]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"epochs": 10}, "epochs 1000 there, 10 here"),
        ({"batch": 256}, "batch 4096 there, 256 here"),
        ({"views": {"blur": 0.0, "blur_sigma_per": "batch"}}, "views.blur 0.5 there, 0 here"),
        ({"method": {"memory": 65536}}, "method.memory not set there, 65536 here"),
        ({"images": 160}, "1,281,167 examples there, 160 here"),
        ({"tested": 60}, "50,000 test examples there, 60 here"),
        ({"spec": R50 | {"depth": 18}}, "resnet50 1x there, resnet18 1x here"),
        ({"spec": R50 | {"sk_ratio": 0.0625}}, "resnet50 1x there, resnet50 1x with selective kernels here"),
        ({"own": {"epochs": 5}}, "of the evaluation, epochs 90 there, 5 here"),
        ({"own": {"labels": "10%"}}, "of the evaluation, labels all there, 10% here"),
        ({"own": {"class_weights": "balanced"}}, "of the evaluation, class_weights not set there, balanced here"),
    ],
)  # fmt: skip
def test_what_differs_is_told_behind_the_value(changed, told):
    (line,) = linear("simclr-imagenet-1000", **changed)
    assert line.startswith("published: 69.3 % top-1, 89 % top-5 by linear evaluation (simclr/table-6; recipe ")
    assert line.endswith(f", not to be compared: {told}")


def test_machines_seeds_and_what_is_watched_are_no_other_setting():
    assert len(linear("simclr-imagenet-1000", seed=3, training={"device": "cpu"}, monitor={"knn_k": 20})) == 1
    assert "not to be compared" not in linear("simclr-imagenet-1000", seed=3, data={"workers": 2})[0]


def test_many_differences_are_counted():
    (line,) = linear(
        "simclr-imagenet-1000", epochs=1, batch=8, images=64, tested=8, optim={"lr": 1.0, "warmup_epochs": 0}
    )
    assert line.count(" here") == 4
    assert line.endswith("; and 2 more")


def test_another_way_of_measuring_is_no_result_to_stand_beside():
    there, h = load("knn-moco-cifar10").options, {"protocol": "knn", "k": 200, "preprocessing": "none"}
    knn = {name: plain(OptionsParser(EvaluationConfig).build(own)) for name, own in (("as there", there), ("h", h))}
    found = {}
    for name, options in knn.items():
        made = Made(as_run("moco-cifar10-asymmetric"), None, 50_000)
        found[name] = beside("moco-cifar10-asymmetric", Result(("knn",), ["top1"], 10_000, made, evaluation=options))
    assert "not to be compared" not in found["as there"][0]
    assert found["h"][0].endswith("not to be compared: of the evaluation, features z there, h here")
    assert linear("simclr-imagenet-1000", evaluation="linear-moco")[0].count("of the evaluation") == 4
    made = Made(as_run("simclr-imagenet-1000"), R50, 1_281_167)
    assert beside("simclr-imagenet-1000", Result(("knn",), ["top1"], 50_000, made)) == []
    assert beside("simclr-imagenet-1000", Result((), ["top1"], 50_000, made)) == [], "of a way that no paper has"
    fitted = plain(OptionsParser(EvaluationConfig).build({"protocol": "linear", "labels": "1%"}))
    (line,) = beside("simclr-imagenet-1000", Result(("linear",), ["top1"], 50_000, made, evaluation=fitted))
    assert "linear-simclr-paper there, evaluate here; of the evaluation, labels all there, 1% here" in line


def test_phones_of_timit_do_not_stand_beside_words_of_librispeech():
    made = Made(as_run("speech-released"), None, None)
    lines = {}
    for name, tested in (("speech-asr-librispeech", 2620), ("speech-phones-timit", 192)):
        options = plain(OptionsParser(EvaluationConfig).build(load(name).options))
        result = Result(("recogniser",), ["wer", "cer"], tested, made, evaluation=options)
        (lines[name],) = beside("speech-released", result)
    assert lines["speech-asr-librispeech"].endswith("not to be compared: another recogniser there, and a pretraining "
                                                    "whose length and number of processes are not told")  # fmt: skip
    assert "2,620 test examples there, 192 here" in lines["speech-phones-timit"]
    assert "data.split train-clean-100 there, train-sx-si here" in lines["speech-phones-timit"]


def test_what_is_fine_tuned_has_to_be_the_net_and_its_pretraining():
    recipe = "simclr2-finetune:net=r50-2x-sk,labels=1pct"
    options = plain(OptionsParser(FinetuneConfig).build(load(recipe).options))
    wide = R50 | {"width": 2.0, "sk_ratio": 0.0625}

    def told(start, spec):
        own = Made(options, spec, None)
        (line,) = beside(recipe, Result(("finetune",), ["top1"], 50_000, own, start=start))
        return line

    whole = Made(as_run("simclr2-imagenet:net=r50-2x-sk"), wide, 1_281_167)
    assert told(whole, wide).endswith(f"fine-tuned (simclr2/finetuned; recipe {recipe})")
    small = Made(as_run("simclr2-imagenet-800-memory", epochs=2), R50, 1_281_167)
    line = told(small, R50)
    assert "resnet50 2x with selective kernels there, resnet50 1x here" in line
    assert "of the pretraining, epochs 800 there, 2 here" in line
    unknown = told(Made(None, wide, None), wide)
    assert "of the pretraining, what is known of it is not enough" in unknown


def test_two_rows_of_one_recipe_are_told_apart():
    options = plain(build_distill("simclr2-distill-small"))
    made, start = (
        Made(options, R50, 1_281_167),
        Made(None, R50 | {"depth": 152, "width": 3.0, "sk_ratio": 0.0625}, None),
    )
    lines = beside("simclr2-distill-small", Result(("distill",), ["top1"], 50_000, made, start=start))
    assert [line.split(" (simclr2")[0] for line in lines] == [
        "published: 73.9 % top-1 distilled (student r50-1x, labels 1pct)",
        "published: 77.5 % top-1 distilled (student r50-1x, labels 10pct)",
    ]
    assert not any("not to be compared" in line for line in lines)
    start = dataclasses.replace(start, spec=R50)
    lines = beside("simclr2-distill-small", Result(("distill",), ["top1"], 50_000, made, start=start))
    assert all("of the teacher, resnet152 3x with selective kernels there, resnet50 1x here" in line for line in lines)


def build_distill(recipe):
    from twofold.runs.config import DistillConfig

    return OptionsParser(DistillConfig).build(load(recipe).options)


def test_every_row_that_is_fine_tuned_or_distilled_says_from_what():
    for paper in papers().values():
        for item in paper.items.values():
            for row in item.rows:
                if row.recipe and item.measured in ("finetune", "distill", "supervised"):
                    assert row.start, (item.full_name, row.keys)
                    assert load(row.start)
            if item.evaluation:
                assert load(item.evaluation).command in ("finetune", "evaluate")
