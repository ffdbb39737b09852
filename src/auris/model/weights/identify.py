"""Recognition of what a path contains: a run, one of its checkpoints, an exported directory or a published system.

Only file names, configs and headers are read; `ModelSource.open_tensors()` opens the weights. Every model is described
by the `model` node of a config, regardless of its origin.
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

from auris.errors import MissingFileError, UserError
from auris.files import read_json, read_yaml
from auris.model import adapters
from auris.model.weights import checkpoint_dir
from auris.model.weights.checkpoint_dir import CheckpointDir
from auris.model.weights.layouts import LAYOUTS
from auris.model.weights.tensors import StateTensors, TensorFiles, TensorSource

Node = Mapping[str, Any]
"""A part of a config: `_target_` and its arguments."""

ConfigFile = Mapping[str, Any]
"""The content of a config.json, or a section of it."""

# kind -> description for messages.
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
_LAYOUT_OF = {"run": "auris", "checkpoint": "auris", "qwen": "qwen_audio"}  # other kinds are names of layouts
PARTS = ("encoder", "pooling", "projector", "boundary", "llm")
_TOKENIZERS = ("tokenizer.json", "qwen.tiktoken", "vocab.json", "tokenizer.model")  # a tokenizer has one of these files

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
        config: the config of a run or an exported directory; otherwise the content of config.json (for Whisper's .pt:
            `dims`).
        model: the `model` node of a complete model, with its number of vocabulary rows; None for a part of a model.
        parts: the node of every part in the source; by default those of `model`.
        generation: the content of generation_config.json; empty if there is no such file.
        tokenizer: directory or hub name of the tokenizer; None if there is none.
        file: the weights, if they are one file (a .pt).
        checkpoint: the checkpoint of a run; None for anything else.
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
        return _LAYOUT_OF.get(self.kind, self.kind)

    def open_tensors(self) -> TensorSource:
        """Open the tensors of the model. For a run these are the tensors of the net, with adapters merged."""
        if self.file is not None:
            return StateTensors(_load_pt(self.file)["model_state_dict"])
        if self.checkpoint is None:
            return TensorFiles.open(self.path)
        net = self.checkpoint.tensors(prefix="net.")
        if not adapters.has_adapters(net.keys()):
            return net
        return StateTensors(adapters.merge(net.read_all(), self.config.get("lora")))

    def objective_state(self) -> dict[str, torch.Tensor]:
        """Read the tensors of the objective; empty unless this is a run."""
        return {} if self.checkpoint is None else self.checkpoint.tensors(prefix="objective.").read_all()


def identify(path: str | Path, which: str = "last") -> ModelSource:
    """Recognise the model at a path.

    Args:
        path: a directory, or a Whisper .pt file.
        which: checkpoint of a run: last or best.

    Raises:
        MissingFileError: there is no model.
        UserError: a file cannot be read, a config contradicts the weights, or it requires something that auris does not
            support. The message names the file and the field.
    """
    path = Path(path)
    if path.is_file():
        return _identify_file(path)
    if checkpoint_dir.is_checkpoint(path):
        return _run(path, "checkpoint", which)
    if (path / checkpoint_dir.FOLDER).is_dir():
        return _run(path, "run", which)
    if (path / "recipe.yaml").is_file() and any(path.glob("*.safetensors")):
        return _exported(path)
    if (path / "config.json").is_file():
        return _published(path)
    what = "contains no model" if path.is_dir() else "does not exist"
    raise MissingFileError(f"{path} {what}: {_EXPECTED}")


def _identify_file(path: Path) -> ModelSource:
    if path.suffix == ".safetensors":
        raise UserError(f"{path}: a file of tensors does not describe its model; give its directory instead")
    if path.suffix != ".pt":
        raise UserError(f"{path} is a file: {_EXPECTED}")
    dims = _load_pt(path)["dims"]
    encoder = _encoder({name.replace("_audio_", "_"): size for name, size in dims.items()}, OPENAI_FIELDS)
    return ModelSource(path=path, kind="whisper_openai", config=dims, parts={"encoder": encoder}, file=path)


def _load_pt(path: Path) -> Mapping[str, Any]:
    """Read Whisper as OpenAI stores it: `dims` and `model_state_dict`. Code in the file is never executed."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # readers of zip and pickle raise many kinds
        raise UserError(f"{path} cannot be read as a Whisper .pt file: {_DAMAGED}") from error
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= content.keys():
        raise UserError(f"{path} is not a Whisper .pt file: expected `dims` and `model_state_dict` in it")
    return content


