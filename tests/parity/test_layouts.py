"""Layouts of published weights: names and shapes at full size, and lossless conversion in both directions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from auris import config as auris_config
from auris.model.audio_lm import AudioLM
from auris.model.weights import loading
from auris.model.weights.saving import export_tensors, write_sharded
from auris.model.weights.tensors import StateTensors, TensorFiles, TensorSource
from support import nets

# --- names and shapes at full size --------------------------------------------------------------------------------

D, H, FFN, MLP = 1280, 4096, 5120, 11008  # widths of the encoder and LLM, and of their feed-forward layers


def affine(name: str, *shape: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}


def qwen_audio_shapes() -> dict[str, tuple[int, ...]]:
    """Return the 259 + 490 tensors of QwenLM/Qwen-Audio: modeling_qwen.py and audio.py with the released config."""
    shapes = {"transformer.wte.weight": (155947, H), "lm_head.weight": (155947, H), "transformer.ln_f.weight": (H,)}
    for i in range(32):
        block = f"transformer.h.{i}"
        shapes |= affine(f"{block}.ln_1", H, bias=False) | affine(f"{block}.ln_2", H, bias=False)
        shapes |= affine(f"{block}.attn.c_attn", 3 * H, H) | affine(f"{block}.attn.c_proj", H, H, bias=False)
        shapes |= affine(f"{block}.mlp.w1", MLP, H, bias=False) | affine(f"{block}.mlp.w2", MLP, H, bias=False)
        shapes |= affine(f"{block}.mlp.c_proj", H, MLP, bias=False)
    audio = "transformer.audio"
    shapes |= {f"{audio}.positional_embedding": (1500, D), f"{audio}.audio_bos_eos_token.weight": (2, H)}
    shapes |= affine(f"{audio}.conv1", D, 80, 3) | affine(f"{audio}.conv2", D, D, 3)
    shapes |= affine(f"{audio}.ln_post", D) | affine(f"{audio}.proj", H, D)
    for i in range(32):
        block = f"{audio}.blocks.{i}"
        for part in ("query", "value", "out"):
            shapes |= affine(f"{block}.attn.{part}", D, D)
        shapes |= affine(f"{block}.attn.key", D, D, bias=False)
        shapes |= affine(f"{block}.attn_ln", D) | affine(f"{block}.mlp_ln", D)
        shapes |= affine(f"{block}.mlp.0", FFN, D) | affine(f"{block}.mlp.2", D, FFN)
    return shapes


def qwen2_audio_shapes() -> dict[str, tuple[int, ...]]:
    """Return the 876 tensors in the index of the released files. The position table is one of them."""
    shapes = {"audio_tower.embed_positions.weight": (1500, D)}
    shapes |= affine("audio_tower.conv1", D, 128, 3) | affine("audio_tower.conv2", D, D, 3)
    shapes |= affine("audio_tower.layer_norm", D) | affine("multi_modal_projector.linear", H, D)
    for i in range(32):
        block = f"audio_tower.layers.{i}"
        for part in ("q_proj", "v_proj", "out_proj"):
            shapes |= affine(f"{block}.self_attn.{part}", D, D)
        shapes |= affine(f"{block}.self_attn.k_proj", D, D, bias=False)
        shapes |= affine(f"{block}.self_attn_layer_norm", D) | affine(f"{block}.final_layer_norm", D)
        shapes |= affine(f"{block}.fc1", FFN, D) | affine(f"{block}.fc2", D, FFN)
    llm = "language_model"
    shapes |= affine(f"{llm}.model.embed_tokens", 156032, H, bias=False) | affine(f"{llm}.model.norm", H, bias=False)
    shapes |= affine(f"{llm}.lm_head", 156032, H, bias=False)
    for i in range(32):
        block = f"{llm}.model.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj"):
            shapes |= affine(f"{block}.self_attn.{part}", H, H)
        shapes |= affine(f"{block}.self_attn.o_proj", H, H, bias=False)
        for part in ("gate_proj", "up_proj"):
            shapes |= affine(f"{block}.mlp.{part}", MLP, H, bias=False)
        shapes |= affine(f"{block}.mlp.down_proj", H, MLP, bias=False)
        shapes |= affine(f"{block}.input_layernorm", H, bias=False)
        shapes |= affine(f"{block}.post_attention_layernorm", H, bias=False)
    return shapes


@pytest.mark.parametrize(("system", "shapes"), [("qwen_audio", qwen_audio_shapes), ("qwen2_audio", qwen2_audio_shapes)])
def test_the_full_scale_has_the_names_and_shapes_of_the_release(system: str, shapes):
    run_config = auris_config.resolve(auris_config.compose([f"experiment={system}_pretrain", "scale=full"]))
    net = auris_config.build_net(run_config, SimpleNamespace(size=5_000))  # on the meta device
    exported = {name: tuple(tensor.shape) for name, tensor in export_tensors(net.state_dict(), system)}
    assert len(exported) == {"qwen_audio": 749, "qwen2_audio": 876}[system]
    assert exported == shapes()


# --- lossless conversion ------------------------------------------------------------------------------------------


def assert_equal(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(state) == set(expected)
    assert [name for name in expected if state[name].dtype != expected[name].dtype] == []
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []


def tensors(source: TensorSource) -> dict[str, Tensor]:
    return {name: source.read(name) for name in sorted(source.keys())}


@pytest.fixture
def net() -> AudioLM:
    torch.manual_seed(1)
    return nets.build()


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.normal_()
    return model.eval()


def encoder_sizes() -> dict[str, int]:
    return {
        "num_mel_bins": nets.N_MELS,
        "d_model": nets.WIDTH,
        "encoder_layers": 2,
        "encoder_attention_heads": nets.N_HEADS,
        "encoder_ffn_dim": nets.FFN,
    }


@pytest.fixture(scope="module")
def qwen2_audio() -> Qwen2AudioForConditionalGeneration:
    config = Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", **encoder_sizes()},
        text_config={**nets.QWEN2, "num_hidden_layers": 2, "vocab_size": 41},
    )
    return randomise(Qwen2AudioForConditionalGeneration(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_loading_and_exporting_qwen2_audio_files_is_lossless(
    qwen2_audio: Qwen2AudioForConditionalGeneration, net: AudioLM, tmp_path: Path, dtype: torch.dtype, shard_size: str
):
    """Load files as transformers writes them (with the names of the hub), export the net, and compare the files."""
    qwen2_audio.to(dtype).save_pretrained(tmp_path / "transformers", max_shard_size=shard_size)
    qwen2_audio.float()
    source = TensorFiles.open(tmp_path / "transformers")
    stored = tensors(source)
    assert {name.split(".")[0] for name in stored} == {"audio_tower", "multi_modal_projector", "language_model"}
    loading.load(net.to(dtype), source, layout="qwen2_audio", label="transformers")
    out = tmp_path / "auris"
    write_sharded(export_tensors(net.state_dict(), "qwen2_audio"), out, max_shard_bytes=20_000)
    assert_equal(tensors(TensorFiles.open(out)), stored)


def test_transformers_loads_our_export(qwen2_audio: Qwen2AudioForConditionalGeneration, net: AudioLM, tmp_path: Path):
    write_sharded(export_tensors(net.state_dict(), "qwen2_audio"), tmp_path, max_shard_bytes=20_000)
    qwen2_audio.config.save_pretrained(tmp_path)
    reference, loading_info = Qwen2AudioForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading_info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    net_from_reference = nets.build()
    loading.load(net_from_reference, StateTensors(reference.state_dict()), layout="qwen2_audio", label="transformers")
    assert_equal(net_from_reference.state_dict(), net.state_dict())


def test_names_of_a_transformers_model_in_memory_are_read(
    qwen2_audio: Qwen2AudioForConditionalGeneration, net: AudioLM, tmp_path: Path
):
    state = qwen2_audio.state_dict()
    assert "model.audio_tower.conv1.weight" in state and "lm_head.weight" in state
    loading.load(net, StateTensors(state), layout="qwen2_audio", label="memory")
    qwen2_audio.save_pretrained(tmp_path)
    net_from_files = nets.build()
    loading.load(net_from_files, TensorFiles.open(tmp_path), layout="qwen2_audio", label="files")
    assert_equal(net.state_dict(), net_from_files.state_dict())


def rename_to_qwen_audio(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors to the released names, by a mapping written by hand from the released code."""
    renamed = {}
    for name, tensor in state.items():
        llm = re.fullmatch(r"llm\.model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if llm and llm[2] == "self_attn.q_proj":
            key, value = (state[name.replace("q_proj", part)] for part in ("k_proj", "v_proj"))
            renamed[f"transformer.h.{llm[1]}.attn.c_attn.{llm[3]}"] = torch.cat([tensor, key, value])
        elif llm and llm[2] not in ("self_attn.k_proj", "self_attn.v_proj"):
            part = {
                "input_layernorm": "ln_1",
                "self_attn.o_proj": "attn.c_proj",
                "post_attention_layernorm": "ln_2",
                "mlp.gate_proj": "mlp.w2",
                "mlp.up_proj": "mlp.w1",
                "mlp.down_proj": "mlp.c_proj",
            }[llm[2]]
            renamed[f"transformer.h.{llm[1]}.{part}.{llm[3]}"] = tensor
        elif not llm:
            for old, new in (
                (r"llm\.model\.embed_tokens", "transformer.wte"),
                (r"llm\.model\.norm", "transformer.ln_f"),
                (r"llm\.lm_head", "lm_head"),
                ("boundary", "transformer.audio.audio_bos_eos_token"),
                ("projector", "transformer.audio.proj"),
                (r"encoder\.positions", "transformer.audio.positional_embedding"),
                (r"encoder\.norm", "transformer.audio.ln_post"),
                (r"\.attention_norm", ".attn_ln"),
                (r"\.mlp_norm", ".mlp_ln"),
                (r"\.(query|key|value|out)\.", r".attn.\1."),
                (r"\.up\.", ".mlp.0."),
                (r"\.down\.", ".mlp.2."),
                (r"^encoder\.", "transformer.audio."),
            ):
                name = re.sub(old, new, name)
            renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_and_exporting_qwen_audio_tensors_is_lossless(tmp_path: Path, dtype: torch.dtype):
    torch.manual_seed(0)
    source_net, net = nets.build("qwen_audio").to(dtype), nets.build("qwen_audio").to(dtype)
    released = rename_to_qwen_audio(source_net.state_dict())
    write_sharded(released.items(), tmp_path, max_shard_bytes=20_000)
    source = TensorFiles.open(tmp_path)
    loading.load(net, source, layout="qwen_audio", label="transformers")
    assert_equal(net.state_dict(), source_net.state_dict())
    assert_equal(dict(export_tensors(net.state_dict(), "qwen_audio")), released)


def test_qwen_7b_is_loaded_as_a_language_model_only():
    """Qwen-Audio starts from Qwen-7B, which has the same tensors except the audio module, and fewer vocabulary rows."""
    torch.manual_seed(0)
    source_net, net = nets.build("qwen_audio", vocab=30), nets.build("qwen_audio")
    released = rename_to_qwen_audio({n: t for n, t in source_net.state_dict().items() if n.startswith("llm.")})
    loading.load(net, StateTensors(released), layout="qwen_audio", parts=["llm"], label="weights.llm=qwen")
    assert torch.equal(net.llm.lm_head.weight[:30], source_net.llm.lm_head.weight)
    assert torch.equal(
        net.llm.model.layers[0].self_attn.k_proj.bias, source_net.llm.model.layers[0].self_attn.k_proj.bias
    )


def test_a_model_with_a_part_that_the_layout_lacks_is_not_exported():
    state = nets.build("qwen_audio").state_dict()
    with pytest.raises(ValueError, match="no counterpart in the qwen2_audio layout: boundary.weight$"):
        list(export_tensors(state, "qwen2_audio"))


# --- parts of other models ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whisper() -> WhisperForConditionalGeneration:
    small = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 20}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    return randomise(WhisperForConditionalGeneration(WhisperConfig(**encoder_sizes(), **small, **tokens)))


