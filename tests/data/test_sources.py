"""Everything that can be opened, and what is said about what cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_images import broken_files
from torch.utils.data import Dataset, IterableDataset, Subset

from twofold.data import ArraySource, BadImage, DataConfig, FileSource, open_source, splits_of
from twofold.data.sources import encoded as encoded_module
from twofold.errors import UserError

rng = np.random.default_rng(0)


def make_tree(root: Path, names: list[str], mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> Path:
    """Small random PNG images; `size` is (width, height)."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return root


def test_plain_folder(tmp_path):
    make_tree(tmp_path, ["b.png", "a.png", "sub/c.png"])
    source = open_source(tmp_path)
    assert isinstance(source, FileSource)
    assert (len(source), source.labels, source.classes, source.channels) == (3, None, None, 3)
    assert [Path(source.path(i)).name for i in range(3)] == ["a.png", "b.png", "c.png"]
    np.testing.assert_array_equal(source.read(2), np.array(Image.open(tmp_path / "sub" / "c.png")))
    facts = source.facts()
    assert (facts.count, facts.median_height, facts.median_width, facts.channels) == (3, 6, 8, 3)
    assert (facts.equal_sized, facts.labelled, facts.classes) == (True, False, None)


def test_grey_folder_has_one_channel_unless_told(tmp_path):
    make_tree(tmp_path, ["a.png", "b.png"], mode="L")
    assert open_source(tmp_path).channels == 1
    assert open_source(tmp_path).read(0).shape == (6, 8, 1)
    assert open_source(tmp_path, DataConfig(channels=3)).read(0).shape == (6, 8, 3)
    make_tree(tmp_path, ["c.png"])
    assert open_source(tmp_path).channels == 3
    with pytest.raises(UserError, match=r"it has 1 band, and --data.channels or the encoder asks for 4"):
        open_source(tmp_path, DataConfig(channels=4))


def test_classes_are_first_folders_and_loose_images_have_none(tmp_path):
    make_tree(tmp_path, ["cat/x/1.png", "dog/1.png", "cat/2.png", "ant/1.png"])
    source = open_source(str(tmp_path))
    assert source.classes == ["ant", "cat", "dog"]
    assert source.labels.tolist() == [0, 1, 1, 2]
    assert source.facts().classes == 3
    make_tree(tmp_path, ["loose.png"])  # a partly labelled folder: what lies in no class has no label
    source = open_source(tmp_path)
    assert source.labels.tolist() == [0, 1, 1, 2, -1]
    assert source.classes == ["ant", "cat", "dog"]


def test_one_subfolder_is_no_class(tmp_path):
    make_tree(tmp_path, ["only/1.png", "only/2.png"])
    assert open_source(tmp_path).labels is None


@pytest.mark.parametrize("val_name", ["val", "Valid", "validation"])
def test_split_folders(tmp_path, val_name):
    make_tree(tmp_path, [f"train/{c}/{i}.png" for c in "abc" for i in range(3)])
    make_tree(tmp_path, [f"{val_name}/{c}/{i}.png" for c in "bc" for i in range(2)])
    assert splits_of(tmp_path).names == ("train", "val")
    assert splits_of(tmp_path).evaluation == ("train", "val")
    assert len(open_source(tmp_path)) == len(open_source(tmp_path, split="train")) == 9
    val = open_source(tmp_path, DataConfig(split="val"))
    assert val.labels.tolist() == [1, 1, 2, 2], "a label means the same class in every split"
    assert val.classes == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"--data.split test: no such folder in .*; it has train, val"):
        open_source(tmp_path, split="test")


def test_a_class_called_train_is_no_split(tmp_path):
    make_tree(tmp_path, ["train/1.png", "tram/1.png"])
    assert splits_of(tmp_path).names == ()
    assert open_source(tmp_path).classes == ["train", "tram"]
    with pytest.raises(UserError, match="it has no folders such as train"):
        open_source(tmp_path, split="train")


