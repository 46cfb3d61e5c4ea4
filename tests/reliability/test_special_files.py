"""What bears a file's name and is none is refused or passed over at once: opening a pipe would wait for ever.

Each reading happens in a thread that is given seconds; a reader that opened the pipe is freed by writing to it.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sound_files import tone, write
from twofold.commands.convert import convert
from twofold.commands.pretrain import pretrain
from twofold.data import DataConfig, open_source, splits_of
from twofold.data.content import file_states
from twofold.encoders.load import load
from twofold.errors import UserError
from twofold.evaluation.label_subsets import label_positions
from twofold.interop.backbones import read_backbone
from twofold.interop.bundle import Bundle
from twofold.interop.moco import read_moco
from twofold.recipe import read_layers
from twofold.runs.config import RunConfig
from twofold.runs.from_weights import read_start
from twofold.training.checkpoint import load_checkpoint
from twofold.training.metrics import MetricsFile
from twofold.training.rundir import RunDirectory


def within_seconds(read, pipe: Path | None = None, seconds: float = 20.0):
    """What a function gives or raises; fails where it is not done in time."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(read())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive() and pipe is not None:
        with contextlib.suppress(OSError):  # lets the reader go on, so that the process can end
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    assert not thread.is_alive(), "still waiting"
    return outcome[0]


def images(folder: Path, count: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def labelled() -> object:
    return open_source((np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1]))


READERS = {
    "config.yaml": lambda path: RunDirectory(path.parent).read(RunConfig),
    "options.yaml": lambda path: read_layers(None, path, {}),
    "encoder.safetensors": lambda path: load(path),
    "step-000000001.pt": load_checkpoint,
    "moco.pth.tar": read_moco,
    "model.index": lambda path: Bundle(path.with_suffix("")),
    "metrics.jsonl": lambda path: MetricsFile(path).rows(),
    "images.npz": open_source,
    "images.npy": open_source,
    "table.csv": open_source,
    "table.jsonl": open_source,
    "table.parquet": open_source,
    "list.txt": open_source,
    "labels": lambda path: label_positions(labelled(), str(path)),
    "weights.pth": lambda path: read_start(str(path), None, {}),
    "weights.safetensors": lambda path: read_start(str(path), None, {}),
    "backbone.pth": read_backbone,
    "backbone.safetensors": read_backbone,
    "files.npy": lambda path: RunDirectory(path.parent).states(),
    "saved.pth": lambda path: convert(path, path.with_name("out")),
}


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_by_name(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/null")  # (not /dev/zero: who reads that by mistake takes all memory)
    else:
        here = socket.socket(socket.AF_UNIX)
        monkeypatch.chdir(tmp_path)  # a socket's path has 108 characters at most
        here.bind(name)
    outcome = within_seconds(lambda: READERS[name](path), path if kind == "pipe" else None)
    assert isinstance(outcome, UserError), outcome
    assert str(path.with_suffix("") if name == "model.index" else path) in str(outcome)


@pytest.mark.parametrize("options", [{}, {"frames": "all"}, {"tile": 8}])
@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "dcm"])
def test_a_pipe_among_images_is_passed_over(extension: str, options: dict[str, object], tmp_path: Path) -> None:
    images(tmp_path)
    os.mkfifo(tmp_path / f"9.{extension}")
    source = within_seconds(
        lambda: open_source(tmp_path, DataConfig(max_skipped=0.5, **options)), tmp_path / f"9.{extension}"
    )
    assert len(source) == 4
    assert list(source.skipped) == [(str(tmp_path / f"9.{extension}"), "it is a pipe (FIFO), no file")]


def test_a_pipe_without_an_extension_is_no_dicom_file(tmp_path: Path) -> None:
    images(tmp_path)
    os.mkfifo(tmp_path / "IM0001")
    assert len(within_seconds(lambda: open_source(tmp_path), tmp_path / "IM0001")) == 4


