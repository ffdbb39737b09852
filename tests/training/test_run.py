"""Complete runs at the smallest size: exact resuming, every row seen, and independence of the number of processes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from auris import cli, config
from auris.data.datamodule import AudioDataModule
from auris.errors import UserError
from auris.model.weights import checkpoint_dir
from auris.text.tokenizer import Tokenizer
from auris.training import callbacks
from auris.training import run as train
from auris.training.module import AudioLMModule
from auris.training.weight_settings import adopt_settings, find_sources
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

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture
def compose_run(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compose a config small enough for a test: `compose_run("max_steps=4", ...)`."""
    monkeypatch.chdir(ROOT)
    size = smallest_run(corpus, tmp_path)
    return lambda *overrides: config.resolve(config.compose([*size, *overrides]))


class RowRecorder(L.Callback):
    """Record the rows that reach training_step in each step."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: dict, *_: object) -> None:
        self.steps.append(outputs["rows"])


# Marked slow, because fast tests of test_checkpointing already kill runs at every step and with active workers.
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(compose_run, workers: int):
    options = ["max_steps=6", "checkpoint_every=2", f"data.num_workers={workers}"]
    uninterrupted = compose_run(*options, "arm=uninterrupted")
    train.train(uninterrupted)

    killed = compose_run(*options, "arm=killed")
    train.claim_run_dir(Path(killed["run_dir"]), killed)
    with pytest.raises(Killed):
        fit(killed, KillAt(5))
    train.train(killed)

    assert_equal(weights(uninterrupted), weights(killed))
    finished = json.loads((Path(killed["run_dir"]) / "finished.json").read_text())
    assert finished["steps"] == 6
    expected = json.loads((Path(uninterrupted["run_dir"]) / "finished.json").read_text())
    names = [name for name in expected if name.startswith(("train/", "val/"))]
    assert names and {name: finished[name] for name in names} == {name: expected[name] for name in names}


def test_an_error_before_the_net_is_materialised_is_reported(compose_run):
    with pytest.raises(ValueError, match="longer than data.token_budget=20"):
        train.train(compose_run("data.token_budget=20"))


class FailingModule(AudioLMModule):
    def training_step(self, *_: object) -> None:
        raise ValueError("raised by a subclass")


def test_an_error_of_a_subclass_keeps_its_traceback(corpus: Path, tmp_path: Path, capsys):
    with pytest.raises(ValueError, match="raised by a subclass") as raised:
        cli.main(["train", *smallest_run(corpus, tmp_path), f"module={__name__}.FailingModule"])
    assert any(entry.name == "training_step" for entry in raised.traceback)
    assert "error: " not in capsys.readouterr().err


class CustomData(AudioDataModule):
    def __init__(self, *, extra: int, **settings: object):
        super().__init__(**settings)
        self.extra = extra


class CustomCallback(L.Callback):
    """Write the parts of a run to its directory."""

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        optimizer = type(trainer.optimizers[0]).__name__
        names = [type(callback).__name__ for callback in trainer.callbacks]
        parts = {"optimizer": optimizer, "extra": trainer.datamodule.extra, "callbacks": names}
        Path(trainer.default_root_dir, "parts.json").write_text(json.dumps(parts))


def test_overrides_replace_the_data_module_the_optimizer_the_callbacks_and_the_logger(corpus: Path, tmp_path: Path):
    custom_parts = [
        f"data._target_={__name__}.CustomData",
        "+data.extra=3",
        f"+callbacks.own._target_={__name__}.CustomCallback",
    ]
    sgd = [
        "optim=adamw",
        "optim._target_=torch.optim.SGD",
        "+optim.momentum=0.9",
        "~optim.betas",
        "~optim.eps",
        "~optim.states",
    ]
    removed_parts = ["~callbacks.examples", "~logger", "max_steps=2", "experiment=qwen2_audio_pretrain"]
    run_config = config.resolve(config.compose([*smallest_run(corpus, tmp_path), *custom_parts, *sgd, *removed_parts]))
    metric = train.run(run_config)
    parts = json.loads(Path(run_config["run_dir"], "parts.json").read_text())
    assert parts["optimizer"] == "SGD" and parts["extra"] == 3 and "Examples" not in parts["callbacks"]
    assert parts["callbacks"][-2:] == ["CustomCallback", "CheckpointCallback"]
    assert not list(Path(run_config["run_dir"]).glob("events.*"))
    assert metric == json.loads(Path(run_config["run_dir"], "finished.json").read_text())["val/loss"]


@pytest.mark.parametrize("moment", ["before the parts are built", "when the fit starts", "in the first step"])
def test_a_run_that_fails_before_its_first_step_leaves_no_directory(compose_run, monkeypatch, moment: str):
    run_config = compose_run("max_steps=2", *(["data.train=[nowhere.jsonl]"] if moment.startswith("before") else []))

    def fail(*_: object) -> None:
        raise Killed

    hook = "on_train_start" if moment.startswith("when") else "training_step"
    monkeypatch.setattr(AudioLMModule, hook, fail)
    with pytest.raises((Killed, ValueError)):
        train.train(run_config)
    assert not Path(run_config["runs_dir"]).exists()


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_run_without_data_is_refused(compose_run, split: str):
    with pytest.raises(UserError, match=rf"data.{split}=\[\]: expected at least one file"):
        train.train(compose_run(f"data.{split}=[]"))


def test_a_metric_that_is_not_finite_is_null_in_the_summary(tmp_path: Path):
    metrics = {"val/loss": torch.tensor(torch.nan), "train/loss": torch.tensor(1.5)}
    trainer = SimpleNamespace(is_global_zero=True, global_step=3, callback_metrics=metrics, callbacks=[], loggers=[])
    train.write_summary(trainer, tmp_path, seconds=2.0)
    text = (tmp_path / "finished.json").read_text()
    assert "NaN" not in text
    assert json.loads(text) == {
        **{"steps": 3, "seconds": 2.0, "val/loss": None, "train/loss": 1.5},
        "nonfinite": {"val/loss": "nan"},
    }


def test_a_run_directory_is_kept_if_it_existed_before_or_its_run_has_made_a_step(compose_run):
    run_config = compose_run("max_steps=2", "data.train=[nowhere.jsonl]")
    run_dir = Path(run_config["run_dir"])
    run_dir.mkdir(parents=True)
    (run_dir / "log.txt").write_text("log of a study")
    with pytest.raises(ValueError, match="nowhere"):
        train.train(run_config)
    assert (run_dir / "log.txt").is_file()
    other = run_dir / "other"

    def begin_and_fail() -> None:
        with train.remove_if_unused(other):
            other.mkdir()
            (other / "progress.json").write_text("{}")
            raise Killed

    with pytest.raises(Killed):
        begin_and_fail()
    assert other.is_dir()


def test_a_finished_run_is_skipped_and_another_config_for_its_name_is_refused(compose_run, capsys):
    run_config = compose_run("max_steps=2")
    train.train(run_config)
    before = weights(run_config)
    train.train(run_config)
    assert_equal(before, weights(run_config))
    with pytest.raises(ValueError, match=r"optim.lr: .* -> 0.5.*arm=NAME"):
        train.train(compose_run("max_steps=2", "optim.lr=0.5"))


@pytest.mark.parametrize(
    "batching",
    [
        ["data.rows_per_step=7"],
        pytest.param(["data.rows_per_step=null", "data.token_budget=700"], marks=pytest.mark.slow),
    ],
)
def test_every_row_reaches_training_step_once_per_data_epoch(compose_run, batching: list[str]):
    probe = compose_run("max_steps=2", *batching, "arm=probe")
    _, data = train.build(probe)
    data.setup("fit")
    steps = data.plan.n_steps(3)
    recorder = RowRecorder()
    fit(compose_run(f"max_steps={steps}", *batching, "+trainer.limit_val_batches=0"), recorder)
    rows = [row for step in recorder.steps for row in step]
    assert len(recorder.steps) == steps
    counts = torch.bincount(torch.tensor(rows), minlength=data.plan.epoch_rows)
    # The last step may reach into the fourth epoch.
    assert counts.min() == 3 and len(rows) - 3 * data.plan.epoch_rows < max(len(step) for step in recorder.steps)


@pytest.mark.slow
def test_compiled_blocks_train_to_the_same_weights(compose_run):
    run_configs = [
        compose_run("max_steps=3", f"compile={backend}", f"arm=a_{backend}") for backend in ("null", "eager")
    ]
    for run_config in run_configs:
        train.train(run_config)
    assert_equal(*map(weights, run_configs), tolerance=1e-6)


def test_only_trainable_parts_change(compose_run):
    run_config = compose_run("max_steps=2", "trainable=[projector]")
    module, _data = train.build(run_config)
    module.configure_model()
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    train.train(run_config)
    for name, tensor in weights(run_config).items():
        assert torch.equal(tensor, start[name]) != name.startswith("net.projector."), name


def test_weights_of_a_part_are_loaded_from_another_run(compose_run):
    first = compose_run("max_steps=2", "experiment=encoder_ctc", "arm=encoder")
    train.train(first)
    second = compose_run("max_steps=2", "trainable=[projector]", f"weights.encoder={first['run_dir']}")
    train.train(second)
    encoder = {name: tensor for name, tensor in weights(first).items() if name.startswith("net.encoder.")}
    assert_equal(encoder, {name: tensor for name, tensor in weights(second).items() if name in encoder})


def test_the_error_for_weights_that_do_not_fit_names_the_tensor_and_both_shapes(compose_run):
    first = compose_run("max_steps=2", "experiment=encoder_ctc", "arm=encoder", "model/encoder=whisper_v2")
    train.train(first)
    second = compose_run("max_steps=2", "model/encoder=whisper_v3", f"weights.encoder={first['run_dir']}")
    with pytest.raises(ValueError, match=r"conv1.weight has shape \(16, 80, 3\), expected \(16, 128, 3\)"):
        train.train(second)


def test_unreadable_rows_are_reported_and_the_other_rows_keep_their_steps(compose_run, corpus: Path, tmp_path: Path):
    lines = (corpus / "train.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "audio": str(corpus / json.loads(line)["audio"])} for line in lines]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "noise.flac").write_bytes(b"fLaC but not really")
    rows[3]["audio"] = "noise.flac"
    rows[4]["text"] = rows[4].get("text") and " "  # unusable if the row has a text
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recorders = {}
    for name in ("good", "bad"):
        recorders[name] = RowRecorder()
        run_config = compose_run("max_steps=12", f"arm={name}", f"data.train=[{tmp_path}/{name}.jsonl]")
        fit(run_config, recorders[name])
        report = Path(run_config["run_dir"]) / "unusable_rows.jsonl"
    unreadable = {3, 4} if rows[4].get("text") == " " else {3}
    for good, bad in zip(recorders["good"].steps, recorders["bad"].steps, strict=True):
        assert sorted(bad) == sorted(set(good) - unreadable)
    reasons = {row["id"]: row["reason"] for row in map(json.loads, report.read_text().splitlines())}
    assert set(reasons) == {rows[number]["id"] for number in unreadable}
    assert "noise.flac" in reasons[rows[3]["id"]]


def test_training_on_two_processes_equals_training_on_one(compose_run, corpus: Path, tmp_path: Path):
    """DDP over gloo with packs of different sizes and an odd number of rows gives the weights of one process."""
    options = ["max_steps=3", "data.rows_per_step=7", "data.token_budget=300", "optim.layer_decay=0.9"]
    single = compose_run(*options, "arm=one")
    train.train(single)
    overrides = [*options, "arm=two", "strategy=ddp", "trainer.devices=2"]
    two_processes = compose_run(*overrides)
    train_in_a_process(two_processes, tmp_path)
    assert_equal(weights(single), weights(two_processes), tolerance=1e-6)


STRATEGIES = [("ddp", 2)] + [pytest.param(*case, marks=pytest.mark.slow) for case in (("fsdp", 3), ("fsdp_tp", 2))]


@pytest.mark.parametrize(("strategy", "world"), STRATEGIES)
def test_validation_logs_scores_texts_and_audio_of_the_same_rows_on_any_number_of_processes(
    compose_run, tmp_path: Path, strategy: str, world: int
):
    """Compare WER, BLEU and accuracy of a small fixed subset, and the first rows of each task."""
    options = [
        "experiment=qwen2_audio_pretrain",
        "max_steps=2",
        "trainer.val_check_interval=1",
        "data.token_budget=900",
    ]
    single = compose_run(*options, "arm=one")
    train.train(single)
    several = compose_run(*options, "arm=more", f"strategy={strategy}", f"trainer.devices={world}")
    assert in_processes(lambda: train.train(several), world, tmp_path) == [0] * world, read_logs(tmp_path)
    logged = []
    for run_config in (single, several):
        events = EventAccumulator(run_config["run_dir"], size_guidance={"tensors": 0, "audio": 0}).Reload()
        tags = events.Tags()
        names = {tag for tag in tags["scalars"] if tag.startswith("val/")} - {"val/loss", "val/accuracy"}
        assert {"val/asr en/wer", "val/s2tt de-en/bleu", "val/sec/accuracy"} <= names
        scores = {tag: [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)] for tag in names}
        texts = {}
        for tag in (tag for tag in tags["tensors"] if tag.startswith("val/")):
            text_events = events.Tensors(tag)
            assert [event.step for event in text_events] == [1, 2]
            texts[tag] = [event.tensor_proto.string_val[0].decode() for event in text_events]
            rows = [re.findall("row (.*)|reference: (.*)", text) for text in texts[tag]]
            assert rows[0] == rows[1] and 0 < len(rows[0]) <= 2 * callbacks.EXAMPLES_PER_GROUP
        sounds = {tag: [event.length_frames for event in events.Audio(tag)] for tag in tags["audio"]}
        assert sounds and all(len(lengths) == 1 for lengths in sounds.values())
        logged.append((scores, texts, sounds))
    assert logged[0] == logged[1]


def test_a_dry_run_describes_the_run_and_writes_nothing(compose_run, capsys: pytest.CaptureFixture):
    run_config = compose_run("experiment=qwen_audio_pretrain", "dry_run=true")
    train.train(run_config)
    output = capsys.readouterr().out
    assert "this run" in output and "first batch:" in output and "6 rows" in output
    assert "audio tokens]" in output and ("<|startoftranscript|>" in output or "<|startofanalysis|>" in output)
    assert not Path(run_config["run_dir"]).exists()


def test_a_dry_run_plans_an_epoch_for_the_requested_ranks(compose_run, corpus, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    options = [
        "strategy=hsdp",
        "trainer.devices=8",
        "trainer.num_nodes=2",
        "trainable=[projector,llm.new_tokens,llm.lora]",
    ]
    run_config = compose_run("experiment=qwen2_audio_pretrain", "dry_run=true", "data.rows_per_step=16", *options)
    train.train(run_config)
    output = capsys.readouterr().out
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    for part in (
        "planned for processes=16, per_machine=8, machines=2, replicas=2",
        f"an epoch: {len(rows)} rows (0 unusable) in {-(-len(rows) // 16)} steps",
        "ranks: 16; 1.00 packs per rank and step",
        "on 16 H100 at 400 TFLOP/s each",
        "llm: rows of new tokens",
        "llm: LoRA",
    ):
        assert part in output, part
    shares = {line.split()[1]: line for line in output.splitlines() if line.startswith("│") and line.endswith("% │")}
    assert {row["task"] for row in rows} <= shares.keys()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["weights.encoder={whisper}", "model.encoder.n_heads=4"], "set model.encoder.n_heads=2$"),
        (["weights.encoder={whisper}", "model.encoder.width=16"], "set model.encoder.width=32$"),
        (["optim.lr_factors={{encodr: 0.1}}"], "optim.lr_factors contains encodr: expected encoder"),
        (["trainable=[encodr]"], "trainable"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(compose_run, tmp_path: Path, overrides: list[str], message: str):
    published.whisper(tmp_path / "whisper")
    sizes = {"n_mels": 16, "width": 32, "n_layers": 2, "n_heads": 2, "ffn": 48}
    overrides = [override.format(whisper=tmp_path / "whisper") for override in overrides]
    encoder = [f"model.encoder.{name}={size}" for name, size in sizes.items()]
    run_config = compose_run(*encoder, *overrides)
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=message):
            train.train({**run_config, "dry_run": dry_run})


def test_a_model_starts_from_the_checkpoint_of_another_run(compose_run):
    first = compose_run("experiment=qwen_audio_pretrain", "arm=first", "max_steps=2", "seed=3")
    train.train(first)
    module, _ = train.build(compose_run("experiment=qwen_audio_pretrain", f"checkpoint={first['run_dir']}"))
    module.configure_model()
    state = load_state(first["run_dir"])
    assert all(torch.equal(tensor, state[f"net.{name}"]) for name, tensor in module.net.state_dict().items())


def test_weights_of_another_vocabulary_are_refused(compose_run, tmp_path: Path):
    first = compose_run("experiment=llm_text", "arm=first", "max_steps=2")
    train.train(first)
    Tokenizer.train(["other words entirely"], vocab_size=300).save(tmp_path / "other")
    run_config = compose_run(
        "experiment=qwen_audio_pretrain", f"weights.llm={first['run_dir']}", f"tokenizer={tmp_path}/other"
    )
    with pytest.raises(
        ValueError, match="was trained with a vocabulary that differs from tokenizer=.*: set tokenizer="
    ):
        train.build(run_config)


def test_parts_of_a_model_start_from_published_directories(compose_run, corpus: Path, tmp_path: Path):
    """Whisper's encoder, and a language model with its own config.json and a vocabulary that grows."""
    published.whisper(tmp_path / "whisper")
    published.language_model(tmp_path / "llm")
    overrides = [
        "experiment=qwen2_audio_pretrain",
        f"weights.encoder={tmp_path}/whisper",
        f"weights.llm={tmp_path}/llm",
        f"tokenizer={corpus}/tokenizer",
        "max_steps=2",
    ]
    run_config = compose_run(*overrides)
    run_config = adopt_settings(run_config, find_sources(run_config), overrides)
    module, _ = train.build(run_config)
    module.configure_model()
    stored_rows = load_file(tmp_path / "llm/model.safetensors")["model.embed_tokens.weight"]
    table = module.net.llm.get_input_embeddings().weight
    assert torch.equal(table[: len(stored_rows)], stored_rows) and len(table) > len(stored_rows)
    whisper = load_file(tmp_path / "whisper/model.safetensors")["model.encoder.conv1.weight"]
    assert torch.equal(module.net.encoder.conv1.weight, whisper)
    train.train(run_config)
    assert checkpoint_dir.list_steps(Path(run_config["run_dir"]) / "checkpoints")[0] == 2
