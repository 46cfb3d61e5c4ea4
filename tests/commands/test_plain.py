"""A plain installation, without any extra, takes a newcomer from a folder to predictions and neighbours."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from tiny import images

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = """
import sys

class Lacking:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {names!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Lacking(finder) for finder in sys.meta_path]
from twofold.cli import run
run()
"""
MODULES = {"faiss-cpu": "faiss", "pandas-stubs": "pandas"}


def lacking():
    """The modules that extras install and the core does not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    users = [extras[name] for name in extras if name not in ("dev", "docs", "bench")]
    names = {line.split(">")[0].split("=")[0] for lines in users for line in lines if not line.startswith("twofold")}
    return {MODULES.get(name, name) for name in names} | {"tensorboardX", "pyarrow", "pandas", "transformers"}


@pytest.mark.slow
def test_the_readme_s_journey_needs_no_extra(tmp_path):
    x, y = images(32)
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        path = tmp_path / "photos" / ("disc" if label else "bar") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    script = WITHOUT.format(names=lacking())

    def twofold(*words):
        done = subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, env=os.environ, capture_output=True,
                              text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "report: " in twofold("pretrain", "photos", "--out", "runs/photos", "--epochs", "1", "--lr", "0.001")
    twofold("evaluate", "runs/photos", "photos", "--keep-classifier")
    twofold("predict", "runs/photos", "photos", "--out", "predictions.csv")
    twofold("search", "runs/photos", "photos", "--out", "found")
    assert "pip install" in twofold("doctor")
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 33