def load_encoder(source: TensorSource, layout: str) -> dict[str, Tensor]:
    """Return the encoder's tensors after a load, and check that all other tensors are unchanged."""
    net = nets.build()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    loading.load(net, source, layout=layout, label="whisper")
    other_names = {name for name in before if not name.startswith("encoder.")}
    assert_equal({n: net.state_dict()[n] for n in other_names}, {n: before[n] for n in other_names})
    return net.encoder.state_dict()


@pytest.mark.parametrize("has_head", [True, False])
def test_the_whisper_encoder_is_read_from_transformers_files(
    whisper: WhisperForConditionalGeneration, tmp_path: Path, has_head: bool
):
    (whisper if has_head else whisper.model).save_pretrained(tmp_path)
    source = TensorFiles.open(tmp_path)
    assert any(name.startswith("model.decoder." if has_head else "decoder.") for name in tensors(source))
    encoder = load_encoder(source, "whisper")
    reference = whisper.model.encoder
    assert len(encoder) == len(reference.state_dict())
    last = reference.layers[1]
    for name, tensor in {
        "conv2.bias": reference.conv2.bias,
        "positions": reference.embed_positions.weight,
        "blocks.1.attention_norm.weight": last.self_attn_layer_norm.weight,
        "blocks.1.query.bias": last.self_attn.q_proj.bias,
        "blocks.1.key.weight": last.self_attn.k_proj.weight,
        "blocks.1.value.weight": last.self_attn.v_proj.weight,
        "blocks.1.out.weight": last.self_attn.out_proj.weight,
        "blocks.1.mlp_norm.weight": last.final_layer_norm.weight,
        "blocks.1.up.weight": last.fc1.weight,
        "blocks.1.down.weight": last.fc2.weight,
        "norm.bias": reference.layer_norm.bias,
    }.items():
        assert torch.equal(encoder[name], tensor), name


