"""Qwen-Audio against outputs of its released code at tiny random sizes (see the README of the golden files)."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from auris.audio import Geometry, log_mel
from auris.model import llm as lm
from auris.model.audio_lm import AudioLM
from auris.model.boundary import Learned
from auris.model.encoder import Encoder
from auris.model.generation import GenerationSettings
from auris.model.llm import build_llm
from auris.model.pooling import Mean
from auris.model.projector import Linear
from auris.model.weights import loading
from auris.model.weights.tensors import StateTensors
from support.features import check_log_mel
from support.published import golden_table

pytestmark = pytest.mark.usefixtures("float64")

VOCAB = 155947
END = 151643  # <|endoftext|>
STOPS = {"raw": {END}, "chatml": {END, 151644, 151645}}
AT_MOST_ONE_CLIP = ["asr", "srwt", "aqa", "caption30", "text", "border"]
PROMPTS = [*AT_MOST_ONE_CLIP, "chat2", "long"]


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> Path:
    return shared_data / "golden/qwen_audio_v1"


@pytest.fixture(scope="module")
def clips(golden: Path) -> dict[str, np.ndarray]:
    """Return waves, with the features and the outputs of the released audio module."""
    with np.load(golden / "encoder_io.npz", allow_pickle=False) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def io(golden: Path) -> dict[str, np.ndarray]:
    """Return inputs and outputs of the released model."""
    with np.load(golden / "model_io.npz", allow_pickle=False) as stored:
        return dict(stored)


def build(audio: dict, hidden: int, llm: dict, vocab_size: int, clip_end: str = "zero") -> AudioLM:
    encoder = Encoder(
        n_mels=audio["n_mels"],
        width=audio["n_state"],
        n_layers=audio["n_layer"],
        n_heads=audio["n_head"],
        clip_end=clip_end,
    )
    config = {"model_type": "qwen2", "hidden_size": hidden, "rope_theta": 10000, "tie_word_embeddings": False, **llm}
    language_model = partial(build_llm, config, train_length=2048)
    net = AudioLM(
        encoder=encoder, pooling=partial(Mean, k=2), projector=Linear, boundary=Learned, llm=language_model,
        vocab_size=vocab_size,
    )  # fmt: skip
    return net.eval()


@pytest.fixture(scope="module", params=["zero", "silence"])
def audio_module(request, golden: Path) -> AudioLM:
    """Return the released audio module, or the same module with silence instead of zeros after each clip."""
    config = json.loads((golden / "encoder_config.json").read_text())
    llm = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    net = build(config, config["output_dim"], llm, 16, request.param)
    state = {f"transformer.audio.{name}": t for name, t in load_file(golden / "encoder.safetensors").items()}
    source = StateTensors(state)
    loading.load(
        net, source, layout="qwen_audio", parts=["encoder", "projector", "boundary"], label="encoder.safetensors"
    )
    return net


@pytest.fixture(scope="module")
def net(golden: Path) -> AudioLM:
    config = json.loads((golden / "model_config.json").read_text())
    llm = {
        "intermediate_size": config["intermediate_size"] // 2,
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_attention_heads"],
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192,
    }
    net = build(config["audio"], config["hidden_size"], llm, VOCAB)
    state = load_file(golden / "model.safetensors")
    state["transformer.wte.weight"] = golden_table(VOCAB, config["hidden_size"], 20899, 2**-5)
    state["lm_head.weight"] = golden_table(VOCAB, config["hidden_size"], 31769, 2**-2)
    assert state["lm_head.weight"][0, 0].item() == 0.07834401726722717
    loading.load(net, StateTensors(state), layout="qwen_audio", label="model.safetensors")
    return net


def clip_features(clips: dict[str, np.ndarray], number: int, geometry: Geometry) -> tuple[Tensor, int]:
    """Return the released features of a clip's valid frames and padding, and its number of valid frames."""
    frames = geometry.n_frames(len(clips[f"wave_{number}"]))
    return features(clips, number, geometry.n_frames_with_padding(frames)), frames


def features(clips: dict[str, np.ndarray], number: int, n_frames: int) -> Tensor:
    return torch.from_numpy(clips["log_mel"][number])[:, :n_frames].to(torch.get_default_dtype())


def encode(net: AudioLM, clip_inputs: list[tuple[Tensor, int]]) -> Tensor:
    mels, frames = zip(*clip_inputs, strict=True)
    with torch.no_grad():
        return net.encode({"mel": torch.cat(mels, dim=1), "frames": torch.tensor(frames)})


