"""Log-probabilities of answers under the reference model of DPO: values, the cache, and runs that use them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from torch import nn

from auris import config
from auris.audio import SpecAugment
from auris.data.batches import build_pack
from auris.data.pairs import PairSamples
from auris.data.rows import Row
from auris.inference import load as pretrained
from auris.text.chat import Qwen2AudioChat, QwenAudioChat
from auris.text.tokenizer import Tokenizer
from auris.training import references, replay
from auris.training import run as train
from auris.training.faults import Fault, RowPosition
from auris.training.objectives.dpo import DPO, answer_logps
from auris.training.objectives.next_token import NextToken
from support import nets
from support.manifests import make_sample_builder, read_row, tokenizer, write_manifest, write_wave
from support.recipes import SMALLEST_MODEL
from support.runs import ROOT, KillAt, Killed, assert_equal, fit, load_state, train_in_a_process, weights

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return scale_down(nets.build(vocab=tokenizer().size))


def scale_down(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.3)
    return net


@pytest.fixture
def samples() -> PairSamples:
    return make_sample_builder(PairSamples, prompt=Qwen2AudioChat())


def row(folder: Path, name: str, seconds: float = 0.3, rejected: str = "ein Hund") -> Row:
    write_wave(folder / f"{name}.wav", seconds)
    messages = [{"role": "user", "content": [{"type": "audio", "audio": f"{name}.wav"}]}]
    answers = {"chosen": "the cat sat", "rejected": rejected}
    return read_row(folder, id=name, messages=messages, task="preference", language=None, text=None, **answers)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    return [row(tmp_path, name, seconds) for name, seconds in (("a", 0.3), ("b", 0.5), ("c", 0.4))]


class CallRecorder:
    """Record the rows of every pack that `answer_logps` is called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_after: int | None = None):
        self.rows: list[list[int]] = []
        self.fail_after = fail_after
        monkeypatch.setattr(references, "answer_logps", self)

    def __call__(self, net: nn.Module, batch: dict) -> Any:
        if self.fail_after is not None and len(self.rows) == self.fail_after:
            raise KeyboardInterrupt
        self.rows.append(batch["rows"])
        return answer_logps(net, batch)


def compute(
    net: nn.Module, rows: list[Row], samples: PairSamples, file: Path, **overrides: Any
) -> references.LogpTable:
    tokens = np.array([samples.max_length(row, samples.audio_lengths(row)) for row in rows])
    options = {"file": file, "token_budget": 64} | overrides
    return references.logps_by_id(references.compute_logps(net, rows, tokens, samples, **options), rows)


# --- values ---


def test_references_are_the_log_probabilities_of_the_answers(net, rows, samples, tmp_path):
    table = compute(net, rows, samples, tmp_path / "cache")
    with torch.no_grad():
        expected, _ = answer_logps(net, build_pack(rows, [(number, None) for number in range(3)], samples))
    assert [*table] == ["a", "b", "c"]
    torch.testing.assert_close(torch.tensor([*table.values()]), expected)


def test_cached_references_equal_the_computed_ones_exactly(net, rows, samples, tmp_path, monkeypatch):
    table = compute(net, rows, samples, tmp_path / "cache")
    calls = CallRecorder(monkeypatch)
    assert compute(net, rows, samples, tmp_path / "cache") == table
    assert calls.rows == []


def test_equal_rows_are_computed_once(net, rows, samples, tmp_path, monkeypatch):
    calls = CallRecorder(monkeypatch)
    duplicate = replace(rows[0], id="duplicate")
    table = compute(net, [*rows, duplicate], samples, tmp_path / "cache")
    assert sum(len(numbers) for numbers in calls.rows) == 3
    assert table["duplicate"] == table["a"]


def test_an_unreadable_row_has_no_reference(net, rows, samples, tmp_path):
    tokens = np.array([samples.max_length(row, samples.audio_lengths(row)) for row in rows])
    (tmp_path / "b.wav").unlink()
    table = references.compute_logps(net, rows, tokens, samples, file=tmp_path / "cache", token_budget=64)
    assert [*references.logps_by_id(table, rows)] == ["a", "c"]


