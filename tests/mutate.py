"""`make mutate`: make each error of tests/seams.py; do the tests nearest to it that run its line notice?

    python tests/mutate.py [FILE_OR_FOLDER ...] [--only TEXT] [--list] [--again] [--quick SECONDS] [--budget SECONDS]

Files and folders are relative to src/twofold. What was found is kept as it is found, one line for each error with the
test that noticed it, and a later call goes on from there: errors that were noticed are not made again while their file
stays as it is, survivors are. Exits with 1 if one survives that `EQUIVALENT` does not explain.
"""

from __future__ import annotations

import argparse
import compileall
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mutate_tests import NOTICED, SURVIVED, TOO_LONG, Nearest
from mutations import ROOT
from seams import PACKAGE, SEAMS, files, key, nearest, sites

EQUIVALENT: dict[str, str] = {
    "methods/memory.py: SimCLRMemory.__init__: forgotten: normalize -> True": "a memory refuses false",
    "runs/build.py: build_training: forgotten: pin -> False": "page-locked memory is used by GPUs alone",
    "methods/moco.py: MoCo.follow: late: self.steps -> (self.steps + 1)": (
        "torch's average with a fixed share does not look at how many were averaged"
    ),
    "data/batches/workers.py: Decoder.__getitem__: swapped: task.index, [] -> [], task.index": (
        "its error is raised before anything else of the part is looked at"
    ),
    "evaluation/features.py: _batches: swapped: height, width -> width, height": (
        "whether an image is long, and in how many squares it is seen, is the same of one that is tall or wide"
    ),
    "runs/distill.py: _finish: swapped: before, tensor_digests(net) -> tensor_digests(net), before": (
        "what changed is named alike, and a run neither adds tensors to its teacher nor removes any"
    ),
    "evaluation/protocols/base.py: Protocol._measured: swapped: before, tensor_digests(own) -> tensor_digests(own), "
    "before": "what changed is named alike, and no protocol adds tensors to an encoder or removes any",
    "views/kernels.py: probe: swapped: False, True -> True, False": "it asks whether a GPU runs the kernels at all",
}
"""Errors that change nothing that can be seen, by `Seam.name`, and why."""


def known(kept: Path) -> dict[str, dict[str, str]]:
    """What was found before, by key."""
    lines = kept.read_text().splitlines() if kept.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("paths", nargs="*", help="files or folders of the package; default all seams")
    parser.add_argument("--only", default="", metavar="TEXT", help="errors whose name contains this")
    parser.add_argument("--list", action="store_true", help="name the errors, make none")
    parser.add_argument("--again", action="store_true", help="make noticed ones again, too")
    parser.add_argument("--kept", type=Path, default=ROOT / ".mutate.jsonl", help="where what is found is kept")
    parser.add_argument("--seconds", type=float, default=60, help="most that a test may take beyond 5 times its time")
    parser.add_argument("--quick", type=float, default=0, help="leave out tests that take longer than so many seconds")
    parser.add_argument("--budget", type=float, default=0, help="most seconds of tests not written for seams; 0: all")
    parser.add_argument("--tests", nargs="+", help="run these instead of the tests nearest to each file")
    return parser


def main() -> int:
    """Make the errors that are asked for; print each and a summary."""
    options = parser().parse_args()
    paths = tuple(options.paths) or SEAMS
    if missing := [path for path in paths if not (PACKAGE / path).exists()]:
        sys.exit(f"{missing[0]} is no file or folder of {PACKAGE.relative_to(ROOT)}")
    if not options.list:
        # What the package is built on, and nothing of the package itself, which each process imports from its copy.
        import accelerate  # noqa: F401
        import hypothesis  # noqa: F401
        import jsonargparse  # noqa: F401
        import PIL.Image  # noqa: F401
        import sklearn.linear_model  # noqa: F401
        import soundfile  # noqa: F401
        import torch
        import torch._dynamo
        import torchvision  # noqa: F401

        torch.set_num_threads(1)
        compileall.compile_dir(PACKAGE, quiet=2)  # each copy has it, then
    before, survivors, count = known(options.kept), list[str](), 0
    sets: dict[tuple[str, ...], Nearest] = {}
    noticed = Counter((row["name"].split(":")[0], row["test"]) for row in before.values() if row.get("test"))
    for file in files(paths):
        text, near = (PACKAGE / file).read_text(), tuple(options.tests or nearest(file))
        found = [seam for seam in sites(file) if options.only in seam.name]
        count += len(found)
        if options.list:
            print("\n".join(seam.name for seam in found))
            continue
        known_ones = {k for k, row in before.items() if row["outcome"] in (NOTICED, TOO_LONG) and not options.again}
        todo = [seam for seam in found if key(seam, text) not in known_ones and seam.name not in EQUIVALENT]
        if todo and near not in sets:
            for other in list(sets):
                sets.pop(other).close()
            lines = options.kept.with_suffix(".lines.json")
            sets[near] = Nearest(near, options.seconds, options.quick, options.budget, lines)
        for number, seam in enumerate(todo, 1):
            outcome, test = sets[near].judge(seam, noticed)
            noticed[file, test] += 1
            row = {"key": key(seam, text), "outcome": outcome, "name": seam.name, "test": test}
            with options.kept.open("a") as rows:
                rows.write(json.dumps(row) + "\n")
            print(f"{number}/{len(todo)} {outcome}: {seam.name}", flush=True)
            if outcome == SURVIVED:
                survivors.append(seam.name)
    print(f"{count} errors at the seams" + ("" if options.list else f"; {len(survivors)} survive"))
    print("\n".join(survivors) if survivors else "", end="\n" if survivors else "")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
