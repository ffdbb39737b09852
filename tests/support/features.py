"""Comparison of log-mel features that were computed in float32 by different kernels."""

from __future__ import annotations

import math

from torch import Tensor

from auris.audio import N_FFT


def check_log_mel(ours: Tensor, theirs: Tensor) -> None:
    """Assert that features (n_mels, frames) are equal but for the rounding of a float32 Fourier transform.

    Each of the log2(N) stages of a transform rounds to 2^-24 of the frame's amplitude, so an amplitude a of a frame of
    amplitude A has the relative error log2(N) * 2^-24 * A / a, and a power twice that. A feature is log10(power) / 4,
    whose error is the relative error of the power over 4 ln 10. Loud bins are thus held to about 1e-6, and bins 80 dB
    below the frame to 1e-2. The sums over mel filters and both sides' rounding are covered by a factor of 4.
    """
    power = 10 ** (4 * theirs.double() - 4)
    below = (power.amax(0) / power).sqrt()
    tolerance = 4 * math.log2(N_FFT) * 2**-24 * 2 * below / (4 * math.log(10)) + 2**-22
    excess = (ours.double() - theirs.double()).abs() - tolerance
    assert ours.shape == theirs.shape and bool((excess <= 0).all()), f"{excess.max():.1e} beyond the rounding"
