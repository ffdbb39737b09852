"""Initial weights: a model that would compute another function than in training is refused, with the remedy."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from auris import config as auris_config
from auris.errors import UserError
from auris.model.weights.identify import identify
from auris.training.initial_weights import find_differences, find_initial_weights
from auris.training.weight_settings import find_sources
from support import published
from support.manifests import tokenizer
from support.recipes import compose_once

ENCODER = {"n_mels": 16, "width": 32, "n_layers": 2, "n_heads": 2, "ffn": 48}
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an encoder, language models of several families, a complete model and a run."""
    folder = tmp_path_factory.mktemp("sources")
    published.whisper(folder / "whisper")
    published.whisper_openai(folder / "whisper.pt")
    published.language_model(folder / "qwen2")
    for family, (config_class, model_class) in FAMILIES.items():
        model_class(config_class(vocab_size=300, **published.LLM)).save_pretrained(folder / family)
    published.qwen2_audio(folder / "qwen2_audio")
    published.run(folder / "run")
    return folder


def model_of(**parts: dict[str, Any]) -> dict[str, Any]:
    """Return the section `model` of a config; `encoder` and `llm` change entries of these parts."""
    model = deepcopy(auris_config.resolve(compose_once(published.TINY))["model"])
    model["encoder"] |= parts.get("encoder", {})
    if "llm" in parts:
        model["llm"]["config"] = parts["llm"]
    return model


def llm_config(directory: Path, **changes: Any) -> dict[str, Any]:
    """Return the content of config.json as a section of a config, with some entries changed."""
    return {**identify(directory).parts["llm"]["config"], **changes}


def check(model: dict[str, Any], *, checkpoint: Path | None = None, **weights: Path) -> None:
    """Build a model on the meta device, and check the weights from which it would start, as `auris train` does."""
    config = {"model": model, "checkpoint": checkpoint, "weights": weights, "tokenizer": "here"}
    net = auris_config.build_net(config, tokenizer())
    find_initial_weights(config, find_sources(config), net, tokenizer())


def refusal(model: dict[str, Any], **sources: Path) -> tuple[str, list[str]]:
    """Return the message of a check that fails, and the overrides that it suggests.

    With these overrides the check must pass.
    """
    with pytest.raises(ValueError, match="does not fit the model") as error:
        check(model, **sources)
    message = str(error.value)
    assert "\n" not in message
    overrides = shlex.split(message.rpartition(": set ")[2])
    check(override(model, overrides), **sources)
    return message, overrides


