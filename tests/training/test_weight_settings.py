"""Initial weights set the sizes of the parts that they fill, and the tokenizer. What the user types is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from auris import cli, config
from auris.errors import UserError
from auris.files import read_yaml
from auris.text import byte_level
from auris.text.tokenizer import Tokenizer
from auris.training import run as train
from auris.training import studies, weight_settings
from auris.training.initial_weights import find_initial_weights
from auris.training.weight_settings import adopt_settings, find_sources
from support import published
from support.manifests import speech_rows, write_manifest
from support.recipes import compose_once
from support.runs import ROOT, fit

pytestmark = pytest.mark.usefixtures("single_thread")

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA_2 = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"


def language_model(path: Path, *, n_rows: int | None = None, chat_template: str | None = CHATML) -> Path:
    """Write a Llama with a tokenizer that has no audio tokens, as SmolLM2 has it."""
    vocabulary = PreTrainedTokenizerFast(tokenizer_object=byte_level.train(["the cat sat"], vocab_size=260))
    vocabulary.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]})
    vocabulary.chat_template = chat_template
    vocabulary.save_pretrained(path)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=n_rows or len(vocabulary), **published.LLM)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an encoder, a language model, a run of both sizes, and two spoken rows."""
    folder = tmp_path_factory.mktemp("weights")
    published.whisper(folder / "whisper")
    language_model(folder / "llama")
    published.run(folder / "run", "model.encoder.n_mels=20", "model.llm.config.rope_theta=77")
    write_manifest(folder / "rows.jsonl", speech_rows(folder, [1.0, 1.5, 0.5]))
    return folder


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def adopt(*overrides: str) -> dict[str, Any]:
    """Return the config of `auris train` with these overrides."""
    run_config = config.resolve(compose_once(overrides))
    return adopt_settings(run_config, find_sources(run_config), overrides)


def check(run_config: dict[str, Any]) -> None:
    """Check the initial weights against a net with the sizes of a config, as a run does at its start."""
    vocabulary = train.load_tokenizer(run_config)
    net = config.build_net(run_config, vocabulary)
    find_initial_weights(run_config, find_sources(run_config), net, vocabulary)


@pytest.mark.parametrize("system", ["qwen_audio", "qwen2_audio"])
@pytest.mark.parametrize("scale", ["tiny", "base", "full"])
def test_weights_set_sizes_and_tokenizer_at_each_scale(folder: Path, system: str, scale: str):
    weights = [f"weights.encoder={folder}/whisper", f"weights.llm={folder}/llama"]
    run_config = adopt(f"experiment={system}_pretrain", f"scale={scale}", "data/augment=null", *weights)
    sizes = {"n_mels": 16, "width": 32, "n_layers": 2, "n_heads": 2, "ffn": 48}
    assert run_config["model"]["encoder"].items() >= sizes.items()
    clip_end = {"qwen_audio": "zero", "qwen2_audio": "silence"}[system]
    assert run_config["model"]["encoder"]["clip_end"] == clip_end  # belongs to the system, not to the weights
    assert run_config["model"]["llm"]["config"] == json.loads((folder / "llama/config.json").read_text())
    assert run_config["model"]["llm"]["train_length"] is None  # a rule of Qwen-7B
    assert run_config["tokenizer"] == str(folder / "llama")
    check(run_config)


def test_weights_set_only_the_parts_that_they_fill(folder: Path):
    run_config, default = adopt("scale=tiny", f"weights.encoder={folder}/whisper"), adopt("scale=tiny")
    assert run_config["model"]["llm"] == default["model"]["llm"] and run_config["tokenizer"] == default["tokenizer"]
    run_config = adopt("scale=tiny", f"weights.llm={folder}/llama")
    assert run_config["model"]["encoder"] == default["model"]["encoder"]
    assert run_config["model"]["llm"] != default["model"]["llm"]
    projector_only = adopt("scale=tiny", f"weights.projector={folder}/run")
    assert {**projector_only, "weights": default["weights"]} == default


