"""Sharded runs equal runs on one process in losses, weights and answers, for every kind of training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch

from auris import config
from auris.training import run as train
from auris.training.strategy import ShardedStrategy
from auris.training.weight_settings import adopt_settings, find_sources
from support import published
from support.manifests import write_manifest
from support.recipes import SMALLEST_MODEL
from support.records import Record, record, record_in_processes
from support.runs import ROOT

pytestmark = pytest.mark.usefixtures("single_thread")

STEPS = 3  # validated after step 2 and at the end
MAX_NORM = 0.01  # maximum gradient norm, far below the gradient norms of these runs

# The kinds of training. In all but `text_only`, each process has several packs in a step. `dpo_live`
# computes references in each step, and `published` starts from a published encoder and language model.
CASES = {
    "llm_frozen": ["experiment=qwen2_audio_pretrain", "optim.layer_decay=0.9"],
    "encoder_frozen": ["experiment=qwen2_audio_pretrain", "trainable=[pooling,projector,boundary,llm]"],
    "qwen_audio": [
        "experiment=qwen_audio_pretrain",
        "model.llm.config.tie_word_embeddings=true",
        "trainable=[boundary,llm]",
    ],
    "ctc": ["experiment=encoder_ctc"],
    "text_only": ["experiment=qwen2_audio_sft", "data.rows_per_step=2"],
    "adapters": ["experiment=qwen2_audio_sft", "trainable=[projector,llm.lora,llm.new_tokens]", "lora.rank=2"],
    "dpo": ["experiment=qwen2_audio_dpo", "data.rows_per_step=5"],
    "dpo_live": ["experiment=qwen2_audio_dpo", "data.rows_per_step=5", "objective.reference=live"],
    "published": ["experiment=qwen2_audio_pretrain"],
}


def runs(*names: str) -> dict[str, list[str]]:
    """Return {name: overrides} of runs; a name is a strategy and a case, such as "fsdp_tp dpo"."""
    return {name: [f"strategy={name.split()[0]}", *CASES[name.split()[1]]] for name in names}


TWO_PROCESS_RUNS = runs("fsdp llm_frozen", "fsdp text_only", "fsdp dpo", "fsdp_tp encoder_frozen", "ddp llm_frozen")
BFLOAT16_RUNS = {"fsdp half": ["strategy=fsdp", "trainer.precision=bf16-mixed", *CASES["llm_frozen"]]}
SLOW_RUNS = {  # number of processes -> runs
    1: runs("fsdp encoder_frozen", "fsdp adapters"),
    2: runs("fsdp encoder_frozen", "fsdp adapters", "fsdp ctc", "fsdp published", "fsdp dpo_live", "fsdp_tp dpo"),
    3: runs("fsdp encoder_frozen", "fsdp qwen_audio"),
    4: runs("fsdp_tp encoder_frozen", "fsdp_tp dpo", "hsdp llm_frozen", "hsdp adapters"),
}


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with dialogues, preferences, a published encoder and a published language model.

    Every second dialogue has only text.
    """
    folder = tmp_path_factory.mktemp("strategies")
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    asr_rows = [row for row in rows if row["task"] == "asr"]
    clips = [{"type": "audio", "audio": str(corpus / row["audio"])} for row in asr_rows]
    user_contents = ["say a word" if number % 2 else [clip] for number, clip in enumerate(clips)]
    prompts = [[{"role": "user", "content": user}] for user in user_contents]
    dialogues = [
        {"id": row["id"], "messages": [*messages, {"role": "assistant", "content": row["text"]}]}
        for row, messages in zip(asr_rows, prompts, strict=True)
    ]
    rejected = [row["text"] for row in asr_rows[1:] + asr_rows[:1]]
    pairs = [
        {
            "id": row["id"],
            "messages": [{"role": "user", "content": [clip]}],
            "chosen": row["text"],
            "rejected": rejected_text,
        }
        for row, clip, rejected_text in zip(asr_rows, clips, rejected, strict=True)
        if row["text"] != rejected_text
    ]
    write_manifest(folder / "dialogues.jsonl", dialogues)
    write_manifest(folder / "pairs.jsonl", pairs)
    published.whisper(folder / "whisper")
    published.language_model(folder / "llm")
    return folder


