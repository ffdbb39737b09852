"""The cost model agrees with published sizes. `auris doctor` reports what a model directory contains and what is wrong.

Expected numbers come from two documents that are not part of the repository: the fact sheet (sizes of the released
systems) and the performance notes (memory and FLOPs computed from these sizes).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from auris import cli, config
from auris.data.batches import build_pack
from auris.data.manifests import read_manifests
from auris.inference.inspect import examine
from auris.model import adapters
from auris.model.pack import IGNORE
from auris.model.weights.identify import PARTS
from auris.training import cost, dry_run
from auris.training.cost import (
    GIB,
    STAGES,
    Stage,
    Workload,
    count_by_component,
    count_parameters,
    count_trained_parameters,
    count_training_flops,
    estimate_memory,
)
from support import published
from support.manifests import make_sample_builder, speech_rows, tokenizer, write_manifest


@pytest.fixture(scope="module")
def released_net() -> nn.Module:
    run_config = config.resolve(config.compose(["scale=full", "model=qwen2_audio"]))
    return config.build_net(run_config, SimpleNamespace(size=1))


def inspect(path: Path, **options: object) -> tuple[list[str], str]:
    """Return the problems of a path, and everything that is printed about it."""
    console = Console(file=io.StringIO(), width=200)
    return examine(str(path), console=console, **options), console.file.getvalue()


def test_parameter_counts_by_component_equal_those_of_the_released_system(released_net: nn.Module):
    """The numbers are from section 1.7 of the fact sheet."""
    assert count_by_component({part: getattr(released_net, part) for part in PARTS}) == {
        "encoder: convolutions": 492_800 + 4_916_480,
        "encoder: blocks": 629_637_120,
        "encoder: final norm": 2_560,
        "pooling": 0,
        "projector": 5_246_976,
        "boundary": 0,
        "llm: embedding": 639_107_072,
        "llm: head": 639_107_072,
        "llm: layers and norm": 6_476_660_736 + 4_096,
    }


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("everything trained", (125.1, 15.6, 1.96)),
        ("fine-tuning (encoder frozen)", (116.8, 14.6, 1.83)),
        ("pre-training (LLM frozen)", (24.0, 3.0, 0.38)),
    ],
)
def test_memory_of_states_equals_the_performance_notes(released_net: nn.Module, stage: str, expected: tuple):
    memory = estimate_memory(released_net, find_stage(stage), Workload.of_budget(8192, pool=2))
    for gpus, gib in zip(dry_run.GPU_COUNTS, expected, strict=True):
        assert memory.states / gpus / GIB == pytest.approx(gib, abs=0.06 if gib > 2 else 0.006)


def test_memory_of_a_pack_equals_the_performance_notes(released_net: nn.Module):
    """8k tokens of the LLM take 37.5 GiB, or 2 GiB if recomputed. A second of audio takes 0.061 GiB.

    The gathered weights are two blocks and two embedding tables.
    """
    fine_tuning, everything = find_stage("fine-tuning (encoder frozen)"), find_stage("everything trained")
    text = estimate_memory(released_net, fine_tuning, Workload(tokens=8192, frames=0, scored=0))
    assert text.activations / GIB == pytest.approx(37.5, abs=0.05)
    one_layer = text.activations / 32
    assert (text.recomputed - one_layer) / GIB == pytest.approx(2.0, abs=0.01)
    assert text.gathered / GIB == pytest.approx(2 * 0.377 + 2 * 1.19, abs=0.01)
    with_audio = estimate_memory(released_net, everything, Workload(tokens=8192, frames=50, scored=0))
    assert (with_audio.activations - text.activations) / GIB == pytest.approx(0.061, abs=0.001)
    # A frozen encoder stores no activations.
    assert estimate_memory(released_net, fine_tuning, Workload(tokens=8192, frames=50, scored=0)) == text
    logits = [
        estimate_memory(released_net, fine_tuning, Workload(tokens=8192, frames=0, scored=n)).logits
        for n in (0, 1024, 4096, 8192)
    ]
    assert logits[0] == 0 and logits[1] / GIB == pytest.approx(2 * 0.595, abs=0.01)
    assert logits[2] == logits[3] == 4 * logits[1]  # logits are computed in chunks of 4096 positions


def test_adapters_count_as_trainable_and_their_base_model_as_frozen():
    """LoRA of rank r adds r (n + m) parameters to an n x m layer. A new token adds a row to embedding and head."""
    run_config = config.resolve(config.compose(["scale=full", "model=qwen2_audio"]))
    net = config.build_net(run_config, SimpleNamespace(size=1))
    base_count = count_parameters(net)
    workload = Workload.of_budget(8192, pool=2)
    frozen = estimate_memory(net, Stage(name="", trainable=("projector",)), workload)
    names = ("projector", "llm.lora", "llm.new_tokens")
    lora = {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}
    adapters.attach(net, names, token_ids=[5, 6, 7], lora=lora)
    stage = Stage(name="", trainable=names)
    added_counts = {"llm: LoRA": 32 * 2 * 8 * (4096 + 4096), "llm: rows of new tokens": 3 * 2 * 4096}
    assert count_by_component({"llm": net.llm}).items() >= added_counts.items()
    assert count_by_component({"llm": net.llm})["llm: layers and norm"] == 6_476_660_736 + 4_096
    trainable_count = count_parameters(net.projector) + sum(added_counts.values())
    assert count_trained_parameters(net, stage) == trainable_count and count_parameters(net) == base_count + sum(
        added_counts.values()
    )
    memory = estimate_memory(net, stage, workload)
    assert memory.states - frozen.states == 16 * sum(added_counts.values())
    assert memory.activations == frozen.activations
    tables = Stage(name="", trainable=("llm.model.embed_tokens",))
    assert count_trained_parameters(net, tables) == 639_107_072


def test_training_only_the_encoder_needs_no_memory_for_llm_activations(released_net: nn.Module):
    stage = Stage(name="", trainable=("encoder",), runs_llm=False)
    memory = estimate_memory(released_net, stage, Workload(tokens=8192, frames=0, scored=0))
    assert memory.activations == 0 and memory.gathered == 0


def test_training_flops_equal_the_performance_notes(released_net: nn.Module):
    """The performance notes state the numbers of floating-point operations of a forward pass.

    They are 12.95 GFLOP per LLM token, 1.278 per scored position, 1.271 per encoder frame (20 ms), and 0.0105 per audio
    token (two frames) in the projector. Of the 12.95 GFLOP, 0.338 are for the queries, the output and the MLP of the
    last layer, which are computed only at scored positions.
    """
    last_layer = 2 * (2 * 4096 * 4096 + 3 * 4096 * 11008) / 1e9
    one_token, one_frame, one_scored = (
        Workload(**{"tokens": 0, "frames": 0, "scored": 0} | workload) for workload in WORKLOADS
    )
    everything, fine_tuning = find_stage("everything trained"), find_stage("fine-tuning (encoder frozen)")
    pre_training = find_stage("pre-training (LLM frozen)")
    for stage, passes, encoder_passes, projector_passes in (
        (everything, 3, 3, 3),
        (fine_tuning, 3, 1, 2),
        (pre_training, 2, 3, 3),
    ):
        assert count_training_flops(released_net, stage, one_token) / 1e9 == pytest.approx(
            passes * (12.95 - last_layer), rel=1e-3
        )
        assert count_training_flops(released_net, stage, one_scored) / 1e9 == pytest.approx(
            passes * (1.278 + last_layer), rel=1e-3
        )
        expected = encoder_passes * 1.271 + projector_passes * 0.0105 / 2
        assert count_training_flops(released_net, stage, one_frame) / 1e9 == pytest.approx(expected, rel=1e-3)


WORKLOADS = ({"tokens": 1}, {"frames": 1}, {"scored": 1})  # one LLM token, one encoder frame, one scored position


def test_a_live_reference_adds_the_memory_of_a_frozen_copy(released_net: nn.Module):
    workload = Workload.of_budget(8192, pool=2)
    precomputed, live = (
        estimate_memory(released_net, find_stage(f"DPO, reference {reference}"), workload)
        for reference in ("precomputed", "in memory")
    )
    assert (live.states - precomputed.states) / GIB == pytest.approx(15.6, abs=0.1)


def find_stage(name: str) -> Stage:
    return next(stage for stage in STAGES if stage.name == name)


def test_a_valid_directory_is_described(tmp_path: Path):
    published.qwen2_audio(tmp_path / "model")
    problems, text = inspect(tmp_path / "model", token_budget=1234)
    assert problems == []
    for part in (
        "Qwen2-Audio in transformers' layout",
        "66 tensors",
        "export format=qwen2_audio: supported",
        "export format=qwen_audio: boundary is Tokens",
        f"{tokenizer().size:,} tokens, embedding: {tokenizer().size + 12:,} rows",
        f"stop=frozenset({{{tokenizer().end}}})",
        "1,234 tokens",
        "64 GPUs",
    ):
        assert part in text, part


@pytest.mark.parametrize("write", [published.qwen_audio, published.run])
def test_a_qwen_audio_model_and_a_run_are_described(tmp_path: Path, write):
    write(tmp_path / "model")
    problems, text = inspect(tmp_path / "model")
    assert problems == [] and "generation_config.json: none, " in text


def test_the_inspection_names_the_part_that_weights_can_initialise(tmp_path: Path):
    published.whisper(tmp_path / "whisper")
    problems, text = inspect(tmp_path / "whisper")
    assert problems == [] and f"weights.encoder={tmp_path}/whisper" in text and "encoder: blocks" in text
    published.qwen(tmp_path / "qwen")
    problems, text = inspect(tmp_path / "qwen")
    assert problems == [] and "weights.llm=" in text and "audio tokens are added" in text
    published.language_model(tmp_path / "llm")
    problems, text = inspect(tmp_path / "llm")
    assert problems == [] and f"weights.llm={tmp_path}/llm" in text and "tokenizer: none" in text


def test_tensors_that_do_not_fit_are_named(tmp_path: Path):
    published.qwen2_audio(tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    state = load_file(file)
    del state["multi_modal_projector.linear.bias"]
    state["audio_tower.extra"] = state["audio_tower.conv1.bias"].clone()
    state["language_model.model.norm.weight"] = state["language_model.model.norm.weight"][:-1].clone()
    save_file(state, file)
    problems, text = inspect(tmp_path / "model")
    assert problems == [
        "multi_modal_projector.linear.bias is missing",
        "audio_tower.extra is unexpected",
        "language_model.model.norm.weight has shape (47,), expected (48,)",
    ]
    assert all(problem in text for problem in problems)


def test_files_next_to_the_weights_are_inspected(tmp_path: Path):
    published.qwen2_audio(tmp_path / "model")
    published.write_json(tmp_path / "model/generation_config.json", {"eos_token_id": 1, "num_beams": 4})
    (tmp_path / "model/tokenizer.json").rename(tmp_path / "tokenizer.json")
    problems, text = inspect(tmp_path / "model")
    assert len(problems) == 1 and "has no tokenizer" in problems[0] and "llm: embedding" in text
    (tmp_path / "tokenizer.json").rename(tmp_path / "model/tokenizer.json")
    problems, text = inspect(tmp_path / "model")
    assert len(problems) == 1 and "num_beams=4" in problems[0]


def test_a_dry_run_prints_the_first_batch_and_its_cost(tmp_path: Path):
    rows = [
        *speech_rows(tmp_path, [1.0, 2.0]),
        {"id": "bad", "audio": "no.wav", "task": "asr", "language": "en", "text": "a"},
    ]
    [manifest] = read_manifests([write_manifest(tmp_path / "rows.jsonl", rows)])
    samples = make_sample_builder()
    batch = build_pack(manifest.rows, [(0, None), (1, None), (2, None)], samples)
    assert dry_run.format_first_row(batch, samples.tokenizer) == (
        "<|audio_bos|>[25 audio tokens]<|audio_eos|>Detect the language and recognize the speech: "
        "{<|en|>the cat sat<|endoftext|>}"
    )
    run_config = config.resolve(config.compose([*published.TINY, "model.encoder.n_mels=16"]))
    net = config.build_net(run_config, samples.tokenizer)
    console = Console(file=io.StringIO(), width=200)
    stages = [Stage(name="this run", trainable=("projector",))]
    dry_run.print_sizes(console, net, stages, Workload.of_pack(batch))
    dry_run.print_batch(console, [batch], samples.tokenizer)
    text = console.file.getvalue()
    n_tokens, n_scored = len(batch["ids"]), int((batch["labels"] != IGNORE).sum())
    assert f"1 pack with 2 rows, {n_tokens:,} tokens ({n_scored} with logits), 75 audio tokens (3.0 s)" in text
    assert "skipped bad: " in text and "this run" in text and "pre-training" not in text
    workload = Workload.of_pack(batch)
    assert (workload.tokens, workload.frames, workload.scored) == (n_tokens, 150, n_scored)
    assert np.isclose(
        estimate_memory(net, stages[0], workload).states, cost.FROZEN_BYTES * count_parameters(net), rtol=0.1
    )


@pytest.mark.parametrize(
    ("write", "lines"),
    [
        (published.whisper, ["encoder: n_mels 16, width 32, n_layers 2, n_heads 2, ffn 48, max_positions 1500"]),
        (
            published.language_model,
            [
                "llm: model_type qwen2, hidden_size 48, num_hidden_layers 2, num_attention_heads 4, "
                "num_key_value_heads 2, intermediate_size 64, rope_theta 5000.0, tie_word_embeddings False",
                "vocabulary: 300 rows of the embedding",
                "tokenizer: none; set tokenizer=DIR in training",
            ],
        ),
        (
            published.run,
            [
                "encoder: n_mels 128, width 16, n_layers 1, n_heads 2",
                "llm: model_type qwen2, hidden_size 16, num_hidden_layers 1, num_attention_heads 2, "
                "num_key_value_heads 2, intermediate_size 32, rope_theta 10000, tie_word_embeddings False",
                "chat template of the tokenizer: missing",
            ],
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_sizes_of_a_model_are_printed(tmp_path: Path, write: Callable[[Path], object], lines: list[str]):
    write(tmp_path / "model")
    assert set(lines) <= set(inspect(tmp_path / "model")[1].splitlines())


def test_the_doctor_describes_the_vocabulary_of_a_real_language_model(smollm2: Path):
    problems, text = inspect(smollm2)
    assert problems == [] and "vocabulary: 49,152 rows" in text and "chat template: ChatML" in text
    assert f"tokenizer: {smollm2}, 49,152 tokens; audio tokens are added in training" in text
    assert "num_hidden_layers 30, num_attention_heads 9, num_key_value_heads 3" in text


def test_the_doctor_command_describes_a_run_and_refuses_a_missing_path(tmp_path: Path, capsys: pytest.CaptureFixture):
    published.run(tmp_path / "seed_0")

    def call(path: Path) -> int:
        return cli.main(["doctor", f"checkpoint={path}"])

    assert call(tmp_path / "seed_0") == 0
    assert "a training run of auris" in capsys.readouterr().out
    assert call(tmp_path / "missing") == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/missing does not exist")
