"""Settings of a run that follow from its initial weights: sizes of encoder and language model, and the tokenizer.

A user who names weights does not need to type their sizes. What the user types is kept, and `initial_weights` refuses
it if it contradicts the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from auris import config as configs
from auris.config import Config
from auris.errors import UserError
from auris.model.weights.identify import KINDS, ModelSource, identify
from auris.text.chat import Chat
from auris.text.tokenizer import Tokenizer

# Sizes of the encoder. `clip_end` is not among them, because Qwen-Audio starts from Whisper, which has another value.
ENCODER_SIZES = ("n_mels", "width", "n_layers", "n_heads", "ffn", "max_positions")
_PARTS = ("encoder", "llm")  # the other parts connect these two, and an ablation chooses them


def find_sources(config: Config, planned: Mapping[str, ModelSource] | None = None) -> dict[str, ModelSource]:
    """Identify the initial weights of a run.

    Args:
        config: Resolved config of the run.
        planned: Sources by key that do not exist yet, because a study trains them first.

    Returns:
        The source of each key that has a path (`checkpoint`, `weights.PART`), in the order in which they are loaded.

    Raises:
        UserError: There is no model at a path, auris does not support it, or it lacks the part.
    """
    part_paths = {f"weights.{part}": path for part, path in config["weights"].items()}
    paths = {"checkpoint": config["checkpoint"], **part_paths}
    sources = dict(planned or {})
    for key, path in paths.items():
        if path is not None and key not in sources:
            sources[key] = _identify(key, path)
    return {key: sources[key] for key in paths if key in sources}


def _identify(key: str, path: str) -> ModelSource:
    try:
        source = identify(path)
    except UserError as error:
        raise type(error)(f"{key}: {error}") from error
    part, parts = key.removeprefix("weights."), " and ".join(source.parts)
    if key == "checkpoint" and source.model is None:
        raise UserError(f"{key}={path} is {KINDS[source.kind]}, not a complete model: set weights.{parts}={path}")
    if key != "checkpoint" and part not in source.parts:
        raise UserError(f"{key}={path} is {KINDS[source.kind]}: it has no {part}, expected weights.{parts}={path}")
    return source


def adopt_settings(config: Config, sources: Mapping[str, ModelSource], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a config with the settings of the initial weights, except for settings that overrides set.

    A checkpoint and weights of the encoder set the sizes of the encoder. A checkpoint and weights of the language model
    set its config, the tokenizer, and the number of rows of the embedding if there are more of them than tokens. A part
    that an override chooses as a whole (`model/encoder=NAME`) keeps its settings.

    Args:
        config: Resolved config of the run.
        sources: Sources of the initial weights by key, as `find_sources` returns them.
        overrides: Overrides from which the config was composed.

    Raises:
        UserError: A language model has no tokenizer and no override sets one, or the tokenizer cannot be read.
        UsageError: Another setting is not allowed with the adopted ones.
    """
    keys = {override.lstrip("+~").partition("=")[0].replace("/", ".") for override in overrides}
    adopted, model = dict(config), dict(config["model"])
    for key, source in sources.items():
        for part in _PARTS:
            if key in ("checkpoint", f"weights.{part}") and f"model.{part}" not in keys:
                adopt = _adopt_encoder if part == "encoder" else _adopt_llm
                model[part] = adopt(model[part], source.parts[part], keys)
        if key in ("checkpoint", "weights.llm"):
            if "tokenizer" not in keys:
                if source.tokenizer is None:
                    raise UserError(
                        f"{key}={source.path} has no tokenizer: expected tokenizer.json next to its weights, or "
                        "tokenizer=DIR"
                    )
                adopted["tokenizer"] = source.tokenizer
            if "vocab_rows" in model and "model.vocab_rows" not in keys:
                model["vocab_rows"] = _choose_vocab_rows(source, {**adopted, "model": model})
    adopted["model"] = model
    configs.check_values(adopted)
    return adopted


def _adopt_encoder(section: Config, node: Config, keys: Collection[str]) -> dict[str, Any]:
    """Return the section `model.encoder` with the sizes of a node, except for `keys`, which overrides set."""
    names = [name for name in ENCODER_SIZES if name in section and name in node and f"model.encoder.{name}" not in keys]
    return {**section, **{name: node[name] for name in names}}


def _adopt_llm(section: Config, node: Config, keys: Collection[str]) -> dict[str, Any]:
    """Return the section `model.llm` with the config of a node, except for `keys`, which overrides set."""
    prefix = "model.llm.config"
    if "config" not in node or prefix in keys:
        return dict(section)
    names = {key.removeprefix(f"{prefix}.").split(".")[0] for key in keys if key.startswith(f"{prefix}.")}
    config = {**node["config"], **{name: section["config"][name] for name in names if name in section["config"]}}
    if "rope_theta" in names and "rope_parameters" not in names and config.get("rope_parameters"):
        # transformers would prefer the nested value, and the override would have no effect.
        config["rope_parameters"] = {**config["rope_parameters"], "rope_theta": config["rope_theta"]}
    adopted = {**section, "config": config}
    if config.get("model_type") != "qwen2" and "model.llm.train_length" not in keys:
        adopted["train_length"] = None  # the preset's value belongs to Qwen-7B
    return adopted


def _choose_vocab_rows(source: ModelSource, config: Config) -> int | None:
    """Return the number of rows of the embedding: that of the source, unless the tokens of the prompts need more."""
    if source.model is not None:
        return source.model.get("vocab_rows")
    configured, n_rows = config["model"]["vocab_rows"], source.config.get("vocab_size", 0)
    n_needed = configured or load_tokenizer(config).size
    return n_rows if n_rows > n_needed else configured


def load_tokenizer(config: Config) -> Tokenizer:
    """Load the tokenizer of a run, with the control tokens that its prompts need."""
    return Tokenizer.load(config["tokenizer"], audio_pads=configs.build(config["prompt"]).audio_pads)


def report_chat_format(config: Config, source: ModelSource | None, tokenizer: Tokenizer) -> None:
    """Say so if a run trains on dialogues, and its language model has not learnt to write them in ChatML.

    Args:
        config: Resolved config of the run.
        source: Source of `weights.llm`. A model that auris has trained knows the dialogues of auris.
        tokenizer: Tokenizer of the run.
    """
    if source is None or source.model is not None:
        return
    if tokenizer.chat_format != "ChatML" and isinstance(configs.build(config["prompt"]), Chat):
        rank_zero_info(
            f"weights.llm={source.path}: the chat template of its tokenizer is {tokenizer.chat_format}, but auris "
            "writes dialogues in ChatML, which the language model has to learn (trainable=[..., llm])"
        )
