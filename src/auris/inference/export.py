"""`auris export checkpoint=PATH out=DIR`: a model as a directory that others load, or that `auris.load` does.

Three formats: transformers' Qwen2-Audio, Qwen-Audio (v1) as released, and our own, which holds any model that auris can
train. Weights keep the precision that they are stored in: the export of an import is bit-identical, tensor by tensor.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from transformers import Qwen2AudioConfig, Qwen2AudioProcessor, WhisperFeatureExtractor
from transformers.convert_slow_tokenizer import bytes_to_unicode

import auris
from auris import config as recipe
from auris.audio import MAX_FRAMES
from auris.data.manifests import read_manifests
from auris.data.rows import Row
from auris.errors import UserError
from auris.inference import load as pretrained
from auris.inference.load import AudioModel
from auris.metrics.measures import measure
from auris.model import boundary, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.model.llm import LongRotary
from auris.model.weights.identify import KINDS, ModelSource, identify
from auris.model.weights.saving import export_tensors, write_sharded
from auris.text.chat import Qwen2AudioChat
from auris.text.prompts import NaturalPrompt, TagPrompt
from auris.text.tokenizer import RANKS_FILE, Tokenizer

FORMATS = ("qwen2_audio", "qwen_audio", "auris")


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    format: str = "auto",
    which: str = "last",
    dtype: torch.dtype | None = None,
    shard_bytes: int = 4_000_000_000,
) -> tuple[str, list[str]]:
    """Write the model in `checkpoint` to the new directory `out`.

    Args:
        checkpoint: anything that holds a whole model.
        format: one of `FORMATS`; auto: the first that has a counterpart for every part.
        which: checkpoint of a run: last or best.
        dtype: of the weights; None: as they are stored.
        shard_bytes: of a file of weights at most.

    Returns:
        The format that was written, and why those before it in `FORMATS` were not.

    Raises:
        ValueError: no whole model, `out` is taken, or the format asked for has no counterpart for some part.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"out={out} is there already: expected the name of a new directory")
    found = identify(checkpoint, which)
    _, tokenizer, net = pretrained.build(found)
    chosen, reasons = choose(net, tokenizer, format)
    model = pretrained.load(checkpoint, which=which, dtype=dtype)
    write = {"qwen2_audio": _write_qwen2_audio, "qwen_audio": _write_qwen_audio, "auris": _write_auris}[chosen]
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{out.name}.partial-", dir=out.parent) as folder:
        made = Path(folder, out.name)  # gets its place when it is complete
        made.mkdir()
        write(model, found, made)
        tensors = export_tensors(model.net.state_dict(), chosen)
        write_sharded(tensors, made, max_shard_bytes=shard_bytes)
        (made / "README.md").write_text(card(model, found, out.name, chosen, reasons), encoding="utf-8")
        made.rename(out)
    return chosen, reasons


def choose(net: AudioLM, tokenizer: Tokenizer, format: str = "auto") -> tuple[str, list[str]]:
    """The format to write, and what stands against the ones before it.

    Raises ValueError for an unknown format, or if the one asked for has no counterpart for some part.
    """
    if format not in ("auto", *FORMATS):
        raise UserError(f"format={format}: expected auto, {', '.join(FORMATS)}")
    if format != "auto":
        if missing := obstacles(net, tokenizer, format):
            raise UserError(f"format={format} cannot hold this model: {'; '.join(missing)}. format=auris holds any")
        return format, []
    reasons: list[str] = []
    for name in FORMATS:
        missing = obstacles(net, tokenizer, name)
        if not missing:
            return name, reasons
        reasons += [f"{name}: {reason}" for reason in missing]
    raise AssertionError("auris holds any model")


