"""Nearest neighbours of features by cosine similarity, exactly or by an index of faiss."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from twofold.errors import UserError

Centred = tuple[NDArray[np.float32], NDArray[np.float32]]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]

SIMILARITIES_AT_ONCE = 2**25  # 128 MB of float32 similarities a block


def nearest(bank: Tensor, queries: Tensor, k: int, block: int | None = None) -> tuple[Tensor, Tensor]:
    """The k rows of `bank` with the highest cosine similarity to each query, exactly.

    Args:
        bank: [N, d] features of any norm; a row of zeros has similarity 0 to everything.
        queries: [M, d].
        k: 1 <= k <= N.
        block: queries at a time; by default as many as keep the similarities within 128 MB.

    Returns:
        Similarities [M, k] in descending order and positions in the bank [M, k].
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must lie between 1 and the bank's {len(bank)} rows, got {k}")
    bank = F.normalize(bank.float(), dim=1)
    queries = F.normalize(queries.float(), dim=1)
    block = block or max(1, SIMILARITIES_AT_ONCE // len(bank))
    result = [torch.topk(part @ bank.T, k, dim=1) for part in queries.split(block)]
    return torch.cat([f.values for f in result]), torch.cat([f.indices for f in result])


Kind = Literal["auto", "exact", "flat", "hnsw", "ivf"]
"""How neighbours are found: exactly by a product of matrices or by faiss's flat index, or nearly, by its graph of small
worlds (HNSW, arXiv 1603.09320) or its lists around centroids (IVF)."""
GRAPH_FROM, LISTS_FROM = 100_000, 1_000_000
"""Rows from which `auto` takes HNSW and IVF."""
_LINKS, _EFFORT_BUILT, _EFFORT = 32, 64, 64
"""Of HNSW: links a node (faiss's M), and the candidates that are followed in building and in searching. Twice as many
and more found one neighbour in a thousand that these miss, and took two to three times as long (docs/search.md)."""
_PROBED, _LEAST_PROBED, _ROWS_A_LIST = 64, 16, 64
"""Of IVF: one list of so many is searched, of few lists at least so many; rows that each list's centroid is trained on.
Four times as many lists found one neighbour in a hundred that these miss, in four times the time."""


def centred(features: NDArray[np.floating], mean: NDArray[np.float32] | None = None) -> Centred:
    """Features of length 1 around their mean [d], or around the one given, and that mean.

    Encoders that end in a ReLU and a mean give features in one corner of the space: the cosines of unrelated examples
    lie near 1. Without the common part they lie around 0 (arXiv 1702.01417 does so for words).
    """
    around = features.mean(axis=0, dtype=np.float64).astype(np.float32) if mean is None else mean
    moved = np.asarray(features, np.float32) - around
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    return moved / np.maximum(length, 1e-12), around


def faiss_module(what: str) -> Any:
    """faiss; UserError without it, which names `what` needs it."""
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise UserError(f'{what}: needs faiss, which is not installed: pip install "twofold[search]"') from error


class Index(Protocol):
    """Finds the rows of highest cosine."""

    @property
    def words(self) -> str:
        """What it is, for people."""

    def search(self, queries: NDArray[np.float32], k: int) -> Found:
        """Cosines [m, k], descending, and rows [m, k], of queries [m, d] of length 1; -1 for what was not found."""


@dataclass(frozen=True)
class ExactIndex:
    """Every row is compared with every query."""

    bank: NDArray[np.float32]
    words: str = "exact"

    def search(self, queries: NDArray[np.float32], k: int) -> Found:
        """See `Index`."""
        similarity, rows = nearest(torch.from_numpy(self.bank), torch.from_numpy(queries), min(k, len(self.bank)))
        return similarity.numpy(), rows.numpy()


@dataclass(frozen=True)
class FaissIndex:
    """An index of the library faiss, over inner products."""

    index: Any
    words: str

    @classmethod
    def build(cls, bank: NDArray[np.float32], kind: Kind = "auto") -> FaissIndex:
        """Of rows [n, d] of length 1."""
        faiss, (count, width) = faiss_module("a faiss index"), bank.shape
        if kind == "auto":
            kind = "flat" if count < GRAPH_FROM else "hnsw" if count < LISTS_FROM else "ivf"
        if kind == "hnsw":
            index = faiss.IndexHNSWFlat(width, _LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction, index.hnsw.efSearch = _EFFORT_BUILT, _EFFORT
            words = f"faiss HNSW, {_LINKS} links, effort {_EFFORT}"
        elif kind == "ivf":
            lists = max(1, min(int(4 * count**0.5), count // 39))  # faiss wants 39 rows for each centroid
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
            index.nprobe = min(lists, max(_LEAST_PROBED, lists // _PROBED))
            index.cp.max_points_per_centroid = _ROWS_A_LIST
            index.train(bank)
            words = f"faiss IVF, {lists:,} lists of which {index.nprobe:,} are searched"
        else:
            index, words = faiss.IndexFlatIP(width), "faiss flat, exact"
        index.add(np.ascontiguousarray(bank, np.float32))
        return cls(index, words)

    def search(self, queries: NDArray[np.float32], k: int) -> Found:
        """See `Index`."""
        similarity, rows = self.index.search(np.ascontiguousarray(queries, np.float32), min(k, self.index.ntotal))
        return similarity, rows

    def to_bytes(self) -> bytes:
        """As faiss writes it to a file."""
        contents: bytes = faiss_module("a faiss index").serialize_index(self.index).tobytes()
        return contents

    @classmethod
    def from_bytes(cls, contents: bytes) -> FaissIndex:
        """What `to_bytes` gave; ValueError for anything else. An index runs native code: read those you trust."""
        faiss = faiss_module("a faiss index")
        try:
            return cls(faiss.deserialize_index(np.frombuffer(contents, dtype=np.uint8)), "faiss, as stored")
        except RuntimeError as error:
            raise ValueError(f"faiss cannot read it: {str(error).splitlines()[0]}") from error

    def vectors(self) -> NDArray[np.float32]:
        """The rows that it holds [n, d]."""
        if hasattr(self.index, "make_direct_map"):
            self.index.make_direct_map()
        rows: NDArray[np.float32] = self.index.reconstruct_n(0, self.index.ntotal)
        return rows


def build_index(bank: NDArray[np.float32], kind: Kind) -> Index:
    """An index of rows [n, d] of length 1; auto is exact below 100,000 rows, and where faiss is not installed."""
    if kind == "exact":
        return ExactIndex(bank)
    if kind == "auto" and (len(bank) < GRAPH_FROM or importlib.util.find_spec("faiss") is None):
        slow = "" if len(bank) < GRAPH_FROM else ', slow; pip install "twofold[search]" brings faiss'
        return ExactIndex(bank, f"exact{slow}")
    return FaissIndex.build(bank, kind)
