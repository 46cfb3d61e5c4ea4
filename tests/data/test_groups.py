"""Which examples belong together, by a column, an array, a field or the names of files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset, Subset

from sound_files import speech_folder, tone, write
from twofold.commands.shard import shard
from twofold.data import DataConfig, open_source
from twofold.data.groups import groups_of
from twofold.data.sources.subset import subset
from twofold.errors import UserError
from twofold.options.nested import upgraded

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 9, 7, 3), dtype=np.uint8)
NAMES = [f"{('cat', 'dog')[i % 2]}/patient{i // 3}_{i}.png" for i in range(8)]
PATIENTS = ["0", "0", "0", "1", "1", "1", "2", "2"]
BY_NAME = r"patient(\d+)_"


def png(i):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[i]).save(buffer, "PNG")
    return buffer.getvalue()


def grouped(what, group, **options):
    source = open_source(what, DataConfig(group=group, **options))
    return source, groups_of(source)


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(NAMES):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(png(i))
    return tmp_path / "photos"


def test_names_of_files_tell(folder):
    source, groups = grouped(folder, BY_NAME)
    by_number = {int(source.path(i).rsplit("_", 1)[1][:-4]): groups[i] for i in range(8)}
    assert [by_number[i] for i in range(8)] == PATIENTS
    assert groups_of(subset(source, [3, 0])) == [groups[3], groups[0]]
    assert grouped(folder, r"patient\d+")[1][0].startswith("patient"), "without a group the whole match counts"
    assert set(grouped(folder, r"^(cat|dog)/")[1]) == {"cat", "dog"}, "names are those below the folder"
    assert set(grouped(folder, r"^(?:cat/(patient\d))?")[1]) == {"patient0", "patient1", "patient2", ""}
    assert open_source(folder).groups is None


def test_a_file_that_cannot_be_read_takes_its_group_with_it(folder):
    (folder / NAMES[4]).write_bytes(b"broken")
    source, groups = grouped(folder, BY_NAME)
    assert len(source) == len(groups) == 7
    assert all(f"patient{group}_" in source.path(i) for i, group in enumerate(groups))


def test_a_pattern_that_does_not_fit_is_told(folder):
    (folder / "cat" / "odd.png").write_bytes(png(0))
    with pytest.raises(UserError, match=r"1 of 9 file names of .*photos do not match it, such as cat/odd\.png"):
        grouped(folder, BY_NAME)
    with pytest.raises(UserError, match=r"--data.group patient\(: not a regular expression"):
        grouped(folder, "patient(")


def test_arrays(tmp_path):
    labels, numbers = np.arange(8) % 2, np.array(PATIENTS, dtype=float)
    numbers[0] = np.nan
    source = open_source((PIXELS, labels, numbers))
    assert source.groups == ["", *PATIENTS[1:]]
    np.savez(tmp_path / "a.npz", x_train=PIXELS, y_train=labels, patient_train=PATIENTS, x_test=PIXELS, y_test=labels)
    assert grouped(tmp_path / "a.npz", "patient")[1] == PATIENTS
    with pytest.raises(UserError, match=r"--data.group patient: .*a.npz has no such array for test; it has x_train"):
        grouped(tmp_path / "a.npz", "patient", split="test")
    with pytest.raises(UserError, match="there are 8 images and 3 groups"):
        open_source((PIXELS, labels, PATIENTS[:3]))
    with pytest.raises(UserError, match=r"--data.group patient: array has no names of files"):
        grouped((PIXELS, labels), "patient")


class Items(Dataset):
    def __init__(self, items, **attributes):
        self.items = items
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_data_sets_of_torch_and_of_the_hub():
    images = [Image.fromarray(x) for x in PIXELS]
    mappings = Items(
        [{"image": x, "label": i % 2, "patient": int(p)} for i, (x, p) in enumerate(zip(images, PATIENTS, strict=True))]
    )
    assert grouped(mappings, "patient")[1] == PATIENTS
    pairs = Items([(x, i % 2) for i, x in enumerate(images)], patients=np.array(PATIENTS, dtype=int))
    assert grouped(pairs, "patients")[1] == PATIENTS
    assert grouped(Subset(pairs, [7, 0]), "patients")[1] == ["2", "0"]
    with pytest.raises(UserError, match=r"--data.group patient: Items has no attribute of that name"):
        grouped(pairs, "patient")
    features = datasets.Features({"image": datasets.Image(), "patient": datasets.Value("string")})
    cells = {"image": [{"bytes": png(i) if i != 1 else b"broken", "path": None} for i in range(8)], "patient": PATIENTS}
    table = datasets.Dataset.from_dict(cells, features=features)
    assert grouped(table, "patient")[1] == [PATIENTS[0], *PATIENTS[2:]]
    with pytest.raises(UserError, match=r"--data.group slide: Dataset has no such column; it has image, patient"):
        grouped(table, "slide")


@pytest.mark.parametrize("index", [False, True])
def test_archives(folder, tmp_path, index):
    files, groups = grouped(folder, BY_NAME)
    shard(folder, tmp_path / "packed", data={"group": BY_NAME})
    packed, kept = grouped(tmp_path / "packed", "group")
    assert len(set(kept)) == len(set(groups)) == len(set(zip(kept, groups, strict=True))), "hashes of the names"
    assert not set(kept) & set(groups)
    assert groups_of(open_source(tmp_path / "packed")) is not None, "without being asked for"
    assert packed.labels.tolist() == files.labels.tolist()
    others = tmp_path / "others"
    others.mkdir()
    with tarfile.open(others / "a.tar", "w") as archive:
        for i, name in enumerate(NAMES):
            stem = name.rsplit("/", 1)[1].removesuffix(".png")
            document = {"label": 0.5 if i == 2 else i % 2, "slide": None if i == 5 else int(PATIENTS[i])}
            for extension, data in (("png", png(i)), ("json", json.dumps(document).encode())):
                info = tarfile.TarInfo(f"{stem}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    if index:
        shard(others, index=True)
    assert grouped(others, "slide")[1] == ["0", "0", "1", "1", "", "2", "2"], "without the one of a strange label"
    assert grouped(others, BY_NAME)[1] == PATIENTS[:2] + PATIENTS[3:]
    with pytest.raises(UserError, match=r"7 of 7 file names of .*others do not match it, such as patient0_0.png"):
        grouped(others, "slice")


def test_recordings(tmp_path):
    plain = speech_folder(tmp_path / "plain", 2, 4)
    assert sorted(grouped(plain, r"word\d/(\d)")[1]) == sorted("0123" * 2)
    with pytest.raises(UserError, match=r"--data.group speaker: .*8 of 8 file names"):
        grouped(plain, "speaker")
    lines = ["path,label,speaker,room"]
    for i in range(6):
        write(tmp_path / "clips" / f"v{i % 3}-{i}.wav", tone(i % 2, i % 3, 0.2, seed=i))
        lines.append(f"v{i % 3}-{i}.wav,word{i % 2},voice{i % 3},{'ab'[i // 3] if i else ''}")
    manifest = tmp_path / "clips" / "list.csv"
    manifest.write_text("\n".join(lines) + "\n")
    source, groups = grouped(manifest, "speaker")
    assert groups == ["voice0", "voice1", "voice2"] * 2
    assert groups_of(source.subset(np.array([4, 0]))) == ["voice1", "voice0"]
    assert grouped(manifest, "room")[1] == ["", "a", "a", "b", "b", "b"]
    assert grouped(manifest, r"v(\d)-")[1] == ["0", "1", "2"] * 2
    with pytest.raises(UserError, match=r"--data.group rom: neither a column \(path, label, speaker, room\)"):
        grouped(manifest, "rom")
    assert open_source(manifest).groups is None
    corpus = tmp_path / "libri"
    for speaker in ("11", "22"):
        for i in range(2):
            write(corpus / "train" / speaker / "1" / f"{speaker}-1-{i}.flac", tone(i, 0, 0.2))
        table = corpus / "train" / speaker / "1" / f"{speaker}-1.trans.txt"
        table.write_text(f"{speaker}-1-0 ONE\n{speaker}-1-1 TWO\n")
    assert grouped(corpus, "speaker")[1] == ["11", "11", "22", "22"]


def test_what_was_an_option_of_tables_is_one_of_all_data():
    assert upgraded({"data": {"table": {"group": "video", "label": "kind"}}}) == {
        "data": {"group": "video", "table": {"label": "kind"}}
    }


def test_a_pattern_groups_the_tiles_of_files(tmp_path):
    """What was asked for counts, not that each file is a group of its own tiles."""
    for name in ("ann_1", "ann_2", "bob_1"):
        Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(tmp_path / f"{name}.png")
    source = open_source(tmp_path, DataConfig(tile=20, group="^([a-z]+)_"))
    assert list(source.groups) == ["ann"] * 4 + ["bob"] * 2
    assert [str(Path(group).stem) for group in open_source(tmp_path, DataConfig(tile=20)).groups] == [
        "ann_1", "ann_1", "ann_2", "ann_2", "bob_1", "bob_1",
    ]  # fmt: skip
