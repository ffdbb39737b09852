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
"""The `study` in the config of a published system, which auris has not trained."""


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
        which: the checkpoint to use if the path is a run, "last" or "best".
        device: the device to run on; "auto" for a GPU if there is one.
        dtype: dtype of the parameters; None to keep the stored dtypes.
        chat: whether `generate` prompts in ChatML. None: `chat_format` in generation_config.json decides or, if it is
            missing, whether the model was trained on dialogues.
        long_audio: handling of clips longer than 30 s. "window" uses all of the audio, "first" uses the first 30 s with
            a warning (both released systems do so without a warning), "error" raises an error.

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
    _load_objective_weights(objective, model_source, device)
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
    """Return whether a model is prompted in ChatML, according to its generation config or else its training data."""
    chat_format = source.generation.get("chat_format")
    return chat_format == "chatml" if chat_format else isinstance(configs.build(config["prompt"]), Chat)


def build(source: ModelSource) -> tuple[Config, Tokenizer, AudioLM]:
    """Return the config and the tokenizer of a complete model, and its net on the meta device.

    Raises:
        UserError: the model is not complete, or its files contradict each other.
    """
    config, tokenizer = _read_config(source), load_tokenizer(source)
    return config, tokenizer, configs.build_net(config, tokenizer)


def _read_config(source: ModelSource) -> Config:
    """Return the config of a complete model.

    A published system has no config of auris. The default config is used, with the model, prompts and tokenizer of the
    system.

    Raises:
        UserError: the source is only a part of a model.
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


# kind -> (field of config.json with the id of an audio token, this token, field with the number of embedding rows).
_VOCABULARY_FIELDS = {
    "qwen2_audio": ("audio_token_index", NaturalPrompt.audio_pad, "text_config.vocab_size"),
    "qwen_audio": ("audio.audio_start_id", TagPrompt.audio_begin, "vocab_size"),
}


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """Load the tokenizer of a complete model. For a run, control tokens are added if there is no audio token.

    Raises:
        UserError: there is no tokenizer, it has no audio tokens, or the model's config contradicts it.
    """
    if source.tokenizer is None:
        raise UserError(f"{source.path} has no tokenizer: expected tokenizer.json or qwen.tiktoken next to its weights")
    is_run = source.kind in ("run", "checkpoint")
    audio_pads = configs.build(source.config["prompt"]).audio_pads if is_run else ()
    tokenizer = Tokenizer.load(source.tokenizer, audio_pads=audio_pads)
    if source.kind not in _VOCABULARY_FIELDS:
        return tokenizer
    file = source.path / "config.json"
    id_field, token, rows_field = _VOCABULARY_FIELDS[source.kind]
    token_id: Any = source.config
    for key in id_field.split("."):
        token_id = token_id.get(key)
    if token_id is not None and token_id != tokenizer.id(token):
        raise UserError(f"{file} says {id_field}={token_id}, but {token} is {tokenizer.id(token)} in its tokenizer")
    assert source.model is not None, "kinds with these fields are complete models"
    if source.model["vocab_rows"] < tokenizer.size:
        raise UserError(
            f"{file} says {rows_field}={source.model['vocab_rows']}, but its tokenizer has {tokenizer.size} tokens"
        )
    return tokenizer


def _set_dtypes(net: nn.Module, source: TensorSource, layout_name: str, dtype: torch.dtype | None) -> None:
    """Set the dtypes of a net on the meta device.

    Args:
        net: the net.
        source: its stored tensors.
        layout_name: layout of the tensors, a key of LAYOUTS.
        dtype: dtype of all parameters; None for the dtypes of the stored tensors.
    """
    layout = LAYOUTS[layout_name]
    names = source.keys()
    stored_names = {layout.spell(name): name for name in names}
    # By identity, so that tied tensors occur once.
    tensors = {id(tensor): (tensor, name) for name, tensor in net.state_dict(keep_vars=True).items()}
    for tensor, name in tensors.values():
        key = layout.layout_name(name)
        if dtype is None and key in stored_names:
            tensor.data = tensor.data.to(source.dtype(stored_names[key]))
        elif dtype is not None and isinstance(tensor, nn.Parameter):
            tensor.data = tensor.data.to(dtype)


def _load_objective_weights(objective: nn.Module, source: ModelSource, device: torch.device | str) -> None:
    """Load the weights of the objective, such as a CTC head. Only runs have them.

    Raises:
        UserError: the source lacks weights of the objective.
    """
    state = source.objective_state()
    if objective.state_dict().keys() != state.keys():
        raise UserError(
            f"{source.path} lacks the weights of its objective, {type(objective).__name__}: load the run "
            f"itself, or use parts of the model (weights.encoder={source.path})"
        )
    sharding.materialise(objective, device, draw=False)
    objective.load_state_dict(state)
