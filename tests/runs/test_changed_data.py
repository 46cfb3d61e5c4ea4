"""Resuming on files that changed: one of many is noticed and named, a copy is no change, and a change can be meant."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image
from tiny import OPTIONS

from sound_files import RATE, tone, write
from twofold.commands.pretrain import pretrain
from twofold.data import content, open_source
from twofold.data.base import sample_indices
from twofold.errors import UserError
from twofold.options import merge
from twofold.runs.config import build
from twofold.runs.starting import check_same_data, start_run
from twofold.training.rundir import RunDirectory

COUNT, ONE = 200, 102
"""Many more files than are sampled, and one that is not."""


def picture(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, RunDirectory]:
    """A folder of many images, and a run that began with it."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(COUNT):
        picture(folder / f"{i:03d}.bmp", i)
    return folder, begin(folder, tmp_path / "run")


def begin(data: Path, out: Path) -> RunDirectory:
    Accelerator(cpu=True)
    run = RunDirectory(out)
    start_run(run, build({}), open_source(data), data, None)
    return run


def test_one_file_of_many(begun: tuple[Path, RunDirectory], capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = begun
    sampled = content.content_digest(open_source(folder))
    picture(folder / f"{ONE}.bmp", 999)
    source = open_source(folder)
    assert content.content_digest(source) == sampled, "it is none of the sample"
    with pytest.raises(UserError, match=rf"{ONE}.bmp of {COUNT} files; .*--training.changed_data allow goes on"):
        check_same_data(run, source)
    capsys.readouterr()
    check_same_data(run, source, "allow")
    assert f"{ONE}.bmp of {COUNT} files; they are taken as they are" in capsys.readouterr().out
    for name in ("007.bmp", "009.bmp"):
        picture(folder / name, 999)
    with pytest.raises(UserError, match=rf"007.bmp and 2 more of {COUNT} files"):
        check_same_data(run, open_source(folder))


def test_copied_and_touched_files_are_the_same(begun: tuple[Path, RunDirectory], tmp_path: Path) -> None:
    folder, run = begun
    copied = Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile))
    check_same_data(run, open_source(copied))
    os.utime(folder / f"{ONE}.bmp", ns=(1, 2**62))
    picture(folder / "000.bmp", 0)  # saved anew, the same
    check_same_data(run, open_source(folder))


def test_data_too_large_to_be_read_whole(
    tmp_path: Path, begun: tuple[Path, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "READ_WHOLE", 1000)
    folder, _ = begun
    run = begin(folder, tmp_path / "large")
    states = run.states()
    assert states is not None
    assert not states["digest"].any()
    check_same_data(run, open_source(folder))
    os.utime(folder / f"{ONE}.bmp", ns=(1, 2**62))
    with pytest.raises(UserError, match=rf"{ONE}.bmp of {COUNT} files \(they were written since; so many"):
        check_same_data(run, open_source(folder))
    copied = Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile))
    os.utime(copied / "000.bmp", ns=(1, 2**62))
    check_same_data(run, open_source(copied))
    picture(copied / "000.bmp", 999)  # the first is in the sample
    with pytest.raises(UserError, match="hold something else"):
        check_same_data(run, open_source(copied))


def test_other_numbers_of_files_are_never_allowed(begun: tuple[Path, RunDirectory]) -> None:
    folder, run = begun
    (folder / "003.bmp").unlink()
    with pytest.raises(UserError, match=f"{COUNT} images then, {COUNT - 1} now; give the same data"):
        check_same_data(run, open_source(folder), "allow")


def test_recordings_and_damage(tmp_path: Path) -> None:
    for i in range(80):
        write(tmp_path / "clips" / f"{i:02d}.wav", tone(i % 5, seed=i), RATE)
    run = begin(tmp_path / "clips", tmp_path / "run")
    check_same_data(run, open_source(tmp_path / "clips"))
    other = np.setdiff1d(np.arange(80), sample_indices(80, content.SAMPLED))[0]
    write(tmp_path / "clips" / f"{other:02d}.wav", tone(1, 2), RATE)
    with pytest.raises(UserError, match=rf"{other}.wav of 80 files"):
        check_same_data(run, open_source(tmp_path / "clips"))
    run.states_file.write_bytes(run.states_file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"files.npy is damaged"):
        check_same_data(run, open_source(tmp_path / "clips"))
    run.states_file.unlink()  # a run of an earlier version: names, lengths and a sample
    check_same_data(run, open_source(tmp_path / "clips"), "refuse")


def test_the_option_by_command(begun: tuple[Path, RunDirectory], tmp_path: Path) -> None:
    folder, _ = begun
    options: dict[str, Any] = merge(OPTIONS, {"epochs": 0.2, "encoder": {"channels": 3}})
    allow = merge(options, {"training": {"changed_data": "allow"}})
    with pytest.raises(UserError, match=r"--training.changed_data allow is for going on with a run"):
        pretrain(folder, tmp_path / "fresh", report=False, **allow)
    pretrain(folder, tmp_path / "out", report=False, **options)
    picture(folder / f"{ONE}.bmp", 999)
    with pytest.raises(UserError, match=rf"{ONE}.bmp of {COUNT} files"):
        pretrain(folder, tmp_path / "out", report=False, resume=True, **options)
    pretrain(folder, tmp_path / "out", report=False, resume=True, **allow)
