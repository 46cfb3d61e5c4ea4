"""NT-Xent in blocks against the dense form: time and memory of value and gradient, side by side.

    python benchmarks/loss.py                     # 2N = 1024, 4096, 16384; about 4 minutes on one core
    python benchmarks/loss.py --rows 65536 --only blocks --repeats 1

Each measurement is a process of its own, the two forms in turn, after a small warm-up. Memory is the peak of the
resident set while the loss and its gradient are computed, above what was resident before (projections included).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from children import begin, output

FORMS = ("dense", "blocks")


def resident(field: str) -> float:
    """MB of VmRSS (now) or VmHWM (peak since the last reset)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def measure(form: str, rows: int, dim: int, threads: int) -> dict[str, float]:
    """Seconds and extra MB of one value and gradient."""
    import torch

    from twofold.losses import nt_xent

    torch.set_num_threads(threads)

    def run(a: torch.Tensor, b: torch.Tensor) -> None:
        nt_xent(a, b, 0.1, implementation=form).backward()  # type: ignore[arg-type]

    run(*torch.randn(2, 64, dim).requires_grad_())  # libraries set themselves up
    a, b = (torch.randn(rows // 2, dim).requires_grad_() for _ in range(2))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    wall, busy = time.perf_counter(), time.process_time()
    run(a, b)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    return {"seconds": wall, "cpu_seconds": busy, "mb": resident("VmHWM") - before}


def in_process(form: str, rows: int, dim: int, threads: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--measure", form, "--rows", str(rows), "--dim", str(dim)]
    return json.loads(output([*command, "--threads", str(threads)], {"OMP_NUM_THREADS": str(threads)}))


def compare(rows: int, dim: int, threads: int, repeats: int, forms: tuple[str, ...]) -> dict[str, Any]:
    """Medians and ranges of each form, and the ratios of medians."""
    runs: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    for _ in range(repeats):
        for form in forms:
            runs[form].append(in_process(form, rows, dim, threads))
    result: dict[str, Any] = {"rows": rows}
    for form in forms:
        for name in ("seconds", "cpu_seconds", "mb"):
            values = [run[name] for run in runs[form]]
            result[f"{form}_{name}"] = {"median": median(values), "min": min(values), "max": max(values)}
    if len(forms) == 2:
        for name in ("seconds", "cpu_seconds", "mb"):
            result[f"{name}_ratio"] = result[f"blocks_{name}"]["median"] / result[f"dense_{name}"]["median"]
    return result


def machine(threads: int) -> str:
    """One line on what this ran on."""
    import torch

    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {threads} thread(s); "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def show(result: dict[str, Any], forms: tuple[str, ...]) -> str:
    """One line of the table."""
    cells = [f"{result['rows']:>7,}"]
    for form in forms:
        s, mb = result[f"{form}_seconds"], result[f"{form}_mb"]
        cells.append(f"{s['median']:8.3f} s [{s['min']:.3f}..{s['max']:.3f}] {mb['median']:8.1f} MB")
    if len(forms) == 2:
        cells.append(f"time x{result['seconds_ratio']:.2f}, cpu x{result['cpu_seconds_ratio']:.2f}")
        cells.append(f"memory x{result['mb_ratio']:.3f}")
    return "  ".join(cells)


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 16384], help="2N, the views compared")
    parser.add_argument("--dim", type=int, default=128, help="length of a projection")
    parser.add_argument("--repeats", type=int, default=5, help="processes for each form and size")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--only", choices=FORMS, help="one form alone, for sizes at which the other does not fit")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--measure", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.rows[0], options.dim, options.threads)))
        return
    forms = (options.only,) if options.only else FORMS
    print(f"{machine(options.threads)}; d = {options.dim}, float32, median [min..max] of n = {options.repeats}")
    print("     2N  " + "  ".join(f"{form:<38}" for form in forms) + ("blocks / dense" if len(forms) == 2 else ""))
    results = []
    for rows in options.rows:
        results.append(compare(rows, options.dim, options.threads, options.repeats, forms))
        print(show(results[-1], forms), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(options.threads), "results": results}, indent=1))


if __name__ == "__main__":
    begin(main)
