"""Tiny model directories in published layouts (Qwen-Audio, here v1; Qwen2-Audio; Whisper; Qwen), and a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from auris import config as auris_config
from auris.files import write_yaml
from auris.model import adapters
from auris.model.weights import checkpoint_io
from auris.text.tokenizer import Tokenizer
from auris.training import sharding
from support.manifests import tokenizer
from support.recipes import SMALLEST_MODEL
from support.vocabularies import rank_lines, write_ranks

ENCODER = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "num_mel_bins": 16}
LLM = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,  # wide enough that greedy answers differ from clip to clip
    "max_position_embeddings": 4096,
    "rope_theta": 5000.0,
}
V1 = {
    "model_type": "qwen",
    "audio": {
        "add_audio_bos_eos_token": True,
        "avg_pool": True,
        "n_ctx": 1500,
        "n_head": 2,
        "n_layer": 2,
        "n_mels": 16,
        "n_state": 24,
        "output_dim": 32,
    },
    "hidden_size": 32,
    "intermediate_size": 96,
    "kv_channels": 8,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 8192,
    "no_bias": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "seq_length": 2048,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
}


def qwen2_audio(
    path: Path,
    *,
    vocabulary: Tokenizer | None = None,
    dtype: torch.dtype = torch.float32,
    shard: str = "5GB",
    **llm: Any,
) -> Qwen2AudioForConditionalGeneration:
    """Write the files that transformers saves and those that its processor reads; return the model."""
    torch.manual_seed(0)
    vocabulary = vocabulary or tokenizer()
    size = vocabulary.size + 12  # the embedding table has unused rows, as in the released model
    config = Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", "initializer_range": 0.1, **ENCODER},
        text_config={"model_type": "qwen2", "vocab_size": size} | LLM | llm,
        audio_token_index=vocabulary.id("<|AUDIO|>"),
    )
    model = Qwen2AudioForConditionalGeneration(config).eval()
    with torch.no_grad():  # transformers starts biases at zero
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    model.to(dtype).save_pretrained(path, max_shard_size=shard)
    end = vocabulary.end
    write_json(path / "generation_config.json", {"chat_format": "raw", "eos_token_id": [end], "pad_token_id": end})
    vocabulary.save(path)
    features = WhisperFeatureExtractor(feature_size=ENCODER["num_mel_bins"], return_attention_mask=True)
    features.save_pretrained(path)
    return model


def qwen_audio(path: Path, **config: Any) -> dict[str, Tensor]:
    """Write a directory in the released v1 layout with its vocabulary; return its tensors."""
    path.mkdir(parents=True)
    write_ranks(path / "qwen.tiktoken", rank_lines())
    vocabulary = Tokenizer.load(path)
    n_embeddings = vocabulary.size + 6
    audio = V1["audio"] | {"audio_start_id": vocabulary.id("<audio>")}
    config = {**V1, "audio": audio, "vocab_size": n_embeddings, **config}
    write_json(path / "config.json", config)
    torch.manual_seed(0)
    state = {name: 0.3 * torch.randn(shape) for name, shape in _v1_shapes(config)}
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return state


def qwen(path: Path) -> dict[str, Tensor]:
    """Write Qwen-Audio's language model without the encoder, in the layout of Qwen-7B; return its tensors."""
    state = qwen_audio(path)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("transformer.audio.")}
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    write_json(path / "config.json", {name: value for name, value in config.items() if name != "audio"})
    return state


