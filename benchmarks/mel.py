"""The log-mel front end: each clip at its true length, against transformers' extractor, which pads all to 30 s."""

from __future__ import annotations

import torch
import transformers
from transformers import WhisperFeatureExtractor

from auris.audio import SAMPLE_RATE, log_mel
from benchmarks import Comparison
from benchmarks.models import waves

PRESETS = {"128": 128, "80": 80}  # mel bins: Qwen2-Audio's, Qwen-Audio's
CHOICES = {"peer": ("torch", "numpy")}
LIMITS = {"torch": 1e-6, "numpy": 1e-5}  # of features near 1; the extractor's own two are up to 9e-6 apart


def compare(preset: int, *, peer: str = "torch", lengths: str = "2-8", clips: int = 16, seed: int = 0) -> Comparison:
    """Both front ends on the same clips; the error is the largest over the frames that ours has, of features near 1.

    `peer`: which of the extractor's two implementations runs; the first is what it chooses where torch is installed.
    """
    wave = waves(lengths, clips, seed)
    arrays = [clip.numpy() for clip in wave]
    extractor = WhisperFeatureExtractor(feature_size=preset)
    if peer == "numpy":  # its own fallback, under the same call
        extractor._torch_extract_fbank_features = extractor._np_extract_fbank_features

    def ours() -> list[torch.Tensor]:
        return [log_mel(clip, preset) for clip in wave]

    def theirs() -> torch.Tensor:
        return extractor(arrays, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features

    pairs = zip(ours(), theirs(), strict=True)
    errors = [(found - expected[:, : found.shape[1]]).abs().max() for found, expected in pairs]
    return Comparison(
        peer=f"transformers {transformers.__version__} WhisperFeatureExtractor, {peer}",
        ours=ours,
        theirs=theirs,
        errors={"features": torch.stack(errors).max().item()},
        limits={"features": LIMITS[peer]},
        work={"audio_seconds": sum(map(len, arrays)) / SAMPLE_RATE},
    )