def _run(path: Path, kind: str, which: str) -> ModelSource:
    checkpoint = checkpoint_dir.find(path, which)
    config = checkpoint.state["recipe"]
    copy = checkpoint.path.resolve().parents[1] / "tokenizer"  # the path in the config may be of another machine
    return ModelSource(
        path=path,
        kind=kind,
        config=config,
        model=config["model"],
        tokenizer=str(copy) if copy.is_dir() else config["tokenizer"],
        checkpoint=checkpoint,
    )


def _exported(path: Path) -> ModelSource:
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
        generation=_generation(path),
        tokenizer=str(tokenizer) if tokenizer.is_dir() else None,
    )


def _published(path: Path) -> ModelSource:
    """Describe the model of a directory with a config.json, after checking that the weights agree with it."""
    file = path / "config.json"
    config = _read_json(file)
    kind = _kind(file, config)
    _compare(file, kind, config)
    model: Node | None = None
    parts: dict[str, Node] = {}
    try:
        if kind == "qwen2_audio":
            model = _qwen2_audio(file, config)
        elif kind == "qwen_audio":
            model = _qwen_audio(file, config)
        elif kind == "whisper":
            parts["encoder"] = _encoder({**CONFIG_MAPPING["whisper"]().to_dict(), **config}, TRANSFORMERS_FIELDS)
        else:
            parts["llm"] = _qwen_llm(file, config) if kind == "qwen" else _llm(config)
    except KeyError as error:
        raise UserError(f"{file} lacks the field {error}, which the published config contains") from error
    return ModelSource(
        path=path,
        kind=kind,
        config=config,
        model=model,
        parts=parts,
        generation=_generation(path),
        tokenizer=str(path) if any((path / name).is_file() for name in _TOKENIZERS) else None,
    )


def _kind(file: Path, config: ConfigFile) -> str:
    name = config.get("model_type")
    if name in ("qwen2_audio", "whisper"):
        return name
    if name == "qwen":
        return "qwen_audio" if "audio" in config else "qwen"
    if name in CONFIG_MAPPING and CONFIG_MAPPING[name] in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "causal_lm"
    expected = "qwen2_audio, qwen, whisper, or a causal language model of transformers"
    raise UserError(f"{file}: model_type={name}, expected {expected}")


def _generation(path: Path) -> ConfigFile:
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


# --- configs to nodes ---------------------------------------------------------------------------------------------


# Arguments of `Encoder` -> fields in the configs of transformers (Whisper, Qwen2-Audio) and of OpenAI (Qwen-Audio).
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


def _encoder(audio: ConfigFile, fields: Mapping[str, str], clip_end: str = "silence") -> Node:
    arguments = {argument: audio[name] for argument, name in fields.items()}
    return {"_target_": "auris.model.encoder.Encoder", **arguments, "clip_end": clip_end}


def _llm(config: ConfigFile, train_length: int | None = None) -> Node:
    node = {"_target_": "auris.model.llm.build_llm", "_partial_": True}
    return {**node, "config": dict(config), "train_length": train_length}


def _whole(encoder: Node, boundary: str, llm: Node, rows: int) -> Node:
    """Return the model node of a published system."""
    return {
        "_target_": "auris.model.audio_lm.AudioLM",
        "_partial_": True,
        "encoder": encoder,
        "pooling": {"_target_": "auris.model.pooling.Mean", "_partial_": True, "k": 2},
        "projector": {"_target_": "auris.model.projector.Linear", "_partial_": True},
        "boundary": {"_target_": f"auris.model.boundary.{boundary}", "_partial_": True},
        "llm": llm,
        "vocab_rows": rows,
    }


def _with_defaults(file: Path, config: ConfigFile) -> ConfigFile:
    """Return a transformers config with all defaults filled in."""
    try:
        return AutoConfig.for_model(**config).to_dict()
    except Exception as error:  # the checks of each model raise different kinds
        raise UserError(f"{file} is rejected by transformers: {' '.join(str(error).split())}") from error


