"""Compare poolings by the share of the variance of encoder frames that can be recovered from the audio tokens.

A linear readout predicts the frames of a window from its token. It is fitted on every other row and evaluated on the
remaining rows, so it measures the information in the tokens and not memorisation by the readout.

Shapes: C encoder frames of a clip, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange

from auris.audio import log_mel
from auris.data.rows import Row
from auris.data.samples import AudioSamples
from auris.errors import AudioError, RowError, UserError
from auris.inference.audio_model import AudioModel
from auris.inference.inspection.trace import FRAME_SECONDS
from auris.metrics.statistics import bootstrap_interval
from auris.model import pooling
from auris.model.pooling import Pooling

if TYPE_CHECKING:
    import pandas as pd

# Ridge penalty of the readout, relative to the mean variance of a token's channels. Without it, the fit would fail if
# two channels were equal.
RIDGE = 1e-3


@torch.no_grad()
def compare_poolings(
    model: AudioModel, rows: Sequence[Row], *, ks: Sequence[int] = (2, 4, 8), limit: int = 80, seed: int = 0
) -> pd.DataFrame:
    """Compare poolings by the share of the variance of encoder frames that can be recovered from their tokens.

    The model's own pooling has its trained weights (column `weights`: "trained"). Other poolings have no weights
    ("none") or random weights ("as initialised"). The poolings `stack` and `none` keep all frames, so their share is 1.

    Args:
        model: the model.
        rows: rows to use. Rows without exactly one readable clip of at most 30 s are skipped.
        ks: window sizes to compare, in frames.
        limit: maximum number of rows.
        seed: seed of initial weights and of the bootstrap.

    Returns:
        A table with the columns `pooling`, `k`, `weights`, `tokens per second`, `width` (numbers per token), `kept`
        (the share), `low` and `high` (its 95 % bootstrap interval over the rows on which the readout was evaluated),
        and `rows` (the number of these rows).

    Raises:
        UserError: there are too few rows or windows to fit the readout.
    """
    import pandas as pd

    clips = _frames(model, rows, limit)
    width = model.net.encoder.width
    n_fit_windows = sum(len(clip) // max(ks) for clip in clips[::2])
    if n_fit_windows < 2 * width or len(clips) < 4:
        raise UserError(
            f"the readout is fitted on every other one of {len(clips)} rows, which have {n_fit_windows} windows of "
            f"{max(ks)} frames: expected {2 * width} or more windows (twice the encoder's width) and 4 or more rows; "
            f"use more rows (limit={limit}) or smaller windows (ks={tuple(ks)})"
        )
    records = []
    for name, k, module in _build_poolings(model, ks, seed):
        weights = "none" if not list(module.parameters()) else "as initialised"
        if module is model.net.pooling and weights != "none":
            weights = "trained"
        keeps_all_frames = k == 1 or module.vectors_per_token == k
        share_and_interval = (1.0,) * 3 if keeps_all_frames else explained_variance(module, clips, k, seed)
        rate_and_width = (1 / (k * FRAME_SECONDS), module.vectors_per_token * width)
        records.append((name, k, weights, *rate_and_width, *share_and_interval, len(clips[1::2])))
    columns = ["pooling", "k", "weights", "tokens per second", "width", "kept", "low", "high", "rows"]
    return pd.DataFrame(records, columns=columns)


def _frames(model: AudioModel, rows: Sequence[Row], limit: int) -> list[torch.Tensor]:
    """Return the encoder frames (C, D) of each clip before the encoder's final norm, which are the input of pooling."""
    geometry = model.net.geometry
    samples = AudioSamples(tokenizer=model.tokenizer, prompt=model.prompt, geometry=geometry, long_audio="skip")
    clips = []
    for row in rows:
        if len(clips) == limit:
            break
        if row.problem or len(row.clips) != 1:
            continue
        try:
            wave = samples.read(row.clips[0])
        except (RowError, AudioError):
            continue
        n_frames = geometry.n_frames(len(wave))
        n_with_padding = geometry.n_frames_with_padding(n_frames)  # the convolutions also read frames after the clip
        mel = log_mel(wave, geometry.n_mels, n_with_padding).to(model.device)
        clips.append(model.net.encoder(mel, torch.tensor([n_frames]))[0].float().cpu())
    return clips


def _build_poolings(model: AudioModel, ks: Sequence[int], seed: int) -> list[tuple[str, int, Pooling]]:
    """Return the name, window size and module of each pooling.

    The model's own pooling replaces the new one of the same class and window size.
    """
    own_pooling = model.net.pooling
    width, n_heads = model.net.encoder.width, model.net.encoder.n_heads
    torch.manual_seed(seed)
    poolings: list[tuple[str, int, Pooling]] = [("none", 1, pooling.Stack(k=1, width=width))]
    for k in ks:
        poolings += [
            ("mean", k, pooling.Mean(k=k, width=width)),
            ("conv", k, pooling.Conv(k=k, width=width)),
            ("attention", k, pooling.Attention(k=k, width=width, n_heads=n_heads)),
            ("stack", k, pooling.Stack(k=k, width=width)),
        ]
    return [
        (name, k, own_pooling if type(module) is type(own_pooling) and k == own_pooling.k else module)
        for name, k, module in poolings
    ]


def explained_variance(module: Pooling, clips: Sequence[torch.Tensor], k: int, seed: int) -> tuple[float, float, float]:
    """Return the share of the variance of frames that a linear readout of tokens recovers, with its 95 % interval.

    Args:
        module: the pooling.
        clips: frames (C, D) of each clip. The readout is fitted on every other clip and evaluated on the other half.
        k: number of frames in a window.
        seed: seed of the bootstrap over clips.
    """
    pairs = []
    for clip in clips:
        tokens, n_tokens = module(clip, torch.tensor([len(clip)]))
        windows = rearrange(clip[: int(n_tokens[0]) * k], "(t k) d -> t (k d)", k=k)
        pairs.append((tokens[:, 0].double().numpy(), windows.double().numpy()))
    x, y = (np.concatenate([pair[side] for pair in pairs[::2]]) for side in (0, 1))
    mean_x, mean_y = x.mean(0), y.mean(0)
    gram = (x - mean_x).T @ (x - mean_x)
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    readout = np.linalg.solve(gram, (x - mean_x).T @ (y - mean_y))
    test_pairs = [(windows - mean_y, (tokens - mean_x) @ readout) for tokens, windows in pairs[1::2]]
    residuals = np.array([((true - predicted) ** 2).sum() for true, predicted in test_pairs])
    totals = np.array([(true**2).sum() for true, _ in test_pairs])
    # The unexplained share is a ratio of two sums over clips, so its interval is computed like that of accuracy.
    low, high = bootstrap_interval(list(np.stack([residuals, totals], axis=1)), "accuracy", seed=seed)
    return float(1 - residuals.sum() / totals.sum()), 1 - high, 1 - low