@pytest.mark.parametrize("key", ["checkpoint", "weights.llm"])
def test_a_run_sets_the_sizes_of_its_recipe_and_its_tokenizer(folder: Path, key: str):
    run_config = adopt("experiment=qwen2_audio_sft", "scale=tiny", f"{key}={folder}/run")
    trained = read_yaml(folder / "run/recipe.yaml")["model"]
    assert run_config["model"]["llm"]["config"] == trained["llm"]["config"]
    assert run_config["model"]["llm"]["config"]["rope_theta"] == 77
    assert run_config["tokenizer"] == str(folder / "run/tokenizer")
    assert (run_config["model"]["encoder"] == trained["encoder"]) == (key == "checkpoint")
    check(run_config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.encoder.n_heads=4",
            "model.encoder.n_heads is 4, but it was 2 in training: set model.encoder.n_h",
        ),
        ("model.encoder.n_mels=80", "model.encoder.n_mels is 80, but it was 16 in training.*: set model.enc"),
        ("model.llm.config.rms_norm_eps=1e-3", "rms_norm_eps is 0.001, but it was 1e-06 in .*: set model.llm.config"),
        ("model.llm.config.rope_theta=7", "rope_theta is 7, but it was 5000 in training: set model.llm.config.rope"),
        ("model/encoder=whisper_v3", "model.encoder.n_mels is 128, but it was 16 in training"),
        ("model/llm=tiny", "model.llm.config.model_type is qwen2, but it was llama in training"),
    ],
)
def test_what_the_user_types_is_kept_and_refused_if_it_differs(folder: Path, override: str, message: str):
    weights = [f"weights.encoder={folder}/whisper", f"weights.llm={folder}/llama"]
    with pytest.raises(UserError, match=f"does not fit the model: .*{message}") as error:
        check(adopt("scale=tiny", *weights, override))
    assert "\n" not in str(error.value)


def test_the_user_may_type_what_the_weights_have(folder: Path):
    weights = [f"weights.encoder={folder}/whisper", f"weights.llm={folder}/llama"]
    typed = ["model.encoder.width=32", "model.llm.config.rope_theta=5000", f"tokenizer={folder}/llama"]
    check(adopt("scale=tiny", *weights, *typed))


def test_another_setting_that_does_not_fit_the_adopted_sizes_is_refused(folder: Path):
    with pytest.raises(UserError, match=r"data.augment.freq_mask_param=27: expected .* model.encoder.n_mels=16\)"):
        adopt("scale=tiny", "data/augment=specaugment", f"weights.encoder={folder}/whisper")


def test_rows_of_the_embedding_beyond_the_tokens_are_kept(tmp_path: Path):
    language_model(tmp_path / "lm", n_rows=5000)
    run_config = adopt("scale=tiny", f"weights.llm={tmp_path}/lm")
    assert run_config["model"]["vocab_rows"] == 5000
    check(run_config)
    with pytest.raises(UserError, match="set model.vocab_rows=5000"):
        check(adopt("scale=tiny", f"weights.llm={tmp_path}/lm", "model.vocab_rows=4000"))


def test_the_tokens_of_chatml_are_those_of_the_vocabulary(folder: Path):
    vocabulary = train.load_tokenizer(adopt("experiment=qwen2_audio_sft", f"weights.llm={folder}/llama"))
    assert vocabulary.chat_format == "ChatML"
    assert [vocabulary.id(token) for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")] == [261, 262, 260]
    assert vocabulary.size == 263 + 3  # only the tokens around audio are new


def test_a_language_model_without_tokenizer_is_refused(folder: Path, tmp_path: Path):
    published.language_model(tmp_path / "lm")
    with pytest.raises(UserError, match="weights.llm=.*lm has no tokenizer: expected tokenizer.json .* or tokenizer="):
        adopt("scale=tiny", f"weights.llm={tmp_path}/lm")
    adopt("scale=tiny", f"weights.llm={tmp_path}/lm", f"tokenizer={folder}/llama")


# --- weights of other families ------------------------------------------------------------------------------------


def wav2vec2(path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    features = {"conv_dim": (16,), "conv_stride": (5,), "conv_kernel": (10,), "num_feat_extract_layers": 1}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **features, **positions)).save_pretrained(path)


