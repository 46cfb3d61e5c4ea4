"""A recogniser of characters on the frames of a speech encoder's layers, and how recordings are read with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from twofold.data import AudioSource
from twofold.data.decoding.opening import BadImage
from twofold.encoders import FilePart, UtteranceEncoder, Waves
from twofold.evaluation.protocols.decoding import Symbols, beam_search, best_path


class Recogniser(nn.Module):
    """Log probabilities of symbols a frame: softmax-weighted sum of standardised layers, then one linear layer.

    Args:
        mean, std: [L, d] of each layer's numbers.
        symbols: V, the blank included.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, symbols: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.mixture = nn.Parameter(torch.zeros(len(mean)))
        self.linear = nn.Linear(mean.shape[1], symbols)

    def forward(self, states: Tensor) -> Tensor:
        """[n, T, L, d] -> [n, T, V]."""
        x = (states.float() - self.mean) / self.std
        return F.log_softmax(self.linear(torch.einsum("ntld,l->ntd", x, self.mixture.softmax(0))), dim=2)


@dataclass(frozen=True)
class Reading:
    """What is read of a recording.

    Attributes:
        text: in the characters of the training texts.
        confidence: geometric mean over the frames of the likeliest symbol's probability, in (0, 1].
    """

    text: str
    confidence: float


@dataclass(frozen=True)
class Reader:
    """Reads recordings.

    Attributes:
        encoder: gives the layers; in evaluation mode.
        head: gives the symbols.
        characters: symbol k is characters[k - 1]; 0 is the blank.
        beam: beginnings that the search keeps; 1 takes the best path.
    """

    encoder: UtteranceEncoder
    head: Recogniser
    characters: str
    beam: int = 1

    def part(self) -> FilePart:
        """What a file holds of it beside the encoder."""
        tensors = {name: tensor.detach() for name, tensor in self.head.state_dict().items()}
        return FilePart({"characters": self.characters, "beam": self.beam}, tensors)

    @classmethod
    def stored(cls, encoder: UtteranceEncoder, part: FilePart) -> Reader:
        """What `part` gave.

        Raises:
            ValueError, KeyError, RuntimeError: it is no such part.
        """
        characters, beam, mean = part.facts["characters"], part.facts["beam"], part.tensors["mean"]
        if not isinstance(characters, str) or type(beam) is not int or beam < 1 or mean.ndim != 2:
            raise ValueError(f"characters {str(characters)[:40]!r}, beam {beam}, mean {tuple(mean.shape)}")
        if tuple(part.tensors["linear.weight"].shape) != (len(characters) + 1, mean.shape[1]):
            raise ValueError(f"{len(characters)} characters and {tuple(part.tensors['linear.weight'].shape)} weights")
        head = Recogniser(torch.empty_like(mean), torch.empty_like(mean), len(characters) + 1)
        head.load_state_dict(part.tensors)
        return cls(encoder, head.eval(), characters, beam)

    @torch.no_grad()
    def read(self, source: AudioSource, batch: int) -> dict[int, Reading]:
        """What is read of each recording that can be decoded, by its index; the others come to `source.skipped`."""
        order, result = np.argsort(source.lengths(), kind="stable"), dict[int, Reading]()
        device = self.head.mean.device
        for begin in range(0, len(order), batch):
            waves, kept = readable(source, order[begin : begin + batch].tolist())
            if not kept:
                continue
            layers, frames = self.encoder.hidden_states(Waves.of(waves).to(device))
            states = torch.stack(layers, dim=2)
            for row, index in enumerate(kept):
                log_probs = self.head(states[row : row + 1, : frames[row]])[0].cpu().numpy()
                result[index] = Reading(self.text(log_probs), float(np.exp(log_probs.max(axis=1).mean())))
        return {index: result[index] for index in sorted(result)}

    def text(self, log_probs: NDArray[np.floating[Any]]) -> str:
        """The text of log probabilities [T, V]."""
        symbols: Symbols = best_path(log_probs) if self.beam == 1 else beam_search(log_probs, self.beam)
        return " ".join("".join(self.characters[k - 1] for k in symbols).split())


def readable(source: AudioSource, indices: list[int]) -> tuple[list[Tensor], list[int]]:
    """The recordings that can be decoded, and their indices; the others come to `source.skipped`."""
    waves, kept = [], []
    for index in indices:
        try:
            waves.append(torch.from_numpy(source.read(index)))
            kept.append(index)
        except BadImage as error:
            source.skipped.add(error.path, error.reason)
    return waves, kept
