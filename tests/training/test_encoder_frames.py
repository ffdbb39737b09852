"""The cache of encoder frames: values, reuse, interruption, and runs that read it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from auris import config
from auris.data.batches import build_pack
from auris.data.rows import Row
from auris.data.samples import SpokenSamples
from auris.evaluation import runner
from auris.inference import load as pretrained
from auris.inference.ctc_reading import read_by_aligner, read_by_ctc
from auris.model.audio_lm import AudioLM
from auris.training import encoder_frames
from auris.training import run as train
from support import nets
from support.manifests import make_sample_builder, read_row, tokenizer, write_wave
from support.recipes import smallest_run
from support.runs import load_state

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def net() -> AudioLM:
    torch.manual_seed(0)
    net = nets.build(vocab=tokenizer().size)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.3)
    return net


@pytest.fixture
def samples() -> SpokenSamples:
    return make_sample_builder(SpokenSamples)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    rows = []
    for name, seconds in (("a", 0.3), ("b", 0.5), ("c", 0.4)):
        write_wave(tmp_path / f"{name}.wav", seconds)
        rows.append(read_row(tmp_path, id=name, audio=f"{name}.wav", task="asr", language="en", text="the cat sat"))
    return rows


def compute(net: AudioLM, rows: list[Row], samples: SpokenSamples, folder: Path) -> dict[str, Path]:
    n_tokens = np.array([samples.max_length(row, samples.audio_lengths(row)) for row in rows])
    return dict(encoder_frames.compute_frames(net, rows, n_tokens, samples, folder=folder, token_budget=28))


def entries(n: int) -> list[tuple[int, None]]:
    return [(number, None) for number in range(n)]


def test_cached_frames_equal_computed_ones_to_the_rounding_of_float16(net, rows, samples, tmp_path):
    expected, _ = net.encoder_output(build_pack(rows, entries(3), samples))
    samples.encoder_frames = compute(net, rows, samples, tmp_path / "frames")
    samples.cached_width = net.encoder.width
    pack = build_pack(rows, entries(3), samples)
    assert "mel" not in pack
    frames, lengths = net.encoder_output(pack)
    # Half a unit in the last of 11 bits, and the difference in summation of packs.
    torch.testing.assert_close(frames, expected.detach(), rtol=2**-11, atol=1e-4)
    computed = build_pack(rows, entries(3), make_sample_builder(SpokenSamples))
    assert lengths.tolist() == net.encoder_output(computed)[1].tolist()
    assert pack["ids"].tolist() == computed["ids"].tolist()


def test_an_interrupted_computation_resumes_and_a_complete_one_is_reused(net, rows, samples, tmp_path, monkeypatch):
    encode, packs = net.encoder_output, []

    def fail_at_second(pack: dict, n_blocks: int) -> tuple:
        if len(packs) == 1:
            raise KeyboardInterrupt
        packs.append(pack["rows"])
        return encode(pack, n_blocks)

    monkeypatch.setattr(net, "encoder_output", fail_at_second)
    with pytest.raises(KeyboardInterrupt):
        compute(net, rows, samples, tmp_path / "frames")
    done = {*packs[0]}
    packs.clear()
    monkeypatch.setattr(net, "encoder_output", lambda pack, n: packs.append(pack["rows"]) or encode(pack, n))
    table = compute(net, rows, samples, tmp_path / "frames")
    assert table.keys() == {"a", "b", "c"} and {n for pack in packs for n in pack} == {0, 1, 2} - done
    packs.clear()
    assert compute(net, rows, samples, tmp_path / "frames") == table and not packs


def test_a_row_without_frames_is_unusable(net, rows, samples, tmp_path):
    samples.encoder_frames = compute(net, rows[:2], samples, tmp_path / "frames")
    samples.cached_width = net.encoder.width
    pack = build_pack(rows, entries(3), samples)
    assert (
        pack["rows"] == [0, 1] and pack["skipped"][0][0] == "c" and "no cached encoder frames" in pack["skipped"][0][1]
    )


# --- runs ---------------------------------------------------------------------------------------------------------


def recipe(corpus: Path, folder: Path, *overrides: str) -> dict:
    steps = ["max_steps=2", "trainer.val_check_interval=2", "experiment=align", *smallest_run(corpus, folder)]
    return config.resolve(config.compose([*steps, *overrides]))


@pytest.fixture(scope="module")
def aligner(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aligner")
    return train.train(recipe(corpus, folder))


def test_a_run_trains_pooling_and_projector_only_and_describes_its_paths(aligner: Path, corpus: Path, tmp_path: Path):
    state = load_state(aligner)
    other = load_state(train.train(recipe(corpus, tmp_path, "max_steps=3")))
    changed = {name for name in state if not torch.equal(state[name], other[name])}
    assert changed == {
        *("net.projector.weight", "net.projector.bias", "objective.log_sharpness", "objective.blank_bias")
    }
    content = json.loads((aligner / "alignment.json").read_text())
    assert content["step"] == 2 and content["rows"] > 0
    assert {"repeats", "blanks", "confusions", "deletions", "insertions"} <= content.keys()


def test_cached_and_live_frames_train_the_same_projector(aligner: Path, corpus: Path, tmp_path: Path):
    live = load_state(train.train(recipe(corpus, tmp_path, "data.encoder_frames=live")))
    cached = load_state(aligner)
    assert not list(tmp_path.glob("cache/encoder-frames-*"))
    # Adam moves a weight by at most the learning rate per step, even where rounding decides the sign of its gradient.
    lr = recipe(corpus, tmp_path)["optim"]["lr"]
    difference = (live["net.projector.weight"] - cached["net.projector.weight"]).abs()
    assert difference.max() <= 4 * lr and difference.median() <= 0.05 * lr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data/augment=specaugment"], "data.augment would change the audio.*set data.augment=null"),
        (["trainable=[encoder,projector]"], "convolutions once, expected them to be frozen"),
        (["trainable=[projector,llm]"], "embeddings of a frozen language model"),
        (["data.long_audio=window"], "data.long_audio=window splits a clip .*set data.long_audio=error, skip or first"),
        (["data.encoder_frames=disk"], "data.encoder_frames=disk: expected live or cached"),
    ],
)
def test_settings_that_contradict_the_cache_are_refused(corpus: Path, tmp_path: Path, overrides, message):
    with pytest.raises(ValueError, match=message):
        train.build(recipe(corpus, tmp_path, *overrides))


def pretraining(corpus: Path, folder: Path, *overrides: str, experiment: str = "qwen2_audio_pretrain") -> dict:
    steps = [f"experiment={experiment}", *smallest_run(corpus, folder), "max_steps=2"]
    return config.resolve(config.compose([*steps, "trainer.val_check_interval=2", *overrides]))


def test_a_run_that_starts_from_an_aligner_has_a_ctc_reading(aligner: Path, corpus: Path, tmp_path: Path):
    run = train.train(pretraining(corpus, tmp_path, f"weights.projector={aligner}"))
    model = pretrained.load(run)
    assert read_by_ctc(model).net is model.net
    for checkpoint in (aligner, run):
        overrides = [f"checkpoint={checkpoint}", f"data.root={corpus}", "reading=ctc", "accelerator=cpu"]
        overrides += [f"data.test=[{{path: {corpus}/test.jsonl, tasks: [asr]}}]"]
        results = runner.evaluate(config.resolve(config.compose(overrides, "evaluate"), "evaluate"))
        assert {row.benchmark for row in results} == {"embedded@ctc"} and "wer" in {row.metric for row in results}


def test_the_reading_of_the_aligner_is_that_of_its_own_run(aligner: Path, corpus: Path, tmp_path: Path):
    """The run trains its projector further, which changes its own CTC reading but not that of the aligner."""
    run = train.train(pretraining(corpus, tmp_path, f"weights.projector={aligner}"))
    model, start = pretrained.load(run), pretrained.load(aligner)
    of_run, of_aligner = read_by_ctc(model).net.projector, read_by_aligner(model).net.projector
    expected = start.net.projector.state_dict()
    torch.testing.assert_close(of_aligner.state_dict(), expected)
    assert any(not torch.equal(value, expected[name]) for name, value in of_run.state_dict().items())
    overrides = [f"checkpoint={run}", f"data.root={corpus}", "reading=aligner", "accelerator=cpu"]
    overrides += [f"data.test=[{{path: {corpus}/test.jsonl, tasks: [asr]}}]", "bootstrap=10"]
    results = runner.evaluate(config.resolve(config.compose(overrides, "evaluate"), "evaluate"))
    assert {(row.benchmark, row.arm) for row in results} == {("embedded@aligner", model.config["arm"])}
    assert (run / "predictions/embedded@aligner.jsonl").is_file()
    assert read_by_aligner(start) is start


@pytest.mark.parametrize(
    ("experiment", "trained"),
    [
        ("qwen2_audio_pretrain", "projector"),
        ("qwen2_audio_pretrain", "encoder.blocks.1,encoder.norm,projector"),
        ("encoder_ctc", "encoder.blocks.1,encoder.norm"),
    ],
)
def test_training_reads_cached_frames_of_the_frozen_blocks(corpus: Path, tmp_path: Path, experiment: str, trained: str):
    """With trained upper blocks, the cache holds the output of the lower blocks."""
    runs = {}
    for frames in ("live", "cached"):
        overrides = ["model.encoder.n_layers=2", "data/augment=null", f"data.encoder_frames={frames}"]
        overrides += [f"trainable=[{trained}]", f"run_dir={tmp_path / frames}"]
        runs[frames] = load_state(train.train(pretraining(corpus, tmp_path, *overrides, experiment=experiment)))
    lr = pretraining(corpus, tmp_path)["optim"]["lr"]
    for name, live in runs["live"].items():
        difference = (live - runs["cached"][name]).abs()
        # Two steps; rounding to float16 may decide the sign of a small gradient.
        assert difference.max() <= 4 * lr and difference.median() <= 0.05 * lr, name
    assert len([*(tmp_path / "cache").glob("encoder-frames-*")]) == 1


def test_a_run_without_an_aligner_has_no_ctc_reading(corpus: Path, tmp_path: Path):
    run = train.train(pretraining(corpus, tmp_path))
    with pytest.raises(ValueError, match="weights.projector=null, expected a run of experiment=align"):
        read_by_ctc(pretrained.load(run))
    with pytest.raises(ValueError, match="reading=aligner: .* was trained with weights.projector=null"):
        read_by_aligner(pretrained.load(run))


def test_an_aligner_of_another_language_model_is_refused(aligner: Path, corpus: Path, tmp_path: Path):
    """Both language models have random weights, drawn with different seeds."""
    other = train.train(recipe(corpus, tmp_path, "arm=other", "seed=1"))
    train.build(pretraining(corpus, tmp_path, f"weights.projector={aligner}", f"weights.llm={aligner}"))
    with pytest.raises(ValueError, match=r"aligned to another language model than weights.llm=.*other"):
        train.build(pretraining(corpus, tmp_path, f"weights.projector={aligner}", f"weights.llm={other}"))
