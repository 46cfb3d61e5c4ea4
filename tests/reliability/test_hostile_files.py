"""A small file never takes much memory or time, whatever it says of itself: each is read in a process that is measured.

`twofold` refuses it by a message for people, within a bound on both.
"""

import multiprocessing
import queue
import sys
from pathlib import Path

import pytest

pytest.importorskip("timm")
pytest.importorskip("pydicom")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))

from hostile_files import CASES, SLOW, read_measured

MEMORY, SECONDS = 600 * 2**20, 60
"""At most, beside what the process has when it begins; seconds allow for a busy machine that has to import timm."""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


@pytest.fixture(scope="module")
def context():
    """Processes that begin with the libraries loaded, as nothing is to be measured but the reading."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hostile_files", "timm", "soundfile", "pyarrow.parquet"])
    return context


def outcome_of(context, name, path, seconds):
    results = context.Queue()
    process = context.Process(target=read_measured, args=(name, path, results))
    process.start()
    try:
        return results.get(timeout=seconds)
    except queue.Empty:
        pytest.fail(f"{name}: still reading after {seconds} s")
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("name", CASES)
def test_a_file_takes_no_more_than_it_is(name, context, tmp_path):
    make, _, words = CASES[name]
    kind, message, seconds, memory = outcome_of(context, name, make(tmp_path), SECONDS)
    print(f"{name}: {seconds:.1f} s, {memory / 2**20:.0f} MB, {kind}: {message[:200]}")
    assert words in message
    # (the cache of features computes anew after a ValueError; a recording that is Silent is passed over and listed)
    assert kind in ("UserError", "NothingReadable", "ValueError", "Silent")
    assert memory < MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_large_file_takes_no_more_than_it_is(name, context, tmp_path):
    make, _, words = SLOW[name]
    kind, message, seconds, memory = outcome_of(context, name, make(tmp_path), 600)
    print(f"{name}: {seconds:.1f} s, {memory / 2**20:.0f} MB, {kind}: {message[:200]}")
    assert words in message
    assert kind in ("UserError", "NothingReadable", "Silent")
    assert memory < (5 * 2**30 if "PNG" in name else MEMORY)  # one image of that size in Pillow
