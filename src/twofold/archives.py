"""Files of tensors that PyTorch saved: read if every byte is as it was written; nothing in them is executed."""

from __future__ import annotations

import math
import pickletools
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from twofold.reading import regular


class DamagedFile(Exception):
    """A file whose bytes are not those that were written, or that asks for more memory than it has bytes."""


def read_tensors(path: str | Path, also: Sequence[type] = ()) -> Any:
    """What `torch.save` wrote to a file: tensors, plain values and containers of both, on the CPU.

    PyTorch writes a checksum of each tensor and does not compare it on reading; here it is compared. (Files of
    PyTorch before 1.6 are no archives and hold no checksum: a bit that flipped in one cannot be noticed.)

    Args:
        path: the file.
        also: classes of which objects are made as well, which run no code of their own when they are.

    Raises:
        DamagedFile: checksums differ, the archive is compressed or incomplete, it holds anything but tensors and
            plain values, or a tensor claims more elements than are stored.
        OSError: the file cannot be read.
    """
    path, others = Path(path), frozenset(f"{each.__module__} {each.__qualname__}" for each in also)
    regular(path)
    with path.open("rb") as file:
        archive = file.read(4) == b"PK\3\4"  # as PyTorch tells them
        if not archive:
            file.seek(0)
            check_program(file, _LEGACY_PARTS, others)
    if archive:
        check_archive(path, others)
    try:
        with torch.serialization.safe_globals(list(also)):
            result = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file fails in many ways inside zip and unpickling
        raise DamagedFile(str(error).split("\n")[0] or type(error).__name__) from error
    for name, tensor in tensors_within(result):
        check_extent(name, tensor)
    return result


def check_archive(path: str | Path, also: Collection[str] = ()) -> None:
    """Compare the checksum of each member of an archive that is not compressed, without holding it in memory.

    Args:
        path: the archive.
        also: what its program may call beside what makes tensors; see `check_program`.

    Raises:
        DamagedFile: naming the first member that differs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                    raise DamagedFile(f"its member {member.filename} is compressed, which PyTorch does not write")
            differing = archive.testzip()
            for member in archive.infolist():
                if differing is None and member.filename.endswith("/data.pkl"):
                    with archive.open(member) as file:
                        check_program(file, also=also)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OverflowError) as error:
        raise DamagedFile(str(error) or type(error).__name__) from error
    if differing is not None:
        raise DamagedFile(f"the checksum of its member {differing} differs")


_MADE = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|sparse_tensor|parameter|parameter_with_state)"
    r"|torch (\w+Storage|Size|device|(b?float|int|uint|complex|q?u?int)\d+\w*|bool|half|double|long)"
    r"|torch\.storage (Typed|Untyped)Storage|torch\.serialization _get_layout"
)
"""What tensors and plain values are put together from. PyTorch itself lets a file call more, such as
``torch.FloatTensor(10**10)`` and ``bytearray(10**10)``, which take that memory."""
_LEGACY_PARTS = 5
"""Pickles in a file of PyTorch before 1.6: two numbers, facts of the system, the values, the names of the storages."""


def check_program(file: IO[bytes], parts: int = 1, also: Collection[str] = ()) -> None:
    """Look through pickles, without running them, for calls of anything but what makes tensors and plain values.

    Args:
        file: at the first pickle; stays after the last.
        parts: how many there are.
        also: what may be called as well, as pickles write it: the module and the name with a space between.

    Raises:
        DamagedFile: another call, or no pickle.
    """
    try:
        for _ in range(parts):
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "GLOBAL" and not (_MADE.fullmatch(str(argument)) or argument in also):
                    called = str(argument).replace(" ", ".")
                    raise DamagedFile(f"it calls {called}, which no tensors or plain values need")
                if operation.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                    raise DamagedFile("it makes objects, and no tensors or plain values alone")
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise DamagedFile(f"it holds no values that PyTorch saved ({error})") from error


def check_extent(name: str, tensor: Tensor) -> None:
    """Raise DamagedFile if a tensor has more elements than its storage, as one repeated without end by its strides."""
    if tensor.layout is not torch.strided:
        raise DamagedFile(f"{name} is a {str(tensor.layout).removeprefix('torch.')} tensor, which no encoder has")
    held = tensor.untyped_storage().nbytes() // max(tensor.element_size(), 1)
    if math.prod(tensor.shape) > held:
        raise DamagedFile(f"{name} claims {math.prod(tensor.shape):,} elements and {held:,} are stored")


def tensors_within(value: Any) -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of every tensor in nested mappings, lists and tuples, in their order.

    What stands in several places is gone through in the first: a file of a kilobyte can repeat itself 2**40 times.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        name, part = waiting.pop()
        if isinstance(part, Tensor):
            yield name, part
        elif isinstance(part, (Mapping, list, tuple)) and id(part) not in seen:
            seen.add(id(part))
            inner = part.items() if isinstance(part, Mapping) else enumerate(part)
            waiting += [(f"{name}.{key}" if name else str(key), each) for key, each in inner][::-1]


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
