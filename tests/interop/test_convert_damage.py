"""What `convert` refuses: every kind of damage to a checkpoint, and sources that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_writer import GRAPH, VALUE, object_graph, write_bundle
from simclr_files import checkpoint_file, write_small

from twofold.commands.convert import convert
from twofold.errors import UserError


class TestDamage:
    """Every failure is a UserError that names what is wrong, and leaves no output behind."""

    def refuse(self, source: Path, match: str, out: Path | None = None) -> None:
        out = out or source.parent / "out"
        with pytest.raises(UserError, match=match):
            convert(source, out)
        assert not out.exists() or not any(out.iterdir())

    def test_cut_short_data(self, tmp_path: Path) -> None:
        write_small(tmp_path / "c")
        data = tmp_path / "c" / "model.ckpt-7.data-00000-of-00001"
        data.write_bytes(data.read_bytes()[:-100])
        self.refuse(tmp_path / "c", "cut short")

    def test_a_flipped_byte(self, tmp_path: Path) -> None:
        write_small(tmp_path / "c")
        data = tmp_path / "c" / "model.ckpt-7.data-00000-of-00001"
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
        self.refuse(tmp_path / "c", r"is damaged: the checksum of base_model/conv2d")

    def test_a_missing_data_file(self, tmp_path: Path) -> None:
        write_small(tmp_path / "c")
        (tmp_path / "c" / "model.ckpt-7.data-00000-of-00001").unlink()
        self.refuse(tmp_path / "c", "00000-of-00001 is missing")

    def test_a_cut_short_index(self, tmp_path: Path) -> None:
        write_small(tmp_path / "c")
        index = tmp_path / "c" / "model.ckpt-7.index"
        index.write_bytes(index.read_bytes()[:-10])
        self.refuse(tmp_path / "c", r"model.ckpt-7.index is no TensorFlow checkpoint or is damaged")

    @pytest.mark.parametrize(
        "name", ["base_model/batch_normalization_3/moving_mean", "head_supervised/linear_layer/dense/bias"]
    )
    def test_a_missing_variable(self, tmp_path: Path, name: str) -> None:
        tensors = write_small(tmp_path / "c")
        del tensors[name]
        write_bundle(tmp_path / "c" / "model.ckpt-7", tensors)
        self.refuse(tmp_path / "c", f"1 missing: {name}")

    def test_a_left_over_variable(self, tmp_path: Path) -> None:
        tensors = write_small(tmp_path / "c")
        write_bundle(tmp_path / "c" / "model.ckpt-7", {**tensors, "base_model/dense/kernel": np.ones((2, 2), "f4")})
        self.refuse(tmp_path / "c", "1 left over: base_model/dense/kernel")

    def test_a_wrong_shape(self, tmp_path: Path) -> None:
        tensors = write_small(tmp_path / "c")
        tensors["base_model/conv2d_2/kernel"] = np.ones((3, 3, 8, 9), "f4")
        write_bundle(tmp_path / "c" / "model.ckpt-7", tensors)
        self.refuse(tmp_path / "c", r"base_model/conv2d_2/kernel \[3, 3, 8, 9\] instead of \[3, 3, 8, 8\]")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite(self, tmp_path: Path, value: float) -> None:
        tensors = write_small(tmp_path / "c")
        tensors["base_model/batch_normalization_4/gamma"][3] = value
        write_bundle(tmp_path / "c" / "model.ckpt-7", tensors)
        self.refuse(tmp_path / "c", r"batch_normalization_4/gamma .* not finite")

    def test_another_network(self, tmp_path: Path) -> None:
        write_bundle(tmp_path / "c" / "model.ckpt", {"conv1/kernel": np.ones((3, 3, 3, 8), "f4")})
        self.refuse(tmp_path / "c", "no SimCLR checkpoint")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "c").mkdir()
        self.refuse(tmp_path / "c", "c is empty: it is no TensorFlow checkpoint")

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "photo.jpg").write_bytes(b"x")
        self.refuse(tmp_path / "c", "holds neither a .index file nor a saved_model.pb")

    def test_nothing_there(self, tmp_path: Path) -> None:
        self.refuse(tmp_path / "c", "there is nothing at .*/c;")

    def test_a_file_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "weights.h5").write_bytes(b"x")
        self.refuse(tmp_path / "weights.h5", "weights.h5 is no TensorFlow checkpoint")

    def test_a_data_file_without_its_index(self, tmp_path: Path) -> None:
        write_small(tmp_path / "c")
        (tmp_path / "c" / "model.ckpt-7.index").unlink()
        self.refuse(tmp_path / "c" / "model.ckpt-7.data-00000-of-00001", "there is no model.ckpt-7.index beside it")

    def test_several_checkpoints(self, tmp_path: Path) -> None:
        write_small(tmp_path / "c")
        write_small(tmp_path / "c", name="model.ckpt-8")
        self.refuse(tmp_path / "c", r"several checkpoints: model.ckpt-7, model.ckpt-8; name one")
        checkpoint_file(tmp_path / "c", "model.ckpt-9")
        self.refuse(tmp_path / "c", r"names model.ckpt-9, but there is no model.ckpt-9.index")
        (tmp_path / "c" / "checkpoint").write_text("nonsense")
        self.refuse(tmp_path / "c", "names no checkpoint")

    def test_several_saved_models(self, tmp_path: Path) -> None:
        for step in ("1", "2"):
            write_small(tmp_path / "c" / step / "variables", name="variables")
            (tmp_path / "c" / step / "saved_model.pb").write_bytes(b"")
        self.refuse(tmp_path / "c", "several SavedModels")

    def test_a_saved_model_without_variables(self, tmp_path: Path) -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "saved_model.pb").write_bytes(b"")
        self.refuse(tmp_path / "c", "comes without its variables")

    def test_a_damaged_graph(self, tmp_path: Path) -> None:
        write_small(tmp_path / "c")
        (tmp_path / "c" / "model.ckpt-7.meta").write_bytes(b"\x12\x7f")
        self.refuse(tmp_path / "c", r"model.ckpt-7.meta is damaged")

    def test_an_object_graph_that_does_not_fit(self, tmp_path: Path) -> None:
        tensors = {f"resnet/conv2d_{i}/kernel": np.ones((3, 3, 3, 8), "f4") for i in range(3)}
        keys = {name: f"list/{i}{VALUE}" for i, name in enumerate(tensors)}
        names = {key: name for name, key in keys.items()}
        values: dict[str, Any] = {keys[name]: value for name, value in tensors.items()}
        folder = tmp_path / "c"
        write_bundle(folder / "model.ckpt", {**values, GRAPH: object_graph({**names, f"gone{VALUE}": "resnet/x/beta"})})
        self.refuse(folder, r"lacks variables that its own graph of objects names: gone/.*resnet/x/beta")
        write_bundle(folder / "model.ckpt", {**values, GRAPH: object_graph(dict(list(names.items())[1:]))})
        self.refuse(folder, r"does not say the name of the variable at list/0")
        twice = dict.fromkeys(names, "resnet/conv2d/kernel")
        write_bundle(folder / "model.ckpt", {**values, GRAPH: object_graph(twice)})
        self.refuse(folder, r"list/0.* and list/1.* both are base_model/conv2d/kernel")
        write_bundle(folder / "model.ckpt", {**values, GRAPH: b"\x0a\x7f"})
        self.refuse(folder, "graph of objects in .* is damaged")

    def test_an_output_folder_that_is_not_empty(self, tmp_path: Path) -> None:
        write_small(tmp_path / "c")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match=r"--out .*out exists and is no empty folder"):
            convert(tmp_path / "c", tmp_path / "out")
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["notes.txt"]
