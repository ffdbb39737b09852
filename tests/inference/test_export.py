"""Exports: transformers computes the same results, and exporting a published model restores its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

import auris
from auris import audio, cli
from auris import config as auris_config
from auris.inference.audio_model import AudioModel
from auris.inference.export import choose_format, export
from auris.inference.export_formats import write_ranks
from auris.model.weights.layouts import LAYOUTS
from auris.text.tokenizer import Tokenizer
from support import published, vocabularies
from support.manifests import tokenizer, write_manifest, write_wave

PROMPT = "Detect the language and recognize the speech: <|en|>"
CLIP_TOKENS = "<|audio_bos|><|AUDIO|><|audio_eos|>"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_wave(folder / f"{n}.wav", seconds) for n, seconds in enumerate([0.777, 1.3])]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def tensors(path: Path) -> dict[str, Tensor]:
    return {name: t for file in sorted(path.glob("*.safetensors")) for name, t in load_file(file).items()}


def assert_identical(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name


@torch.no_grad()
def assert_transformers_computes_the_same(path: Path, model: AudioModel, files: list[Path]) -> None:
    """Check that transformers, given only the directory, computes equal logits (to 1e-5) and greedy tokens."""
    reference, loading_info = Qwen2AudioForConditionalGeneration.from_pretrained(path, output_loading_info=True)
    assert not any(loading_info.values()), loading_info
    processor = AutoProcessor.from_pretrained(path)
    processor.tokenizer.padding_side = "left"
    waves = [audio.read(file) for file in files]
    processor_inputs = {
        "text": [CLIP_TOKENS + PROMPT] * len(files),
        "audio": waves,
        "sampling_rate": 16_000,
        "padding": True,
    }
    inputs = processor(**processor_inputs, return_tensors="pt")
    valid = inputs["attention_mask"].bool()
    pack = model.pack([model.prompt.raw(PROMPT, 1)] * len(files), [[file] for file in files])
    assert torch.equal(inputs["input_ids"][valid], pack["ids"])
    expected = reference.eval()(**inputs).logits[valid]
    torch.testing.assert_close(model.net.logits(pack), expected, atol=1e-5, rtol=0)
    new_ids = reference.generate(**inputs, max_new_tokens=8)[:, valid.shape[1] :]
    expected_answers = processor.batch_decode(new_ids, skip_special_tokens=True)
    assert model.generate(files, PROMPT, max_new_tokens=8) == expected_answers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exporting_a_published_model_restores_its_files(tmp_path: Path, dtype: torch.dtype, offline: None):
    published.qwen2_audio(tmp_path / "model", dtype=dtype, shard="300KB")
    assert export(tmp_path / "model", tmp_path / "out", shard_bytes=200_000) == ("qwen2_audio", [])
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    # transformers 5.17 to 5.22 writes other names than the release.
    released = {LAYOUTS["qwen2_audio"].spell(name): tensor for name, tensor in tensors(tmp_path / "model").items()}
    assert_identical(released, tensors(tmp_path / "out"))
    before, after = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("model", "out"))
    for section in ("audio_config", "text_config"):
        values = {name: value for name, value in after[section].items() if name in before[section]}
        assert values.keys() == before[section].keys() and values | {"initializer_range": 0} == before[section] | {
            "initializer_range": 0
        }
    assert after["audio_token_index"] == before["audio_token_index"] and after["dtype"] == before["dtype"]
    assert after["text_config"]["rope_theta"] == published.LLM["rope_theta"]
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation == json.loads((tmp_path / "model/generation_config.json").read_text())


@pytest.mark.parametrize("vocabulary", [tokenizer, lambda: Tokenizer(vocabularies.qwen2_audio())])
def test_transformers_loads_a_published_model_that_auris_exported_again(
    tmp_path: Path, files: list[Path], vocabulary, offline: None
):
    published.qwen2_audio(tmp_path / "model", vocabulary=vocabulary())
    export(tmp_path / "model", tmp_path / "out")
    assert_transformers_computes_the_same(tmp_path / "out", auris.load(tmp_path / "model"), files)
    assert (tmp_path / "out/preprocessor_config.json").is_file()  # read by transformers before version 5


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_an_exported_run(tmp_path: Path, files: list[Path], tied: bool, offline: None):
    published.run(tmp_path / "run", f"model.llm.config.tie_word_embeddings={str(tied).lower()}")
    format_name, reasons = export(tmp_path / "run", tmp_path / "out")
    assert (format_name, reasons) == ("qwen2_audio", [])
    model = auris.load(tmp_path / "run")
    assert (model.net.llm.lm_head.weight is model.net.llm.model.embed_tokens.weight) == tied
    assert_transformers_computes_the_same(tmp_path / "out", model, files)
    assert auris.load(tmp_path / "out").generate(files, PROMPT, max_new_tokens=8) == model.generate(
        files, PROMPT, max_new_tokens=8
    )


@pytest.mark.slow
def test_transformers_loads_an_exported_run_with_adapters(tmp_path: Path, files: list[Path], offline: None):
    overrides = ["trainable=[projector,llm.new_tokens,llm.lora]", "lora.rank=2"]
    published.run(tmp_path / "run", *overrides)
    published.run(tmp_path / "plain")
    assert export(tmp_path / "run", tmp_path / "out") == ("qwen2_audio", [])
    assert_transformers_computes_the_same(tmp_path / "out", auris.load(tmp_path / "run"), files)
    export(tmp_path / "plain", tmp_path / "plain-out")
    merged, plain = tensors(tmp_path / "out"), tensors(tmp_path / "plain-out")
    changed = {name.rpartition("layers.")[2] for name in plain if not torch.equal(merged[name], plain[name])}
    layers = {f"0.self_attn.{layer}_proj.weight" for layer in "qkvo"}
    tables = {name for name in plain if name.endswith(("embed_tokens.weight", "lm_head.weight"))}
    assert merged.keys() == plain.keys() and changed == layers | tables


def test_an_exported_chat_model_stays_a_chat_model(tmp_path: Path, files: list[Path], offline: None):
    end, im_end = tokenizer().end, tokenizer().id("<|im_end|>")
    question = [{"type": "audio", "audio": files[0]}, {"type": "text", "text": "what?"}]
    messages = [{"role": "user", "content": question}]
    for overrides, eos in ((["prompt=chat_v2"], [end, im_end]), (["prompt=chat_v1", "model=qwen_audio"], end)):
        name = overrides[0].partition("=")[2]
        published.run(tmp_path / name, "objective=sft", "data.view=chat", *overrides)
        export(tmp_path / name, tmp_path / f"{name}-out")
        config = json.loads((tmp_path / f"{name}-out/generation_config.json").read_text())
        assert (config["chat_format"], config["eos_token_id"]) == ("chatml", eos)
        model, exported = (auris.load(tmp_path / path) for path in (name, f"{name}-out"))
        assert exported.is_chat and exported.settings(chat=True).stop == model.settings(chat=True).stop
        assert exported.chat(messages, max_new_tokens=8) == model.chat(messages, max_new_tokens=8)


def test_weights_can_be_exported_in_bfloat16(tmp_path: Path):
    published.run(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", dtype=torch.bfloat16)
    written, net = tensors(tmp_path / "out"), auris.load(tmp_path / "run").net
    assert torch.equal(written["language_model.lm_head.weight"], net.llm.lm_head.weight.bfloat16())
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model/pooling=conv"], "pooling is Conv, must be Mean"),
        (["model/pooling=none"], "pooling is Stack, must be Mean"),
        (["model.pooling.k=4"], "pooling.k is 4, must be 2"),
        (["model/projector=mlp"], "projector is MLP, must be Linear"),
        (["model/boundary=learned"], "boundary is Learned, must be Tokens"),
        (["model.encoder.clip_end=zero"], "encoder.clip_end is zero, must be silence"),
        (["+model.encoder.max_positions=1400"], "encoder.max_positions is 1400, must be 1500"),
        (["model.llm.train_length=2048"], "llm.train_length is 2048, must be None"),
        (["model.llm.config.model_type=llama"], "llm.config.model_type is llama, must be qwen2"),
    ],
)
def test_settings_that_transformers_does_not_support_are_named(overrides: list[str], reason: str):
    run_config = auris_config.resolve(auris_config.compose([*published.TINY, *overrides]))
    net = auris_config.build_net(run_config, tokenizer())
    format_name, reasons = choose_format(net, tokenizer())
    assert format_name == "auris" and [text for text in reasons if text.startswith("qwen2_audio")] == [
        f"qwen2_audio: {reason}"
    ]
    with pytest.raises(ValueError, match=f"format=qwen2_audio.*{reason}.*format=auris"):
        choose_format(net, tokenizer(), "qwen2_audio")


def test_only_a_model_with_the_qwen_vocabulary_is_exported_as_qwen_audio(tmp_path: Path, files: list[Path]):
    published.run(tmp_path / "other", "model=qwen_audio", "prompt=tags")
    format_name, reasons = export(tmp_path / "other", tmp_path / "a")
    assert format_name == "auris" and "qwen_audio: the tokenizer does not come from a qwen.tiktoken" in reasons
    published.qwen_audio(tmp_path / "v1")
    published.run(tmp_path / "run", "model=qwen_audio", "prompt=tags", vocabulary=Tokenizer.load(tmp_path / "v1"))
    assert export(tmp_path / "run", tmp_path / "b")[0] == "qwen_audio"
    before, after = auris.load(tmp_path / "run"), auris.load(tmp_path / "b")
    assert_identical(before.net.state_dict(), after.net.state_dict())
    answers = [
        model.generate(files, "<|startoftranscript|>", max_new_tokens=6, keep_control_tokens=True)
        for model in (before, after)
    ]
    assert answers[0] == answers[1]


def test_a_model_that_transformers_does_not_support_is_exported_in_the_auris_format(tmp_path: Path, files: list[Path]):
    published.run(tmp_path / "run", "model/pooling=conv", "model/boundary=learned")
    format_name, [*reasons] = export(tmp_path / "run", tmp_path / "out")
    assert format_name == "auris" and all(reason in (tmp_path / "out/README.md").read_text() for reason in reasons)
    before, after = auris.load(tmp_path / "run"), auris.load(tmp_path / "out")
    assert_identical(before.net.state_dict(), after.net.state_dict())
    answers = [model.generate(files, PROMPT, max_new_tokens=6, keep_control_tokens=True) for model in (before, after)]
    assert answers[0] == answers[1]


def test_an_export_in_the_auris_format_does_not_need_the_run(tmp_path: Path, files: list[Path]):
    """The run's tokenizer is no longer there."""
    run = tmp_path / "run"
    published.run(run)
    answers = auris.load(run).generate(files, PROMPT, max_new_tokens=6, keep_control_tokens=True)
    export(run, tmp_path / "out", format="auris")
    run.rename(tmp_path / "gone")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert (
        auris.load(tmp_path / "elsewhere").generate(files, PROMPT, max_new_tokens=6, keep_control_tokens=True)
        == answers
    )
    export(tmp_path / "elsewhere", tmp_path / "again")
    assert_transformers_computes_the_same(tmp_path / "again", auris.load(tmp_path / "elsewhere"), files)


