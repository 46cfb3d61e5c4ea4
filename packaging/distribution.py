"""Build the wheel and the source archive, and try each extra of the wheel alone in an environment of its own.

    python packaging/distribution.py build --home https://example.org/twofold    # dist/
    python packaging/distribution.py try [--pythons 3.11 3.12] [--extras none speech ...]

On a package index nothing lies beside the README, so its links and its picture are made to point to `--home`, which
also becomes the project's address. `try` makes a folder of small pictures (and recordings), installs the wheel of
dist/ with one extra and nothing else, and runs the README's journey and what the extra is for. A version of Python that
is not on the machine is said and left out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
RELATIVE = re.compile(r"(?P<image>!?)(?P<text>\[[^\]]*\])\((?!https?://|#|mailto:)(?P<target>[^)\s]+)\)")
UV = next(filter(None, (shutil.which("uv", path=str(Path(sys.executable).parent)), shutil.which("uv"))), "uv")

SMALL = "--epochs 1 --batch 8 --views.size 16 --encoder.name resnet10 --encoder.width 0.125 --training.device cpu"
JOURNEY = [
    f"twofold pretrain photos --out runs/photos {SMALL}",
    "twofold evaluate runs/photos photos --keep-classifier",
    "twofold predict runs/photos photos --out predictions.csv",
    "twofold search runs/photos photos --out found",
    "twofold embed runs/photos photos --out features.npz",
]
"""What a plain installation has to do."""

SPEECH = "--epochs 1 --batch 8 --encoder.speech.width 16 --encoder.speech.heads 2"
EXTRAS = {
    "av": [f"twofold pretrain films --out runs/films {SPEECH}"],
    "bands": [f"twofold pretrain scenes --out runs/scenes {SMALL}", "twofold search runs/scenes scenes --out twins"],
    "completion": ["twofold completion bash"],
    "demo": ["twofold demo --epochs 1 --out runs/demo"],
    "dicom": [f"twofold pretrain scans --out runs/scans {SMALL}", "twofold search runs/scans scans --out twins"],
    "docs": ["zensical build --clean --strict"],
    "explore": ["twofold explore runs/photos photos --out map.html"],
    "onnx": ["twofold export runs/photos --format onnx --out encoder.onnx"],
    "report": ["twofold report runs/photos"],
    "search": ["twofold embed runs/photos photos --out features.faiss"],
    "shards": ["twofold shard photos --out shards", f"twofold pretrain shards --out runs/shards {SMALL}"],
    "speech": [
        f"twofold pretrain speech --out runs/speech {SPEECH}",
        "twofold evaluate runs/speech speech --protocol knn",
    ],
    "timm": [
        f"twofold pretrain photos --out runs/timm {SMALL} --encoder.name timm:test_resnet.r160_in1k --encoder.width 1"
    ],
    "track": [f"twofold pretrain photos --out runs/tracked {SMALL} --training.track tensorboard"],
}
"""What each extra adds to the journey."""

MADE = {
    "av": """
