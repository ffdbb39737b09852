"""Tests of the data module: resuming, the same rows on any number of ranks, and no effect of bad rows on others."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from auris.audio import SpecAugment
from auris.data.batches import EvaluationDataset, StepDataset, pack_by_length
from auris.data.datamodule import AudioDataModule
from auris.data.lengths import Lengths
from auris.data.rows import Row, group
from auris.data.samples import TextSamples
from auris.model.pack import IGNORE
from support.manifests import make_sample_builder, speech_rows, write_manifest

SECONDS = [0.3 + 0.07 * n for n in range(14)]
MASKS = SpecAugment(n_freq_masks=1, freq_mask_param=4, n_time_masks=1, time_mask_param=10, p=1.0, time_warp=0)
STEPS = 9


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write fourteen short clips to train.jsonl and three others to valid.jsonl."""
    folder = tmp_path_factory.mktemp("speech")
    write_manifest(folder / "train.jsonl", speech_rows(folder, SECONDS))
    write_manifest(folder / "valid.jsonl", speech_rows(folder, [0.5, 0.9, 0.7], prefix="v"))
    return folder


def module(
    folder: Path, *, global_step: int = 0, sampler_kwargs: dict | None = None, **settings: Any
) -> AudioDataModule:
    """Return a data module after `setup`, at step `global_step` of a run.

    Args:
        folder: Folder of train.jsonl and valid.jsonl.
        global_step: Number of finished steps.
        sampler_kwargs: The trainer's `distributed_sampler_kwargs`: `num_replicas` and `rank`.
        settings: Arguments that replace the defaults.
    """
    defaults: dict[str, Any] = {
        "samples": make_sample_builder(augment=MASKS, long_audio="skip"),
        "valid_samples": make_sample_builder(long_audio="skip"),
        "train": [str(folder / "train.jsonl")],
        "valid": [str(folder / "valid.jsonl")],
        "max_steps": STEPS,
        "rows_per_step": 4,
        "token_budget": 90,
        "cache_dir": str(folder / "cache"),
    }
    data = AudioDataModule(**defaults | settings)
    data.setup("fit")
    data.trainer = SimpleNamespace(global_step=global_step, distributed_sampler_kwargs=sampler_kwargs)
    return data


def steps(data: AudioDataModule, world: int, rank: int) -> StepDataset:
    return StepDataset(data.rows, data.plan, data.samples, world, rank)


def by_row(packs: list[dict]) -> dict[int, tuple[torch.Tensor, ...]]:
    """Return tokens, labels and stored features of each row of the packs, by row number."""
    rows = {}
    for pack in packs:
        tokens = pack["cu_seqlens"].diff().tolist()
        stored = [n + 2 for n in pack["frames"].tolist()]  # two frames of silence follow each clip
        parts = zip(pack["ids"].split(tokens), pack["labels"].split(tokens), pack["mel"].split(stored, 1), strict=True)
        assert not set(pack["rows"]) & set(rows)
        rows |= dict(zip(pack["rows"], parts, strict=bool(pack["rows"])))
    return rows


def equal_rows(first: dict[int, tuple[torch.Tensor, ...]], second: dict[int, tuple[torch.Tensor, ...]]) -> bool:
    same = (torch.equal(a, b) for row in first for a, b in zip(first[row], second[row], strict=True))
    return list(first) == list(second) and all(same)


# --- steps ---


def test_a_batch_contains_the_rows_of_one_step(speech):
    data = module(speech)
    batches = list(data.train_dataloader())
    assert len(batches) == STEPS
    for number, packs in enumerate(batches):
        rows = [row for pack in packs for row in pack["rows"]]
        assert sorted(rows) == sorted(row for row, _ in data.plan.step(number))
        assert len(rows) == 4
        assert all(len(pack["ids"]) <= 90 for pack in packs)


def test_every_row_occurs_once_in_each_epoch(speech):
    batches = module(speech, rows_per_step=7).train_dataloader()
    rows = [row for packs in batches for pack in packs for row in pack["rows"]]
    assert len(rows) == STEPS * 7
    for epoch in range(4):
        assert sorted(rows[epoch * 14 : (epoch + 1) * 14]) == list(range(14))