def _v1_shapes(config: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of the tensors of QwenLM/Qwen-Audio (modeling_qwen.py and audio.py)."""
    audio, hidden, inner = config["audio"], config["hidden_size"], config["intermediate_size"] // 2
    d = audio["n_state"]
    shapes = [("transformer.wte", (config["vocab_size"], hidden)), ("lm_head", (config["vocab_size"], hidden))]
    shapes = [(f"{name}.weight", shape) for name, shape in shapes] + [("transformer.ln_f.weight", (hidden,))]
    for i in range(config["num_hidden_layers"]):
        block = {
            "ln_1.weight": (hidden,),
            "attn.c_attn.weight": (3 * hidden, hidden),
            "attn.c_attn.bias": (3 * hidden,),
            "attn.c_proj.weight": (hidden, hidden),
            "ln_2.weight": (hidden,),
            "mlp.w1.weight": (inner, hidden),
            "mlp.w2.weight": (inner, hidden),
            "mlp.c_proj.weight": (hidden, inner),
        }
        shapes += [(f"transformer.h.{i}.{name}", shape) for name, shape in block.items()]
    tower = {
        "positional_embedding": (audio["n_ctx"], d),
        "conv1.weight": (d, audio["n_mels"], 3),
        "conv1.bias": (d,),
        "conv2.weight": (d, d, 3),
        "conv2.bias": (d,),
        "ln_post.weight": (d,),
        "ln_post.bias": (d,),
        "proj.weight": (hidden, d),
        "proj.bias": (hidden,),
        "audio_bos_eos_token.weight": (2, hidden),
    }
    for i in range(audio["n_layer"]):
        for name in ("attn.query", "attn.key", "attn.value", "attn.out"):
            tower[f"blocks.{i}.{name}.weight"] = (d, d)
        for name in ("attn.query", "attn.value", "attn.out", "attn_ln", "mlp_ln", "mlp.2"):
            tower[f"blocks.{i}.{name}.bias"] = (d,)
        tower |= {f"blocks.{i}.{name}.weight": (d,) for name in ("attn_ln", "mlp_ln")}
        tower |= {f"blocks.{i}.mlp.0.weight": (4 * d, d), f"blocks.{i}.mlp.0.bias": (4 * d,)}
        tower[f"blocks.{i}.mlp.2.weight"] = (d, 4 * d)
    return shapes + [(f"transformer.audio.{name}", shape) for name, shape in tower.items()]


def golden_qwen_audio(golden: Path, path: Path) -> None:
    """Write a model directory from the files of the golden model, whose outputs the released v1 code computed."""
    path.mkdir(parents=True)
    config = json.loads((golden / "model_config.json").read_text())
    write_json(path / "config.json", config)
    (path / "qwen.tiktoken").symlink_to((golden / "qwen.tiktoken").resolve())
    state = load_file(golden / "model.safetensors")
    state["transformer.wte.weight"] = golden_table(config["vocab_size"], config["hidden_size"], 20899, 2**-5)
    state["lm_head.weight"] = golden_table(config["vocab_size"], config["hidden_size"], 31769, 2**-2)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def golden_table(n_rows: int, n_columns: int, seed: int, scale: float) -> Tensor:
    """Return one of the two big matrices, computed by the formula in the README of the golden model."""
    row, column = np.meshgrid(np.arange(n_rows, dtype=np.uint32), np.arange(n_columns, dtype=np.uint32), indexing="ij")
    with np.errstate(over="ignore"):
        h = row * np.uint32(0x9E3779B1) + column * np.uint32(0x85EBCA77) + np.uint32(seed)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
        h ^= h >> np.uint32(16)
    return torch.from_numpy((((h >> np.uint32(8)).astype(np.int64) - 2**23) * (scale / 2**23)).astype(np.float32))


def whisper(path: Path) -> None:
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 20}
    tokens = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "decoder_start")}
    WhisperForConditionalGeneration(WhisperConfig(**ENCODER, **decoder, **tokens)).save_pretrained(path)


def whisper_openai(path: Path) -> None:
    """Write the dimensions and encoder tensors of an OpenAI file, and a decoder tensor, which auris must ignore."""
    dims = {"n_mels": 16, "n_audio_ctx": 1500, "n_audio_state": 24, "n_audio_head": 2, "n_audio_layer": 2}
    shapes = {name.removeprefix("transformer.audio."): shape for name, shape in _v1_shapes({**V1, "vocab_size": 1})}
    not_whisper = ("proj.", "audio_bos", "transformer.", "lm_head")
    state = {f"encoder.{n}": torch.randn(shape) for n, shape in shapes.items() if not n.startswith(not_whisper)}
    state["decoder.ln.weight"] = torch.ones(24)
    torch.save({"dims": dims, "model_state_dict": state}, path)


def language_model(path: Path) -> None:
    Qwen2ForCausalLM(Qwen2Config(vocab_size=300, **LLM)).save_pretrained(path)


def run(path: Path, *overrides: str, vocabulary: Tokenizer | None = None) -> dict[str, Any]:
    """Write a run directory with one checkpoint of an untrained model; return its recipe.

    LoRA matrices and new tokens, if `trainable` names them, are random instead of their initial value.
    """
    run_config = auris_config.resolve(auris_config.compose([*TINY, f"run_dir={path}", *overrides]))
    vocabulary = vocabulary or tokenizer()
    vocabulary.save(path / "tokenizer")
    run_config["tokenizer"] = str(path / "tokenizer")
    net = auris_config.build_net(run_config, vocabulary)
    torch.manual_seed(0)
    sharding.materialise(net, "cpu")
    adapters.attach(net, run_config["trainable"], token_ids=vocabulary.added_ids, lora=run_config["lora"])
    adapters.initialise(net, seed=0)
    for name, parameter in net.named_parameters():
        if "lora_B" in name or adapters.NEW_TOKENS in name:
            nn.init.normal_(parameter, std=0.3)
    head = auris_config.build_objective(run_config, net, vocabulary)
    sharding.materialise(head, "cpu")
    module = nn.ModuleDict({"net": net, "objective": head})
    checkpoint_io.save(path / "checkpoints", 1, module=module, state={"recipe": run_config})
    write_yaml(path / "recipe.yaml", run_config)
    return run_config


TINY = ["scale=tiny", *SMALLEST_MODEL, "+model.llm.config.initializer_range=0.3"]


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1))


def edit_json(path: Path, *keys: str, value: Any) -> None:
    """Change one field of a JSON file, given by its path of keys."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    write_json(path, content)
