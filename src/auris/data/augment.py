"""Noise and rooms that training clips are heard through.

A clip keeps its length, and its sounds keep their times: labels with times stay true, and so do planned lengths.

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
from auris.errors import AudioError, UserError


class Distortion(ABC):
    """What a clip is heard through with probability `p`.

    Raises ValueError for a `p` that is no probability, or 0, which would have no effect.
    """

    key: str  # of the config, for messages

    def __init__(self, p: float):
        if not 0 < p <= 1:
            raise UserError(f"{self.key}.p={p}: expected a probability above 0 ({self.key}=null turns it off)")
        self.p = p

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(L,) float32 to (L,) float32; all that is random comes from `rng`. Raises AudioError."""
        return self.apply(wave, rng) if rng.random() < self.p else wave

    @abstractmethod
    def apply(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray: ...


class Noise(Distortion):
    """Adds a stretch of a recording, which goes round where it is shorter than the clip.

    A silent stretch adds nothing, and nothing is added to a silent clip: there is no ratio between them to set.

    Args:
        manifest: of the recordings.
        snr: least and greatest ratio of the clip's energy to the noise's, in dB.
        p: of a clip to be heard so.
    """

    key = "data.noise"

    def __init__(self, *, manifest: str | Path | None, snr: Sequence[float], p: float):
        super().__init__(p)
        self.snr = _range(f"{self.key}.snr", snr, least=-100.0)
        self.clips = _clips(f"{self.key}.manifest", manifest)

    def apply(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        snr = torch.tensor(rng.uniform(*self.snr), dtype=torch.float32)
        noise = self._stretch(len(wave), rng)
        if audio.is_silent(noise) or audio.is_silent(wave):
            return wave
        return add_noise(torch.from_numpy(wave), torch.from_numpy(noise), snr).numpy()

    def _stretch(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """`length` samples of a recording from anywhere in it."""
        clip = self.clips[rng.integers(len(self.clips))]
        total = clip.n_samples()
        first = int(rng.integers(total - length + 1 if total > length else total))
        if total <= length:
            noise = clip.read()
            return noise[(first + np.arange(length)) % len(noise)]
        offset = (clip.offset or 0.0) + first / audio.SAMPLE_RATE
        noise = audio.read(clip.path, offset, length / audio.SAMPLE_RATE)
        return noise[np.arange(length) % len(noise)]  # a rate that 16 kHz is no multiple of may give one sample less


class RecordedRooms(Distortion):
    """Convolves a clip with a recorded impulse response from its largest peak on, the direct sound.

    Args:
        manifest: of the responses.
        p: of a clip to be heard so.
    """

    key = "data.reverb"

    def __init__(self, *, manifest: str | Path | None, p: float):
        super().__init__(p)
        self.clips = _clips(f"{self.key}.manifest", manifest)

    def apply(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        response = self.clips[rng.integers(len(self.clips))].read()
        return reverberate(wave, response[np.abs(response).argmax() :])


class SyntheticRooms(Distortion):
    """Convolves a clip with a direct sound and exponentially decaying white noise behind it (Polack's model).

    Args:
        rt60: least and greatest time in which the reverberation falls by 60 dB, in seconds.
        direct: least and greatest ratio of the direct sound's energy to the reverberation's, in dB.
        p: of a clip to be heard so.
    """

    key = "data.reverb"

    def __init__(self, *, rt60: Sequence[float], direct: Sequence[float], p: float):
        super().__init__(p)
        self.rt60 = _range(f"{self.key}.rt60", rt60, least=0.01)
        self.direct = _range(f"{self.key}.direct", direct, least=-100.0)

    def apply(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return reverberate(wave, self.response(rng))

    def response(self, rng: np.random.Generator) -> np.ndarray:
        """An impulse response, as long as its reverberation takes to fall by 60 dB; its first sample is 1."""
        rt60, direct = rng.uniform(*self.rt60), rng.uniform(*self.direct)
        seconds = np.arange(1, round(rt60 * audio.SAMPLE_RATE)) / audio.SAMPLE_RATE
        tail = rng.standard_normal(len(seconds)) * 10 ** (-3 * seconds / rt60)
        tail *= 10 ** (-direct / 20) / np.linalg.norm(tail)
        return np.concatenate([[1.0], tail]).astype(np.float32)


def reverberate(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """(L,) convolved with an impulse response that starts with the direct sound: L samples, as loud as before."""
    heard = fftconvolve(torch.from_numpy(wave), torch.from_numpy(response))[: len(wave)].numpy()
    loudness = np.linalg.norm(heard)
    return heard * (np.linalg.norm(wave) / loudness) if loudness > 0 else wave


def _clips(key: str, manifest: str | Path | None) -> list[Clip]:
    """The sound files of a manifest, whatever else its rows say. Raises ValueError for one that cannot be read."""
    if manifest is None:
        raise UserError(f"{key}=null: expected a manifest of sound files, {key}=FILE.jsonl")
    (found,) = read_manifests([manifest], key=key)
    clips = []
    for row in found.rows:
        if not row.clips:
            raise UserError(f"{key}: row {row.id!r} has no sound ({row.problem})")
        clips += row.clips
    for clip in clips:
        try:
            clip.n_samples()
        except AudioError as error:
            raise UserError(f"{key}: {error}") from error
    return clips


def _range(key: str, given: Sequence[float], *, least: float) -> tuple[float, float]:
    if len(given) != 2 or not least <= given[0] <= given[1] < float("inf"):
        raise UserError(f"{key}={list(given)}: expected [least, greatest], numbers from {least} on")
    return given[0], given[1]