def test_bad_files_are_skipped_counted_and_listed(tmp_path):
    expected = {
        name for name in broken_files(tmp_path) if (tmp_path / name).is_file() or (tmp_path / name).is_symlink()
    }
    make_tree(tmp_path, [f"good{i}.png" for i in range(40)])
    source = open_source(tmp_path)
    by_header = {Path(path).name for path, _ in source.skipped}
    assert by_header == {"empty.png", "text.jpg", "bomb.png", "cut.png", "dangling.png"}
    for index in range(len(source)):
        try:
            source.read(index)
        except BadImage as error:
            source.skipped.add(error.path, error.reason)
    assert {Path(path).name for path, _ in source.skipped} == expected
    assert all(reason for _, reason in source.skipped)
    assert "and 2 more" in source.skipped.summary(len(expected) - 2)


def test_too_many_bad_files_are_an_error_that_lists_them(tmp_path):
    make_tree(tmp_path, [f"good{i}.png" for i in range(4)])
    for i in range(2):
        (tmp_path / f"bad{i}.jpg").write_text("no picture")
    with pytest.raises(
        UserError, match=r"(?s)2 of 6 images cannot be read and --data.max_skipped allows 1;.*bad0.jpg: not"
    ):
        open_source(tmp_path, DataConfig(max_skipped=1 / 6))
    assert len(open_source(tmp_path, DataConfig(max_skipped=2 / 6)).skipped) == 2
    with pytest.raises(UserError, match="allows 0"):
        open_source(tmp_path, DataConfig(max_skipped=0))


def test_labels_stay_with_their_images_when_files_are_skipped(tmp_path):
    make_tree(tmp_path, [f"{c}/{i}.png" for c in "abc" for i in range(4)])
    (tmp_path / "a" / "0.png").write_bytes(b"")
    source = open_source(tmp_path)
    assert [Path(source.path(i)).parent.name for i in range(len(source))] == [source.classes[k] for k in source.labels]


def test_large_folders_are_sampled_not_scanned(tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_module, "CHECKED", 10)
    make_tree(tmp_path, [f"{i:02}.png" for i in range(12)])
    (tmp_path / "05.png").write_bytes(b"")
    source = open_source(tmp_path)
    assert (len(source), len(source.skipped), source.sizes()) == (12, 0, None)
    assert source.facts().equal_sized is False, "not known, so not claimed"
    assert source.facts().median_width == 8
    assert source.size(0) == (6, 8)
    with pytest.raises(BadImage):
        source.size(5)


def test_no_images_and_one_image(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="no images found; it holds no files at all"):
        open_source(tmp_path)
    (tmp_path / "a" / "x.txt").touch()
    (tmp_path / "y.txt").touch()
    with pytest.raises(UserError, match=r"no images found; it holds 2 x .txt"):
        open_source(tmp_path)
    make_tree(tmp_path, ["one.png"])
    with pytest.raises(UserError, match="1 image; contrast needs at least 2"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="contrast needs at least 2"):
        open_source(np.zeros((1, 8, 8), np.uint8))


def test_fingerprint_follows_the_data_not_the_place(tmp_path):
    tree = make_tree(tmp_path / "one", ["a.png", "b.png"])
    first = open_source(tree).fingerprint()
    assert open_source(Path(shutil.copytree(tree, tmp_path / "two"))).fingerprint() == first
    with (tmp_path / "two" / "a.png").open("ab") as file:
        file.write(b"\0")
    assert open_source(tmp_path / "two").fingerprint() != first
    images = rng.integers(0, 256, (4, 8, 8), dtype=np.uint8)
    array = open_source(images).fingerprint()
    assert open_source(images.copy()).fingerprint() == array
    assert open_source((images, [0, 0, 1, 1])).fingerprint() != array
    images[3, 3, 3] ^= 1
    assert open_source(images).fingerprint() != array


def test_huge_arrays_are_hashed_in_part(monkeypatch):
    from twofold.data.sources import arrays

    monkeypatch.setattr(arrays, "_HASHED_WHOLE", 8 * 8 * 2)
    images = rng.integers(0, 256, (5, 8, 8), dtype=np.uint8)
    before = open_source(images).fingerprint()
    images[3] ^= 1
    assert open_source(images).fingerprint() != before  # every third image is read: 0 and 3


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("data", "labels"), ("X", "Y")])
def test_npz(tmp_path, keys):
    images, labels = rng.integers(0, 256, (6, 8, 7, 3), dtype=np.uint8), np.array([0, 1, 2, 0, 1, 2])
    np.savez(tmp_path / "d.npz", **dict(zip(keys, (images, labels), strict=True)))
    source = open_source(tmp_path / "d.npz")
    assert isinstance(source, ArraySource)
    assert source.images.dtype == torch.uint8
    assert source.images.shape == (6, 3, 8, 7)
    np.testing.assert_array_equal(source.read(4), images[4])
    assert source.labels.tolist() == labels.tolist()
    assert (source.facts().classes, source.facts().equal_sized, source.facts().median_height) == (3, True, 8)