@pytest.mark.parametrize("rescales_long_rows", [True, False])
def test_exporting_qwen_audio_restores_its_files_exactly(tmp_path: Path, rescales_long_rows: bool):
    state = published.qwen_audio(tmp_path / "v1", use_dynamic_ntk=rescales_long_rows, use_logn_attn=rescales_long_rows)
    (tmp_path / "v1/modeling_qwen.py").write_text("# the released code\n")
    assert export(tmp_path / "v1", tmp_path / "out")[0] == "qwen_audio"
    assert_identical(state, tensors(tmp_path / "out"))
    before, after = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("v1", "out"))
    assert {name: after[name] for name in before} == before
    for name in ("qwen.tiktoken", "modeling_qwen.py"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "v1" / name).read_bytes()
    assert_identical(auris.load(tmp_path / "out").net.state_dict(), auris.load(tmp_path / "v1").net.state_dict())


@pytest.mark.slow
def test_the_merge_ranks_of_the_released_tokenizer_are_restored_exactly(shared_data: Path, tmp_path: Path):
    released = shared_data / "golden/qwen_audio_v1/qwen.tiktoken"
    write_ranks(Tokenizer.load(released), tmp_path / "qwen.tiktoken")
    assert (tmp_path / "qwen.tiktoken").read_bytes() == released.read_bytes()