def encode_as_released(net: AudioLM, clips: dict[str, np.ndarray], numbers: list[int]) -> Tensor:
    """Encode clips like one batch of the released code: all but the longest are followed by one frame of silence."""
    silent = replace(net.geometry, clip_end="silence")
    lengths = [len(clips[f"wave_{n}"]) for n in numbers]
    parts = []
    for number, length in zip(numbers, lengths, strict=True):
        mel, frames = clip_features(clips, number, net.geometry)
        if length == max(lengths):
            parts.append(encode(net, [(mel, frames)]))
            continue
        even = frames + frames % 2
        net.encoder.clip_end = "silence"
        parts.append(encode(net, [(features(clips, number, silent.n_frames_with_padding(even)), even)]))
        net.encoder.clip_end = "zero"
    return torch.cat(parts)


def packed(net: AudioLM, io: dict[str, np.ndarray], clips: dict[str, np.ndarray], prompts: list[str]) -> dict:
    ids = [torch.from_numpy(io[f"{prompt}.input_ids"].astype(np.int64)) for prompt in prompts]
    lengths = torch.tensor([len(row) for row in ids])
    starts = lengths.cumsum(0) - lengths
    batch = {
        "ids": torch.cat(ids),
        "positions": torch.cat([torch.arange(n) for n in lengths.tolist()]),
        "cu_seqlens": torch.tensor([0, *lengths.cumsum(0).tolist()], dtype=torch.int32),
    }
    index, clip_inputs = [], []
    for prompt, start in zip(prompts, starts.tolist(), strict=True):
        for (first, last), number in zip(io[f"{prompt}.audio_pos"], io[f"{prompt}.clip_idx"], strict=True):
            index.append(torch.arange(start + int(first), start + int(last) + 1))
            clip_inputs.append(clip_features(clips, int(number), net.geometry))
    if clip_inputs:
        mels, frames = zip(*clip_inputs, strict=True)
        batch |= {"mel": torch.cat(mels, dim=1), "frames": torch.tensor(frames), "audio_index": torch.cat(index)}
    return batch


def check_logits(net: AudioLM, hidden: Tensor, io: dict[str, np.ndarray], prompt: str) -> None:
    with torch.no_grad():
        logits = net.head(hidden[-8:])
    expected = torch.from_numpy(io[f"{prompt}.logits_cols"])
    columns = torch.from_numpy(io["columns"].astype(np.int64))
    torch.testing.assert_close(logits[:, columns], expected, rtol=0, atol=2e-4, check_dtype=False)
    assert torch.equal(logits.topk(4).indices[:, 0], torch.from_numpy(io[f"{prompt}.top_ids"][:, 0].astype(np.int64)))


# --- the audio module ---------------------------------------------------------------------------------------------


def test_features_and_lengths_equal_the_released_ones(clips: dict[str, np.ndarray]):
    geometry = Geometry(n_mels=80, pool=2, clip_end="zero", boundary=True)
    for number in range(5):
        wave = clips[f"wave_{number}"].astype(np.float32) / 32768
        frames = geometry.n_frames(len(wave))
        mel = log_mel(wave, geometry.n_mels, geometry.n_frames_with_padding(frames))
        check_log_mel(mel, torch.from_numpy(clips["log_mel"][number])[:, : mel.shape[1]])
        c, n = clips["input_audio_lengths"][number]
        assert (geometry.n_frames_with_padding(frames), geometry.n_tokens(frames)) == (2 * c, n)
    for samples, n, status in zip(clips["probe_samples"], clips["probe_n"], clips["probe_single_status"], strict=True):
        n_tokens = geometry.n_tokens(geometry.n_frames(int(samples)))
        assert n_tokens == max(n, 0)
        # A clip that the released code cannot encode is an unusable row.
        assert (n_tokens > 0) == (status == 1), samples


@pytest.mark.parametrize("audio_module", ["zero"], indirect=True)
def test_the_audio_module_equals_the_released_one_for_each_clip(audio_module: AudioLM, clips: dict[str, np.ndarray]):
    single = [encode(audio_module, [clip_features(clips, n, audio_module.geometry)]) for n in range(5)]
    for number, out in enumerate(single):
        expected = torch.from_numpy(clips[f"out_single_{number}"])
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-4, check_dtype=False)
    batched = encode(audio_module, [clip_features(clips, n, audio_module.geometry) for n in range(5)])
    torch.testing.assert_close(batched, torch.cat(single), rtol=0, atol=1e-5)


