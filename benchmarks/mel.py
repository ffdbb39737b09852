"""The log-mel front end: each clip at its true length, against the extractor of transformers, which pads to 30 s."""

from __future__ import annotations

import torch
import transformers
from transformers import WhisperFeatureExtractor

from auris.audio import SAMPLE_RATE, log_mel
from benchmarks import Comparison
from benchmarks.models import waves

PRESETS = {"128": 128, "80": 80}  # mel bins of Qwen2-Audio and Qwen-Audio
CHOICES = {"peer": ("torch", "numpy")}
# For features near 1. The two implementations of the extractor differ by up to 9e-6.
LIMITS = {"torch": 1e-6, "numpy": 1e-5}


def compare(preset: int, *, peer: str = "torch", lengths: str = "2-8", clips: int = 16, seed: int = 0) -> Comparison:
    """Run both front ends on the same clips. The error is the largest difference on the frames that auris computes.

    `peer` selects the implementation of the extractor. It uses torch if torch is installed, and numpy otherwise.
    """
    clip_waves = waves(lengths, clips, seed)
    arrays = [clip.numpy() for clip in clip_waves]
    extractor = WhisperFeatureExtractor(feature_size=preset)
    if peer == "numpy":  # call the fallback in place of the torch implementation
        extractor._torch_extract_fbank_features = extractor._np_extract_fbank_features

    def auris_features() -> list[torch.Tensor]:
        return [log_mel(clip, preset) for clip in clip_waves]

    def peer_features() -> torch.Tensor:
        return extractor(arrays, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features

    pairs = zip(auris_features(), peer_features(), strict=True)
    errors = [(actual - expected[:, : actual.shape[1]]).abs().max() for actual, expected in pairs]
    return Comparison(
        peer=f"transformers {transformers.__version__} WhisperFeatureExtractor, {peer}",
        run_auris=auris_features,
        run_peer=peer_features,
        errors={"features": torch.stack(errors).max().item()},
        limits={"features": LIMITS[peer]},
        work={"audio_seconds": sum(map(len, arrays)) / SAMPLE_RATE},
    )