def test_a_resumed_run_continues_with_the_next_step(speech):
    all_batches = list(module(speech).train_dataloader())
    loader = module(speech, global_step=5).train_dataloader()
    remaining = list(loader)
    assert len(loader) == STEPS  # Lightning counts from step 0
    assert len(remaining) == STEPS - 5
    for expected, actual in zip(all_batches[5:], remaining, strict=True):
        assert equal_rows(by_row(expected), by_row(actual))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_step_has_the_same_rows_on_any_number_of_ranks(speech, world):
    data = module(speech)
    for number in range(STEPS):
        expected = by_row(steps(data, 1, 0)[number])
        ranks = [steps(data, world, rank)[number] for rank in range(world)]
        assert len({len(packs) for packs in ranks}) == 1  # the exchange of gradients, one per pack, needs all ranks
        actual = by_row([pack for packs in ranks for pack in packs])
        assert equal_rows(dict(sorted(expected.items())), dict(sorted(actual.items())))


def test_the_loader_serves_the_rank_given_by_the_trainer(speech):
    data = module(speech, sampler_kwargs={"num_replicas": 3, "rank": 2})
    for packs, expected in zip(data.train_dataloader(), (steps(data, 3, 2)[n] for n in range(STEPS)), strict=True):
        assert equal_rows(by_row(packs), by_row(expected))


def test_worker_processes_do_not_change_the_batches(speech):
    without_workers = module(speech, max_steps=4).train_dataloader()
    with_workers = module(speech, max_steps=4, num_workers=2).train_dataloader()
    for expected, actual in zip(without_workers, with_workers, strict=True):
        assert equal_rows(by_row(expected), by_row(actual))


def test_packs_per_step_sets_the_number_of_packs_and_each_is_within_the_budget(speech):
    data = module(speech, rows_per_step=None, packs_per_step=2, max_steps=3)
    batches = list(data.train_dataloader())
    assert [len(packs) for packs in batches] == [2, 2, 2]
    assert all(len(pack["ids"]) <= 90 for packs in batches for pack in packs)


# --- rows that cannot be used ---


def write_with_bad_row(folder: Path, **fields: Any) -> Path:
    """Write the manifests of `speech` again with changed fields in row 5 of train.jsonl."""
    rows = speech_rows(folder, SECONDS)
    rows[5] |= fields
    write_manifest(folder / "train.jsonl", rows)
    write_manifest(folder / "valid.jsonl", speech_rows(folder, [0.5], prefix="v"))
    return folder


def test_an_unreadable_row_does_not_change_the_other_rows_of_a_pack(speech, tmp_path):
    write_with_bad_row(tmp_path)
    (tmp_path / "r5.wav").write_bytes(b"RIFF, but not audio")
    reference, damaged = module(speech), module(tmp_path)
    n_affected = 0
    for number in range(STEPS):
        for pack, damaged_pack in zip(steps(reference, 1, 0)[number], steps(damaged, 1, 0)[number], strict=True):
            assert damaged_pack["rows"] == [row for row in pack["rows"] if row != 5]
            expected = by_row([pack])
            expected.pop(5, None)
            assert equal_rows(expected, by_row([damaged_pack]))
            assert [row for row, _ in damaged_pack["skipped"]] == ["r5"] * (5 in pack["rows"])
            assert all("r5.wav: cannot be decoded" in reason for _, reason in damaged_pack["skipped"])
            n_affected += 5 in pack["rows"]
    assert n_affected >= 2


def test_a_row_with_invalid_labels_does_not_change_the_other_rows_of_a_step(speech, tmp_path):
    write_with_bad_row(tmp_path, text="")
    reference, damaged = module(speech), module(tmp_path)
    assert damaged.unusable_rows() == [("r5", "label `text` is empty")]
    for number in range(STEPS):
        expected = by_row(steps(reference, 1, 0)[number])
        expected.pop(5, None)
        actual = by_row(steps(damaged, 1, 0)[number])
        assert equal_rows(dict(sorted(expected.items())), dict(sorted(actual.items())))