# --- cache ---


def test_a_killed_computation_resumes(net, rows, samples, tmp_path, monkeypatch):
    killed_calls = CallRecorder(monkeypatch, fail_after=2)
    one_by_one = {"token_budget": max(samples.max_length(row, samples.audio_lengths(row)) for row in rows)}
    with pytest.raises(KeyboardInterrupt):
        compute(net, rows, samples, tmp_path / "cache", **one_by_one)
    resumed_calls = CallRecorder(monkeypatch)
    table = compute(net, rows, samples, tmp_path / "cache", **one_by_one)
    assert len(killed_calls.rows) == 2 and len(resumed_calls.rows) == 1
    assert table == compute(net, rows, samples, tmp_path / "fresh", **one_by_one)


def test_only_the_row_of_a_truncated_line_is_computed_again(net, rows, samples, tmp_path, monkeypatch):
    complete = compute(net, rows, samples, tmp_path / "cache")
    (file,) = tmp_path.glob("cache-*.jsonl")
    file.write_bytes(file.read_bytes()[:-20])
    calls = CallRecorder(monkeypatch)
    compute(net, rows, samples, tmp_path / "cache")
    assert len(calls.rows) == 1 and len(calls.rows[0]) == 1
    calls.rows.clear()
    table = compute(net, rows, samples, tmp_path / "cache")
    assert all(table[name] == pytest.approx(complete[name], abs=1e-4) for name in "abc")
    assert calls.rows == []


