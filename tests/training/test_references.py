"""Reference log-probabilities: what they are, when they are computed again, and runs that are given them."""

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
from auris.data.batches import pack
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
from support.manifests import read_row, samples_of, tokenizer, write_manifest, write_wave
from support.recipes import SMALLEST_MODEL
from support.runs import ROOT, KillAt, Killed, assert_equal, fit, load_state, train_in_a_process, weights


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return small(nets.build(vocab=tokenizer().size))


def small(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.3)
    return net


@pytest.fixture
def samples() -> PairSamples:
    return samples_of(PairSamples, prompt=Qwen2AudioChat())


def row(folder: Path, name: str, seconds: float = 0.3, rejected: str = "ein Hund") -> Row:
    write_wave(folder / f"{name}.wav", seconds)
    asked = [{"role": "user", "content": [{"type": "audio", "audio": f"{name}.wav"}]}]
    answers = {"chosen": "the cat sat", "rejected": rejected}
    return read_row(folder, id=name, messages=asked, task="preference", language=None, text=None, **answers)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    return [row(tmp_path, name, seconds) for name, seconds in (("a", 0.3), ("b", 0.5), ("c", 0.4))]


class Counted:
    """How many rows a net was asked about: packs' rows as `answer_logps` sees them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_after: int | None = None):
        self.rows: list[list[int]] = []
        self.fail_after = fail_after
        monkeypatch.setattr(references, "answer_logps", self)

    def __call__(self, net: nn.Module, batch: dict) -> Any:
        if self.fail_after is not None and len(self.rows) == self.fail_after:
            raise KeyboardInterrupt
        self.rows.append(batch["rows"])
        return answer_logps(net, batch)


def compute(net: nn.Module, rows: list[Row], samples: PairSamples, file: Path, **changed: Any) -> references.Table:
    tokens = np.array([samples.length(row, samples.spans(row)) for row in rows])
    options = {"file": file, "token_budget": 64} | changed
    return references.by_id(references.compute(net, rows, tokens, samples, **options), rows)


# --- what they are ---


def test_they_are_the_answers_log_probabilities(net, rows, samples, tmp_path):
    table = compute(net, rows, samples, tmp_path / "cache")
    with torch.no_grad():
        expected, _ = answer_logps(net, pack(rows, [(number, None) for number in range(3)], samples))
    assert [*table] == ["a", "b", "c"]
    torch.testing.assert_close(torch.tensor([*table.values()]), expected)


def test_a_cached_number_is_the_computed_one_to_the_last_bit(net, rows, samples, tmp_path, monkeypatch):
    table = compute(net, rows, samples, tmp_path / "cache")
    counted = Counted(monkeypatch)
    assert compute(net, rows, samples, tmp_path / "cache") == table
    assert counted.rows == []


def test_equal_rows_are_computed_once(net, rows, samples, tmp_path, monkeypatch):
    counted = Counted(monkeypatch)
    twin = replace(rows[0], id="twin")
    table = compute(net, [*rows, twin], samples, tmp_path / "cache")
    assert sum(len(numbers) for numbers in counted.rows) == 3
    assert table["twin"] == table["a"]


def test_an_unreadable_row_has_no_length(net, rows, samples, tmp_path):
    tokens = np.array([samples.length(row, samples.spans(row)) for row in rows])
    (tmp_path / "b.wav").unlink()
    table = references.compute(net, rows, tokens, samples, file=tmp_path / "cache", token_budget=64)
    assert [*references.by_id(table, rows)] == ["a", "c"]


# --- when they are computed again ---


def test_a_killed_computation_resumes(net, rows, samples, tmp_path, monkeypatch):
    killed = Counted(monkeypatch, fail_after=2)
    one_by_one = {"token_budget": max(samples.length(row, samples.spans(row)) for row in rows)}
    with pytest.raises(KeyboardInterrupt):
        compute(net, rows, samples, tmp_path / "cache", **one_by_one)
    resumed = Counted(monkeypatch)
    table = compute(net, rows, samples, tmp_path / "cache", **one_by_one)
    assert len(killed.rows) == 2 and len(resumed.rows) == 1
    assert table == compute(net, rows, samples, tmp_path / "fresh", **one_by_one)


def test_half_a_line_is_computed_again_and_nothing_is_lost_behind_it(net, rows, samples, tmp_path, monkeypatch):
    whole = compute(net, rows, samples, tmp_path / "cache")
    (file,) = tmp_path.glob("cache-*.jsonl")
    file.write_bytes(file.read_bytes()[:-20])
    counted = Counted(monkeypatch)
    compute(net, rows, samples, tmp_path / "cache")
    assert len(counted.rows) == 1 and len(counted.rows[0]) == 1
    counted.rows.clear()
    table = compute(net, rows, samples, tmp_path / "cache")
    assert all(table[name] == pytest.approx(whole[name], abs=1e-4) for name in "abc")
    assert counted.rows == []


@pytest.mark.parametrize("change", ["answer", "sound", "sound of the same length", "order of the answers"])
def test_a_row_that_was_changed_is_computed_again(net, rows, samples, tmp_path, monkeypatch, change):
    before = compute(net, rows, samples, tmp_path / "cache")
    if change == "answer":
        rows[1] = row(tmp_path, "b", 0.5, rejected="ein Hund schläft")
    elif change == "order of the answers":
        labels = rows[1].labels
        rows[1] = replace(rows[1], labels={**labels, "chosen": labels["rejected"], "rejected": labels["chosen"]})
    elif change == "sound":
        write_wave(tmp_path / "b.wav", 0.6)
    else:
        soundfile.write(tmp_path / "b.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 8000), 16_000)
    counted = Counted(monkeypatch)
    after = compute(net, rows, samples, tmp_path / "cache")
    assert counted.rows == [[1]]
    assert after["a"] == before["a"] and after["b"] != before["b"]


def test_moving_the_sound_and_renaming_the_row_changes_nothing(net, rows, samples, tmp_path, monkeypatch):
    compute(net, rows, samples, tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    moved = replace(row(tmp_path / "elsewhere", "a"), id="renamed")
    counted = Counted(monkeypatch)
    assert [*compute(net, [moved], samples, tmp_path / "cache")] == ["renamed"]
    assert counted.rows == []


def test_the_key_follows_weights_architecture_template_vocabulary_and_precision(net, samples):
    def key(net=net, samples=samples, model="qwen2_audio", precision="32-true") -> str:
        return references.cache_digest(net, samples, {"model": model}, precision)

    other = small(nets.build(vocab=tokenizer().size))
    other.load_state_dict(net.state_dict())
    assert key(other) == key()  # wherever the weights came from
    with torch.no_grad():
        next(other.parameters()).flatten()[0] += 1e-6
    released, sample = (samples_of(PairSamples, prompt=QwenAudioChat(spacing=s)) for s in ("released", "sft_sample"))
    windows = samples_of(PairSamples, prompt=Qwen2AudioChat(), long_audio="window")
    keys = [key(), key(other), key(samples=released), key(samples=sample), key(samples=windows)]
    keys += [key(model="qwen_audio"), key(precision="bf16-mixed")]
    assert len(set(keys)) == len(keys)


# --- augmentation ---


def test_augmentation_and_cached_references_are_refused_together(samples):
    samples.augment = SpecAugment(
        n_freq_masks=1, freq_mask_param=4, n_time_masks=1, time_mask_param=10, p=1.0, time_warp=0
    )
    with pytest.raises(ValueError, match="data.augment=null, or objective.reference=live"):
        references.check(DPO(), samples)
    references.check(DPO(reference="live"), samples)
    references.check(NextToken(), samples)
    samples.augment = None
    references.check(DPO(), samples)


# --- whole runs ---


@pytest.fixture
def smallest(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compose a preference run small enough for a test, about the corpus's own sounds."""
    monkeypatch.chdir(ROOT)
    for split in ("train", "valid"):
        lines = (corpus / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        spoken = [fields for fields in map(json.loads, lines) if fields["task"] == "asr"][:10]
        texts = [fields["text"] for fields in spoken]
        pairs = [
            {
                "id": fields["id"],
                "messages": [{"role": "user", "content": [{"type": "audio", "audio": str(corpus / fields["audio"])}]}],
                "chosen": fields["text"],
                "rejected": wrong,
            }
            for fields, wrong in zip(spoken, texts[1:] + texts[:1], strict=True)
            if fields["text"] != wrong
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


def test_replaying_a_step_computes_references_of_its_own_rows_only(smallest, monkeypatch):
    made = smallest("max_steps=4")
    train.claim(Path(made["run_dir"]), made)
    _, data = train.build(made)
    data.setup("fit")
    numbers = data.plan.step(1)[:2]
    places = [RowPosition(row=row, id=data.rows[row].id, epoch=epoch) for row, epoch in numbers]
    file = Fault(step=1, reason="a test", ranks=[[places]]).save(Path(made["run_dir"]))
    asked = Counted(monkeypatch)
    assert replay.replay(file, checkpoint=None, accelerator="cpu", console=Console(quiet=True)) == []
    assert sum(map(len, asked.rows)) == len({data.rows[row].id for row, _ in numbers}) < len(data.rows)


def test_a_cached_and_a_live_reference_train_alike(smallest, monkeypatch):
    # Adam divides a gradient by its own size: with a small eps, one that is nearly zero grows its rounding to a step.
    options = ["max_steps=4", "optim.lr=1e-3", "optim.eps=1e-4"]
    cached, live = smallest(*options, "arm=cached"), smallest(*options, "arm=live", "objective.reference=live")
    for made in (cached, live):
        train.train(made)
    assert_equal(weights(cached), weights(live), 1e-5)
    finished = [json.loads((Path(made["run_dir"]) / "finished.json").read_text()) for made in (cached, live)]
    for name in ("train/loss", "train/reward_margin", "train/kl", "val/loss", "val/accuracy", "val/logps_chosen"):
        assert finished[0][name] == pytest.approx(finished[1][name], abs=1e-4), name
    assert abs(finished[0]["train/reward_margin"]) > 1e-3  # the policy has left its reference


@pytest.mark.parametrize("reference", ["cached", "live"])
def test_a_killed_run_resumes_against_the_reference_that_it_started_from(smallest, monkeypatch, reference):
    options = ["max_steps=4", "checkpoint_every=2", "optim.lr=1e-3", f"objective.reference={reference}"]
    whole = smallest(*options, "arm=whole")
    train.train(whole)
    counted = Counted(monkeypatch)
    broken = smallest(*options, "arm=broken")
    train.claim(Path(broken["run_dir"]), broken)
    with pytest.raises(Killed):
        fit(broken, KillAt(3))
    train.train(broken)
    assert counted.rows == []  # the other run has computed them all
    assert_equal(weights(whole), weights(broken), 0.0)


def test_a_run_that_another_machine_fine_tuned_is_preferred_on_this_one(smallest, corpus, tmp_path, monkeypatch):
    """Only the run's directory comes along; rows, recipe and tokenizer of the machine that trained it are gone."""
    there = tmp_path / "there"
    shutil.copytree(corpus, there / "corpus")
    for split in ("train", "valid"):
        pairs = map(json.loads, (tmp_path / f"{split}.jsonl").read_text(encoding="utf-8").splitlines())
        answered = [{**pair, "answer": {"role": "assistant", "content": pair["chosen"]}} for pair in pairs]
        rows = [{"id": pair["id"], "messages": [*pair["messages"], pair["answer"]]} for pair in answered]
        for row in rows:
            [clip] = row["messages"][0]["content"]
            clip["audio"] = str(there / "corpus" / Path(clip["audio"]).relative_to(corpus))
        write_manifest(there / f"{split}.jsonl", rows)
    tuned = smallest(
        *["prompt=chat_v2", "objective=sft", "data.view=chat", "stage=sft", "max_steps=2", "arm=tuned"],
        *[f"data.root={there}/corpus", f"data.train=[{there}/train.jsonl]", f"data.valid=[{there}/valid.jsonl]"],
    )
    assert str(there) in tuned["tokenizer"]
    train.train(tuned)
    assert "unusable_rows" not in {path.stem for path in Path(tuned["run_dir"]).iterdir()}
    here = Path(shutil.move(tuned["run_dir"], tmp_path / "here"))
    shutil.rmtree(there)
    model = pretrained.load(here)
    assert model.is_chat and model.tokenizer.fast.get_vocab() == Tokenizer.load(corpus / "tokenizer").fast.get_vocab()
    with pytest.raises(FileNotFoundError, match=f"tokenizer={tmp_path}/none/a/b: .*tokenizer={here}/tokenizer"):
        train.train(smallest("max_steps=2", f"checkpoint={here}", f"tokenizer={tmp_path}/none/a/b"))
    slow = ["max_steps=2", "optim.lr=1e-9", "optim.min_lr=1e-9"]
    made = smallest(*slow, f"checkpoint={here}", f"tokenizer={here}/tokenizer")
    train.train(made)
    assert_equal(load_state(here), weights(made), 1e-6)
    assert (Path(made["run_dir"]) / "tokenizer").is_dir()


def test_data_in_another_folder_has_the_same_references(smallest, corpus, tmp_path, monkeypatch):
    train.train(smallest("max_steps=2", "arm=before"))
    moved = tmp_path / "moved"
    moved.mkdir()
    for split in ("train", "valid"):
        rows = [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for number, row in enumerate(rows):
            [clip] = row["messages"][0]["content"]
            file = Path(clip["audio"])
            clip["audio"] = str(shutil.copy(file, moved / f"{split}-{number}{file.suffix}"))
        write_manifest(moved / f"{split}.jsonl", rows)
    counted = Counted(monkeypatch)
    options = ["max_steps=2", f"data.train=[{moved}/train.jsonl]", f"data.valid=[{moved}/valid.jsonl]"]
    train.train(smallest(*options, "arm=after"))
    assert counted.rows == []
    rows[0]["chosen"] += " indeed"
    write_manifest(moved / "valid.jsonl", rows)
    train.train(smallest(*options, "arm=changed"))
    assert [len(numbers) for numbers in counted.rows] == [1]


class EncoderCalls(L.Callback):
    """Clips that go through the encoder in each training step."""

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


def test_a_step_encodes_each_clip_once(smallest):
    """For both answers of a pair, and with a cached reference for no other net."""
    calls = EncoderCalls()
    made = smallest("max_steps=3")
    train.claim(Path(made["run_dir"]), made)
    fit(made, calls)
    assert calls.steps == [4] * 3  # data.rows_per_step pairs about a clip each


@pytest.mark.slow
def test_two_processes_share_the_work_and_train_as_one(smallest, tmp_path):
    options = ["max_steps=3", "optim.lr=1e-3"]
    one = smallest(*options, "arm=one")
    train.train(one)
    (alone,) = (tmp_path / "cache").glob("references-*.jsonl")
    pairs = len(alone.read_text().splitlines())
    alone.unlink()
    two = smallest(*options, "arm=two", "strategy=ddp", "trainer.devices=2", "data.token_budget=200")
    train_in_a_process(two, tmp_path)
    written = sorted(path.read_text().count("\n") for path in (tmp_path / "cache").glob("references-*.jsonl"))
    assert len(written) == 2 and sum(written) == pairs and written[0] > 0
    assert_equal(weights(one), weights(two), 1e-5)


def test_other_initial_weights_are_another_reference(smallest, monkeypatch):
    counted = Counted(monkeypatch)
    train.train(smallest("max_steps=2", "arm=one"))
    first = sum(map(len, counted.rows))
    train.train(smallest("max_steps=2", "arm=two", "seed=1"))
    assert first > 0 and sum(map(len, counted.rows)) == 2 * first


def test_augmentation_is_refused_before_anything_is_computed(smallest, monkeypatch):
    counted = Counted(monkeypatch)
    with pytest.raises(ValueError, match="data.augment changes the audio"):
        train.train(smallest("max_steps=2", "data/augment=specaugment"))
    assert counted.rows == []
    train.train(smallest("max_steps=2", "data/augment=specaugment", "objective.reference=live"))


def test_a_wrong_beta_is_refused_before_training(smallest):
    with pytest.raises(ValueError, match=r"^objective.beta=0.0: expected a number above 0"):
        train.train(smallest("max_steps=2", "objective.beta=0.0"))