def obstacles(net: AudioLM, tokenizer: Tokenizer, format: str) -> list[str]:
    """What of a model a format has no counterpart for, one phrase each; none if it can hold the model."""
    if format == "auris":
        return []
    is_v1 = format == "qwen_audio"
    kinds = {
        "encoder": Encoder,
        "pooling": pooling.Mean,
        "projector": projector.Linear,
        "boundary": boundary.Learned if is_v1 else boundary.Tokens,
    }
    config = net.llm.config
    facts = {part: (type(getattr(net, part)).__name__, kind.__name__) for part, kind in kinds.items()}
    facts["llm.config.model_type"] = (config.model_type, "qwen2")
    if missing := _differences(facts):
        return missing  # parts of other kinds have other settings
    facts = {
        "pooling.k": (net.pooling.k, 2),
        "encoder.clip_end": (net.encoder.clip_end, "zero" if is_v1 else "silence"),
        "encoder.max_positions": (net.encoder.max_positions, MAX_FRAMES // 2),
    }
    if is_v1:
        facts |= {
            "encoder.ffn": (net.encoder.blocks[0].up.out_features, 4 * net.encoder.width),
            "llm.config.num_key_value_heads": (config.num_key_value_heads, config.num_attention_heads),
            "llm.config.tie_word_embeddings": (config.tie_word_embeddings, False),
            "llm.config.rope_type": (config.rope_parameters["rope_type"], "default"),
        }
    else:
        facts["llm.train_length"] = (_train_length(net), None)
    missing = _differences(facts)
    style = TagPrompt if is_v1 else NaturalPrompt
    vocabulary = tokenizer.fast.get_vocab()
    marks = (style.audio_begin, style.audio_pad, style.audio_end)
    missing += [f"the tokenizer has no {mark}" for mark in marks if mark not in vocabulary]
    if is_v1 and "<|extra_204|>" not in vocabulary:  # the last of Qwen's own, which no other vocabulary has
        missing.append(f"the tokenizer does not come from a {RANKS_FILE}")
    return missing


def _differences(facts: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{what} is {value}, there it is {there}" for what, (value, there) in facts.items() if value != there]


def _train_length(net: AudioLM) -> int | None:
    rotary = getattr(net.llm.get_decoder(), "rotary_emb", None)
    return rotary.train_length if isinstance(rotary, LongRotary) else None


# --- transformers' Qwen2-Audio ------------------------------------------------------------------------------------


def _write_qwen2_audio(model: AudioModel, found: ModelSource, out: Path) -> None:
    """The configs, and what AutoProcessor reads: feature extractor, tokenizer and chat template."""
    net, tokenizer = model.net, model.tokenizer
    text = net.llm.config.to_dict()
    for name in ("architectures", "transformers_version", "_name_or_path", "dtype"):  # the whole model's, not its
        text.pop(name, None)
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": net.encoder.n_mels,
            "d_model": net.encoder.width,
            "encoder_layers": len(net.encoder.blocks),
            "encoder_attention_heads": net.encoder.blocks[0].n_heads,
            "encoder_ffn_dim": net.encoder.blocks[0].up.out_features,
            "max_source_positions": net.encoder.max_positions,
        },
        text_config=text | {"tie_word_embeddings": False},  # embedding and head are always two tensors there
        audio_token_index=tokenizer.id(NaturalPrompt.audio_pad),
        architectures=["Qwen2AudioForConditionalGeneration"],
        tie_word_embeddings=False,
        dtype=net.llm.dtype,
    ).to_dict()
    config["text_config"]["rope_theta"] = text["rope_parameters"]["rope_theta"]  # where versions before 5 look for it
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", _generation(model, found))
    features = WhisperFeatureExtractor(feature_size=net.encoder.n_mels, return_attention_mask=True)
    template = tokenizer.fast.chat_template  # None: the processor's own
    processor = Qwen2AudioProcessor(feature_extractor=features, tokenizer=tokenizer.fast, chat_template=template)
    processor.save_pretrained(out)
    features.save_pretrained(out)  # where versions before 5 look for it


def _generation(model: AudioModel, found: ModelSource) -> dict[str, Any]:
    """The generation config: as it came, or greedy answers to the end of the text."""
    end = model.tokenizer.end
    style, stop = ("chatml", model.dialogue.stop) if model.is_chat else ("raw", model.prompt.stop)
    # transformers stops a chat at nothing else; the code of Qwen-Audio takes one number, and stops its chat by itself.
    ends = [model.tokenizer.id(token) for token in stop] if isinstance(model.dialogue, Qwen2AudioChat) else [end]
    eos = ends if len(ends) > 1 else end
    ours = {"chat_format": style, "do_sample": False, "eos_token_id": eos, "pad_token_id": end, "max_new_tokens": 256}
    return dict(found.generation) or ours


def _rows(net: AudioLM) -> int:
    return net.llm.get_input_embeddings().num_embeddings


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- Qwen-Audio (v1) ----------------------------------------------------------------------------------------------


