"""`auris.load(path)`: load a trained model with its tokenizer and prompting style."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from auris import config as configs
from auris.config import Config
from auris.errors import UserError
from auris.inference.audio_model import AudioModel
from auris.model.audio_lm import AudioLM
from auris.model.weights import loading
from auris.model.weights.identify import KINDS, ModelSource, identify
from auris.model.weights.layouts import LAYOUTS
from auris.model.weights.tensors import TensorSource
from auris.text.chat import Chat
from auris.text.prompts import NaturalPrompt, TagPrompt
from auris.text.tokenizer import Tokenizer
from auris.training import sharding

if TYPE_CHECKING:
    from auris.training.objectives.objective import Objective

RELEASED = "released"
"""The study name of published systems, which auris has not trained."""


def load(
    path: str | Path,
    *,
    which: str = "last",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    chat: bool | None = None,
    long_audio: str = "window",
) -> AudioModel:
    """Load the model at a path, in eval mode.

    Args:
        path: a run directory, one of its checkpoints, a directory that auris exported, or a directory of a published
            system: Qwen2-Audio as in transformers, Qwen-Audio (v1) as released.
        which: checkpoint of a run: last or best.
        device: the device to run on; "auto" for a GPU if there is one.
        dtype: dtype of the parameters; None to keep the stored ones.
        chat: prompt in ChatML; None: according to `chat_format` in generation_config.json, or without it, if the model
            was trained on dialogues.
        long_audio: handling of clips over 30 s. "window" uses all of the audio, "first" drops the rest with a warning
            (both released systems drop it without one), "error" raises an error.

    Raises:
        MissingFileError: there is no model.
        UserError: the model is not complete, its files contradict each other, or weights are missing or do not fit.
    """
    model_source = identify(path, which)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config, tokenizer, net = build(model_source)
    objective = cast("Objective", configs.build_objective(config, net, tokenizer))  # built from a `_target_`
    tensors = model_source.open_tensors()
    _set_dtypes(net, tensors, model_source.layout, dtype)
    sharding.materialise(net, device, draw=False)
    loading.load(net, tensors, layout=model_source.layout, label=str(path))
    _load_objective(objective, model_source, device)
    return AudioModel(
        net=net.eval(),
        objective=objective.eval(),
        tokenizer=tokenizer,
        config=config,
        generation=model_source.generation or {"eos_token_id": tokenizer.end},
        is_chat=_is_chat(model_source, config) if chat is None else chat,
        long_audio=long_audio,
    )


def _is_chat(source: ModelSource, config: Config) -> bool:
    """Return whether a model is prompted in ChatML, according to its generation config or else its training."""
    chat_format = source.generation.get("chat_format")
    return chat_format == "chatml" if chat_format else isinstance(configs.build(config["prompt"]), Chat)


def build(source: ModelSource) -> tuple[Config, Tokenizer, AudioLM]:
    """Return the config and tokenizer of a complete model, and its net on the meta device. Raise as `load` does."""
    config, tokenizer = _config(source), load_tokenizer(source)
    return config, tokenizer, cast("AudioLM", configs.build_net(config, tokenizer))  # built from a `_target_`


def _config(source: ModelSource) -> Config:
    """Return the config of a complete model; for a published system the defaults with its model, prompts and tokenizer.

    Raises:
        UserError: the source is a part of a model.
    """
    if source.model is None:
        [part] = source.parts
        raise UserError(
            f"{source.path} is {KINDS[source.kind]}, not a complete model: train with weights.{part}={source.path}"
        )
    if source.kind in ("run", "checkpoint", "auris"):
        config = dict(source.config)
    else:
        prompt = "tags" if source.kind == "qwen_audio" else "natural"
        config = configs.resolve(configs.compose(["scale=full", f"prompt={prompt}"]))
        config |= {"study": RELEASED, "arm": source.path.resolve().name, "model": dict(source.model)}
    return config | {"tokenizer": source.tokenizer}


# kind -> (field of an audio token's id, this token, field of the number of vocabulary rows) in config.json.
_VOCABULARY_FIELDS = {
    "qwen2_audio": ("audio_token_index", NaturalPrompt.audio_pad, "text_config.vocab_size"),
    "qwen_audio": ("audio.audio_start_id", TagPrompt.audio_begin, "vocab_size"),
}


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """Load the tokenizer of a complete model. A run extends the tokenizer of a plain language model at its start.

    Raises:
        UserError: there is no tokenizer, it is not for audio, or the model's config contradicts it.
    """
    if source.tokenizer is None:
        raise UserError(f"{source.path} has no tokenizer: expected tokenizer.json or qwen.tiktoken next to its weights")
    tokenizer = Tokenizer.load(source.tokenizer, grow=source.kind in ("run", "checkpoint"))
    if source.kind not in _VOCABULARY_FIELDS:
        return tokenizer
    file = source.path / "config.json"
    field, token, rows = _VOCABULARY_FIELDS[source.kind]
    token_id: Any = source.config
    for key in field.split("."):
        token_id = token_id.get(key)
    if token_id is not None and token_id != tokenizer.id(token):
        raise UserError(f"{file} says {field}={token_id}, but {token} is {tokenizer.id(token)} in its tokenizer")
    assert source.model is not None, "kinds with these fields are complete models"
    if source.model["vocab_rows"] < tokenizer.size:
        raise UserError(
            f"{file} says {rows}={source.model['vocab_rows']}, but its tokenizer has {tokenizer.size} tokens"
        )
    return tokenizer


def _set_dtypes(net: nn.Module, source: TensorSource, layout: str, dtype: torch.dtype | None) -> None:
    """Set the dtypes of a net on the meta device: `dtype` for all parameters, or None for the stored ones."""
    table = LAYOUTS[layout]
    names = source.keys()
    stored = {table.spell(name): name for name in names}
    owners = {id(x): (x, name) for name, x in net.state_dict(keep_vars=True).items()}  # tied ones once
    for tensor, name in owners.values():
        layout_name = table.layout_name(name)
        if dtype is None and layout_name in stored:
            tensor.data = tensor.data.to(source.dtype(stored[layout_name]))
        elif dtype is not None and isinstance(tensor, nn.Parameter):
            tensor.data = tensor.data.to(dtype)


def _load_objective(objective: nn.Module, source: ModelSource, device: torch.device | str) -> None:
    """Load the weights of the objective (such as the CTC head), which only a run has."""
    state = source.objective_state()
    if objective.state_dict().keys() != state.keys():
        raise UserError(
            f"{source.path} lacks the weights of its objective, {type(objective).__name__}: load the run "
            f"itself, or use parts of the model (weights.encoder={source.path})"
        )
    sharding.materialise(objective, device, draw=False)
    objective.load_state_dict(state)
