"""Small trees in the layout of each data set of the transfer study, every class in every part; colours tell classes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import scipy.io
import torchvision.datasets as tv
from PIL import Image

from twofold.data.sources.torchvision_sets import VOC_CLASSES

rng = np.random.default_rng(0)
CLASSES = {"cifar10": 10, "cifar100": 100, "voc2007": 20, "flowers": 102}  # fixed by torchvision or the layout


def colour(label: int, n: int = 1) -> np.ndarray:
    """[n, 3]: a colour for each class, a little shaken."""
    base = np.random.default_rng(label).uniform(30, 220, 3)
    return np.clip(base + rng.normal(0, 4, (n, 3)), 0, 255)


def image(path: Path, label: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.broadcast_to(colour(label)[0], (14, 10, 3)) + rng.normal(0, 4, (14, 10, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, "JPEG", quality=95)


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cifar(root: Path, name: str) -> None:
    kind = tv.CIFAR10 if name == "cifar10" else tv.CIFAR100
    key, classes = ("labels", 10) if name == "cifar10" else ("fine_labels", 100)
    folder = made(root / kind.base_folder)
    for file, _ in kind.train_list + kind.test_list:
        labels = [label for label in range(classes) for _ in range(1 if "test" in file or classes == 10 else 2)]
        data = np.stack([np.repeat(colour(label)[0], 1024) for label in labels]).astype(np.uint8)
        (folder / file).write_bytes(pickle.dumps({"data": data, key: labels}))
    names = [f"class{i}" for i in range(classes)]
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))


def cifar10(root: Path) -> None:
    cifar(root, "cifar10")


def cifar100(root: Path) -> None:
    cifar(root, "cifar100")


def food101(root: Path) -> None:
    base, foods = made(root / "food-101" / "meta").parent, ("apple_pie", "waffles", "tacos")
    for split, numbers in (("train", range(5)), ("test", range(5, 7))):
        listing = {food: [f"{food}/{n}" for n in numbers] for food in foods}
        (base / "meta" / f"{split}.json").write_text(json.dumps(listing))
        for label, food in enumerate(foods):
            for n in numbers:
                image(base / "images" / food / f"{n}.jpg", label)


def birdsnap(root: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for label, bird in enumerate(("jay", "owl", "tit")):
            for i in range(count):
                image(root / "birdsnap" / split / bird / f"{i}.jpg", label)


def sun397(root: Path) -> None:
    base, names = made(root / "SUN397"), ["/a/abbey", "/b/bar", "/o/oast/outdoor"]
    (base / "ClassName.txt").write_text("\n".join(names) + "\n")
    lists: dict[str, list[str]] = {"Training_01": [], "Testing_01": []}
    for label, name in enumerate(names):
        for i in range(6):
            image(base / f"{name[1:]}/sun_{i}.jpg", label)
            lists["Training_01" if i < 4 else "Testing_01"].append(f"{name}/sun_{i}.jpg")
    for file, lines in lists.items():
        (base / f"{file}.txt").write_text("\n".join(lines) + "\n")


def cars(root: Path) -> None:
    base = made(root / "stanford_cars" / "devkit").parent
    dtype = [(key, object) for key in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for split, listing, count in (
        ("train", "devkit/cars_train_annos.mat", 8),
        ("test", "cars_test_annos_withlabels.mat", 4),
    ):
        rows = [(1, 1, 5, 5, 1 + i % 2, f"{i:05}.jpg") for i in range(count)]
        scipy.io.savemat(base / listing, {"annotations": np.array([rows], dtype=dtype)})
        for row in rows:
            image(base / f"cars_{split}" / row[-1], row[4])
    names = np.array([["AM General", "Acura"]], dtype=object)
    scipy.io.savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})


def aircraft(root: Path) -> None:
    base, variants = made(root / "fgvc-aircraft-2013b" / "data"), ["707-320", "A300B4"]
    (base / "variants.txt").write_text("\n".join(variants) + "\n")
    (base / "families.txt").write_text("")
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for i in range(18):
        split, label = ("train", "val", "test")[i % 3], i // 3 % 2
        image(base / "images" / f"{i:07}.jpg", label)
        lines[split].append(f"{i:07} {variants[label]}")
    lines["trainval"] = lines["train"] + lines["val"]
    for split, rows in lines.items():
        (base / f"images_variant_{split}.txt").write_text("\n".join(rows) + "\n")


def voc2007(root: Path) -> None:
    base = made(root / "VOCdevkit" / "VOC2007")
    lists = made(base / "ImageSets" / "Main")
    made(base / "Annotations")
    names: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for place, split in enumerate(names):
        for label, kind in enumerate(VOC_CLASSES):
            name = f"{place * 100 + label:06}"
            image(base / "JPEGImages" / f"{name}.jpg", label)
            objects = "".join(f"<object><name>{k}</name></object>" for k in {kind, VOC_CLASSES[label // 2 * 2]})
            (base / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
            names[split].append(name)
    names["trainval"] = names["train"] + names["val"]
    for split, rows in names.items():
        (lists / f"{split}.txt").write_text("\n".join(rows) + "\n")


def dtd(root: Path) -> None:
    base, kinds = made(root / "dtd" / "dtd" / "labels").parent, ("banded", "dotted", "zigzagged")
    for split in ("train", "val", "test"):
        rows = [f"{kind}/{kind}_{split}{i}.jpg" for kind in kinds for i in range(2)]
        (base / "labels" / f"{split}1.txt").write_text("\n".join(rows) + "\n")
        for row in rows:
            image(base / "images" / row, kinds.index(row.split("/")[0]))


def pets(root: Path) -> None:
    base, kinds = made(root / "oxford-iiit-pet" / "annotations").parent, ("Abyssinian", "beagle")
    for split, count in (("trainval", 4), ("test", 2)):
        rows = [(f"{kind}_{len(split) * 10 + i}", label) for label, kind in enumerate(kinds) for i in range(count)]
        lines = [f"{name} {label + 1} 1 1" for name, label in rows]
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for name, label in rows:
            image(base / "images" / f"{name}.jpg", label)


def caltech101(root: Path) -> None:
    for label, name in enumerate(("accordion", "BACKGROUND_Google", "zebra")):
        for i in range(32):
            image(root / "caltech101" / "101_ObjectCategories" / name / f"image_{i:04}.jpg", label)


def flowers(root: Path) -> None:
    base = made(root / "flowers-102" / "jpg").parent
    labels = np.tile(np.arange(1, 103), 3)
    ids = np.arange(1, 307).reshape(3, 102)
    scipy.io.savemat(base / "imagelabels.mat", {"labels": labels[None]})
    scipy.io.savemat(base / "setid.mat", {"trnid": [ids[0]], "valid": [ids[1]], "tstid": [ids[2]]})
    for i, label in enumerate(labels, 1):
        image(base / "jpg" / f"image_{i:05}.jpg", int(label))


TREES = {
    tree.__name__: tree
    for tree in (food101, cifar10, cifar100, birdsnap, sun397, cars, aircraft, voc2007, dtd, pets, caltech101, flowers)
}
