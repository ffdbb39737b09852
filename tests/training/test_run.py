"""Whole runs at the smallest size: they resume exactly, see every row, and do not depend on the number of processes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from auris import cli, config
from auris.data.datamodule import AudioDataModule
from auris.model.weights import checkpoint_dir
from auris.text.tokenizer import Tokenizer
from auris.training import callbacks
from auris.training import run as train
from auris.training.module import AudioLMModule
from support import published
from support.recipes import smallest_run
from support.runs import (
    ROOT,
    KillAt,
    Killed,
    assert_equal,
    fit,
    in_processes,
    load_state,
    read_logs,
    train_in_a_process,
    weights,
)


@pytest.fixture
def smallest(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compose a recipe small enough for a test: `smallest("max_steps=4", ...)`."""
    monkeypatch.chdir(ROOT)
    size = smallest_run(corpus, tmp_path)
    return lambda *overrides: config.resolve(config.compose([*size, *overrides]))


class Seen(L.Callback):
    """Rows that reached training_step, step by step."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: dict, *_: object) -> None:
        self.steps.append(outputs["rows"])


# Without workers, runs are killed at every step in test_checkpointing.
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(smallest, workers: int):
    options = ["max_steps=6", "checkpoint_every=2", f"data.num_workers={workers}"]
    whole = smallest(*options, "arm=whole")
    train.train(whole)

    broken = smallest(*options, "arm=broken")
    train.claim(Path(broken["run_dir"]), broken)
    with pytest.raises(Killed):
        fit(broken, KillAt(5))
    train.train(broken)

    assert_equal(weights(whole), weights(broken))
    finished = json.loads((Path(broken["run_dir"]) / "finished.json").read_text())
    assert finished["steps"] == 6
    first = json.loads((Path(whole["run_dir"]) / "finished.json").read_text())
    names = [name for name in first if name.startswith(("train/", "val/"))]
    assert names and {name: finished[name] for name in names} == {name: first[name] for name in names}


def test_an_error_before_the_net_has_memory_is_the_one_that_is_seen(smallest):
    with pytest.raises(ValueError, match="longer than data.token_budget=20"):
        train.train(smallest("data.token_budget=20"))


class Failing(AudioLMModule):
    def training_step(self, *_: object) -> None:
        raise ValueError("of a subclass")


def test_an_error_of_a_subclass_keeps_its_traceback(corpus: Path, tmp_path: Path, capsys):
    with pytest.raises(ValueError, match="of a subclass") as raised:
        cli.main(["train", *smallest_run(corpus, tmp_path), f"module={__name__}.Failing"])
    assert any(entry.name == "training_step" for entry in raised.traceback)
    assert "error: " not in capsys.readouterr().err


class OwnData(AudioDataModule):
    def __init__(self, *, extra: int, **settings: object):
        super().__init__(**settings)
        self.extra = extra


class OwnCallback(L.Callback):
    """Writes what a run consists of next to it."""

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        optimizer = type(trainer.optimizers[0]).__name__
        names = [type(callback).__name__ for callback in trainer.callbacks]
        parts = {"optimizer": optimizer, "extra": trainer.datamodule.extra, "callbacks": names}
        Path(trainer.default_root_dir, "parts.json").write_text(json.dumps(parts))


def test_data_module_optimizer_callbacks_and_logger_are_exchanged_by_override(corpus: Path, tmp_path: Path):
    own = [f"data._target_={__name__}.OwnData", "+data.extra=3", f"+callbacks.own._target_={__name__}.OwnCallback"]
    sgd = ["optim._target_=torch.optim.SGD", "+optim.momentum=0.9", "~optim.betas", "~optim.eps", "~optim.states"]
    without = ["~callbacks.examples", "~logger", "max_steps=2", "experiment=qwen2_audio_pretrain"]
    made = config.resolve(config.compose([*smallest_run(corpus, tmp_path), *own, *sgd, *without]))
    metric = train.run(made)
    parts = json.loads(Path(made["run_dir"], "parts.json").read_text())
    assert parts["optimizer"] == "SGD" and parts["extra"] == 3 and "Examples" not in parts["callbacks"]
    assert parts["callbacks"][-2:] == ["OwnCallback", "CheckpointCallback"]
    assert not list(Path(made["run_dir"]).glob("events.*"))
    assert metric == json.loads(Path(made["run_dir"], "finished.json").read_text())["val/loss"]


@pytest.mark.parametrize("fails", ["before the parts are built", "when the fit starts", "in the first step"])
def test_a_run_that_fails_before_its_first_step_leaves_no_directory(smallest, monkeypatch, fails: str):
    made = smallest("max_steps=2", *(["data.train=[nowhere.jsonl]"] if fails.startswith("before") else []))

    def fail(*_: object) -> None:
        raise Killed

    hook = "on_train_start" if fails.startswith("when") else "training_step"
    monkeypatch.setattr(AudioLMModule, hook, fail)
    with pytest.raises((Killed, ValueError)):
        train.train(made)
    assert not Path(made["runs_dir"]).exists()


def test_a_directory_that_was_there_or_has_a_step_stays(smallest):
    made = smallest("max_steps=2", "data.train=[nowhere.jsonl]")
    run_dir = Path(made["run_dir"])
    run_dir.mkdir(parents=True)
    (run_dir / "log.txt").write_text("of a study")
    with pytest.raises(ValueError, match="nowhere"):
        train.train(made)
    assert (run_dir / "log.txt").is_file()
    other = run_dir / "other"

    def begin_and_fail() -> None:
        with train.removed_if_unused(other):
            other.mkdir()
            (other / "progress.json").write_text("{}")
            raise Killed

    with pytest.raises(Killed):
        begin_and_fail()
    assert other.is_dir()


def test_training_again_under_the_same_name_is_refused_or_skipped(smallest, capsys):
    made = smallest("max_steps=2")
    train.train(made)
    before = weights(made)
    train.train(made)
    assert_equal(before, weights(made))
    with pytest.raises(ValueError, match=r"optim.lr: .* -> 0.5.*arm=NAME"):
        train.train(smallest("max_steps=2", "optim.lr=0.5"))


@pytest.mark.parametrize("mode", [["data.rows_per_step=7"], ["data.rows_per_step=null", "data.token_budget=700"]])
def test_every_row_reaches_training_step_once_per_data_epoch(smallest, mode: list[str]):
    probe = smallest("max_steps=2", *mode, "arm=probe")
    _, data = train.build(probe)
    data.setup("fit")
    steps = data.plan.steps_for(3)
    seen = Seen()
    fit(smallest(f"max_steps={steps}", *mode, "+trainer.limit_val_batches=0"), seen)
    rows = [row for step in seen.steps for row in step]
    assert len(seen.steps) == steps
    counts = torch.bincount(torch.tensor(rows), minlength=data.plan.epoch_rows)
    # The last step may reach into the fourth epoch.
    assert counts.min() == 3 and len(rows) - 3 * data.plan.epoch_rows < max(len(step) for step in seen.steps)


@pytest.mark.slow
def test_compiled_blocks_train_to_the_same_weights(smallest):
    made = [smallest("max_steps=3", f"compile={backend}", f"arm={backend}") for backend in ("null", "eager")]
    for one in made:
        train.train(one)
    assert_equal(*map(weights, made), tolerance=1e-6)


def test_only_the_listed_parts_learn(smallest):
    made = smallest("max_steps=2", "trainable=[projector]")
    module, _data = train.build(made)
    module.configure_model()
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    train.train(made)
    for name, tensor in weights(made).items():
        assert torch.equal(tensor, start[name]) != name.startswith("net.projector."), name


def test_weights_of_a_part_come_from_another_run(smallest):
    first = smallest("max_steps=2", "experiment=encoder_ctc", "arm=encoder")
    train.train(first)
    second = smallest("max_steps=2", "trainable=[projector]", f"weights.encoder={first['run_dir']}")
    train.train(second)
    encoder = {name: tensor for name, tensor in weights(first).items() if name.startswith("net.encoder.")}
    assert_equal(encoder, {name: tensor for name, tensor in weights(second).items() if name in encoder})


def test_weights_that_do_not_fit_name_the_tensor_and_both_shapes(smallest):
    first = smallest("max_steps=2", "experiment=encoder_ctc", "arm=encoder", "model/encoder=whisper_v2")
    train.train(first)
    second = smallest("max_steps=2", "model/encoder=whisper_v3", f"weights.encoder={first['run_dir']}")
    with pytest.raises(ValueError, match=r"conv1.weight has shape \(16, 80, 3\), expected \(16, 128, 3\)"):
        train.train(second)


def test_rows_that_cannot_be_read_are_named_and_the_others_keep_their_steps(smallest, corpus: Path, tmp_path: Path):
    lines = (corpus / "train.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "audio": str(corpus / json.loads(line)["audio"])} for line in lines]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "noise.flac").write_bytes(b"fLaC but not really")
    rows[3]["audio"] = "noise.flac"
    rows[4]["text"] = rows[4].get("text") and " "
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = {}
    for name in ("good", "bad"):
        seen[name] = Seen()
        made = smallest("max_steps=12", f"arm={name}", f"data.train=[{tmp_path}/{name}.jsonl]")
        fit(made, seen[name])
        names = Path(made["run_dir"]) / "unusable_rows.jsonl"
    left_out = {3, 4} if rows[4].get("text") == " " else {3}
    for good, bad in zip(seen["good"].steps, seen["bad"].steps, strict=True):
        assert sorted(bad) == sorted(set(good) - left_out)
    named = {row["id"]: row["reason"] for row in map(json.loads, names.read_text().splitlines())}
    assert set(named) == {rows[number]["id"] for number in left_out}
    assert "noise.flac" in named[rows[3]["id"]]


def test_training_on_two_processes_equals_training_on_one(smallest, corpus: Path, tmp_path: Path):
    """DDP over gloo, uneven packs and an odd number of rows: the same weights as one process."""
    options = ["max_steps=3", "data.rows_per_step=7", "data.token_budget=300", "optim.layer_decay=0.9"]
    one = smallest(*options, "arm=one")
    train.train(one)
    overrides = [*options, "arm=two", "strategy=ddp", "trainer.devices=2"]
    two = smallest(*overrides)
    train_in_a_process(two, tmp_path)
    assert_equal(weights(one), weights(two), tolerance=1e-6)


SHARED_OUT = [("ddp", 2)] + [pytest.param(*case, marks=pytest.mark.slow) for case in (("fsdp", 3), ("fsdp_tp", 2))]


@pytest.mark.parametrize(("strategy", "world"), SHARED_OUT)
def test_validation_leaves_scores_texts_and_sounds_of_the_same_rows(
    smallest, tmp_path: Path, strategy: str, world: int
):
    """On one process and on several: WER, BLEU, accuracy of a small fixed subset, and the first rows of each."""
    options = [
        "experiment=qwen2_audio_pretrain",
        "max_steps=2",
        "trainer.val_check_interval=1",
        "data.token_budget=900",
    ]
    one = smallest(*options, "arm=one")
    train.train(one)
    more = smallest(*options, "arm=more", f"strategy={strategy}", f"trainer.devices={world}")
    assert in_processes(lambda: train.train(more), world, tmp_path) == [0] * world, read_logs(tmp_path)
    found = []
    for made in (one, more):
        events = EventAccumulator(made["run_dir"], size_guidance={"tensors": 0, "audio": 0}).Reload()
        tags = events.Tags()
        names = {tag for tag in tags["scalars"] if tag.startswith("val/")} - {"val/loss", "val/accuracy"}
        assert {"val/asr en/wer", "val/s2tt de-en/bleu", "val/sec/accuracy"} <= names
        scores = {tag: [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)] for tag in names}
        texts = {}
        for tag in (tag for tag in tags["tensors"] if tag.startswith("val/")):
            shown = events.Tensors(tag)
            assert [event.step for event in shown] == [1, 2]
            texts[tag] = [event.tensor_proto.string_val[0].decode() for event in shown]
            rows = [re.findall("row (.*)|reference: (.*)", text) for text in texts[tag]]
            assert rows[0] == rows[1] and 0 < len(rows[0]) <= 2 * callbacks.EXAMPLES
        sounds = {tag: [event.length_frames for event in events.Audio(tag)] for tag in tags["audio"]}
        assert sounds and all(len(of_row) == 1 for of_row in sounds.values())
        found.append((scores, texts, sounds))
    assert found[0] == found[1]


def test_a_dry_run_describes_the_run_and_writes_nothing(smallest, capsys: pytest.CaptureFixture):
    made = smallest("experiment=qwen_audio_pretrain", "dry_run=true")
    train.train(made)
    output = capsys.readouterr().out
    assert "this run" in output and "first batch:" in output and "6 rows" in output
    assert "audio tokens]" in output and ("<|startoftranscript|>" in output or "<|startofanalysis|>" in output)
    assert not Path(made["run_dir"]).exists()


def test_a_dry_run_plans_an_epoch_for_the_requested_ranks(smallest, corpus, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    options = [
        "strategy=hsdp",
        "trainer.devices=8",
        "trainer.num_nodes=2",
        "trainable=[projector,llm.new_tokens,llm.lora]",
    ]
    made = smallest("experiment=qwen2_audio_pretrain", "dry_run=true", "data.rows_per_step=16", *options)
    train.train(made)
    output = capsys.readouterr().out
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    for part in (
        "planned for 16 processes, 8 on each of 2 machines, replicas=2",
        f"an epoch: {len(rows)} rows (0 unusable), {-(-len(rows) // 16)} steps",
        "16 ranks: 1.00 packs per rank and step",
        "on 16 H100 at 400 TFLOP/s each",
        "llm: rows of new tokens",
        "llm: LoRA",
    ):
        assert part in output, part
    shares = {line.split()[1]: line for line in output.splitlines() if line.startswith("│") and line.endswith("% │")}
    assert {row["task"] for row in rows} <= shares.keys()


def test_a_whole_model_starts_from_another_run(smallest):
    first = smallest("experiment=qwen_audio_pretrain", "arm=first", "max_steps=2", "seed=3")
    train.train(first)
    module, _ = train.build(smallest("experiment=qwen_audio_pretrain", f"checkpoint={first['run_dir']}"))
    module.configure_model()
    state = load_state(first["run_dir"])
    assert all(torch.equal(tensor, state[f"net.{name}"]) for name, tensor in module.net.state_dict().items())


def test_weights_of_another_vocabulary_are_refused(smallest, tmp_path: Path):
    first = smallest("experiment=llm_text", "arm=first", "max_steps=2")
    train.train(first)
    Tokenizer.train(["other words entirely"], vocab_size=300).save(tmp_path / "other")
    made = smallest("experiment=qwen_audio_pretrain", f"weights.llm={first['run_dir']}", f"tokenizer={tmp_path}/other")
    with pytest.raises(
        ValueError, match="was trained with another vocabulary than that of tokenizer=.*: set tokenizer="
    ):
        train.build(made)


def test_parts_start_from_published_directories(smallest, tmp_path: Path):
    """Whisper's encoder, and a language model by its own config.json, whose vocabulary grows."""
    published.whisper(tmp_path / "whisper")
    published.language_model(tmp_path / "llm")
    encoder = published.ENCODER
    made = smallest(
        "experiment=qwen2_audio_pretrain",
        f"weights.encoder={tmp_path}/whisper",
        f"weights.llm={tmp_path}/llm",
        f"model.llm.config.path={tmp_path}/llm",
        f"model.encoder.n_mels={encoder['num_mel_bins']}",
        f"model.encoder.width={encoder['d_model']}",
        f"model.encoder.n_layers={encoder['encoder_layers']}",
        f"model.encoder.n_heads={encoder['encoder_attention_heads']}",
        f"model.encoder.ffn={encoder['encoder_ffn_dim']}",
        "max_steps=2",
    )
    module, _ = train.build(made)
    module.configure_model()
    stored = load_file(tmp_path / "llm/model.safetensors")["model.embed_tokens.weight"]
    table = module.net.llm.get_input_embeddings().weight
    assert torch.equal(table[: len(stored)], stored) and len(table) > len(stored)
    whisper = load_file(tmp_path / "whisper/model.safetensors")["model.encoder.conv1.weight"]
    assert torch.equal(module.net.encoder.conv1.weight, whisper)
    train.train(made)
    assert checkpoint_dir.list_steps(Path(made["run_dir"]) / "checkpoints")[0] == 2