@pytest.fixture(scope="module")
def compose_runs(corpus: Path, folder: Path):
    """Compose runs small enough for a test: `compose_runs({name: overrides}, processes)`."""
    size = [
        "scale=tiny",
        f"runs_dir={folder}/runs",
        f"data.root={corpus}",
        f"data.cache_dir={folder}/cache",
        "data.rows_per_step=9",  # odd, so that two processes have different numbers of rows
        "data.token_budget=180",
        *SMALLEST_MODEL,
        f"max_steps={STEPS}",
        f"optim.clip={MAX_NORM}",
        "optim.lr=0.01",
        "optim.warmup_steps=1",
        "trainer.accelerator=cpu",
        "trainer.val_check_interval=2",
        "max_new_tokens=3",
        "trainer.enable_progress_bar=false",
    ]
    published_parts = [
        f"weights.encoder={folder}/whisper",
        f"weights.llm={folder}/llm",
        f"tokenizer={corpus}/tokenizer",
    ]

    def compose(name: str, overrides: list[str], processes: int) -> dict:
        case = name.split()[-1]
        data = []
        if "_sft" in " ".join(overrides) or "_dpo" in " ".join(overrides):
            file = "pairs" if "dpo" in case else "dialogues"
            data = [f"data.{split}=[{{path: '{folder}/{file}.jsonl', limit: 11}}]" for split in ("train", "valid")]
        else:
            data = [f"data.valid=[{{path: '{corpus}/valid.jsonl', tasks: [asr, ks], limit: 3}}]"]
        data += published_parts if case == "published" else []
        overrides = [*size, *data, *overrides, f"trainer.devices={processes}"]
        run_config = config.resolve(config.compose(overrides))
        if case != "published":
            return run_config
        typed = [override for override in overrides if override not in SMALLEST_MODEL]
        return adopt_settings(run_config, find_sources(run_config), typed)

    def compose_all(runs: Mapping[str, list[str]], processes: int) -> dict[str, dict]:
        return {name.replace(" ", "-"): compose(name, overrides, processes) for name, overrides in runs.items()}

    return compose_all


@pytest.fixture(scope="module")
def run_on_one(compose_runs) -> Callable[[str], Record]:
    """Return a function that runs a case on one process and caches the record."""

    @cache
    def run(case: str) -> Record:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            [run_config] = compose_runs({case: CASES[case]}, 1).values()
            return record(run_config)

    return run


@pytest.fixture(scope="module")
def runs_on_two(compose_runs, folder: Path) -> dict[str, list[Record]]:
    return record_in_processes(compose_runs({**TWO_PROCESS_RUNS, **BFLOAT16_RUNS}, 2), folder / "two", 2)


def assert_same_run(run: Record, expected: Record) -> None:
    assert len(run.losses) == len(expected.losses) == STEPS
    assert run.losses == pytest.approx(expected.losses, abs=1e-5)
    assert run.norms == pytest.approx(expected.norms, rel=1e-4)
    assert run.weights.keys() == expected.weights.keys()
    for name, tensor in expected.weights.items():
        assert run.weights[name].dtype == tensor.dtype, name
        assert (run.weights[name] - tensor).abs().max() <= 1e-5, name
    # Accuracies are not compared: they change abruptly if two tokens are equally likely.
    compared = expected.metrics.keys() - {"train/accuracy", "val/accuracy"}
    assert run.metrics.keys() == expected.metrics.keys() and any(name.startswith("val/") for name in compared)
    for name in compared:
        assert run.metrics[name] == pytest.approx(expected.metrics[name], abs=1e-4, nan_ok=True), name


