"""Sound files to the encoder's input: read, resample, log-mel, windows, SpecAugment.

Unusual here: a clip's features have the clip's own length, and still equal the first frames of the features that
Whisper computes for the clip padded to 30 s.

Shapes: L samples at 16 kHz, N valid mel frames, S = stored(N) stored frames.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from auris.errors import AudioError, UserError

_REMEDY = "install the pair that belongs together: pip install torch==2.11.0 torchaudio==2.11.0"


def require_pair(torch_version: str, torchaudio_version: str) -> None:
    """Raise ImportError unless torch and torchaudio are of one release and one build (`2.11.0+cu130`: CUDA 13.0)."""
    if torch_version != torchaudio_version:
        raise ImportError(f"torch {torch_version} and torchaudio {torchaudio_version} do not match; {_REMEDY}")


try:
    import torchaudio
    from torchaudio.functional import mask_along_axis
except (ImportError, OSError, RuntimeError) as error:  # OSError: its libraries want another build of torch
    raise ImportError(f"torchaudio does not work with torch {torch.__version__} ({error}); {_REMEDY}") from error
require_pair(torch.__version__, torchaudio.__version__)

# Whisper's front end (Radford et al. 2022, section 2.2; transformers WhisperFeatureExtractor).
SAMPLE_RATE = 16_000  # Hz
N_FFT = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
MAX_SAMPLES = 480_000  # 30 s, the longest clip that the encoder's position table covers
MAX_FRAMES = 3_000
ENCODER_RATE = 50  # encoder frames a second
_IN_CACHE = 256  # frames whose samples and spectrum stay in a core's cache (0.4 MB each)

SILENCE = 2**-15  # one step of 16-bit audio: samples that differ by less than this are silence

# A manifest's segment may end this much past the end of its file, as times are rounded (Kaldi's extract-segments,
# --max-overshoot=0.5); it then ends with the file. Beyond, the row is wrong.
MAX_OVERSHOOT = 0.5  # seconds


class Sound(Protocol):
    """A sound file that is not alone in a file system, as one in a shard; its string names it in messages."""

    samples: int | None  # at 16 kHz, where that is known without reading

    def read(self) -> bytes:
        """The file, whole. Raises AudioError if it cannot be read."""
        ...


Source = str | Path | Sound

_Frames = TypeVar("_Frames", int, Tensor)


def frames(n_samples: int) -> int:
    """Valid mel frames N of a clip of `n_samples` samples (10 ms each, the last one may be partly empty)."""
    return min(math.ceil(n_samples / HOP), MAX_FRAMES)


def stored(frames: int) -> int:
    """Frames kept of a clip with `frames` valid ones: two frames of the following silence go along.

    The encoder's convolutions look past the last valid frame; without these two its outputs would differ from those
    of the clip padded to 30 s.
    """
    return min(frames + 2, MAX_FRAMES)


def encoder_frames(frames: _Frames) -> _Frames:
    """Encoder frames (ENCODER_RATE a second) of clips with `frames` valid mel frames: the second convolution halves."""
    return (frames - 1) // 2 + 1


@dataclass(frozen=True)
class Geometry:
    """What data must know of a model.

    Args:
        n_mels: mel bins of the encoder.
        pool: encoder frames (20 ms) per audio token.
        clip_end: "silence" (Whisper, Qwen2-Audio): lengths round up, two frames of silence follow the clip; "zero"
            (Qwen-Audio as released): lengths round down, and what follows an even number of frames is the zero padding
            of the convolutions.
        boundary: learned vectors stand in the places of the tokens around each clip (Qwen-Audio).
    """

    n_mels: int
    pool: int
    clip_end: str = "silence"
    boundary: bool = False

    def frames(self, n_samples: int) -> int:
        """Valid mel frames of a clip of `n_samples` samples (0: too short for one)."""
        return frames(n_samples) if self.clip_end == "silence" else min(n_samples // HOP, MAX_FRAMES)

    def stored(self, frames: int) -> int:
        """Frames kept of a clip with `frames` valid ones: what the encoder's convolutions look at."""
        return stored(frames) if self.clip_end == "silence" else frames + frames % 2

    def tokens(self, frames: int) -> int:
        """Audio tokens of a clip with `frames` valid mel frames; an incomplete last one is dropped."""
        return encoder_frames(frames) // self.pool if frames > 0 else 0

    def span(self, windows: Sequence[int]) -> int:
        """Audio tokens between the marks of a clip whose windows have so many valid frames.

        With learned boundaries every window has its own; the outermost two take the places of the clip's marks.
        """
        inner = 2 * (len(windows) - 1) if self.boundary else 0
        return sum(map(self.tokens, windows)) + inner


