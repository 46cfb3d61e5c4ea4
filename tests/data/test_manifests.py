"""Manifests and layouts of recordings as people have them: segments, columns, encodings, toolkits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from sound_files import RATE, tone, write
from twofold.data import DataConfig, open_source, splits_of
from twofold.data.config import AudioConfig
from twofold.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Two files: 2 s of a tone that changes every half second, and 1 s of another."""
    parts = [tone(word, 0, 0.5, RATE, seed=word) for word in range(4)]
    write(tmp_path / "long.wav", np.concatenate(parts), RATE)
    write(tmp_path / "short.wav", tone(1, 0, 1.0, RATE, seed=9), RATE)
    return tmp_path


def table(folder, text, name="m.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


@pytest.mark.parametrize(
    "columns", ["path,start,end,text\nlong.wav,0.5,1.0,b\nlong.wav,1.5,2.0,d\nshort.wav,,,s\n",
                "path,offset,duration,text\nlong.wav,0.5,0.5,b\nlong.wav,1.5,0.5,d\nshort.wav,,,s\n"],
)  # fmt: skip
def test_each_row_reads_its_own_segment(folder, columns):
    source = open_source(table(folder, columns))
    whole, _ = soundfile.read(folder / "long.wav", dtype="float32")
    half = len(whole) // 4
    assert source.lengths().tolist() == [half, half, RATE]
    np.testing.assert_array_equal(source.read(0), whole[half : 2 * half])
    np.testing.assert_array_equal(source.read(1), whole[3 * half :])
    assert source.texts == ["b", "d", "s"]
    assert open_source(table(folder, columns.replace("0.5,", "0.25,", 1))).fingerprint() != source.fingerprint()


def test_a_long_segment_is_cropped_inside_itself(folder):
    """What is longer than max_seconds gives a part of the segment, never of what lies beside it."""
    manifest = table(folder, "path,start,end\nlong.wav,0.5,1.5\nshort.wav,,\n")
    whole, _ = soundfile.read(folder / "long.wav", dtype="float32")
    for cache in ("off", "auto"):
        source = open_source(manifest, DataConfig(cache=cache, audio=AudioConfig(max_seconds=0.5)))
        for place in (0.0, 0.5, 0.999):
            start = RATE // 2 + int(place * (RATE // 2 + 1))
            np.testing.assert_array_equal(source.read(0, place), whole[start : start + RATE // 2])


def test_segments_that_are_none_are_told(folder):
    for text, words in (
        ("path,start,end\nlong.wav,1,0.5\nshort.wav,,\n", "row 1: the segment from 1 s has a length of -0.5 s"),
        ("path,start,end\nlong.wav,one,2\nshort.wav,,\n", "start is 'one', and must be a number of seconds"),
    ):
        with pytest.raises(UserError, match=words):
            open_source(table(folder, text))
    source = open_source(table(folder, "path,start,end\nlong.wav,7,8\nlong.wav,0,1\nshort.wav,,\n"),
                         DataConfig(max_skipped=0.5))  # fmt: skip
    assert "begins at 7 s, and the file is 2.000 s long" in source.skipped[0][1]
    assert open_source(table(folder, "path,duration\nlong.wav,2\nshort.wav,1\n")).lengths().tolist() == [2 * RATE, RATE]


def test_texts_keep_every_character(folder):
    """Quoted line ends, U+0085 and U+2028 are no ends of rows."""
    texts = ["one\ntwo", "next\x85line", "line\u2028separator", 'quoted "word"', "a, b"]
    rows = "".join(f'short.wav,"{text.replace(chr(34), chr(34) * 2)}"\n' for text in texts)
    assert open_source(table(folder, f"path,text\n{rows}")).texts == texts
    lines = "".join(json.dumps({"path": "short.wav", "text": text}, ensure_ascii=False) + "\n" for text in texts)
    assert open_source(table(folder, lines, "m.jsonl")).texts == texts


def test_what_cannot_be_read_is_told_by_row(folder):
    for text, name, words in (
        ("path,text\nshort.wav,a,b\nlong.wav,c\n", "m.csv", "row 1 has 3 fields and the header 2: put quotes"),
        ("path\ttext\nshort.wav\ta\tb\n", "m.tsv", "3 fields and the header 2: put quotes around a field .* a tab"),
        ('["short.wav", "a"]\n', "m.jsonl", "row 1 is a str"),
        ('{"path": "short.wav"}\n[1]\n', "m.jsonl", "row 2 is a list"),
        ("path,text\nshort.wav,a\n", "m.json", "no readable manifest"),
    ):
        with pytest.raises(UserError, match=words):
            open_source(table(folder, text, name))


def test_other_encodings_can_be_named(folder):
    manifest = table(folder, "path,text\nshort.wav,müde\nlong.wav,bär\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"not written in utf-8 .*--data.encoding, such as latin-1"):
        open_source(manifest)
    assert open_source(manifest, DataConfig(encoding="latin-1")).texts == ["müde", "bär"]
    (folder / "short.txt").write_bytes("müde".encode("latin-1"))
    with pytest.raises(UserError, match=r"--data.encoding"):
        open_source(folder)
    assert open_source(folder, DataConfig(encoding="latin-1")).texts == [None, "müde"]


def test_columns_are_chosen_or_known(folder):
    manifest = table(folder, "clip,said,who,mood\nshort.wav,a,ann,glad\nlong.wav,b,bob,sad\n")
    with pytest.raises(UserError, match=r"name one with --data.audio.path"):
        open_source(manifest)
    columns = AudioConfig(path="clip", text="said", speaker="who", label="mood")
    source = open_source(manifest, DataConfig(audio=columns))
    assert (source.texts, source.speakers, source.classes) == (["a", "b"], ["ann", "bob"], ["glad", "sad"])
    with pytest.raises(UserError, match=r"--data.audio.text words: .* it has clip, said, who, mood"):
        open_source(manifest, DataConfig(audio=AudioConfig(path="clip", text="words")))
    hub = table(folder, "file_name,transcription\nshort.wav,a\nlong.wav,b\n", "metadata.csv")
    assert open_source(hub).texts == ["a", "b"]


def test_nemo_fairseq_and_common_voice(folder):
    nemo = "".join(
        json.dumps({"audio_filepath": name, "duration": seconds, "text": name[0]}) + "\n"
        for name, seconds in (("short.wav", 1.0), ("long.wav", 2.0))
    )
    assert open_source(table(folder, nemo, "nemo.json")).texts == ["s", "l"]
    fairseq = table(folder, f"{folder}\nshort.wav\t{RATE}\nlong.wav\t{2 * RATE}\n", "train.tsv")
    table(folder, "ONE\nTWO\n", "train.wrd")
    assert open_source(fairseq).texts == ["ONE", "TWO"]
    voice = folder / "voice"
    for name in ("short.wav", "long.wav"):
        wave, _ = soundfile.read(folder / name, dtype="float32")
        write(voice / "clips" / name, wave, RATE)
    rows = 'client_id\tpath\tsentence\nann\tshort.wav\tA "word".\nbob\tlong.wav\tB\n'
    for part in ("train", "test"):
        table(voice, rows, f"{part}.tsv")
    source = open_source(voice)
    assert (source.texts, source.speakers) == (['A "word".', "B"], ["ann", "bob"])
    assert splits_of(voice).evaluation == ("train", "test")


def test_kaldi_and_timit(folder):
    table(folder, "r1 long.wav\nr2 short.wav\n", "wav.scp")
    table(folder, "u1 first words\nu2 second words\n", "text")
    table(folder, "u1 ann\nu2 bob\n", "utt2spk")
    table(folder, "u1 r1 0.5 1.0\nu2 r2 0.0 1.0\n", "segments")
    source = open_source(folder)
    assert source.texts == ["first words", "second words"]
    assert (source.speakers, source.lengths().tolist()) == (["ann", "bob"], [RATE // 2, RATE])
    table(folder, "r1 sph2pipe -f wav long.sph |\n", "wav.scp")
    with pytest.raises(UserError, match="nothing is run here"):
        open_source(folder)
    timit = folder / "timit"
    for part in ("TRAIN", "TEST"):
        for speaker in ("FCJF0", "MDAB0"):
            place = timit / part / "DR1" / speaker / "SA1.WAV"
            place.parent.mkdir(parents=True)
            soundfile.write(place, tone(0), RATE, format="NIST")  # SPHERE, as the corpus has it
            place.with_suffix(".TXT").write_text("0 46797 She had your dark suit.\n")
    source = open_source(timit)
    assert (source.speakers, source.texts[0]) == (["FCJF0", "MDAB0"], "She had your dark suit.")
    assert splits_of(timit).names == ("test", "train")
    assert splits_of(timit).others == ("core-test", "dev", "train-sx-si")
    assert splits_of(timit).evaluation == ("train", "test")


def test_compressed_sphere_files_are_told(folder):
    """As NIST's discs hold them: what is inside is none of libsndfile's codings."""
    head = b"NIST_1A\n   1024\nsample_count -i 8000\nsample_rate -i 8000\nchannel_count -i 1\nsample_n_bytes -i 2\n"
    coding = b"sample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n"
    (folder / "disc.sph").write_bytes((head + coding).ljust(1024) + bytes(range(256)) * 40)
    source = open_source(folder, DataConfig(max_skipped=0.5))
    assert len(source) == 2
    words = "its samples are compressed by shorten-v2.00, which nothing here unpacks: write it anew by sph2pipe -f wav"
    assert source.skipped[0][1] == words


@pytest.mark.parametrize(
    ("names", "unit"),
    [("start,end", 1), ("start_time,end_time", 1), ("begin,end", 1), ("begin_time,stop_time", 1),
     ("start_sec,duration_sec", 1), ("start_ms,end_ms", 1000), ("offset,duration_ms", 1000)],
)  # fmt: skip
def test_segments_under_other_names(folder, names, unit):
    first, second = names.split(",")
    begin = 0.5 * (unit if first.endswith("_ms") else 1)
    end = (0.5 if "duration" in second else 1.0) * unit
    source = open_source(table(folder, f"path,{names}\nlong.wav,{begin},{end}\nshort.wav,,\n"))
    whole, _ = soundfile.read(folder / "long.wav", dtype="float32")
    np.testing.assert_array_equal(source.read(0), whole[RATE // 2 : RATE])
    assert source.lengths().tolist() == [RATE // 2, RATE]


def test_columns_that_are_about_something_else_are_no_segments(folder):
    rows = "path,start_time\nlong.wav,2021-03-01 10:00\nshort.wav,2021-03-01 10:05\n"
    assert open_source(table(folder, rows)).lengths().tolist() == [2 * RATE, RATE]
    for value in ("nan", "inf", "soon"):
        with pytest.raises(UserError, match=rf"row 1: start is '{value}', and must be a number of seconds"):
            open_source(table(folder, f"path,start\nlong.wav,{value}\nshort.wav,0\n"))


def test_quotes_that_are_not_closed(folder):
    """By tabs, as Common Voice writes them, a quote stands for itself; by commas it would swallow the rows after it."""
    rows = 'path\tsentence\nlong.wav\t"Open\nshort.wav\t"All" and "every"\nlong.wav\t"a ""b"""\n'
    assert open_source(table(folder, rows, "m.tsv")).texts == ['"Open', '"All" and "every"', 'a "b"']
    with pytest.raises(UserError, match=r"in row 1 or after it; is a quote opened and not closed"):
        open_source(table(folder, 'path,text\nlong.wav,"open\nshort.wav,b\n'))
    lines = 'path\ttext\nlong.wav\t"two\nlines"\nshort.wav\tb\n'
    assert open_source(table(folder, lines, "m.tsv")).texts == ["two\nlines", "b"]


def test_paths_in_mappings(folder):
    rows = json.dumps([{"audio": {"path": name}, "text": name[0]} for name in ("long.wav", "short.wav")])
    assert open_source(table(folder, rows, "m.json")).texts == ["l", "s"]


def test_kaldi_folders_whose_recordings_lie_elsewhere(folder):
    kaldi = folder / "data" / "train"
    kaldi.mkdir(parents=True)
    table(kaldi, f"r1 {folder}/long.wav\nr2\t{folder}/short.wav\n", "wav.scp")
    table(kaldi, "r1\tFOO BAR\nr2 BAZ\n", "text")
    table(kaldi, "r1\tann\nr2\tbob\n", "utt2spk")
    with pytest.raises(UserError, match=r"wav.scp, r1 names .*long.wav, which lies outside .*--data.outside true"):
        open_source(kaldi)
    allowed = DataConfig(outside=True)
    source = open_source(kaldi, allowed)
    assert (source.texts, source.speakers) == (["FOO BAR", "BAZ"], ["ann", "bob"])
    table(kaldi, "u1 r1 0.5 1.0\nu2 r1 1.0 -1\n", "segments")
    assert open_source(kaldi, allowed).lengths().tolist() == [RATE // 2, RATE]
    table(kaldi, "u1 r1\n", "segments")
    with pytest.raises(UserError, match=r"segments, u1: 'r1' is no recording with a start and an end"):
        open_source(kaldi, allowed)


def test_one_recording_that_is_left_is_called_one(folder):
    with pytest.raises(UserError, match=r"1 recording; contrast needs at least 2, .*left out were\n.*gone.wav"):
        open_source(table(folder, "path\nlong.wav\ngone.wav\n"), DataConfig(max_skipped=0.9))
