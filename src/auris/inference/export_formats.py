"""The formats of exported directories: which models a format supports, and which files it has besides the weights."""

from __future__ import annotations

import base64
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
    classes = {
        "encoder": Encoder,
        "pooling": pooling.Mean,
        "projector": projector.Linear,
        "boundary": boundary.Learned if is_v1 else boundary.Tokens,
    }
    llm = net.llm.config
    properties: dict[str, tuple[Any, Any]] = {
        part: (type(getattr(net, part)).__name__, part_class.__name__) for part, part_class in classes.items()
    }
    properties["llm.config.model_type"] = (llm.model_type, "qwen2")
    if unsupported := _describe_differences(properties):
        return unsupported  # other classes may not have the properties below
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
    unsupported = _describe_differences(properties)
    prompt_style = TagPrompt if is_v1 else NaturalPrompt
    vocabulary = tokenizer.fast.get_vocab()
    audio_tokens = (prompt_style.audio_begin, prompt_style.audio_pad, prompt_style.audio_end)
    unsupported += [f"the tokenizer has no {token}" for token in audio_tokens if token not in vocabulary]
    if is_v1 and "<|extra_204|>" not in vocabulary:  # the last token of Qwen's vocabulary; other vocabularies lack it
        unsupported.append(f"the tokenizer does not come from a {RANKS_FILE}")
    return unsupported


def _describe_differences(properties: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return a phrase for each property, given as (value in the model, value in the format), that differs."""
    return [
        f"{name} is {value}, must be {expected}" for name, (value, expected) in properties.items() if value != expected
    ]


def _train_length(net: AudioLM) -> int | None:
    """Return the `train_length` of Qwen-7B's rotary embedding; None for an LLM with another rotary embedding."""
    rotary = getattr(net.llm.get_decoder(), "rotary_emb", None)
    return rotary.train_length if isinstance(rotary, LongRotary) else None


# --- transformers' Qwen2-Audio ------------------------------------------------------------------------------------


def _write_qwen2_audio(model: AudioModel, source: ModelSource, out: Path) -> None:
    """Write config.json and the files of AutoProcessor: feature extractor, tokenizer and chat template."""
    net, tokenizer = model.net, model.tokenizer
    text_config = net.llm.config.to_dict()
    # These fields belong to the config of the complete model.
    for name in ("architectures", "transformers_version", "_name_or_path", "dtype"):
        text_config.pop(name, None)
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            **{name: getattr(net.encoder, argument) for argument, name in identify.TRANSFORMERS_FIELDS.items()},
        },
        # This format always stores embedding and head as two tensors.
        text_config=text_config | {"tie_word_embeddings": False},
        audio_token_index=tokenizer.id(NaturalPrompt.audio_pad),
        architectures=["Qwen2AudioForConditionalGeneration"],
        tie_word_embeddings=False,  # pyrefly: ignore[unexpected-keyword]  # any field is accepted at run time
        dtype=net.llm.dtype,
    ).to_dict()
    # transformers before version 5 reads this field here, and the settings of the feature extractor in a separate file.
    config["text_config"]["rope_theta"] = text_config["rope_parameters"]["rope_theta"]
    write_json(out / "config.json", config, indent=2)
    extractor = WhisperFeatureExtractor(feature_size=net.encoder.n_mels, return_attention_mask=True)
    template = tokenizer.fast.chat_template  # if None, the processor uses its default template
    processor = Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=tokenizer.fast, chat_template=template)
    processor.save_pretrained(out)
    extractor.save_pretrained(out)


def make_generation_config(model: AudioModel, source: ModelSource) -> ConfigFile:
    """Return the source's generation config or, if it has none, a config for greedy responses."""
    end_of_text = model.tokenizer.end
    chat_format, stop = ("chatml", model.dialogue.stop) if model.is_chat else ("raw", model.prompt.stop)
    # transformers stops a chat only at the tokens in `eos_token_id`. Qwen-Audio's code expects a single id there, and
    # its `chat` adds the other stop tokens of a chat.
    is_v2 = isinstance(model.dialogue, Qwen2AudioChat)
    stop_ids = [model.tokenizer.id(token) for token in stop] if is_v2 else [end_of_text]
    default = {
        "chat_format": chat_format,
        "do_sample": False,
        "eos_token_id": stop_ids if len(stop_ids) > 1 else end_of_text,
        "pad_token_id": end_of_text,
        "max_new_tokens": 256,
    }
    return dict(source.generation) or default


# --- Qwen-Audio (v1) ----------------------------------------------------------------------------------------------


def _write_qwen_audio(model: AudioModel, source: ModelSource, out: Path) -> None:
    """Write the files that the released code reads. If the source is Qwen-Audio, its code is copied as well."""
    net, llm = model.net, model.net.llm.config
    train_length = _train_length(net)
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
        "intermediate_size": 2 * llm.intermediate_size,  # the sum of the widths of the gate and up projections
        "kv_channels": llm.hidden_size // llm.num_attention_heads,
        "layer_norm_epsilon": llm.rms_norm_eps,
        "max_position_embeddings": llm.max_position_embeddings,
        "num_attention_heads": llm.num_attention_heads,
        "num_hidden_layers": llm.num_hidden_layers,
        "rotary_emb_base": llm.rope_parameters["rope_theta"],
        "seq_length": train_length or llm.max_position_embeddings,
        "tokenizer_type": "QWenTokenizer",
        "torch_dtype": str(net.llm.dtype).removeprefix("torch."),
        "use_cache": True,
        "use_dynamic_ntk": train_length is not None,
        "use_logn_attn": train_length is not None,
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
    """Write the text tokens of a byte-level vocabulary. Each line has the bytes of a token in base64, and its rank."""
    bytes_of_letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    control_tokens = tokenizer.fast.get_added_vocab()
    tokens = {rank: token for token, rank in tokenizer.fast.get_vocab().items() if token not in control_tokens}
    encoded = (
        base64.b64encode(bytes(bytes_of_letters[letter] for letter in tokens[rank])).decode() for rank in sorted(tokens)
    )
    path.write_text("".join(f"{token} {rank}\n" for rank, token in enumerate(encoded)))


# --- auris ---------------------------------------------------------------------------------------------------------


def _write_auris(model: AudioModel, source: ModelSource, out: Path) -> None:
    """Write recipe.yaml, the tokenizer in `tokenizer/`, and the results of a run."""
    config = dict(model.config) | {"tokenizer": "tokenizer"}
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
"""Functions that write the files besides the weights, by format, in order of preference."""
