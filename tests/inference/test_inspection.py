"""Inspection of a model: its attention, frames and tokens, the probe of poolings, word times, and figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from auris.data.collate import collate
from auris.data.rows import Row
from auris.inference import inspection
from auris.inference.audio_model import AudioModel
from auris.inference.inspection.pooling_probe import explained_variance
from auris.inference.inspection.trace import _token_texts
from auris.inference.load import load
from auris.model import pooling
from support import published
from support.manifests import make_sample_builder, speech_rows, tokenizer, write_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with untrained runs and rows of tones."""
    path = tmp_path_factory.mktemp("inside")
    overrides = ["run_dir=runs/s/a/seed_0", "data.test=[rows.jsonl]", "weights.encoder=runs/s/ctc/seed_0"]
    published.run(path / "runs/s/a/seed_0", "experiment=qwen2_audio_pretrain", "model/pooling=stack", *overrides)
    published.run(path / "runs/s/ctc/seed_0", "experiment=encoder_ctc")
    rows = speech_rows(path, [2.5, 2.0, 1.5, 2.2, 1.8, 2.4])
    rows[1]["words"] = [
        {"word": word, "start": 0.6 * n, "end": 0.6 * n + 0.5} for n, word in enumerate(["the", "cat", "sat"])
    ]
    rows[1]["text"] = "the cat sat"
    write_manifest(path / "rows.jsonl", rows)
    return path


@pytest.fixture(scope="module")
def subject(folder: Path) -> inspection.Subject:
    """Return the model of a run, with its rows and the run that aligns words."""
    return inspection.load(folder / "runs/s/a/seed_0")


def build_batch(model: AudioModel, row: Row) -> dict:
    samples = make_sample_builder(tokenizer=model.tokenizer, prompt=model.prompt, geometry=model.net.geometry)
    return collate([samples.build(row, 0, None)], geometry=model.net.geometry)


# --- attention ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["qwen2_audio", "qwen_audio"])
def model(request, tmp_path_factory: pytest.TempPathFactory) -> AudioModel:
    """Return a model with grouped queries, or one that scales queries beyond its training length."""
    path = tmp_path_factory.mktemp("published") / request.param
    if request.param == "qwen2_audio":
        published.qwen2_audio(path)
    else:
        published.qwen_audio(path, seq_length=16)
    return load(path)