def _write_qwen_audio(model: AudioModel, found: ModelSource, out: Path) -> None:
    """What the released code reads beside the weights; of an import, its other small files go along as they are."""
    net, llm = model.net, model.net.llm.config
    long = _train_length(net)
    config = {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "audio": {
            "add_audio_bos_eos_token": True,
            "audio_start_id": model.tokenizer.id(TagPrompt.audio_begin),
            "avg_pool": True,
            "n_ctx": net.encoder.max_positions,
            "n_head": net.encoder.blocks[0].n_heads,
            "n_layer": len(net.encoder.blocks),
            "n_mels": net.encoder.n_mels,
            "n_state": net.encoder.width,
            "output_dim": llm.hidden_size,
        },
        "attn_dropout_prob": 0.0,
        "emb_dropout_prob": 0.0,
        "hidden_size": llm.hidden_size,
        "initializer_range": llm.initializer_range,
        "intermediate_size": 2 * llm.intermediate_size,  # counts gate and up together
        "kv_channels": llm.hidden_size // llm.num_attention_heads,
        "layer_norm_epsilon": llm.rms_norm_eps,
        "max_position_embeddings": llm.max_position_embeddings,
        "no_bias": True,
        "num_attention_heads": llm.num_attention_heads,
        "num_hidden_layers": llm.num_hidden_layers,
        "rotary_emb_base": llm.rope_parameters["rope_theta"],
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": long or llm.max_position_embeddings,
        "tie_word_embeddings": False,
        "tokenizer_type": "QWenTokenizer",
        "torch_dtype": str(net.llm.dtype).removeprefix("torch."),
        "use_cache": True,
        "use_dynamic_ntk": long is not None,
        "use_logn_attn": long is not None,
        "vocab_size": _rows(net),
    }
    if found.kind == "qwen_audio":
        config = {**config, **found.config, "torch_dtype": config["torch_dtype"]}
        for file in sorted(found.path.iterdir()):
            if file.suffix in (".py", ".npz") or file.name == "tokenizer_config.json":
                shutil.copyfile(file, out / file.name)
    write_ranks(model.tokenizer, out / RANKS_FILE)
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", _generation(model, found))


def write_ranks(tokenizer: Tokenizer, path: Path) -> None:
    """The text tokens, `base64 rank` a line: what the vocabulary was built from."""
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    control = tokenizer.fast.get_added_vocab()
    ranks = {rank: token for token, rank in tokenizer.fast.get_vocab().items() if token not in control}
    tokens = (base64.b64encode(bytes(byte_of[letter] for letter in ranks[rank])).decode() for rank in sorted(ranks))
    path.write_text("".join(f"{token} {rank}\n" for rank, token in enumerate(tokens)))


# --- ours ---------------------------------------------------------------------------------------------------------


def _write_auris(model: AudioModel, found: ModelSource, out: Path) -> None:
    """recipe.yaml, the tokenizer in `tokenizer/`, generation_config.json and a run's results."""
    made = dict(model.recipe) | {"tokenizer": "tokenizer"}
    if made["model"]["llm"]["config"].get("path"):  # that directory may be gone where this one is read
        config = json.loads(model.net.llm.config.to_json_string(use_diff=False))
        made["model"] = {**made["model"], "llm": {**made["model"]["llm"], "config": config}}
    made["model"] = {**made["model"], "vocab_rows": _rows(model.net)}
    recipe.save(made, out / "recipe.yaml")
    model.tokenizer.save(out / "tokenizer")
    if (results := _results_file(found)).is_file():
        shutil.copyfile(results, out / results.name)
    _write_json(out / "generation_config.json", _generation(model, found))


# --- the model card -----------------------------------------------------------------------------------------------

# Codes of a row's `provenance` in words: what is synthetic is called so.
_PROVENANCE = {
    "real": "real recordings",
    "mixed": "partly synthetic",
    "tts": "synthetic speech",
    "procedural": "synthetic sound",
    "unknown": "of unknown origin",
}
_USE = {
    "qwen2_audio": """from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

model = Qwen2AudioForConditionalGeneration.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")""",
    "qwen_audio": """# with the code of github.com/QwenLM/Qwen-Audio, or
import auris

model = auris.load("{name}")""",
    "auris": """import auris

model = auris.load("{name}")
model.generate(audio="clip.wav", prompt="...")""",
}