def test_qwen_audio_survives_a_round_trip_through_the_auris_format(tmp_path: Path, files: list[Path]):
    published.qwen_audio(tmp_path / "v1")
    export(tmp_path / "v1", tmp_path / "auris", format="auris")
    export(tmp_path / "auris", tmp_path / "other", format="qwen_audio")
    assert (tmp_path / "other/qwen.tiktoken").read_bytes() == (tmp_path / "v1/qwen.tiktoken").read_bytes()
    tags = "<|startoftranscript|><|en|><|transcribe|><|en|><|notimestamps|><|wo_itn|>"
    answers = [
        auris.load(tmp_path / name).generate(files, tags, max_new_tokens=6, keep_control_tokens=True)
        for name in ("v1", "auris", "other")
    ]
    assert answers[0] == answers[1] == answers[2]


def test_the_model_card_lists_the_config_the_data_and_the_results(tmp_path: Path):
    write_wave(tmp_path / "a.wav", 1.8)
    row = {"audio": "a.wav", "duration": 1.8, "task": "asr", "language": "en", "text": "the cat"}
    provenances = [{"provenance": "tts", "licence": "CC0"}, {"provenance": "tts"}, {"provenance": "real"}, {}]
    rows = [{"id": str(n), **row, **provenance} for n, provenance in enumerate(provenances)]
    manifest = write_manifest(tmp_path / "train.jsonl", rows)
    run = tmp_path / "run"
    published.run(run, f"data.train=[{manifest}, {tmp_path}/gone.jsonl]", "arm=mine", "weights.llm=runs/some/where")
    result = {"benchmark": "rows", "task": "asr en", "metric": "wer", "value": 0.125, "low": 0.1, "high": 0.2, "n": 40}
    (run / "results.jsonl").write_text(json.dumps({**result, "provenance": "tts"}) + "\n")
    export(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "4 rows, 0.0 h of audio (2 synthetic speech, 1 real recordings, 1 of unknown origin); licences: CC0" in card
    assert "gone.jsonl`: not available" in card
    assert "| rows | asr en | WER | 12.5 | [10.0, 20.0] | 40 | synthetic speech |" in card
    assert "arm `mine`" in card and "initial weights of llm: `runs/some/where`" in card
    assert "trained: encoder, pooling, projector" in card and "rows_per_step: 16" in card
    export(run, tmp_path / "auris", format="auris")
    export(tmp_path / "auris", tmp_path / "again")  # a second export keeps the information of the first
    second_card = (tmp_path / "again/README.md").read_text()
    assert (
        "| 12.5 | [10.0, 20.0] |" in second_card and "2 synthetic speech" in second_card and "arm `mine`" in second_card
    )


def test_the_model_card_of_a_run_without_an_evaluation_says_so(tmp_path: Path):
    published.run(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    assert "Not evaluated." in (tmp_path / "out/README.md").read_text()


def test_unsupported_exports_are_refused(tmp_path: Path):
    published.whisper(tmp_path / "whisper")
    with pytest.raises(ValueError, match="not a complete model"):
        export(tmp_path / "whisper", tmp_path / "out")
    published.run(tmp_path / "run")
    with pytest.raises(ValueError, match="format=onnx: expected auto, qwen2_audio"):
        export(tmp_path / "run", tmp_path / "out", format="onnx")
    with pytest.raises(ValueError, match=r"run already exists"):
        export(tmp_path / "run", tmp_path / "run")
    with pytest.raises(ValueError, match="format=qwen_audio does not support this model: boundary is Tokens"):
        export(tmp_path / "run", tmp_path / "out", format="qwen_audio")
    assert not list(tmp_path.glob("out*"))


def test_an_interrupted_export_leaves_no_files(tmp_path: Path, monkeypatch):
    published.run(tmp_path / "run")
    monkeypatch.setattr("safetensors.torch.save_file", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    monkeypatch.undo()
    export(tmp_path / "run", tmp_path / "out")
    assert auris.load(tmp_path / "out").tokenizer.size == tokenizer().size


def test_the_command_prints_the_format_and_refuses_an_existing_directory(tmp_path: Path, capsys: pytest.CaptureFixture):
    published.run(tmp_path / "seed_0")
    arguments = [f"checkpoint={tmp_path}/seed_0", f"out={tmp_path}/out", "dtype=bfloat16"]
    assert cli.main(["export", *arguments]) == 0
    assert f"wrote {tmp_path}/out (qwen2_audio)" in capsys.readouterr().out
    assert cli.main(["export", *arguments]) == 1
    assert capsys.readouterr().err.startswith(f"error: out={tmp_path}/out already exists")