@torch.no_grad()
def test_traced_attention_reproduces_the_output_of_the_attention_layers(model: AudioModel, subject: inspection.Subject):
    batch = build_batch(model, subject.rows[0])
    n_tokens = len(batch["ids"])
    values_and_outputs: list[tuple[Tensor, Tensor]] = []

    def record(module, arguments, keyword_arguments, out):
        value = module.v_proj(
            keyword_arguments["hidden_states"] if "hidden_states" in keyword_arguments else arguments[0]
        )
        values_and_outputs.append((rearrange(value[0], "t (h d) -> h t d", d=module.head_dim), out[0][0]))

    layers = [layer.self_attn for layer in model.net.llm.get_decoder().layers]
    hooks = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    before = model.net.hidden_states(batch)
    for hook in hooks:
        hook.remove()
    weights = inspection.attention_weights(model.net, batch, torch.arange(n_tokens))
    assert weights.shape == (len(layers), model.net.llm.config.num_attention_heads, n_tokens, n_tokens)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert not weights.triu(1).any()
    for layer, (value, out), layer_weights in zip(layers, values_and_outputs, weights, strict=True):
        value = value.repeat_interleave(len(layer_weights) // len(value), dim=0)
        recomputed = layer.o_proj(rearrange(layer_weights @ value, "h t d -> t (h d)"))
        torch.testing.assert_close(recomputed, out, atol=1e-5, rtol=1e-5)
    positions = torch.tensor([3, n_tokens - 1])
    torch.testing.assert_close(inspection.attention_weights(model.net, batch, positions), weights[:, :, positions])
    assert model.net.llm.config._attn_implementation == "packed"
    assert torch.equal(model.net.hidden_states(batch), before)


def test_a_trace_has_the_features_the_pooled_frames_the_attention_and_the_answer(
    model: AudioModel, subject: inspection.Subject
):
    trace = inspection.trace_row(model, subject.rows[0])
    config = model.net.llm.config
    n_frames = round(trace.seconds * 100)
    assert trace.mel.shape == (model.net.geometry.n_mels, n_frames) and trace.seconds == 2.5
    assert trace.frames.shape == (n_frames // 2, model.net.encoder.width)
    assert trace.pooled.shape == (n_frames // 4, model.net.encoder.width) and trace.token_seconds == 0.04
    np.testing.assert_allclose(
        trace.pooled, trace.frames[: n_frames // 4 * 2].reshape(-1, 2, trace.frames.shape[1]).mean(1), atol=1e-5
    )
    n_tokens = len(trace.tokens)
    assert trace.attention.shape == (config.num_hidden_layers, config.num_attention_heads, n_tokens, n_frames // 4)
    assert n_tokens >= 1 and (trace.attention.sum(-1) > 0).all() and (trace.attention.sum(-1) < 1).all()
    assert "".join(trace.tokens) == trace.answer
    assert model.net.llm.config._attn_implementation == "packed"  # tracing restores the attention implementation


def test_the_attention_of_a_token_is_that_of_the_position_predicting_it(subject: inspection.Subject):
    """The first token is predicted by the last position of the prompt, which has not seen the answer."""
    model, row = subject.model, subject.rows[0]
    samples = make_sample_builder(tokenizer=model.tokenizer, prompt=model.prompt, geometry=model.net.geometry)
    batch = collate([samples.build(row, 0, None, prompt_only=True)], geometry=model.net.geometry)
    last = torch.tensor([len(batch["ids"]) - 1])
    expected = inspection.attention_weights(model.net, batch, last)[:, :, 0, batch["audio_index"]]
    np.testing.assert_allclose(inspection.trace_row(model, row).attention[:, :, 0], expected.numpy(), atol=1e-6)


def test_rows_that_cannot_be_traced_are_refused(subject: inspection.Subject):
    row = subject.rows[0]
    with pytest.raises(ValueError, match="2 windows of audio, expected one clip of at most 30 s"):
        inspection.trace_row(subject.model, replace(row, clips=row.clips * 2))
    with pytest.raises(ValueError, match="no row with one clip and the id 'r9' among 6 rows"):
        inspection.choose_row(subject, "r9")
    assert inspection.choose_row(subject).id == "r1"  # the first row with word times
    assert inspection.choose_row(subject, "r2").id == "r2"


def test_a_token_that_ends_within_a_character_has_no_text():
    vocabulary = tokenizer()
    ids = [*vocabulary.encode_plain("the 狗 cat"), vocabulary.encode_plain("狗")[0]]
    pieces = _token_texts(vocabulary, ids)
    assert len(pieces) == len(ids) and "".join(pieces) == "the 狗 cat\ufffd"
    assert [piece for piece in pieces if "狗" in piece] and "" in pieces


# --- loading runs and rows ----------------------------------------------------------------------------------------


def test_the_newest_run_that_responds_to_prompts_is_loaded_with_rows_and_aligner(folder: Path):
    with pytest.raises(FileNotFoundError, match="no finished run under"):
        inspection.load(runs=folder / "runs")
    for arm in ("a", "ctc"):  # the newer run does not respond to prompts
        (folder / f"runs/s/{arm}/seed_0/finished.json").write_text("{}")
    subject = inspection.load(runs=folder / "runs")  # its config has paths relative to the directory where it started
    assert subject.model.config["run_dir"] == "runs/s/a/seed_0"
    assert len(subject.rows) == 6 and subject.aligner == folder / "runs/s/ctc/seed_0"
    with pytest.raises(ValueError, match="does not respond to prompts"):
        inspection.load(folder / "runs/s/ctc/seed_0")


# --- information after pooling ------------------------------------------------------------------------------------


def test_the_probe_measures_how_much_variance_pooling_keeps():
    """Repeated frames survive a mean of two but not of four. A mean of two keeps half the variance of noise."""
    torch.manual_seed(0)
    pairs = [torch.randn(60, 8).repeat_interleave(2, dim=0) for _ in range(40)]
    noise = [torch.randn(120, 8) for _ in range(40)]

    def kept_variance(clips: list[Tensor], k: int) -> tuple[float, float, float]:
        return explained_variance(pooling.Mean(k=k, width=8), clips, k, 0)

    assert kept_variance(pairs, 2)[0] == pytest.approx(1, abs=1e-3)
    assert kept_variance(pairs, 4)[0] == pytest.approx(0.5, abs=0.03)
    point, low, high = kept_variance(noise, 2)
    assert point == pytest.approx(0.5, abs=0.03) and low < point < high


def test_every_pooling_has_a_row_in_the_comparison(subject: inspection.Subject):
    frame = inspection.compare_poolings(subject.model, subject.rows, ks=(2, 4))
    table = frame.set_index(["pooling", "k"])
    assert set(table.index) == {
        ("none", 1),
        *((name, k) for name in ("mean", "conv", "attention", "stack") for k in (2, 4)),
    }
    assert table.loc[("stack", 4), "width"] == 64 and table.loc[("stack", 4), "tokens per second"] == 12.5
    assert (table.loc[[("stack", 2), ("none", 1)], "kept"] == 1).all()
    # Attention pooling is initialised to the mean.
    assert table.loc[("attention", 2), "kept"] == pytest.approx(table.loc[("mean", 2), "kept"])
    with pytest.raises(ValueError, match="every other one of 2 rows.*use more rows"):
        inspection.compare_poolings(subject.model, subject.rows, limit=2)


# --- words and figures --------------------------------------------------------------------------------------------


def test_time_shifts_compare_matching_words(subject: inspection.Subject):
    row = inspection.choose_row(subject)
    times = inspection.word_times(subject, row)
    assert list(times)[:2] == ["true", "forced alignment"]
    assert [word["word"] for word in times["forced alignment"]] == ["the", "cat", "sat"]
    late = [{**word, "start": word["start"] + 0.1, "end": word["end"] - 0.05} for word in times["true"]]
    shifts = inspection.time_shifts(
        row, {"true": times["true"], "late": [late[0], {**late[1], "word": "dog"}, late[2]]}
    )
    assert shifts["word"].tolist() == ["the", "sat"]
    assert set(shifts["start shift"]) == {100} and set(shifts["end shift"]) == {-50}
    page = inspection.audio_players(inspection.trace_row(subject.model, row), {"true": times["true"]}).data
    assert page.count("<audio") == 3 and page.count("data:audio/wav;base64,") == 3


def test_a_model_trained_with_timestamps_is_prompted_for_them(
    subject: inspection.Subject, monkeypatch: pytest.MonkeyPatch
):
    tasks = []

    def answer(model: AudioModel, row: Row) -> SimpleNamespace:
        tasks.append(row.labels["task"])
        return SimpleNamespace(answer="the (0.00-0.50) cat (0.70-1.10)")

    monkeypatch.setattr("auris.inference.inspection.timing.trace_row", answer)
    row = inspection.choose_row(subject)
    times = inspection.word_times(replace(subject, aligner=None), row)
    assert tasks == ["srwt"] and list(times) == ["true", "answer with times"]
    assert inspection.time_shifts(row, times)["start shift"].tolist() == [0, 100]


def test_figures_show_the_data_of_the_trace(subject: inspection.Subject):
    row = inspection.choose_row(subject)
    trace = inspection.trace_row(subject.model, row)
    words = row.labels["words"]
    figure = inspection.plot_attention(trace, words, layer=0, head=1)
    assert "layer 0, head 1" in figure.axes[2].get_title(loc="left")
    image = figure.axes[2].images[0].get_array()
    np.testing.assert_allclose(image, 100 * trace.attention[0, 1][:60], rtol=1e-5)
    np.testing.assert_allclose([bar.get_width() for bar in figure.axes[3].patches], image.sum(1), rtol=1e-4)
    heads = inspection.plot_heads(trace)
    assert sum(axis.get_visible() for axis in heads.axes) == trace.attention.shape[0] * trace.attention.shape[1]
    sound = inspection.plot_sound(trace, words)
    frames, tokens = (axis.images[0].get_array() for axis in sound.axes[1:3])
    np.testing.assert_allclose(tokens, frames[:, : tokens.shape[1]], atol=1e-4)  # `stack` keeps every frame
    times = inspection.plot_times(trace, {"true": words})
    assert [text.get_text() for text in times.axes[1].texts] == ["the", "cat", "sat"]
    [label] = inspection.plot_times(trace, {}).axes[1].texts
    assert label.get_text() == "no word times for this row"
