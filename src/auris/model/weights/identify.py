"""What a path holds: a run, one of its checkpoints, a directory of auris or of a published system.

Told from file names, configs and headers alone: no weight is read before `source()` is asked for it. Whatever the
origin, the model is described by a node as a recipe has it, so that all that follows knows one kind of model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from auris.errors import MissingFileError, UserError
from auris.files import read_yaml
from auris.model import adapters
from auris.model.weights import checkpoint_dir
from auris.model.weights.checkpoint_dir import Snapshot
from auris.model.weights.loading import Source, StateTensors, TensorFiles

# kind -> what a person calls it.
KINDS = {
    "run": "a training run of auris",
    "snapshot": "a checkpoint of a training run of auris",
    "auris": "a directory that auris exported",
    "qwen2_audio": "Qwen2-Audio in transformers' layout",
    "qwen_audio": "Qwen-Audio (v1) as released",
    "whisper": "Whisper in transformers' layout: an audio encoder for us",
    "whisper_openai": "Whisper in OpenAI's layout: an audio encoder for us",
    "qwen": "Qwen in the layout of its first release: a language model for us",
    "causal_lm": "a causal language model of transformers",
}
PARTS = ("encoder", "pooling", "projector", "boundary", "llm")

_EXPECTED = (
    "expected a run directory, one of its checkpoints (checkpoints/step=...), a directory that auris exported "
    "(recipe.yaml), a transformers directory (config.json and safetensors) or a Whisper .pt file"
)
_DAMAGED = "it is damaged, or holds more than tensors and plain values, which auris does not execute"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a path holds.

    Args:
        path: as it was given.
        kind: a key of `KINDS`.
        config: the recipe of a run or an exported directory; else what config.json (of Whisper's .pt: `dims`) says.
        model: the whole model as a recipe's `model` node, its vocabulary rows included; None for a part of one.
        parts: node of every part that the checkpoint holds.
        generation: what generation_config.json says, if there is one.
        tokenizer: directory or hub name of its tokenizer, None if it has none.
        file: the weights, where they are one file (a .pt).
        snapshot: the checkpoint, of a run.
    """

    path: Path
    kind: str
    config: Mapping[str, Any]
    model: Mapping[str, Any] | None
    parts: Mapping[str, Any]
    generation: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    file: Path | None = None
    snapshot: Snapshot | None = None

    @property
    def layout(self) -> str:
        """How its tensors are named, as `auris.model.weights.loading` calls it."""
        return {"run": "auris", "snapshot": "auris", "qwen": "qwen_audio"}.get(self.kind, self.kind)

    def source(self) -> Source:
        """Its tensors, read one by one when they are asked for; of a run, the net's, by the net's names, its adapters
        merged into them."""
        if self.kind == "whisper_openai":
            return StateTensors(_load_pt(self.file)["model_state_dict"])
        if self.snapshot is None:
            return TensorFiles.open(self.path)
        net = self.snapshot.tensors(prefix="net.")
        if not adapters.are_in(net.keys()):
            return net
        return StateTensors(adapters.merge(net.read_all(), self.config.get("lora")))

    def objective_state(self) -> dict[str, torch.Tensor]:
        """The objective's own tensors: only a run has them."""
        if self.snapshot is None:
            return {}
        return self.snapshot.tensors(prefix="objective.").read_all()


def identify(path: str | Path, which: str = "last") -> Checkpoint:
    """What `path` holds; `which` checkpoint of a run: last or best.

    Raises:
        FileNotFoundError: nothing there that could be a checkpoint.
        ValueError: a file that cannot be read, or a config that contradicts the weights or asks for what we lack; one
            sentence that names the file and the field.
    """
    path = Path(path)
    if path.is_file():
        return _identify_file(path)
    if checkpoint_dir.is_snapshot(path):
        return _trained(path, "snapshot", which)
    if (path / checkpoint_dir.FOLDER).is_dir():
        return _trained(path, "run", which)
    if (path / "recipe.yaml").is_file() and any(path.glob("*.safetensors")):
        return _exported(path)
    if (path / "config.json").is_file():
        return _published(path)
    what = "holds no checkpoint" if path.is_dir() else "does not exist"
    raise MissingFileError(f"{path} {what}: {_EXPECTED}")