def test_a_pack_without_readable_rows_is_empty_and_lists_the_reasons(tmp_path):
    write_with_bad_row(tmp_path)
    for path in tmp_path.glob("r*.wav"):
        path.unlink()
    packs = steps(module(tmp_path), 1, 0)[0]
    assert all(pack["rows"] == [] and (pack["labels"] == IGNORE).all() for pack in packs)
    assert sum(len(pack["skipped"]) for pack in packs) == 4
    assert all("no such file" in reason for pack in packs for _, reason in pack["skipped"])


def test_training_data_without_a_usable_row_is_an_error_that_gives_the_first_reason(tmp_path):
    rows = [row | {"text": ""} for row in speech_rows(tmp_path, [0.3, 0.4])]
    write_manifest(tmp_path / "train.jsonl", rows)
    with pytest.raises(ValueError, match=r"2 of 2 rows cannot be used, .* \(the first is r0: label `text` is empty\)"):
        module(tmp_path)


def test_too_many_unusable_rows_are_an_error_at_setup(speech, tmp_path):
    write_with_bad_row(tmp_path, text="")
    message = r"1 of 14 rows cannot be used, .* data.max_unusable=0.05 \(the first is r5: label `text` is"
    with pytest.raises(ValueError, match=message):
        module(tmp_path, max_unusable=0.05)
    assert module(tmp_path, max_unusable=0.1).unusable_rows() and not module(speech, max_unusable=0).unusable_rows()


def test_a_row_over_the_token_budget_is_skipped_or_an_error_depending_on_the_policy(speech):
    lengths = module(speech).lengths.tokens
    longest = [int(n) for n in np.flatnonzero(lengths == lengths.max())]
    data = module(speech, token_budget=int(lengths.max()) - 1)  # long_audio=skip
    assert [row for row, _ in data.unusable_rows()] == [f"r{n}" for n in longest]
    assert all(
        f"{lengths.max()} tokens, more than data.token_budget={lengths.max() - 1}" in reason
        for _, reason in data.unusable_rows()
    )
    assert not {row for step in range(STEPS) for row, _ in data.plan.step(step) if data.lengths.tokens[row]} & {
        *longest
    }
    windows = make_sample_builder(long_audio="window")
    with pytest.raises(
        ValueError, match="longer than data.token_budget=.* data.long_audio=skip to leave these rows out"
    ):
        module(speech, token_budget=int(lengths.max()) - 1, samples=windows)


def test_packs_by_rank_equals_the_plan_of_every_rank(speech):
    data = module(speech, sampler_kwargs={"num_replicas": 3, "rank": 1})
    assert data.world == 3
    for step in range(3):
        assert data.packs_by_rank(step) == [data.plan.packs(step, world=3, rank=rank) for rank in range(3)]


def test_the_predict_loader_builds_rows_as_their_training_step_did(speech):
    data = module(speech, token_budget=400)
    [pack] = steps(data, 1, 0)[2]
    data.predict_entries = data.plan.step(2)
    predicted = by_row(list(data.predict_dataloader()))
    assert equal_rows(dict(sorted(predicted.items())), dict(sorted(by_row([pack]).items())))


def test_lost_workers_are_reported_once(speech):
    data = module(speech)
    with pytest.warns(UserWarning, match="workers were replaced, reading continues at item 3: killed"):
        data._count_restart(3, "killed")
    assert data.pop_replacements() == 1 and data.pop_replacements() == 0


def test_a_row_with_a_wrong_duration_is_skipped_with_the_reason(tmp_path):
    write_with_bad_row(tmp_path, duration=2.5)
    data = module(tmp_path, token_budget=150)
    skipped = [row for n in range(STEPS) for pack in steps(data, 1, 0)[n] for row in pack["skipped"]]
    assert {row for row, _ in skipped} == {"r5"}
    assert all("the manifest states 2.50 s" in reason for _, reason in skipped)


# --- sources ---


