"""Identify a model path by its content, describe it as a config, and reject broken files with one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from auris import config as auris_config
from auris.inference.export import export
from auris.model.weights import loading
from auris.model.weights.identify import KINDS, PARTS, identify
from auris.model.weights.layouts import LAYOUTS
from auris.training import sharding
from support import published

WRITERS: dict[str, Callable[[Path], object]] = {
    "qwen2_audio": published.qwen2_audio,
    "qwen_audio": published.qwen_audio,
    "whisper": published.whisper,
    "whisper_openai": published.whisper_openai,
    "causal_lm": published.language_model,
    "qwen": published.qwen,
    "run": published.run,
}

# The hub's config.json of Qwen2-Audio, the same for base and Instruct model (853 bytes).
HUB_QWEN2_AUDIO = {
    "architectures": ["Qwen2AudioForConditionalGeneration"],
    "audio_config": {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": 128,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "d_model": 1280,
        "activation_function": "gelu",
        "scale_embedding": False,
        "max_source_positions": 1500,
    },
    "audio_token_index": 151646,
    "ignore_index": -100,
    "model_type": "qwen2_audio",
    "text_config": {
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "intermediate_size": 11008,
        "max_position_embeddings": 8192,
        "model_type": "qwen2",
        "rope_theta": 10000,
        "rms_norm_eps": 1e-5,
        "sliding_window": 32768,
        "torch_dtype": "bfloat16",
        "use_mrope": False,
        "vocab_size": 156032,
    },
    "transformers_version": "4.38.1",
    "vocab_size": 156032,
}
# The hub's config.json of Qwen-Audio, without the keys that only its own code reads.
HUB_QWEN_AUDIO = {
    "audio": {
        "add_audio_bos_eos_token": True,
        "audio_start_id": 155163,
        "avg_pool": True,
        "n_ctx": 1500,
        "n_head": 20,
        "n_layer": 32,
        "n_mels": 80,
        "n_state": 1280,
        "output_dim": 4096,
    },
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 2048,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "seq_length": 2048,
    "softmax_in_fp32": False,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "vocab_size": 155947,
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return one path of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    paths = {kind: folder / (f"{kind}.pt" if kind == "whisper_openai" else kind) for kind in WRITERS}
    for kind, write in WRITERS.items():
        write(paths[kind])
    paths["checkpoint"] = paths["run"] / "checkpoints/step_00000001"
    paths["auris"] = folder / "auris"
    export(paths["run"], paths["auris"], format="auris")
    return paths


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_a_path_is_recognised(paths: dict[str, Path], kind: str):
    source = identify(paths[kind])
    layout = LAYOUTS[source.layout]
    assert source.kind == kind and all(map(layout.model_names, filter(layout.is_used, source.open_tensors().keys())))
    is_complete = kind not in ("whisper", "whisper_openai", "causal_lm", "qwen")
    assert (source.model is not None) == is_complete == (set(source.parts) == set(PARTS))
    assert (source.tokenizer is not None) == (is_complete or kind == "qwen")


@pytest.mark.parametrize("kind", ["whisper", "whisper_openai"])
def test_whisper_is_identified_as_an_encoder_with_its_sizes(paths: dict[str, Path], kind: str):
    identified = identify(paths[kind])
    with torch.device("meta"):
        encoder = auris_config.build(identified.parts["encoder"])
    source, prefix = identified.open_tensors(), "model.encoder" if kind == "whisper" else "encoder"
    assert tuple(encoder.conv1.weight.shape) == source.shape(f"{prefix}.conv1.weight")
    assert len(encoder.blocks) == 2 and encoder.clip_end == "silence"


@pytest.mark.parametrize("kind", ["causal_lm", "qwen"])
def test_a_language_model_initialises_an_llm_with_a_larger_vocabulary(paths: dict[str, Path], kind: str):
    source = identify(paths[kind])
    preset = auris_config.resolve(auris_config.compose(published.TINY))["model"]
    net = auris_config.build_net({"model": preset | source.parts}, SimpleNamespace(size=5000))
    sharding.materialise(net, "cpu")
    loading.load(net, source.open_tensors(), layout=source.layout, parts=list(source.parts), label="here")
    rows = source.config["vocab_size"]
    names = {"causal_lm": "model.embed_tokens.weight", "qwen": "transformer.wte.weight"}
    assert torch.equal(net.llm.model.embed_tokens.weight[:rows], source.open_tensors().read(names[kind]))


@pytest.mark.parametrize(("config", "count"), [(HUB_QWEN2_AUDIO, 8_395_174_912), (HUB_QWEN_AUDIO, 8_394_302_464)])
def test_the_published_configs_give_the_published_parameter_counts(tmp_path: Path, config: dict, count: int):
    published.write_json(tmp_path / "config.json", config)
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    source = identify(tmp_path)
    net = auris_config.build_net({"model": source.model}, SimpleNamespace(size=1000))
    assert sum(parameter.numel() for parameter in net.parameters()) == count
    preset = auris_config.resolve(auris_config.compose(["scale=full", f"model={source.kind}"]))["model"]
    preset_net = auris_config.build_net({"model": preset}, SimpleNamespace(size=1000))
    assert preset_net.geometry == net.geometry
    for name in ("rms_norm_eps", "rope_parameters", "hidden_size", "num_key_value_heads", "tie_word_embeddings"):
        assert getattr(preset_net.llm.config, name) == getattr(net.llm.config, name), name
    assert preset["llm"]["train_length"] == source.model["llm"]["train_length"]


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_the_norm_epsilon_is_read_from_the_config(tmp_path: Path, eps: float):
    published.qwen_audio(tmp_path / "v1", layer_norm_epsilon=eps)
    assert identify(tmp_path / "v1").model["llm"]["config"]["rms_norm_eps"] == eps


def test_without_dynamic_ntk_there_is_no_training_length(tmp_path: Path):
    published.qwen_audio(tmp_path / "v1", use_dynamic_ntk=False, use_logn_attn=False)
    assert identify(tmp_path / "v1").model["llm"]["train_length"] is None


@pytest.mark.parametrize(
    ("kind", "keys", "value"),
    [
        ("qwen2_audio", ("audio_config", "num_mel_bins"), 80),
        ("qwen2_audio", ("audio_config", "d_model"), 64),
        ("qwen2_audio", ("audio_config", "encoder_layers"), 3),
        ("qwen2_audio", ("audio_config", "encoder_ffn_dim"), 128),
        ("qwen2_audio", ("audio_config", "max_source_positions"), 1400),
        ("qwen2_audio", ("text_config", "vocab_size"), 5000),
        ("qwen2_audio", ("text_config", "hidden_size"), 64),
        ("qwen2_audio", ("text_config", "num_hidden_layers"), 1),
        ("qwen2_audio", ("text_config", "intermediate_size"), 65),
        ("qwen_audio", ("audio", "n_mels"), 80),
        ("qwen_audio", ("audio", "n_state"), 26),
        ("qwen_audio", ("audio", "n_layer"), 1),
        ("qwen_audio", ("vocab_size",), 4000),
        ("qwen_audio", ("num_hidden_layers",), 3),
        ("whisper", ("encoder_layers",), 4),
        ("whisper", ("num_mel_bins",), 80),
        ("causal_lm", ("vocab_size",), 301),
        ("causal_lm", ("num_hidden_layers",), 9),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(tmp_path: Path, kind: str, keys: tuple, value: int):
    WRITERS[kind](tmp_path / "model")
    file = tmp_path / "model/config.json"
    published.edit_json(file, *keys, value=value)
    expect_one_sentence(tmp_path / "model", str(file), f"{'.'.join(keys)}={value}")


@pytest.mark.parametrize(
    ("kind", "keys", "value"),
    [
        ("qwen2_audio", ("audio_config", "activation_function"), "relu"),
        ("qwen2_audio", ("audio_config", "scale_embedding"), True),
        ("qwen2_audio", ("model_type",), "unknown_type"),
        ("whisper", ("activation_function",), "relu"),
        ("whisper", ("scale_embedding",), True),
        ("qwen_audio", ("audio", "avg_pool"), False),
        ("qwen_audio", ("audio", "add_audio_bos_eos_token"), False),
        ("qwen_audio", ("no_bias",), False),
        ("qwen_audio", ("kv_channels",), 16),
        ("qwen_audio", ("use_logn_attn",), False),
        ("qwen_audio", ("audio", "output_dim"), 64),
    ],
)
def test_a_config_with_an_unsupported_feature_is_refused(tmp_path: Path, kind: str, keys: tuple, value: object):
    WRITERS[kind](tmp_path / "model")
    file = tmp_path / "model/config.json"
    published.edit_json(file, *keys, value=value)
    expect_one_sentence(tmp_path / "model", str(file), ".".join(keys), str(value))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("qwen2_audio", ("quantization_config",)),
        ("qwen2_audio", ("text_config", "quantization_config")),
        ("causal_lm", ("quantization_config",)),
        ("whisper", ("quantization_config",)),
    ],
)
def test_quantised_weights_are_refused(tmp_path: Path, kind: str, keys: tuple):
    WRITERS[kind](tmp_path / "model")
    file = tmp_path / "model/config.json"
    published.edit_json(file, *keys, value={"quant_method": "awq", "bits": 4})
    expect_one_sentence(tmp_path / "model", str(file), "quantised (quant_method=awq)", "before quantisation")


def test_an_adapter_without_its_model_is_refused(tmp_path: Path):
    published.write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "x"})
    save_file({"base_model.model.lm_head.lora_A.weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    expect_one_sentence(tmp_path, str(tmp_path), "only an adapter of another model", "merge_and_unload")


@pytest.mark.parametrize("has_head", [True, False])
def test_qwen2_audio_ties_its_embeddings_only_if_no_head_is_stored(tmp_path: Path, has_head: bool):
    """transformers 4 ties them as the text config says, and stores no head; version 5 never does."""
    published.qwen2_audio(tmp_path, tie_word_embeddings=True)
    state = load_file(tmp_path / "model.safetensors")
    if not has_head:
        del state["language_model.lm_head.weight"]
        save_file(state, tmp_path / "model.safetensors")
    llm_config = identify(tmp_path).model["llm"]["config"]
    assert llm_config["tie_word_embeddings"] == (not has_head)


@pytest.mark.parametrize("keys", [("layer_norm_epsilon",), ("audio", "n_mels")])
def test_a_missing_config_field_is_named(tmp_path: Path, keys: tuple):
    published.qwen_audio(tmp_path / "v1")
    file = tmp_path / "v1/config.json"
    config = json.loads(file.read_text())
    del (config if len(keys) == 1 else config[keys[0]])[keys[-1]]
    published.write_json(file, config)
    expect_one_sentence(tmp_path / "v1", str(file), keys[-1])


def test_unreadable_files_are_named(tmp_path: Path):
    folder = tmp_path / "model"
    expect_one_sentence(folder, str(folder), "does not exist")
    folder.mkdir()
    expect_one_sentence(folder, str(folder), "contains no model", "config.json")
    (folder / "config.json").write_text("{not json")
    expect_one_sentence(folder, str(folder / "config.json"), "is not JSON")
    for content in ("[1]", '"qwen2"', "null"):
        (folder / "config.json").write_text(content)
        expect_one_sentence(folder, str(folder / "config.json"), "expected an object")
    (tmp_path / "x.ckpt").write_bytes(b"not a checkpoint")
    expect_one_sentence(tmp_path / "x.ckpt", str(tmp_path / "x.ckpt"), "is a file: expected a run directory")
    torch.save({"weights": torch.ones(1)}, tmp_path / "x.pt")
    expect_one_sentence(tmp_path / "x.pt", str(tmp_path / "x.pt"), "model_state_dict")
    torch.save(SimpleNamespace(), tmp_path / "y.pt")
    expect_one_sentence(tmp_path / "y.pt", str(tmp_path / "y.pt"), "cannot be read")
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    expect_one_sentence(tmp_path / "x.safetensors", str(tmp_path / "x.safetensors"), "directory")


def test_a_broken_recipe_file_is_named(paths: dict[str, Path], tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(paths["auris"], copy)
    for content, reason in (("a: [", "is not YAML"), ("seed: 0\n", "`model`"), ("- 1\n", "`model`")):
        (copy / "recipe.yaml").write_text(content)
        expect_one_sentence(copy, str(copy / "recipe.yaml"), reason)


def test_incomplete_weights_are_named(tmp_path: Path):
    published.qwen2_audio(tmp_path / "complete")
    file = tmp_path / "complete/model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    expect_one_sentence(tmp_path / "complete", str(file))
    file.unlink()
    expect_one_sentence(tmp_path / "complete", str(tmp_path / "complete"), "safetensors")
    published.qwen2_audio(tmp_path / "sharded", shard="200KB")
    shard = sorted((tmp_path / "sharded").glob("model-*.safetensors"))[1]
    shard.unlink()
    expect_one_sentence(tmp_path / "sharded", shard.name)


def test_a_run_without_the_requested_checkpoint_is_reported(paths: dict[str, Path]):
    with pytest.raises(FileNotFoundError, match="has no best checkpoint: expected a run directory"):
        identify(paths["run"], "best")


def test_the_weights_of_the_objective_are_read_separately(tmp_path: Path):
    published.run(tmp_path / "ctc", "experiment=encoder_ctc")
    source = identify(tmp_path / "ctc")
    assert set(source.objective_state()) == {"head.weight", "head.bias"}
    assert {name.partition(".")[0] for name in set(source.open_tensors().keys())} == {"encoder", "projector", "llm"}


def expect_one_sentence(path: Path, *parts: str) -> None:
    """Check that identifying the path fails with a message of one line that contains the parts."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        identify(path)
    message = str(error.value)
    assert "\n" not in message and len(message) < 500, message
    for part in parts:
        assert part in message, (part, message)
