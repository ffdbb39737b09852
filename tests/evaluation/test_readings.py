"""Readings of test rows: by CTC, of the text, and the transcripts of another system in a file; scores of test sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from whisper_normalizer.english import EnglishTextNormalizer

from auris import config
from auris.data.manifests import read_manifests
from auris.data.samples import TextSamples
from auris.data.stretch import UniformStretch
from auris.evaluation import answer_cache, answering, predictions, runner, summary, transcripts
from auris.evaluation.benchmarks import Benchmark, name_sets
from auris.files import read_json
from auris.inference import load as pretrained
from auris.inference.text_reading import read_text
from auris.metrics.records import EvaluationName, ResultRow
from auris.text.prompts import NaturalPrompt
from auris.training import run as train
from support.manifests import write_manifest
from support.recipes import smallest_run

SETS = ("librispeech", "librispeech_other", "asterisk", "speechocean762", "ljspeech", "whisper_jfk")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("meld", EvaluationName("meld")),
        ("meld@silence", EvaluationName("meld", None, "silence")),
        ("meld@ctc", EvaluationName("meld", "ctc")),
        ("meld@ctc@shuffled", EvaluationName("meld", "ctc", "shuffled")),
        ("a@b@text", EvaluationName("a@b", "text")),
    ],
)
def test_the_name_of_an_evaluation_states_its_reading_and_its_audio(text: str, name: EvaluationName):
    assert EvaluationName.parse(text) == name and str(name) == text


# --- the encoder's own decoder ------------------------------------------------------------------------------------


def benchmark(**settings: object) -> Benchmark:
    composed = config.compose(["checkpoint=x", "benchmark=sets", "data=manifest"], "evaluate")
    return Benchmark.from_config(config.resolve(composed, "evaluate")["benchmark"] | settings)


@pytest.fixture(scope="module")
def of_whisper(shared_data: Path, whisper_base: Path, tmp_path_factory: pytest.TempPathFactory):
    """Return the scores of Whisper base's own decoder on real speech, and the rows without a transcript."""
    real = benchmark(test=[str(shared_data / f"real/{name}.test.jsonl") for name in SETS])
    file, folder = whisper_base / "reference_transcripts.jsonl", tmp_path_factory.mktemp("cache")
    manifests = name_sets(read_manifests(real.manifests()))
    part, skipped = transcripts.answer_from_file(file, "task", manifests, folder / answer_cache.CACHE_DIR)
    responses = answer_cache.load_responses(folder, part)
    rows = [response.row for response in responses]
    scored = predictions.split_by_subset(predictions.predict("task", responses), rows, real.parts, real.sets)
    identity = {"study": "s", "arm": "a", "seed": 0, "benchmark": "real@decoder"}
    scored = [prediction for prediction in scored if prediction.metric == "wer"]
    return {row.task: row for row in summary.summarise(scored, identity, 20, 0, {})}, skipped, responses


def test_the_word_error_rates_of_whisper_base_are_the_known_ones(of_whisper):
    """They stand in the README next to the file. The boundary between children and adults is 18 years."""
    expected = {
        "asr en librispeech": (5.0, 160),
        "asr en librispeech_other": (11.43, 100),
        "asr es asterisk": (29, 84),
        "asr fr asterisk": (25, 86),
        "asr it asterisk": (21, 98),
        "asr en speechocean762": (44.1, 168),
        "asr en speechocean762 adults": (30, 92),
        "asr en speechocean762 children": (76, 76),
        "asr en ljspeech": (3.1, 8),
        "asr en whisper_jfk": (0, 1),
    }
    scores: Mapping[str, ResultRow] = of_whisper[0]
    assert scores.keys() == expected.keys() | {"asr en asterisk"}
    for group, (percent, n) in expected.items():
        digits = len(str(percent).partition(".")[2])
        assert (round(100 * scores[group].value, digits), scores[group].n) == (percent, n), group


def test_prompts_with_dots_have_fewer_errors_than_with_the_english_normaliser_alone(of_whisper):
    """The README's 5.8 % counts `...` in a prompt as a word, which the basic normaliser removes."""
    scores, _, responses = of_whisper
    assert round(100 * scores["asr en asterisk"].value, 2) == 4.87
    import jiwer

    normalize = EnglishTextNormalizer()
    english = [r for r in responses if r.row.labels["set"] == "asterisk" and r.row.labels["language"] == "en"]
    references, hypotheses = (
        [normalize(text) for text in texts]
        for texts in zip(*((r.row.labels["text"], r.content) for r in english), strict=True)
    )
    assert round(100 * jiwer.wer(references, hypotheses), 1) == 5.8


