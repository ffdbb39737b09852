"""`auris.load(path)`: a trained model with its tokenizer and prompting style, from whatever `path` holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

RELEASED = "released"
"""The study of published systems, which auris has not trained."""


def load(
    path: str | Path,
    *,
    which: str = "last",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    chat: bool | None = None,
    long_audio: str = "window",
) -> AudioModel:
    """Load the model that a path holds, in eval mode.

    Args:
        path: a run directory, one of its checkpoints, a directory that auris exported, or a directory of a published
            system: Qwen2-Audio as in transformers, Qwen-Audio (v1) as released.
        which: checkpoint of a run: last or best.
        device: the device to run on; "auto" for a GPU if there is one.
        dtype: dtype of the parameters; None to keep each as it is stored.
        chat: prompt it in ChatML; None: as the `chat_format` of its generation_config.json says; without one, if it was
            trained on dialogues.
        long_audio: clips over 30 s: "window" uses all of the audio, "first" drops the rest with a warning (both
            released systems do so without one), "error" refuses them.

    Raises:
        MissingFileError: nothing is there.
        UserError: it is not a whole model, its files contradict each other, or weights are missing or do not fit.
    """
    found = identify(path, which)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config, tokenizer, net = build(found)
    objective = configs.build_objective(config, net, tokenizer)
    source = found.open_tensors()
    _set_dtypes(net, source, found.layout, dtype)
    sharding.materialise(net, device, draw=False)
    loading.load(net, source, layout=found.layout, label=str(path))
    _load_objective(objective, found, device)
    return AudioModel(
        net=net.eval(),
        objective=objective.eval(),
        tokenizer=tokenizer,
        config=config,
        generation=found.generation or {"eos_token_id": tokenizer.end},
        is_chat=_is_chat(found, config) if chat is None else chat,
        long_audio=long_audio,
    )


def _is_chat(found: ModelSource, config: Config) -> bool:
    """Return whether a model is prompted in ChatML, by its generation config or else by its training."""
    chat_format = found.generation.get("chat_format")
    return chat_format == "chatml" if chat_format else isinstance(configs.build(config["prompt"]), Chat)


def build(found: ModelSource) -> tuple[Config, Tokenizer, AudioLM]:
    """Return a whole model's config, its tokenizer, and its net on the meta device. Raises as `load`."""
    config, tokenizer = _recipe(found), load_tokenizer(found)
    return config, tokenizer, configs.build_net(config, tokenizer)


def _recipe(found: ModelSource) -> Config:
    """Return the config of a whole model; for a published system the defaults with its model, prompts and tokenizer.

    Raises:
        UserError: the source is a part of a model.
    """
    if found.model is None:
        [part] = found.parts
        raise UserError(f"{found.path} is {KINDS[found.kind]}, no whole model: train with weights.{part}={found.path}")
    if found.kind in ("run", "checkpoint", "auris"):
        config = dict(found.config)
    else:
        prompt = "tags" if found.kind == "qwen_audio" else "natural"
        config = configs.resolve(configs.compose(["scale=full", f"prompt={prompt}"]))
        config |= {"study": RELEASED, "arm": found.path.resolve().name, "model": dict(found.model)}
    return config | {"tokenizer": found.tokenizer}


# kind -> fields of config.json: that of an audio token's id, the token, that of the number of vocabulary rows.
_VOCABULARY_FIELDS = {
    "qwen2_audio": ("audio_token_index", NaturalPrompt.audio_pad, "text_config.vocab_size"),
    "qwen_audio": ("audio.audio_start_id", TagPrompt.audio_begin, "vocab_size"),
}


def load_tokenizer(found: ModelSource) -> Tokenizer:
    """Load a whole model's tokenizer. That of a run may be one of a plain language model, grown when the run began.

    Raises:
        UserError: there is none, it is not for audio, or the model's config contradicts it.
    """
    if found.tokenizer is None:
        raise UserError(f"{found.path} has no tokenizer: expected tokenizer.json or qwen.tiktoken beside its weights")
    tokenizer = Tokenizer.load(found.tokenizer, grow=found.kind in ("run", "checkpoint"))
    if found.kind not in _VOCABULARY_FIELDS:
        return tokenizer
    file = found.path / "config.json"
    field, token, rows = _VOCABULARY_FIELDS[found.kind]
    token_id: Any = found.config
    for key in field.split("."):
        token_id = token_id.get(key)
    if token_id is not None and token_id != tokenizer.id(token):
        raise UserError(f"{file} says {field}={token_id}, but {token} is {tokenizer.id(token)} in its tokenizer")
    if found.model["vocab_rows"] < tokenizer.size:
        raise UserError(
            f"{file} says {rows}={found.model['vocab_rows']}, but its tokenizer has {tokenizer.size} tokens"
        )
    return tokenizer


def _set_dtypes(net: nn.Module, source: TensorSource, layout: str, dtype: torch.dtype | None) -> None:
    """Set the dtypes of a net on the meta device: one for all parameters, or each as it is stored."""
    table = LAYOUTS[layout]
    names = source.keys()
    stored = {table.spell(name): name for name in names}
    owners = {id(x): (x, name) for name, x in net.state_dict(keep_vars=True).items()}  # tied tensors once
    for tensor, name in owners.values():
        theirs = table.layout_name(name)
        if dtype is None and theirs in stored:
            tensor.data = tensor.data.to(source.dtype(stored[theirs]))
        elif dtype is not None and isinstance(tensor, nn.Parameter):
            tensor.data = tensor.data.to(dtype)


def _load_objective(objective: nn.Module, found: ModelSource, device: torch.device | str) -> None:
    """Load the objective's own weights (the head that CTC trains on the encoder), which only a run has."""
    state = found.objective_state()
    if objective.state_dict().keys() != state.keys():
        raise UserError(
            f"{found.path} lacks the weights of {type(objective).__name__}, which it was trained with: give the run "
            f"itself, or use its parts (weights.encoder={found.path})"
        )
    sharding.materialise(objective, device, draw=False)
    objective.load_state_dict(state)
