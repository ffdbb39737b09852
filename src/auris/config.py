"""Configs: composed by Hydra, resolved to plain mappings, saved with a run, and turned into the parts they describe.

Composing imports neither torch nor the parts; building does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from auris.errors import UsageError, UserError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from auris.data.samples import Samples
    from auris.model.audio_lm import AudioLM
    from auris.text.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent
CONFIGS = next(path for path in (HERE / "configs", HERE.parents[1] / "configs") if path.is_dir())  # wheel, checkout

# Groups are also looked for in the working directory: ./ablations, and a user's own ./experiment. Hydra takes this
# setting from a primary config or the command line only.
SEARCH_PATH = "hydra.searchpath=[file://.]"

# Keys of a config's `data` that say which rows there are and how they are presented. All others are arguments of the
# data module.
ROW_KEYS = (
    "name",
    "root",
    "dialogues",
    "mix",
    "test",
    "view",
    "long_audio",
    "silent_audio",
    "augment",
    "reverb",
    "noise",
)

Config = Mapping[str, Any]
"""A resolved config as a plain mapping: what Hydra composed, interpolations filled."""

_STUDY = ("arms", "stages")  # overrides of other configs: their interpolations are filled there


def options(group: str) -> list[str]:
    """Return the options of a config group: those that auris brings and those in the working directory."""
    return sorted({path.stem for root in (CONFIGS, Path.cwd()) for path in (root / group).glob("*.yaml")})


def compose(overrides: Sequence[str], config: str = "train") -> DictConfig:
    """Compose the config that `auris COMMAND [overrides]` would be given; `config` is the command."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import ConfigCompositionException, OverrideParseException

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            return hydra_compose(config, overrides=[SEARCH_PATH, *overrides])
        except (ConfigCompositionException, OverrideParseException) as error:
            raise explain(error, overrides, config) from error


def explain(error: Exception, overrides: Sequence[str], config: str) -> UsageError:
    """Turn what Hydra says about overrides into one line: the override, what is wrong, and what may be meant."""
    if options := getattr(error, "options", None):
        group, _, option = error.missing_cfg_file.rpartition("/")
        meant = did_you_mean(option, options)
        return UsageError(f"{group}={option}: there is no such option; {meant}expected {', '.join(sorted(options))}")
    if override := getattr(error, "override", None):
        reason = str(error).removeprefix(f"Error parsing override '{override}'").split("See https:")[0].strip()
        return UsageError(f"{override}: {reason}; expected key=value, with a value of special characters in quotes")
    if unknown := re.match(r"Could not override '(.+?)'", str(error)):
        key = unknown[1]
        override = next((one for one in overrides if one.partition("=")[0] == key), key)
        meant = did_you_mean(key, _known_keys(config, dict(one.split("=", 1) for one in overrides if "=" in one)))
        return UsageError(f"{override}: there is no {key}; {meant}a key of your own is added by +{override}")
    return UsageError(" ".join(str(error).split()))


def _known_keys(name: str, chosen: Mapping[str, str], group: str = "") -> Iterator[str]:
    """Yield the keys and groups of a config file and of its defaults, in which overrides may choose other options.

    The files are read without Hydra, which would take half a second to compose them once more.
    """
    path = CONFIGS / group / f"{name}.yaml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    content = yaml.safe_load(text) or {}
    for default in content.pop("defaults", []):
        for part, option in default.items() if isinstance(default, dict) else ():
            if not part.startswith("override "):
                part = f"{group}/{part}".strip("/")
                yield part
                yield from _known_keys(str(chosen.get(part, option)), chosen, part)
    prefix = "" if "@package _global_" in text or not group else group.replace("/", ".") + "."
    yield from _keys(content, prefix)


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield every key of a config, dotted."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        yield f"{prefix}{key}"
        yield from _keys(value, f"{prefix}{key}.")


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as a plain dict with interpolations filled, except in the arms and stages of a study.

    Raises:
        UsageError: a value that must be given is missing, or an interpolation names a key that does not exist.
    """
    try:
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            keys = " and ".join(f"{key}=..." for key in missing)
            raise UsageError(f"expected {keys} on the command line (see --help)")
        filled = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in _STUDY])
        unfilled = OmegaConf.masked_copy(cfg, [key for key in cfg if key in _STUDY])
        return OmegaConf.to_container(filled, resolve=True) | OmegaConf.to_container(unfilled, resolve=False)
    except OmegaConfBaseException as error:
        raise UsageError(" ".join(str(error).split())) from error


def build(node: Config | None) -> Any:
    """Build what a `_target_` node describes (None for None). An exception of the target is raised as it is."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return None if node is None else instantiate(OmegaConf.create(dict(node)), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def build_net(config: Config, tokenizer: Tokenizer) -> AudioLM:
    """Build the model on the meta device: shapes and geometry, no memory."""
    import torch

    with torch.device("meta"):
        return build(config["model"])(vocab_size=tokenizer.size)


def build_objective(config: Config, net: nn.Module, tokenizer: Tokenizer) -> nn.Module:
    """Build the objective on the meta device; a partial one is completed with the sizes of the net and tokenizer."""
    import torch

    with torch.device("meta"):
        built = build(config["objective"])
        is_whole = isinstance(built, torch.nn.Module)
        objective = built if is_whole else built(width=net.encoder.width, n_text=tokenizer.n_text)
    view = config["data"]["view"]
    if view not in objective.views:
        raise UsageError(
            f"data.view={view} does not suit {type(objective).__name__}: expected {' or '.join(objective.views)}"
        )
    return objective


def build_samples(
    config: Config,
    net: nn.Module,
    tokenizer: Tokenizer,
    *,
    long_audio: str,
    silent_audio: str = "keep",
    train: bool,
) -> Samples:
    """Build the view of the rows; only training rows are augmented.

    Raises:
        UsageError: the view does not exist, or the config's style of prompting does not write it.
    """
    from auris.data import pairs, samples
    from auris.text.chat import Chat

    views = {
        "audio": samples.AudioSamples,
        "text": samples.TextSamples,
        "transcript": samples.TranscriptSamples,
        "chat": samples.ChatSamples,
        "pair": pairs.PairSamples,
    }
    view, prompt = config["data"]["view"], build(config["prompt"])
    if view not in views:
        raise UsageError(f"data.view={view}: expected {', '.join(views)}")
    if not isinstance(prompt, views[view].styles):
        expected = "chat_v1 or chat_v2" if Chat in views[view].styles else "natural, tags or both"
        raise UsageError(f"data.view={view} is not written in {type(prompt).__name__}: expected prompt={expected}")
    return views[view](
        tokenizer=tokenizer,
        prompt=prompt,
        geometry=net.geometry,
        long_audio=long_audio,
        silent_audio=silent_audio,
        augment=build(config["data"].get("augment")) if train else None,
        reverb=build(config["data"].get("reverb")) if train else None,
        noise=build(config["data"].get("noise")) if train else None,
        seed=config["seed"],
    )


def differences(old: Config, new: Config, prefix: str = "") -> list[str]:
    """Return `key: old -> new` for every value that differs."""
    lines = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines
