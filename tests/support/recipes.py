"""Overrides that make a config small enough for a test, and a cached `compose`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from auris import config

_compose = config.compose  # kept here, because tests replace `config.compose` by `compose_once`

SMALLEST_MODEL = [
    "model.encoder.width=16",
    "model.encoder.n_layers=1",
    "model.encoder.n_heads=2",
    "model.llm.config.hidden_size=16",
    "model.llm.config.intermediate_size=32",
    "model.llm.config.num_hidden_layers=1",
    "model.llm.config.num_attention_heads=2",
    "model.llm.config.num_key_value_heads=2",
    "trainer.precision=32-true",  # on every CPU
]


def with_run_dir(config: Mapping[str, Any], arm: str, run_dir: str) -> dict[str, Any]:
    """Return a copy of a resolved config with another arm (variant in a study) and run directory."""
    copy = json.loads(json.dumps(config).replace(config["run_dir"], run_dir))
    return copy | {"arm": arm}


def smallest_run(corpus: Path, folder: Path) -> list[str]:
    """Return overrides for a run of about a second on the small corpus, which writes below `folder`."""
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
    """Return what `auris.config.compose` returns, from a cache, because Hydra takes a third of a second."""
    return deepcopy(_composed(tuple(overrides), config, Path.cwd()))


@cache
def _composed(overrides: tuple[str, ...], config: str, working_directory: Path) -> DictConfig:
    return _compose(overrides, config)