@pytest.mark.parametrize("pattern", ["x_{}", "{}_images"])
def test_npz_with_splits(tmp_path, pattern):
    """Keras' mnist.npz and MedMNIST's files."""
    label = "y_{}" if pattern == "x_{}" else "{}_labels"
    arrays = {}
    for split, count in (("train", 6), ("test", 4)):
        arrays[pattern.format(split)] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[label.format(split)] = np.zeros((count, 1), np.uint8)
    path = tmp_path / "d.npz"
    np.savez(path, **arrays)
    assert splits_of(path) == type(splits_of(path))(("train", "test"), ("train", "test"))
    assert [len(open_source(path, split=s)) for s in (None, "train", "test")] == [6, 6, 4]
    assert open_source(path, split="test").labels.shape == (4,)
    with pytest.raises(UserError, match=r"--data.split val: .* has train, test"):
        open_source(path, split="val")


def test_npy_and_bad_array_files(tmp_path):
    images = rng.integers(0, 256, (6, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "d.npy", images)
    np.testing.assert_array_equal(open_source(tmp_path / "d.npy").images[:, 0].numpy(), images)
    with pytest.raises(UserError, match="holds one array"):
        open_source(tmp_path / "d.npy", split="train")
    np.save(tmp_path / "evil.npy", np.array([{}] * 3), allow_pickle=True)
    np.savez(tmp_path / "evil.npz", images=np.array([{}] * 3))
    np.savez(tmp_path / "other.npz", weights=images)
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:100])
    shutil.copy(tmp_path / "d.npy", tmp_path / "single.npz")
    for name, message in {
        "evil.npy": "not a plain .npy file",
        "evil.npz": "array images cannot be read",
        "other.npz": r"no array called images, x or data .*\['weights'\]",
        "text.npz": "not an .npz file",
        "empty.npy": "not a plain .npy file",
        "cut.npz": "not an .npz file",
        "single.npz": "single array",
    }.items():
        with pytest.raises(UserError, match=message):
            open_source(tmp_path / name)


def test_labels_of_arrays_are_checked():
    images = np.zeros((4, 8, 8), np.uint8)
    multi = open_source((images, np.eye(4, 3)))
    assert (multi.labels.shape, multi.facts().classes) == ((4, 3), 3)
    assert open_source((images, torch.tensor([[1], [0], [2], [2]]))).labels.tolist() == [1, 0, 2, 2]
    for labels, message in (
        ([0, 1], r"labels must be \[4\] or \[4, K\]"),
        ([0, 1, 2, -2], "got -2 to 2"),
        ([0.5, 1, 2, 3], "whole numbers"),
        (np.full((4, 3), 2), "0 and 1 with one column a class"),
    ):
        with pytest.raises(UserError, match=message):
            open_source((images, labels))


def test_names_that_do_not_exist_get_suggestions(tmp_path):
    make_tree(tmp_path, ["photos/1.png"])
    with pytest.raises(UserError, match=r"photo: no such file or folder\. Did you mean .*photos\?$"):
        open_source(tmp_path / "photo")
    with pytest.raises(UserError, match=r"cifr10: no such.*Did you mean cifar10.*one of cifar10, cifar100"):
        open_source("cifr10")
    with pytest.raises(UserError, match="give the folder that holds the images"):
        open_source(tmp_path / "photos" / "1.png")
    with pytest.raises(UserError, match="data given as int"):
        open_source(3)
    with pytest.raises(UserError, match="have no splits"):
        open_source(np.zeros((4, 8, 8), np.uint8), split="train")


