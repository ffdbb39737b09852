"""Comparison of log-mel features that different kernels computed in float32."""

from __future__ import annotations

import math

from torch import Tensor

from auris.audio import N_FFT


def check_log_mel(actual: Tensor, reference: Tensor) -> None:
    """Assert that features (n_mels, frames) are equal up to the rounding of a float32 Fourier transform.

    Each of the log2(N) stages of a transform rounds to 2^-24 of the frame's amplitude A. A bin of amplitude a thus has
    the relative error log2(N) * 2^-24 * A / a, and its power has twice that. A feature is log10(power) / 4, so its
    error is the relative error of the power divided by 4 ln 10. The tolerance is about 1e-6 for loud bins and 1e-2 for
    bins 80 dB below the frame. A factor of 4 covers the sums over mel filters and the rounding on both sides.
    """
    power = 10 ** (4 * reference.double() - 4)
    amplitude_ratio = (power.amax(0) / power).sqrt()
    tolerance = 4 * math.log2(N_FFT) * 2**-24 * 2 * amplitude_ratio / (4 * math.log(10)) + 2**-22
    excess = (actual.double() - reference.double()).abs() - tolerance
    assert actual.shape == reference.shape and bool((excess <= 0).all()), f"{excess.max():.1e} above the tolerance"
