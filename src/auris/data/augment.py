"""Augmentation of training clips with noise and reverberation.

The length of a clip and the times of its sounds do not change, so time labels and planned lengths stay valid.

Shapes: L samples of a clip at 16 kHz.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torchaudio.functional import add_noise, fftconvolve

from auris import audio
from auris.data.manifests import read_manifests
from auris.data.rows import Clip
from auris.errors import AudioError, UserError, shorten


class Distortion(ABC):
    """Base class of the augmentations, which are applied to a clip with probability `p`.

    Raises:
        UserError: `p` is not in (0, 1].
    """

    key: str  # config key of the augmentation, for messages

    def __init__(self, p: float):
        if not 0 < p <= 1:
            raise UserError(f"{self.key}.p={p}: expected a probability above 0 ({self.key}=null turns it off)")
        self.p = p

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the clip (L,) float32, distorted with probability `p`.

        Raises:
            AudioError: A recording of noise or of a room cannot be read.
        """
        return self.apply(wave, rng) if rng.random() < self.p else wave

    @abstractmethod
    def apply(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Distort a clip (L,) in a random way; all random numbers are drawn from `rng`."""


class Noise(Distortion):
    """Additive noise: a random segment of a recording, repeated if it is shorter than the clip.

    If the segment or the clip is silent, nothing is added, because the signal-to-noise ratio would be undefined.

    Args:
        manifest: Manifest of the recordings.
        snr: Range of the signal-to-noise ratio in dB.
        p: Probability that a clip gets noise.
    """

    key = "data.noise"

    def __init__(self, *, manifest: str | Path | None, snr: Sequence[float], p: float):
        super().__init__(p)
        self.snr = _parse_range(f"{self.key}.snr", snr, minimum=-100.0)
        self.clips = _read_clips(f"{self.key}.manifest", manifest)

    def apply(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Add noise at a random signal-to-noise ratio."""
        snr = torch.tensor(rng.uniform(*self.snr), dtype=torch.float32)
        noise = self._draw_segment(len(wave), rng)
        if audio.is_silent(noise) or audio.is_silent(wave):
            return wave
        return add_noise(torch.from_numpy(wave), torch.from_numpy(noise), snr).numpy()

    def _draw_segment(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """Return `length` samples from a random position of a random recording."""
        clip = self.clips[rng.integers(len(self.clips))]
        n_samples = clip.n_samples()
        start = int(rng.integers(n_samples - length + 1 if n_samples > length else n_samples))
        if n_samples <= length:
            noise = clip.read()
            return noise[(start + np.arange(length)) % len(noise)]
        offset = (clip.offset or 0.0) + start / audio.SAMPLE_RATE
        noise = audio.read(clip.path, offset, length / audio.SAMPLE_RATE)
        return noise[np.arange(length) % len(noise)]  # resampling may give one sample too few


class RecordedRooms(Distortion):
    """Reverberation of a recorded room: convolution with an impulse response.

    Everything before the largest peak of the response, which is the direct sound, is cut off.

    Args:
        manifest: Manifest of the impulse responses.
        p: Probability that a clip gets reverberation.
    """

    key = "data.reverb"

    def __init__(self, *, manifest: str | Path | None, p: float):
        super().__init__(p)
        self.clips = _read_clips(f"{self.key}.manifest", manifest)

    def apply(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Convolve the clip with a random impulse response."""
        response = self.clips[rng.integers(len(self.clips))].read()
        return reverberate(wave, response[np.abs(response).argmax() :])


class SyntheticRooms(Distortion):
    """Reverberation of a synthetic room: direct sound followed by exponentially decaying white noise (Polack's model).

    Args:
        rt60: Range of the reverberation time (decay by 60 dB) in seconds.
        direct: Range of the direct-to-reverberant energy ratio in dB.
        p: Probability that a clip gets reverberation.
    """

    key = "data.reverb"

    def __init__(self, *, rt60: Sequence[float], direct: Sequence[float], p: float):
        super().__init__(p)
        self.rt60 = _parse_range(f"{self.key}.rt60", rt60, minimum=0.01)
        self.direct = _parse_range(f"{self.key}.direct", direct, minimum=-100.0)

    def apply(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Convolve the clip with a random synthetic response."""
        return reverberate(wave, self.response(rng))

    def response(self, rng: np.random.Generator) -> np.ndarray:
        """Draw an impulse response of length `rt60` whose first sample, the direct sound, is 1."""
        rt60, direct = rng.uniform(*self.rt60), rng.uniform(*self.direct)
        seconds = np.arange(1, round(rt60 * audio.SAMPLE_RATE)) / audio.SAMPLE_RATE
        tail = rng.standard_normal(len(seconds)) * 10 ** (-3 * seconds / rt60)
        tail *= 10 ** (-direct / 20) / np.linalg.norm(tail)
        return np.concatenate([[1.0], tail]).astype(np.float32)


def reverberate(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolve a clip (L,) with an impulse response that starts with the direct sound; keep its length and energy."""
    reverberated = fftconvolve(torch.from_numpy(wave), torch.from_numpy(response))[: len(wave)].numpy()
    norm = np.linalg.norm(reverberated)
    return reverberated * (np.linalg.norm(wave) / norm) if norm > 0 else wave


def _read_clips(key: str, path: str | Path | None) -> list[Clip]:
    """Return the clips of a manifest; the other fields of its rows are ignored.

    Raises:
        UserError: There is no manifest, or a clip cannot be read.
    """
    if path is None:
        raise UserError(f"{key}=null: expected a manifest of audio files, {key}=FILE.jsonl")
    [manifest] = read_manifests([path], key=key)
    clips: list[Clip] = []
    for row in manifest.rows:
        if not row.clips:
            raise UserError(f"{key}: row {shorten(row.id)} has no audio ({row.problem})")
        clips += row.clips
    for clip in clips:
        try:
            clip.n_samples()
        except AudioError as error:
            raise UserError(f"{key}: {error}") from error
    return clips


def _parse_range(key: str, values: Sequence[float], *, minimum: float) -> tuple[float, float]:
    if len(values) != 2 or not minimum <= values[0] <= values[1] < float("inf"):
        raise UserError(f"{key}={list(values)}: expected [minimum, maximum], both at least {minimum}")
    return values[0], values[1]
