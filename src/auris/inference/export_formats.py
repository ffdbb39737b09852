"""The formats of exported directories: what each can hold, and the files next to its weights."""

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
from auris.model.weights import identify
from auris.model.weights.identify import ConfigFile, ModelSource
from auris.text.byte_level import RANKS_FILE
from auris.text.chat import Qwen2AudioChat
from auris.text.prompts import NaturalPrompt, TagPrompt
from auris.text.tokenizer import Tokenizer


def find_unsupported(net: AudioLM, tokenizer: Tokenizer, format: str) -> list[str]:
    """Return what of a model a format has no counterpart for, a phrase each; empty if it can hold the model."""
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
    facts = {part: (type(getattr(net, part)).__name__, kind.__name__) for part, kind in kinds.items()}
    facts["llm.config.model_type"] = (llm.model_type, "qwen2")
    if missing := _differences(facts):
        return missing  # parts of other kinds have other settings
    facts = {
        "pooling.k": (net.pooling.k, 2),
        "encoder.clip_end": (net.encoder.clip_end, "zero" if is_v1 else "silence"),
        "encoder.max_positions": (net.encoder.max_positions, MAX_FRAMES // 2),
    }
    if is_v1:
        facts |= {
            "encoder.ffn": (net.encoder.ffn, 4 * net.encoder.width),
            "llm.config.num_key_value_heads": (llm.num_key_value_heads, llm.num_attention_heads),
            "llm.config.tie_word_embeddings": (llm.tie_word_embeddings, False),
            "llm.config.rope_type": (llm.rope_parameters["rope_type"], "default"),
        }
    else:
        facts["llm.train_length"] = (_train_length(net), None)
    missing = _differences(facts)
    style = TagPrompt if is_v1 else NaturalPrompt
    vocabulary = tokenizer.fast.get_vocab()
    marks = (style.audio_begin, style.audio_pad, style.audio_end)
    missing += [f"the tokenizer has no {mark}" for mark in marks if mark not in vocabulary]
    if is_v1 and "<|extra_204|>" not in vocabulary:  # the last of Qwen's tokens, which no other vocabulary has
        missing.append(f"the tokenizer does not come from a {RANKS_FILE}")
    return missing


def _differences(facts: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{what} is {value}, there it is {theirs}" for what, (value, theirs) in facts.items() if value != theirs]


def _train_length(net: AudioLM) -> int | None:
    rotary = getattr(net.llm.get_decoder(), "rotary_emb", None)
    return rotary.train_length if isinstance(rotary, LongRotary) else None


# --- transformers' Qwen2-Audio ------------------------------------------------------------------------------------


def _write_qwen2_audio(model: AudioModel, found: ModelSource, out: Path) -> None:
    """Write the configs, and what AutoProcessor reads: feature extractor, tokenizer and chat template."""
    net, tokenizer = model.net, model.tokenizer
    text = net.llm.config.to_dict()
    for name in ("architectures", "transformers_version", "_name_or_path", "dtype"):  # they belong to the whole model
        text.pop(name, None)
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            **{theirs: getattr(net.encoder, ours) for ours, theirs in identify.TRANSFORMERS_FIELDS.items()},
        },
        text_config=text | {"tie_word_embeddings": False},  # embedding and head are always two tensors there
        audio_token_index=tokenizer.id(NaturalPrompt.audio_pad),
        architectures=["Qwen2AudioForConditionalGeneration"],
        tie_word_embeddings=False,
        dtype=net.llm.dtype,
    ).to_dict()
    config["text_config"]["rope_theta"] = text["rope_parameters"]["rope_theta"]  # where versions before 5 look for it
    write_json(out / "config.json", config, indent=2)
    features = WhisperFeatureExtractor(feature_size=net.encoder.n_mels, return_attention_mask=True)
    template = tokenizer.fast.chat_template  # None: the processor's own
    processor = Qwen2AudioProcessor(feature_extractor=features, tokenizer=tokenizer.fast, chat_template=template)
    processor.save_pretrained(out)
    features.save_pretrained(out)  # where versions before 5 look for it


