"""Tests of reading, resampling, log-mel features (against WhisperFeatureExtractor), windows and SpecAugment."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from auris import audio
from auris.errors import AudioError
from support.features import check_log_mel

# suffix: (libsndfile format, subtype, tolerated error of the codec on a quiet tone)
CODECS = {
    "wav": ("WAV", "PCM_16", 1e-4),
    "wav-float": ("WAV", "FLOAT", 1e-4),
    "flac": ("FLAC", "PCM_16", 1e-4),
    "vorbis": ("OGG", "VORBIS", 0.03),
    "opus": ("OGG", "OPUS", 0.06),  # at 8 kHz the codec delays by almost a sample
    "mp3": ("MP3", "MPEG_LAYER_III", 0.03),
}


def tone(n_samples: int, rate: int) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 300 * np.arange(n_samples) / rate)).astype(np.float32)


def write_clip(folder, codec: str, wave: np.ndarray, rate: int):
    file_format, subtype, _ = CODECS[codec]
    path = folder / f"clip.{codec}"
    soundfile.write(path, wave, rate, format=file_format, subtype=subtype)
    return path


def whisper_features(wave: np.ndarray, n_mels: int) -> torch.Tensor:
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    return extractor(wave, sampling_rate=audio.SAMPLE_RATE, return_tensors="pt").input_features[0]


# --- lengths ---


@pytest.mark.parametrize(
    ("n_samples", "tokens"),
    # Computed with transformers' Qwen2-Audio processor.
    [(400, 1), (1600, 2), (8000, 12), (16001, 25), (93680, 146), (480_000, 750), (600_000, 750), (0, 0), (320, 0)],
)
def test_number_of_audio_tokens_equals_the_published_model(n_samples, tokens):
    assert audio.Geometry(n_mels=128, pool=2).n_tokens(audio.n_frames(n_samples)) == tokens


def test_without_pooling_every_encoder_frame_is_a_token():
    assert [audio.Geometry(n_mels=80, pool=1).n_tokens(n) for n in (0, 1, 2, 3, 3000)] == [0, 1, 1, 2, 1500]


def test_two_frames_of_silence_are_added_after_a_clip_except_at_30_seconds():
    assert [audio.n_frames_with_padding(n) for n in (1, 100, 2997, 2998, 2999, 3000)] == [
        3,
        102,
        2999,
        3000,
        3000,
        3000,
    ]


# --- log-mel ---

LENGTHS = [1, 160, 161, 201, 320, 321, 16_001, 93_680, 479_519, 479_681, 479_840, 479_841, 479_999, 480_000]


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("n_samples", LENGTHS)
def test_log_mel_equals_whisper_features_of_the_padded_clip(n_samples, n_mels):
    noise = np.random.default_rng(n_samples).standard_normal(n_samples).astype(np.float32) * 0.1
    fading = noise * np.linspace(1, 1e-4, n_samples, dtype=np.float32)
    for wave in (noise, fading):
        actual, reference = audio.log_mel(wave, n_mels), whisper_features(wave, n_mels)
        n_with_padding = audio.n_frames_with_padding(audio.n_frames(n_samples))
        assert actual.shape == (n_mels, n_with_padding) and actual.dtype == torch.float32
        check_log_mel(actual, reference[:, :n_with_padding])


def test_frames_after_the_padding_are_silence():
    wave = np.random.default_rng(0).standard_normal(16_001).astype(np.float32)
    features = whisper_features(wave, 80)
    n_with_padding = audio.n_frames_with_padding(audio.n_frames(len(wave)))
    assert (features[:, n_with_padding:] == features.min()).all()


@pytest.mark.parametrize("n_samples", [320, 16_001, 480_000])
def test_log_mel_of_silence_equals_whisper_features(n_samples):
    wave = np.zeros(n_samples, np.float32)
    actual = audio.log_mel(wave, 128)
    assert torch.equal(actual, whisper_features(wave, 128)[:, : actual.shape[1]])


def test_log_mel_accepts_a_tensor_and_does_not_change_it():
    wave = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    before = wave.clone()
    assert torch.equal(audio.log_mel(wave, 80), audio.log_mel(before.numpy(), 80))
    assert torch.equal(wave, before)


@pytest.mark.parametrize("n_samples", [0, 480_001])
def test_log_mel_of_an_empty_or_long_clip_is_an_error_that_names_the_setting(n_samples):
    with pytest.raises(ValueError, match=r"data\.long_audio=window"):
        audio.log_mel(np.zeros(n_samples, np.float32), 80)


# --- reading ---


RATES = [8000, 16_000, 22_050, 24_000, 44_100, 48_000]
UNSUPPORTED_BY_OPUS = {22_050, 44_100}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("codec", "rate"), [(c, r) for c in CODECS for r in RATES if not (c == "opus" and r in UNSUPPORTED_BY_OPUS)]
)
def test_any_format_rate_and_channel_count_becomes_16_khz_mono(tmp_path, codec, rate, channels):
    wave = tone(rate + 13, rate)
    if channels == 2:
        wave = np.stack([1.5 * wave, 0.5 * wave], axis=1)
    path = write_clip(tmp_path, codec, wave, rate)
    samples = audio.read(path)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert len(samples) == audio.n_samples(path) == int((rate + 13) * 16_000 / rate + 0.5)
    inside = slice(2000, -2000)  # codecs and the resampler ring at both ends
    assert np.abs(samples - tone(len(samples), 16_000))[inside].max() < CODECS[codec][2]


@pytest.mark.parametrize("codec", CODECS)
def test_a_segment_equals_the_same_slice_of_the_whole_clip(tmp_path, codec):
    # libsndfile seeks wrongly in an mp3 of a tone, so a tone is the hardest case. Its changing amplitude shows shifts.
    wave = tone(32_000, 16_000) * np.linspace(1, 0.5, 32_000, dtype=np.float32)
    path = write_clip(tmp_path, codec, wave, 16_000)
    part = audio.read(path, offset=0.75, duration=0.5)
    assert len(part) == audio.n_samples(path, 0.75, 0.5) == 8000
    np.testing.assert_allclose(part, audio.read(path)[12_000:20_000], atol=1e-4)
    assert len(audio.read(path, offset=1.5)) == audio.n_samples(path, offset=1.5) == 8000


def test_length_from_the_header_equals_the_decoded_length_for_short_clips_and_odd_rates(tmp_path):
    for rate in (11_025, 16_000, 32_000, 37_800, 96_000):
        for n in [*range(6, 60), 4410, 44_101]:
            path = write_clip(tmp_path, "wav", np.zeros(n, np.float32), rate)
            assert audio.n_samples(path) == len(audio.read(path)), (rate, n)


def test_an_mp3_without_a_length_header_is_read_to_its_end(tmp_path):
    path = tmp_path / "clip.mp3"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 88_200)
    soundfile.write(path, noise, 44_100, subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0)
    path.write_bytes(path.read_bytes().replace(b"Xing", b"\0\0\0\0"))
    n_read = len(audio.read(path))
    assert 32_000 <= n_read < 34_000  # 2 s and the delay of the codec
    assert n_read < audio.n_samples(path)  # libsndfile extrapolates the length from the first bit rate


def test_the_decoded_length_of_real_clips_is_the_length_in_their_header(shared_data):
    paths = [path for pattern in ("*.ogg", "*.flac") for path in sorted((shared_data / "real").rglob(pattern))[::150]]
    assert paths
    for path in paths:
        assert len(audio.read(path)) == audio.n_samples(path)


def test_reading_a_missing_file_is_an_error_with_its_name(tmp_path):
    for function in (audio.read, audio.n_samples):
        with pytest.raises(AudioError, match=r"gone\.wav: no such file"):
            function(tmp_path / "gone.wav")


@pytest.mark.parametrize("name", ["clip.wav", "clip.mp3", "clip.raw"])
def test_reading_a_file_that_is_not_audio_is_an_error_with_its_name(tmp_path, name):
    (tmp_path / name).write_text("this is not audio " * 100)
    for function in (audio.read, audio.n_samples):
        with pytest.raises(AudioError, match=rf"{name}: cannot be decoded"):
            function(tmp_path / name)


def test_reading_a_truncated_flac_is_an_error_with_its_name(tmp_path):
    path = write_clip(tmp_path, "flac", np.random.default_rng(0).uniform(-1, 1, 48_000), 16_000)
    path.write_bytes(path.read_bytes()[:40_000])
    with pytest.raises(AudioError, match=r"clip\.flac: cannot be decoded"):
        audio.read(path)


@pytest.mark.parametrize(("n", "reason"), [(0, "holds no samples"), (1, "less than one sample")])  # at 16 kHz
def test_reading_a_file_without_a_whole_sample_is_an_error_with_its_name(tmp_path, n, reason):
    path = write_clip(tmp_path, "wav", np.zeros(n, np.float32), 48_000)
    for function in (audio.read, audio.n_samples):
        with pytest.raises(AudioError, match=rf"clip\.wav: .*{reason}"):
            function(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_an_error(tmp_path, value):
    wave = tone(1600, 16_000)
    wave[700] = value
    with pytest.raises(AudioError, match="not finite"):
        audio.read(write_clip(tmp_path, "wav-float", wave, 16_000))


@pytest.mark.parametrize(
    ("offset", "duration", "reason"),
    [
        (1.0, None, "beyond the end"),
        (0.5, 1.2, "past the end"),
        (-1.0, None, "offset >= 0"),
        (0.0, 0.0, "duration > 0"),
    ],
)
def test_a_segment_outside_the_file_is_an_error(tmp_path, offset, duration, reason):
    path = write_clip(tmp_path, "wav", tone(16_000, 16_000), 16_000)
    for call in (
        lambda: audio.read(path, offset=offset, duration=duration),
        lambda: audio.n_samples(path, offset, duration),
    ):
        with pytest.raises(AudioError, match=reason):
            call()


def test_a_segment_may_end_slightly_after_the_file_because_durations_are_rounded(tmp_path):
    path = write_clip(tmp_path, "wav", tone(16_000, 16_000), 16_000)
    assert len(audio.read(path, offset=0.5, duration=0.51)) == audio.n_samples(path, 0.5, 0.51) == 8000


# --- windows ---


@pytest.mark.parametrize("n_samples", [0, 1, 480_000, 480_001, 640_000, 960_000, 960_001, 2_000_003])
def test_windows_cover_every_sample_once_and_have_equal_lengths(n_samples):
    wave = np.arange(n_samples, dtype=np.float32)
    windows = audio.split_into_windows(wave)
    lengths = [len(window) for window in windows]
    assert lengths == audio.window_lengths(n_samples)
    assert len(windows) == -(-n_samples // audio.MAX_SAMPLES)
    if windows:
        assert np.array_equal(np.concatenate(windows), wave)
        assert max(lengths) <= audio.MAX_SAMPLES and max(lengths) - min(lengths) <= 1


# --- SpecAugment ---

BASIC = dict(n_freq_masks=1, freq_mask_param=27, n_time_masks=1, time_mask_param=100, p=1.0, time_warp=80)


def mel(frames: int, n_mels: int = 80) -> torch.Tensor:
    return torch.randn(n_mels, audio.n_frames_with_padding(frames), generator=torch.Generator().manual_seed(frames))


def test_specaugment_depends_only_on_clip_and_seed():
    augment, clip = audio.SpecAugment(**BASIC), mel(400)
    before = clip.clone()
    assert torch.equal(augment(clip, 400, 7), augment(clip, 400, 7))
    assert not torch.equal(augment(clip, 400, 7), augment(clip, 400, 8))
    assert torch.equal(clip, before)


def test_specaugment_does_not_use_the_global_random_generator():
    state = torch.get_rng_state()
    audio.SpecAugment(**BASIC)(mel(400), 400, seed=2**62 - 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_specaugment_does_not_change_the_silence_after_the_clip():
    augment, clip = audio.SpecAugment(**BASIC), mel(400)
    for seed in range(20):
        assert torch.equal(augment(clip, 400, seed)[:, 400:], clip[:, 400:])


@pytest.mark.parametrize(("frames", "p", "max_width"), [(400, 1.0, 100), (50, 1.0, 50), (200, 0.2, 40), (3, 0.2, 0)])
def test_masks_are_bands_that_contain_the_mean_and_are_at_most_as_wide_as_allowed(frames, p, max_width):
    augment, clip = audio.SpecAugment(**BASIC | dict(p=p, time_warp=0)), mel(frames)
    mean = clip[:, :frames].mean()
    widths, heights = set(), set()
    for seed in range(200):
        out = augment(clip, frames, seed)[:, :frames]
        masked = out != clip[:, :frames]
        assert torch.equal(out[masked], mean.expand(int(masked.sum())))
        times, bins = masked.all(dim=0).nonzero().flatten(), masked.all(dim=1).nonzero().flatten()
        for band, sizes in ((times, widths), (bins, heights)):
            sizes.add(len(band))
            assert len(band) == 0 or int(band[-1] - band[0]) + 1 == len(band)
        assert masked.sum() == masked.numel() - (frames - len(times)) * (80 - len(bins))
    assert max(heights) == 26 and min(heights) == 0
    assert max(widths) < max(max_width, 1) and max(widths) >= 0.9 * max_width - 1


def test_time_warp_shifts_frames_but_keeps_their_order_and_both_ends():
    augment = audio.SpecAugment(**BASIC | dict(n_freq_masks=0, n_time_masks=0))
    ramp = torch.arange(400.0).expand(80, 400).contiguous()
    shifts = []
    for seed in range(100):
        out = augment(ramp, 400, seed)
        assert out.shape == ramp.shape and (out.diff(dim=1) >= 0).all()
        assert out[0, 0] == 0 and out[0, -1] == 399
        shifts.append(float((out - ramp).abs().max()))
    assert 60 < max(shifts) < 80 and min(shifts) < 10


def test_a_clip_of_at_most_twice_the_time_warp_is_not_warped():
    augment = audio.SpecAugment(**BASIC | dict(n_freq_masks=0, n_time_masks=0))
    for frames in (1, 160):
        assert torch.equal(augment(mel(frames), frames, 0), mel(frames))
    assert any(not torch.equal(augment(mel(161), 161, seed), mel(161)) for seed in range(5))


@pytest.mark.parametrize("settings", [dict(p=1.5), dict(time_warp=-1), dict(n_time_masks=-1)])
def test_the_error_for_an_invalid_specaugment_setting_names_the_setting(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        audio.SpecAugment(**BASIC | settings)


def test_a_frequency_mask_wider_than_the_spectrogram_is_an_error():
    with pytest.raises(ValueError, match="freq_mask_param=27"):
        audio.SpecAugment(**BASIC)(mel(400, n_mels=20), 400, 0)


def test_a_torchaudio_of_another_torch_version_is_an_error_with_both_versions():
    with pytest.raises(ImportError, match=r"torch 2\.13\.0\+cpu and torchaudio 2\.11\.0\+cu130 do not match"):
        audio.require_matching_versions("2.13.0+cpu", "2.11.0+cu130")
    audio.require_matching_versions("2.11.0+cu130", "2.11.0+cu130")


def test_the_error_for_a_missing_torchaudio_says_which_versions_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    spec = importlib.util.spec_from_file_location("second_import_of_audio", audio.__file__)
    with pytest.raises(ImportError, match=r"pip install torch==2\.11\.0 torchaudio==2\.11\.0"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# --- files in memory, and segments as files ---


FORMATS = ["wav", "flac", "ogg", "mp3", "PCM_U8", "PCM_24", "DOUBLE"]


def write_noise(folder: Path, audio_format: str) -> Path:
    """Write noise in two channels at 22,050 Hz. The format is a suffix, or a subtype of WAV."""
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, (22_050, 2))
    path = folder / f"noise.{audio_format if audio_format.islower() else 'wav'}"
    soundfile.write(path, noise, 22_050, subtype=None if audio_format.islower() else audio_format)
    return path


@pytest.mark.parametrize("audio_format", FORMATS)
def test_a_file_in_memory_has_the_same_samples_as_on_disk(tmp_path, audio_format):
    path = write_noise(tmp_path, audio_format)
    memory = audio.FileContent(path.read_bytes())
    assert np.array_equal(audio.read(memory), audio.read(path))
    assert np.array_equal(audio.read(memory, offset=0.2, duration=0.3), audio.read(path, offset=0.2, duration=0.3))
    assert audio.n_samples(memory) == audio.n_samples(path)


def test_the_stored_number_of_samples_is_used_without_decoding():
    assert audio.n_samples(audio.FileContent(b"", 123)) == 123
    with pytest.raises(AudioError):
        audio.n_samples(audio.FileContent(b"", 123), offset=0.1)


@pytest.mark.parametrize("audio_format", FORMATS)
@pytest.mark.parametrize(("offset", "duration"), [(0.2, 0.3), (0.5, None), (0.9, 0.4)])
def test_a_segment_cut_to_a_file_equals_the_segment_of_the_whole_file(tmp_path, audio_format, offset, duration):
    path = write_noise(tmp_path, audio_format)
    segment = audio.FileContent(audio.cut_segment(path, offset, duration))
    assert np.array_equal(
        audio.read(segment, offset=0.0, duration=duration), audio.read(path, offset=offset, duration=duration)
    )
    assert np.array_equal(
        audio.read(audio.FileContent(audio.cut_segment(audio.FileContent(path.read_bytes()), offset, duration))),
        audio.read(segment),
    )


@pytest.mark.parametrize("name", ["a\0b.wav", "x" * 5000, "no\nsuch.wav"])
def test_an_impossible_file_name_is_an_audio_error_with_a_printable_message(tmp_path, name):
    with pytest.raises(AudioError, match="no such file") as error:
        audio.read(tmp_path / name)
    assert str(error.value).isprintable()


# --- samples given by a caller ---


@pytest.fixture
def stereo_file(tmp_path: Path) -> Path:
    """Write one second of 16-bit stereo at 8 kHz."""
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([tone(8_000, 8_000), 0.5 * tone(8_000, 8_000)], 1), 8_000, subtype="PCM_16")
    return path


@pytest.mark.parametrize(
    "make",
    [
        str,
        lambda path: path,
        lambda path: path.read_bytes(),
        lambda path: path.open("rb"),
        lambda path: io.BytesIO(path.read_bytes()),
        lambda path: memoryview(path.read_bytes()),
        lambda path: {"bytes": path.read_bytes(), "path": None},
        lambda path: {"bytes": None, "path": str(path)},
        lambda path: {"array": samples(path), "sampling_rate": 8_000, "path": "elsewhere.wav"},
        lambda path: {"array": samples(path).tolist(), "sampling_rate": 8_000},
        lambda path: (samples(path), 8_000),
        lambda path: (np.int64(8_000), samples(path)),
        lambda path: (samples(path).T, 8_000.0),
        lambda path: (samples(path, "int16"), 8_000),
        lambda path: (samples(path, "int32"), 8_000),
        lambda path: (samples(path, "float64"), 8_000),
        lambda path: (torch.from_numpy(samples(path)).requires_grad_(), 8_000),
        lambda path: (torch.from_numpy(samples(path, "int16")).T, 8_000),
        lambda path: audio.read(path),
        lambda path: audio.read(path).tolist(),
        lambda path: list(audio.read(path)),
        lambda path: torch.from_numpy(audio.read(path))[None],
        lambda path: Decoder(path),
    ],
)
def test_audio_is_the_same_in_every_form(stereo_file: Path, make):
    np.testing.assert_allclose(audio.to_wave(make(stereo_file)), audio.read(stereo_file), rtol=0, atol=1e-6)


class Decoder:
    """The part of torchcodec's `AudioDecoder` that auris uses."""

    def __init__(self, path: Path) -> None:
        self.samples = SimpleNamespace(data=torch.from_numpy(samples(path)).T, sample_rate=8_000)

    def get_all_samples(self) -> SimpleNamespace:
        return self.samples


