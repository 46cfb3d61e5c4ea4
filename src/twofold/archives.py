"""Files of tensors that PyTorch saved: read if every byte is as it was written; nothing in them is executed."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class DamagedFile(Exception):
    """A file whose bytes are not those that were written, or that asks for more memory than it has bytes."""


def read_tensors(path: str | Path) -> Any:
    """What `torch.save` wrote to a file: tensors, plain values and containers of both, on the CPU.

    PyTorch writes a checksum of each tensor and does not compare it on reading; here it is compared. (Files of
    PyTorch before 1.6 are no archives and hold no checksum: a bit that flipped in one cannot be noticed.)

    Args:
        path: the file.

    Raises:
        DamagedFile: checksums differ, the archive is compressed or incomplete, it holds anything but tensors and
            plain values, or a tensor claims more elements than are stored.
        OSError: the file cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        archive = file.read(4) == b"PK\3\4"  # as PyTorch tells them
    if archive:
        check_archive(path)
    try:
        result = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file fails in many ways inside zip and unpickling
        raise DamagedFile(str(error).split("\n")[0] or type(error).__name__) from error
    for name, tensor in tensors_within(result):
        check_extent(name, tensor)
    return result


def check_archive(path: str | Path) -> None:
    """Compare the checksum of each member of an archive that is not compressed, without holding it in memory.

    Raises:
        DamagedFile: naming the first member that differs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                    raise DamagedFile(f"its member {member.filename} is compressed, which PyTorch does not write")
            differing = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OverflowError) as error:
        raise DamagedFile(str(error) or type(error).__name__) from error
    if differing is not None:
        raise DamagedFile(f"the checksum of its member {differing} differs")


def check_extent(name: str, tensor: Tensor) -> None:
    """Raise DamagedFile if a tensor has more elements than its storage, as one repeated without end by its strides."""
    if tensor.layout is not torch.strided:
        raise DamagedFile(f"{name} is a {str(tensor.layout).removeprefix('torch.')} tensor, which no encoder has")
    held = tensor.untyped_storage().nbytes() // max(tensor.element_size(), 1)
    if math.prod(tensor.shape) > held:
        raise DamagedFile(f"{name} claims {math.prod(tensor.shape):,} elements and {held:,} are stored")


def tensors_within(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of every tensor in nested mappings, lists and tuples, in their order."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors_within(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for key, part in enumerate(value):
            yield from tensors_within(part, f"{name}.{key}" if name else str(key))


def spoiled(value: Any) -> list[str]:
    """Names of the tensors in nested containers that hold infinities or what is not a number.

    One fused maximum over all tensors of a device, and one transfer: for where it is asked before every save.
    """
    named = [(name, tensor) for name, tensor in tensors_within(value) if tensor.is_floating_point() and tensor.numel()]
    by_kind: dict[tuple[torch.device, torch.dtype], list[tuple[str, Tensor]]] = {}
    for name, tensor in named:
        by_kind.setdefault((tensor.device, tensor.dtype), []).append((name, tensor.detach()))
    result: list[str] = []
    for group in by_kind.values():
        largest = torch.stack(torch._foreach_norm([tensor for _, tensor in group], math.inf))
        result += [group[i][0] for i in torch.nonzero(~torch.isfinite(largest)).flatten().tolist()]
    return result
