"""Probe of poolings: the share of the variance of encoder frames that can be recovered from the audio tokens.

A linear readout predicts the frames of a window from its token. It is fitted on every other row and evaluated on the
rest, so it measures the information in the tokens and not memorisation by the readout.

Shapes: C encoder frames, T tokens, K frames of a window, D width of the encoder.
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
from auris.metrics.statistics import bootstrap
from auris.model import pooling
from auris.model.pooling import Pooling

if TYPE_CHECKING:
    import pandas as pd

RIDGE = 1e-3  # relative to the mean variance of a token's channels; needed if channels are equal


@torch.no_grad()
def compare_poolings(
    model: AudioModel, rows: Sequence[Row], *, ks: Sequence[int] = (2, 4, 8), limit: int = 80, seed: int = 0
) -> pd.DataFrame:
    """Compare poolings by the share of the variance of encoder frames that their tokens keep.

    The pooling of the run has its trained weights (`weights`: "trained"). Others have no weights ("none") or initial
    ones ("as initialised"). `stack` and `none` keep everything by construction.

    Args:
        model: the model.
        rows: rows to use. Rows without exactly one readable clip of at most 30 s are skipped.
        ks: frames per window.
        limit: maximum number of rows.
        seed: seed of initial weights and of the bootstrap.

    Returns:
        A table with the columns pooling, k, weights, `tokens per second`, width (numbers per token), kept (the share),
        low, high (95 % bootstrap interval over rows that the readout was not fitted on), rows (their number).

    Raises:
        UserError: there are too few frames to fit the readout.
    """
    import pandas as pd

    clips = _frames(model, rows, limit)
    width = model.net.encoder.width
    n_fit = sum(len(clip) // max(ks) for clip in clips[::2])
    if n_fit < 2 * width or len(clips) < 4:
        raise UserError(
            f"{len(clips)} rows have {n_fit} windows of {max(ks)} frames to fit: expected {2 * width} or more, twice "
            f"the encoder's width; use more rows (limit={limit}) or smaller windows (ks={tuple(ks)})"
        )
    lines = []
    for name, k, module in _poolings(model, ks, seed):
        weights = "none" if not list(module.parameters()) else "as initialised"
        if module is model.net.pooling and weights != "none":
            weights = "trained"
        shares = (1.0, 1.0, 1.0) if k == 1 or module.groups == k else explained_variance(module, clips, k, seed)
        cost = (1 / (k * FRAME_SECONDS), module.groups * width)
        lines.append((name, k, weights, *cost, *shares, len(clips[1::2])))
    names = ["pooling", "k", "weights", "tokens per second", "width", "kept", "low", "high", "rows"]
    return pd.DataFrame(lines, columns=names)


def _frames(model: AudioModel, rows: Sequence[Row], limit: int) -> list[torch.Tensor]:
    """Return the encoder frames (C, D) of each clip before the final norm, the input of pooling."""
    geometry = model.net.geometry
    view = AudioSamples(tokenizer=model.tokenizer, prompt=model.prompt, geometry=geometry, long_audio="skip")
    clips = []
    for row in rows:
        if len(clips) == limit:
            break
        if row.problem or len(row.clips) != 1:
            continue
        try:
            wave = view.read(row.clips[0])
        except (RowError, AudioError):
            continue
        n = geometry.n_frames(len(wave))
        mel = log_mel(wave, geometry.n_mels, geometry.n_computed_frames(n)).to(model.device)
        clips.append(model.net.encoder(mel, torch.tensor([n]))[0].float().cpu())
    return clips


def _poolings(model: AudioModel, ks: Sequence[int], seed: int) -> list[tuple[str, int, Pooling]]:
    """Return the name, window and module of each pooling, that of the model included."""
    own = model.net.pooling
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
    return [(name, k, own if type(module) is type(own) and k == own.k else module) for name, k, module in poolings]


def explained_variance(module: Pooling, clips: Sequence[torch.Tensor], k: int, seed: int) -> tuple[float, float, float]:
    """Return the share of the variance of frames that a linear readout of tokens recovers, with its 95 % interval.

    Args:
        module: the pooling.
        clips: frames (C, D) of each clip. The readout is fitted on every other clip and evaluated on the rest.
        k: frames of a window.
        seed: seed of the bootstrap over clips.
    """
    pairs = []
    for clip in clips:
        tokens, n = module(clip, torch.tensor([len(clip)]))
        windows = rearrange(clip[: int(n[0]) * k], "(t k) d -> t (k d)", k=k)
        pairs.append((tokens[:, 0].double().numpy(), windows.double().numpy()))
    x, y = (np.concatenate([pair[side] for pair in pairs[::2]]) for side in (0, 1))
    mean_x, mean_y = x.mean(0), y.mean(0)
    gram = (x - mean_x).T @ (x - mean_x)
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    readout = np.linalg.solve(gram, (x - mean_x).T @ (y - mean_y))
    test = [(b - mean_y, (a - mean_x) @ readout) for a, b in pairs[1::2]]
    lost = np.array([((true - predicted) ** 2).sum() for true, predicted in test])
    whole = np.array([(true**2).sum() for true, _ in test])
    # The lost share is a ratio of sums, like accuracy.
    low, high = bootstrap(list(np.stack([lost, whole], axis=1)), "accuracy", seed=seed)
    return float(1 - lost.sum() / whole.sum()), 1 - high, 1 - low