def test_a_pipe_among_arrays_is_passed_over(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.zeros((8, 8, 5), np.uint8))
    os.mkfifo(tmp_path / "9.npy")
    source = within_seconds(lambda: open_source(tmp_path, DataConfig(max_skipped=0.5)), tmp_path / "9.npy")
    assert len(source) == 3
    assert list(source.skipped) == [(str(tmp_path / "9.npy"), "it is a pipe (FIFO), no file")]


def test_the_state_of_a_file_that_became_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    before = file_states([str(tmp_path / "a")])
    (tmp_path / "a").unlink()
    os.mkfifo(tmp_path / "a")
    now = within_seconds(lambda: file_states([str(tmp_path / "a")], before), tmp_path / "a")
    assert now["size"].tolist() == [-1]


@pytest.mark.parametrize("extension", ["wav", "m4a", "sph"])
def test_a_pipe_among_recordings_is_passed_over(extension: str, tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.wav", tone(i))
    os.mkfifo(tmp_path / f"9.{extension}")
    os.mkfifo(tmp_path / "0.txt")  # a text beside a recording counts where it is a file
    source = within_seconds(lambda: open_source(tmp_path, DataConfig(max_skipped=0.5)), tmp_path / f"9.{extension}")
    assert len(source) == 3
    assert "pipe (FIFO)" in source.skipped[0][1]


def test_a_pipe_among_archives_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.tar")
    outcome = within_seconds(lambda: open_source(tmp_path, DataConfig(max_skipped=1.0)), tmp_path / "0.tar")
    assert isinstance(outcome, UserError)


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    images(tmp_path / "there")
    (tmp_path / "here").mkdir()
    for path in (tmp_path / "there").iterdir():
        (tmp_path / "here" / path.name).symlink_to(path)
    assert len(open_source(tmp_path / "here")) == 4


@pytest.mark.parametrize(
    ("path", "words"),
    [("", "is empty"), ("  ", "is empty"), ("/", "is the root of all files"), ("/tmp/../", "is the root of all files"),
     ("x" * 5000, "is longer than a path can be"), ("a/" * 3000, "is longer than a path can be"),
     ("a\0b", "holds a zero byte")],
)  # fmt: skip
def test_words_that_are_no_path_of_data(path: str, words: str) -> None:
    for read in (open_source, splits_of):
        with pytest.raises(UserError, match=words) as error:
            read(path)
        assert len(str(error.value)) < 300
    with pytest.raises(UserError):
        load(path)
    if words != "is the root of all files":
        for read in (lambda: convert(path, "out"), lambda: read_layers(None, path, {})):
            with pytest.raises(UserError, match=words) as error:
                read()
            assert len(str(error.value)) < 400
    with pytest.raises(UserError):
        pretrain(labelled(), path if path != "/tmp/../" else "/", epochs=1)
    with pytest.raises(UserError):
        label_positions(labelled(), f"{path}x" if path.strip() == "" else path)


@pytest.fixture
def locked():
    """A folder that may not be read, while the process is a user who has to ask."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    images(base / "data")
    hidden = images(base / "data" / "hidden")
    hidden.chmod(0)
    mine = os.geteuid() == 0
    if mine:
        os.seteuid(65534)
    try:
        yield hidden
    finally:
        if mine:
            os.seteuid(0)
        hidden.chmod(0o755)
        shutil.rmtree(base)


def test_a_folder_that_may_not_be_read_is_told(locked: Path) -> None:
    for what in (locked, locked.parent):  # its images would be missing without a word
        with pytest.raises(UserError, match="Permission denied") as error:
            open_source(what)
        assert str(locked) in str(error.value)
    with pytest.raises(UserError):
        load(locked)


def test_a_tensor_is_no_path() -> None:
    with pytest.raises(UserError):
        open_source(torch.zeros(0, 3, 8, 8))


def test_a_folder_of_nothing_but_pipes_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(UserError, match=r"no image that can be read:\n.*0.png: it is a pipe"):
        open_source(tmp_path, DataConfig(max_skipped=1.0))
