"""Graphs that `torch.compile(dynamic=True)` makes of the blocks over many packs of random lengths. No peer, no clock.

Each block is compiled in place, by a backend that counts and runs the graphs as they are. What is counted is the same
under any backend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from auris.data.collate import collate
from auris.model.compiled import compile_blocks
from auris.model.llm import layers
from auris.training.objectives.next_token import NextToken
from benchmarks import Report
from benchmarks.models import PRESETS as SIZES
from benchmarks.models import Preset, models, samples, step, waves

PRESETS = {"tiny": SIZES["tiny"]}
LIMITS = {"loss": 1e-5}
WARM = 2  # steps after which nothing is to be compiled any more


def report(preset: Preset, *, batches: int = 100, lengths: str = "0.5-4", clips: int = 4, seed: int = 0) -> Report:
    """Graphs by kind of block, those added after step `WARM`, and how far losses are from those without compiling."""
    torch.compiler.reset()
    net, _ = models(preset, seed)
    objective = NextToken()
    draw = np.random.default_rng(seed)
    packs = []
    for number in range(batches):
        clip = waves(lengths, clips, seed + number)
        clip = [
            wave[: int(draw.integers(len(wave) // 2, len(wave)))] for wave in clip[: int(draw.integers(1, clips + 1))]
        ]
        packs.append(collate(samples(clip, net.geometry, preset.vocab_size, seed), geometry=net.geometry))

    def loss_of(pack: dict) -> torch.Tensor:
        return objective(net, pack)[0] / objective.count(pack)

    losses = [step(net, partial(loss_of, pack)) for pack in packs]
    graphs: Counter[str] = Counter()
    for kind, blocks in {"encoder": net.encoder.blocks, "llm": layers(net.llm)}.items():
        compile_blocks(blocks, _counting(graphs, kind))  # one backend for all: with another, blocks share no graph
    compiled, warm = [], 0
    for number, pack in enumerate(packs):
        compiled.append(step(net, partial(loss_of, pack)))
        warm = graphs.total() if number + 1 == WARM else warm
    return Report(
        figures={
            "graphs_encoder": graphs["encoder"],
            "graphs_llm": graphs["llm"],
            "graphs_after_step_2": graphs.total() - warm,
            "batches": batches,
        },
        errors={"loss": float(np.abs(np.subtract(losses, compiled)).max())},
        limits=LIMITS,
    )


def _counting(graphs: Counter[str], kind: str) -> Callable[[Any, Any], Callable]:
    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        graphs[kind] += 1
        return graph.forward

    return backend
