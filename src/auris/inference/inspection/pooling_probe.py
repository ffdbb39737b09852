"""What each pooling keeps of the encoder's frames: the share of their variance that can be read back from the tokens.

A linear readout of each token tries to give back the frames of its window. It is fitted on every other row and judged
on the rest, so that it measures what the tokens hold and not what the readout can learn by heart.

Shapes: C encoder frames, T tokens, K frames of a window, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from torch import nn

from auris.audio import log_mel
from auris.data.rows import Row
from auris.data.samples import AudioSamples
from auris.errors import AudioError, RowError, UserError
from auris.inference.audio_model import AudioModel
from auris.inference.inspection.trace import FRAME_SECONDS
from auris.metrics.statistics import bootstrap
from auris.model import pooling

if TYPE_CHECKING:
    import pandas as pd

RIDGE = 1e-3  # of the mean variance of a token's channels, so that the readout exists where channels are alike


@torch.no_grad()
def compare_poolings(
    model: AudioModel, rows: Sequence[Row], *, ks: Sequence[int] = (2, 4, 8), limit: int = 80, seed: int = 0
) -> pd.DataFrame:
    """Columns pooling, k, weights, `tokens per second`, width (numbers per token), kept, low, high (95 % bootstrap
    interval over the rows that the readout was not fitted on), rows.

    The run's own pooling has the weights that it learned (`weights`: "trained"); others have none ("none"), or those
    that training would start from ("as initialised"). `stack` and `none` keep everything by construction.

    Args:
        rows: of which the first `limit` that have one clip of at most 30 s that can be read are used.
        seed: of initial weights and of the bootstrap.

    Raises:
        ValueError: there are too few frames to fit the readout.
    """
    import pandas as pd

    clips = _frames(model, rows, limit)
    width = model.net.encoder.width
    n_fit = sum(len(clip) // max(ks) for clip in clips[::2])
    if n_fit < 2 * width or len(clips) < 4:
        raise UserError(
            f"{len(clips)} rows give {n_fit} windows of {max(ks)} frames to fit on: expected {2 * width}, twice "
            f"the encoder's width; hear more rows (limit={limit}), or choose smaller windows (ks={tuple(ks)})"
        )
    found = []
    for name, k, module in _poolings(model, ks, seed):
        weights = "none" if not list(module.parameters()) else "as initialised"
        if module is model.net.pooling and weights != "none":
            weights = "trained"
        kept = (1.0, 1.0, 1.0) if k == 1 or module.groups == k else explained_variance(module, clips, k, seed)
        cost = (1 / (k * FRAME_SECONDS), module.groups * width)
        found.append((name, k, weights, *cost, *kept, len(clips[1::2])))
    names = ["pooling", "k", "weights", "tokens per second", "width", "kept", "low", "high", "rows"]
    return pd.DataFrame(found, columns=names)


def _frames(model: AudioModel, rows: Sequence[Row], limit: int) -> list[torch.Tensor]:
    """Frames (C, D) of each clip, before the encoder's final norm, where pooling stands."""
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
        n = geometry.frames(len(wave))
        mel = log_mel(wave, geometry.n_mels, geometry.stored(n)).to(model.device)
        clips.append(model.net.encoder(mel, torch.tensor([n]))[0].float().cpu())
    return clips


def _poolings(model: AudioModel, ks: Sequence[int], seed: int) -> list[tuple[str, int, nn.Module]]:
    own = model.net.pooling
    width, n_heads = model.net.encoder.width, model.net.encoder.n_heads
    torch.manual_seed(seed)
    made = [("none", 1, pooling.Stack(k=1, width=width))]
    for k in ks:
        made += [
            ("mean", k, pooling.Mean(k=k, width=width)),
            ("conv", k, pooling.Conv(k=k, width=width)),
            ("attention", k, pooling.Attention(k=k, width=width, n_heads=n_heads)),
            ("stack", k, pooling.Stack(k=k, width=width)),
        ]
    return [(name, k, own if type(module) is type(own) and k == own.k else module) for name, k, module in made]


def explained_variance(
    module: nn.Module, clips: Sequence[torch.Tensor], k: int, seed: int
) -> tuple[float, float, float]:
    """Of the variance of clips' frames (C, D), the share that a linear readout of tokens of k frames gets back: fitted
    on every other clip, measured on the rest, with the ends of its interval over these."""
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
    lost = np.array([((true - found) ** 2).sum() for true, found in test])
    whole = np.array([(true**2).sum() for true, _ in test])
    low, high = bootstrap(np.stack([lost, whole], axis=1), "accuracy", seed=seed)  # a rate, as the share that is lost
    return float(1 - lost.sum() / whole.sum()), 1 - high, 1 - low
