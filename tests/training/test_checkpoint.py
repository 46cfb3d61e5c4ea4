"""Checkpoints are whole or absent, whatever happens to the disk or the file."""

import pickle
import resource
import subprocess
import sys

import pytest
import torch

from twofold.errors import UserError
from twofold.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint


def state(step):
    return {"step": step, "weights": {"w": torch.randn(100, generator=torch.Generator().manual_seed(step))}}


def test_round_trip_and_only_the_last_are_kept(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-000000002.pt",
        "step-000000003.pt",
    ]
    loaded = load_checkpoint(latest_checkpoint(tmp_path))
    assert loaded["step"] == 3
    assert torch.equal(loaded["weights"]["w"], state(3)["weights"]["w"])


def test_a_full_disk_loses_nothing(tmp_path):
    save_checkpoint(tmp_path, 1, state(1), keep=2)
    script = (
        "import resource, torch, pathlib\n"
        "from twofold.training.checkpoint import save_checkpoint\n"
        "from twofold.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        f"    save_checkpoint(pathlib.Path({str(tmp_path)!r}), 2, {{'step': 2, 'w': torch.zeros(100_000)}}, keep=1)\n"
        "except UserError as error:\n"
        "    print('refused:', error)\n"
    )
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "refused:" in done.stdout, done.stderr
    assert "--resume" in done.stdout
    assert load_checkpoint(latest_checkpoint(tmp_path))["step"] == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000001.pt"]


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, state(1), keep=2)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="step-000000001"):
        load_checkpoint(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(UserError, match="no 'step'"):
        load_checkpoint(path)


class Hostile:
    """Pickles into a call, as a malicious file would."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_executed_from_a_checkpoint(tmp_path, capsys):
    path = tmp_path / "checkpoints" / "step-000000001.pt"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({"step": Hostile()}))
    with pytest.raises(UserError):
        load_checkpoint(path)
    torch.save({"step": Hostile()}, path)
    with pytest.raises(UserError):
        load_checkpoint(path)
    assert "unpickled" not in capsys.readouterr().out
