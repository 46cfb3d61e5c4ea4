"""Encoder files: weights in safetensors, and everything needed to rebuild the encoder as JSON in the header.

Nothing in such a file is executed; it can be read from anyone. SHA-256 sums of the header and of the whole, which stand
in the file, are compared on reading (safetensors has none of its own).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from twofold.archives import spoiled
from twofold.devices import available_memory
from twofold.encoders.base import MISFIT, Encoder, build_encoder_from_spec
from twofold.encoders.budget import WithinFile
from twofold.encoders.resnet import ResNet
from twofold.errors import UserError
from twofold.heads import Classifier, HeadConfig, ProjectionHead
from twofold.reading import NotRegular, regular
from twofold.versions import package_version

FORMAT, WITH_PARTS = 2, 3
"""Since 2 with sums; files of format 1 have none and are read without. 3 is 2 with parts beside the networks."""
Module = TypeVar("Module", bound=nn.Module)
_KEY, _HEADER_SUM, _SUM = "twofold", "header_sha256", "sha256"


@dataclass(frozen=True)
class FilePart:
    """What an encoder file holds beside its networks: facts in JSON's types, and tensors by name."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


def save_encoder(
    path: str | Path,
    encoder: Encoder,
    head: ProjectionHead | None = None,
    extra: Mapping[str, Any] | None = None,
    classifier: Classifier | None = None,
    classifier_layer: int | None = 0,
    parts: Mapping[str, FilePart] | None = None,
) -> None:
    """Write an encoder, with its projection head and classifier if given, to one file, whole or not at all.

    Args:
        path: the file; its folder must exist. A file there is replaced.
        encoder: on any device, not wrapped (unwrap DistributedDataParallel first).
        head: kept for fine-tuning from a middle layer.
        extra: facts about the run in JSON's types, for `read_header`.
        classifier: linear classifier of what the encoder or the head gives.
        classifier_layer: the output of the head that it reads, 0 for the encoder's features; None: unknown.
        parts: what else the file holds, for `load_part`; names without a dot.

    Raises:
        UserError: the file cannot be written, or `extra` is not JSON.
    """
    path = Path(path)
    header = {
        "format": WITH_PARTS if parts else FORMAT,
        "spec": encoder.spec(),
        "head": None if head is None else {"in_dim": head.in_dim, **asdict(head.config)},
        "classifier": None
        if classifier is None
        else {"in_dim": classifier.in_features, "classes": classifier.out_features, "layer": classifier_layer},
        "versions": {name: package_version(name) for name in ("twofold", "torch")},
        "extra": dict(extra or {}),
    }
    tensors = _prefixed("encoder", encoder) | _prefixed("head", head) | _prefixed("classifier", classifier)
    for name, part in (parts or {}).items():
        tensors |= {f"{name}.{key}": _whole(tensor) for key, tensor in part.tensors.items()}
    if parts:  # files without any stay what they were
        header["parts"] = {name: part.facts for name, part in parts.items()}
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: `extra` must hold JSON's types only: {error}") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata=sealed(text, tensors))
        with temporary.open("rb+") as file:
            _put_in_order(file)
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # safetensors writes for the owner alone
        temporary.replace(path)  # atomic: a reader sees the old file or the new one
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {path}: {error}. What was there before is whole; make room, then do it again (a run goes on "
            "with --resume)"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is gone after success, and was never there without its folder
            temporary.unlink()


def load_encoder(path: str | Path, module: nn.Module | None = None) -> Encoder:
    """Rebuild the encoder of a file, with its weights, in inference mode on the CPU.

    Args:
        path: what `save_encoder` wrote.
        module: the user's own module where the encoder was made by `adapt`; an encoder of the package is not needed.

    Raises:
        UserError: no such file, no encoder file, or one whose tensors are not exactly those of its encoder.
    """
    header, tensors = _read(path)
    if isinstance(module, Encoder) and header["spec"].get("kind") != "custom":
        module = None  # an encoder of the package that was trained on: its specification is enough
    if header["spec"].get("pretrained"):
        raise UserError(f"{path}: its header asks for weights of a hub, and an encoder file brings its own: refused")
    try:
        with WithinFile(_part("encoder", tensors)):
            if header["spec"].get("kind") == ResNet.kind:
                with torch.device("meta"):  # the weights are replaced at once: no need to draw them
                    encoder = build_encoder_from_spec(header["spec"], module)
            else:
                encoder = build_encoder_from_spec(header["spec"], module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return _fill(path, encoder, "encoder", tensors)


def load_head(path: str | Path) -> ProjectionHead | None:
    """The projection head that a file holds, in inference mode on the CPU; None if it holds none.

    Raises:
        UserError: as `load_encoder`.
    """
    header, tensors = _read(path)
    if header["head"] is None:
        return None
    config = dict(header["head"])
    try:
        with WithinFile(_part("head", tensors)):
            head = ProjectionHead(config.pop("in_dim"), HeadConfig(**config))
    except (*MISFIT, UserError) as error:
        raise UserError(f"{path}: its head {header['head']} cannot be built: {error}") from error
    return _fill(path, head, "head", tensors)


def load_classifier(path: str | Path) -> tuple[Classifier, int | None] | None:
    """The classifier that a file holds, and the output of the head that it reads (0: the features; None: unknown).

    Returns:
        The classifier in inference mode on the CPU, and the layer; None if the file holds none.

    Raises:
        UserError: as `load_encoder`.
    """
    header, tensors = _read(path)
    if header["classifier"] is None:
        return None
    try:
        facts = header["classifier"]
        with WithinFile(_part("classifier", tensors)):
            classifier, layer = Classifier(facts["in_dim"], facts["classes"]), facts["layer"]
    except (*MISFIT, UserError) as error:
        raise UserError(f"{path}: its classifier {header['classifier']} cannot be built: {error}") from error
    return _fill(path, classifier, "classifier", tensors), layer


def load_part(path: str | Path, name: str) -> FilePart | None:
    """What a file holds under this name beside its networks (see `save_encoder`), on the CPU; None without it.

    Raises:
        UserError: no encoder file, or one that is damaged.
    """
    header, tensors = _read(path)
    facts, held = header["parts"].get(name), _part(name, tensors)
    if facts is None:
        return None
    if wrong := spoiled(held):
        raise UserError(
            f"{path}: its {name} holds what is infinite or not a number ({', '.join(wrong)}): it is damaged"
        )
    return FilePart(facts, held)


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of an encoder file: "format", "spec", "head", "classifier", "versions", "extra", "parts".

    Raises:
        UserError: no such file, or no encoder file.
    """
    return _read(path, weights=False)[0]


def _prefixed(prefix: str, module: nn.Module | None) -> dict[str, Tensor]:
    if module is None:
        return {}
    return {f"{prefix}.{name}": _whole(tensor) for name, tensor in module.state_dict().items()}


def _whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU: safetensors wants contiguous tensors that share no memory."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def sealed(header: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A header as it stands in a file, with its SHA-256 sum, and that of it and all names, types, shapes and bytes."""
    result = hashlib.sha256(header.encode())
    alone = result.hexdigest()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        result.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        result.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return {_KEY: header, _HEADER_SUM: alone, _SUM: result.hexdigest()}


def _put_in_order(file: BinaryIO) -> None:
    """Sort the facts of a safetensors file in place: the library writes them in another order each time, and encoders
    that are equal are to be equal files."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) <= size:  # it is as long, or was padded with spaces
        file.seek(8)
        file.write(text.ljust(size))
        file.flush()


def _umask() -> int:
    """The permissions that the process takes off new files; asking means setting it."""
    result = os.umask(0o077)
    os.umask(result)
    return result


def _read(path: str | Path, weights: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = Path(path)
    try:
        size = regular(path).size
    except NotRegular as error:
        raise UserError(f"{path} is no encoder file: {error}") from error
    except OSError as error:
        raise UserError(
            f"{path}: no such file ({error.strerror}); an encoder file is written by save_encoder and "
            "`twofold pretrain`"
        ) from error
    if weights and size > available_memory():
        raise UserError(f"{path} has {size / 2**30:.0f} GiB, and {available_memory() / 2**30:.0f} GiB are free")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if weights else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if path.suffix != ".safetensors" and _is_pickle(path):
            raise UserError(f"{path} is a file of PyTorch's and no encoder of twofold; {_convert(path)}") from error
        raise UserError(f"{path} is no whole safetensors file: {error}; write it again") from error
    if _KEY not in metadata:
        raise UserError(
            f"{path} holds tensors but no encoder of twofold: its header says nothing of how to build one; "
            f"{_convert(path)}"
        )
    try:
        header = json.loads(metadata[_KEY])
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits are ValueErrors
        raise UserError(f"{path}: its header is no JSON: {error}") from error
    if not _is_complete(header):
        raise UserError(f"{path}: its header is malformed: {metadata[_KEY][:200]}")
    if header["format"] not in (1, FORMAT, WITH_PARTS):
        raise UserError(
            f"{path} has format {header['format']}, this version reads 1 to {WITH_PARTS}; it was written by twofold "
            f"{header['versions'].get('twofold')}: install that version or a later one"
        )
    if header["format"] > 1:
        right = sealed(metadata[_KEY], tensors)
        if any(metadata.get(key) != right[key] for key in ((_HEADER_SUM, _SUM) if weights else (_HEADER_SUM,))):
            raise UserError(
                f"{path} is damaged: its bytes are not those that were written (SHA-256 sums differ). Copy it again, "
                "or make it anew: `twofold pretrain ... --resume` writes the encoder of a run's last checkpoint"
            )
    header.setdefault("classifier", None)
    further = header.setdefault("parts", {})
    if not isinstance(further, dict) or not all(isinstance(facts, dict) for facts in further.values()):
        raise UserError(f"{path}: its header is malformed: parts {str(further)[:200]}")
    own = (f"{part}." for part in ("head", "classifier") if header[part] is not None)
    parts = ("encoder.", *own, *(f"{part}." for part in further))
    strays = sorted(name for name in tensors if not name.startswith(parts))
    if strays:
        raise UserError(f"{path} holds tensors that belong to none of its parts: {', '.join(strays)}")
    return header, tensors


def _is_complete(header: Any) -> bool:
    """Whether a header has all its parts, each of its type."""
    kinds = {"spec": dict, "head": dict | None, "versions": dict, "extra": dict}
    return (
        isinstance(header, dict)
        and all(name in header and isinstance(header[name], kind) for name, kind in kinds.items())
        and type(header.get("format")) is int
        and isinstance(header["spec"].get("kind"), str)
        and isinstance(header.get("classifier"), dict | None)
    )


def check_values(path: str | Path, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise a UserError if values are none that a network can hold.

    Args:
        path: the file that they come from, for the message.
        wanted: tensors of the network, under the same names; their types count.
        tensors: to be filled in.
    """
    kinds = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in sorted(tensors.items())
        if name in wanted and tensor.is_floating_point() != wanted[name].is_floating_point()
    ]
    variances = [n for n, t in sorted(tensors.items()) if n.endswith("running_var") and t.numel() and t.min() < 0]
    problems = {
        "of another type": kinds, "infinite or not a number": spoiled(tensors), "negative variances": variances,
    }  # fmt: skip
    if any(problems.values()):
        message = "; ".join(f"{what}: {', '.join(names[:5])}" for what, names in problems.items() if names)
        raise UserError(
            f"{path} holds weights that no network can have ({message}): it is damaged, or its run diverged"
        )


def _convert(path: Path) -> str:
    return f"make one of it with twofold convert {path} --out FOLDER, and give that folder"


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as those of torch.save do: as a zip archive, or as a pickle."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def encoder_tensors(path: str | Path) -> dict[str, Tensor]:
    """The encoder's tensors in a file, by their names in the encoder's state; raises as `load_encoder`."""
    return _part("encoder", _read(path)[1])


def _part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix`, by their names in that part."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _fill(path: str | Path, module: Module, prefix: str, tensors: dict[str, Tensor]) -> Module:
    """Give `module` exactly the tensors under `prefix`."""
    result = _part(prefix, tensors)
    wanted = module.state_dict()
    problems = {
        "missing": sorted(wanted.keys() - result.keys()),
        "left over": sorted(result.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {tuple(result[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in sorted(wanted.keys() & result.keys())
            if wanted[name].shape != result[name].shape
        ],
    }
    if any(problems.values()):
        message = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise UserError(f"{path} does not fit its {prefix}: {message}")
    check_values(path, wanted, result)
    empty = all(tensor.is_meta for tensor in wanted.values())
    wanted.update(result)  # it also holds the versions of its modules' layouts, which some of torchvision's ask for
    module.load_state_dict(wanted, assign=empty)
    return module.eval()