import av, numpy as np
for i in range(16):
    place = pathlib.Path("films", f"{i}.m4a")
    place.parent.mkdir(exist_ok=True)
    with av.open(str(place), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        sound = (np.sin(np.arange(16000) * (0.1 + 0.01 * i)) / 2).astype("f4")[None]
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
""",
    "bands": """
import imagecodecs, tifffile
for i in range(16):
    place = pathlib.Path("scenes", f"{i}.tif")
    place.parent.mkdir(exist_ok=True)
    pixels = rng.integers(0, 256, (24, 24, 5), dtype=np.uint8)
    tifffile.imwrite(place, pixels, compression="lzw", photometric="minisblack", planarconfig="contig")
""",
    "dicom": """
import pydicom
from pydicom.data import get_testdata_file
for i in range(16):
    place = pathlib.Path("scans", f"{i}.dcm")
    place.parent.mkdir(exist_ok=True)
    scan = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    scan.PixelData = (scan.pixel_array + rng.integers(0, 99, scan.pixel_array.shape)).astype("<i2").tobytes()
    scan.save_as(place)
""",
    "docs": f"""
import shutil
for name in ("docs", "src", "mkdocs.yml", "README.md", "CHANGELOG.md"):
    part = pathlib.Path({str(ROOT)!r}, name)
    (shutil.copytree if part.is_dir() else shutil.copy)(part, name)
""",
}
"""What some of them read, written by the libraries that come with them."""


def absolute(text: str, home: str, version: str) -> str:
    """A page whose links to files beside it lead to the project's home at its tag, pictures to their data."""

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found["image"] else "blob"
        return f"{found['image']}{found['text']}({home}/{kind}/v{version}/{found['target']})"

    return RELATIVE.sub(link, text)


def build(home: str, out: Path) -> list[Path]:
    """Write wheel and source archive of the tracked files; their paths."""
    home = home.rstrip("/")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        (copy / "README.md").write_text(absolute((ROOT / "README.md").read_text(), home, version))
        project = copy / "pyproject.toml"
        urls = f'[project.urls]\nHomepage = "{home}"\nChanges = "{home}/blob/v{version}/CHANGELOG.md"\n\n'
        project.write_text(project.read_text().replace("[project.scripts]", urls + "[project.scripts]", 1))
        subprocess.run([UV, "build", "--quiet", "--out-dir", str(out.resolve()), str(copy)], check=True)
    return sorted(out.glob(f"twofold-{version}*"))


def make_data(folder: Path, python: Path, extra: str) -> None:
    """Pictures in two classes, and recordings in two, by what a plain installation has; then what the extra reads."""
    script = """
import pathlib, wave
import numpy as np
from PIL import Image
rng = np.random.default_rng(0)
for i in range(48):
    place = pathlib.Path("photos", "ab"[i % 2], f"{i}.png")
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 128 + 127 * (i % 2), (24, 30, 3), dtype=np.uint8)).save(place)
    place = pathlib.Path("speech", "ab"[i % 2], f"{i}.wav")
    place.parent.mkdir(parents=True, exist_ok=True)
    tone = np.sin(np.arange(8000) * (0.1 + 0.1 * (i % 2))) * 8000 + rng.normal(0, 500, 8000)
    with wave.open(str(place), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
        file.writeframes(tone.astype("<i2").tobytes())
"""
    subprocess.run([str(python), "-c", script + MADE.get(extra, "")], cwd=folder, check=True)


def attempt(python: str, extra: str, wheel: Path, folder: Path) -> str:
    """Install the wheel with one extra, run what it is for; what came of it, in a line."""
    environment = folder / "environment"
    subprocess.run([UV, "venv", "--quiet", "--python", python, str(environment)], check=True)
    name = f"twofold[{extra}] @ {wheel.resolve().as_uri()}" if extra != "none" else str(wheel.resolve())
    pins = ["-c", str(ROOT / "constraints.txt")]
    install = [UV, "pip", "install", "--quiet", "--python", str(environment), *pins, name]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"not installed: {done.stderr.strip()[-300:]}"
    make_data(folder, environment / "bin" / "python", extra)
    for words in JOURNEY + EXTRAS.get(extra, []):
        program, *rest = words.split()
        command = [str(environment / "bin" / program), *rest]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"FAILED with {done.returncode}: {words}: {done.stderr.strip()[-500:]}"
    return "works"


def try_all(pythons: list[str], extras: list[str], wheel: Path) -> bool:
    """Print a line for each Python and extra; whether all that were tried work."""
    fine = True
    for python in pythons:
        if subprocess.run([UV, "python", "find", python], capture_output=True, check=False).returncode:
            print(f"Python {python}: not on this machine, not tried", flush=True)
            continue
        for extra in extras:
            begin = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                outcome = attempt(python, extra, wheel, Path(folder))
            fine &= outcome == "works"
            print(f"Python {python}, extra {extra}: {outcome} ({time.monotonic() - begin:.0f} s)", flush=True)
    return fine


def main() -> None:
    """Read the options; build, or try what was built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build")
    builder.add_argument("--home", required=True, help="address of the project, to which the README's links will lead")
    builder.add_argument("--out", type=Path, default=ROOT / "dist")
    trier = commands.add_parser("try")
    trier.add_argument("--pythons", nargs="+", default=PYTHONS)
    trier.add_argument("--extras", nargs="+", default=["none", *EXTRAS], choices=["none", *EXTRAS])
    trier.add_argument("--dist", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    if options.command == "build":
        print("\n".join(map(str, build(options.home, options.out))))
        return
    wheels = sorted(options.dist.glob("twofold-*.whl"))
    if not wheels:
        sys.exit(f"no wheel in {options.dist}: build one first")
    sys.exit(0 if try_all(options.pythons, options.extras, wheels[-1]) else 1)


if __name__ == "__main__":
    main()
