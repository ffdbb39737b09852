"""Configs: composition by Hydra, conversion to plain mappings, and construction of the objects that configs describe.

Composition imports neither torch nor the classes of these objects. Only construction imports them.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import translate
from functools import cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from auris.errors import UsageError, UserError, did_you_mean
from auris.files import read_yaml

if TYPE_CHECKING:
    from auris.data.samples import Samples
    from auris.model.audio_lm import AudioLM
    from auris.text.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent
# In a wheel, the configs are inside the package; in a checkout, they are next to `src`.
CONFIGS = next(path for path in (HERE / "configs", HERE.parents[1] / "configs") if path.is_dir())

# Keys of a config's `data` that select rows and describe samples. All other keys are arguments of the data module.
ROW_KEYS = (
    "name",
    "root",
    "dialogues",
    "mix",
    "test",
    "view",
    "encoder_frames",
    "long_audio",
    "silent_audio",
    "augment",
    "reverb",
    "stretch",
    "noise",
)

Config = Mapping[str, Any]
"""A config composed by Hydra, as a plain mapping with interpolations resolved."""

# These keys of a study contain overrides for the configs of its runs. Their interpolations refer to these configs, so
# they are not resolved in the config of the study.
_STUDY_KEYS = ("arms", "stages")
# Sections whose keys the user chooses.
_REPLACED_SECTIONS = ("optim.lr_factors",)


def search_path() -> str:
    """Return an override by which Hydra also searches the working directory for options of the groups of auris.

    These are, for example, ./ablations and a user's ./experiment. Hydra would take any other directory for a group too:
    where there is a directory ./runs, `runs=DIR` would choose an option of a group `runs`.
    """
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra.core.plugins import Plugins

    class WorkingDirectory(FileConfigSource):
        @staticmethod
        def scheme() -> str:
            return "working-directory"

        def is_group(self, config_path: str) -> bool:
            group = config_path.partition("/")[0]
            return super().is_group(config_path) and (group in ("", "ablations") or (CONFIGS / group).is_dir())

    Plugins.instance().register(WorkingDirectory)  # once; Hydra ignores a class of the same name
    return f"hydra.searchpath=[{WorkingDirectory.scheme()}://.]"


def options(group: str) -> list[str]:
    """Return the options of a config group, from auris and from the working directory."""
    return sorted({path.stem for root in (CONFIGS, Path.cwd()) for path in (root / group).glob("*.yaml")})


def to_hydra(overrides: Iterable[str]) -> list[str]:
    """Return overrides in Hydra's grammar for those of auris that Hydra would reject.

    `GROUP=null` becomes `~GROUP`. `optim.lr_factors={...}`, whose keys are names of parts, replaces the section. Hydra
    would merge the two, and refuse keys that the section does not have.
    """
    hydra_overrides: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        if value == "null" and options(key):
            hydra_overrides.append(f"~{key}")
        elif key in _REPLACED_SECTIONS and value.startswith("{"):
            hydra_overrides += [f"~{key}", f"+{override}"]
        else:
            hydra_overrides.append(override)
    return hydra_overrides


def compose(overrides: Sequence[str], config: str = "train") -> DictConfig:
    """Compose the config of `auris COMMAND [overrides]`; `config` is the name of the command.

    Raises:
        UsageError: Hydra rejects an override.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import ConfigCompositionException, OverrideParseException

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            return hydra_compose(config, overrides=[search_path(), *to_hydra(overrides)])
        except (ConfigCompositionException, OverrideParseException) as error:
            raise explain(error, overrides, config) from error


def explain(error: Exception, overrides: Sequence[str], command: str) -> UsageError:
    """Return a usage error with a one-line message for an error of Hydra: the override, the problem, a suggestion."""
    from hydra.errors import MissingConfigException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        hint = did_you_mean(option, error.options)
        return UsageError(
            f"{group}={option}: there is no such option; {hint}expected {', '.join(sorted(error.options))}"
        )
    if override := getattr(error, "override", None):
        reason = str(error).removeprefix(f"Error parsing override '{override}'").split("See https:")[0].strip()
        return UsageError(f"{override}: {reason}; expected key=value, with quotes around special characters")
    if match := re.match(r"Could not (?:override|delete) '(.+?)'", str(error)):
        key = match[1]
        override = next((override for override in overrides if override.partition("=")[0].strip("~") == key), key)
        choices = dict(override.split("=", 1) for override in overrides if "=" in override)
        valid_keys = set(_valid_keys(command, choices))
        if key in valid_keys:
            return UsageError(f"{override}: {_explain_missing(key, override)}")
        hint = did_you_mean(key, valid_keys)
        return UsageError(f"{override}: there is no {key}; {hint}to add a new key, type +{override}")
    if match := re.match("Error merging override (.*)", str(error), re.DOTALL):  # such as a section for a list
        return UsageError(f"{match[1]}: {str(error.__cause__).splitlines()[0]}")
    return UsageError(" ".join(str(error).split()))


