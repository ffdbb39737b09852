"""The formats of exported directories: the models that each supports, and the files next to its weights."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import Qwen2AudioConfig, Qwen2AudioProcessor, WhisperFeatureExtractor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from auris.audio import MAX_FRAMES
from auris.files import write_json, write_yaml
from auris.inference.audio_model import AudioModel
from auris.model import boundary, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.model.llm import LongRotary
from auris.model.vocabulary import input_table
from auris.model.weights import identify
from auris.model.weights.identify import ConfigFile, ModelSource
from auris.text.byte_level import RANKS_FILE
from auris.text.chat import Qwen2AudioChat
from auris.text.prompts import NaturalPrompt, TagPrompt
from auris.text.tokenizer import Tokenizer


def find_unsupported(net: AudioLM, tokenizer: Tokenizer, format: str) -> list[str]:
    """Return one phrase for each property of a model that a format does not support; empty if it supports the model."""
    if format == "auris":
        return []
    is_v1 = format == "qwen_audio"
    kinds = {
        "encoder": Encoder,
        "pooling": pooling.Mean,
        "projector": projector.Linear,
        "boundary": boundary.Learned if is_v1 else boundary.Tokens,
    }
    llm = net.llm.config
    properties: dict[str, tuple[Any, Any]] = {
        part: (type(getattr(net, part)).__name__, kind.__name__) for part, kind in kinds.items()
    }
    properties["llm.config.model_type"] = (llm.model_type, "qwen2")
    if unsupported := _differences(properties):
        return unsupported  # other classes have other settings
    properties = {
        "pooling.k": (net.pooling.k, 2),
        "encoder.clip_end": (net.encoder.clip_end, "zero" if is_v1 else "silence"),
        "encoder.max_positions": (net.encoder.max_positions, MAX_FRAMES // 2),
    }
    if is_v1:
        properties |= {
            "encoder.ffn": (net.encoder.ffn, 4 * net.encoder.width),
            "llm.config.num_key_value_heads": (llm.num_key_value_heads, llm.num_attention_heads),
            "llm.config.tie_word_embeddings": (llm.tie_word_embeddings, False),
            "llm.config.rope_type": (llm.rope_parameters["rope_type"], "default"),
        }
    else:
        properties["llm.train_length"] = (_train_length(net), None)
    unsupported = _differences(properties)
    style = TagPrompt if is_v1 else NaturalPrompt
    vocabulary = tokenizer.fast.get_vocab()
    marks = (style.audio_begin, style.audio_pad, style.audio_end)
    unsupported += [f"the tokenizer has no {mark}" for mark in marks if mark not in vocabulary]
    if is_v1 and "<|extra_204|>" not in vocabulary:  # the last of Qwen's tokens, which no other vocabulary has
        unsupported.append(f"the tokenizer does not come from a {RANKS_FILE}")
    return unsupported


def _differences(properties: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return a phrase for each property (value of the model, value of the format) that differs."""
    return [
        f"{name} is {value}, must be {expected}" for name, (value, expected) in properties.items() if value != expected
    ]


def _train_length(net: AudioLM) -> int | None:
    rotary = getattr(net.llm.get_decoder(), "rotary_emb", None)
    return rotary.train_length if isinstance(rotary, LongRotary) else None


# --- transformers' Qwen2-Audio ------------------------------------------------------------------------------------


def _write_qwen2_audio(model: AudioModel, source: ModelSource, out: Path) -> None:
    """Write the configs and the files of AutoProcessor: feature extractor, tokenizer and chat template."""
    net, tokenizer = model.net, model.tokenizer
    text = net.llm.config.to_dict()
    for name in ("architectures", "transformers_version", "_name_or_path", "dtype"):  # they describe the complete model
        text.pop(name, None)
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            **{name: getattr(net.encoder, argument) for argument, name in identify.TRANSFORMERS_FIELDS.items()},
        },
        text_config=text
        | {"tie_word_embeddings": False},  # this format always stores embedding and head as two tensors
        audio_token_index=tokenizer.id(NaturalPrompt.audio_pad),
        architectures=["Qwen2AudioForConditionalGeneration"],
        tie_word_embeddings=False,  # pyrefly: ignore[unexpected-keyword]  # any field is accepted at run time
        dtype=net.llm.dtype,
    ).to_dict()
    config["text_config"]["rope_theta"] = text["rope_parameters"]["rope_theta"]  # for versions before 5
    write_json(out / "config.json", config, indent=2)
    features = WhisperFeatureExtractor(feature_size=net.encoder.n_mels, return_attention_mask=True)
    template = tokenizer.fast.chat_template  # None: the processor's own
    processor = Qwen2AudioProcessor(feature_extractor=features, tokenizer=tokenizer.fast, chat_template=template)
    processor.save_pretrained(out)
    features.save_pretrained(out)  # for versions before 5


