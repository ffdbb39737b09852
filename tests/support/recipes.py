"""Overrides that make a config small enough for a test, and a cache for tests that compose the same ones often."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from auris import config

_compose = config.compose

SMALLEST_MODEL = [
    "model.encoder.width=16",
    "model.encoder.n_layers=1",
    "model.encoder.n_heads=2",
    "model.llm.config.hidden_size=16",
    "model.llm.config.intermediate_size=32",
    "model.llm.config.num_hidden_layers=1",
    "model.llm.config.num_attention_heads=2",
    "model.llm.config.num_key_value_heads=2",
]


def named(config: Mapping[str, Any], arm: str, run_dir: str) -> dict[str, Any]:
    """A resolved config with another arm and run directory, as if it were composed with these."""
    moved = json.loads(json.dumps(config).replace(config["run_dir"], run_dir))
    return moved | {"arm": arm}


def smallest_run(corpus: Path, folder: Path) -> list[str]:
    """Of a run on the small corpus that takes a second; what it writes is under `folder`."""
    return [
        "scale=tiny",
        f"runs_dir={folder}/runs",
        f"data.root={corpus}",
        f"data.cache_dir={folder}/cache",
        "data.rows_per_step=6",
        *SMALLEST_MODEL,
        "optim.warmup_steps=1",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
        "max_new_tokens=4",
        "trainer.enable_progress_bar=false",
    ]


def compose_once(overrides: Sequence[str], config: str = "train") -> DictConfig:
    """`auris.config.compose` with a cache, as Hydra takes a third of a second. To be patched in its place."""
    return deepcopy(_composed(tuple(overrides), config, Path.cwd()))


@cache
def _composed(overrides: tuple[str, ...], config: str, working_directory: Path) -> DictConfig:
    return _compose(overrides, config)
