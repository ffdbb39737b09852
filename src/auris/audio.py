"""Audio front end: reading, resampling, windows, log-mel spectrograms and SpecAugment.

Unlike Whisper's, the features are only as long as their clip. They equal the first frames of the features that Whisper
computes for the clip padded to 30 s. A longer clip can be split into windows of at most 30 s, which are encoded
separately.

Shapes: L samples at 16 kHz, N valid mel frames, S = n_frames_with_padding(N) frames, which include some silence
after the clip.
"""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeVar

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from auris.errors import AudioError, UserError, shorten

_REMEDY = "install matching versions: pip install torch==2.11.0 torchaudio==2.11.0"


def require_matching_versions(torch_version: str, torchaudio_version: str) -> None:
    """Raise ImportError unless torch and torchaudio have the same release and build (`+cu130` is a build for CUDA)."""
    if torch_version != torchaudio_version:
        raise ImportError(f"torch {torch_version} and torchaudio {torchaudio_version} do not match; {_REMEDY}")


try:
    import torchaudio
    from torchaudio.functional import mask_along_axis
except (ImportError, OSError, RuntimeError) as error:  # OSError: torchaudio was built for another torch
    raise ImportError(f"torchaudio does not work with torch {torch.__version__} ({error}); {_REMEDY}") from error
require_matching_versions(torch.__version__, torchaudio.__version__)

# Whisper's front end (Radford et al. 2022, section 2.2; transformers WhisperFeatureExtractor).
SAMPLE_RATE = 16_000  # Hz
N_FFT = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
MAX_SAMPLES = 480_000  # 30 s, the longest clip that the encoder's position table covers
MAX_FRAMES = 3_000
ENCODER_RATE = 50  # encoder frames per second
_CHUNK = 256  # frames per FFT call: their samples and their spectrum (0.4 MB each) fit into the cache of a core

# A clip is silent if its samples differ by less than this, 6 steps of 16-bit audio. Samples of dither (one step up or
# down) differ by 2 steps, and after resampling by up to 4.5 (rates from 8 to 96 kHz).
SILENCE = 6 * 2**-15

# Limits of samples given by a caller. They find a spectrogram in place of a clip, and integers that were converted to
# floats without scaling. Peaks of decoded lossy files are a little above 1.
_MAX_CHANNELS = 8
_MAX_PEAK = 2.0

# A segment in a manifest may end this many seconds after the end of its file, because times are rounded (Kaldi's
# extract-segments, --max-overshoot=0.5). The segment then stops at the end of the file. A larger excess is an error.
MAX_OVERSHOOT = 0.5

_MAX_PATH = 200  # characters of a path in the message that there is no such file; the "path" may be a file in Base64


class Sound(Protocol):
    """An audio file that is stored inside another file, such as a shard.

    `str(sound)` is the name that messages show.
    """

    @property
    def n_samples(self) -> int | None:
        """Number of samples at 16 kHz; None if it is not known without reading the file."""
        ...

    def read(self) -> bytes:
        """Return the content of the file.

        Raises:
            AudioError: The file cannot be read.
        """
        ...


Source = str | Path | Sound

Samples = np.ndarray | Tensor | Sequence[float]
Audio = str | Path | bytes | BinaryIO | Samples | tuple[Samples, int] | tuple[int, Samples] | Mapping[str, Any]
"""Audio in any form that `to_wave` accepts."""
_FORMS = "a path, the bytes of a file, a binary file, samples, (samples, rate) or {array, sampling_rate}"


@dataclass(frozen=True)
class FileContent:
    """The content of an audio file in memory, as a `Sound`."""

    content: bytes
    n_samples: int | None = None

    def read(self) -> bytes:
        """Return the content."""
        return self.content

    def __str__(self) -> str:
        return f"the content of a file ({len(self.content):,} bytes)"


_SampleType = Literal["float32", "int16", "int32"]
_Count = TypeVar("_Count", int, Tensor)


def n_frames(n_samples: int) -> int:
    """Return the number N of valid mel frames of a clip (10 ms each; the last one may be incomplete)."""
    return min(math.ceil(n_samples / HOP), MAX_FRAMES)


def n_frames_with_padding(n_frames: int) -> int:
    """Return the number S of frames to compute for a clip: its valid frames and two frames of silence.

    The encoder's convolutions look past the last valid frame. Without these two frames its outputs would differ from
    the outputs for the clip padded to 30 s.
    """
    return min(n_frames + 2, MAX_FRAMES)