def _require(file: Path, values: ConfigFile, expected: ConfigFile, prefix: str = "") -> None:
    """Raise UserError for a field with a value that auris does not support."""
    for name, value in expected.items():
        if name in values and values[name] != value:
            raise UserError(f"{file}: {prefix}{name} is {values[name]!r}, expected {value!r}")


def _qwen2_audio(file: Path, config: ConfigFile) -> Node:
    filled = _with_defaults(file, config)
    audio, text = filled["audio_config"], filled["text_config"]
    _require(file, audio, {"activation_function": "gelu", "scale_embedding": False}, "audio_config.")
    # Only the fields of config.json, so that the resulting config stays readable.
    llm = _llm({"model_type": text["model_type"], **(config.get("text_config") or {})})
    return _whole(_encoder(audio, TRANSFORMERS_FIELDS), "Tokens", llm, text["vocab_size"])


# The supported values of fields in the configs of Qwen and Qwen-Audio. Their own code supports others.
QWEN_LLM = {"no_bias": True, "rotary_pct": 1.0, "scale_attn_weights": True, "tie_word_embeddings": False}
QWEN_AUDIO = {"avg_pool": True, "add_audio_bos_eos_token": True}


def _qwen_llm(file: Path, config: ConfigFile) -> Node:
    """Translate Qwen-7B's config (QwenLM/Qwen-Audio configuration_qwen.py) to that of qwen2.

    Its `intermediate_size` is the sum of those of gate and up. Dynamic NTK and log-n scaling are a single option here,
    because the released systems use both.
    """
    long = bool(config.get("use_dynamic_ntk"))
    head = config["hidden_size"] // config["num_attention_heads"]
    _require(file, config, QWEN_LLM | {"kv_channels": head, "use_logn_attn": long})
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
    return _llm(llm, config.get("seq_length", 2048) if long else None)


def _qwen_audio(file: Path, config: ConfigFile) -> Node:
    audio, llm = config["audio"], _qwen_llm(file, config)
    _require(file, audio, QWEN_AUDIO | {"output_dim": config["hidden_size"]}, "audio.")
    return _whole(_encoder(audio, OPENAI_FIELDS, "zero"), "Learned", llm, config["vocab_size"])


# --- configs against weights --------------------------------------------------------------------------------------

# (argument of `Encoder` or field of the language model's config, pattern of the tensor's model name, axis). The axis
# has the size that the field names; None means the number of layers that match the pattern.
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
# kind -> fields that have other names in its config.json.
_FIELDS = {
    "whisper": TRANSFORMERS_FIELDS,
    "qwen2_audio": {
        **{argument: f"audio_config.{name}" for argument, name in TRANSFORMERS_FIELDS.items()},
        **{size: f"text_config.{size}" for size, _, _ in _LLM_SIZES},
    },
    "qwen_audio": {argument: f"audio.{name}" for argument, name in OPENAI_FIELDS.items()},
}


def _compare(file: Path, kind: str, config: ConfigFile) -> None:
    """Raise UserError for the first size that differs between config.json and the weights.

    Missing fields and tensors are skipped: the field has a default, and loading reports the tensor.
    """
    source = TensorFiles.open(file.parent)
    layout = LAYOUTS[_LAYOUT_OF.get(kind, kind)]
    stored = source.keys()
    names = {model_name: name for name in stored for model_name in layout.model_names(name)}
    for size, pattern, axis in (*_ENCODER_SIZES, *_LLM_SIZES):
        hits = [match for name in names if (match := re.search(rf"(?:^|\.){pattern}$", name))]
        name = _FIELDS.get(kind, {}).get(size, size)
        configured: Any = config
        for key in name.split("."):
            configured = configured.get(key) if isinstance(configured, Mapping) else None
        if not hits or configured is None or (size == "intermediate_size" and kind in ("qwen", "qwen_audio")):
            continue  # Qwen's config adds gate and up
        tensor = names[hits[0].string]
        actual = len({match[1] for match in hits}) if axis is None else source.shape(tensor)[axis]
        if configured != actual:
            what = f"{actual} layers such as {tensor}" if axis is None else f"{tensor} of {source.shape(tensor)}"
            raise UserError(f"{file} says {name}={configured}, but the weights have {what}")
