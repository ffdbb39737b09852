"""Next-token cross-entropy on the supervised tokens: multi-task pre-training, fine-tuning and text alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from auris.data.packing import IGNORE
from auris.model.generation import Generation, generate

# Rows of logits in memory at a time. Above it, chunks are recomputed in backward; below, chunking only costs time.
CHUNK = 4096


class NextToken(nn.Module):
    """Cross-entropy summed over supervised tokens. Logits are computed only where a label stands."""

    views = ("audio", "text")

    def count(self, pack: dict) -> Tensor:
        """What the summed loss is divided by: supervised tokens."""
        return (pack["labels"] != IGNORE).sum()

    def forward(self, net: nn.Module, pack: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss, and sums for the log: `correct` tokens under teacher forcing."""
        where = (pack["labels"] != IGNORE).nonzero().squeeze(-1)  # (R,)
        hidden = net.hidden(pack)[where]  # (R, H)
        labels = pack["labels"][where]
        if len(where) <= CHUNK:
            loss, correct = self._score(net, hidden, labels)
        else:
            parts = zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True)
            scored = [checkpoint(self._score, net, h, y, use_reentrant=False) for h, y in parts]
            loss, correct = (torch.stack(sums).sum() for sums in zip(*scored, strict=True))
        return loss, {"correct": correct}

    def answer(
        self, net: nn.Module, pack: dict, settings: Generation, *, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """Token ids that continue each row of a pack of prompts (`generation.generate`)."""
        return generate(net, pack, settings, generator=generator)

    @staticmethod
    def _score(net: nn.Module, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = net.head(hidden).float()
        return F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(-1) == labels).sum()