def _explain_missing(key: str, override: str) -> str:
    """Return why a composed config lacks a key of a config file, and what to type instead."""
    sections = key.split(".")[:-1]
    groups = ["/".join(sections[:length]) for length in range(len(sections), 0, -1)]
    if group := next(filter(options, groups), None):
        return f"the chosen option of {group} has no such key; choose {group}={' | '.join(options(group))} as well"
    # A group without options, such as `ablations` outside a checkout.
    return f"expected a file {override.replace('=', '/')}.yaml in the working directory"


def _valid_keys(name: str, choices: Mapping[str, str], group: str = "") -> Iterator[str]:
    """Yield the keys and groups of a config file and of its defaults.

    The files are read directly, because composing them again with Hydra would take half a second.

    Args:
        name: Name of the config file.
        choices: Options that overrides choose, by group.
        group: Group of the config file; empty for the config of a command.
    """
    path = CONFIGS / group / f"{name}.yaml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    content = yaml.safe_load(text) or {}
    for default in content.pop("defaults", []):
        for subgroup, option in default.items() if isinstance(default, dict) else ():
            if not subgroup.startswith("override "):
                subgroup = f"{group}/{subgroup}".strip("/")
                yield subgroup
                yield from _valid_keys(str(choices.get(subgroup, option)), choices, subgroup)
    prefix = "" if "@package _global_" in text or not group else group.replace("/", ".") + "."
    yield from _keys(content, prefix)


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield every key of a config in dotted form."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        yield f"{prefix}{key}"
        yield from _keys(value, f"{prefix}{key}.")


def resolve(cfg: DictConfig, command: str = "train") -> dict[str, Any]:
    """Return a config as a plain dict. Interpolations are resolved, except in the arms and stages of a study.

    Raises:
        UsageError: A required value is missing, an interpolation refers to a key that does not exist, or a value is not
            allowed (`check_values`).
    """
    try:
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            keys = " and ".join(f"{key}=..." for key in missing)
            raise UsageError(f"expected {keys} on the command line (see --help)")
        rest = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in _STUDY_KEYS])
        study = OmegaConf.masked_copy(cfg, [key for key in cfg if key in _STUDY_KEYS])
        containers = OmegaConf.to_container(rest, resolve=True), OmegaConf.to_container(study, resolve=False)
    except OmegaConfBaseException as error:
        place = f"{error.full_key}: " if error.full_key else ""
        raise UsageError(place + str(error).splitlines()[0]) from error
    config = {str(key): value for container in containers for key, value in cast(Mapping, container).items()}
    check_values(config, "study" if command == "train" and "arms" in config else command)
    return config


def check_values(config: Config, command: str = "train") -> None:
    """Check the values of a config against `ranges.yaml`.

    Raises:
        UsageError: A value is not allowed. The message shows the key, the value and the values that are allowed.
    """
    values = dict(_nodes(config))
    for key, value in values.items():
        rule = allowed_values(key, command)
        if rule is not None and not _is_allowed(value, rule, values):
            bounds = [f"{bound}={values[bound]}" for bound in re.findall(r"[<>]=? ([a-z][\w.]*)", rule)]
            where = f" (here {', '.join(bounds)})" if bounds else ""
            raise UsageError(f"{key}={'null' if value is None else f'{value!s:.80}'}: expected {rule}{where}")


@cache
def _ranges() -> list[tuple[re.Pattern, str]]:
    content = read_yaml(HERE / "ranges.yaml")
    rules = {key: "null" if rule is None else str(rule) for key, rule in content.items()}
    return [(re.compile(translate(key.replace("[", "[[]"))), rule) for key, rule in rules.items()]


@cache
def allowed_values(key: str, command: str) -> str | None:
    """Return the values that a key may have, as a phrase from `ranges.yaml`; None if all values are allowed."""
    matches = (rule for pattern, rule in _ranges() if pattern.match(f"{command}/{key}") or pattern.match(key))
    return next(matches, None)