def generation_config(model: AudioModel, source: ModelSource) -> ConfigFile:
    """Return the generation config of the source; by default responses are greedy up to the end-of-text token."""
    end = model.tokenizer.end
    style, stop = ("chatml", model.dialogue.stop) if model.is_chat else ("raw", model.prompt.stop)
    # transformers stops a chat only at these tokens. Qwen-Audio's code takes one number, and stops a chat by itself.
    ends = [model.tokenizer.id(token) for token in stop] if isinstance(model.dialogue, Qwen2AudioChat) else [end]
    eos = ends if len(ends) > 1 else end
    default = {
        "chat_format": style,
        "do_sample": False,
        "eos_token_id": eos,
        "pad_token_id": end,
        "max_new_tokens": 256,
    }
    return dict(source.generation) or default


# --- Qwen-Audio (v1) ----------------------------------------------------------------------------------------------


def _write_qwen_audio(model: AudioModel, source: ModelSource, out: Path) -> None:
    """Write the files that the released code reads besides the weights, and copy its code from an imported model."""
    net, llm = model.net, model.net.llm.config
    long = _train_length(net)
    config = {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "audio": {
            **identify.QWEN_AUDIO,
            **{name: getattr(net.encoder, argument) for argument, name in identify.OPENAI_FIELDS.items()},
            "audio_start_id": model.tokenizer.id(TagPrompt.audio_begin),
            "output_dim": llm.hidden_size,
        },
        **identify.QWEN_LLM,
        "attn_dropout_prob": 0.0,
        "emb_dropout_prob": 0.0,
        "hidden_size": llm.hidden_size,
        "initializer_range": llm.initializer_range,
        "intermediate_size": 2 * llm.intermediate_size,  # the sum of those of gate and up
        "kv_channels": llm.hidden_size // llm.num_attention_heads,
        "layer_norm_epsilon": llm.rms_norm_eps,
        "max_position_embeddings": llm.max_position_embeddings,
        "num_attention_heads": llm.num_attention_heads,
        "num_hidden_layers": llm.num_hidden_layers,
        "rotary_emb_base": llm.rope_parameters["rope_theta"],
        "seq_length": long or llm.max_position_embeddings,
        "tokenizer_type": "QWenTokenizer",
        "torch_dtype": str(net.llm.dtype).removeprefix("torch."),
        "use_cache": True,
        "use_dynamic_ntk": long is not None,
        "use_logn_attn": long is not None,
        "vocab_size": llm.vocab_size,
    }
    if source.kind == "qwen_audio":
        config = {**config, **source.config, "torch_dtype": config["torch_dtype"]}
        for file in sorted(source.path.iterdir()):
            if file.suffix in (".py", ".npz") or file.name == "tokenizer_config.json":
                shutil.copyfile(file, out / file.name)
    write_ranks(model.tokenizer, out / RANKS_FILE)
    write_json(out / "config.json", config, indent=2)


def write_ranks(tokenizer: Tokenizer, path: Path) -> None:
    """Write the text tokens of a byte-level vocabulary, one `base64 rank` per line."""
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    control = tokenizer.fast.get_added_vocab()
    ranks = {rank: token for token, rank in tokenizer.fast.get_vocab().items() if token not in control}
    tokens = (base64.b64encode(bytes(byte_of[letter] for letter in ranks[rank])).decode() for rank in sorted(ranks))
    path.write_text("".join(f"{token} {rank}\n" for rank, token in enumerate(tokens)))


# --- auris ---------------------------------------------------------------------------------------------------------


def _write_auris(model: AudioModel, source: ModelSource, out: Path) -> None:
    """Write recipe.yaml, the tokenizer in `tokenizer/`, and the results of a run."""
    config = dict(model.config) | {"tokenizer": "tokenizer"}
    if config["model"]["llm"]["config"].get("path"):  # that directory may not exist where the export is used
        llm = json.loads(model.net.llm.config.to_json_string(use_diff=False))
        config["model"] = {**config["model"], "llm": {**config["model"]["llm"], "config": llm}}
    config["model"] = {**config["model"], "vocab_rows": input_table(model.net.llm).num_embeddings}
    write_yaml(out / "recipe.yaml", config)
    model.tokenizer.save(out / "tokenizer")
    if (results := source.path / "results.jsonl").is_file():
        shutil.copyfile(results, out / results.name)


WRITERS: dict[str, Callable[[AudioModel, ModelSource, Path], None]] = {
    "qwen2_audio": _write_qwen2_audio,
    "qwen_audio": _write_qwen_audio,
    "auris": _write_auris,
}
"""Functions that write the files next to the weights, by format, in order of preference."""
