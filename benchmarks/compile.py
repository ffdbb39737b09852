"""Number of graphs that `torch.compile(dynamic=True)` makes of encoder and LLM blocks for many packs of random lengths.

There is no peer, and no time is measured. Each block is compiled in place with a backend that counts the graphs and
runs them unchanged. The number of graphs is the same with any backend.
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
from auris.model.llm import decoder_layers
from auris.training.objectives.next_token import NextToken
from benchmarks import Report
from benchmarks.models import PRESETS as SIZES
from benchmarks.models import Preset, models, samples, step, waves

PRESETS = {"tiny": SIZES["tiny"]}
LIMITS = {"loss": 1e-5}
WARM_UP_STEPS = 2  # number of steps after which no further graph should be compiled


def report(preset: Preset, *, batches: int = 100, lengths: str = "0.5-4", clips: int = 4, seed: int = 0) -> Report:
    """Report the number of graphs by kind of block, and the number of graphs that were added after the warm-up.

    The error is the largest difference of the losses from those without compilation.
    """
    torch.compiler.reset()
    net, _ = models(preset, seed)
    objective = NextToken()
    draw = np.random.default_rng(seed)
    packs = []
    for number in range(batches):
        pack_waves = waves(lengths, clips, seed + number)
        pack_waves = [
            wave[: int(draw.integers(len(wave) // 2, len(wave)))]
            for wave in pack_waves[: int(draw.integers(1, clips + 1))]
        ]
        packs.append(collate(samples(pack_waves, net.geometry, preset.vocab_size, seed), geometry=net.geometry))

    def compute_loss(pack: dict) -> torch.Tensor:
        return objective(net, pack)[0] / objective.count(pack)

    losses = [step(net, partial(compute_loss, pack)) for pack in packs]
    graphs: Counter[str] = Counter()
    for kind, blocks in {"encoder": net.encoder.blocks, "llm": decoder_layers(net.llm)}.items():
        # All blocks of a kind share one backend object. With several backends they would not share graphs.
        compile_blocks(blocks, _counting_backend(graphs, kind))
    compiled_losses, n_warm_up_graphs = [], 0
    for number, pack in enumerate(packs):
        compiled_losses.append(step(net, partial(compute_loss, pack)))
        if number + 1 == WARM_UP_STEPS:
            n_warm_up_graphs = graphs.total()
    return Report(
        figures={
            "graphs_encoder": graphs["encoder"],
            "graphs_llm": graphs["llm"],
            "graphs_after_step_2": graphs.total() - n_warm_up_graphs,
            "batches": batches,
        },
        errors={"loss": float(np.abs(np.subtract(losses, compiled_losses)).max())},
        limits=LIMITS,
    )


def _counting_backend(graphs: Counter[str], kind: str) -> Callable[[Any, Any], Callable]:
    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        graphs[kind] += 1
        return graph.forward

    return backend