def card(model: AudioModel, found: ModelSource, name: str, format: str, reasons: list[str]) -> str:
    """README.md: what the model is, how it was trained, on what data, and how it scored."""
    made = model.recipe
    is_import = made["study"] == pretrained.RELEASED
    library = "transformers" if format == "qwen2_audio" else "auris"
    sections = [
        f"---\nlibrary_name: {library}\ntags: [auris, audio-text-to-text]\n---",
        f"# {name}",
        f"Exported by auris {auris.__version__} from {KINDS[found.kind]} (`{found.path.resolve().name}`).",
        f"```python\n{_USE[format].format(name=name)}\n```",
        "## Parts",
        "\n".join(_part_lines(model.net)),
    ]
    if reasons:
        sections += ["Not in a published layout, as it has no counterpart there:", "\n".join(f"- {r}" for r in reasons)]
    if is_import:
        sections.append("Its weights are those of the directory that it was read from; nothing was trained in between.")
    else:
        sections += ["## Data", "\n".join(_data_lines(made)), "## Results", "\n".join(_result_lines(found))]
        shown = yaml.safe_dump(dict(made), sort_keys=False, allow_unicode=True)
        sections += ["## Recipe", "\n".join(_recipe_lines(made)), f"```yaml\n{shown}```"]
    return "\n\n".join(sections) + "\n"


def _part_lines(net: AudioLM) -> Iterator[str]:
    yield "| part | kind | parameters | precision |"
    yield "|---|---|---|---|"
    for part, module in net.named_children():
        parameters = list(module.parameters())
        kind = net.llm.config.model_type if part == "llm" else type(module).__name__
        precision = "+".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})) or "-"
        yield f"| {part} | {kind} | {sum(p.numel() for p in parameters):,} | {precision} |"


def _recipe_lines(made: Mapping[str, Any]) -> Iterator[str]:
    yield f"- study `{made['study']}`, arm `{made['arm']}`, seed {made['seed']}, {made['max_steps']} steps"
    yield f"- trained: {', '.join(made['trainable'])}; all other parts frozen"
    for part, source in made["weights"].items():
        if source is not None:
            yield f"- {part} began with the weights of `{source}`"


def _data_lines(made: Mapping[str, Any]) -> Iterator[str]:
    """A line per training manifest: rows, hours, where the audio comes from, licences."""
    for entry in made["data"]["train"]:
        try:
            [manifest] = read_manifests([entry])
        except (FileNotFoundError, ValueError):
            path = entry["path"] if isinstance(entry, Mapping) else entry
            yield f"- `{path}`: not at hand when this was written"
            continue
        rows = [row for row in manifest.rows if row.problem is None]
        hours = sum(clip.duration or 0.0 for row in rows for clip in row.clips) / 3600
        origins = Counter(_origin(row) for row in rows)
        said = ", ".join(f"{n:,} {origin}" for origin, n in origins.most_common())
        licences = sorted({str(row.labels["licence"]) for row in rows if "licence" in row.labels})
        yield f"- `{manifest.name}`: {len(rows):,} rows, {hours:.1f} h ({said})" + (
            f"; licences: {', '.join(licences)}" if licences else ""
        )


def _origin(row: Row) -> str:
    if not row.clips:
        return "text"
    return _PROVENANCE.get(str(row.labels.get("provenance", "unknown")), _PROVENANCE["unknown"])


def _results_file(found: ModelSource) -> Path:
    """Where a run keeps its results, and a directory of ours those of its run."""
    return (found.path if found.file is None else found.file.parents[1]) / "results.jsonl"


def _result_lines(found: ModelSource) -> Iterator[str]:
    file = _results_file(found)
    if not file.is_file():
        yield "Not evaluated."
        return
    yield "| benchmark | task | metric | value | 95 % interval | n | test audio |"
    yield "|---|---|---|---|---|---|---|"
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        how = measure(row["metric"])
        value, low, high = (f"{how.scale * row[key]:.1f}" for key in ("value", "low", "high"))
        origin = ", ".join(_PROVENANCE.get(code, _PROVENANCE["unknown"]) for code in row["provenance"].split("+"))
        cells = (row["benchmark"], row["task"], how.label, value, f"[{low}, {high}]", str(row["n"]), origin)
        yield f"| {' | '.join(cells)} |"


# --- entry point --------------------------------------------------------------------------------------------------


def run(made: recipe.Config) -> None:
    """Run `auris export`."""
    dtype = _dtype(made["dtype"])
    options = {"format": made["format"], "which": made["which"], "shard_bytes": round(1e9 * made["shard_gb"])}
    chosen, reasons = export(made["checkpoint"], made["out"], dtype=dtype, **options)
    for reason in reasons:
        print(f"no counterpart in {reason}")
    print(f"wrote {made['out']} ({chosen})")


def _dtype(name: str | None) -> torch.dtype | None:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is not None and name not in known:
        raise UserError(f"dtype={name}: expected null (as stored), {', '.join(known)}")
    return known[name] if name else None