def _identify_file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        raise UserError(f"{path}: a file of tensors alone does not say what model they are of; give its directory")
    if path.suffix != ".pt":
        raise UserError(f"{path} is a file: {_EXPECTED}")
    dims = _load_pt(path)["dims"]
    encoder = _encoder(
        n_mels=dims["n_mels"],
        width=dims["n_audio_state"],
        n_layers=dims["n_audio_layer"],
        n_heads=dims["n_audio_head"],
        max_positions=dims["n_audio_ctx"],
    )
    return Checkpoint(path=path, kind="whisper_openai", config=dims, model=None, parts={"encoder": encoder}, file=path)


def _load_pt(path: Path) -> dict[str, Any]:
    """Whisper as OpenAI stores it: `dims` and `model_state_dict`. Never executes what a file may say."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of many kinds, as zip and pickle readers meet a wrong file
        raise UserError(f"{path} cannot be read as a Whisper .pt file: {_DAMAGED}") from error
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= content.keys():
        raise UserError(f"{path} is no Whisper .pt file: expected `dims` and `model_state_dict` in it")
    return content


def _trained(path: Path, kind: str, which: str) -> Checkpoint:
    snapshot = checkpoint_dir.find(path, which)
    made = snapshot.state["recipe"]
    own = snapshot.path.resolve().parents[1] / "tokenizer"  # the recipe's path may be that of another machine
    return Checkpoint(
        path=path,
        kind=kind,
        config=made,
        model=made["model"],
        parts=_parts_of(made["model"]),
        tokenizer=str(own) if own.is_dir() else made["tokenizer"],
        snapshot=snapshot,
    )


def _exported(path: Path) -> Checkpoint:
    file = path / "recipe.yaml"
    try:
        made = read_yaml(file)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(made, Mapping) or not isinstance(made.get("model"), Mapping):
        raise UserError(f"{file} is no recipe: expected a `model` in it")
    tokenizer = path / "tokenizer"
    return Checkpoint(
        path=path,
        kind="auris",
        config=made,
        model=made["model"],
        parts=_parts_of(made["model"]),
        generation=_generation(path),
        tokenizer=str(tokenizer) if tokenizer.is_dir() else None,
    )


def _parts_of(model: Mapping[str, Any]) -> dict[str, Any]:
    return {part: model[part] for part in PARTS if part in model}


def _published(path: Path) -> Checkpoint:
    """A directory with a config.json, which the weights must agree with."""
    file = path / "config.json"
    config = _read_json(file)
    kind = _kind(file, config)
    _compare(file, kind, config)
    model: dict | None = None
    if kind == "qwen2_audio":
        model, parts = _qwen2_audio(file, config)
    elif kind == "qwen_audio":
        model, parts = _qwen_audio(file, config)
    elif kind == "whisper":
        parts = {"encoder": _whisper(config)}
    else:
        parts = {"llm": _qwen_llm(file, config) if kind == "qwen" else _llm(config)}
    return Checkpoint(
        path=path,
        kind=kind,
        config=config,
        model=model,
        parts=parts,
        generation=_generation(path),
        tokenizer=str(path) if _has_tokenizer(path) else None,
    )


def _kind(file: Path, config: Mapping[str, Any]) -> str:
    name = config.get("model_type")
    if name in ("qwen2_audio", "whisper"):
        return name
    if name == "qwen":
        return "qwen_audio" if "audio" in config else "qwen"
    if name in CONFIG_MAPPING and CONFIG_MAPPING[name] in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "causal_lm"
    known = "qwen2_audio, qwen, whisper, or a causal language model of transformers"
    raise UserError(f"{file}: model_type={name}, expected {known}")


def _has_tokenizer(path: Path) -> bool:
    names = ("tokenizer.json", "qwen.tiktoken", "vocab.json", "tokenizer.model")
    return any((path / name).is_file() for name in names)


def _generation(path: Path) -> dict[str, Any]:
    file = path / "generation_config.json"
    return _read_json(file) if file.is_file() else {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object, it is a {type(content).__name__}")
    return content


# --- configs to nodes ---------------------------------------------------------------------------------------------


def _encoder(**arguments: Any) -> dict[str, Any]:
    return {"_target_": "auris.model.encoder.Encoder", **arguments}


def _llm(config: Mapping[str, Any], train_length: int | None = None) -> dict[str, Any]:
    node = {"_target_": "auris.model.llm.build_llm", "_partial_": True}
    return {**node, "config": dict(config), "train_length": train_length}


def _whole(encoder: dict[str, Any], boundary: str, llm: dict[str, Any], rows: int) -> tuple[dict, dict]:
    """A published system's model node, and its parts."""
    parts = {
        "encoder": encoder,
        "pooling": {"_target_": "auris.model.pooling.Mean", "_partial_": True, "k": 2},
        "projector": {"_target_": "auris.model.projector.Linear", "_partial_": True},
        "boundary": {"_target_": f"auris.model.boundary.{boundary}", "_partial_": True},
        "llm": llm,
    }
    model = {"_target_": "auris.model.audio_lm.AudioLM", "_partial_": True, **parts, "vocab_rows": rows}
    return model, parts