@pytest.mark.parametrize("change", ["answer", "audio", "audio of the same length", "order of the answers"])
def test_a_changed_row_is_computed_again(net, rows, samples, tmp_path, monkeypatch, change):
    before = compute(net, rows, samples, tmp_path / "cache")
    if change == "answer":
        rows[1] = row(tmp_path, "b", 0.5, rejected="ein Hund schläft")
    elif change == "order of the answers":
        labels = rows[1].labels
        rows[1] = replace(rows[1], labels={**labels, "chosen": labels["rejected"], "rejected": labels["chosen"]})
    elif change == "audio":
        write_wave(tmp_path / "b.wav", 0.6)
    else:
        soundfile.write(tmp_path / "b.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 8000), 16_000)
    calls = CallRecorder(monkeypatch)
    after = compute(net, rows, samples, tmp_path / "cache")
    assert calls.rows == [[1]]
    assert after["a"] == before["a"] and after["b"] != before["b"]


def test_moving_the_audio_file_or_renaming_the_row_keeps_the_cache_valid(net, rows, samples, tmp_path, monkeypatch):
    compute(net, rows, samples, tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    moved = replace(row(tmp_path / "elsewhere", "a"), id="renamed")
    calls = CallRecorder(monkeypatch)
    assert [*compute(net, [moved], samples, tmp_path / "cache")] == ["renamed"]
    assert calls.rows == []


def test_the_cache_digest_depends_on_weights_architecture_template_audio_and_precision(net, samples):
    def digest(net=net, samples=samples, model="qwen2_audio", precision="32-true") -> str:
        return references.cache_digest(net, samples, {"model": model}, precision)

    other = scale_down(nets.build(vocab=tokenizer().size))
    other.load_state_dict(net.state_dict())
    assert digest(other) == digest()  # independent of where the weights came from
    with torch.no_grad():
        next(other.parameters()).flatten()[0] += 1e-6
    released_spacing, sample_spacing = (
        make_sample_builder(PairSamples, prompt=QwenAudioChat(spacing=s)) for s in ("released", "sft_sample")
    )
    windowed = make_sample_builder(PairSamples, prompt=Qwen2AudioChat(), long_audio="window")
    digests = [
        digest(),
        digest(other),
        digest(samples=released_spacing),
        digest(samples=sample_spacing),
        digest(samples=windowed),
    ]
    digests += [digest(model="qwen_audio"), digest(precision="bf16-mixed")]
    assert len(set(digests)) == len(digests)


# --- augmentation ---


def test_augmentation_and_cached_references_are_refused_together(samples):
    samples.augment = SpecAugment(
        n_freq_masks=1, freq_mask_param=4, n_time_masks=1, time_mask_param=10, p=1.0, time_warp=0
    )
    with pytest.raises(ValueError, match="set data.augment=null .*, or objective.reference=live"):
        references.check_augmentation(DPO(), samples)
    references.check_augmentation(DPO(reference="live"), samples)
    references.check_augmentation(NextToken(), samples)
    samples.augment = None
    references.check_augmentation(DPO(), samples)


# --- runs ---


@pytest.fixture
def compose_run(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compose a preference run small enough for a test, with audio of the corpus."""
    monkeypatch.chdir(ROOT)
    for split in ("train", "valid"):
        lines = (corpus / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        asr_rows = [row for row in map(json.loads, lines) if row["task"] == "asr"][:10]
        texts = [row["text"] for row in asr_rows]
        pairs = [
            {
                "id": row["id"],
                "messages": [{"role": "user", "content": [{"type": "audio", "audio": str(corpus / row["audio"])}]}],
                "chosen": row["text"],
                "rejected": rejected,
            }
            for row, rejected in zip(asr_rows, texts[1:] + texts[:1], strict=True)
            if row["text"] != rejected
        ]
        write_manifest(tmp_path / f"{split}.jsonl", pairs)
    size = [
        "experiment=qwen2_audio_dpo",
        "scale=tiny",
        f"runs_dir={tmp_path}/runs",
        f"data.root={corpus}",
        f"data.train=[{tmp_path}/train.jsonl]",
        f"data.valid=[{tmp_path}/valid.jsonl]",
        f"data.cache_dir={tmp_path}/cache",
        "data.rows_per_step=4",
        *SMALLEST_MODEL,
        "optim.warmup_steps=1",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
        "max_new_tokens=4",
        "trainer.enable_progress_bar=false",
    ]
    return lambda *overrides: config.resolve(config.compose([*size, *overrides]))


def test_replaying_a_step_computes_references_of_only_its_rows(compose_run, monkeypatch):
    run_config = compose_run("max_steps=4")
    train.claim_run_dir(Path(run_config["run_dir"]), run_config)
    _, data = train.build(run_config)
    data.setup("fit")
    first_rows = data.plan.step(1)[:2]
    positions = [RowPosition(row=row, id=data.rows[row].id, epoch=epoch) for row, epoch in first_rows]
    file = Fault(step=1, reason="a test", ranks=[[positions]]).save(Path(run_config["run_dir"]))
    calls = CallRecorder(monkeypatch)
    assert replay.replay(file, checkpoint=None, accelerator="cpu", console=Console(quiet=True)) == []
    assert sum(map(len, calls.rows)) == len({data.rows[row].id for row, _ in first_rows}) < len(data.rows)


def test_cached_and_live_references_give_the_same_training(compose_run, monkeypatch):
    # Adam normalises gradients: with a small eps, the rounding error of a nearly zero gradient becomes a full step.
    options = ["max_steps=4", "optim.lr=1e-3", "optim.eps=1e-4"]
    cached, live = compose_run(*options, "arm=cached"), compose_run(*options, "arm=live", "objective.reference=live")
    for run_config in (cached, live):
        train.train(run_config)
    assert_equal(weights(cached), weights(live), 1e-5)
    finished = [
        json.loads((Path(run_config["run_dir"]) / "finished.json").read_text()) for run_config in (cached, live)
    ]
    for name in ("train/loss", "train/reward_margin", "train/kl", "val/loss", "val/accuracy", "val/logps_chosen"):
        assert finished[0][name] == pytest.approx(finished[1][name], abs=1e-4), name
    assert abs(finished[0]["train/reward_margin"]) > 1e-3  # the policy has moved away from its reference


def test_a_live_reference_reads_cached_frames_as_the_policy_does(compose_run):
    """The policy, which hardly changes, stays equal to its reference."""
    run_config = compose_run(
        *("max_steps=2", "optim.lr=1e-9", "optim.min_lr=0", "objective.reference=live", "data.encoder_frames=cached"),
        *("model.encoder.n_layers=2", "trainable=[encoder.blocks.1,encoder.norm,projector]"),
    )
    train.train(run_config)
    finished = json.loads((Path(run_config["run_dir"]) / "finished.json").read_text())
    assert finished["train/kl"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("reference", ["cached", pytest.param("live", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_with_its_original_reference(compose_run, monkeypatch, reference):
    options = ["max_steps=4", "checkpoint_every=2", "optim.lr=1e-3", f"objective.reference={reference}"]
    uninterrupted = compose_run(*options, "arm=uninterrupted")
    train.train(uninterrupted)
    calls = CallRecorder(monkeypatch)
    killed = compose_run(*options, "arm=killed")
    train.claim_run_dir(Path(killed["run_dir"]), killed)
    with pytest.raises(Killed):
        fit(killed, KillAt(3))
    train.train(killed)
    assert calls.rows == []  # the uninterrupted run has computed all of them
    assert_equal(weights(uninterrupted), weights(killed), 0.0)


@pytest.mark.slow
def test_a_run_fine_tuned_on_another_machine_can_be_trained_on_preferences_here(
    compose_run, corpus, tmp_path, monkeypatch
):
    """Only the run directory is copied. Rows, config and tokenizer of the other machine are no longer available."""
    other_machine = tmp_path / "other_machine"
    shutil.copytree(corpus, other_machine / "corpus")
    for split in ("train", "valid"):
        pairs = map(json.loads, (tmp_path / f"{split}.jsonl").read_text(encoding="utf-8").splitlines())
        answered_pairs = [{**pair, "answer": {"role": "assistant", "content": pair["chosen"]}} for pair in pairs]
        rows = [{"id": pair["id"], "messages": [*pair["messages"], pair["answer"]]} for pair in answered_pairs]
        for row in rows:
            [clip] = row["messages"][0]["content"]
            clip["audio"] = str(other_machine / "corpus" / Path(clip["audio"]).relative_to(corpus))
        write_manifest(other_machine / f"{split}.jsonl", rows)
    fine_tuned = compose_run(
        *["prompt=chat_v2", "objective=sft", "data.view=chat", "stage=sft", "max_steps=2", "arm=tuned"],
        *[
            f"data.root={other_machine}/corpus",
            f"data.train=[{other_machine}/train.jsonl]",
            f"data.valid=[{other_machine}/valid.jsonl]",
        ],
    )
    assert str(other_machine) in fine_tuned["tokenizer"]
    train.train(fine_tuned)
    assert "unusable_rows" not in {path.stem for path in Path(fine_tuned["run_dir"]).iterdir()}
    copied_run = Path(shutil.move(fine_tuned["run_dir"], tmp_path / "copied_run"))
    shutil.rmtree(other_machine)
    model = pretrained.load(copied_run)
    assert model.is_chat and model.tokenizer.fast.get_vocab() == Tokenizer.load(corpus / "tokenizer").fast.get_vocab()
    with pytest.raises(FileNotFoundError, match=f"tokenizer={tmp_path}/none/a/b: .*tokenizer={copied_run}/tokenizer"):
        train.train(compose_run("max_steps=2", f"checkpoint={copied_run}", f"tokenizer={tmp_path}/none/a/b"))
    nearly_frozen = ["max_steps=2", "optim.lr=1e-9", "optim.min_lr=1e-9"]
    run_config = compose_run(*nearly_frozen, f"checkpoint={copied_run}", f"tokenizer={copied_run}/tokenizer")
    train.train(run_config)
    assert_equal(load_state(copied_run), weights(run_config), 1e-6)
    assert (Path(run_config["run_dir"]) / "tokenizer").is_dir()


def test_moving_the_data_to_another_folder_keeps_the_references(compose_run, corpus, tmp_path, monkeypatch):
    train.train(compose_run("max_steps=2", "arm=before"))
    moved = tmp_path / "moved"
    moved.mkdir()
    for split in ("train", "valid"):
        rows = [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for number, row in enumerate(rows):
            [clip] = row["messages"][0]["content"]
            file = Path(clip["audio"])
            clip["audio"] = str(shutil.copy(file, moved / f"{split}-{number}{file.suffix}"))
        write_manifest(moved / f"{split}.jsonl", rows)
    calls = CallRecorder(monkeypatch)
    options = ["max_steps=2", f"data.train=[{moved}/train.jsonl]", f"data.valid=[{moved}/valid.jsonl]"]
    train.train(compose_run(*options, "arm=after"))
    assert calls.rows == []
    rows[0]["chosen"] += " indeed"
    write_manifest(moved / "valid.jsonl", rows)
    train.train(compose_run(*options, "arm=changed"))
    assert [len(numbers) for numbers in calls.rows] == [1]


class EncoderCalls(L.Callback):
    """Count the clips that go through the encoder in each training step."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.clips: list[int] = []
        self.steps: list[int] = []

        def count(encoder: nn.Module, args: tuple, out: object) -> None:
            if trainer.training:
                self.clips.append(len(args[1]))

        module.net.encoder.register_forward_hook(count)

    def on_train_batch_end(self, *_: object) -> None:
        self.steps.append(sum(self.clips))
        self.clips.clear()


def test_a_step_encodes_each_clip_once(compose_run):
    """Both answers of a pair share the encoding, and a cached reference runs no other net."""
    calls = EncoderCalls()
    run_config = compose_run("max_steps=3")
    train.claim_run_dir(Path(run_config["run_dir"]), run_config)
    fit(run_config, calls)
    assert calls.steps == [4] * 3  # data.rows_per_step pairs with one clip each


@pytest.mark.slow
def test_two_processes_share_the_references_and_train_like_one_process(compose_run, tmp_path):
    options = ["max_steps=3", "optim.lr=1e-3"]
    single = compose_run(*options, "arm=one")
    train.train(single)
    (cache_file,) = (tmp_path / "cache").glob("references-*.jsonl")
    n_pairs = len(cache_file.read_text().splitlines())
    cache_file.unlink()
    two_processes = compose_run(*options, "arm=two", "strategy=ddp", "trainer.devices=2", "data.token_budget=200")
    train_in_a_process(two_processes, tmp_path)
    written = sorted(path.read_text().count("\n") for path in (tmp_path / "cache").glob("references-*.jsonl"))
    assert len(written) == 2 and sum(written) == n_pairs and written[0] > 0
    assert_equal(weights(single), weights(two_processes), 1e-5)


def test_a_run_with_different_initial_weights_computes_new_references(compose_run, monkeypatch):
    calls = CallRecorder(monkeypatch)
    train.train(compose_run("max_steps=2", "arm=one"))
    first = sum(map(len, calls.rows))
    train.train(compose_run("max_steps=2", "arm=two", "seed=1"))
    assert first > 0 and sum(map(len, calls.rows)) == 2 * first


def test_augmentation_is_refused_before_anything_is_computed(compose_run, monkeypatch):
    calls = CallRecorder(monkeypatch)
    with pytest.raises(ValueError, match="data.augment changes the audio"):
        train.train(compose_run("max_steps=2", "data/augment=specaugment"))
    assert calls.rows == []
    train.train(compose_run("max_steps=2", "data/augment=specaugment", "objective.reference=live"))


def test_an_invalid_beta_is_refused_before_training(compose_run):
    with pytest.raises(ValueError, match=r"^objective.beta=0.0: expected a number > 0"):
        compose_run("max_steps=2", "objective.beta=0.0")
