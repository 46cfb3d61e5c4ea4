"""What it saves to keep freed memory: processor time, page faults and memory of encoder passes, with and without.

    python benchmarks/memory.py        # ResNet-18, 256 views of 32 px; about a minute

Each measurement is a process of its own, the two kinds in turn. Processor time, not time by the clock, is compared,
which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from statistics import median

from children import begin, output
from machine import describe_machine


def measure(keep: bool, passes: int, threads: int) -> dict[str, float]:
    """Processor milliseconds and page faults a pass, and the peak of memory in MB."""
    import torch

    from twofold.devices import keep_freed_memory
    from twofold.encoders import ResNet, build_encoder

    if keep and not keep_freed_memory():
        raise SystemExit("this system's allocator has no such switch")
    torch.set_num_threads(threads)
    encoder = build_encoder(ResNet.Config(name="resnet18"), 32).to(memory_format=torch.channels_last)
    views = torch.rand(256, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            h = encoder(views)
        h.float().sum().backward()

    step()
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    for _ in range(passes):
        step()
    after, busy = resource.getrusage(resource.RUSAGE_SELF), time.process_time() - begun
    return {
        "ms": 1e3 * busy / passes,
        "system_ms": 1e3 * (after.ru_stime - before.ru_stime) / passes,
        "faults": (after.ru_minflt - before.ru_minflt) / passes,
        "mb": after.ru_maxrss / 1024,
    }


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind")
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", choices=("keep", "return"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure == "keep", given.passes, given.threads)))
        return
    by_kind: dict[str, list[dict[str, float]]] = {"return": [], "keep": []}
    for _ in range(given.repeats):
        for kind, results in by_kind.items():
            command = [sys.executable, __file__, "--measure", kind, "--passes", str(given.passes)]
            results.append(json.loads(output([*command, "--threads", str(given.threads)])))
    print(f"{describe_machine()}; ResNet-18, 256 views of 32 px, bf16; n = {given.repeats} processes of {given.passes}")
    for kind, results in by_kind.items():
        ms = [result["ms"] for result in results]
        middle = {name: median(result[name] for result in results) for name in results[0]}
        print(
            f"{kind:>6}: {middle['ms']:6.0f} ms of processor time a pass [{min(ms):.0f}..{max(ms):.0f}], of which "
            f"{middle['system_ms']:4.0f} ms in the system; {middle['faults']:8.0f} page faults; {middle['mb']:5.0f} MB"
        )
    ratio = {
        name: median(r[name] for r in by_kind["keep"]) / median(r[name] for r in by_kind["return"])
        for name in ("ms", "mb")
    }
    print(f"keep / return: time x{ratio['ms']:.2f}, memory x{ratio['mb']:.2f}")


if __name__ == "__main__":
    begin(main)