@pytest.mark.parametrize("audio_module", ["zero"], indirect=True)
def test_batches_of_the_released_code_add_one_frame_of_silence(audio_module: AudioLM, clips: dict[str, np.ndarray]):
    expected = torch.cat([torch.from_numpy(clips[f"out_batch_{number}"]) for number in range(5)])
    torch.testing.assert_close(
        encode_as_released(audio_module, clips, list(range(5))), expected, rtol=0, atol=1e-4, check_dtype=False
    )


@pytest.mark.parametrize("audio_module", ["silence"], indirect=True)
def test_silence_after_a_clip_changes_the_output(audio_module: AudioLM, clips: dict[str, np.ndarray]):
    out = encode(audio_module, [clip_features(clips, 0, audio_module.geometry)])
    expected = torch.from_numpy(clips["out_single_0"])
    assert (out[: len(expected)] - expected).abs().max() > 5e-3


# --- the full model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [*AT_MOST_ONE_CLIP, "long"])
def test_logits_equal_the_released_ones(
    net: AudioLM, io: dict[str, np.ndarray], clips: dict[str, np.ndarray], prompt: str
):
    """`long` has more than 2048 tokens, which activates dynamic NTK and log-n attention."""
    batch = packed(net, io, clips, [prompt])
    with torch.no_grad():
        hidden = net.hidden_states(batch)
    torch.testing.assert_close(
        hidden[-8:], torch.from_numpy(io[f"{prompt}.hidden_last8"]), rtol=0, atol=2e-4, check_dtype=False
    )
    check_logits(net, hidden, io, prompt)


def test_logits_of_a_dialogue_equal_the_released_ones(
    net: AudioLM, io: dict[str, np.ndarray], clips: dict[str, np.ndarray]
):
    batch = packed(net, io, clips, ["chat2"])
    audio = encode_as_released(net, clips, io["chat2.clip_idx"].tolist())
    with torch.no_grad():
        embeds = lm.embed(net.llm, batch["ids"]).index_copy(0, batch["audio_index"], audio)
        lengths = torch.tensor([len(embeds)])
        hidden = lm.hidden_states(net.llm, embeds, batch["positions"], batch["cu_seqlens"], prompt_lengths=lengths)
    check_logits(net, hidden, io, "chat2")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_equal_the_released_ones(
    net: AudioLM, io: dict[str, np.ndarray], clips: dict[str, np.ndarray], prompt: str
):
    kind = json.loads(str(io["meta"]))["prompts"][prompt]["kind"]
    settings = GenerationSettings(max_new_tokens=12, stop=frozenset(STOPS[kind]))
    [answer] = net.generate(packed(net, io, clips, [prompt]), settings)
    expected = io[f"{prompt}.greedy_ids"].tolist()
    assert answer == expected[: len(answer)] and (len(answer) == 12 or expected[len(answer)] in STOPS[kind])


def test_batched_answers_equal_the_answers_to_single_prompts(
    net: AudioLM, io: dict[str, np.ndarray], clips: dict[str, np.ndarray]
):
    """The prompts differ in length. The one beyond the training length has its own rotary angles."""
    prompts = ["asr", "long", "text"]
    settings = GenerationSettings(max_new_tokens=5, stop=frozenset({END}))
    batched = net.generate(packed(net, io, clips, prompts), settings)
    assert batched == [net.generate(packed(net, io, clips, [prompt]), settings)[0] for prompt in prompts]


def test_logits_with_another_norm_epsilon_equal_the_released_ones(
    net: AudioLM, io: dict[str, np.ndarray], clips: dict[str, np.ndarray]
):
    norms = [module for module in net.llm.modules() if hasattr(module, "variance_epsilon")]
    for norm in norms:
        norm.variance_epsilon = 1e-5
    try:
        with torch.no_grad():
            hidden = net.hidden_states(packed(net, io, clips, ["asr"]))
    finally:
        for norm in norms:
            norm.variance_epsilon = 1e-6
    expected = torch.from_numpy(io["asr_eps1e-5.logits_cols"])
    columns = torch.from_numpy(io["columns"].astype(np.int64))
    with torch.no_grad():
        torch.testing.assert_close(net.head(hidden[-8:])[:, columns], expected, rtol=0, atol=2e-4, check_dtype=False)