@pytest.mark.parametrize("name", TWO_PROCESS_RUNS)
def test_training_on_two_processes_equals_training_on_one(run_on_one, runs_on_two, name: str):
    for run in runs_on_two[name.replace(" ", "-")]:
        assert_same_run(run, run_on_one(name.split()[1]))


def test_bfloat16_training_keeps_trainable_weights_in_float32(run_on_one, runs_on_two):
    expected = run_on_one("llm_frozen")
    for run in runs_on_two["fsdp-half"]:
        assert run.losses == pytest.approx(expected.losses, rel=2e-2) and run.losses != expected.losses
        is_trainable = {name: name.startswith(("net.encoder.", "net.projector.")) for name in run.weights}
        assert {name for name, x in run.weights.items() if x.dtype == torch.float32} == {
            n for n in is_trainable if is_trainable[n]
        }
        assert all(
            torch.equal(run.weights[n].float(), expected.weights[n].bfloat16().float())
            for n in is_trainable
            if not is_trainable[n]
        )


@pytest.mark.slow
@pytest.mark.parametrize("processes", SLOW_RUNS)
def test_training_on_any_number_of_processes_equals_training_on_one(
    run_on_one, compose_runs, folder: Path, processes: int
):
    records = record_in_processes(compose_runs(SLOW_RUNS[processes], processes), folder / f"{processes}", processes)
    for name in SLOW_RUNS[processes]:
        for run in records[name.replace(" ", "-")]:
            assert_same_run(run, run_on_one(name.split()[1]))


def test_the_test_runs_clip_gradients_and_have_uneven_packs(runs_on_two):
    for name, ranks in runs_on_two.items():
        assert all(norm > MAX_NORM for run in ranks for norm in run.norms), name  # gradients are clipped
        packs = [len(step) for run in ranks for step in run.audio]
        assert max(packs) > 1 or name == "fsdp-text_only", name
    steps = zip(*(run.audio for run in runs_on_two["fsdp-text_only"]), strict=True)
    # In some step, one process has audio and the other only text.
    assert any(bool(sum(left)) != bool(sum(right)) for left, right in steps)


@pytest.mark.parametrize("name", TWO_PROCESS_RUNS)
def test_gradients_are_communicated_only_with_the_last_pack_of_a_step(runs_on_two, name: str):
    for run in runs_on_two[name.replace(" ", "-")]:
        assert not any(n for step in run.collectives for n in step[:-1])
        if name.split()[0] in ("fsdp", "ddp"):  # the other strategies have process groups of size one in this test
            assert {step[-1] for step in run.collectives} == {run.collectives[0][-1]} != {0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tensor_parallel": 2, "replicas": 2}, "expected one of them to be 1"),
        ({"replicas": 0}, "trainer.strategy.replicas=0: expected one of them to be 1, and the other 1 or more"),
        ({"precision": "16-mixed"}, "trainer.precision=16-mixed: expected 32-true or bf16-mixed"),
    ],
)
def test_an_invalid_strategy_setting_is_named(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ShardedStrategy(**arguments)


def test_an_indivisible_number_of_processes_is_refused_before_any_is_started(compose_runs):
    [run_config] = compose_runs({"fsdp_tp encoder_frozen": TWO_PROCESS_RUNS["fsdp_tp encoder_frozen"]}, 3).values()
    with pytest.raises(ValueError, match="trainer.strategy.tensor_parallel=2 does not divide the 3 processes"):
        config.build(train.trainer_options(run_config["trainer"], "32-true"))


def test_a_sharded_strategy_has_the_precision_of_the_run(compose_runs):
    [run_config] = compose_runs({"fsdp llm_frozen": TWO_PROCESS_RUNS["fsdp llm_frozen"]}, 2).values()
    options = train.trainer_options(run_config["trainer"], "bf16-mixed")
    assert options["precision"] == options["strategy"]["precision"] == "bf16-mixed"