def _nodes(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the sections, lists and values of a config, with keys such as `data.valid[0].limit`."""
    if key:
        yield key, node
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield from _nodes(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for number, child in enumerate(node):
            yield from _nodes(child, f"{key}[{number}]")


_COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def _is_allowed(value: Any, rule: str, values: Mapping[str, Any]) -> bool:
    """Return whether a value is one of the alternatives of a rule. `values` holds the keys that a bound may name."""
    alternatives, _, _ = rule.partition(" (")  # without its remark
    return any(_matches(value, alternative, values) for alternative in alternatives.split(" or "))


def _matches(value: Any, alternative: str, values: Mapping[str, Any]) -> bool:
    match = re.fullmatch(r"an? (section|list|path|name|integer|number) ?(.*)", alternative)
    if match is None:  # a word or a number
        return value == yaml.safe_load(alternative) and type(value) is type(yaml.safe_load(alternative))
    kind, conditions = match.groups()
    if kind == "section":
        return isinstance(value, Mapping)
    if kind == "list":
        return isinstance(value, list) and conditions in ("", f"of {len(value)}")
    if kind == "path":
        return isinstance(value, str) and bool(value.strip())
    if kind == "name":
        return isinstance(value, (str, int)) and re.fullmatch(r"(?!\s*\.*$)[^/\\]+", str(value)) is not None
    # A bool is an int in Python, but nobody means 1 by `true`.
    if isinstance(value, bool) or not isinstance(value, int if kind == "integer" else (int, float)):
        return False
    bounds = [condition.split() for condition in conditions.split(" and ") if condition]
    return math.isfinite(value) and all(
        _COMPARISONS[comparison](value, limit)
        for comparison, bound in bounds
        if isinstance(limit := values.get(bound, yaml.safe_load(bound)), (int, float))
    )


def build(node: Config | None) -> Any:
    """Build the object that a node with a `_target_` describes; None if the node is None.

    If the target raises a UserError, it is raised unchanged.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return None if node is None else instantiate(OmegaConf.create(dict(node)), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def build_net(config: Config, tokenizer: Tokenizer) -> AudioLM:
    """Build the model on the meta device, so that its tensors have shapes but no memory."""
    import torch

    with torch.device("meta"):
        return build(config["model"])(vocab_size=tokenizer.size)


def build_objective(config: Config, net: AudioLM, tokenizer: Tokenizer) -> Any:
    """Build the training objective on the meta device.

    If its config has `_partial_: true`, it gets as arguments the number of text tokens and, if it has such arguments,
    the width of the encoder (`width`) and the id of the prompt's audio pad (`pad`).

    Returns:
        An `auris.training.objectives.objective.Objective`. The type is not annotated, because this module must not
        import modules of `auris.training`.

    Raises:
        UsageError: The objective cannot be trained on samples of the view `data.view`.
    """
    import torch

    with torch.device("meta"):
        built = build(config["objective"])
        is_complete = isinstance(built, torch.nn.Module)
        if not is_complete:
            # For both prompt styles together, it is the audio pad of the first.
            pad = tokenizer.id(build(config["prompt"]).audio_pads[0])
            facts = {"n_text": tokenizer.n_text, "width": net.encoder.width, "pad": pad}
            names = signature(built).parameters
            built = built(**{name: fact for name, fact in facts.items() if name in names})
        objective: Any = built
    view = config["data"]["view"]
    if view not in objective.views:
        name, views = type(objective).__name__, " or ".join(objective.views)
        raise UsageError(f"data.view={view} cannot be used with the objective {name}: expected {views}")
    return objective


def build_samples(
    config: Config,
    net: AudioLM,
    tokenizer: Tokenizer,
    *,
    long_audio: str,
    silent_audio: str = "keep",
    train: bool,
) -> Samples:
    """Build the object that turns rows into samples of the kind `data.view`. Only training samples are augmented.

    Args:
        config: The config of the command.
        net: The model. Its geometry determines the numbers of audio frames and tokens.
        tokenizer: The tokenizer.
        long_audio: Policy for clips over 30 s.
        silent_audio: Policy for silent clips.
        train: Whether the samples are for training.

    Raises:
        UsageError: The view does not exist, or cannot be used with the config's prompt style.
    """
    from auris.data import pairs, samples
    from auris.text.chat import Chat

    sample_classes = {
        "audio": samples.AudioSamples,
        "text": samples.TextSamples,
        "transcript": samples.TranscriptSamples,
        "chat": samples.ChatSamples,
        "pair": pairs.PairSamples,
        "spoken": samples.SpokenSamples,
    }
    view, prompt = config["data"]["view"], build(config["prompt"])
    if view not in sample_classes:
        raise UsageError(f"data.view={view}: expected {', '.join(sample_classes)}")
    if not isinstance(prompt, sample_classes[view].styles):
        expected = "chat_v1 or chat_v2" if Chat in sample_classes[view].styles else "natural, tags or both"
        raise UsageError(f"data.view={view} cannot be used with {type(prompt).__name__}: expected prompt={expected}")
    stretch = build(config["data"].get("stretch"))
    if stretch is not None and view != "text":
        raise UsageError(f"data.stretch has no effect with data.view={view}: set data/stretch=null")
    return sample_classes[view](
        **({"stretch": stretch} if view == "text" else {}),
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
    """Return a line `key: old -> new` for every value that differs between two configs."""
    lines = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines
