"""The speech encoder against athena's SimCLR model (golden athena_model.npz), and against itself without padding.

Tolerance 5e-6 of the largest entry: the reference is float32, through two transformer layers.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fidelity import agree
from golden_data import golden
from twofold.encoders.audio.transformer import SpeechTransformer, mean_over_time
from twofold.errors import UserError

DATA = golden("athena_model.npz")
COMPONENT, TOLERANCE = "Speech: encoder, pooling and heads", 5e-6
NAMES = {"wq": "query", "wk": "key", "wv": "value", "attn_dense": "output", "ffn0": "mlp.0", "ffn1": "mlp.3"}


def dense(name: str) -> nn.Linear:
    kernel = torch.tensor(DATA[f"w/{name}/kernel"])
    layer = nn.Linear(*kernel.shape)
    layer.weight.data, layer.bias.data = kernel.T.contiguous(), torch.tensor(DATA[f"w/{name}/bias"])
    return layer


def build() -> SpeechTransformer:
    config = DATA.meta["config"]
    encoder = SpeechTransformer(
        DATA.meta["D"], config["d_model"], config["num_encoder_layers"], config["num_heads"], config["dff"]
    )
    encoder.dense = dense("dense2")
    for name in DATA.meta["layers"]:
        if name.startswith("encoder."):
            _, number, leaf = name.split(".")
            layer = encoder.layers.get_submodule(number)
            if leaf.startswith("norm"):
                norm = layer.get_submodule(leaf)
                norm.load_state_dict(
                    {ours: torch.tensor(DATA[f"w/{name}/{theirs}"]) for ours, theirs in LAYER_NORM.items()}
                )
            else:
                layer.get_submodule(NAMES[leaf]).load_state_dict(dense(name).state_dict())
    return encoder.eval()


LAYER_NORM = {"weight": "gamma", "bias": "beta"}


def inputs() -> tuple[Tensor, Tensor]:
    return torch.tensor(DATA["input"][..., 0]), torch.tensor(DATA["input_length"])


@torch.no_grad()
def test_equals_the_reference() -> None:
    encoder = build()
    x, lengths = inputs()
    frames = encoder(x, lengths)
    valid = torch.arange(x.shape[1]) < lengths[:, None]
    agree(COMPONENT, frames[valid], DATA["encoder_out"][valid.numpy()], TOLERANCE, "largest", note="frames")
    assert (frames[~valid] == 0).all()
    pooled = mean_over_time(frames, lengths, padded=True)
    agree(COMPONENT, pooled, DATA["pooled"], TOLERANCE, "largest", note="pooled")
    projection = dense("final_layer")(dense("dense")(pooled).relu())
    agree(COMPONENT, projection, DATA["y"], TOLERANCE, "largest", note="projection")
    reconstruction = dense("mpc_final_layer")(frames)
    agree(COMPONENT, reconstruction[valid], DATA["mpc"][valid.numpy()], TOLERANCE, "largest", note="reconstruction")


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    encoder = build()
    x, lengths = inputs()
    x[torch.arange(x.shape[1]) >= lengths[:, None]] = 1e6
    together = encoder(x, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = encoder(x[i : i + 1, :length], lengths[i : i + 1])
        torch.testing.assert_close(together[i : i + 1, :length], alone, rtol=1e-5, atol=1e-5)
        mean = mean_over_time(together, lengths)[i]
        torch.testing.assert_close(mean, alone[0].mean(0), rtol=1e-5, atol=1e-5)


def test_the_published_size() -> None:
    with torch.device("meta"):
        encoder = SpeechTransformer()
    assert sum(p.numel() for p in encoder.parameters()) == 21_263_616 + 31_488


@torch.no_grad()
def test_stacked_frames_are_the_plain_encoder_of_joined_frames() -> None:
    """Three frames a step: the same as an encoder of 3 F features that is given frames joined by hand."""
    torch.manual_seed(0)
    stacked, plain = SpeechTransformer(4, 8, 2, 2, 16, stack=3).eval(), SpeechTransformer(12, 8, 2, 2, 16).eval()
    plain.load_state_dict(stacked.state_dict())
    x, lengths = torch.randn(2, 8, 4), torch.tensor([8, 4])
    x[1, 4:] = 0
    joined = torch.stack([torch.cat([x, torch.zeros(2, 1, 4)], 1)[:, i : i + 3].flatten(1) for i in (0, 3, 6)], 1)
    assert stacked.steps(lengths).tolist() == [3, 2]
    torch.testing.assert_close(stacked(x, lengths), plain(joined, torch.tensor([3, 2])))
    alone = stacked(x[1:, :4], lengths[1:])  # what it is padded with changes nothing
    torch.testing.assert_close(stacked(x, lengths)[1:, :2], alone)


def test_attention_of_short_and_long_sequences_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain operators and the fused one: outputs and gradients, with padding and in bfloat16 as in float32."""
    encoder, x = build().train(False), torch.randn(3, 30, DATA.meta["D"], generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([30, 17, 1])
    found = []
    for limit in (200, 0):
        monkeypatch.setattr("twofold.encoders.audio.transformer._SHORT", limit)
        encoder.zero_grad()
        out = encoder(x, lengths)
        out.square().mean().backward()
        with torch.autocast("cpu", torch.bfloat16):
            rough = encoder(x, lengths)
        torch.testing.assert_close(rough.float(), out, rtol=0.05, atol=0.1)
        found.append([out.detach(), *(p.grad.clone() for p in encoder.parameters())])
    for ours, fused in zip(*found, strict=True):
        torch.testing.assert_close(ours, fused, rtol=1e-4, atol=1e-6)


def test_wrong_inputs_are_named() -> None:
    encoder = SpeechTransformer(4, 8, 1, 2, 8)
    x = torch.zeros(2, 5, 4)
    with pytest.raises(UserError, match="frames"):
        encoder(x[..., :3], torch.tensor([5, 5]))
    for wrong in ([0, 5], [5, 6]):
        with pytest.raises(UserError, match=r"1 \.\. 5"):
            encoder(x, torch.tensor(wrong))
    with pytest.raises(UserError, match="divide"):
        SpeechTransformer(4, 8, 1, 3)
    with pytest.raises(UserError, match="stack"):
        SpeechTransformer(4, 8, 1, 2, stack=0)