def samples(path: Path, dtype: str = "float32") -> np.ndarray:
    return soundfile.read(path, dtype=dtype)[0]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float16"])
def test_samples_of_eight_bits_and_half_precision_are_scaled_by_their_range(dtype: str):
    wave = tone(16_000, 16_000)
    offset = {"uint8": 128, "int8": 0}.get(dtype)
    given = wave.astype(dtype) if offset is None else np.round(wave * 128 + offset).astype(dtype)
    np.testing.assert_allclose(audio.to_wave(given), wave, rtol=0, atol=2**-8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.full(100, np.nan), "samples that are not finite"),
        (np.array([0.0, np.inf]), "samples that are not finite"),
        (np.zeros(0), "no samples"),
        (np.float32(0.5), "audio is np.float32.*expected a path"),
        (np.zeros((80, 300)), r"shape \(80, 300\): expected .* at most 8 channels"),
        (np.zeros((1, 1, 300)), r"shape \(1, 1, 300\)"),
        (np.zeros(9, bool), "type bool: expected floats, int8"),
        (np.zeros(9, complex), "type complex128"),
        ([1, 2, 3], "type int64"),
        (np.array(["a.wav"]), "audio is array.*expected a path"),
        ([[0.0, 0.1], [0.2]], "unequal parts"),
        (object(), "audio is <object.*expected a path"),
        (None, "audio is None: expected a path"),
        ({}, r"audio is a dict of \[\]: expected array and sampling_rate, or"),
        ({"array": np.zeros(9), "sample_rate": 8_000}, r"dict of \['array', 'sample_rate'\]: expected array and samp"),
        ({"waveform": torch.zeros(1, 9), "sample_rate": 8_000}, "dict of .*expected array"),
        (np.array([np.zeros(9), None], object), "audio is array"),  # several lines as a string
        (io.BytesIO(), r"at its end: set its position by seek\(0\)"),
        ("https://example.org/a.wav", r"no such file \(audio is not read from URLs: download it first\)"),
        ((np.zeros(9), 16), "sampling rate 16: expected a whole number of Hz, at least 1,000"),
        ((np.zeros(9), 16_000.5), "sampling rate 16000.5"),
        ((np.zeros(9), -16_000), "sampling rate -16000"),
        ((np.zeros(9), None), "sampling rate None"),
        ({"array": np.zeros(9)}, r"dict of \['array'\]: expected array and sampling_rate"),
        ((np.zeros(1), 96_000), "1 samples at 96000 Hz"),
        (b"no audio", r"the content of a file \(8 bytes\): cannot be decoded \(Format not recognised.\)"),
        ("missing.wav", "missing.wav: no such file"),
        ("UklGRg==" * 10_000, "'UklGRg.*…: no such file"),
    ],
)
def test_audio_that_cannot_be_used_is_one_sentence(given, message: str):
    with pytest.raises(AudioError, match=message) as error:
        audio.to_wave(given)
    assert len(str(error.value)) < 250 and "\n" not in str(error.value)


def test_a_peak_far_above_one_is_warned_of():
    with pytest.warns(UserWarning, match="peak of 1.193e.04, expected floats from -1 to 1"):
        audio.to_wave(np.array([0.0, 11_930.0, 0.0]))


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_samples_of_16_bits_in_int32_are_warned_of(convert):
    with pytest.warns(UserWarning, match="int32 has a peak of 11930 steps: if it has 16 bits, pass it as int16"):
        audio.to_wave(convert(np.array([0, 11_930, 0], np.int32)))


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_dither_is_silent_at_any_rate(rate: int):
    dither = np.random.default_rng(0).choice([-1, 0, 1], rate).astype(np.int16)
    assert audio.is_silent(audio.to_wave((dither, rate)))
