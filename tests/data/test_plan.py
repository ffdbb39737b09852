"""Tests of the plan, which assigns rows to steps and packs, and of collation, which makes one pack of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch

from auris.audio import Geometry, n_frames_with_padding
from auris.data.collate import Sample, collate
from auris.data.manifests import Manifest
from auris.data.plan import Plan
from auris.data.rows import Row, row_seed
from auris.model.pack import IGNORE

GEOMETRY = Geometry(n_mels=5, pool=2)


def sources(*sizes: int, weights: tuple[float, ...] | None = None) -> list[Manifest]:
    return [
        Manifest(f"s{k}", [Row(f"s{k}-{i}") for i in range(size)], weights[k] if weights else None)
        for k, size in enumerate(sizes)
    ]


def row_ranges(manifests: Iterable[Manifest]) -> list[range]:
    """Return the row numbers of each manifest. Rows are numbered consecutively over all manifests."""
    ends = accumulate((len(manifest.rows) for manifest in manifests), initial=0)
    return [range(start, end) for start, end in pairwise(ends)]


def lengths(n_rows: int, max_length: int = 100) -> np.ndarray:
    return np.random.default_rng(n_rows).integers(10, max_length + 1, n_rows)


def speech_lengths(n_rows: int) -> np.ndarray:
    """Return numbers of tokens for durations like those of LibriSpeech.

    For each second of audio, there are 25 audio tokens and 3.4 tokens of the transcript. The prompt has 16.
    """
    rng = np.random.default_rng(0)
    seconds = np.where(rng.random(n_rows) < 0.75, rng.normal(14.5, 1.3, n_rows), rng.uniform(2, 14, n_rows))
    return (25 * seconds + 16 + 3.4 * seconds).clip(50).astype(np.int64)


def plan(*sizes: int, weights: tuple[float, ...] | None = None, **settings) -> Plan:
    defaults = dict(lengths=lengths(sum(sizes)), seed=1, rows_per_step=8, token_budget=256)
    return Plan(sources=sources(*sizes, weights=weights), **defaults | settings)


def first_entries(p: Plan, n_rows: int) -> list[tuple[int, int]]:
    """Return the first (row, epoch) entries of the stream of rows."""
    entries = [entry for k in range(-(-n_rows // p.rows_per_step)) for entry in p.step(k)]
    return entries[:n_rows]


# --- the stream ---


@pytest.mark.parametrize("sizes", [(37,), (30, 7), (5, 1, 60, 13, 13)])
def test_each_epoch_of_the_stream_contains_every_row_once(sizes):
    p = plan(*sizes)
    n = p.epoch_rows
    stream = first_entries(p, 4 * n)
    for epoch in range(4):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == [(row, epoch) for row in range(n)]


def mixed(*caps: int | None, sizes=(64, 9, 1), **settings) -> Plan:
    """Return a plan of several sources.

    Args:
        caps: `max_per_epoch` of each source.
        sizes: Number of rows of each source.
        settings: Weights or temperature, and settings that replace the defaults.
    """
    uncapped = sources(*sizes, weights=settings.pop("weights", None))
    capped = [replace(source, max_per_epoch=cap) for source, cap in zip(uncapped, caps or [None] * 3, strict=True)]
    defaults = dict(lengths=lengths(sum(sizes)), seed=1, rows_per_step=8, token_budget=256)
    return Plan(sources=capped, **defaults | settings)


def rows_by_source(p: Plan, n_epochs: int) -> list[list[int]]:
    """Return the number of rows of each source in each epoch of the stream."""
    n, ends = p.epoch_rows, np.cumsum([len(source.rows) for source in p.sources])
    rows = np.array([row for row, _ in first_entries(p, n_epochs * n)]).reshape(n_epochs, n)
    return [
        np.bincount(np.searchsorted(ends, epoch_rows, side="right"), minlength=len(ends)).tolist()
        for epoch_rows in rows
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1}, [64, 9, 1]),
        ({"temperature": 2}, [49, 18, 6]),  # 74 rows in the ratio 8 : 3 : 1, rounded
        ({"temperature": 1e9}, [25, 25, 25]),
        ({"caps": (10, None, None)}, [10, 9, 1]),
        ({"caps": (20, 5, None), "temperature": 2}, [20, 5, 6]),
        # 74 rows in the ratio 1 : 1 : 2 would be 18 : 18 : 37.
        ({"caps": (None, None, 30), "weights": (1, 1, 2)}, [18, 18, 30]),
    ],
)
def test_every_epoch_contains_exactly_the_quota_of_each_source(settings, expected):
    p = mixed(*settings.get("caps", ()), **{key: value for key, value in settings.items() if key != "caps"})
    assert rows_by_source(p, 7) == [expected] * 7 and p.epoch_rows == sum(expected)


@pytest.mark.parametrize("settings", [{"temperature": 3}, {"caps": (10, 4, None)}])
def test_no_row_of_a_source_repeats_before_all_its_rows_have_been_used(settings):
    p = mixed(*settings.get("caps", ()), temperature=settings.get("temperature"))
    stream = first_entries(p, 12 * p.epoch_rows)
    for rows in row_ranges(p.sources):
        entries = [(row, source_epoch) for row, source_epoch in stream if row in rows]
        for source_epoch, start in enumerate(range(0, len(entries) - len(rows) + 1, len(rows))):
            assert sorted(entries[start : start + len(rows)]) == [(row, source_epoch) for row in rows]


@pytest.mark.parametrize("rows_per_step", [8, None])
def test_a_mix_with_temperature_and_caps_is_the_same_on_any_number_of_ranks(rows_per_step):
    p = mixed(20, None, None, temperature=2, rows_per_step=rows_per_step, packs_per_step=4)
    for step in range(12):
        expected = sorted(entry for pack in p.packs(step, world=1, rank=0) for entry in pack)
        for world in (2, 4):
            ranks = [p.packs(step, world=world, rank=rank) for rank in range(world)]
            assert sorted(entry for packs in ranks for pack in packs for entry in pack) == expected
    resumed = mixed(20, None, None, temperature=2, rows_per_step=rows_per_step, packs_per_step=4)
    assert resumed.packs(11, world=2, rank=1) == p.packs(11, world=2, rank=1)  # a resumed run asks for step 11 first


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mixed(temperature=2, weights=(1, 1, 1)), "no effect if sources have weights"),
        (lambda: plan(5, temperature=2), r"no effect on a single source: .*tasks: \[asr\]"),
        (
            lambda: mixed(64, None, None),
            "s0: max_per_epoch=64, expected at least 1 and less than 64, the number of its rows",
        ),
        (lambda: mixed(None, 0, None), "s1: max_per_epoch=0"),
    ],
)
def test_a_temperature_or_cap_without_effect_is_an_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_epochs_and_seeds_have_different_orders():
    stream = first_entries(plan(50), 100)
    first, second = [row for row, _ in stream[:50]], [row for row, _ in stream[50:]]
    assert first != second and first != sorted(first)
    assert [row for row, _ in first_entries(plan(50, seed=2), 50)] != first


def test_the_stream_does_not_depend_on_the_order_of_rows_or_sources():
    first, second = sources(30, 12)
    ids = [row.id for row in first.rows + second.rows]
    reordered = [replace(second, rows=second.rows[::-1]), replace(first, rows=first.rows[5:] + first.rows[:5])]
    reordered_ids = [row.id for source in reordered for row in source.rows]
    settings = dict(lengths=np.full(42, 50), seed=3, rows_per_step=8, token_budget=128)
    a, b = Plan(sources=[first, second], **settings), Plan(sources=reordered, **settings)
    for k in range(12):
        assert [(ids[row], e) for row, e in a.step(k)] == [(reordered_ids[row], e) for row, e in b.step(k)]
        assert [[ids[row] for row, _ in pack] for pack in a.packs(k, world=2, rank=1)] == [
            [reordered_ids[row] for row, _ in pack] for pack in b.packs(k, world=2, rank=1)
        ]


def test_adding_a_row_to_a_source_does_not_change_the_order_of_the_others():
    before = [row for row, _ in first_entries(plan(40), 40)]
    after = [row for row, _ in first_entries(plan(41), 41) if row != 40]
    assert after == before


@pytest.mark.parametrize(
    ("weights", "max_error"), [((3.0, 1.0), 0.5), ((0.7, 0.3), 0.5), ((5.0, 1.0, 1.0, 1.0, 2.0), 2), ((1.0,) * 31, 2)]
)
def test_the_shares_of_sources_hold_at_every_point_of_the_stream(weights, max_error):
    p = plan(*range(7, 7 + len(weights)), weights=weights)
    stream = np.array([row for row, _ in first_entries(p, 2000)])
    shares = np.array(weights) / sum(weights)
    for rows, share in zip(row_ranges(p.sources), shares, strict=True):
        from_source = (stream >= rows.start) & (stream < rows.stop)
        expected = share * np.arange(1, len(stream) + 1)
        assert np.abs(np.cumsum(from_source) - expected).max() <= max_error + 1e-6
    counts = Counter(first_entries(p, 2000))
    assert set(counts.values()) == {1}  # no row is repeated within one epoch of its source


GOLDEN_STEP_0 = [(4, 0), (8, 0), (2, 0), (5, 0), (7, 0), (3, 0)]
GOLDEN_STEP_1000 = [(1, 666), (6, 666), (2, 666), (1, 667), (8, 667), (2, 667)]
GOLDEN_PACKS = [[[(2, 0), (5, 0)], [(8, 0)]], [[(4, 0), (3, 0)], [(7, 0)]]]
GOLDEN_SEED = 6114065636637634411


def test_the_order_equals_the_stored_order():
    """Runs could not resume if the plan changed between versions, platforms or processes."""
    p = plan(6, 3, lengths=np.array([50, 60, 70, 80, 90, 100, 110, 120, 130]), rows_per_step=6)
    assert p.step(0) == GOLDEN_STEP_0
    assert p.step(1000) == GOLDEN_STEP_1000
    assert [p.packs(0, world=2, rank=rank) for rank in (0, 1)] == GOLDEN_PACKS
    assert row_seed(0, 1, "a") == GOLDEN_SEED


def test_row_seeds_differ_by_seed_epoch_and_row():
    seeds = {row_seed(s, e, i) for s in range(5) for e in range(5) for i in ("a", "b", "1", "11")}
    assert len(seeds) == 100 and all(0 <= seed < 2**63 for seed in seeds)


# --- rows per step ---


def test_steps_do_not_depend_on_lengths_and_budget():
    a, b = plan(50), plan(50, lengths=np.full(50, 7), token_budget=1000)
    assert [a.step(k) for k in range(20)] == [b.step(k) for k in range(20)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("rows_per_step", [1, 5, 16])
def test_ranks_together_process_the_rows_of_a_step(world, rows_per_step):
    p = plan(50, 3, rows_per_step=rows_per_step)
    for k in range(30):
        ranks = [p.packs(k, world=world, rank=rank) for rank in range(world)]
        assert len({len(packs) for packs in ranks}) == 1
        packs = [pack for packs in ranks for pack in packs]
        assert sorted(entry for pack in packs for entry in pack) == sorted(p.step(k))
        assert max(sum(int(p.lengths[row]) for row, _ in pack) for pack in packs) <= p.token_budget


def test_a_step_has_as_few_packs_as_the_budget_allows():
    p = plan(64, lengths=np.full(64, 64), rows_per_step=16)
    assert [len(p.packs(0, world=world, rank=0)) for world in (1, 2, 3, 4, 16)] == [4, 2, 2, 1, 1]


def test_ranks_are_balanced_by_tokens():
    p = plan(5000, lengths=speech_lengths(5000), rows_per_step=128, token_budget=8192)
    imbalances = []
    for k in range(30):
        tokens_of_ranks = [
            sum(int(p.lengths[row]) for pack in p.packs(k, world=8, rank=r) for row, _ in pack) for r in range(8)
        ]
        imbalances.append(max(tokens_of_ranks) / np.mean(tokens_of_ranks))
    assert np.mean(imbalances) < 1.01


def test_with_more_ranks_than_rows_some_ranks_get_an_empty_pack():
    p = plan(9, rows_per_step=2)
    packs = [p.packs(0, world=4, rank=rank) for rank in range(4)]
    assert [len(pack) for rank in packs for pack in rank] == [1, 1, 0, 0]


@pytest.mark.parametrize("bad_row", [0, 17])
def test_an_unusable_row_is_left_out_and_does_not_move_other_rows(bad_row):
    reference = plan(50, lengths=lengths(50))
    with_bad_row = plan(50, lengths=np.where(np.arange(50) == bad_row, 0, lengths(50)))
    for k in range(20):
        assert with_bad_row.step(k) == reference.step(k)
        packed = [entry for rank in (0, 1) for pack in with_bad_row.packs(k, world=2, rank=rank) for entry in pack]
        assert sorted(packed) == sorted(entry for entry in reference.step(k) if entry[0] != bad_row)


def test_any_step_can_be_computed_without_the_steps_before_it():
    """1.28e10 rows precede step 10^8, so a plan that enumerated them would never finish."""
    settings = dict(lengths=np.full(15_000, 30), rows_per_step=128, token_budget=4096)
    p = plan(10_000, 5_000, **settings)
    p.step(0)
    k = 10**8
    assert p.step(k) == plan(10_000, 5_000, **settings).step(k)
    epoch = k * 128 // 15_000
    assert len(p.step(k)) == 128 and {e for _, e in p.step(k)} <= {epoch, epoch + 1}


def test_the_number_of_steps_of_an_epoch_is_enough_to_cover_every_row():
    p = plan(30, 7)
    for epochs in (0, 1, 3):
        counts = Counter(row for k in range(p.n_steps(epochs)) for row, _ in p.step(k))
        assert all(counts[row] >= epochs for row in range(37))
    assert [p.n_steps(e) for e in (0, 1, 3)] == [0, 5, 14]


# --- full packs ---


def fill_ratio(p: Plan, steps: Iterable[int]) -> float:
    """Return the number of tokens in the packs of these steps, divided by the token budget of these packs."""
    packs = [pack for k in steps for pack in p.packs(k, world=1, rank=0)]
    return sum(int(p.lengths[row]) for pack in packs for row, _ in pack) / (len(packs) * p.token_budget)


@pytest.mark.parametrize("token_budget", [4096, 8192])
def test_packs_of_speech_are_at_least_99_percent_full(token_budget):
    p = plan(5000, lengths=speech_lengths(5000), rows_per_step=None, token_budget=token_budget)
    n_packs = p.n_steps(1)
    assert fill_ratio(p, range(n_packs)) >= 0.99
    assert min(fill_ratio(p, [k]) for k in range(n_packs - 1)) >= 0.99


@pytest.mark.parametrize("world", [1, 2])
def test_full_packs_contain_every_row_once_per_epoch_even_if_epochs_have_different_numbers_of_packs(world):
    n_rows = 201
    p = plan(150, 51, lengths=lengths(n_rows, max_length=150), rows_per_step=None, packs_per_step=4)
    n_steps = p.n_steps(6)
    packs = [
        pack for k in range(n_steps) for j in range(4 // world) for r in range(world)
        for pack in [p.packs(k, world=world, rank=r)[j]]
    ]  # fmt: skip
    ends = [next(i for i, pack in enumerate(packs) if any(e > epoch for _, e in pack)) for epoch in range(5)]
    packs_per_epoch = np.diff([0, *ends])
    assert len(set(packs_per_epoch.tolist())) > 1  # otherwise the test would prove nothing
    for epoch, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        assert sorted(entry for pack in packs[start:end] for entry in pack) == [(row, epoch) for row in range(n_rows)]
    assert all(0 < sum(int(p.lengths[row]) for row, _ in pack) <= p.token_budget for pack in packs)


def test_full_packs_do_not_depend_on_the_order_of_access():
    settings = dict(rows_per_step=None, packs_per_step=2)
    forward, resumed = plan(90, **settings), plan(90, **settings)
    steps = [forward.step(k) for k in range(60)]
    assert [resumed.step(k) for k in (59, 0, 30, 31, 29)] == [steps[k] for k in (59, 0, 30, 31, 29)]


def test_full_packs_leave_unusable_rows_out():
    p = plan(50, lengths=np.where(np.arange(50) % 7 == 0, 0, lengths(50)), rows_per_step=None)
    rows = {row for k in range(p.n_steps(1)) for row, _ in p.step(k)}
    assert rows >= {row for row in range(50) if row % 7} and not rows & set(range(0, 50, 7))


def test_full_packs_keep_the_random_order_of_rows_approximately():
    """A pack takes rows from near its position in the stream, so that the rows of a step stay random."""
    p = plan(5000, lengths=speech_lengths(5000), rows_per_step=None, token_budget=8192)
    in_order = plan(5000, lengths=speech_lengths(5000), rows_per_step=5000, token_budget=8192).step(0)
    position = {entry: i for i, entry in enumerate(in_order)}
    packed = [entry for k in range(p.n_steps(1)) for entry in p.step(k) if entry in position]
    assert max(abs(position[entry] - i) for i, entry in enumerate(packed)) < 256


# --- errors ---


def test_a_row_over_the_budget_is_an_error_that_names_the_row_and_the_setting():
    with pytest.raises(ValueError, match=r"data\.token_budget=256.*'s1-2' of s1, has 300 tokens.*budget=300"):
        plan(5, 4, lengths=np.array([9] * 7 + [300, 9]))


def test_the_number_of_ranks_must_divide_packs_per_step():
    p = plan(50, rows_per_step=None, packs_per_step=4)
    with pytest.raises(ValueError, match=r"data\.packs_per_step=4.*3 ranks.*data\.packs_per_step=6"):
        p.packs(0, world=3, rank=0)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: plan(3, lengths=np.zeros(3, int)), "none of the 3 rows of .* is usable"),
        (lambda: plan(3, 0), "s1 has no rows"),
        (lambda: plan(3, 3, weights=(1.0, None)), "for every source or for none"),
    ],
)
def test_invalid_plans_are_an_error(build, reason):
    with pytest.raises(ValueError, match=reason):
        build()


# --- collate ---


def sample(row: int, ids: list[int], supervise: str, audio: str = "", frames: tuple[int, ...] = ()) -> Sample:
    """Return a sample. In `supervise` and `audio` an x marks each position that is supervised or audio."""
    generator = torch.Generator().manual_seed(row)
    return Sample(
        row=row,
        ids=np.array(ids, dtype=np.int64),
        supervise=np.array([mark == "x" for mark in supervise.ljust(len(ids))]),
        audio_mask=np.array([mark == "x" for mark in audio.ljust(len(ids))]),
        mels=tuple(torch.randn(5, n_frames_with_padding(n), generator=generator) for n in frames),
        frames=frames,
        audio_seconds=float(sum(frames)),
        loss_curve="asr",
    )


def test_collate_concatenates_rows():
    a = sample(7, [1, 9, 9, 2, 3, 4], "    xx", " xx   ", frames=(8,))
    b = sample(3, [5, 6, 7], "xxx")
    c = sample(9, [1, 9, 2, 9, 8], "    x", " x x ", frames=(4, 3))
    pack = collate([a, b, c], geometry=GEOMETRY, skipped=[(4, "gone")])
    assert pack["ids"].tolist() == [1, 9, 9, 2, 3, 4, 5, 6, 7, 1, 9, 2, 9, 8]
    # Labels are shifted within a row: the last position of a row never predicts the first token of the next row.
    i = IGNORE
    assert pack["labels"].tolist() == [i, i, i, 3, 4, i, 6, 7, i, i, i, i, 8, i]
    assert pack["positions"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2, 3, 4]
    assert pack["cu_seqlens"].tolist() == [0, 6, 9, 14]
    assert pack["audio_index"].tolist() == [1, 2, 10, 12]
    assert pack["frames"].tolist() == [8, 4, 3]
    assert torch.equal(pack["mel"], torch.cat([*a.mels, *c.mels], dim=1)) and pack["mel"].shape == (5, 10 + 6 + 5)
    assert (pack["rows"], pack["skipped"], pack["audio_seconds"]) == ([7, 3, 9], [(4, "gone")], 15.0)


def dtypes(pack: dict) -> dict[str, torch.dtype]:
    return {key: value.dtype for key, value in pack.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("rows", [[], [sample(0, [1, 2], "xx")], [sample(0, [1, 9], "", " x", frames=(3,))]])
def test_every_pack_has_the_same_dtypes(rows):
    integer_dtypes = dict.fromkeys(("ids", "labels", "positions", "frames", "audio_index", "loss_curves"), torch.int64)
    assert dtypes(collate(rows, geometry=GEOMETRY)) == integer_dtypes | {
        "cu_seqlens": torch.int32,
        "mel": torch.float32,
    }


def test_a_pack_without_audio_has_a_silent_clip_without_positions():
    pack = collate([sample(0, [1, 2, 3], "xxx")], geometry=GEOMETRY)
    assert pack["frames"].tolist() == [4] and torch.equal(pack["mel"], torch.zeros(5, 6))
    assert pack["audio_index"].tolist() == [] and pack["audio_seconds"] == 0


def test_a_pack_for_a_model_without_audio_has_no_clip():
    pack = collate([sample(0, [1, 2, 3], "xxx")], geometry=None)
    assert "mel" not in pack and "frames" not in pack and pack["audio_index"].tolist() == []


@pytest.mark.parametrize("geometry", [GEOMETRY, None])
def test_a_pack_whose_rows_were_all_skipped_is_one_unsupervised_token(geometry):
    pack = collate([], geometry=geometry, skipped=[(2, "silent"), (5, "gone")])
    assert (pack["ids"].tolist(), pack["labels"].tolist(), pack["positions"].tolist()) == ([0], [IGNORE], [0])
    assert pack["cu_seqlens"].tolist() == [0, 1] and pack["audio_index"].tolist() == []
    assert (pack["rows"], len(pack["skipped"]), pack["audio_seconds"]) == ([], 2, 0)
    assert ("mel" in pack) == (geometry is not None)


# --- pairs ---

# A pair is packed as a tree: the prompt is stored once, and both answers are branches of it.


def test_the_rejected_branch_of_a_pair_starts_at_the_last_token_of_the_prompt():
    pair = replace(sample(4, [11, 12, 13, 14, 15], "   xx", "x", frames=(4,)), rejected=np.array([16, 17, 18]))
    other = replace(sample(6, [21, 22], " x"), rejected=np.array([23]))
    pack = collate([pair, other], geometry=GEOMETRY)
    i = IGNORE
    assert pack["ids"].tolist() == [11, 12, 13, 14, 15, 13, 16, 17, 18, 21, 22, 21, 23]
    assert pack["labels"].tolist() == [i, i, 14, 15, i, 16, 17, 18, i, 22, i, 23, i]
    assert pack["positions"].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 0, 1, 0, 1]
    assert pack["cu_seqlens"].tolist() == [0, 5, 9, 11, 13]
    assert pack["cu_keys"].tolist() == [0, 5, 11, 13, 15] and pack["cu_keys"].dtype == torch.int32
    assert pack["key_index"].tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 6, 7, 8, 9, 10, 11, 12]
    assert pack["audio_index"].tolist() == [0] and pack["frames"].tolist() == [4]
    assert pack["rows"] == [4, 6] and "reference" not in pack


def test_reference_log_probabilities_are_in_the_order_of_the_pairs():
    rows = [replace(sample(n, [1, 2], " x"), rejected=np.array([3]), reference=(-n - 0.5, -1.0)) for n in (3, 5)]
    pack = collate(rows, geometry=GEOMETRY)
    assert pack["reference"].tolist() == [[-3.5, -1.0], [-5.5, -1.0]] and pack["reference"].dtype == torch.float32
    with pytest.raises(AssertionError, match="some pairs have reference log-probabilities, others do not"):
        collate([rows[0], replace(rows[1], reference=None)], geometry=GEOMETRY)


def test_packs_without_pairs_have_no_tree():
    assert not {"key_index", "cu_keys", "reference"} & collate([sample(0, [1, 2], " x")], geometry=GEOMETRY).keys()


@pytest.mark.parametrize(
    ("supervise", "audio"),
    [("xx ", ""), ("   ", ""), (" x ", ""), ("  x", " x")],
    ids=["no prompt", "no answer", "text after the answer", "a prompt that ends with audio"],
)
def test_a_pair_with_an_invalid_prompt_or_answer_is_an_error(supervise, audio):
    with pytest.raises(AssertionError):
        replace(sample(0, [1, 2, 3], supervise, audio), rejected=np.array([4]))