def test_rows_without_a_transcript_are_listed(of_whisper):
    _, skipped, responses = of_whisper
    assert len(responses) == 796 and len(skipped) == 500 - 168
    assert all(row_id.startswith("speechocean762/") for row_id in skipped)
    assert all(reason.endswith("reference_transcripts.jsonl") for reason in skipped.values())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"id": "a"}], r'line 1 is .*expected {"id": ROW, "hyp": TEXT}'),
        ([{"id": "a", "hyp": "x"}, {"id": "a", "hyp": "y"}], "line 2: row 'a' has an earlier transcript"),
    ],
)
def test_a_file_with_invalid_lines_is_refused(tmp_path: Path, lines: list, message: str):
    with pytest.raises(ValueError, match=message):
        transcripts.read_transcripts(write_manifest(tmp_path / "t.jsonl", lines))


def test_a_missing_file_is_named():
    with pytest.raises(
        FileNotFoundError, match=r"reading=ctx: there is no such file; expected ctc, aligner, text or a file"
    ):
        transcripts.read_transcripts(Path("ctx"))


# --- test sets and parts ------------------------------------------------------------------------------------------


def test_the_set_of_a_row_is_its_label_or_named_after_its_file(tmp_path: Path):
    (tmp_path / "all").mkdir()
    names = {"librispeech.test.jsonl": "librispeech", "all/test.jsonl": "all", "b.jsonl": "b"}
    entries: list = []
    for number, file in enumerate(names):
        rows = [{"id": f"{number}-{n}", "audio": "a.wav", "task": "asr", "text": "a"} for n in range(2)]
        entries.append(str(write_manifest(tmp_path / file, [rows[0], {**rows[1], "set": "mine"}])))
    manifests = name_sets(read_manifests(entries))
    assert [[row.labels["set"] for row in m.rows] for m in manifests] == [[name, "mine"] for name in names.values()]


def test_rows_belong_to_the_parts_whose_labels_they_have(tmp_path: Path):
    labels = [{"age": 17}, {"age": 18, "accent": "us"}, {"accent": "us"}, {"age": "20"}]
    rows = [{"id": str(n), "audio": "a.wav", "task": "asr", "text": "a", **own} for n, own in enumerate(labels)]
    [manifest] = read_manifests([write_manifest(tmp_path / "rows.jsonl", rows)])
    parts = benchmark().parts | {"us adults": {"age": [18, None], "accent": "us"}, "us": {"accent": "us"}}
    subsets = [predictions.find_subsets(row, parts) for row in manifest.rows]
    assert subsets == [["children"], ["adults", "us adults", "us"], ["us"], []]


# --- whole evaluations --------------------------------------------------------------------------------------------