def t5(path: Path) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=30, **sizes)).save_pretrained(path)


def bert(path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertLMHeadModel(BertConfig(vocab_size=30, **sizes)).save_pretrained(path)


@pytest.mark.parametrize(
    ("part", "write", "message"),
    [
        ("encoder", wav2vec2, "^weights.encoder: .*model_type=wav2vec2, expected qwen2_audio, qwen, whisper, or a"),
        ("llm", t5, "^weights.llm: .*model_type=t5, expected qwen2_audio, qwen, whisper, or a causal language model"),
        ("llm", bert, "^bert has no decoder layers: choose a causal language model"),
        (
            "encoder",
            language_model,
            "weights.encoder=.* is a causal language.*: it has no encoder, expected weig",
        ),
        ("llm", published.whisper, "weights.llm=.* is Whisper .*: it has no llm, expected weights.encoder="),
    ],
)
def test_weights_of_another_family_are_refused(folder: Path, tmp_path: Path, part: str, write: Any, message: str):
    write(tmp_path / "other")
    with pytest.raises(UserError, match=message) as error:
        check(adopt("scale=base", f"weights.{part}={tmp_path}/other", f"tokenizer={folder}/llama"))
    assert "\n" not in str(error.value)


# --- whole runs ---------------------------------------------------------------------------------------------------


def smallest(folder: Path, runs: Path) -> list[str]:
    data = [f"data.{split}=[{folder}/rows.jsonl]" for split in ("train", "valid")]
    options = ["max_steps=2", "optim.warmup_steps=1", "data.rows_per_step=2", "max_new_tokens=2"]
    trainer = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.enable_progress_bar=false", "~logger"]
    folders = [f"runs_dir={runs}", f"data.cache_dir={runs}/cache"]
    return ["scale=tiny", "data=manifest", *data, *options, *trainer, *folders]


def test_a_run_records_the_sizes_and_is_the_same_run_when_started_again(folder: Path, tmp_path: Path):
    weights = [f"weights.encoder={folder}/whisper", f"weights.llm={folder}/llama"]
    command = ["train", "experiment=qwen2_audio_pretrain", *smallest(folder, tmp_path), *weights]
    assert cli.main([*command, "dry_run=true"]) == 0
    assert cli.main(command) == 0
    run_dir = tmp_path / "scratch/qwen2_audio_pretrain/seed_0"
    recipe = read_yaml(run_dir / "recipe.yaml")
    assert recipe["model"]["encoder"]["n_mels"] == 16 and recipe["model"]["llm"]["config"]["model_type"] == "llama"
    finished = (run_dir / "finished.json").stat()
    assert cli.main(command) == 0 and (run_dir / "finished.json").stat() == finished
    # The next stage needs no sizes either, and no longer the directories of the weights.
    again = [*smallest(folder, tmp_path), f"checkpoint={run_dir}", "arm=again", "dry_run=true"]
    assert cli.main(["train", "experiment=qwen2_audio_pretrain", *again]) == 0


def test_the_runs_of_a_study_have_the_sizes_of_the_weights_before_any_of_them_has_started(folder: Path):
    text = ["experiment=llm_text", "scale=base", f"weights.llm={folder}/llama"]
    pretrain = ["experiment=qwen2_audio_pretrain", "scale=base", f"weights.encoder={folder}/whisper"]
    arms = {
        "pretrain": {"overrides": [*pretrain, "data/augment=null"], "after": {"llm": "text"}},
        "sft": {"overrides": ["experiment=qwen2_audio_sft", "scale=base", "data/augment=null"], "after": "pretrain"},
    }
    study = {"study": "real", "seeds": [3], "stages": {"text": {"overrides": text}}, "arms": arms}
    jobs = {job.name: job for job in studies.plan_jobs(study)}
    llm_config = json.loads((folder / "llama/config.json").read_text())
    assert all(job.config["model"]["llm"]["config"] == llm_config for job in jobs.values())
    assert [jobs[name].config["model"]["encoder"]["n_mels"] for name in ("text", *arms)] == [80, 16, 16]
    tokenizers = [f"{folder}/llama", *(f"{jobs[name].run_dir}/tokenizer" for name in ("text", "pretrain"))]
    assert [jobs[name].config["tokenizer"] for name in ("text", *arms)] == tokenizers


@pytest.mark.parametrize(
    ("template", "report"), [(CHATML, None), (None, "is missing"), (LLAMA_2, "is not ChatML")], ids=str
)
def test_a_language_model_with_other_dialogues_is_reported_for_stages_of_dialogues(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str | None, report: str | None
):
    messages: list[str] = []
    monkeypatch.setattr(weight_settings, "rank_zero_info", messages.append)
    model = language_model(tmp_path / "lm", chat_template=template)
    train.build(adopt("experiment=qwen2_audio_pretrain", *smallest(folder, tmp_path), f"weights.llm={model}"))
    assert messages == []
    train.build(adopt("experiment=qwen2_audio_sft", *smallest(folder, tmp_path), f"weights.llm={model}"))
    assert len(messages) == (report is not None)
    assert all(f"weights.llm={model}: the chat template of its tokenizer {report}" in message for message in messages)


# --- real weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["qwen_audio", "qwen2_audio"])
def test_a_step_of_training_with_real_weights(
    whisper_base: Path, smollm2: Path, shared_data: Path, tmp_path: Path, system: str
):
    """Two rows of real speech. The frozen parts keep the stored weights; only the projector is trained."""
    rows = f"[{{path: {shared_data}/real/asterisk.test.jsonl, limit: 2}}]"
    run_config = adopt(
        f"experiment={system}_pretrain",
        *smallest(tmp_path, tmp_path),
        "scale=base",
        f"weights.encoder={whisper_base}",
        f"weights.llm={smollm2}",
        *(f"data.{split}={rows}" for split in ("train", "valid")),
        "trainable=[projector]",
        "max_steps=1",
        "optim.warmup_steps=0",
    )
    assert (run_config["model"]["encoder"]["n_mels"], run_config["model"]["encoder"]["width"]) == (80, 512)
    assert run_config["model"]["llm"]["config"]["num_hidden_layers"] == 30
    trainer = fit({**run_config, "callbacks": {}})
    assert trainer.global_step == 1
    net, loss = trainer.lightning_module.net, trainer.callback_metrics["train/loss"]
    assert loss.isfinite() and all(parameter.requires_grad for parameter in net.projector.parameters())
    for directory, name, tensor in (
        (whisper_base, "model.encoder.layers.5.fc1.weight", net.encoder.blocks[5].up.weight),
        (smollm2, "model.embed_tokens.weight", net.llm.get_input_embeddings().weight[:49152]),
    ):
        assert torch.equal(tensor, load_file(directory / "model.safetensors")[name].float())


def test_the_sizes_of_the_real_weights_are_those_of_the_scale(whisper_base: Path, smollm2: Path):
    plain = config.resolve(compose_once(["scale=base"]))
    vocabulary = Tokenizer.load(smollm2)
    nets = [
        config.build_net(run_config, vocabulary)
        for run_config in (plain, adopt("scale=base", f"weights.encoder={whisper_base}", f"weights.llm={smollm2}"))
    ]
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in nets]
    assert shapes[0] == shapes[1]
    assert [vocabulary.id(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    assert vocabulary.chat_format == "ChatML"