def override(model: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of the section `model` after overrides. Like Hydra, refuse a key that only `+` could add."""
    changed = deepcopy(model)
    for parsed in OverridesParser.create().parse_overrides(list(overrides)):
        _, *sections, name = parsed.key_or_group.split(".")
        node = changed
        for section in sections:
            node = node[section]
        assert parsed.is_add() == (name not in node), parsed.input_line
        node[name] = parsed.value()
    return changed


# --- the encoder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["whisper", "whisper.pt"])
def test_another_number_of_heads_of_the_encoder_is_refused(folder: Path, file: str):
    width, ffn = (32, 48) if file == "whisper" else (24, 96)
    encoder = {**ENCODER, "width": width, "ffn": ffn}
    check(model_of(encoder=encoder), encoder=folder / file)
    message, overrides = refusal(model_of(encoder=encoder | {"n_heads": 4}), encoder=folder / file)
    assert "model.encoder.n_heads is 4, but it was 2 in training" in message
    assert overrides == ["model.encoder.n_heads=2"]


def test_another_size_is_refused_with_the_shape_and_the_key(folder: Path):
    message, overrides = refusal(model_of(encoder=ENCODER | {"n_mels": 80}), encoder=folder / "whisper")
    assert overrides == ["model.encoder.n_mels=16"]
    assert "conv1.weight has shape (32, 16, 3), expected (32, 80, 3)" in message
    _, overrides = refusal(model_of(encoder=ENCODER | {"n_layers": 1, "ffn": 128}), encoder=folder / "whisper")
    assert overrides == ["model.encoder.n_layers=2", "model.encoder.ffn=48"]


def test_the_end_of_a_clip_may_differ(folder: Path):
    """Qwen-Audio starts from Whisper, but pads clips with zeros."""
    check(model_of(encoder=ENCODER | {"clip_end": "zero"}), encoder=folder / "whisper")


# --- the language model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "field", "value", "expected"),
    [
        ("qwen2", "rope_theta", 100_000, "model.llm.config.rope_theta=5000"),
        ("qwen2", "rms_norm_eps", 1e-5, "model.llm.config.rms_norm_eps=1e-06"),
        ("qwen2", "num_attention_heads", 2, "model.llm.config.num_attention_heads=4"),
        ("qwen2", "num_key_value_heads", 1, "model.llm.config.num_key_value_heads=2"),
        ("qwen2", "tie_word_embeddings", True, "model.llm.config.tie_word_embeddings=false"),
        ("qwen2", "hidden_act", "gelu", "model.llm.config.hidden_act=silu"),
        ("qwen2", "hidden_size", 64, "model.llm.config.hidden_size=48"),
        ("llama", "attention_bias", True, "model.llm.config.attention_bias=false"),
        ("llama", "mlp_bias", True, "model.llm.config.mlp_bias=false"),
        ("llama", "head_dim", 24, "model.llm.config.head_dim=12"),
        ("mistral", "sliding_window", 8, "model.llm.config.sliding_window=4096"),
    ],
)
def test_another_setting_of_the_language_model_is_refused(
    folder: Path, family: str, field: str, value: Any, expected: str
):
    config = llm_config(folder / family)
    if field == "rope_theta":  # as in the configs of auris
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    check(model_of(llm=config), llm=folder / family)
    message, overrides = refusal(model_of(llm=config | {field: value}), llm=folder / family)
    assert expected in overrides
    assert f"model.llm.config.{field} is" in message and "in training" in message


def test_another_scaling_of_the_rotary_embedding_is_refused(folder: Path, tmp_path: Path):
    config = llm_config(folder / "qwen2")
    theta = config.pop("rope_parameters")["rope_theta"]
    scaling = {"rope_type": "linear", "factor": 2.0}
    _, overrides = refusal(
        model_of(llm={**config, "rope_theta": theta, "rope_parameters": scaling}), llm=folder / "qwen2"
    )
    assert overrides == ["model.llm.config.rope_parameters={rope_type:default}"]
    nested = {"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}
    _, overrides = refusal(model_of(llm=config | nested), llm=folder / "qwen2")
    assert overrides == ["model.llm.config.rope_parameters.rope_theta=5000"]
    scaled = shutil.copytree(folder / "qwen2", tmp_path / "scaled")
    published.edit_json(scaled / "config.json", "rope_parameters", value={"rope_theta": theta, **scaling})
    _, overrides = refusal(model_of(llm=config | {"rope_theta": theta}), llm=scaled)
    assert overrides == ["+model.llm.config.rope_parameters={rope_type:linear,factor:2}"]


def test_sliding_attention_in_other_layers_is_refused(folder: Path, tmp_path: Path):
    sliding = shutil.copytree(folder / "qwen2", tmp_path / "sliding")
    changes = {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}
    for name, value in changes.items():
        published.edit_json(sliding / "config.json", name, value=value)
    check(model_of(llm=llm_config(sliding)), llm=sliding)
    message, _ = refusal(model_of(llm=llm_config(folder / "qwen2")), llm=sliding)
    assert "layer_types=[full_attention,sliding_attention]" in message
    shallow = llm_config(folder / "qwen2", num_hidden_layers=1)
    del shallow["layer_types"]  # has one entry per layer
    _, overrides = refusal(model_of(llm=shallow), llm=folder / "qwen2")
    assert overrides == ["model.llm.config.num_hidden_layers=2"]


def test_settings_without_effect_on_the_function_may_differ(folder: Path):
    changes = {"max_position_embeddings": 99, "attention_dropout": 0.1, "use_cache": False, "initializer_range": 1.0}
    check(model_of(llm=llm_config(folder / "qwen2", **changes, rms_norm_eps=9.99999997475e-07)), llm=folder / "qwen2")


def test_another_family_is_refused(folder: Path):
    with pytest.raises(
        UserError, match=r"model_type is qwen2, but it was mistral .*: leave out the overrides of model\.llm"
    ):
        check(model_of(), llm=folder / "mistral")


# --- complete models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    [
        ("encoder", {"n_heads": 1}, "model.encoder.n_heads=2"),
        ("pooling", {"k": 4}, "model.pooling.k=2"),
        (
            "projector",
            {"_target_": "auris.model.projector.MLP"},
            "model.projector._target_=auris.model.projector.Linear",
        ),
        (
            "boundary",
            {"_target_": "auris.model.boundary.Learned"},
            "model.boundary._target_=auris.model.boundary.Tokens",
        ),
    ],
)
def test_a_run_with_other_settings_is_refused(folder: Path, part: str, change: dict, expected: str):
    model = model_of()
    check(model, checkpoint=folder / "run")
    assert refusal(model | {part: model[part] | change}, checkpoint=folder / "run")[1] == [expected]


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    [
        ("encoder", {"width": 32}, "model.encoder.width=16"),
        ("llm", {"hidden_size": 32}, "model.llm.config.hidden_size=16"),
        ("pooling", {"_target_": "auris.model.pooling.Stack"}, "model.pooling._target_=auris.model.pooling.Mean"),
    ],
)
def test_a_projector_for_other_widths_is_refused(folder: Path, part: str, change: dict, expected: str):
    model = model_of()
    section = model["llm"]["config"] if part == "llm" else model[part]
    section |= change
    message, overrides = refusal(model, projector=folder / "run")
    assert "projector.weight has shape (16, 16), expected" in message and overrides == [expected]


def test_a_run_with_another_language_model_is_refused(folder: Path):
    llm = model_of()["llm"]["config"] | {"rope_theta": 500}
    assert refusal(model_of(llm=llm), checkpoint=folder / "run")[1] == ["model.llm.config.rope_theta=10000"]
    check(model_of(llm=llm), encoder=folder / "run")  # only the settings of a loaded part count


def test_a_published_model_is_compared_with_its_config(folder: Path):
    parts = identify(folder / "qwen2_audio").model
    model = model_of(encoder=ENCODER, llm=parts["llm"]["config"]) | {"vocab_rows": parts["vocab_rows"]}
    check(model, checkpoint=folder / "qwen2_audio")
    model["llm"]["config"] = model["llm"]["config"] | {"rms_norm_eps": 0.1}
    assert refusal(model, checkpoint=folder / "qwen2_audio")[1] == ["model.llm.config.rms_norm_eps=1e-06"]


@pytest.mark.parametrize("system", ["qwen_audio", "qwen2_audio"])
def test_both_systems_compute_with_the_tiny_models_from_which_they_start(system: str):
    encoder = {"qwen_audio": "whisper_v2", "qwen2_audio": "whisper_v3"}[system]
    stages = {"encoder": ["experiment=encoder_ctc", f"model/encoder={encoder}"], "llm": ["experiment=llm_text"]}
    model = auris_config.resolve(compose_once([f"experiment={system}_pretrain", "scale=tiny"]))["model"]
    net = auris_config.build_net({"model": model}, SimpleNamespace(size=300))
    for part, overrides in stages.items():
        node = auris_config.resolve(compose_once([*overrides, "scale=tiny"]))["model"][part]
        assert list(find_differences(part, node, model, net)) == []
