"""Recognise the model at a path: a run, one of its checkpoints, an exported directory or a published system.

Only file names, configs and headers are read; `ModelSource.open_tensors()` opens the weights. A model of any origin is
described by a node like `model` in the configs of auris.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from auris.errors import MissingFileError, UserError, shorten
from auris.files import read_json, read_yaml
from auris.model import adapters
from auris.model.weights import checkpoint_dir
from auris.model.weights.checkpoint_dir import CheckpointDir
from auris.model.weights.layouts import LAYOUTS
from auris.model.weights.tensors import StateTensors, TensorFiles, TensorSource

Node = Mapping[str, Any]
"""A part of a config that describes an object: `_target_` and its arguments."""

ConfigFile = Mapping[str, Any]
"""The content of a config.json, or a section of it."""

# Kinds of models, with their descriptions in messages.
KINDS = {
    "run": "a training run of auris",
    "checkpoint": "a checkpoint of a training run of auris",
    "auris": "a directory that auris exported",
    "qwen2_audio": "Qwen2-Audio in transformers' layout",
    "qwen_audio": "Qwen-Audio (v1) as released",
    "whisper": "Whisper in transformers' layout, used as an audio encoder",
    "whisper_openai": "Whisper in OpenAI's layout, used as an audio encoder",
    "qwen": "Qwen in the layout of its first release, used as a language model",
    "causal_lm": "a causal language model of transformers",
}
_LAYOUT_NAMES = {"run": "auris", "checkpoint": "auris", "qwen": "qwen_audio"}  # the other kinds are names of layouts
PARTS = ("encoder", "pooling", "projector", "boundary", "llm")
# A directory with one of these files contains a tokenizer.
_TOKENIZER_FILES = ("tokenizer.json", "qwen.tiktoken", "vocab.json", "tokenizer.model")

_EXPECTED = (
    "expected a run directory, one of its checkpoints (checkpoints/step_...), a directory that auris exported "
    "(recipe.yaml), a transformers directory (config.json and safetensors) or a Whisper .pt file"
)
_DAMAGED = "it is damaged, or contains code, which auris does not execute"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Description of the model at a path.

    Attributes:
        path: the path that the user has given.
        kind: a key of `KINDS`.
        config: the config of a run or an exported directory; otherwise the content of config.json, or of `dims` in
            OpenAI's .pt file of Whisper.
        model: the `model` node of a complete model. For a published system it contains `vocab_rows`, the number of rows
            of the embedding. None for a part of a model.
        parts: the node of each part that the source contains. For a complete model they are taken from `model`.
        generation: the content of generation_config.json; empty if there is no such file.
        tokenizer: directory or hub name of the tokenizer; None if there is no tokenizer.
        file: the .pt file with the weights; None for all other kinds.
        checkpoint: the checkpoint of a run; None for all other kinds.
    """

    path: Path
    kind: str
    config: Node | ConfigFile
    model: Node | None = None
    parts: Mapping[str, Node] = field(default_factory=dict)
    generation: ConfigFile = field(default_factory=dict)
    tokenizer: str | None = None
    file: Path | None = None
    checkpoint: CheckpointDir | None = None

    def __post_init__(self) -> None:
        if self.model is not None:
            object.__setattr__(self, "parts", {part: self.model[part] for part in PARTS if part in self.model})

    @property
    def layout(self) -> str:
        """Return the layout of the tensors, a key of `layouts.LAYOUTS`."""
        return _LAYOUT_NAMES.get(self.kind, self.kind)

    def open_tensors(self) -> TensorSource:
        """Open the tensors of the model. For a run, these are the tensors of the net, with adapters merged."""
        if self.file is not None:
            return StateTensors(_load_pt(self.file)["model_state_dict"])
        if self.checkpoint is None:
            return TensorFiles.open(self.path)
        net_tensors = self.checkpoint.tensors(prefix="net.")
        if not adapters.has_adapters(net_tensors.keys()):
            return net_tensors
        return StateTensors(adapters.merge(net_tensors.read_all(), self.config.get("lora")))

    def objective_state(self) -> dict[str, torch.Tensor]:
        """Read the tensors of the objective by name. Only a run has them; for other kinds the result is empty."""
        return {} if self.checkpoint is None else self.checkpoint.tensors(prefix="objective.").read_all()


