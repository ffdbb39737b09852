"""Our encoder on true lengths against transformers' encoders on clips padded to 30 s."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    Qwen2AudioEncoder,
    Qwen2AudioEncoderConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)
from transformers.masking_utils import create_bidirectional_mask

from auris import audio
from auris.model import pooling
from auris.model.encoder import Encoder
from auris.model.weights.layouts import LAYOUTS

pytestmark = pytest.mark.usefixtures("float64")

SIZES = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
# Samples: 0.03 s, an odd and an even number of frames, no multiple of a hop, one frame, 29.99 s, 30 s.
LENGTHS = [480, 160 * 37, 160 * 38, 16_001, 33_333, 100, 479_840, 479_841, 480_000]


def ours(theirs: torch.nn.Module, n_mels: int) -> Encoder:
    encoder = Encoder(n_mels=n_mels, width=32, n_layers=2, n_heads=4, ffn=48)
    whisper = LAYOUTS["whisper"]
    state = {whisper.model_names(f"encoder.{k}")[0].removeprefix("encoder."): v for k, v in theirs.items()}
    encoder.load_state_dict(state)
    return encoder.eval()


@pytest.fixture(scope="module", params=[80, 128], ids="{} mel".format)
def clips(request: pytest.FixtureRequest) -> tuple[int, list[np.ndarray], torch.Tensor, torch.Tensor]:
    """Mel bins, waves, and what transformers makes of them: features (A, n_mels, 3000), mask (A, 3000)."""
    rng = np.random.default_rng(0)
    waves = [(rng.standard_normal(n) * rng.uniform(0.01, 0.3)).astype(np.float32) for n in LENGTHS]
    extractor = WhisperFeatureExtractor(feature_size=request.param)
    torch.set_default_dtype(torch.float32)  # the extractor has a window of the default dtype
    features = extractor(waves, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")
    torch.set_default_dtype(torch.float64)
    mels = features["input_features"].double()
    return request.param, waves, mels, features["attention_mask"]


@torch.no_grad()
def test_valid_frames_equal_those_of_the_padded_masked_encoder(clips: tuple) -> None:
    n_mels, waves, features, mask = clips
    torch.manual_seed(0)
    config = Qwen2AudioEncoderConfig(num_mel_bins=n_mels, initializer_range=0.2, **SIZES)
    theirs = Qwen2AudioEncoder(config).eval()
    theirs.set_attn_implementation("sdpa")
    lengths = (mask.sum(-1) - 1) // 2 + 1
    keys = (torch.arange(1500) < lengths[:, None]).long()
    before_pooling: list[torch.Tensor] = []
    theirs.layers[-1].register_forward_hook(lambda module, args, out: before_pooling.append(out))
    attention_mask = create_bidirectional_mask(config, torch.zeros(len(waves), 1500, 1), keys)
    pooled = theirs(features, attention_mask=attention_mask).last_hidden_state

    encoder = ours(theirs.state_dict(), n_mels)
    frames = [audio.frames(len(wave)) for wave in waves]
    assert frames == mask.sum(-1).tolist()
    mel = torch.cat([row[:, : audio.stored(n)] for row, n in zip(features, frames, strict=True)], dim=1)
    x, got = encoder(mel, torch.tensor(frames))
    assert got.tolist() == lengths.tolist()
    for a, b, n in zip(x.split(got.tolist()), before_pooling[0], lengths, strict=True):
        torch.testing.assert_close(a, b[:n], atol=1e-5, rtol=1e-5)
    y, tokens = pooling.Mean(k=2, width=32)(x, got)
    y = encoder.norm(y[:, 0])
    for a, b, n in zip(y.split(tokens.tolist()), pooled, tokens, strict=True):
        torch.testing.assert_close(a, b[:n], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_full_clip_equals_whisper(clips: tuple) -> None:
    n_mels, _waves, features, _ = clips
    torch.manual_seed(0)
    config = WhisperConfig(num_mel_bins=n_mels, decoder_layers=1, decoder_attention_heads=2, init_std=0.2, **SIZES)
    theirs = WhisperModel(config).encoder.eval()
    encoder = ours(theirs.state_dict(), n_mels)
    x, _ = encoder(features[-1], torch.tensor([3000]))
    expected = theirs(features[-1:]).last_hidden_state[0]
    torch.testing.assert_close(encoder.norm(x), expected, atol=1e-5, rtol=1e-5)


def test_positions_are_whispers() -> None:
    config = WhisperConfig(num_mel_bins=80, decoder_layers=1, decoder_attention_heads=2, **SIZES)
    theirs = WhisperModel(config).encoder.embed_positions.weight
    assert torch.equal(Encoder(n_mels=80, width=32, n_layers=1, n_heads=4).positions, theirs)
