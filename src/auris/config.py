"""A recipe is a resolved config as a plain dict: composed by Hydra, saved with the run, turned into parts here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from auris.data import pairs, samples
from auris.errors import UserError
from auris.model.weights import checkpoint_dir
from auris.text.chat import Chat
from auris.text.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent
CONFIGS = next(path for path in (HERE / "configs", HERE.parents[1] / "configs") if path.is_dir())  # wheel, checkout

Config = Mapping[str, Any]
"""A resolved config as a plain mapping: what Hydra composed, interpolations filled."""

VIEWS = {
    "audio": samples.AudioSamples,
    "text": samples.TextSamples,
    "transcript": samples.TranscriptSamples,
    "chat": samples.ChatSamples,
    "pair": pairs.PairSamples,
}


def compose(overrides: Sequence[str], config: str = "train") -> DictConfig:
    """What `python -m auris.<config> <overrides>` would be given."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra_compose(config, overrides=list(overrides))


def quote_arguments(arguments: Sequence[str]) -> list[str]:
    """Command-line overrides with values such as `runs/demo/qwen_audio/seed=0` in quotes, as Hydra wants them."""
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        plain = "=" in value and not argument.startswith("-") and value[0] not in "'\"[{"
        quoted.append(f"{key}='{value}'" if plain else argument)
    return quoted


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """A config as a plain dict, interpolations filled. Raises ValueError for a value that must be given and is not."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"expected {' and '.join(f'{key}=...' for key in missing)} on the command line (see --help)")
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def build(node: Mapping[str, Any] | None) -> Any:
    """Make what a `_target_` node describes (None for None). A ValueError of what is made is raised as such."""
    try:
        return None if node is None else instantiate(OmegaConf.create(dict(node)), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def build_net(recipe: Mapping[str, Any], tokenizer: Tokenizer) -> nn.Module:
    """The model on the meta device: shapes and geometry, no memory."""
    with torch.device("meta"):
        return build(recipe["model"])(vocab_size=tokenizer.size)


def build_objective(recipe: Mapping[str, Any], net: nn.Module, tokenizer: Tokenizer) -> nn.Module:
    """The objective on the meta device; one that is partial is completed with the net's and the tokenizer's facts."""
    with torch.device("meta"):
        made = build(recipe["objective"])
        objective = made if isinstance(made, nn.Module) else made(width=net.encoder.width, n_text=tokenizer.n_text)
    view = recipe["data"]["view"]
    if view not in objective.views:
        raise UserError(
            f"data.view={view} does not suit {type(objective).__name__}: expected {' or '.join(objective.views)}"
        )
    return objective


def build_samples(
    recipe: Mapping[str, Any],
    net: nn.Module,
    tokenizer: Tokenizer,
    *,
    long_audio: str,
    silent_audio: str = "keep",
    train: bool,
) -> samples.Samples:
    """How rows are seen; only training rows are augmented.

    Raises ValueError if there is no such view, or if it is not written in the recipe's style of prompting.
    """
    view, prompt = recipe["data"]["view"], build(recipe["prompt"])
    if view not in VIEWS:
        raise UserError(f"data.view={view}: expected {', '.join(VIEWS)}")
    if not isinstance(prompt, VIEWS[view].styles):
        expected = "chat_v1 or chat_v2" if Chat in VIEWS[view].styles else "natural, tags or both"
        raise UserError(f"data.view={view} is not written in {type(prompt).__name__}: expected prompt={expected}")
    return VIEWS[view](
        tokenizer=tokenizer,
        prompt=prompt,
        geometry=net.geometry,
        long_audio=long_audio,
        silent_audio=silent_audio,
        augment=build(recipe["data"]["augment"]) if train else None,
        reverb=build(recipe["data"].get("reverb")) if train else None,
        noise=build(recipe["data"].get("noise")) if train else None,
        seed=recipe["seed"],
    )


def save(recipe: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True), encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every value that differs."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def load_state(path: str | Path, which: str = "last") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint's recipe, and its tensors by name (`net.encoder...`, `objective...`). Never executes a file."""
    snapshot = checkpoint_dir.find(path, which)
    return snapshot.state["recipe"], snapshot.tensors().read_all()