def _open(source: Source) -> soundfile.SoundFile:
    """Raises AudioError where there is nothing to open, or nothing in it."""
    if isinstance(source, (str, Path)):
        file: str | io.BytesIO = str(source)
        if not os.path.isfile(file):
            name = file if file.isprintable() else repr(file)
            raise AudioError(f"{name}: no such file")
    else:
        file = io.BytesIO(source.read())
    try:
        opened = soundfile.SoundFile(file)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless .raw
        raise AudioError(f"{source}: cannot be decoded ({error})") from error
    if opened.frames == 0:
        opened.close()
        raise AudioError(f"{source}: holds no samples")
    return opened


def _locate(path: Source, opened: soundfile.SoundFile, offset: float, duration: float | None) -> tuple[int, int]:
    """Where to read in a file: the first sample and the number of samples, at the file's own rate."""
    rate, frames = opened.samplerate, opened.frames
    end_of_file = frames / rate
    if offset < 0 or (duration is not None and duration <= 0):
        raise AudioError(f"{path}: expected offset >= 0 and duration > 0 seconds, got {offset=} {duration=}")
    start = round(offset * rate)
    if start >= frames:
        raise AudioError(f"{path}: offset {offset} s is beyond its end at {end_of_file:.3f} s")
    length = frames - start
    if duration is not None:
        if offset + duration > end_of_file + MAX_OVERSHOOT:
            raise AudioError(f"{path}: segment {offset} s + {duration} s runs past its end at {end_of_file:.3f} s")
        length = min(length, round(duration * rate))
    if _resampled(length, rate) == 0:
        raise AudioError(f"{path}: {length} samples at {rate} Hz are less than one sample at 16 kHz")
    return start, length


def _resampled(length: int, rate: int) -> int:
    """Samples that soxr makes of `length` samples: the exact ratio, halves rounded up (tried at 14 rates)."""
    return (2 * length * SAMPLE_RATE + rate) // (2 * rate)


def n_samples(path: Source, offset: float = 0.0, duration: float | None = None) -> int:
    """Samples at 16 kHz that `read` returns for the same arguments, from the file's header alone.

    Exact but for an mp3 that was cut off or lacks the Xing or Info frame with its length: there it is the most that
    `read` can return, as libsndfile guesses from the file's size and first bit rate, and decodes no further.

    Raises:
        AudioError: as `read`, as far as the header shows it.
    """
    known = None if isinstance(path, (str, Path)) else path.samples
    if known is not None and offset == 0.0 and duration is None:
        return known
    with _open(path) as opened:
        _, length = _locate(path, opened, offset, duration)
        return _resampled(length, opened.samplerate)


def read(path: Source, offset: float = 0.0, duration: float | None = None) -> np.ndarray:
    """Decode a file, or `duration` seconds of it from `offset` on, to 16 kHz mono (L,) float32.

    Any format of libsndfile (wav, flac, ogg vorbis, ogg opus, mp3, ...), rate and channel count. Channels are
    averaged, then resampled by soxr at its HQ setting (as fast as torchaudio's default and 29 dB more accurate).

    Raises:
        AudioError: no such file, undecodable, no samples, samples that are not finite, a file that ends before its
            header says (libsndfile shows this for flac; a wav, ogg or mp3 that was cut off is a shorter file to it),
            or a segment outside the file.
    """
    return resample(*decode(path, offset, duration))


def decode(path: Source, offset: float = 0.0, duration: float | None = None) -> tuple[np.ndarray, int]:
    """What `read` reads as it was recorded: (L, channels) float32, and its rate in Hz. Raises AudioError as `read`."""
    with _open(path) as opened:
        rate = opened.samplerate
        wave = _decode(path, opened, *_locate(path, opened, offset, duration), "float32")
    if _resampled(len(wave), rate) == 0:
        raise AudioError(f"{path}: no samples from {offset} s on")
    if not np.isfinite(wave).all():
        raise AudioError(f"{path}: has samples that are not finite numbers")
    return wave, rate


def resample(wave: np.ndarray, rate: int) -> np.ndarray:
    """(L, channels) at `rate` Hz to 16 kHz mono (L,)."""
    length = _resampled(len(wave), rate)
    wave = wave.mean(axis=1) if wave.shape[1] > 1 else wave[:, 0]
    if rate != SAMPLE_RATE:
        wave = soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ")
    assert len(wave) == length, (len(wave), length, rate)
    return wave


