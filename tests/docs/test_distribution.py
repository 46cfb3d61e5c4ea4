"""What a release is made of: one version, a README that works where nothing lies beside it, a site of all pages."""

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import twofold

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

spec = importlib.util.spec_from_file_location("distribution", ROOT / "packaging" / "distribution.py")
distribution = importlib.util.module_from_spec(spec)
spec.loader.exec_module(distribution)


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == twofold.__version__ == citation["version"]


def test_every_public_function_is_in_the_reference():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", page, re.MULTILINE)}
    assert set(dir(twofold)) - {"__version__", "losses", "views"} <= listed


def test_what_the_reference_lists_is_there():
    for name in re.findall(r"^::: (\S+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE):
        module, _, thing = name.rpartition(".")
        assert getattr(importlib.import_module(module), thing).__doc__


def test_every_page_is_on_the_site():
    class Loader(yaml.SafeLoader):
        """Takes the name of a Python function for a text."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda _loader, suffix, _node: suffix)
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)

    def pages(nav):
        for entry in nav:
            for value in entry.values():
                yield from pages(value) if isinstance(value, list) else [value]

    listed = list(pages(site["nav"]))
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_links_lead_to_the_project_where_nothing_lies_beside_the_readme():
    text = distribution.absolute((ROOT / "README.md").read_text(), "https://example.org/x", "1.2")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert all(target.startswith(("https://", "#")) for target in targets)
    assert "![" in text
    assert "](https://example.org/x/raw/v1.2/docs/demo.png)" in text
    assert "](https://example.org/x/blob/v1.2/docs/index.md)" in text
    assert distribution.absolute("[a](#b) [c](http://d)", "h", "1") == "[a](#b) [c](http://d)"


def test_every_extra_is_tried():
    assert set(PROJECT["optional-dependencies"]) - {"dev", "bench"} == set(distribution.EXTRAS)


@pytest.mark.slow
def test_the_wheel_holds_what_a_command_reads(tmp_path):
    """Needs a package index for the build's own environment."""
    build = [sys.executable, str(ROOT / "packaging" / "distribution.py"), "build", "--home", "https://example.org/x"]
    subprocess.run([*build, "--out", str(tmp_path)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    package = ROOT / "src" / "twofold"
    kept = {".py", ".yaml", ".html", ".css", ".js", ".gz", ".typed"}
    there = [path for path in package.rglob("*") if path.suffix in kept or path.name == "py.typed"]
    assert {str(path.relative_to(ROOT / "src")) for path in there} <= set(names)
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "https://example.org/x/raw/" in metadata
    assert "](docs/" not in metadata
    assert len(list(tmp_path.glob("*.tar.gz"))) == 1