def generation_config(model: AudioModel, found: ModelSource) -> ConfigFile:
    """Return the source's generation config, or one of greedy answers to the end of the text."""
    end = model.tokenizer.end
    style, stop = ("chatml", model.dialogue.stop) if model.is_chat else ("raw", model.prompt.stop)
    # transformers stops a chat at these tokens only; Qwen-Audio's code takes one number and stops its chat by itself.
    ends = [model.tokenizer.id(token) for token in stop] if isinstance(model.dialogue, Qwen2AudioChat) else [end]
    eos = ends if len(ends) > 1 else end
    ours = {"chat_format": style, "do_sample": False, "eos_token_id": eos, "pad_token_id": end, "max_new_tokens": 256}
    return dict(found.generation) or ours


# --- Qwen-Audio (v1) ----------------------------------------------------------------------------------------------


def _write_qwen_audio(model: AudioModel, found: ModelSource, out: Path) -> None:
    """Write what the released code reads in addition to the weights; other small files of an import are copied."""
    net, llm = model.net, model.net.llm.config
    long = _train_length(net)
    config = {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "audio": {
            **identify.QWEN_AUDIO,
            **{theirs: getattr(net.encoder, ours) for ours, theirs in identify.OPENAI_FIELDS.items()},
            "audio_start_id": model.tokenizer.id(TagPrompt.audio_begin),
            "output_dim": llm.hidden_size,
        },
        **identify.QWEN_LLM,
        "attn_dropout_prob": 0.0,
        "emb_dropout_prob": 0.0,
        "hidden_size": llm.hidden_size,
        "initializer_range": llm.initializer_range,
        "intermediate_size": 2 * llm.intermediate_size,  # counts gate and up together
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
    if found.kind == "qwen_audio":
        config = {**config, **found.config, "torch_dtype": config["torch_dtype"]}
        for file in sorted(found.path.iterdir()):
            if file.suffix in (".py", ".npz") or file.name == "tokenizer_config.json":
                shutil.copyfile(file, out / file.name)
    write_ranks(model.tokenizer, out / RANKS_FILE)
    write_json(out / "config.json", config, indent=2)


def write_ranks(tokenizer: Tokenizer, path: Path) -> None:
    """Write the text tokens that the vocabulary was built from, one `base64 rank` a line."""
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    control = tokenizer.fast.get_added_vocab()
    ranks = {rank: token for token, rank in tokenizer.fast.get_vocab().items() if token not in control}
    tokens = (base64.b64encode(bytes(byte_of[letter] for letter in ranks[rank])).decode() for rank in sorted(ranks))
    path.write_text("".join(f"{token} {rank}\n" for rank, token in enumerate(tokens)))


# --- ours ---------------------------------------------------------------------------------------------------------


def _write_auris(model: AudioModel, found: ModelSource, out: Path) -> None:
    """Write recipe.yaml, the tokenizer in `tokenizer/`, generation_config.json and a run's results."""
    config = dict(model.config) | {"tokenizer": "tokenizer"}
    if config["model"]["llm"]["config"].get("path"):  # that directory may not exist where this one is read
        llm = json.loads(model.net.llm.config.to_json_string(use_diff=False))
        config["model"] = {**config["model"], "llm": {**config["model"]["llm"], "config": llm}}
    config["model"] = {**config["model"], "vocab_rows": model.net.llm.get_input_embeddings().num_embeddings}
    write_yaml(out / "recipe.yaml", config)
    model.tokenizer.save(out / "tokenizer")
    if (results := found.path / "results.jsonl").is_file():
        shutil.copyfile(results, out / results.name)


WRITERS: dict[str, Callable[[AudioModel, ModelSource, Path], None]] = {
    "qwen2_audio": _write_qwen2_audio,
    "qwen_audio": _write_qwen_audio,
    "auris": _write_auris,
}
"""How the files next to the weights are written, by format; in the order of preference."""