def n_encoder_frames(n_frames: _Count) -> _Count:
    """Return the number of encoder frames (ENCODER_RATE per second) of clips with `n_frames` valid mel frames.

    The second convolution of the encoder has stride 2.
    """
    return (n_frames - 1) // 2 + 1


@dataclass(frozen=True)
class Geometry:
    """Properties of a model that determine the numbers of audio frames and tokens.

    Attributes:
        n_mels: Number of mel bins of the encoder.
        pool: Number of encoder frames (20 ms each) per audio token.
        clip_end: Treatment of the end of a clip. "silence" (Whisper, Qwen2-Audio): the number of frames is rounded up
            and two frames of silence are added. "zero" (Qwen-Audio as released): the number is rounded down, one frame
            is added if it is odd, and the convolutions pad with zeros.
        boundary: Whether learned vectors replace the embeddings of the begin and end token of each clip (Qwen-Audio).
    """

    n_mels: int
    pool: int
    clip_end: str = "silence"
    boundary: bool = False

    def n_frames(self, n_samples: int) -> int:
        """Return the number of valid mel frames of a clip; 0 if it is shorter than one frame."""
        return n_frames(n_samples) if self.clip_end == "silence" else min(n_samples // HOP, MAX_FRAMES)

    def n_frames_with_padding(self, n_frames: int) -> int:
        """Return the number of frames to compute for a clip with `n_frames` valid frames."""
        return n_frames_with_padding(n_frames) if self.clip_end == "silence" else n_frames + n_frames % 2

    def n_tokens(self, n_frames: int) -> int:
        """Return the number of complete audio tokens of a window with `n_frames` valid mel frames."""
        return n_encoder_frames(n_frames) // self.pool if n_frames > 0 else 0

    def n_clip_tokens(self, window_frames: Sequence[int]) -> int:
        """Return the number of audio tokens between the begin and end token of a clip.

        With learned boundaries, each window has a begin and an end vector. The outermost two replace the begin and end
        token; the vectors between windows count as audio tokens.

        Args:
            window_frames: Number of valid frames of each window of the clip.
        """
        inner = 2 * (len(window_frames) - 1) if self.boundary else 0
        return sum(map(self.n_tokens, window_frames)) + inner


def _open(source: Source) -> soundfile.SoundFile:
    """Open a sound file.

    Raises:
        AudioError: The file does not exist, cannot be decoded, or holds no samples.
    """
    if isinstance(source, (str, Path)):
        path = str(source)
        if not os.path.isfile(path):
            name = path if path.isprintable() and len(path) <= _MAX_PATH else shorten(path, _MAX_PATH)
            # pathlib turns https:// into https:/, and a manifest's directory may precede it.
            is_url = re.search(r"(^|/)[a-z][a-z0-9+]+:/", path) is not None
            advice = " (audio is not read from URLs: download it first)" if is_url else ""
            raise AudioError(f"{name}: no such file{advice}")
        content: str | io.BytesIO = path
    else:
        content = io.BytesIO(source.read())
    try:
        file = soundfile.SoundFile(content)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a .raw file, which has no header
        reason = getattr(error, "error_string", error)  # without "Error opening <_io.BytesIO object at 0x7f...>"
        raise AudioError(f"{source}: cannot be decoded ({reason})") from error
    if file.frames == 0:
        file.close()
        raise AudioError(f"{source}: holds no samples")
    return file


def _locate(path: Source, file: soundfile.SoundFile, offset: float, duration: float | None) -> tuple[int, int]:
    """Return the position of the first sample of a segment and its number of samples, at the rate of the file."""
    rate, file_length = file.samplerate, file.frames
    file_seconds = file_length / rate
    if offset < 0 or (duration is not None and duration <= 0):
        raise AudioError(f"{path}: expected offset >= 0 and duration > 0 seconds, got {offset=} {duration=}")
    start = round(offset * rate)
    if start >= file_length:
        raise AudioError(f"{path}: offset {offset} s is beyond the end of the file at {file_seconds:.3f} s")
    length = file_length - start
    if duration is not None:
        if offset + duration > file_seconds + MAX_OVERSHOOT:
            raise AudioError(f"{path}: segment {offset} s + {duration} s runs past the end at {file_seconds:.3f} s")
        length = min(length, round(duration * rate))
    if _resampled_length(length, rate) == 0:
        raise AudioError(f"{path}: {length} samples at {rate} Hz are less than one sample at 16 kHz")
    return start, length


def _resampled_length(length: int, rate: int) -> int:
    """Return the number of samples after resampling `length` samples to 16 kHz.

    Like soxr, it uses the exact ratio of the rates and rounds halves up (checked at 14 sampling rates).
    """
    return (2 * length * SAMPLE_RATE + rate) // (2 * rate)


def n_samples(path: Source, offset: float = 0.0, duration: float | None = None) -> int:
    """Return the number of samples at 16 kHz that `read` returns for the same arguments, from the file's header alone.

    The number is exact except for an mp3 that is truncated or has no Xing or Info frame. For such files it is an upper
    bound: libsndfile estimates the length from the file's size and first bit rate, and does not decode beyond it.

    Raises:
        AudioError: An error that `read` lists and that can be found from the header alone.
    """
    length_in_header = None if isinstance(path, (str, Path)) else path.n_samples
    if length_in_header is not None and offset == 0.0 and duration is None:
        return length_in_header
    with _open(path) as file:
        _, length = _locate(path, file, offset, duration)
        return _resampled_length(length, file.samplerate)


def read(path: Source, offset: float = 0.0, duration: float | None = None) -> np.ndarray:
    """Decode a file, or a segment of it, to 16 kHz mono (L,) float32.

    All formats of libsndfile (wav, flac, ogg vorbis, ogg opus, mp3, ...), sampling rates and channel counts are
    supported. Channels are averaged, then resampled by soxr at its HQ setting (as fast as torchaudio's default and
    29 dB more accurate).

    Args:
        path: The file.
        offset: Start of the segment in seconds.
        duration: Length of the segment in seconds; None for the rest of the file.

    Raises:
        AudioError: The file does not exist, cannot be decoded, holds no samples or samples that are not finite, ends
            earlier than its header says (detected for flac only: libsndfile reports no error for other truncated
            files), or does not contain the segment.
    """
    return resample(*decode(path, offset, duration))


def decode(path: Source, offset: float = 0.0, duration: float | None = None) -> tuple[np.ndarray, int]:
    """Decode a file, or a segment of it, without resampling: return (L, channels) float32 and the rate in Hz.

    Raises:
        AudioError: An error that `read` lists.
    """
    with _open(path) as file:
        rate = file.samplerate
        wave = _decode(path, file, *_locate(path, file, offset, duration), "float32")
    if _resampled_length(len(wave), rate) == 0:
        raise AudioError(f"{path}: there are no samples after {offset} s")
    if not np.isfinite(wave).all():
        raise AudioError(f"{path}: has samples that are not finite numbers")
    return wave, rate


def resample(wave: np.ndarray, rate: int) -> np.ndarray:
    """Convert (L, channels) at `rate` Hz to 16 kHz mono (L,)."""
    length = _resampled_length(len(wave), rate)
    wave = wave.mean(axis=1) if wave.shape[1] > 1 else wave[:, 0]
    if rate != SAMPLE_RATE:
        wave = soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ")
    assert len(wave) == length, (len(wave), length, rate)
    return wave


def to_wave(audio: Audio) -> np.ndarray:
    """Convert audio in any form that a caller may have to 16 kHz mono (L,) float32.

    Channels are averaged, then resampled, as by `read`. Integers are scaled by the range of their type. Floats are
    expected from -1 to 1. A peak far above 1 is warned of, and int32 whose peak has at most 16 bits.

    Args:
        audio: One of these forms:

            - a file: its path, its content as bytes, or an open binary file;
            - samples at 16 kHz: an array, a tensor or a list of floats, (L,), (L, channels) or (channels, L);
            - samples at another rate: `(samples, rate)`, or `(rate, samples)` as in Gradio;
            - an entry of a Hugging Face data set: `{array, sampling_rate}`, `{bytes, path}` of a file, or torchcodec's
              `AudioDecoder`.

    Raises:
        AudioError: The audio has another form, it has no samples or samples that are not finite, its rate is not a
            whole number of Hz, or a file cannot be read.
    """
    given: Any = audio
    if isinstance(given, Mapping):
        if {"array", "sampling_rate"} <= given.keys():
            given = (given["array"], given["sampling_rate"])
        elif (file := given.get("bytes") or given.get("path")) and "array" not in given:
            given = file
        else:
            keys = shorten(list(given))
            raise AudioError(f"audio is a dict of {keys}: expected array and sampling_rate, or a file's bytes or path")
    if hasattr(given, "get_all_samples"):  # torchcodec's AudioDecoder
        decoded = given.get_all_samples()
        given = (decoded.data, decoded.sample_rate)
    if isinstance(given, (str, os.PathLike)):
        return read(Path(given))
    content = given.read() if hasattr(given, "read") else given
    if isinstance(content, (bytes, bytearray, memoryview)):
        if not len(content):
            raise AudioError("audio is a file without content, or an open file at its end: set its position by seek(0)")
        return read(FileContent(bytes(content)))
    samples, rate = (given[::-1] if _is_rate(given[0]) else given) if has_rate(given) else (given, SAMPLE_RATE)
    if not _is_rate(rate) or rate != int(rate) or rate < 1_000:
        raise AudioError(f"audio with the sampling rate {shorten(rate)}: expected a whole number of Hz, at least 1,000")
    channels = _to_channels(samples)
    if _resampled_length(len(channels), int(rate)) == 0:
        raise AudioError(f"audio of {len(channels)} samples at {rate} Hz: expected at least one sample at 16 kHz")
    wave = resample(channels, int(rate))
    if (peak := float(np.abs(wave).max())) > _MAX_PEAK:
        warnings.warn(
            f"audio has a peak of {peak:.4g}, expected floats from -1 to 1: pass integers with their own type, or "
            "divide by their range",
            stacklevel=2,
        )
    is_int32 = str(getattr(samples, "dtype", "")).removeprefix("torch.") == "int32"
    if is_int32 and 0 < peak < 2**-16:
        warnings.warn(
            f"audio of type int32 has a peak of {peak * 2**31:.0f} steps: if it has 16 bits, pass it as int16",
            stacklevel=2,
        )
    return wave


def has_rate(audio: Any) -> bool:
    """Return whether audio is `(samples, rate)` or `(rate, samples)`, and not a tuple of two clips."""
    return (
        isinstance(audio, tuple)
        and len(audio) == 2
        and any(_is_rate(part) or part is None for part in audio)
        and any(isinstance(part, (np.ndarray, Tensor, list)) for part in audio)
    )


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def _to_channels(samples: Any) -> np.ndarray:
    """Return samples given by a caller as (L, channels) float32."""
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()  # NumPy has no bfloat16
    try:
        array = np.asarray(samples)
    except ValueError as error:  # lists of different lengths
        raise AudioError(f"audio is a list of unequal parts: expected {_FORMS}") from error
    if array.dtype.kind in "OUSM" or not array.ndim:
        raise AudioError(f"audio is {shorten(samples)}: expected {_FORMS}")
    if array.dtype.kind != "f" and array.dtype not in ("int8", "int16", "int32", "uint8"):
        raise AudioError(f"audio has samples of type {array.dtype}: expected floats, int8, int16, int32 or uint8")
    if not array.size:
        raise AudioError("audio has no samples")
    if array.ndim > 2 or (array.ndim == 2 and min(array.shape) > _MAX_CHANNELS):
        raise AudioError(
            f"audio of shape {array.shape}: expected (L,), (L, channels) or (channels, L) with at most {_MAX_CHANNELS} "
            "channels; several clips are passed as a list"
        )
    wave = array.astype(np.float32)
    if array.dtype.kind in "iu":
        half_range = np.float32(2 ** (8 * array.itemsize - 1))
        wave = (wave - half_range if array.dtype.kind == "u" else wave) / half_range
    if not np.isfinite(wave).all():
        raise AudioError("audio has samples that are not finite numbers")
    return wave.reshape(-1, 1) if wave.ndim == 1 else wave if wave.shape[0] > wave.shape[1] else wave.T


def _decode(path: Source, file: soundfile.SoundFile, start: int, length: int, dtype: _SampleType) -> np.ndarray:
    """Return `length` samples from `start` on, (L, channels) at the rate of the file."""
    # An mp3 is decoded from its beginning, because its frames depend on earlier ones: up to 0.3 s after a seek would be
    # wrong. It may be shorter than `length` without being truncated, because its header may hold only an estimate.
    is_mp3 = file.format == "MP3"
    skip = start if is_mp3 else 0
    try:
        if start > skip:
            file.seek(start)
        wave = file.read(skip + length, dtype=dtype, always_2d=True)[skip:]
    except soundfile.SoundFileError as error:
        raise AudioError(f"{path}: cannot be decoded ({error})") from error
    if len(wave) < length and not is_mp3:
        raise AudioError(f"{path}: is truncated, it ends after {len(wave)} of {length} samples")
    return wave


# Lossless encodings of a segment, by the subtype of the original file: (numpy type, format, subtype). FLAC stores
# integers of up to 24 bits. Every other subtype is stored as the floating-point samples that `read` returns.
_ENCODINGS: dict[str, tuple[_SampleType, str, str]] = {
    "PCM_U8": ("int16", "FLAC", "PCM_16"),
    "PCM_S8": ("int16", "FLAC", "PCM_16"),
    "PCM_16": ("int16", "FLAC", "PCM_16"),
    "PCM_24": ("int32", "FLAC", "PCM_24"),
}
_FLOAT_ENCODING: tuple[_SampleType, str, str] = ("float32", "WAV", "FLOAT")
_MAX_FLAC_CHANNELS = 8


def cut_segment(path: Source, offset: float, duration: float | None = None) -> bytes:
    """Return a segment of a file as the bytes of a new audio file, from which `read` returns the same samples.

    Raises:
        AudioError: An error that `read` lists.
    """
    with _open(path) as file:
        encoding = _ENCODINGS.get(file.subtype, _FLOAT_ENCODING)
        dtype, container, subtype = encoding if file.channels <= _MAX_FLAC_CHANNELS else _FLOAT_ENCODING
        wave = _decode(path, file, *_locate(path, file, offset, duration), dtype)
    out = io.BytesIO()
    soundfile.write(out, wave, file.samplerate, format=container, subtype=subtype)
    return out.getvalue()


def is_silent(wave: np.ndarray) -> bool:
    """Return whether samples (L,) differ by less than `SILENCE`; a constant offset is silent too."""
    return bool(np.ptp(wave) < SILENCE)


def window_lengths(n_samples: int) -> list[int]:
    """Return the number of samples in each window into which `split_into_windows` splits a clip."""
    n_windows = math.ceil(n_samples / MAX_SAMPLES)
    return [(n_samples + i) // n_windows for i in range(n_windows)]


def split_into_windows(wave: np.ndarray) -> list[np.ndarray]:
    """Split (L,) into the smallest number of windows of at most 30 s, with equal lengths (40 s gives 2 x 20 s).

    With equal lengths no window is shorter than one audio token, so no samples at the end are lost.
    """
    lengths = window_lengths(len(wave))
    return [wave[end - length : end] for length, end in zip(lengths, accumulate(lengths), strict=True)]


@cache
def _window() -> Tensor:
    return torch.hann_window(N_FFT, dtype=torch.float32)


@cache
def _mel_filters(n_mels: int) -> Tensor:
    """Return Whisper's mel filters as a sparse matrix (n_mels, N_FFT // 2 + 1).

    With torchaudio's filters the features would differ by 1e-4. The matrix is sparse because each filter covers few
    frequencies; a dense product took half of the total time.
    """
    filters = WhisperFeatureExtractor(feature_size=n_mels).mel_filters
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.from_numpy(filters).float().T.to_sparse_csr()


def log_mel(wave: np.ndarray | Tensor, n_mels: int, n_returned: int | None = None) -> Tensor:
    """Compute Whisper's log-mel spectrogram (n_mels, S) float32 of a clip (L,) at 16 kHz, without padding it to 30 s.

    It equals the first S frames of transformers' WhisperFeatureExtractor(feature_size=n_mels), which pads the clip with
    silence to 30 s. Later frames contain only silence, so they never contain the maximum that scales the spectrogram.

    Args:
        wave: Samples.
        n_mels: Number of mel bins.
        n_returned: Number of frames to return; None for S = `n_frames_with_padding(n_frames(L))`.

    Raises:
        UserError: The clip is empty or longer than 30 s.
    """
    wave = torch.as_tensor(wave, dtype=torch.float32)
    assert wave.ndim == 1, wave.shape
    if not 0 < len(wave) <= MAX_SAMPLES:
        raise UserError(
            f"a clip is {len(wave) / SAMPLE_RATE:.2f} s long, expected more than 0 s and at most 30 s. For longer "
            "clips set data.long_audio=window (split them), first (keep the first 30 s), skip (leave out their rows) "
            "or error (stop before training)"
        )
    # The maximum is taken over all these frames, even if fewer are returned.
    n_with_padding = n_frames_with_padding(n_frames(len(wave)))
    half = N_FFT // 2
    end = (n_with_padding - 1) * HOP + half  # end of the last frame
    padded = wave.new_zeros(half + end)
    padded[half : half + len(wave)] = wave
    # Whisper mirrors the 30 s signal at both ends. On the right only the last of the 3000 frames extends beyond the
    # end; a shorter clip is followed by silence, not by its mirror image.
    padded[:half] = padded[half + 1 : 2 * half + 1].flip(0)
    if (excess := end - MAX_SAMPLES) > 0:
        padded[-excess:] = padded[-2 * excess - 1 : -excess - 1].flip(0)
    window, filters = _window().to(wave.device), _mel_filters(n_mels).to(wave.device)
    parts = []
    for part in padded.unfold(0, N_FFT, HOP).split(_CHUNK):
        # This is 1.5 times as fast as torch.stft(...).abs() ** 2, and equal to it within 1e-7.
        spectrum = torch.fft.rfft(part * window)
        parts.append(filters @ (spectrum.real.square() + spectrum.imag.square()).T)
    mel = torch.cat(parts, dim=1).clamp_(min=1e-10).log10_()
    mel = mel.clamp_(min=mel.max() - 8.0).add_(4.0).div_(4.0)
    assert mel.shape == (n_mels, n_with_padding), (mel.shape, n_mels, n_with_padding)
    return mel[:, :n_returned].contiguous()


@dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """Time warp, frequency masks and time masks on a log-mel spectrogram (Park et al. 2019, arXiv 1904.08779).

    Masks are torchaudio's, filled with the clip's mean. torchaudio has no time warp, so the time warp of the paper is
    implemented here: linear interpolation between the ends of the clip and one shifted anchor. The paper's policy
    LibriSpeech Basic is n_freq_masks=1, freq_mask_param=27, n_time_masks=1, time_mask_param=100, p=1.0, time_warp=80.

    Attributes:
        n_freq_masks: Number of frequency masks.
        freq_mask_param: A frequency mask is narrower than this number of mel bins (F).
        n_time_masks: Number of time masks.
        time_mask_param: A time mask is shorter than this number of frames (T).
        p: A time mask is shorter than this fraction of the clip.
        time_warp: The anchor is shifted by less than this number of frames (W); 0 turns the time warp off. The anchor
            is at least W frames from both ends, so clips of 2 W frames or fewer are not warped.
    """

    n_freq_masks: int
    freq_mask_param: int
    n_time_masks: int
    time_mask_param: int
    p: float
    time_warp: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise UserError(f"p={self.p}: expected the maximum fraction of frames in a time mask, from 0 to 1")
        for name in ("n_freq_masks", "freq_mask_param", "n_time_masks", "time_mask_param", "time_warp"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: expected 0 or more")

    def __call__(self, mel: Tensor, n_frames: int, seed: int) -> Tensor:
        """Augment the first `n_frames` frames of (n_mels, S); the silence after them is unchanged.

        Raises:
            UserError: `freq_mask_param` is greater than the number of mel bins.
        """
        n_mels, n_with_padding = mel.shape
        assert 0 < n_frames <= n_with_padding, (n_frames, mel.shape)
        if self.freq_mask_param > n_mels:
            raise UserError(
                f"freq_mask_param={self.freq_mask_param}: expected at most {n_mels}, the number of mel bins"
            )
        clip, mean = mel[:, :n_frames], mel[:, :n_frames].mean().item()
        # torchaudio draws from the global generator. torch.manual_seed would reseed generators of accelerators too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if 0 < 2 * self.time_warp < n_frames:
                clip = self._warp(clip)
            for _ in range(self.n_freq_masks):
                clip = mask_along_axis(clip, self.freq_mask_param, mean, axis=0)
            # With p = 1 torchaudio does not limit a mask to the clip's length, and would start it before the clip.
            max_width = min(self.time_mask_param, math.floor(self.p * n_frames))
            for _ in range(self.n_time_masks):
                clip = mask_along_axis(clip, max_width, mean, axis=1)
        return torch.cat([clip, mel[:, n_frames:]], dim=1)

    def _warp(self, clip: Tensor) -> Tensor:
        last = clip.shape[1] - 1
        anchor = int(torch.randint(self.time_warp, last + 1 - self.time_warp, ()))
        target = anchor + int(torch.randint(1 - self.time_warp, self.time_warp, ()))
        time = torch.arange(last + 1)
        left, right = time * (anchor / target), last - (last - time) * ((last - anchor) / (last - target))
        source = torch.where(time < target, left, right)
        before = source.long().clamp(max=last - 1)
        return torch.lerp(clip[:, before], clip[:, before + 1], source - before)
