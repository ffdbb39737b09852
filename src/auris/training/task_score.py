"""Scores of generated responses during validation, as a torchmetrics metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torchmetrics
from torchmetrics.utilities import dim_zero_cat

from auris.metrics.measures import check_packages, find_measure, row_stats, score, score_from_sums


class TaskScore(torchmetrics.Metric):
    """Torchmetrics version of a metric of `auris.metrics.measures`, accumulated over batches and ranks.

    The score over all ranks equals the score that a single process would compute. The statistics
    of a row are what it contributes to the score. The state is their sum over all rows, or a list of the statistics of
    every row if the metric cannot be computed from sums. The score is NaN
    before the first update.

    Args:
        metric: Name of the metric.
        **kwargs: Arguments of `torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False
    sums: torch.Tensor  # (number of statistics,) float64; exists only if `is_additive`
    rows: list[torch.Tensor]  # statistics of each row as the bytes of a line of JSON; exists only if not `is_additive`

    def __init__(self, metric: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_packages(metric)
        self.metric = metric
        self.is_additive = find_measure(metric).formula is not None
        if self.is_additive:
            zeros = torch.zeros(len(find_measure(metric).stats), dtype=torch.float64)  # exact for counts
            self.add_state("sums", default=zeros, dist_reduce_fx="sum")
        else:
            self.add_state("rows", default=[], dist_reduce_fx="cat")

    @property
    def higher_is_better(self) -> bool:  # pyrefly: ignore[bad-override]  # torchmetrics forbids assignment
        """Whether a larger score is better, which depends on the metric."""
        return find_measure(self.metric).higher_is_better

    def update(self, hypotheses: Sequence[Any], references: Sequence[Any], languages: Sequence[str]) -> None:
        """Add rows to the score.

        Args:
            hypotheses: Responses of the model, one per row.
            references: Correct answers, one per row.
            languages: Language codes, one per row.
        """
        for hypothesis, reference, language in zip(hypotheses, references, languages, strict=True):
            stats = row_stats(self.metric, hypothesis, reference, language)
            if self.is_additive:
                self.sums += torch.tensor(stats, dtype=self.sums.dtype, device=self.sums.device)
            else:
                # Ranks can exchange tensors only, so the statistics are stored as the bytes of a line of JSON. The
                # tensor has the dtype that torchmetrics uses on a rank without rows. It represents every byte exactly.
                line = torch.tensor(list(json.dumps(stats).encode() + b"\n"), dtype=self.dtype, device=self.device)
                self.rows.append(line)

    def compute(self) -> torch.Tensor:
        """Return the score of all rows so far: a fraction, or 0 to 100 for BLEU."""
        if self.is_additive:
            return torch.tensor(score_from_sums(self.metric, self.sums.cpu().numpy()))
        lines = bytes(dim_zero_cat(self.rows).to(torch.uint8).tolist()) if len(self.rows) else b""
        return torch.tensor(score(self.metric, [json.loads(line) for line in lines.splitlines()]))