def identify(path: str | Path, which: str = "last") -> ModelSource:
    """Recognise the model at a path.

    Args:
        path: a directory, or a Whisper .pt file.
        which: the checkpoint to use if the path is a run, "last" or "best".

    Raises:
        MissingFileError: there is no model.
        UserError: a file cannot be read, or a config contradicts the weights or has a value that is not supported. The
            message names the file and the field.
    """
    path = Path(path)
    if path.is_file():
        return _describe_file(path)
    if checkpoint_dir.is_checkpoint(path):
        return _describe_run(path, "checkpoint", which)
    if (path / checkpoint_dir.FOLDER).is_dir():
        return _describe_run(path, "run", which)
    if (path / "recipe.yaml").is_file() and any(path.glob("*.safetensors")):
        return _describe_exported(path)
    if (path / "config.json").is_file():
        return _describe_published(path)
    if (path / "adapter_config.json").is_file():
        raise UserError(
            f"{path} contains only an adapter of another model: merge it into that model with peft "
            "(merge_and_unload), save the result with save_pretrained, and give its directory instead"
        )
    problem = "contains no model" if path.is_dir() else "does not exist"
    raise MissingFileError(f"{path} {problem}: {_EXPECTED}")


def _describe_file(path: Path) -> ModelSource:
    if path.suffix == ".safetensors":
        raise UserError(f"{path}: a file of tensors does not describe its model; give its directory instead")
    if path.suffix != ".pt":
        raise UserError(f"{path} is a file: {_EXPECTED}")
    dims = _load_pt(path)["dims"]
    encoder = _encoder_node({name.replace("_audio_", "_"): size for name, size in dims.items()}, OPENAI_FIELDS)
    return ModelSource(path=path, kind="whisper_openai", config=dims, parts={"encoder": encoder}, file=path)