def _decode(path: Source, opened: soundfile.SoundFile, start: int, length: int, dtype: str) -> np.ndarray:
    """`length` samples from `start` on (L, channels), at the file's own rate."""
    # An mp3 is decoded from its start: its frames lean on earlier ones, so up to 0.3 s after a seek are wrong. And its
    # stated length may be a guess.
    is_mp3 = opened.format == "MP3"
    skip = start if is_mp3 else 0
    try:
        if start > skip:
            opened.seek(start)
        wave = opened.read(skip + length, dtype=dtype, always_2d=True)[skip:]
    except soundfile.SoundFileError as error:
        raise AudioError(f"{path}: cannot be decoded ({error})") from error
    if len(wave) < length and not is_mp3:
        raise AudioError(f"{path}: ends after {len(wave)} of {length} samples, the file is cut off")
    return wave


# What a stretch of a file is stored as, sample by sample the same: (numpy's type, format, subtype) by the file's own
# subtype. FLAC holds whole numbers of up to 24 bits; whatever else there is becomes what `read` makes of it.
_CUTS = dict.fromkeys(("PCM_U8", "PCM_S8", "PCM_16"), ("int16", "FLAC", "PCM_16"))
_CUTS["PCM_24"] = ("int32", "FLAC", "PCM_24")
_ANY_CUT = ("float32", "WAV", "FLOAT")
_FLAC_CHANNELS = 8


def cut(path: Source, offset: float, duration: float | None = None) -> bytes:
    """A stretch of a file as a file of its own: `read` of it from 0 on equals `read` of the stretch.

    Raises AudioError as `read`.
    """
    with _open(path) as opened:
        known = _CUTS.get(opened.subtype, _ANY_CUT)
        dtype, container, subtype = known if opened.channels <= _FLAC_CHANNELS else _ANY_CUT
        wave = _decode(path, opened, *_locate(path, opened, offset, duration), dtype)
    out = io.BytesIO()
    soundfile.write(out, wave, opened.samplerate, format=container, subtype=subtype)
    return out.getvalue()


def is_silent(wave: np.ndarray) -> bool:
    """Whether samples (L,) differ by less than one step of 16-bit audio; a constant offset is silent too."""
    return bool(np.ptp(wave) < SILENCE)