def test_the_weight_of_a_source_sets_its_share_of_rows(speech, tmp_path):
    small_source = write_manifest(tmp_path / "few.jsonl", speech_rows(tmp_path, [0.4, 0.5], prefix="few"))
    train = [{"path": str(speech / "train.jsonl"), "weight": 1}, {"path": str(small_source), "weight": 3}]
    data = module(speech, train=train)
    rows = [row for number in range(STEPS) for row, _ in data.plan.step(number)]
    assert sum(row >= len(SECONDS) for row in rows) == round(0.75 * len(rows))


def test_tasks_and_limit_of_an_entry_select_its_rows(speech):
    entry = {"path": str(speech / "train.jsonl"), "tasks": ["asr"], "limit": 3}
    assert [row.id for row in module(speech, train=[entry]).rows] == ["r0", "r1", "r2"]


def test_tasks_of_one_manifest_can_be_two_sources_of_different_weight(tmp_path):
    rows = speech_rows(tmp_path, [0.3, 0.4, 0.5])
    rows[2] |= {"task": "sec", "text": "rain"}
    path = str(write_manifest(tmp_path / "train.jsonl", rows))
    entries = [{"path": path, "tasks": ["asr"], "weight": 1}, {"path": path, "tasks": ["sec"], "weight": 3}]
    data = module(tmp_path, train=entries, valid=[path])
    planned = [row for number in range(4) for row, _ in data.plan.step(number)]
    assert planned.count(2) == 12


def test_text_lines_and_audio_rows_are_mixed_as_text_samples(speech, tmp_path):
    (tmp_path / "lines.txt").write_text("the mat\nthe cat\n")
    data = module(
        speech,
        train=[str(speech / "train.jsonl"), str(tmp_path / "lines.txt")],
        samples=make_sample_builder(TextSamples),
        valid_samples=make_sample_builder(TextSamples),
        token_budget=400,
    )
    packs = [pack for number in range(4) for pack in steps(data, 1, 0)[number]]
    assert {row for pack in packs for row in pack["rows"]} == set(range(16))
    assert all("mel" not in pack and not len(pack["audio_index"]) for pack in packs)


# --- validation ---


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_pack_by_length_packs_every_usable_row_once_within_the_budget(world):
    tokens = np.random.default_rng(0).integers(5, 60, 41)
    tokens[[3, 17]] = 0
    packs = pack_by_length(Lengths(tokens, {3: "bad", 17: "bad"}, {}), 100, world)
    assert sorted(row for pack in packs for row in pack) == [row for row in range(41) if row not in (3, 17)]
    assert all(tokens[pack].sum() <= 100 for pack in packs)
    assert len(packs) % world == 0 and sum(not pack for pack in packs) < world
    order = [tokens[row] for pack in packs for row in pack]
    assert order == sorted(order, reverse=True)


def test_validation_rows_are_divided_among_the_ranks(speech):
    rows_by_rank = []
    for rank in range(2):
        batches = list(module(speech, sampler_kwargs={"num_replicas": 2, "rank": rank}).val_dataloader())
        rows_by_rank.append([row for batch in batches for row in batch["prompts"]["rows"]])
    assert sorted(rows_by_rank[0] + rows_by_rank[1]) == [0, 1, 2]
    assert len(list(module(speech, sampler_kwargs={"num_replicas": 2, "rank": 0}).val_dataloader())) == len(batches)


def test_a_validation_batch_contains_its_rows_with_and_without_answers(speech):
    data = module(speech, token_budget=400)
    (batch,) = data.val_dataloader()
    answered, prompts = batch["answered"], batch["prompts"]
    assert answered["rows"] == prompts["rows"] == [1, 2, 0]  # sorted by decreasing length
    assert torch.equal(answered["mel"], prompts["mel"])
    full_rows, prompt_rows = by_row([answered]), by_row([prompts])
    for row in (0, 1, 2):
        assert torch.equal(full_rows[row][0][: len(prompt_rows[row][0])], prompt_rows[row][0])
        assert len(prompt_rows[row][0]) < len(full_rows[row][0])