def fit(corpus: Path, folder: Path, experiment: str, *overrides: str) -> Path:
    arguments = [f"experiment={experiment}", *smallest_run(corpus, folder), "max_steps=2", *overrides]
    return train.train(config.resolve(config.compose([*arguments, "trainer.val_check_interval=2"])))


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a run of the text stage, and a run with audio that starts from it."""
    folder = tmp_path_factory.mktemp("readings")
    text = fit(corpus, folder, "llm_text", "data.stretch.repeats=[2,2]", "data.stretch.blanks=[1,1]")
    return {"text": text, "audio": fit(corpus, folder, "qwen2_audio_pretrain", f"weights.llm={text}")}


def evaluate(run: Path, corpus: Path, *overrides: str, tests: str | None = None, tokens: str = "4") -> list[ResultRow]:
    tests = tests or f"[{{path: {corpus}/test.jsonl, tasks: [asr]}}]"
    arguments = [f"checkpoint={run}", f"data.root={corpus}", "accelerator=cpu", "bootstrap=10", *overrides]
    arguments += ["benchmark=sets", f"data.test={tests}"]
    arguments = [f"generation.max_new_tokens={tokens}", *arguments]
    return runner.evaluate(config.resolve(config.compose(arguments, "evaluate"), "evaluate"))


def test_the_text_reading_presents_transcripts_as_the_text_stage_did(trained: dict[str, Path]):
    model = pretrained.load(trained["audio"], device="cpu")
    chat = {"prompt": {"_target_": "auris.text.chat.Qwen2AudioChat"}, "data": {**model.config["data"], "view": "chat"}}
    for config_of_model in (
        model.config,
        {**model.config, **chat},
    ):  # a model of dialogues gets its base model's prompts
        samples = answering.build_samples(read_text(replace(model, config=config_of_model)), "task", "window")
        assert isinstance(samples, TextSamples) and isinstance(samples.stretch, UniformStretch)
        assert (samples.stretch.repeats, samples.stretch.blanks) == ((2, 2), (1, 1))
        assert isinstance(samples.prompt, NaturalPrompt)


def test_the_text_reading_refuses_dialogues(trained: dict[str, Path], corpus: Path, tmp_path: Path):
    dialogue = [
        {"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]},
        {"role": "assistant", "content": "x"},
    ]
    file = write_manifest(tmp_path / "chat.jsonl", [{"id": "a", "messages": dialogue}])
    with pytest.raises(ValueError, match="reading=text: embedded has chat rows, expected only rows of tasks"):
        evaluate(trained["audio"], corpus, "reading=text", tests=f"[{corpus}/test.jsonl,{file}]")


def test_readings_are_evaluations_of_their_own_on_the_same_rows(
    trained: dict[str, Path], corpus: Path, tmp_path: Path, capsys, monkeypatch
):
    run = trained["audio"]
    rows = [json.loads(line) for line in (corpus / "test.jsonl").read_text().splitlines()]
    speech = [row for row in rows if row["task"] == "asr"]
    lines = [{"id": row["id"], "hyp": f" {row['text']}!"} for row in speech[:-1]]
    file = write_manifest(tmp_path / "others.jsonl", lines)
    own = evaluate(run, corpus, "audio=shuffled", "audio_rows=3")
    by_text = evaluate(run, corpus, "reading=text")
    capsys.readouterr()
    by_decoder = evaluate(run, corpus, f"reading={file}", tokens="null")
    assert "missing from the scores: 1" in capsys.readouterr().out.replace("\n", " ")
    numbers = {
        name: sum(
            row.n
            for row in results
            if row.benchmark == f"embedded{name}" and row.metric in ("wer", "cer") and row.split == "test"
        )
        for name, results in (("", own), ("@shuffled", own), ("@text", by_text), ("@decoder", by_decoder))
    }
    assert numbers == {"": len(speech), "@shuffled": 3, "@text": len(speech), "@decoder": len(speech) - 1}
    assert {row.task for row in by_text} == {"asr en corpus", "asr zh corpus"}
    assert {row.value for row in by_decoder if row.metric in ("wer", "cer")} == {0.0}
    assert read_json(run / "evaluations.json").keys() == {f"embedded{name}" for name in numbers}
    # Scores follow from cached responses.
    before = (run / "results.jsonl").read_text()
    monkeypatch.setattr("auris.inference.load.load", None)
    runner.evaluate(config.resolve(config.compose([f"rescore={run}", "bootstrap=10"], "evaluate"), "evaluate"))
    assert sorted((run / "results.jsonl").read_text().splitlines()) == sorted(before.splitlines())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reading=text", "audio=silence"], "audio=silence has no effect with reading=text, which uses no audio"),
        (["audio_rows=3"], "audio_rows has no effect with audio=as_is"),
        (
            ["reading=x.jsonl", "prompt=tags"],
            "prompt, generation.max_new_tokens: expected no such setting with reading=x",
        ),
        (["reading=nothing.jsonl", "generation.max_new_tokens=null"], "reading=nothing.jsonl: there is no such file"),
    ],
)
def test_settings_without_effect_are_refused_before_a_model_is_loaded(corpus: Path, overrides: list, message: str):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(Path("no-run"), corpus, *overrides)


def test_a_model_trained_on_ctc_has_no_text_reading(corpus: Path, tmp_path: Path):
    run = fit(corpus, tmp_path, "encoder_ctc")
    with pytest.raises(ValueError, match="reading=text: .* was trained on CTC, expected a model that answers prompts"):
        read_text(pretrained.load(run))
