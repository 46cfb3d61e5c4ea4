"""LibriSpeech, TIMIT, WSJ and IEMOCAP as they are delivered: layouts, parts, texts, SPHERE files, what is not there."""

import re
import shutil

import numpy as np
import pytest

from sound_files import tone, write
from twofold.data import DataConfig, Splits, open_source, splits_of
from twofold.data.config import AudioConfig
from twofold.data.sources.audio_layouts import layout_of, located
from twofold.data.sources.corpora import CORE_TEST, DEVELOPMENT
from twofold.data.sources.wsj import words_of
from twofold.errors import UserError
from twofold.evaluation.parts import evaluation_parts, open_parts

RATE = 16000


def sphere(path, wave, coding="", big=False, name="TIMIT"):
    """A file as NIST's own tools write it: 1,024 bytes of header in words, then 16-bit samples."""
    lines = [
        "NIST_1A", "   1024", f"database_id -s{len(name)} {name}", "channel_count -i 1", f"sample_count -i {len(wave)}",
        f"sample_rate -i {RATE}", "sample_n_bytes -i 2", f"sample_byte_format -s2 {'10' if big else '01'}",
        "sample_sig_bits -i 16", *([f"sample_coding -s{len(coding)} {coding}"] if coding else []), "end_head",
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.round(wave * 32767).astype(">i2" if big else "<i2")
    path.write_bytes(("\n".join(lines) + "\n").encode().ljust(1024) + samples.tobytes())
    return path


def words(source):
    return dict(zip([r.path.rsplit("/", 1)[1] for r in source.recordings], source.texts, strict=True))


# TIMIT


@pytest.fixture
def timit(tmp_path):
    """Two training speakers, one of the core test set and one of the fifty, each with a sentence of each kind."""
    place = tmp_path / "timit" / "TIMIT"
    speakers = [("TRAIN", "FCJF0"), ("TRAIN", "MDAC0"), ("TEST", "MDAB0"), ("TEST", "FAKS0"), ("TEST", "MRCZ0")]
    for part, speaker in speakers:
        for sentence in ("SA1", "SI648", "SX37"):
            file = sphere(place / part / "DR1" / speaker / f"{sentence}.WAV", tone(1, rate=RATE))
            file.with_suffix(".TXT").write_text(f"0 46797 {sentence} in words.\n")
            file.with_suffix(".PHN").write_text("0 2260 h#\n2260 4149 sh\n4149 5000 ax-h\n")
    return place


def test_timit_is_read_from_its_sphere_files(timit):
    source = open_source(timit)
    assert source.speakers == ["FCJF0"] * 3 + ["MDAC0"] * 3
    assert words(source) == {f"{s}.WAV": f"{s} in words." for s in ("SA1", "SI648", "SX37")}
    assert set(source.rates) == {RATE}
    heard = source.read(0)
    assert np.abs(heard - np.round(tone(1, rate=RATE) * 32767) / 32768).max() < 1e-6
    assert located(timit.parent) == ("timit", timit), "the folder around it is as good"
    assert open_source(timit.parent).texts == source.texts
    assert "6 of its 4,620 recordings are there" in source.facts().layout


def test_timits_parts(timit):
    def speakers(split):
        found = open_source(timit, split=split)
        return [(r.speaker, r.path.rsplit("/", 1)[1][:2]) for r in found.recordings]

    assert splits_of(timit).evaluation == ("train", "test")
    assert len(speakers("test")) == 9
    assert speakers("core-test") == [("MDAB0", "SI"), ("MDAB0", "SX")]
    assert speakers("dev") == [("FAKS0", "SI"), ("FAKS0", "SX")]
    assert speakers("train-sx-si") == [(s, k) for s in ("FCJF0", "MDAC0") for k in ("SI", "SX")]
    with pytest.raises(UserError, match=r"--data.split eval: .* has test, train, core-test, dev, train-sx-si"):
        open_source(timit, split="eval")
    assert (len(CORE_TEST), len(DEVELOPMENT)) == (24, 50)
    assert not CORE_TEST & DEVELOPMENT
    assert sum(name[0] == "m" for name in CORE_TEST) == 16, "two men and a woman of each of eight regions"


def test_timits_phones_as_labelled(timit):
    source = open_source(timit, DataConfig(audio=AudioConfig(text="phones")))
    assert set(source.texts) == {"h# sh ax-h"}
    assert open_source(timit, DataConfig(audio=AudioConfig(text="words"))).texts[0] == "SA1 in words."
    with pytest.raises(UserError, match=r"--data.audio.text syllables names a column of a manifest"):
        open_source(timit, DataConfig(audio=AudioConfig(text="syllables")))
    next((timit / "TRAIN").rglob("SX37.PHN")).write_text("0 2260\n")
    with pytest.raises(UserError, match=r"SX37.PHN: '0 2260' is no first and last sample and a phone"):
        open_source(timit, DataConfig(audio=AudioConfig(text="phones")))


def test_a_copy_of_timit_with_wav_files_beside_is_read_once(timit):
    """As it goes round: SA1.WAV.wav, in RIFF, beside SA1.WAV; small letters; texts that are gone."""
    for file in sorted(timit.rglob("*.WAV")):
        write(file.with_name(f"{file.name}.wav"), tone(1, rate=RATE), RATE)
    assert len(open_source(timit)) == 6
    for file in list(timit.rglob("*.WAV")):
        file.unlink()
    source = open_source(timit)
    assert len(source) == 6
    assert words(source)["SX37.WAV.wav"] == "SX37 in words."
    next((timit / "TRAIN").rglob("SX37.TXT")).unlink()
    assert "1 recording has no text beside them" in open_source(timit).facts().layout


def test_a_part_of_the_same_data_is_the_test(timit):
    """A path that is there comes before a part of that name."""
    train, test = evaluation_parts(str(timit), "core-test", DataConfig(split="train-sx-si"))
    assert (len(train), len(test)) == (4, 2)
    parts = open_parts(str(timit), "core-test", "dev", DataConfig(split="train-sx-si"))
    assert {r.speaker for r in parts.validation.recordings} == {"FAKS0"}
    with pytest.raises(UserError, match="core-testing"):
        evaluation_parts(str(timit), "core-testing", DataConfig(split="train-sx-si"))


# WSJ


def listing(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(";; File: an index\n;;\n" + "".join(f"{name}\n" for name in names))


@pytest.fixture
def wsj(tmp_path):
    """Three discs of CSR-I and two of CSR-II, one of them in capitals."""
    discs, waves = tmp_path / "wsj", iter(range(100))

    def disc(number, part, speaker, utterances, suffix=".wv1"):
        for name in utterances:
            place = discs / number / part / speaker / f"{name}{suffix}"
            sphere(place, tone(next(waves) % 3, rate=RATE), "pcm", big=True, name="wsj0")

    disc("11-1.1", "wsj0/si_tr_s", "01i", ["01ic0201", "01ic0202"])
    disc("11-1.1", "wsj0/si_tr_s", "01i", ["01ic0201", "01ic0202"], ".wv2")
    disc("11-2.1", "wsj0/si_tr_s", "401", ["401c0201"])
    disc("11-13.1", "wsj0/si_et_20", "440", ["440c0401"])
    disc("13-4.1", "wsj1/si_tr_s", "460", ["460c0301"])
    disc("13-16.1", "WSJ1/SI_DT_20", "4K0", ["4K0C0301"], ".WV1")
    train = ["11_1_1:wsj0/si_tr_s/01i/01ic0201.wv1", "11_1_1:wsj0/si_tr_s/01i/01ic0202.wv1"]
    listing(discs / "11-13.1/wsj0/doc/indices/train/tr_s_wv1.ndx", [*train, "11_2_1:wsj0/si_tr_s/401/401c0201.wv1"])
    listing(discs / "11-13.1/wsj0/doc/indices/test/nvp/si_et_20.ndx", ["11_13_1:wsj0/si_et_20/440/440c0401"])
    listing(discs / "13-34.1/wsj1/doc/indices/si_tr_s.ndx", ["13_4_1: wsj1/si_tr_s/460/460c0301.wv1"])
    listing(discs / "13-34.1/wsj1/doc/indices/h1_p0.ndx", ["13_16_1:wsj1/si_dt_20/4k0/4k0c0301.wv1"])
    dots = {
        "11-4.1/wsj0/transcrp/dots/si_tr_s/01i/01ic0200.dot": "The sale (01ic0201)\n[<slam] \\%PERCENT . (01ic0202)\n",
        "11-13.1/wsj0/si_et_20/440/440c0400.dot": "Some <odd> *words* (440c0401)\n",
        "13-34.1/wsj1/trans/wsj1/si_tr_s/460/460c0300.dot": "More of it (460c0301)\n",
        "13-16.1/WSJ1/TRANS/4K0C0300.DOT": "In capitals (4K0C0301)\n",
    }
    for name, text in dots.items():
        (discs / name).parent.mkdir(parents=True, exist_ok=True)
        (discs / name).write_text(text)
    return discs


def test_wsj_by_its_lists(wsj):
    assert layout_of(wsj) == "wsj"
    source = open_source(wsj)
    assert words(source) == {"01ic0201.wv1": "The sale", "01ic0202.wv1": "PERCENT", "460c0301.wv1": "More of it"}
    assert source.speakers == ["01i", "01i", "460"], "the close microphone, and not the speaker left out"
    assert words(open_source(wsj, split="si84")) == {"01ic0201.wv1": "The sale", "01ic0202.wv1": "PERCENT"}
    assert words(open_source(wsj, DataConfig(), "si_tr_s"))["401c0201.wv1"] is None, "a folder is all that is in it"
    parts = splits_of(wsj)
    assert parts.names == ("si_dt_20", "si_et_20", "si_tr_s"), "each sentence in one"
    assert parts.others == ("si84", "si284", "dev93", "eval92")
    assert (parts.evaluation, parts.validation) == (("si284", "eval92"), ("si284", "dev93"))
    assert np.abs(source.read(0)).max() > 0.1


def test_settings_are_chosen_on_wsjs_own_part(wsj):
    """Two sentences in each part, as a part of one is none to learn from."""
    for disc, part, speaker, utterance in (
        ("13-16.1", "WSJ1/SI_DT_20", "4K1", "4K1C0301.WV1"), ("11-13.1", "wsj0/si_et_20", "441", "441c0401.wv1")
    ):  # fmt: skip
        sphere(wsj / disc / part / speaker / utterance, tone(0, rate=RATE), "pcm")
    lists = {"13-34.1/wsj1/doc/indices/h1_p0.ndx": ["13_16_1:wsj1/si_dt_20/4k0/4k0c0301.wv1",
                                                    "13_16_1:wsj1/si_dt_20/4k1/4k1c0301.wv1"],
             "11-13.1/wsj0/doc/indices/test/nvp/si_et_20.ndx": ["11_13_1:wsj0/si_et_20/440/440c0401",
                                                                "11_13_1:wsj0/si_et_20/441/441c0401"]}  # fmt: skip
    for name, sentences in lists.items():
        listing(wsj / name, sentences)
    words = "si284 has: add images, leave the class out of both"
    with pytest.raises(UserError, match=words):  # its speakers are not those of the test
        open_parts(str(wsj), None, None, DataConfig(), choose=True)
    parts = open_parts(str(wsj), "eval92", "dev93", DataConfig(split="si284"), choose=True)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [3, 2, 2]


@pytest.mark.parametrize(("split", "text"), [("eval92", "Some odd words"), ("dev93", "In capitals")])
def test_wsjs_test_parts(wsj, split, text):
    source = open_source(wsj, DataConfig(max_skipped=0), split, least=1)
    assert source.texts == [text]


def test_what_of_wsj_is_not_there(wsj):
    with pytest.raises(UserError, match=r"--data.split eval93: .* add the disc that has it"):
        open_source(wsj, split="eval93")
    shutil.rmtree(wsj / "11-1.1")
    words = r"2 of the 2 sentences of si84 are not there, such as wsj0/si_tr_s/01i/01ic0201.wv1: add the discs"
    with pytest.raises(UserError, match=words):
        open_source(wsj, split="si84")
    assert words_are_told(open_source(wsj, split="si_tr_s"), "1 sentence has no text in a .dot file")
    listing(wsj / "11-13.1/wsj0/doc/indices/train/tr_s_wv1.ndx", ["11_1_1:readme.doc"])
    with pytest.raises(UserError, match=r"tr_s_wv1.ndx: '11_1_1:readme.doc' names no sentence"):
        open_source(wsj, split="si84")


def words_are_told(source, note):
    return note in source.facts().layout


@pytest.mark.parametrize("suffix", [".wav", ".wv1.wav", ".flac"])
def test_wsj_as_its_discs_hold_it_is_refused_with_the_remedy_which_helps(wsj, suffix):
    """Shortened samples: nothing here unpacks them; what sph2pipe wrote beside them is read in their place."""
    discs = list(wsj.rglob("01ic020?.wv1"))
    for file in discs:
        sphere(file, tone(0, rate=RATE), "pcm,embedded-shorten-v2.00")
    remedy = "its samples are compressed by shorten-v2.00, which nothing here unpacks: write it anew by sph2pipe -f wav"
    with pytest.raises(UserError, match=re.escape(remedy)):
        open_source(wsj, split="si84")
    for file in discs:
        write(file.with_suffix(suffix), tone(0, rate=RATE), RATE)
        write(file.with_suffix(".wv2.wav"), tone(1, rate=RATE), RATE)  # the other microphone
    assert words(open_source(wsj, split="si84")) == {f"01ic0201{suffix}": "The sale", f"01ic0202{suffix}": "PERCENT"}


@pytest.mark.parametrize("where", ["11-1.1", "11-1.1/wsj0"])
def test_a_disc_alone_has_its_folders(wsj, where):
    source = open_source(wsj / where)
    assert splits_of(wsj / where).names == ("si_tr_s",)
    assert source.speakers == ["01i", "01i"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("It <is> [loud_breath] a [phone_ring/] *test* [/phone_ring] .", "It is a test"),
        ("\\\"DOUBLE-QUOTE fifty \\.POINT five !now ~", '"DOUBLE-QUOTE fifty POINT five now'),
        ("[unintelligible]", ""),
    ],
)  # fmt: skip
def test_marks_of_wsjs_texts(line, said):
    assert words_of(line) == said


# IEMOCAP


@pytest.fixture
def iemocap(tmp_path):
    place = tmp_path / "IEMOCAP_full_release"
    for session in ("1", "2"):
        for kind in ("impro01", "script01_1"):
            dialogue, base = f"Ses0{session}F_{kind}", place / f"Session{session}"
            rows, said = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"], []
            for i, emotion in enumerate(("neu", "exc", "fru", "ang")):
                name = f"{dialogue}_{'FM'[i % 2]}00{i}"
                rows.append(f"[6.29 - 8.23]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]\nC-E1:\tNeutral;\t()")
                said.append(f"{name} [006.2901-008.2357]: Excuse me, {i}.")
                write(base / "sentences" / "wav" / dialogue / f"{name}.wav", tone(i, rate=RATE), RATE)
            said += [f"{dialogue}_MXX0 [001.0-002.0]: Mm.", "M: what nobody timed"]
            for kind_of, lines in (("EmoEvaluation", rows), ("transcriptions", said)):
                (base / "dialog" / kind_of).mkdir(parents=True, exist_ok=True)
                (base / "dialog" / kind_of / f"{dialogue}.txt").write_text("\n".join(lines))
    return place


def test_iemocap_has_texts_and_kinds_of_dialogue(iemocap):
    source = open_source(iemocap)
    assert len(source) == 12
    assert source.texts[:3] == ["Excuse me, 0.", "Excuse me, 1.", "Excuse me, 3."]
    assert [source.classes[label] for label in source.labels[:3]] == ["neutral", "happy", "angry"]
    assert splits_of(iemocap) == Splits(others=("improvised", "scripted"))
    improvised = open_source(iemocap, split="improvised")
    assert len(improvised) == 6
    assert all("impro" in each.path for each in improvised.recordings)
    assert open_source(iemocap.parent).texts == source.texts
    with pytest.raises(UserError, match="IEMOCAP has improvised and scripted dialogues; its sessions are folds"):
        open_source(iemocap, split="Session1")


def test_what_of_iemocap_is_not_there_is_told(iemocap):
    (iemocap / "Session1" / "dialog" / "transcriptions" / "Ses01F_impro01.txt").unlink()
    gone = iemocap / "Session2" / "sentences" / "wav" / "Ses02F_impro01" / "Ses02F_impro01_F000.wav"
    gone.unlink()
    source = open_source(iemocap)
    told = source.facts().layout
    assert "3 utterances of Session1 have no transcription" in told
    assert "Session1 has 6 of 1,085 utterances of the four classes" in told
    assert "Session3, Session4, Session5 are not there" in told
    assert [path for path, _ in source.skipped] == [str(gone)], "an utterance without its recording is counted"
    with pytest.raises(UserError, match=r"Ses02F_impro01_F000.wav"):
        open_source(iemocap, DataConfig(max_skipped=0))


# LibriSpeech


def test_what_of_librispeech_is_not_there_is_told(tmp_path):
    chapter = tmp_path / "LibriSpeech" / "train-clean-100" / "19" / "198"
    for i in range(3):
        write(chapter / f"19-198-000{i}.flac", tone(i, rate=RATE), RATE)
    (chapter / "19-198.trans.txt").write_text("19-198-0000 ONE\n19-198-0001 TWO\n")
    bare = tmp_path / "LibriSpeech" / "train-clean-100" / "26" / "495"
    write(bare / "26-495-0000.flac", tone(0, rate=RATE), RATE)
    source = open_source(tmp_path)
    assert words(source) == {
        "19-198-0000.flac": "ONE", "19-198-0001.flac": "TWO", "19-198-0002.flac": None, "26-495-0000.flac": None
    }  # fmt: skip
    assert source.speakers == ["19", "19", "19", "26"]
    told = source.facts().layout
    assert "2 recordings have no line in a .trans.txt file" in told
    assert "of the 960 hours train-clean-360, train-other-500 are not there" in told
    assert "960" not in open_source(tmp_path, split="train-clean-100").facts().layout