def _filled(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers config with every default, as transformers reads it."""
    try:
        return AutoConfig.for_model(**config).to_dict()
    except Exception as error:  # each model's own checks raise their own kinds
        raise UserError(f"{file} is not accepted by transformers: {' '.join(str(error).split())}") from error


def _require(file: Path, values: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ValueError for a field whose value asks for something that our parts do not do."""
    for name, value in expected.items():
        if name in values and values[name] != value:
            raise UserError(f"{file}: {prefix}{name} is {values[name]!r}, expected {value!r}")


def _audio_encoder(audio: Mapping[str, Any], clip_end: str) -> dict[str, Any]:
    """The encoder of a Whisper or Qwen2-Audio config with all its fields."""
    return _encoder(
        n_mels=audio["num_mel_bins"],
        width=audio["d_model"],
        n_layers=audio["encoder_layers"],
        n_heads=audio["encoder_attention_heads"],
        ffn=audio["encoder_ffn_dim"],
        max_positions=audio["max_source_positions"],
        clip_end=clip_end,
    )


def _qwen2_audio(file: Path, config: Mapping[str, Any]) -> tuple[dict, dict]:
    filled = _filled(file, config)
    audio, text = filled["audio_config"], filled["text_config"]
    _require(file, audio, {"activation_function": "gelu", "scale_embedding": False}, "audio_config.")
    # The config's own words, not the filled ones: a recipe that a person can read.
    llm = _llm({"model_type": text["model_type"], **(config.get("text_config") or {})})
    return _whole(_audio_encoder(audio, "silence"), "Tokens", llm, text["vocab_size"])


def _whisper(config: Mapping[str, Any]) -> dict[str, Any]:
    return _audio_encoder({**CONFIG_MAPPING["whisper"]().to_dict(), **config}, "silence")


# Values of fields of Qwen's and Qwen-Audio's configs that our parts have; their code knows others.
_QWEN_LLM = {"no_bias": True, "rotary_pct": 1.0, "scale_attn_weights": True, "tie_word_embeddings": False}
_QWEN_AUDIO = {"avg_pool": True, "add_audio_bos_eos_token": True}


def _need(file: Path, values: Mapping[str, Any], names: str, prefix: str = "") -> None:
    for name in names.split():
        if name not in values:
            raise UserError(f"{file}: no `{prefix}{name}`, expected as in Qwen-Audio's config")


def _qwen_llm(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen-7B's config (QwenLM/Qwen-Audio configuration_qwen.py) in qwen2's terms.

    Its `intermediate_size` counts gate and up together. Dynamic NTK and log-n come in one: the released systems use
    both.
    """
    sizes = "hidden_size intermediate_size num_hidden_layers num_attention_heads kv_channels vocab_size"
    _need(file, config, f"{sizes} layer_norm_epsilon rotary_emb_base max_position_embeddings")
    long = bool(config.get("use_dynamic_ntk"))
    head = config["hidden_size"] // config["num_attention_heads"]
    _require(file, config, _QWEN_LLM | {"kv_channels": head, "use_logn_attn": long})
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


def _qwen_audio(file: Path, config: Mapping[str, Any]) -> tuple[dict, dict]:
    audio, llm = config["audio"], _qwen_llm(file, config)
    _need(file, audio, "n_mels n_ctx n_state n_head n_layer output_dim", "audio.")
    _require(file, audio, _QWEN_AUDIO | {"output_dim": config["hidden_size"]}, "audio.")
    encoder = _encoder(
        n_mels=audio["n_mels"],
        width=audio["n_state"],
        n_layers=audio["n_layer"],
        n_heads=audio["n_head"],
        max_positions=audio["n_ctx"],
        clip_end="zero",
    )
    return _whole(encoder, "Learned", llm, config["vocab_size"])


# --- configs against weights --------------------------------------------------------------------------------------

# kind -> (config field, tensor, axis whose size it is; None: the number of different layers that the pattern finds).
# Patterns, as transformers files have had two depths of names.
_WHISPER_SIZES = (
    ("num_mel_bins", r"encoder\.conv1\.weight", 1),
    ("d_model", r"encoder\.conv1\.weight", 0),
    ("encoder_layers", r"encoder\.layers\.(\d+)\.fc1\.weight", None),
    ("encoder_ffn_dim", r"encoder\.layers\.0\.fc1\.weight", 0),
    ("max_source_positions", r"encoder\.embed_positions\.weight", 0),
)
_CAUSAL_SIZES = (
    ("vocab_size", r"embed_tokens\.weight", 0),
    ("hidden_size", r"embed_tokens\.weight", 1),
    ("num_hidden_layers", r"layers\.(\d+)\.mlp\.down_proj\.weight", None),
    ("intermediate_size", r"layers\.0\.mlp\.down_proj\.weight", 1),
)
_QWEN_SIZES = (
    ("vocab_size", r"transformer\.wte\.weight", 0),
    ("hidden_size", r"transformer\.wte\.weight", 1),
    ("num_hidden_layers", r"transformer\.h\.(\d+)\.ln_1\.weight", None),
)
_SIZES = {
    "whisper": _WHISPER_SIZES,
    "causal_lm": _CAUSAL_SIZES,
    "qwen2_audio": (
        *(
            (f"audio_config.{size}", name.replace("encoder", "audio_tower"), axis)
            for size, name, axis in _WHISPER_SIZES
        ),
        *((f"text_config.{size}", name, axis) for size, name, axis in _CAUSAL_SIZES),
    ),
    "qwen": _QWEN_SIZES,
    "qwen_audio": (
        ("audio.n_mels", r"audio\.conv1\.weight", 1),
        ("audio.n_state", r"audio\.conv1\.weight", 0),
        ("audio.n_layer", r"audio\.blocks\.(\d+)\.mlp\.0\.weight", None),
        ("audio.n_ctx", r"audio\.positional_embedding", 0),
        *_QWEN_SIZES,
    ),
}


def _compare(file: Path, kind: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError for the first size that config.json and the weights tell differently.

    A field or a tensor that is not there is not compared: defaults fill the one, and loading misses the other.
    """
    source = TensorFiles.open(file.parent)
    names = source.keys()
    for size, pattern, axis in _SIZES[kind]:
        hits = [match for name in names if (match := re.search(rf"(?:^|\.){pattern}$", name))]
        said: Any = config
        for key in size.split("."):
            said = said.get(key) if isinstance(said, Mapping) else None
        if not hits or said is None:
            continue
        tensor = hits[0].string
        there = len({match[1] for match in hits}) if axis is None else source.shape(tensor)[axis]
        if said != there:
            what = f"{there} layers such as {tensor}" if axis is None else f"{tensor} of {source.shape(tensor)}"
            raise UserError(f"{file} says {size}={said}, but the weights have {what}")
