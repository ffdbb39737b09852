"""Scores of generated responses during validation, as a torchmetrics metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torchmetrics
from torchmetrics.utilities import dim_zero_cat

from auris.metrics.measures import check, measure, row_stats, score, value


class TaskScore(torchmetrics.Metric):
    """One of `auris.metrics.measures`, accumulated over batches and ranks.

    All ranks together give the score that one process would. The state is the sum of the rows' statistics, or for a
    metric over all rows at once the rows themselves. The score is NaN before the first update.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, metric: str, **kwargs) -> None:
        super().__init__(**kwargs)
        check(metric)
        self.metric = metric
        self.additive = measure(metric).formula is not None
        if self.additive:
            zeros = torch.zeros(len(measure(metric).stats), dtype=torch.float64)  # counts are exact, seconds are sums
            self.add_state("sums", default=zeros, dist_reduce_fx="sum")
        else:
            self.add_state("rows", default=[], dist_reduce_fx="cat")

    @property
    def higher_is_better(self) -> bool:
        return measure(self.metric).higher_is_better

    def update(self, hypotheses: Sequence[Any], references: Sequence[Any], languages: Sequence[str]) -> None:
        """Add rows; the lists must be of equal length."""
        for row in zip(hypotheses, references, languages, strict=True):
            stats = row_stats(self.metric, *row)
            if self.additive:
                self.sums += torch.tensor(stats, dtype=self.sums.dtype, device=self.sums.device)
            else:
                # Ranks exchange tensors only: the bytes of a line of JSON, in the type that torchmetrics gives to the
                # nothing of a rank without rows (every byte is exact in it).
                line = torch.tensor(list(json.dumps(stats).encode() + b"\n"), dtype=self.dtype, device=self.device)
                self.rows.append(line)

    def compute(self) -> torch.Tensor:
        """Return the score of all rows so far: a fraction, or 0..100 for BLEU."""
        if self.additive:
            return torch.tensor(value(self.metric, self.sums.cpu().numpy()))
        lines = bytes(dim_zero_cat(self.rows).to(torch.uint8).tolist()) if len(self.rows) else b""
        return torch.tensor(score(self.metric, [json.loads(line) for line in lines.splitlines()]))
