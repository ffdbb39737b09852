"""The encoder's packed stem and the independence of its clips (parity with transformers: tests/parity)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from auris.audio import stored
from auris.model.encoder import Encoder

pytestmark = pytest.mark.usefixtures("float64")

FRAMES = [3, 37, 1, 200, 2, 99, 2999, 3000]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(n_mels=16, width=24, n_layers=2, n_heads=3, ffn=40)


@pytest.fixture(scope="module")
def mels() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(16, stored(n)) for n in FRAMES]


def encode(encoder: Encoder, mels: list[torch.Tensor], frames: list[int]) -> tuple[torch.Tensor, ...]:
    x, lengths = encoder(torch.cat(mels, dim=1), torch.tensor(frames))
    assert lengths.tolist() == [(n - 1) // 2 + 1 for n in frames]
    return x.split(lengths.tolist())


@torch.no_grad()
def test_the_stem_equals_two_padded_convolutions_of_each_clip(encoder: Encoder, mels: list[torch.Tensor]) -> None:
    encoder = copy.deepcopy(encoder).double()  # in float32, convolutions of other lengths round as each processor likes
    mels = [mel.double() for mel in mels]
    lengths = torch.tensor([(n - 1) // 2 + 1 for n in FRAMES])
    stem = encoder._stem(torch.cat(mels, dim=1), torch.tensor(FRAMES), lengths)
    for mel, length, got in zip(mels, lengths.tolist(), stem.split(lengths.tolist()), strict=True):
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel[None]))))[0].T[:length]
        torch.testing.assert_close(got, x + encoder.positions[:length], atol=1e-13, rtol=1e-13)


@torch.no_grad()
def test_a_clip_is_encoded_as_if_it_were_alone(encoder: Encoder, mels: list[torch.Tensor]) -> None:
    together = encode(encoder, mels, FRAMES)
    reverse = encode(encoder, mels[::-1], FRAMES[::-1])[::-1]
    for mel, n, a, b in zip(mels, FRAMES, together, reverse, strict=True):
        (alone,) = encode(encoder, [mel], [n])
        torch.testing.assert_close(a, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(b, alone, atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter_but_the_final_norm(encoder: Encoder, mels: list[torch.Tensor]) -> None:
    x, _ = encoder(torch.cat(mels[:4], dim=1), torch.tensor(FRAMES[:4]))
    x.square().sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == ["norm.weight", "norm.bias"]
    assert "positions" in dict(encoder.named_buffers())


def test_mel_of_another_length_than_the_clips_is_refused(encoder: Encoder, mels: list[torch.Tensor]) -> None:
    with pytest.raises(AssertionError):
        encoder(mels[1], torch.tensor([38]))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="n_heads"):
        Encoder(n_mels=16, width=24, n_layers=1, n_heads=5)
