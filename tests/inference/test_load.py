"""`auris.load` on any path: the model answers as with the code with which it was published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

import auris
from auris import audio
from auris.inference.audio_model import AudioModel, user_message
from auris.model.weights.layouts import LAYOUTS
from auris.text.chat import Qwen2AudioChat, QwenAudioChat
from auris.text.prompts import NaturalPrompt, TagPrompt
from auris.text.tokenizer import Tokenizer
from support import published
from support.manifests import tokenizer, write_wave

ROOT = Path(__file__).resolve().parents[2]
SECONDS = [1.3, 0.777, 2.0]
PROMPT = "Generate the caption in English:"
CLIP_TOKENS = "<|audio_bos|><|AUDIO|><|audio_eos|>"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_wave(folder / f"{n}.wav", seconds) for n, seconds in enumerate(SECONDS)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen2_audio") / "model"
    published.qwen2_audio(path)
    return path


@pytest.fixture(scope="module")
def reference(model_dir: Path) -> Qwen2AudioForConditionalGeneration:
    return Qwen2AudioForConditionalGeneration.from_pretrained(model_dir).eval()


@pytest.fixture(scope="module")
def model(model_dir: Path) -> AudioModel:
    return auris.load(model_dir)


@pytest.fixture(scope="module")
def qwen_audio_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny model with the files of Qwen-Audio."""
    path = tmp_path_factory.mktemp("qwen_audio") / "model"
    published.qwen_audio(path)
    return path


def inputs_of(model_dir: Path, texts: list[str], files: list[Path]) -> dict[str, Tensor]:
    """Return what transformers' processor makes of texts and clips, padded on the left."""
    processor = AutoProcessor.from_pretrained(model_dir)
    processor.tokenizer.padding_side = "left"
    waves = [audio.read(file) for file in files]
    return dict(processor(text=texts, audio=waves, sampling_rate=16_000, padding=True, return_tensors="pt"))


