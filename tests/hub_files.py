"""Saved Hugging Face data sets whose cells name files, as nobody's `save_to_disk` writes them: it would embed these."""

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from PIL import Image


def saved_with_paths(folder: Path, paths: Sequence[str]) -> Path:
    """A folder as `save_to_disk` writes it, with a cell for each path and no bytes."""
    import datasets

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    features = datasets.Features({"image": datasets.Image()})
    cells = [{"bytes": buffer.getvalue(), "path": None}] * len(paths)
    datasets.Dataset.from_dict({"image": cells}, features=features).save_to_disk(folder)
    (file,) = folder.glob("*.arrow")
    with pa.memory_map(str(file)) as source:
        schema = pa.ipc.open_stream(source).schema
    column = pa.array([{"bytes": None, "path": path} for path in paths], type=schema.field("image").type)
    file.unlink()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.table([column], schema=schema))
    return folder
