"""Checkpoints are whole or absent, whatever happens to the disk or the file."""

import pickle
import resource
import subprocess
import sys
import zipfile

import pytest
import torch

from twofold.errors import UserError
from twofold.training.checkpoint import (
    check_state_fits,
    latest_checkpoint,
    load_checkpoint,
    load_newest,
    save_checkpoint,
    set_aside,
)
from twofold.training.metrics import MetricsFile, parsed


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


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    path = save_checkpoint(tmp_path, 1, state(1) | {"values": [1.5, "text", {"a": 7}]}, keep=2)
    whole, right = path.read_bytes(), load_checkpoint(path)
    refused = 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << (place * 5 % 8)
        path.write_bytes(changed)
        try:
            found = load_checkpoint(path)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017  # either outcome is right, silence is not
            refused += 1
            continue
        assert torch.equal(found["weights"].pop("w"), right["weights"]["w"]), place
        assert {**found, "weights": {}} == {**right, "weights": {}}, place
    assert refused > 400  # every byte of the tensor at least


@pytest.mark.parametrize("step", [-1, 17, 1_000_000, "3", float("nan"), None, True, 2.0])
def test_a_step_that_the_run_does_not_have_is_refused(tmp_path, step):
    path = save_checkpoint(tmp_path, 1, {"step": step}, keep=1)
    with pytest.raises(UserError, match="a run of 16 steps does not have"):
        load_checkpoint(path, 16)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(1 << 40), "claims 1,099,511,627,776 elements and 1 are stored"),
        (torch.sparse_coo_tensor([[0]], [1.0], (1 << 40,)), "sparse_coo tensor"),
        (torch.zeros(4).as_strided((1 << 30, 1 << 30), (0, 0)), "elements and 4 are stored"),
    ],
)
def test_a_small_file_does_not_become_a_large_tensor(tmp_path, tensor, message):
    path = save_checkpoint(tmp_path, 1, {"step": 1, "w": [{"x": tensor}]}, keep=1)
    with pytest.raises(UserError, match=message):
        load_checkpoint(path)


def test_a_compressed_archive_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"step": 1, "w": torch.zeros(100_000)}, keep=1)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="is compressed, which PyTorch does not write"):
        load_checkpoint(path)


def test_the_one_before_is_taken_where_the_newest_is_damaged(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state(step), keep=3)
    newest = latest_checkpoint(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-100])
    taken = []
    path, problems = load_newest(tmp_path, lambda path: taken.append(load_checkpoint(path)["step"]), lambda here: here)
    assert (path.name, taken) == ("step-000000002.pt", [2])
    assert len(problems) == 1
    assert "step-000000003.pt" in problems[0]
    set_aside(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == path
    save_checkpoint(tmp_path, 4, state(4), keep=2)  # what is damaged does not push out what is not
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-000000002.pt", "step-000000003.pt.damaged", "step-000000004.pt",
    ]  # fmt: skip
    assert load_newest(tmp_path / "empty", taken.append, bool) == (None, [])


def test_where_no_checkpoint_can_be_used_nothing_begins_anew(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step), keep=3).write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the checkpoints .* can be used: .*000002.*000001"):
        load_newest(tmp_path, load_checkpoint, bool)


def test_a_state_of_another_optimiser_is_refused():
    def sgd(*shapes):
        parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.SGD(parameters, lr=1, momentum=0.9)
        optimizer.step()
        return optimizer

    check_state_fits(sgd(3, 4), sgd(3, 4).state_dict())
    with pytest.raises(ValueError, match=r"momentum_buffer of parameter 1 has the shape \(5,\) instead of \(4,\)"):
        check_state_fits(sgd(3, 4), sgd(3, 5).state_dict())
    with pytest.raises(ValueError, match="1 parameters, this run's 2"):
        check_state_fits(sgd(3, 4), sgd(3).state_dict())


def rows(*steps):
    return [{"step": step, "loss": step / 7} for step in steps]


def test_rows_after_the_checkpoint_are_dropped_and_written_again(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for row in rows(1, 2):
        metrics.append(row)
    mark = metrics.mark()
    metrics.append(rows(3)[0])
    with metrics.path.open("ab") as file:
        file.write(b'{"step": 4, "lo')  # a kill in the midst
    again = MetricsFile(metrics.path)
    assert again.restore(mark, 2) is None
    assert again.rows() == rows(1, 2)
    again.append(rows(3)[0])
    assert again.rows() == rows(1, 2, 3)
    assert MetricsFile(metrics.path).restore(again.mark(), 3) is None
    assert MetricsFile(tmp_path / "none").restore({"bytes": 0, "crc32": 0}, 0) is None


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda data: data[:50], rows(1)),  # shortened
        (lambda data: data.replace(b'"step": 2', b'"st\xffp": 2'), rows(1, 3, 4)),  # a line in the middle
        (lambda data: data.replace(b'"step": 3, "loss": 0.4', b'"step": 3, "loss": 0.5'), None),  # another number
        (lambda data: data[:0], []),
        (lambda data: data.replace(b"\n", b"", 1), rows(3, 4)),
        (lambda data: b"[1]\n" + data, rows(1, 2, 3, 4)),
    ],
)
def test_a_changed_file_of_metrics_is_told_and_its_rows_are_kept(tmp_path, damage, left):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for row in rows(1, 2, 3, 4):
        metrics.append(row)
    mark, whole = metrics.mark(), metrics.path.read_bytes()
    metrics.path.write_bytes(damage(whole))
    again = MetricsFile(metrics.path)
    assert "is not what it was when step 4 was saved" in again.restore(mark, 4)
    assert left is None or again.rows() == left
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == damage(whole)
    again.append(rows(5)[0])
    assert parsed(metrics.path.read_bytes())[1] == 0
    assert MetricsFile(metrics.path).restore(again.mark(), 5) is None
