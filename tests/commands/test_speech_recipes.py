"""Recipes of evaluation on the speech corpora: each runs on a small tree in its corpus' layout, and options win."""

import json

import pytest

import twofold
from sound_files import tone, write
from twofold import cli
from twofold.errors import UserError

RATE = 16000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An encoder for 16 kHz, pretrained for one step."""
    where = tmp_path_factory.mktemp("speech")
    for i in range(6):
        write(where / "clips" / f"{i}.wav", tone(i % 3, seconds=0.6, rate=RATE), RATE)
    return twofold.pretrain(
        where / "clips", where / "run", epochs=1, batch=2, report=False, monitor={"every": 0},
        encoder={"name": "speech:corrected", "speech": {"width": 16, "heads": 2, "layers": 1}},
        training={"device": "cpu", "precision": "fp32", "threads": 1},
    ).path  # fmt: skip


def timit(root):
    for part, speakers in (("TRAIN", ("FCJF0", "MDAC0", "MTPF0")), ("TEST", ("MDAB0", "FELC0", "MRCZ0"))):
        for speaker in speakers:
            for i, sentence in enumerate(("SA1", "SI648", "SX37")):
                file = write(root / part / "DR1" / speaker / f"{sentence}.wav", tone(i, seconds=0.6, rate=RATE), RATE)
                file.with_name(f"{sentence}.TXT").write_text("0 9600 Yes no.\n")
                file.with_name(f"{sentence}.PHN").write_text("0 4800 sh\n4800 9600 iy\n")
    return root


def test_phones_of_timit(run, tmp_path):
    data = timit(tmp_path / "TIMIT")
    found = twofold.evaluate(run, data, recipe="speech-phones-timit", ctc={"epochs": 1}, baselines=False)
    assert (found.train, found.test) == (6, 4), "no sentence that all say; two of the core test set's speakers"
    assert set(found.characters) == set("shiy ")
    words = ["evaluate", str(run), str(data), "--recipe", "speech-phones-timit", "--ctc.epochs", "1", "--test", "test"]
    assert cli.main([*words, "--json", str(tmp_path / "found.json")]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["test"] == 9, "what is given wins over the recipe"


def test_emotions_of_iemocap(run, tmp_path):
    for session in ("1", "2"):
        dialogue, base = f"Ses0{session}F_impro01", tmp_path / f"Session{session}"
        rows = []
        for i in range(8):
            name = f"{dialogue}_{'FM'[i % 2]}00{i}"
            rows.append(f"[6.29 - 8.23]\t{name}\t{('neu', 'ang')[i % 2]}\t[2.5, 2.5, 2.5]")
            wave = tone(i % 2, seconds=0.5, rate=RATE, seed=i)
            write(base / "sentences" / "wav" / dialogue / f"{name}.wav", wave, RATE)
        (base / "dialog" / "EmoEvaluation").mkdir(parents=True)
        (base / "dialog" / "EmoEvaluation" / f"{dialogue}.txt").write_text("\n".join(rows))
    found = twofold.evaluate(run, tmp_path, recipe="speech-emotion-iemocap")
    assert found.protocol == "weighted"
    assert "leaving out each of 2 folds in turn" in found.words


def test_a_recipe_of_another_command_is_refused(run, tmp_path):
    with pytest.raises(
        UserError, match="--recipe speech-released is for `twofold pretrain`, not for `twofold evaluate`"
    ):
        twofold.evaluate(run, timit(tmp_path), recipe="speech-released")
