"""The encoder's packed stem, and clips that do not affect each other (tests/parity compares with transformers)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from auris.audio import n_frames_with_padding
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
    return [torch.randn(16, n_frames_with_padding(n)) for n in FRAMES]


def encode(encoder: Encoder, mels: list[torch.Tensor], frames: list[int]) -> tuple[torch.Tensor, ...]:
    x, lengths = encoder(torch.cat(mels, dim=1), torch.tensor(frames))
    assert lengths.tolist() == [(n - 1) // 2 + 1 for n in frames]
    return x.split(lengths.tolist())


@torch.no_grad()
def test_the_packed_stem_equals_two_padded_convolutions_of_each_clip(
    encoder: Encoder, mels: list[torch.Tensor]
) -> None:
    encoder = copy.deepcopy(encoder).double()  # in float32, rounding depends on the length and on the processor
    mels = [mel.double() for mel in mels]
    lengths = torch.tensor([(n - 1) // 2 + 1 for n in FRAMES])
    stem = encoder._stem(torch.cat(mels, dim=1), torch.tensor(FRAMES), lengths)
    for mel, length, actual in zip(mels, lengths.tolist(), stem.split(lengths.tolist()), strict=True):
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel[None]))))[0].T[:length]
        torch.testing.assert_close(actual, x + encoder.positions[:length], atol=1e-13, rtol=1e-13)


@torch.no_grad()
def test_the_encoding_of_a_clip_does_not_depend_on_other_clips(encoder: Encoder, mels: list[torch.Tensor]) -> None:
    packed = encode(encoder, mels, FRAMES)
    reversed_order = encode(encoder, mels[::-1], FRAMES[::-1])[::-1]
    for mel, n, in_order, in_reverse in zip(mels, FRAMES, packed, reversed_order, strict=True):
        (single,) = encode(encoder, [mel], [n])
        torch.testing.assert_close(in_order, single, atol=1e-5, rtol=0)
        torch.testing.assert_close(in_reverse, single, atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter_except_the_final_norm(encoder: Encoder, mels: list[torch.Tensor]) -> None:
    x, _ = encoder(torch.cat(mels[:4], dim=1), torch.tensor(FRAMES[:4]))
    x.square().sum().backward()
    no_gradient = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert no_gradient == ["norm.weight", "norm.bias"]
    assert "positions" in dict(encoder.named_buffers())


def test_mel_frames_that_do_not_match_the_clip_lengths_are_refused(encoder: Encoder, mels: list[torch.Tensor]) -> None:
    with pytest.raises(AssertionError):
        encoder(mels[1], torch.tensor([38]))


def test_the_number_of_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="n_heads"):
        Encoder(n_mels=16, width=24, n_layers=1, n_heads=5)
