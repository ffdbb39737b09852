"""Our encoder on clips at their true length against transformers' encoders on clips padded to 30 s."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Qwen2AudioEncoder,
    Qwen2AudioEncoderConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from auris import audio
from auris.model import pooling
from auris.model.encoder import Encoder
from auris.model.weights.identify import identify
from auris.model.weights.layouts import LAYOUTS

pytestmark = pytest.mark.usefixtures("float64")

SIZES = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
# In samples: 0.03 s, 37 and 38 frames, two lengths that are not multiples of a hop, one frame, 29.99 s, 29.99 s and a
# sample, 30 s.
LENGTHS = [480, 160 * 37, 160 * 38, 16_001, 33_333, 100, 479_840, 479_841, 480_000]


def build_encoder(reference_state: dict[str, torch.Tensor], n_mels: int) -> Encoder:
    return load_encoder(Encoder(n_mels=n_mels, width=32, n_layers=2, n_heads=4, ffn=48), reference_state)


def load_encoder(encoder: Encoder, reference_state: dict[str, torch.Tensor]) -> Encoder:
    whisper = LAYOUTS["whisper"]
    state = {whisper.model_names(f"encoder.{k}")[0].removeprefix("encoder."): v for k, v in reference_state.items()}
    encoder.load_state_dict(state)
    return encoder.eval()


@pytest.fixture(scope="module", params=[80, 128], ids="{} mel".format)
def clips(request: pytest.FixtureRequest) -> tuple[int, list[np.ndarray], torch.Tensor, torch.Tensor]:
    """Return mel bins, waves, and transformers' features (A, n_mels, 3000) and mask (A, 3000)."""
    rng = np.random.default_rng(0)
    waves = [(rng.standard_normal(n) * rng.uniform(0.01, 0.3)).astype(np.float32) for n in LENGTHS]
    extractor = WhisperFeatureExtractor(feature_size=request.param)
    torch.set_default_dtype(torch.float32)  # the extractor's window has the default dtype
    features = extractor(waves, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")
    torch.set_default_dtype(torch.float64)
    mels = features["input_features"].double()
    return request.param, waves, mels, features["attention_mask"]


@torch.no_grad()
def test_valid_frames_equal_those_of_the_padded_qwen2_audio_encoder(clips: tuple) -> None:
    n_mels, waves, features, mask = clips
    torch.manual_seed(0)
    config = Qwen2AudioEncoderConfig(num_mel_bins=n_mels, initializer_range=0.2, **SIZES)
    reference = Qwen2AudioEncoder(config).eval()
    reference.set_attn_implementation("sdpa")
    lengths = (mask.sum(-1) - 1) // 2 + 1
    keys = (torch.arange(1500) < lengths[:, None]).long()
    before_pooling: list[torch.Tensor] = []
    reference.layers[-1].register_forward_hook(lambda module, args, out: before_pooling.append(out))
    attention_mask = create_bidirectional_mask(config, torch.zeros(len(waves), 1500, 1), keys)
    pooled = reference(features, attention_mask=attention_mask).last_hidden_state

    encoder = build_encoder(reference.state_dict(), n_mels)
    frames = [audio.n_frames(len(wave)) for wave in waves]
    assert frames == mask.sum(-1).tolist()
    mel = torch.cat([row[:, : audio.n_frames_with_padding(n)] for row, n in zip(features, frames, strict=True)], dim=1)
    x, x_lengths = encoder(mel, torch.tensor(frames))
    assert x_lengths.tolist() == lengths.tolist()
    for actual, expected, n in zip(x.split(x_lengths.tolist()), before_pooling[0], lengths, strict=True):
        torch.testing.assert_close(actual, expected[:n], atol=1e-5, rtol=1e-5)
    pooled_frames, n_tokens = pooling.Mean(k=2, width=32)(x, x_lengths)
    pooled_frames = encoder.norm(pooled_frames[:, 0])
    for actual, expected, n in zip(pooled_frames.split(n_tokens.tolist()), pooled, n_tokens, strict=True):
        torch.testing.assert_close(actual, expected[:n], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_encoding_of_a_clip_of_30_s_equals_that_of_whisper(clips: tuple) -> None:
    n_mels, _waves, features, _ = clips
    torch.manual_seed(0)
    config = WhisperConfig(num_mel_bins=n_mels, decoder_layers=1, decoder_attention_heads=2, init_std=0.2, **SIZES)
    reference = WhisperModel(config).encoder.eval()
    encoder = build_encoder(reference.state_dict(), n_mels)
    x, _ = encoder(features[-1], torch.tensor([3000]))
    expected = reference(features[-1:]).last_hidden_state[0]
    torch.testing.assert_close(encoder.norm(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_real_weights_encode_a_real_recording_as_in_transformers(whisper_base: Path, shared_data: Path) -> None:
    """Only rounding in float64 remains of 11 s of speech, padded to 30 s; the values reach 24."""
    state = {
        name.removeprefix("model.encoder."): tensor.double()
        for name, tensor in load_file(whisper_base / "model.safetensors").items()
    }
    reference = WhisperEncoder(WhisperConfig.from_pretrained(whisper_base)).eval()
    reference.load_state_dict(state)
    node = identify(whisper_base).parts["encoder"]
    encoder = load_encoder(Encoder(**{name: value for name, value in node.items() if name != "_target_"}), state)
    wave = np.pad(audio.read(shared_data / "real/whisper_jfk/jfk.flac"), (0, 19 * audio.SAMPLE_RATE))
    mel = audio.log_mel(wave, 80).double()
    x, _ = encoder(mel, torch.tensor([3000]))
    expected = reference(mel[None, :, :3000]).last_hidden_state[0]
    assert expected.abs().max() > 10
    torch.testing.assert_close(encoder.norm(x), expected, atol=1e-9, rtol=0)


def test_the_position_table_equals_that_of_whisper() -> None:
    config = WhisperConfig(num_mel_bins=80, decoder_layers=1, decoder_attention_heads=2, **SIZES)
    expected = WhisperModel(config).encoder.embed_positions.weight
    assert torch.equal(Encoder(n_mels=80, width=32, n_layers=1, n_heads=4).positions, expected)