def _load_pt(path: Path) -> Mapping[str, Any]:
    """Read a Whisper .pt file of OpenAI, with `dims` and `model_state_dict`. Code in the file is never executed."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the readers of zip and pickle raise exceptions of many classes
        raise UserError(f"{path} cannot be read as a Whisper .pt file: {_DAMAGED}") from error
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= content.keys():
        raise UserError(f"{path} is not a Whisper .pt file: expected `dims` and `model_state_dict` in it")
    return content


def _describe_run(path: Path, kind: str, which: str) -> ModelSource:
    checkpoint = checkpoint_dir.find(path, which)
    config = checkpoint.state["recipe"]
    # The run's copy of the tokenizer comes first, because the path in the config may not exist on this machine.
    tokenizer_copy = checkpoint.path.resolve().parents[1] / "tokenizer"
    return ModelSource(
        path=path,
        kind=kind,
        config=config,
        model=config["model"],
        tokenizer=str(tokenizer_copy) if tokenizer_copy.is_dir() else config["tokenizer"],
        checkpoint=checkpoint,
    )


def _describe_exported(path: Path) -> ModelSource:
    file = path / "recipe.yaml"
    try:
        config = read_yaml(file)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, Mapping) or not isinstance(config.get("model"), Mapping):
        raise UserError(f"{file} is not a config of auris: expected a `model` in it")
    tokenizer = path / "tokenizer"
    return ModelSource(
        path=path,
        kind="auris",
        config=config,
        model=config["model"],
        generation=_read_generation_config(path),
        tokenizer=str(tokenizer) if tokenizer.is_dir() else None,
    )


def _describe_published(path: Path) -> ModelSource:
    """Describe the model in a directory with a config.json, after comparing the config with the weights."""
    file = path / "config.json"
    config = _read_json(file)
    kind = _kind_of_config(file, config)
    _refuse_quantised(file, config)
    _check_sizes(file, kind, config)
    model: Node | None = None
    parts: dict[str, Node] = {}
    try:
        if kind == "qwen2_audio":
            model = _qwen2_audio_node(file, config)
        elif kind == "qwen_audio":
            model = _qwen_audio_node(file, config)
        elif kind == "whisper":
            _require(file, config, _WHISPER)
            parts["encoder"] = _encoder_node({**CONFIG_MAPPING["whisper"]().to_dict(), **config}, TRANSFORMERS_FIELDS)
        else:
            parts["llm"] = _qwen_llm_node(file, config) if kind == "qwen" else _llm_node(config)
    except KeyError as error:
        raise UserError(f"{file} lacks the field {error}, which the published config contains") from error
    return ModelSource(
        path=path,
        kind=kind,
        config=config,
        model=model,
        parts=parts,
        generation=_read_generation_config(path),
        tokenizer=str(path) if any((path / name).is_file() for name in _TOKENIZER_FILES) else None,
    )


def _kind_of_config(file: Path, config: ConfigFile) -> str:
    model_type = config.get("model_type")
    if model_type in ("qwen2_audio", "whisper"):
        return model_type
    if model_type == "qwen":
        return "qwen_audio" if "audio" in config else "qwen"
    if model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "causal_lm"
    expected = "qwen2_audio, qwen, whisper, or a causal language model of transformers"
    raise UserError(f"{file}: model_type={model_type}, expected {expected}")


def _refuse_quantised(file: Path, config: ConfigFile) -> None:
    """Raise UserError if the weights, or those of a part, are quantised."""
    for section in (config, config.get("text_config") or {}):
        if quantisation := section.get("quantization_config"):
            raise UserError(
                f"{file}: the weights are quantised (quant_method={quantisation.get('quant_method')}), which auris "
                "does not support: give the directory of the model before quantisation"
            )


def _read_generation_config(path: Path) -> ConfigFile:
    file = path / "generation_config.json"
    return _read_json(file) if file.is_file() else {}


def _read_json(file: Path) -> ConfigFile:
    try:
        content = read_json(file)
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError
        raise UserError(f"{file} is not JSON ({error})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{file} contains a JSON {type(content).__name__}, expected an object ({{...}})")
    return content


# --- nodes from configs -------------------------------------------------------------------------------------------


# Arguments of `Encoder` -> fields in the configs of transformers (Whisper, Qwen2-Audio) and of OpenAI (Whisper, and
# Qwen-Audio).
TRANSFORMERS_FIELDS = {
    "n_mels": "num_mel_bins",
    "width": "d_model",
    "n_layers": "encoder_layers",
    "n_heads": "encoder_attention_heads",
    "ffn": "encoder_ffn_dim",
    "max_positions": "max_source_positions",
}
OPENAI_FIELDS = {
    "n_mels": "n_mels",
    "width": "n_state",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "max_positions": "n_ctx",
}


def _encoder_node(audio_config: ConfigFile, fields: Mapping[str, str], clip_end: str = "silence") -> Node:
    arguments = {argument: audio_config[name] for argument, name in fields.items()}
    return {"_target_": "auris.model.encoder.Encoder", **arguments, "clip_end": clip_end}


def _llm_node(config: ConfigFile, train_length: int | None = None) -> Node:
    node = {"_target_": "auris.model.llm.build_llm", "_partial_": True}
    return {**node, "config": dict(config), "train_length": train_length}


def _model_node(encoder: Node, boundary_class: str, llm: Node, vocab_rows: int) -> Node:
    """Return the model node of a published system."""
    return {
        "_target_": "auris.model.audio_lm.AudioLM",
        "_partial_": True,
        "encoder": encoder,
        "pooling": {"_target_": "auris.model.pooling.Mean", "_partial_": True, "k": 2},
        "projector": {"_target_": "auris.model.projector.Linear", "_partial_": True},
        "boundary": {"_target_": f"auris.model.boundary.{boundary_class}", "_partial_": True},
        "llm": llm,
        "vocab_rows": vocab_rows,
    }


def _with_defaults(file: Path, config: ConfigFile) -> ConfigFile:
    """Return a transformers config with all defaults filled in."""
    try:
        return AutoConfig.for_model(**config).to_dict()
    except Exception as error:  # the checks of different models raise exceptions of different classes
        raise UserError(f"{file} is rejected by transformers: {' '.join(str(error).split())}") from error


def _require(file: Path, values: ConfigFile, expected: ConfigFile, prefix: str = "") -> None:
    """Raise UserError if a field differs from the only value that auris supports. Missing fields are accepted."""
    for name, value in expected.items():
        if name in values and values[name] != value:
            raise UserError(f"{file}: {prefix}{name} is {shorten(values[name])}, expected {shorten(value)}")


def _qwen2_audio_node(file: Path, config: ConfigFile) -> Node:
    filled = _with_defaults(file, config)
    audio, text = filled["audio_config"], filled["text_config"]
    _require(file, audio, _WHISPER, "audio_config.")
    # The node gets only the fields that are in config.json, without the defaults, so that it stays readable.
    llm_config = {"model_type": text["model_type"], **(config.get("text_config") or {})}
    if llm_config.get("tie_word_embeddings") and _has_own_head(file.parent):
        llm_config["tie_word_embeddings"] = False  # transformers 5 ignores the field, which version 4 has used
    llm = _llm_node(llm_config)
    return _model_node(_encoder_node(audio, TRANSFORMERS_FIELDS), "Tokens", llm, text["vocab_size"])


def _has_own_head(directory: Path) -> bool:
    """Return whether the weights of a Qwen2-Audio contain the output layer."""
    layout, names = LAYOUTS["qwen2_audio"], TensorFiles.open(directory).keys()
    return any(layout.spell(name) == "language_model.lm_head.weight" for name in names)


# The supported values of fields in the configs of Whisper's encoder.
_WHISPER = {"activation_function": "gelu", "scale_embedding": False}
# The supported values of fields in the configs of Qwen and Qwen-Audio. The released code supports other values too.
QWEN_LLM = {"no_bias": True, "rotary_pct": 1.0, "scale_attn_weights": True, "tie_word_embeddings": False}
QWEN_AUDIO = {"avg_pool": True, "add_audio_bos_eos_token": True}


def _qwen_llm_node(file: Path, config: ConfigFile) -> Node:
    """Translate Qwen-7B's config (QwenLM/Qwen-Audio configuration_qwen.py) to a config of the model type qwen2.

    `intermediate_size` of Qwen-7B is the sum of the widths of the gate and up projections. Dynamic NTK and log-n
    scaling are a single option here, because the released systems use both.
    """
    has_long_rotary = bool(config.get("use_dynamic_ntk"))
    head_width = config["hidden_size"] // config["num_attention_heads"]
    _require(file, config, QWEN_LLM | {"kv_channels": head_width, "use_logn_attn": has_long_rotary})
    llm = {
        "model_type": "qwen2",
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"] // 2,
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_attention_heads"],
        "max_position_embeddings": config["max_position_embeddings"],
        "rms_norm_eps": config["layer_norm_epsilon"],
        "rope_theta": config["rotary_emb_base"],
        "tie_word_embeddings": False,
    }
    return _llm_node(llm, config.get("seq_length", 2048) if has_long_rotary else None)


def _qwen_audio_node(file: Path, config: ConfigFile) -> Node:
    audio, llm = config["audio"], _qwen_llm_node(file, config)
    _require(file, audio, QWEN_AUDIO | {"output_dim": config["hidden_size"]}, "audio.")
    return _model_node(_encoder_node(audio, OPENAI_FIELDS, "zero"), "Learned", llm, config["vocab_size"])


# --- sizes in configs and weights ---------------------------------------------------------------------------------

# (argument of `Encoder` or field of the language model's config, pattern of the tensor's model name, axis). The value
# of the field must be the tensor's size along the axis or, if the axis is None, the number of layers with such a
# tensor.
_ENCODER_SIZES = (
    ("n_mels", r"encoder\.conv1\.weight", 1),
    ("width", r"encoder\.conv1\.weight", 0),
    ("n_layers", r"encoder\.blocks\.(\d+)\.up\.weight", None),
    ("ffn", r"encoder\.blocks\.0\.up\.weight", 0),
    ("max_positions", r"encoder\.positions", 0),
)
_LLM_SIZES = (
    ("vocab_size", r"embed_tokens\.weight", 0),
    ("hidden_size", r"embed_tokens\.weight", 1),
    ("num_hidden_layers", r"layers\.(\d+)\.mlp\.down_proj\.weight", None),
    ("intermediate_size", r"layers\.0\.mlp\.down_proj\.weight", 1),
)
# kind -> names in config.json of the sizes above, if they differ.
_FIELD_NAMES = {
    "whisper": TRANSFORMERS_FIELDS,
    "qwen2_audio": {
        **{argument: f"audio_config.{name}" for argument, name in TRANSFORMERS_FIELDS.items()},
        **{size: f"text_config.{size}" for size, _, _ in _LLM_SIZES},
    },
    "qwen_audio": {argument: f"audio.{name}" for argument, name in OPENAI_FIELDS.items()},
}


def _check_sizes(file: Path, kind: str, config: ConfigFile) -> None:
    """Raise UserError for the first size that differs between config.json and the weights.

    Missing fields and tensors are skipped: a missing field has a default, and loading reports a missing tensor.
    """
    source = TensorFiles.open(file.parent)
    layout = LAYOUTS[_LAYOUT_NAMES.get(kind, kind)]
    all_names = source.keys()
    stored_names = {model_name: name for name in all_names for model_name in layout.model_names(name)}
    for size, pattern, axis in (*_ENCODER_SIZES, *_LLM_SIZES):
        matches = [match for name in stored_names if (match := re.search(rf"(?:^|\.){pattern}$", name))]
        field_name = _FIELD_NAMES.get(kind, {}).get(size, size)
        configured: Any = config
        for key in field_name.split("."):
            configured = configured.get(key) if isinstance(configured, Mapping) else None
        if not matches or configured is None or (size == "intermediate_size" and kind in ("qwen", "qwen_audio")):
            continue  # Qwen's `intermediate_size` is the sum of two widths, not the size of this tensor
        stored_name = stored_names[matches[0].string]
        shape = source.shape(stored_name)
        actual = len({match[1] for match in matches}) if axis is None else shape[axis]
        if configured != actual:
            found = f"{actual} layers such as {stored_name}" if axis is None else f"{stored_name} of shape {shape}"
            raise UserError(f"{file} says {field_name}={configured}, but the weights have {found}")