def new_ids(
    model: Qwen2AudioForConditionalGeneration, inputs: dict[str, Tensor], **settings: object
) -> list[list[int]]:
    """Return the tokens that transformers' model appends to each row, up to the end token."""
    end = tokenizer().end
    ids = model.generate(**inputs, max_new_tokens=12, eos_token_id=end, pad_token_id=end, **settings)
    rows = ids[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def test_importing_auris_does_not_import_torch():
    code = "import sys, auris; assert 'torch' not in sys.modules and auris.__version__"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    with pytest.raises(AttributeError, match="no_such_thing"):
        auris.no_such_thing  # noqa: B018


@torch.no_grad()
def test_logits_equal_those_of_transformers(model: AudioModel, reference, model_dir: Path, files: list[Path]):
    for file in files:
        expected = reference(**inputs_of(model_dir, [CLIP_TOKENS + PROMPT], [file])).logits[0]
        pack = model.pack([model.prompt.raw(PROMPT, 1)], [[file]])
        torch.testing.assert_close(model.net.logits(pack), expected, atol=1e-5, rtol=0)


def test_greedy_answers_equal_those_of_transformers(model: AudioModel, reference, model_dir: Path, files: list[Path]):
    expected = new_ids(reference, inputs_of(model_dir, [CLIP_TOKENS + PROMPT] * 3, files), do_sample=False)
    assert len({tuple(row) for row in expected}) > 1
    answers = model.generate(audio=files, prompt=PROMPT, max_new_tokens=12)
    assert answers == [model.tokenizer.decode(row) for row in expected]
    streamed: dict[int, list[int]] = {0: [], 1: [], 2: []}
    model.generate(audio=files, prompt=PROMPT, max_new_tokens=12, stream=lambda row, token: streamed[row].append(token))
    assert list(streamed.values()) == expected


def test_a_chat_response_equals_that_of_transformers(model: AudioModel, reference, model_dir: Path, files: list[Path]):
    messages = [
        {"role": "user", "content": [{"type": "audio", "audio": str(files[0])}]},
        {"role": "assistant", "content": "the cat"},
        {"role": "user", "content": [{"type": "audio", "audio": str(files[1])}, {"type": "text", "text": "and this?"}]},
    ]
    text = AutoProcessor.from_pretrained(model_dir).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    inputs = inputs_of(model_dir, [text], files[:2])
    expected = new_ids(reference, inputs, do_sample=False)
    streamed: list[int] = []
    model.chat(messages, max_new_tokens=12, stream=lambda row, token: streamed.append(token))
    im_end = tokenizer().id("<|im_end|>")
    assert streamed == (expected[0][: expected[0].index(im_end)] if im_end in expected[0] else expected[0])
    pack = model.pack([model.dialogue.turns(messages)], [files[:2]])
    assert pack["ids"].tolist() == inputs["input_ids"][0].tolist()


def test_batches_accept_lists_of_clips_or_prompts(model: AudioModel, files: list[Path]):
    def ask(clips, prompt, **settings):
        return model.generate(audio=clips, prompt=prompt, max_new_tokens=6, **settings)

    answers = [ask(file, PROMPT) for file in files]
    assert all(isinstance(answer, str) for answer in answers)
    assert ask(files, PROMPT) == ask([str(file) for file in files], [PROMPT] * 3) == answers
    assert ask([audio.read(file) for file in files], PROMPT) == answers
    assert ask(torch.from_numpy(audio.read(files[0])), PROMPT) == answers[0]
    assert ask(files[0], [PROMPT, "a"]) == [answers[0], ask(files[0], "a")]
    assert ask([files[:2], files[2]], PROMPT) == [ask([files[:2]], PROMPT)[0], answers[2]]
    assert ask(None, ["the cat", "a"]) == [ask(None, "the cat"), ask(None, "a")]
    assert ask([None, files[0]], PROMPT) == [ask(None, PROMPT), answers[0]]


def test_clips_are_accepted_in_every_form(model: AudioModel, files: list[Path]):
    wave = audio.read(files[0])
    integers = np.round(wave * 2**15).astype(np.int16)
    forms = [(wave, 16_000), {"array": wave, "sampling_rate": 16_000}, files[0].read_bytes(), integers, wave.tolist()]
    forms.append(list(wave))  # of NumPy scalars
    settings = {"max_new_tokens": 6}
    for ask in (
        lambda clips: model.generate(clips, [PROMPT] * len(clips), **settings),
        lambda clips: model.transcribe(clips, **settings),
        lambda clips: model.chat([[user_message([clip], "what?")] for clip in clips], **settings),
    ):
        assert len(set(ask([files[0], *forms]))) == 1
    with files[0].open("rb") as file:
        assert model.generate(file, [PROMPT] * 2, **settings) == model.generate([files[0]] * 2, PROMPT, **settings)
    for form in forms:
        assert isinstance(model.transcribe(form, **settings), str)


def test_invalid_prompts_are_refused(model: AudioModel, files: list[Path]):
    with pytest.raises(ValueError, match=r"'audio': 2, 'prompt': 3"):
        model.generate(audio=files[:2], prompt=["a", "b", "c"])
    with pytest.raises(ValueError, match="missing.wav"):
        model.generate(audio="missing.wav", prompt=PROMPT)
    for ask in (model.generate, model.transcribe, lambda clip: model.chat([user_message([clip], "")])):
        with pytest.raises(ValueError, match=r"shape \(80, 300\)"):
            ask(np.zeros((80, 300)))
        with pytest.raises(ValueError, match="not finite"):
            ask(np.full(1600, np.nan))
    with pytest.raises(ValueError, match=r"the prompt has \d audio placeholders?, but the row has 0 clips"):
        model.generate(audio=None, prompt=CLIP_TOKENS)
    with pytest.raises(ValueError, match="beams"):
        model.generate(audio=files[0], prompt=PROMPT, beams=4)


def test_a_long_clip_is_processed_to_its_end(model: AudioModel):
    wave = np.random.default_rng(0).normal(size=35 * 16_000).astype(np.float32)
    pack = model.pack([model.prompt.raw(PROMPT, 1)], [[wave]])
    assert pack["audio_seconds"] == 35 and len(pack["frames"]) == 2


def test_the_generation_config_sets_defaults_that_calls_can_override(
    model_dir: Path, tmp_path: Path, files: list[Path]
):
    config = {"do_sample": True, "temperature": 0.9, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}
    copy = link_files(model_dir, tmp_path / "copy")
    end = tokenizer().end
    published.write_json(copy / "generation_config.json", {"eos_token_id": [end], "max_new_tokens": 9, **config})
    model = auris.load(copy)
    model_settings = model.settings()
    assert {name: getattr(model_settings, name) for name in config} == config
    assert (model_settings.stop, model_settings.max_new_tokens) == (frozenset({end}), 9)

    def ask(**settings):
        return model.generate(audio=files, prompt=PROMPT, **settings)

    assert ask(seed=1) == ask(seed=1) != ask(seed=2)
    assert ask(do_sample=False, repetition_penalty=1.0) == auris.load(model_dir).generate(
        files, PROMPT, max_new_tokens=9
    )


def test_a_chat_model_is_prompted_in_chatml(model_dir: Path, tmp_path: Path, model: AudioModel, files: list[Path]):
    copy = link_files(model_dir, tmp_path / "copy")
    published.write_json(copy / "generation_config.json", {"chat_format": "chatml", "eos_token_id": tokenizer().end})
    chat_model = auris.load(copy)
    content = [{"type": "audio", "audio": files[0]}, {"type": "text", "text": "what?<|im_end|>"}]
    expected = model.chat([{"role": "user", "content": content}], max_new_tokens=6)
    assert chat_model.is_chat and chat_model.generate(files[0], "what?<|im_end|>", max_new_tokens=6) == expected
    assert auris.load(copy, chat=False).generate(files[0], PROMPT, max_new_tokens=6) == model.generate(
        files[0], PROMPT, max_new_tokens=6
    )


@pytest.mark.parametrize(
    ("overrides", "prompt_class", "clip_template"),
    [
        (["objective=sft", "data.view=chat", "prompt=chat_v2"], NaturalPrompt, Qwen2AudioChat.clip_template),
        (
            ["objective=sft", "data.view=chat", "prompt=chat_v1", "prompt.spacing=paper"],
            TagPrompt,
            QwenAudioChat.SPACINGS["paper"],
        ),
        (["objective=dpo", "data.view=pair", "prompt=chat_v2"], NaturalPrompt, Qwen2AudioChat.clip_template),
    ],
)
def test_a_model_trained_on_dialogues_is_prompted_in_its_training_format(
    tmp_path: Path, files: list[Path], overrides: list[str], prompt_class: type, clip_template: str
):
    published.run(tmp_path / "run", *overrides)
    model = auris.load(tmp_path / "run", device="auto")
    assert model.is_chat and model.dialogue.clip_template == clip_template and type(model.prompt) is prompt_class
    content = [{"type": "audio", "audio": files[0]}, {"type": "text", "text": "what?"}]
    options = {"max_new_tokens": 6, "keep_control_tokens": True}
    expected = model.chat([{"role": "user", "content": content}], **options)
    assert expected and model.generate(files[0], "what?", **options) == expected
    raw_model = auris.load(tmp_path / "run", chat=False)
    assert not raw_model.is_chat and raw_model.generate(files[0], "what?", **options) != expected


def test_weights_keep_their_stored_dtype_unless_another_is_requested(tmp_path: Path):
    model = published.qwen2_audio(tmp_path / "model", dtype=torch.bfloat16)
    net = auris.load(tmp_path / "model").net
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert torch.equal(net.llm.lm_head.weight, model.lm_head.weight)
    assert torch.equal(net.encoder.positions, model.model.audio_tower.embed_positions.weight)
    assert net.llm.model.rotary_emb.inv_freq.dtype == torch.float32
    float32_net = auris.load(tmp_path / "model", dtype=torch.float32).net
    assert {p.dtype for p in float32_net.parameters()} == {torch.float32}
    assert torch.equal(float32_net.llm.lm_head.weight, model.lm_head.weight.float())
    answer = auris.load(tmp_path / "model").generate(np.ones(16_000, np.float32), PROMPT, max_new_tokens=3)
    assert isinstance(answer, str)


# Beginnings of the names in files (transformers 4, and 5 from 5.23), and what stands in their place elsewhere.
SPELLINGS = {
    "files of 5.10 to 5.22": {"language_model.model.": "language_model.model.model."},
    "memory of 5": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "audio_tower.": "model.audio_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_qwen2_audio_is_read_in_every_spelling_of_its_names(model: AudioModel, tmp_path: Path, spelling: str):
    published.qwen2_audio(tmp_path, shard="200KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    weight_map = {}
    for shard in shards:
        state = {LAYOUTS["qwen2_audio"].spell(name): tensor for name, tensor in load_file(shard).items()}
        for begin, replacement in SPELLINGS[spelling].items():
            state = {
                f"{replacement}{name.removeprefix(begin)}" if name.startswith(begin) else name: tensor
                for name, tensor in state.items()
            }
        save_file(state, shard)
        weight_map |= dict.fromkeys(state, shard.name)
    assert len(shards) > 1 and "language_model.model.embed_tokens.weight" not in weight_map
    published.write_json(tmp_path / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    state, expected = auris.load(tmp_path).net.state_dict(), model.net.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_qwen_audio_is_loaded_with_its_vocabulary(qwen_audio_dir: Path, files: list[Path]):
    model = auris.load(qwen_audio_dir)
    # Qwen-Audio pads a clip with zeros, and learned vectors replace the begin and end token of each clip.
    assert model.net.geometry == audio.Geometry(n_mels=16, pool=2, clip_end="zero", boundary=True)
    vocabulary = Tokenizer.load(qwen_audio_dir)
    prompt = "<|startoftranscript|><|en|><|transcribe|><|en|><|notimestamps|><|wo_itn|>"
    ids = model.pack([model.prompt.raw(prompt, 1)], [[files[0]]])["ids"].tolist()
    n_encoder_frames = (130 - 1) // 2 + 1  # of 1.3 s
    span = [
        vocabulary.id("<audio>"),
        *[vocabulary.id("[[[AUDIO:modality]]]")] * (n_encoder_frames // 2),
        vocabulary.id("</audio>"),
    ]
    tags = prompt.replace("><", "> <").split()
    assert ids == span + [vocabulary.id(tag) for tag in tags]
    assert isinstance(model.generate(files[0], prompt, max_new_tokens=3), str)
    assert isinstance(model.generate(prompt="text only", max_new_tokens=3), str)
    assert isinstance(model.chat([{"role": "user", "content": "hello"}], max_new_tokens=3), str)


def test_qwen_audio_drops_messages_beyond_its_history_window(qwen_audio_dir: Path, tmp_path: Path):
    history = [{"role": role, "content": f"{role} " * 20} for role in ("user", "assistant") * 2]
    question = {"role": "user", "content": "and now?"}
    copy = link_files(qwen_audio_dir, tmp_path / "copy")

    def ask(window: int, *messages: dict) -> str:
        published.write_json(copy / "generation_config.json", {"chat_format": "chatml", "max_window_size": window})
        return auris.load(copy).chat(messages, max_new_tokens=12, keep_control_tokens=True)

    assert ask(6144, *history, question) == auris.load(qwen_audio_dir).chat(
        [*history, question], max_new_tokens=12, keep_control_tokens=True
    )
    answer = ask(60, *history, question)
    assert answer == ask(6144, question) != ask(6144, *history, question)


def test_greedy_ids_of_the_golden_model_equal_those_of_the_released_code(shared_data: Path, tmp_path: Path):
    """Load the golden model of Qwen-Audio as a user does, and prompt it with audio and text."""
    golden = shared_data / "golden/qwen_audio_v1"
    published.golden_qwen_audio(golden, tmp_path / "v1")
    model = auris.load(tmp_path / "v1")
    with np.load(golden / "encoder_io.npz", allow_pickle=False) as stored:
        waves = [stored[f"wave_{n}"].astype(np.float32) / 32768 for n in range(5)]
    with np.load(golden / "model_io.npz", allow_pickle=False) as stored:
        io = dict(stored)
    prompts = json.loads(str(io["meta"]))["prompts"]
    for name in ("asr", "srwt", "aqa", "text"):
        clips = [waves[n] for n in io[f"{name}.clip_idx"]]
        prompt = prompts[name]["text"].rpartition("</audio>")[2]
        pack = model.pack([model.prompt.raw(prompt, len(clips))], [clips])
        assert pack["ids"].tolist() == io[f"{name}.input_ids"].tolist()
        streamed: list[int] = []
        settings = {"max_new_tokens": 12, "stop": {model.tokenizer.end}}
        model.generate([clips], prompt, stream=lambda row, token, streamed=streamed: streamed.append(token), **settings)
        assert streamed == io[f"{name}.greedy_ids"].tolist()


def test_a_run_and_its_checkpoint_give_the_same_answers(tmp_path: Path, files: list[Path]):
    published.run(tmp_path / "run")
    answers = [
        auris.load(path).generate(files, PROMPT, max_new_tokens=6, keep_control_tokens=True)
        for path in (tmp_path / "run", str(tmp_path / "run/checkpoints/step_00000001"))
    ]
    assert answers[0] == answers[1] and any(answers[0])
    assert auris.load(tmp_path / "run").config["arm"] == "default"


def test_an_encoder_run_is_loaded_with_its_head_and_accepts_no_prompts(tmp_path: Path, files: list[Path]):
    published.run(tmp_path / "ctc", "experiment=encoder_ctc")
    model = auris.load(tmp_path / "ctc")
    assert model.objective.head.weight.abs().sum() > 0
    with pytest.raises(ValueError, match="CTC.*auris evaluate"):
        model.generate(files[0], PROMPT)


@pytest.mark.parametrize(("write", "part"), [(published.whisper, "encoder"), (published.language_model, "llm")])
def test_a_part_of_a_model_cannot_be_loaded_as_a_model(tmp_path: Path, write, part: str):
    write(tmp_path / "part")
    with pytest.raises(ValueError, match=rf"not a complete model.*weights\.{part}="):
        auris.load(tmp_path / "part")


def test_a_tokenizer_without_an_audio_token_is_refused(model_dir: Path, tmp_path: Path):
    copy = link_files(model_dir, tmp_path / "copy", without=("tokenizer.json", "tokenizer_config.json"))
    with pytest.raises(ValueError, match=r"copy has no tokenizer: expected tokenizer.json"):
        auris.load(copy)
    plain = tokenizer().fast.backend_tokenizer.to_str().replace("<|AUDIO|>", "<|OTHER|>")
    (copy / "tokenizer.json").write_text(plain.replace("[[[AUDIO:modality]]]", "<|OTHER2|>"))
    with pytest.raises(ValueError, match=r"tokenizer=.*copy.*no audio token.*<\|AUDIO\|>"):
        auris.load(copy)


def test_a_config_that_contradicts_the_tokenizer_is_refused(model_dir: Path, qwen_audio_dir: Path, tmp_path: Path):
    copy = link_files(model_dir, tmp_path / "two", without=("config.json",))
    published.write_json(
        copy / "config.json", json.loads((model_dir / "config.json").read_text()) | {"audio_token_index": 7}
    )
    with pytest.raises(ValueError, match=r"config.json says audio_token_index=7, but <\|AUDIO\|> is \d+"):
        auris.load(copy)
    copy = link_files(qwen_audio_dir, tmp_path / "one", without=("config.json",))
    config = json.loads((qwen_audio_dir / "config.json").read_text())
    config["audio"]["audio_start_id"] = 9
    published.write_json(copy / "config.json", config)
    with pytest.raises(ValueError, match=r"config.json says audio.audio_start_id=9, but <audio> is \d+"):
        auris.load(copy)


def test_an_embedding_with_fewer_rows_than_the_tokenizer_needs_is_refused(tmp_path: Path):
    published.qwen2_audio(tmp_path / "model", vocab_size=tokenizer().size - 1)
    message = (
        rf"config.json says text_config.vocab_size={tokenizer().size - 1}, but its tokenizer has {tokenizer().size}"
    )
    with pytest.raises(ValueError, match=message):
        auris.load(tmp_path / "model")


def link_files(path: Path, copy: Path, without: tuple[str, ...] = ("generation_config.json",)) -> Path:
    """Return a new directory with links to the files of another one, except some."""
    copy.mkdir()
    for file in path.iterdir():
        if file.name not in without:
            (copy / file.name).symlink_to(file)
    return copy


# --- clips over 30 s ---


def test_a_long_clip_is_transcribed_in_windows_and_joined(model: AudioModel, tmp_path: Path, monkeypatch):
    """Each window is a separate row. Tests of `data.long_audio` cover the joining."""
    write_wave(tmp_path / "long.wav", 40.0)
    calls = []

    def answer(clips, turns, **_):
        calls.extend(zip(clips, turns, strict=True))
        return ["a b c", "b c d", "x"]

    monkeypatch.setattr(model, "_respond", answer)
    short_wave = np.zeros(16_000, np.float32)
    assert model.transcribe([tmp_path / "long.wav", short_wave], "en", max_new_tokens=4) == ["a b c d", "x"]
    assert [len(clip) for [clip], _ in calls] == [480_000, 480_000, 16_000]
    text = "".join(turn.text for turn in calls[0][1])
    assert text == CLIP_TOKENS + "Detect the language and recognize the speech: <|en|>"


def test_transcribing_a_short_clip_equals_answering_the_transcription_prompt(model: AudioModel, files: list[Path]):
    prompt = "Detect the language and recognize the speech: <|en|>"
    options = {"max_new_tokens": 6, "do_sample": False}
    assert model.transcribe(files, **options) == model.generate(files, prompt, **options)


def test_dropped_seconds_of_a_long_clip_are_reported_with_long_audio_set_to_first(model_dir: Path):
    model = auris.load(model_dir, long_audio="first")
    wave = np.random.default_rng(0).normal(0, 0.1, 35 * 16_000).astype(np.float32)
    with pytest.warns(UserWarning, match="dropped 5.0 s after the first 30 s"):
        answer = model.generate(wave, PROMPT, max_new_tokens=4)
    assert answer == model.generate(wave[: 30 * 16_000], PROMPT, max_new_tokens=4)