def test_text_rows_can_be_validation_rows(speech, tmp_path):
    """Text rows have no prompt to generate from, so only their loss is computed."""
    (tmp_path / "lines.txt").write_text("the mat\nthe cat\n")
    text_samples = make_sample_builder(TextSamples)
    data = module(speech, valid=[str(tmp_path / "lines.txt")], valid_samples=text_samples, token_budget=200)
    (batch,) = data.val_dataloader()
    assert sorted(batch["answered"]["rows"]) == [0, 1]
    assert batch["prompts"]["rows"] == []
    assert data.scored_groups() == {}


def test_an_unreadable_validation_row_is_skipped_and_reported(tmp_path):
    write_manifest(tmp_path / "valid.jsonl", speech_rows(tmp_path, [0.3, 0.4], prefix="v"))
    write_manifest(tmp_path / "train.jsonl", speech_rows(tmp_path, [0.3]))
    (tmp_path / "v1.wav").write_bytes(b"")
    (batch,) = module(tmp_path, token_budget=200).val_dataloader()
    assert batch["answered"]["rows"] == batch["prompts"]["rows"] == [0]
    assert [row for row, _ in batch["prompts"]["skipped"]] == ["v1"]


def test_evaluation_rows_have_the_canonical_wording_and_no_augmentation(speech):
    data = module(speech)
    with_masks = EvaluationDataset(data.valid_rows, [[0]], make_sample_builder(augment=MASKS))
    without_masks = EvaluationDataset(data.valid_rows, [[0]], make_sample_builder())
    assert equal_rows(by_row([with_masks[0]["answered"]]), by_row([without_masks[0]["answered"]]))


def test_scored_groups_maps_every_usable_validation_group_to_its_metric(tmp_path):
    """A group is a line of the results table."""
    rows = speech_rows(tmp_path, [0.3] * 4)
    rows[1] |= {"task": "s2tt", "language": "de", "target_language": "en"}
    rows[2] |= {"task": "sec", "text": "rain"}
    rows[3] |= {"task": "mic", "text": ""}  # unusable, so it has no group
    write_manifest(tmp_path / "train.jsonl", rows)
    data = module(tmp_path, valid=[str(tmp_path / "train.jsonl")])
    assert data.scored_groups() == {"asr en": "wer", "s2tt de-en": "bleu", "sec": "accuracy"}


def test_the_name_of_a_group_contains_the_language_only_for_some_tasks():
    assert group(Row("a", labels={"task": "asr", "language": "zh"})) == "asr zh"
    assert group(Row("a", labels={"task": "lid", "language": "zh"})) == "lid"


# --- mixtures ---


def write_hub_dataset(folder: Path) -> str:
    """Write the clips of valid.jsonl as a hub dataset: Parquet with embedded audio and other column names."""
    rows = [json.loads(line) for line in (folder / "valid.jsonl").read_text().splitlines()]
    table = {
        "audio": [{"bytes": (folder / row["audio"]).read_bytes(), "path": row["audio"]} for row in rows],
        "sentence": [row["text"] for row in rows],
    }
    pq.write_table(pa.table(table), folder / "hub.parquet")
    return str(folder / "hub.parquet")


def test_a_manifest_and_a_hub_dataset_are_mixed_with_temperature_and_cap(speech, tmp_path):
    labels = {"task": "asr", "language": "en"}
    source = {"path": write_hub_dataset(speech), "columns": {"text": "sentence"}, "labels": labels}
    train = [{"path": str(speech / "train.jsonl"), "max_per_epoch": 5}, source]
    data = module(speech, train=train, temperature=2.0, rows_per_step=5, cache_dir=str(tmp_path))
    # 17 rows in the ratio sqrt(14) : sqrt(3) are 12 : 5. The cap reduces that to 5 : 5.
    assert data.plan.epoch_rows == 10
    packs = [steps(data, 1, 0)[step] for step in range(8)]
    assert not any(pack["skipped"] for step in packs for pack in step)
    from_manifest = [[row < 14 for pack in step for row in pack["rows"]] for step in packs]
    assert [sum(from_manifest[k] + from_manifest[k + 1]) for k in range(0, 8, 2)] == [5] * 4
    with pytest.raises(ValueError, match="data.valid: max_per_epoch=2 has no effect"):
        module(speech, valid=[{"path": str(speech / "valid.jsonl"), "max_per_epoch": 2}])
