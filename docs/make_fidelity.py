"""Write docs/fidelity.md from a run of the tests: `python docs/make_fidelity.py [--mutations]`.

The tests record every comparison with the reference (tests/fidelity.py). With --mutations, each row is also shown to
fail: tests/mutations.py breaks its component in a copy of the package; what came of it is kept in docs/mutations.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fidelity import COMMITS, ROWS, Row
from golden_data import SLICES, whole_set
from mutations import ROOT, outcome

PAGE, SHOWN, DIFFERENCES = (ROOT / "docs" / name for name in ("fidelity.md", "mutations.json", "differences.md.in"))
Records = dict[str, list[dict[str, Any]]]

HEAD = """# Fidelity: what was compared with the reference, and how closely it agrees

Generated from a run of the tests by `python docs/make_fidelity.py --mutations`; do not edit. Each row compares a
component with arrays that the reference code itself gave, run at the commit that its links name. *Cases* counts
comparisons of arrays. *Deviation* is that of the comparison that came nearest to its tolerance, beside that tolerance;
both are relative to the largest expected value, or absolute where marked °. What a tolerance is made of stands at the
head of the test file.

| component | reference | golden file | cases | deviation | tolerance | test |
|---|---|---|---|---|---|---|
"""

MUTATED = """
## Does each row notice?

A small error was made in a copy of each component, and the row's tests were run on it. Every row fails, by its own
comparison:

| component | the error | in | what the row's test said |
|---|---|---|---|
"""


def main() -> None:
    """Run the tests, and the mutations if asked; write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", nargs="*", metavar="ROW", help="break each component (or those named) too")
    parser.add_argument("--records", type=Path, help="comparisons of an earlier run, made with TWOFOLD_FIDELITY=FILE")
    options = parser.parse_args()
    records = read(options.records) if options.records else run_tests()
    missing = [component for component in ROWS if component not in records]
    if missing:
        sys.exit(f"no test recorded anything for {', '.join(missing)}")
    far = [record for rows in records.values() for record in rows if not record["found"] <= record["tolerance"]]
    if far:
        sys.exit(f"beyond their tolerance, which no page may show: {far}")
    shown: dict[str, dict[str, str]] = json.loads(SHOWN.read_text()) if SHOWN.exists() else {}
    if options.mutations is not None:
        for component in options.mutations or ROWS:
            shown[component] = outcome(component, tests_of(records[component]))
            print(f"{component}: {shown[component]['said'] or 'NOT NOTICED'}", flush=True)
            SHOWN.write_text(json.dumps({name: shown[name] for name in ROWS if name in shown}, indent=1) + "\n")
    PAGE.write_text(page(records, shown))


def run_tests() -> Records:
    """Every comparison that the tests which use `fidelity` make, by component."""
    uses = re.compile(r"^from fidelity import (agree|record)", re.MULTILINE)
    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if uses.search(path.read_text()))
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "comparisons.jsonl"
        environment = os.environ | {"TWOFOLD_FIDELITY": str(lines), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "pytest", *files], cwd=ROOT, env=environment, check=True)
        return read(lines)


def read(lines: Path) -> Records:
    """What `fidelity.record` wrote, by component."""
    records: Records = defaultdict(list)
    for line in lines.read_text().splitlines():
        record = json.loads(line)
        records[record["component"]].append(record)
    return records


def tests_of(records: Iterable[dict[str, Any]]) -> list[str]:
    """The test functions that made these comparisons."""
    return sorted({record["test"] for record in records})


def page(records: Records, shown: dict[str, dict[str, str]]) -> str:
    """The whole page."""
    rows = "".join(table_row(name, row, records[name]) for name, row in ROWS.items())
    mutated = "".join(
        f"| {name} | {shown[name]['what']} | `{shown[name]['file']}` | {shown[name]['said'].replace('|', '/')} |\n"
        for name in ROWS
        if name in shown
    )
    differences = DIFFERENCES.read_text()
    for repository, commit in COMMITS.items():
        differences = differences.replace(f"({repository}:", f"(https://github.com/{repository}/blob/{commit}/")
    return HEAD + rows + names_only() + MUTATED + mutated + "\n" + differences


def table_row(name: str, row: Row, records: list[dict[str, Any]]) -> str:
    """One line of the first table."""
    nearest = max(records, key=lambda record: record["found"] / record["tolerance"])
    mark = "" if nearest["unit"] == "relative" else "°"
    commit = COMMITS[row.repository]
    links = ", ".join(
        f"[{file}](https://github.com/{row.repository}/blob/{commit}/{file}) `{commit}`" for file in row.files
    )
    golden = "<br>".join(f"`{file}`" for file in expand(row.golden))
    tests = "<br>".join(f"`{test}`" for test in sorted({test.split("::")[0] for test in tests_of(records)}))
    cases = sum(record["cases"] for record in records)
    numbers = f"{nearest['found']:.1e}{mark} | {nearest['tolerance']:.1e}{mark}"
    return f"| {name} | {links} | {golden} | {cases} | {numbers} | {tests} |\n"


def expand(patterns: Iterable[str]) -> list[str]:
    """The golden files that match, of the whole set where present."""
    folder = whole_set() or SLICES
    return sorted({str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern)})


def names_only() -> str:
    """The golden files beside the table: lists of names and shapes, and files of TensorFlow's own writing."""
    folders = {path.parent for base in {whole_set() or SLICES, SLICES} for path in base.glob("checkpoints/*/*")}
    names = sorted({f"`checkpoints/{folder.name}`" for folder in folders})
    return (
        f"\nOf the checkpoints ({', '.join(names)}) the tests of `tests/interop` also compare names and shapes, and "
        "read the files that TensorFlow wrote.\n"
    )


if __name__ == "__main__":
    main()