# From transformers' convert_openai_to_hf.py: parts of openai's names and the parts of transformers' names for them.
OPENAI = {
    "blocks": "layers",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
    ".attn.query": ".self_attn.q_proj",
    ".attn.key": ".self_attn.k_proj",
    ".attn.value": ".self_attn.v_proj",
    ".attn_ln": ".self_attn_layer_norm",
    ".attn.out": ".self_attn.out_proj",
    "encoder.ln_post": "encoder.layer_norm",
    "encoder.positional_embedding": "encoder.embed_positions.weight",
}


def test_openai_names_and_transformers_names_give_the_same_encoder(
    whisper: WhisperForConditionalGeneration, tmp_path: Path
):
    def openai_name(name: str) -> str:
        for openai_part, transformers_part in OPENAI.items():
            name = name.replace(transformers_part, openai_part)
        return name

    model: WhisperModel = whisper.model
    state = {openai_name(f"encoder.{name}"): tensor for name, tensor in model.encoder.state_dict().items()}
    assert {"encoder.blocks.0.attn.query.weight", "encoder.positional_embedding", "encoder.ln_post.bias"} <= set(state)
    file = tmp_path / "tiny.pt"
    torch.save({"model_state_dict": {**state, "decoder.token_embedding.weight": torch.zeros(2, 2)}}, file)
    content = torch.load(file, weights_only=True, mmap=True)["model_state_dict"]
    assert_equal(
        load_encoder(StateTensors(content), "whisper_openai"),
        load_encoder(StateTensors(model.state_dict()), "whisper"),
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_language_model_is_read_from_its_directory(tmp_path: Path, family: str, tied: bool):
    """The language model has 30 vocabulary rows and ours has 41. Files with tied embeddings lack the head."""
    torch.manual_seed(0)
    net = nets.build(model_type=family, tie_word_embeddings=tied)
    config = type(net.llm.config)(**{**net.llm.config.to_dict(), "vocab_size": 30})
    reference = randomise(AutoModelForCausalLM.from_config(config))
    reference.save_pretrained(tmp_path, max_shard_size="10KB")
    source = TensorFiles.open(tmp_path)
    assert ("lm_head.weight" in tensors(source)) == (not tied)
    loading.load(net, source, layout="causal_lm", label="weights.llm=transformers")
    expected = reference.state_dict()
    for name, tensor in net.llm.state_dict().items():
        assert torch.equal(tensor[: len(expected[name])], expected[name]), name
    assert net.llm.lm_head.weight.shape == (41, 32)


# --- the golden files ---------------------------------------------------------------------------------------------


def test_loading_and_exporting_the_golden_model_is_lossless(shared_data: Path):
    """The released code wrote these weights. Their outputs are tested in test_qwen_audio."""
    golden = shared_data / "golden/qwen_audio_v1"
    config = json.loads((golden / "model_config.json").read_text())
    audio, hidden = config["audio"], config["hidden_size"]
    node = {
        "_target_": "auris.model.audio_lm.AudioLM",
        "_partial_": True,
        "encoder": {
            "_target_": "auris.model.encoder.Encoder",
            "n_mels": audio["n_mels"],
            "width": audio["n_state"],
            "n_layers": audio["n_layer"],
            "n_heads": audio["n_head"],
            "clip_end": "zero",
        },
        "pooling": {"_target_": "auris.model.pooling.Mean", "_partial_": True, "k": 2},
        "projector": {"_target_": "auris.model.projector.Linear", "_partial_": True},
        "boundary": {"_target_": "auris.model.boundary.Learned", "_partial_": True},
        "llm": {
            "_target_": "auris.model.llm.build_llm",
            "_partial_": True,
            "config": {
                **nets.QWEN2,
                "hidden_size": hidden,
                "intermediate_size": config["intermediate_size"] // 2,
                "num_hidden_layers": config["num_hidden_layers"],
            },
        },
    }
    net = auris_config.build(node)(vocab_size=50)
    released = load_file(golden / "model.safetensors")
    assert len(released) == 65
    tables = {name: torch.randn(50, hidden) for name in ("transformer.wte.weight", "lm_head.weight")}
    loading.load(net, StateTensors(released | tables), layout="qwen_audio", label="golden")
    assert_equal(dict(export_tensors(net.state_dict(), "qwen_audio")), released | tables)
    q, k, v = released["transformer.h.2.attn.c_attn.weight"].split(hidden)
    attention, mlp = net.llm.model.layers[2].self_attn, net.llm.model.layers[2].mlp
    assert torch.equal(attention.q_proj.weight, q) and torch.equal(attention.k_proj.weight, k)
    assert torch.equal(attention.v_proj.weight, v)
    assert torch.equal(mlp.gate_proj.weight, released["transformer.h.2.mlp.w2.weight"])
    released_without_tables = load_file(golden / "model.safetensors")
    with pytest.raises(ValueError, match=r"transformer.wte.weight is missing; lm_head.weight is missing$"):
        loading.load(net, StateTensors(released_without_tables), layout="qwen_audio", label="golden")
