"""What a pack asks of a model, whatever the model's size: the counts that its useful operations follow from."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from auris.model.pack import IGNORE


def counts(pack: Mapping[str, Any]) -> dict[str, Tensor]:
    """Counts of a pack, on its device, without waiting for it.

    `tokens` of the LLM, `frames` of the encoder (20 ms), `scored` positions, and `token_pairs` and `frame_pairs`, the
    pairs of query and key that attention looks at. `idle`: tokens and frames that are computed and belong to no row, as
    every rank has to compute something (`model.pack.Pack`); they are in none of the others.
    """
    ids, cu = pack["ids"], pack["cu_seqlens"].long()
    queries = cu.diff()
    keys = pack["cu_keys"].long().diff() if "cu_keys" in pack else queries
    # The last query sees all keys, the one before it one less, and so on.
    found = {
        "tokens": queries.sum(),
        "scored": (pack["labels"] != IGNORE).sum(),
        "token_pairs": (queries * keys - queries * (queries - 1) // 2).sum(),
    }
    if not pack["rows"]:
        found = {name: torch.zeros_like(value) for name, value in found.items()}
    nothing = torch.zeros((), dtype=torch.int64, device=ids.device)
    frames = (pack["frames"].to(ids.device) - 1) // 2 + 1 if "frames" in pack else nothing[None]
    is_heard = pack["audio_seconds"] > 0
    found |= {
        "frames": frames.sum() if is_heard else nothing,
        "frame_pairs": frames.square().sum() if is_heard else nothing,
    }
    return found | {"idle": len(ids) + frames.sum() - found["tokens"] - found["frames"]}


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held so far: of its GPU, or without one of the machine (resident)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else 1024 * resident