@pytest.mark.parametrize("split", [None, "train"])
def test_a_mistyped_path_is_told_as_a_path_and_a_short_word_as_a_name(split, tmp_path, monkeypatch):
    """A file that is not there was answered with the names of all data sets."""
    make_tree(tmp_path, ["photos/cat/1.png"])
    (tmp_path / "speech.csv").touch()
    monkeypatch.chdir(tmp_path)

    def said(what):
        with pytest.raises(UserError) as error:
            open_source(what, split=split)
        return str(error.value)

    assert said("photos/cat/2.png") == "photos/cat/2.png: no such file or folder. Did you mean photos/cat/1.png?"
    assert said("speach.csv") == "speach.csv: no such file or folder. Did you mean speech.csv?"
    assert said("pohtos/cat/1.png") == (
        f"pohtos/cat/1.png: no such file or folder, because there is no folder {tmp_path / 'pohtos'}. "
        "Did you mean photos?"
    )
    for path in ("./nothing", "~/nothing-of-that-name", str(tmp_path / "nothing"), "nothing.zip"):
        assert said(path) == f"{path}: no such file or folder."
    assert "no data set of that name. Did you mean pets or photos? Give" in said("phtos")
    assert "no data set of that name. Did you mean cifar10" in said("cifar1")
    assert "fetch them first" in said("https://example.org/photos.zip")


class Pairs(Dataset):
    """A user's data set: PIL images of several modes, or tensors."""

    def __init__(self, images: list, labels: list | None, targets: bool = False) -> None:
        self.images, self.answers, self.read = images, labels, 0
        if targets:
            self.targets = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        self.read += 1
        return self.images[index] if self.answers is None else (self.images[index], self.answers[index])


def test_pytorch_data_sets():
    arrays = [rng.integers(0, 256, (5 + i, 8, 3), dtype=np.uint8) for i in range(4)]
    pil = [Image.fromarray(array) for array in arrays]
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    floats = [tensor / 255 for tensor in tensors]
    for images in (pil, tensors, floats):
        source = open_source(Pairs(images, [3, 1, 0, 2]))
        assert (len(source), source.channels, source.size(3)) == (4, 3, (8, 8))
        assert source.facts().labelled
        for index, array in enumerate(arrays):
            np.testing.assert_array_equal(source.read(index), array)
        assert source.labels.tolist() == [3, 1, 0, 2]
        assert open_source(Pairs(images, None)).labels is None
    grey = open_source(Pairs([image.convert("L") for image in pil], None))
    assert (grey.channels, grey.read(0).shape) == (1, (5, 8, 1))
    assert open_source(Pairs(tensors, None), DataConfig(channels=1)).read(0).shape == (5, 8, 1)
    assert len({open_source(Pairs(i, None)).fingerprint() for i in (pil, pil[::-1], pil[:3])}) == 3


def test_labels_of_pytorch_data_sets_come_without_reading_where_possible():
    data = Pairs([torch.zeros(1, 8, 8)] * 6, [0, 1, 2, 3, 4, 5], targets=True)
    source = open_source(Subset(Subset(data, [5, 3, 1, 0]), [0, 2, 3]))
    before = data.read
    assert source.labels.tolist() == [5, 1, 0]
    assert data.read == before


def test_pytorch_data_sets_that_cannot_be_used():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(UserError, match="IterableDataset"):
        open_source(Stream())
    with pytest.raises(UserError, match="items must be PIL images or tensors"):
        open_source(Pairs(["a", "b"], None))
    with pytest.raises(UserError, match="empty data set"):
        open_source(Pairs([], None))
    with pytest.raises(UserError, match=r"floats in \[0, 1\]; got .*scale them"):
        open_source(Pairs([torch.randn(3, 8, 8)] * 2, None))

    class Failing(Pairs):
        def __getitem__(self, index):
            if index == 1:
                raise OSError("disk on fire")
            return super().__getitem__(index)

    source = open_source(Failing([torch.zeros(3, 8, 8)] * 3, None))
    with pytest.raises(BadImage, match=r"Failing\[1\]: OSError: disk on fire"):
        source.read(1)
    assert source.facts().count == 3


STAMPS = Path("/usr/share/tuxpaint/stamps")


@pytest.mark.skipif(not STAMPS.is_dir(), reason=f"{STAMPS} is absent: apt install tuxpaint-stamps-default")
def test_real_stamps_from_debian():
    source = open_source(STAMPS)
    assert len(source) > 100
    assert len(source.skipped) == 0
    shapes = {source.read(index).shape for index in range(0, len(source), 7)}
    assert len(shapes) > 5
    assert all(shape[2] == 3 for shape in shapes)