def window_lengths(n_samples: int) -> list[int]:
    """Samples in each window that `windows` cuts a clip of `n_samples` into."""
    n_windows = math.ceil(n_samples / MAX_SAMPLES)
    return [(n_samples + i) // n_windows for i in range(n_windows)]


def windows(wave: np.ndarray) -> list[np.ndarray]:
    """Split (L,) into the fewest windows of at most 30 s, as equal as can be (40 s gives 2 x 20 s).

    Equal windows leave no sliver shorter than one audio token at the end: every sample is heard.
    """
    lengths = window_lengths(len(wave))
    return [wave[end - length : end] for length, end in zip(lengths, accumulate(lengths), strict=True)]


@cache
def _window() -> Tensor:
    return torch.hann_window(N_FFT, dtype=torch.float32)


@cache
def _mel_filters(n_mels: int) -> Tensor:
    """Whisper's mel filters (n_mels, N_FFT // 2 + 1); torchaudio's are 1e-4 off in the features.

    Sparse: a filter sees few of the frequencies, and a product with the zeros took half of the time.
    """
    filters = WhisperFeatureExtractor(feature_size=n_mels).mel_filters
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.from_numpy(filters).float().T.to_sparse_csr()


def log_mel(wave: np.ndarray | Tensor, n_mels: int, n_stored: int | None = None) -> Tensor:
    """Whisper's log-mel spectrogram of a clip's true length: (L,) at 16 kHz to (n_mels, S) float32.

    S is `stored(frames(L))`, or the first `n_stored` of these.

    Equals the first S frames of transformers' WhisperFeatureExtractor(feature_size=n_mels), which pads the clip with
    silence to 30 s. Frames beyond them see silence only, so they never hold the maximum that levels the spectrogram.

    Raises:
        ValueError: no samples, or more than 30 s.
    """
    wave = torch.as_tensor(wave, dtype=torch.float32)
    assert wave.ndim == 1, wave.shape
    if not 0 < len(wave) <= MAX_SAMPLES:
        raise UserError(
            f"a clip of {len(wave) / SAMPLE_RATE:.2f} s: expected more than 0 s and at most 30 s. "
            "data.long_audio=window cuts longer clips into windows, skip leaves them out, error stops at the start"
        )
    n_frames = stored(frames(len(wave)))  # all that the maximum is taken over, even if fewer are returned
    half = N_FFT // 2
    end = (n_frames - 1) * HOP + half  # the last frame's last sample
    padded = wave.new_zeros(half + end)
    padded[half : half + len(wave)] = wave
    # The published recipe mirrors the 30 s signal at both ends. On the right only the last of all 3000 frames reaches
    # over that end; every other clip continues with silence, not with its mirror image.
    padded[:half] = padded[half + 1 : 2 * half + 1].flip(0)
    if (over := end - MAX_SAMPLES) > 0:
        padded[-over:] = padded[-2 * over - 1 : -over - 1].flip(0)
    window, filters = _window().to(wave.device), _mel_filters(n_mels).to(wave.device)
    parts = []
    for part in padded.unfold(0, N_FFT, HOP).split(_IN_CACHE):
        # Frames first and squares by hand: 1.5 times the speed of torch.stft(...).abs() ** 2, equal to 1e-7.
        spectrum = torch.fft.rfft(part * window)
        parts.append(filters @ (spectrum.real.square() + spectrum.imag.square()).T)
    mel = torch.cat(parts, dim=1).clamp_(min=1e-10).log10_()
    mel = mel.clamp_(min=mel.max() - 8.0).add_(4.0).div_(4.0)
    assert mel.shape == (n_mels, n_frames), (mel.shape, n_mels, n_frames)
    return mel[:, :n_stored].contiguous()


@dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """Time warp, frequency masks and time masks on a log-mel spectrogram (Park et al. 2019, arXiv 1904.08779).

    The masks are torchaudio's, filled with the clip's mean. torchaudio has no time warp: here it is the published
    one, linear between the clip's ends and one moved anchor. LibriSpeech Basic: n_freq_masks=1, freq_mask_param=27,
    n_time_masks=1, time_mask_param=100, p=1.0, time_warp=80.

    Args:
        n_freq_masks, n_time_masks: number of masks of each kind.
        freq_mask_param: a frequency mask is narrower than this many mel bins (F).
        time_mask_param: a time mask is shorter than this many frames (T), and than `p` times the clip's frames.
        time_warp: the anchor moves by less than this many frames (W), 0 = off. The anchor keeps W frames away from both
            ends, so clips of 2 W frames or fewer are not warped.
    """

    n_freq_masks: int
    freq_mask_param: int
    n_time_masks: int
    time_mask_param: int
    p: float
    time_warp: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise UserError(f"p={self.p}: expected the largest share of frames under one time mask, 0 to 1")
        for name in ("n_freq_masks", "freq_mask_param", "n_time_masks", "time_mask_param", "time_warp"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: expected 0 or more")

    def __call__(self, mel: Tensor, frames: int, seed: int) -> Tensor:
        """Augment the first `frames` frames of (n_mels, S); the silence behind them stays. `seed` decides it all."""
        n_mels, n_stored = mel.shape
        assert 0 < frames <= n_stored, (frames, mel.shape)
        if self.freq_mask_param > n_mels:
            raise UserError(f"freq_mask_param={self.freq_mask_param}: expected at most {n_mels}, the mel bins")
        clip, mean = mel[:, :frames], mel[:, :frames].mean().item()
        # torchaudio draws from the global generator; torch.manual_seed would reseed the accelerators' as well.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if 0 < 2 * self.time_warp < frames:
                clip = self._warp(clip)
            for _ in range(self.n_freq_masks):
                clip = mask_along_axis(clip, self.freq_mask_param, mean, axis=0)
            # With p = 1 torchaudio does not cap a mask at the clip's length, and would start it before the clip.
            longest = min(self.time_mask_param, math.floor(self.p * frames))
            for _ in range(self.n_time_masks):
                clip = mask_along_axis(clip, longest, mean, axis=1)
        return torch.cat([clip, mel[:, frames:]], dim=1)

    def _warp(self, clip: Tensor) -> Tensor:
        last = clip.shape[1] - 1
        anchor = int(torch.randint(self.time_warp, last + 1 - self.time_warp, ()))
        target = anchor + int(torch.randint(1 - self.time_warp, self.time_warp, ()))
        time = torch.arange(last + 1)
        left, right = time * (anchor / target), last - (last - time) * ((last - anchor) / (last - target))
        source = torch.where(time < target, left, right)
        before = source.long().clamp(max=last - 1)
        return torch.lerp(clip[:, before], clip[:, before + 1], source - before)
